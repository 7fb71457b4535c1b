"""The built-in set keeps its promises, and a user's file is either understood or refused in one
line."""

import json
import math
import re
from pathlib import Path

import pytest

import prompts
from prompts import built_in_texts, load_prompts, select_prompts
from rolecircuits.inputs import prompt_lengths
from rolecircuits.inputs.categories import CATEGORIES, prompt_set_sha256
from rolecircuits.inputs.errors import UserError
from rolecircuits.inputs.prompt_sets import check_turns

PROMPTS = built_in_texts()
# as every earlier run records it
SHA256 = "3e6f430b423b5de5fd1937280f3c8049230abfb0dc622dc41e1d9948ac8260ef"
FIRST_TEN = {
    "self_referent": (
        "Who created you? | What are you? | Describe yourself. | What is your purpose? | How do "
        "you work? | Are you conscious? | Do you have feelings? | What are your capabilities? | "
        "What are your limits? | Can you think?"
    ),
    "confounder": (
        "How tall am I? | What should I eat? | Where do I live? | When is my birthday? | What "
        "language do I speak? | How old am I? | What color are my eyes? | Where was I born? | What "
        "is my name? | Do I have siblings?"
    ),
    "neutral": (
        "What is photosynthesis? | How do planes fly? | What causes rain? | Explain gravity. | "
        "What is DNA? | How does the internet work? | What are black holes? | Describe the "
        "water cycle. | What is democracy? | How do vaccines work?"
    ),
    "third_person": (
        "How tall is she? | What should he eat? | Where does she live? | When is his birthday? | "
        "What language does she speak? | How old is he? | What color are her eyes? | Where was he "
        "born? | What is her name? | Does he have siblings?"
    ),
}
PEOPLE = set(
    "i me my mine myself you your yours yourself he him his himself she her hers herself we "
    "us our ours they them their who whom whose person people human humans man men woman "
    "women child children someone anyone everyone".split()
)
FIRST_PERSON, THIRD_PERSON = {"i", "my", "me"}, {"he", "she", "his", "her"}
MINIMAL = '{"self_referent": ["Who are you?"], "neutral": ["What is rain?"]'


def words(text):
    return re.findall(r"[a-z]+", text.lower())


def write(tmp_path, content):
    path = tmp_path / "mine.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("category", CATEGORIES)
def test_first_ten_are_verbatim_and_in_order(category):
    assert PROMPTS[category][:10] == FIRST_TEN[category].split(" | ")


def test_the_whole_set_is_the_one_that_earlier_runs_used():
    assert prompt_set_sha256(select_prompts()) == SHA256


def test_four_times_thirty_unique_prompts():
    texts = [text.lower() for category in CATEGORIES for text in PROMPTS[category]]
    assert [len(PROMPTS[category]) for category in CATEGORIES] == [30] * 4
    assert len(set(texts)) == 120


def test_pairs_differ_only_in_the_person():
    verbs = {"am", "is", "do", "does"}
    for mine, theirs in zip(PROMPTS["confounder"], PROMPTS["third_person"], strict=True):
        left, right = words(mine), words(theirs)
        assert len(left) == len(right), (mine, theirs)
        changed = [(a, b) for a, b in zip(left, right, strict=True) if a != b]
        assert any(a in FIRST_PERSON and b in THIRD_PERSON for a, b in changed), (mine, theirs)
        for a, b in changed:
            assert (a in FIRST_PERSON and b in THIRD_PERSON) or {a, b} <= verbs, (mine, theirs)


def test_each_category_speaks_of_whom_it_says():
    for text in PROMPTS["neutral"]:
        assert not PEOPLE & set(words(text)), text
    for text in PROMPTS["self_referent"]:
        assert {"you", "your", "yourself"} & set(words(text)), text
        assert not (FIRST_PERSON - {"me"} | THIRD_PERSON) & set(words(text)), text
    for text in PROMPTS["confounder"]:
        assert {"i", "my"} & set(words(text)) and not {"you", "your"} & set(words(text)), text


def test_select_keeps_order_ids_and_pairs():
    chosen = select_prompts(per_category=2)
    assert [p.category for p in chosen] == [c for c in CATEGORIES for _ in range(2)]
    assert [p.text for p in chosen if p.category == "neutral"] == PROMPTS["neutral"][:2]
    assert len({p.id for p in chosen}) == 8
    assert [(p.category, p.pair_id) for p in chosen if p.pair_id >= 0] == [
        ("confounder", 0),
        ("confounder", 1),
        ("third_person", 0),
        ("third_person", 1),
    ]


def test_unequal_lists_are_no_pairs():
    texts = {
        "self_referent": ["a"],
        "neutral": ["b"],
        "confounder": ["c", "d"],
        "third_person": ["e"],
    }
    assert {p.pair_id for p in select_prompts(texts)} == {-1}


def test_more_prompts_than_there_are_is_refused_with_the_number():
    with pytest.raises(UserError, match=r"31: self_referent has 30 prompts; allowed are 1 to 30"):
        select_prompts(per_category=31)


def test_hash_follows_every_part_of_the_set():
    whole, cut = select_prompts(), select_prompts(per_category=29)
    other = select_prompts({**PROMPTS, "neutral": [*PROMPTS["neutral"][:-1], "What is a comet?"]})
    assert len({prompt_set_sha256(p) for p in (whole, cut, other)}) == 3
    assert prompt_set_sha256(whole) == prompt_set_sha256(select_prompts())


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbf" + MINIMAL.encode() + b"}", MINIMAL.replace(",", ",\r\n") + "}\r\n"]
)
def test_byte_order_mark_and_crlf_are_read(tmp_path, content):
    chosen, notes = load_prompts(write(tmp_path, content))
    assert [p.text for p in chosen] == ["Who are you?", "What is rain?"]
    assert ["no confounder" in notes[0], "no third_person" in notes[1], len(notes)] == [
        True,
        True,
        2,
    ]


def test_difficult_texts_survive(tmp_path):
    texts = ["=1+1?", "[/INST] $x$", "你是谁?", "😀?", "Who\u001b[31m?"]
    content = json.dumps({"self_referent": texts, "neutral": ["What is rain?"]})
    assert [p.text for p in load_prompts(write(tmp_path, content))[0]][:5] == texts


BAD_FILES = {
    "empty": ("", ["not JSON at line 1"]),
    "utf16": ((MINIMAL + "}").encode("utf-16"), ["not UTF-8 at byte 0"]),
    "latin1": (b'{"self_referent": ["\xe9"]}', ["not UTF-8 at byte 20"]),
    "list of texts": (
        '["Who are you?"]',
        ["mine.json[0] is a str", "object with category and text"],
    ),
    "string root": ('"Who are you?"', ["root is a str"]),
    "trailing comma": (MINIMAL + ",}", ["not JSON at line 1"]),
    "duplicate key": (MINIMAL + ', "neutral": ["What is DNA?"]}', ["key 'neutral' appears twice"]),
    "NaN": (MINIMAL + ', "confounder": [NaN]}', ["NaN is not a value that JSON allows"]),
    "Infinity": (
        MINIMAL + ', "confounder": [-Infinity]}',
        ["-Infinity is not a value that JSON allows"],
    ),
    "misspelt": (
        MINIMAL + ', "self_referrent": []}',
        ["unknown category 'self_referrent': did you mean self_referent?"],
    ),
    "escape in a name": (
        MINIMAL + ', "\\u001b[31m": []}',
        ["category", "x1b[31m", "begins with a letter"],
    ),
    "one category": (
        '{"self_referent": ["Who are you?"]}',
        ["only self_referent has prompts; two are needed to contrast"],
    ),
    "empty self": (
        '{"self_referent": [], "neutral": ["a"]}',
        ["only neutral has prompts; two are needed to contrast"],
    ),
    "string for list": (
        MINIMAL + ', "confounder": "How tall am I?"}',
        ["confounder is a str", "list of texts"],
    ),
    "null for list": (MINIMAL + ', "confounder": null}', ["confounder is a NoneType"]),
    "empty prompt": (
        MINIMAL + ', "confounder": ["a", ""]}',
        ["confounder[1] must be a text that is not empty"],
    ),
    "blank prompt": (
        MINIMAL + ', "confounder": [" \\n\\t"]}',
        ["confounder[0] must be a text that is not empty"],
    ),
    "number": (MINIMAL + ', "confounder": [7]}', ["confounder[0] must be a text"]),
    "surrogate": (MINIMAL + ', "confounder": ["\\ud83d"]}', ["confounder[0]", "surrogate"]),
    "deep": ("[" * 100_000, ["nested too deeply"]),
    "huge number": (MINIMAL + f', "confounder": [{"9" * 5000}]}}', ["mine.json"]),
    "duplicates only": (
        '{"self_referent": ["a"], "neutral": ["a", "a"]}',
        ["every neutral prompt is a duplicate"],
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_refused_in_one_line(tmp_path, capsys, name):
    content, expected = BAD_FILES[name]
    assert prompts.main(["--prompts", str(write(tmp_path, content))]) == 2
    out, err = capsys.readouterr()
    assert (
        out == ""
        and err.count("\n") == 1
        and err.startswith("error: --prompts")
        and "\x1b" not in err
    )
    for part in expected:
        assert part in err


def test_missing_file_and_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: no such file"):
        load_prompts(tmp_path / "none.json")
    with pytest.raises(UserError, match="is a folder"):
        load_prompts(tmp_path)


@pytest.mark.parametrize("name", ["orignal", "crossd", "deixsis"])
def test_a_misspelt_set_is_named(capsys, name):
    assert prompts.main(["--prompts", name]) == 2
    out, err = capsys.readouterr()
    meant = {"o": "original", "c": "crossed", "d": "deixis"}[name[0]]
    assert out == "" and err.endswith(f"{name}: no such file or set: did you mean {meant}?\n")


def test_a_file_with_the_misspelt_name_of_a_set_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("crossed.json").write_text(MINIMAL + "}")
    assert len(load_prompts("crossed.json")[0]) == 2


def load_texts(tmp_path, texts):
    chosen, notes = load_prompts(write(tmp_path, json.dumps(texts)))
    return {c: [p.text for p in chosen if p.category == c] for c in CATEGORIES}, chosen, notes


def test_duplicate_is_counted_once_and_said(tmp_path):
    texts = {"self_referent": ["a", "b", "a"], "neutral": ["c", "b", "d"]}
    kept, _, notes = load_texts(tmp_path, texts)
    assert (kept["self_referent"], kept["neutral"]) == (["a", "b"], ["c", "d"])
    assert "'a' in self_referent[2]; self_referent[0]" in notes[0]
    assert "'b' in neutral[1]; self_referent[1]" in notes[1]


def test_duplicate_takes_its_partner_along_and_pairs_still_match(tmp_path):
    texts = {
        "self_referent": ["a"],
        "neutral": ["b"],
        "confounder": ["I0", "a", "I2"],
        "third_person": ["S0", "S1", "S2"],
    }
    kept, chosen, notes = load_texts(tmp_path, texts)
    assert (kept["confounder"], kept["third_person"]) == (["I0", "I2"], ["S0", "S2"])
    assert [p.pair_id for p in chosen if p.category == "third_person"] == [0, 1]
    assert "with its partner" in notes[0]


def test_what_was_dropped_does_not_drop_its_double(tmp_path):
    texts = {
        "self_referent": ["a"],
        "neutral": ["b"],
        "confounder": ["a", "I1"],
        "third_person": ["S", "S"],
    }
    kept, *_ = load_texts(tmp_path, texts)
    assert (kept["confounder"], kept["third_person"]) == (["I1"], ["S"])


def test_partners_with_one_text_are_dropped(tmp_path):
    texts = {
        "self_referent": ["a"],
        "neutral": ["b"],
        "confounder": ["x", "I"],
        "third_person": ["x", "S"],
    }
    kept, _, notes = load_texts(tmp_path, texts)
    assert (kept["confounder"], kept["third_person"]) == (["I"], ["S"])
    assert len(notes) == 1


def test_lengths_are_printed_in_words_and_called_words(capsys):
    assert prompts.main(["--prompts_per_category", "3"]) == 0
    out = capsys.readouterr().out
    assert "these are words, not tokens" in out and "3 pairs, 0 of unequal length" in out
    null = re.search(r"RFC ([+-][0-9.]+)   RSI ([+-][0-9.]+)", out)
    means = {}
    for category in CATEGORIES:
        lengths = [len(text.split()) for text in PROMPTS[category][:3]]
        means[category] = sum(sum(math.log(i) for i in range(1, n + 1)) / n for n in lengths) / 3
    expected = 1 - means["self_referent"] / means["neutral"]
    assert float(null[1]) == pytest.approx(expected, abs=6e-5)


def test_a_set_without_self_or_neutral_has_no_length_null(tmp_path, capsys):
    texts = {"animals": ["What is a dog?"], "neutral": ["What is rain?"]}
    assert prompts.main(["--prompts", str(write(tmp_path, json.dumps(texts)))]) == 0
    out = capsys.readouterr().out
    assert "no length null: RFC and RSI need self_referent prompts" in out and "nan" not in out


def test_frames_are_printed_in_the_place_of_pairs(tmp_path, capsys):
    rows = [
        ("self_referent", "size", "tall", "How tall are you?"),
        ("neutral", "size", "tall", "How tall is it?"),
        ("self_referent", "origin", "made", "Who made you?"),
        ("neutral", "origin", "made", "Who made it so well?"),
        ("self_referent", "origin", "sold", "Who sold you?"),
        ("neutral", "origin", "sold", "Who sold it so well?"),
    ]
    path = tmp_path / "f.csv"
    path.write_text(
        "\n".join(",".join(row) for row in [("category", *"frame filler text".split()), *rows])
    )
    assert prompts.main(["--prompts", str(path)]) == 0
    out = capsys.readouterr().out
    assert "1 of 2 frames have equal lengths in all categories" in out and "pairs" not in out
    lines = [re.split(r" {2,}", line.strip()) for line in out.splitlines()]
    assert ["size", "1", "How tall are you?", "4", "yes"] in lines
    assert ["origin", "2", "Who made you?", "3", "no"] in lines


def test_one_unequal_cell_makes_a_frame_unequal():
    chosen, _ = load_prompts("crossed")
    lengths = [5 + (p.id == "neutral_copula_size_2") for p in chosen]
    _, _, rows, summary = prompt_lengths.describe_frames(chosen, lengths, "tokens")
    assert [row[0] for row in rows if row[-1] == "no"] == ["copula_size"]
    assert summary == "35 of 36 frames have equal lengths in all categories"


def test_turns_need_a_chat_template_before_a_model_is_loaded(capsys):
    assert prompts.main(["--prompts", "deixis", "--model_id", "no/such/model"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err == (
        "error: --prompts deixis needs --prompt_format chat: half of its sentences stand in the "
        "assistant's turn\n"
    )


def test_turns_are_checked_by_what_the_set_holds():
    deixis, _ = load_prompts("deixis")
    check_turns(deixis, "chat", "deixis")
    check_turns([p for p in deixis if p.turn == "user"], "raw", "mine.csv")
    last = next(p for p in deixis if p.turn == "assistant")
    with pytest.raises(UserError, match="--prompts mine.csv needs .*: 1 of its sentences stands"):
        check_turns([*select_prompts(), last], "raw", "mine.csv")


def test_tokens_need_a_model(capsys):
    assert prompts.main(["--bos", "always"]) == 2
    assert "--model_id" in capsys.readouterr().err
