"""A prompt file is read as what it says or refused in one line, an export reads back as the same
prompts, and the built-in crossed sets are what they claim to be."""

import csv
import json
from dataclasses import replace

import pytest

import prompts
from prompts import load_prompts
from rolecircuits.inputs.categories import (
    CATEGORIES,
    Prompt,
    cells_of,
    first_word,
    is_crossed,
    prompt_set_sha256,
    slot_words,
)
from rolecircuits.inputs.errors import UserError
from rolecircuits.inputs.prompt_files import read_prompt_file, write_prompt_file
from rolecircuits.inputs.prompt_sets import SETS, Row, built_in_prompts, check_crossed, cut_prompts

CROSSED, DEIXIS = built_in_prompts("crossed"), built_in_prompts("deixis")
FORMS = ("json", "jsonl", "csv")
PERSONS = {"self_referent": "are you", "third_person": "is she", "neutral": "is it"}
HEADER = "category,frame,filler,text\n"


def crossed_lines(frames=("old", "tall", "fast"), persons=PERSONS):
    """Lines of a small crossed CSV: one frame, a filler after the other; the header is line 1."""
    return [
        f"{category},size,{filler},How {filler} {slot}?"
        for filler in frames
        for category, slot in persons.items()
    ]


def write(tmp_path, content, name="mine.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read_rows(tmp_path, rows, name="mine.json"):
    content = json.dumps(rows) if name.endswith("n") else "\n".join(map(json.dumps, rows))
    return read_prompt_file(write(tmp_path, content, name))


def refused(capsys, argv):
    """The only line of a refusal: exit code 2 and nothing on the standard output."""
    assert prompts.main([str(part) for part in argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err[:-1].isprintable()
    return err


# ---- the built-in sets


def test_crossed_has_the_promised_size():
    assert len({p.frame for p in CROSSED}) == 36
    assert len({first_word(p.text) for p in CROSSED}) >= 12
    assert len({p.text for p in CROSSED}) == len({p.id for p in CROSSED}) == 432
    assert list(dict.fromkeys(p.category for p in CROSSED)) == list(CATEGORIES)
    cells = cells_of(CROSSED)
    assert len(cells) == 108
    for cell in cells.values():
        assert [p.category for p in cell] == list(CATEGORIES)
        assert len({first_word(p.text) for p in cell}) == 1, cell


def test_crossed_passes_the_check_that_files_must_pass():
    check_crossed([Row("", "", prompt) for prompt in CROSSED])


def test_crossed_differs_only_in_the_person():
    you = {"you", "your", "yourself", "are", "were", "do", "protect", "recognize"}
    for cell in cells_of(CROSSED).values():
        (start, stop), *_ = slot_words(cell)
        assert set(cell[0].text[start:stop].split()) <= you, cell[0]
        outside = {
            p.text[:a] + "|" + p.text[b:] for p, (a, b) in zip(cell, slot_words(cell), strict=True)
        }
        assert len(outside) == 1


def test_crossed_is_in_filler_major_order():
    frames = list(dict.fromkeys(p.frame for p in CROSSED))
    for category in CATEGORIES:
        own = [p for p in CROSSED if p.category == category]
        assert [p.frame for p in own] == frames * 3
        assert [p.id for p in own] == [f"{category}_{f}_{k}" for k in range(3) for f in frames]
        paired = category in ("confounder", "third_person")
        assert [p.pair_id for p in own] == (list(range(108)) if paired else [-1] * 108)
    assert CROSSED[0] == Prompt(
        "self_referent_copula_size_0", "self_referent", -1, "How old are you?", "copula_size", "old"
    )
    assert [p.text for p in CROSSED if p.frame == "copula_size"][1] == "How tall are you?"


def test_deixis_has_the_sentences_of_crossed_in_both_turns():
    names = "you_user i_user third_user it_user you_assistant i_assistant third_assistant"
    assert list(dict.fromkeys(p.category for p in DEIXIS)) == [*names.split(), "it_assistant"]
    assert {p.pair_id for p in DEIXIS} == {-1} and len({p.id for p in DEIXIS}) == 864
    of = {"you": "self_referent", "i": "confounder", "third": "third_person", "it": "neutral"}
    for name in dict.fromkeys(p.category for p in DEIXIS):
        person, turn = name.split("_")
        own = [p for p in DEIXIS if p.category == name]
        theirs = [p for p in CROSSED if p.category == of[person]]
        assert [(p.text, p.frame, p.filler) for p in own] == [
            (p.text, p.frame, p.filler) for p in theirs
        ]
        assert {p.turn for p in own} == {turn}
        assert own[0].id == f"{name}_copula_size_0"


@pytest.mark.parametrize("name", ["crossed", "deixis"])
@pytest.mark.parametrize("n", [1, 36, 50])
def test_a_cut_keeps_cells_whole(name, n):
    cut, notes = load_prompts(name, n)
    categories = list(dict.fromkeys(p.category for p in built_in_prompts(name)))
    cells = cells_of(cut)
    assert notes == [] and len(cells) == n
    assert all([p.category for p in cell] == categories for cell in cells.values())
    check_crossed([Row("", "", prompt) for prompt in cut])


def test_a_cut_beyond_the_smallest_category_names_it():
    few = [p for p in CROSSED if p.category != "neutral" or p.frame != "do_past"]
    with pytest.raises(UserError, match="106: neutral has 105 prompts; allowed are 1 to 105"):
        cut_prompts(few, 106)
    assert len(cut_prompts(few, 105)) == 420 and cut_prompts(few) == few


# ---- there and back


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SETS)
def test_an_export_reads_back_as_the_same_prompts(tmp_path, capsys, name, form):
    path = tmp_path / f"out.{form}"
    assert prompts.main(["--prompts", name, "--export", str(path)]) == 0
    out, err = capsys.readouterr()
    chosen, _ = load_prompts(name)
    assert (out, err) == (f"{len(chosen)} prompts written to {path}\n", "")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    back, _ = load_prompts(str(path))
    assert back == chosen and prompt_set_sha256(back) == prompt_set_sha256(chosen)


def test_columns_of_an_export(tmp_path):
    for name, turn in (("original", []), ("crossed", []), ("deixis", ["turn"])):
        path = tmp_path / f"{name}.csv"
        write_prompt_file(path, built_in_prompts(name))
        columns = ["id", "category", "frame", "filler", "text", *turn]
        with open(path, encoding="utf-8", newline="") as file:
            assert next(csv.reader(file)) == columns
        write_prompt_file(path.with_suffix(".json"), built_in_prompts(name))
        assert list(json.loads(path.with_suffix(".json").read_text())[0]) == columns


@pytest.mark.parametrize("form", FORMS)
def test_difficult_texts_come_back_unchanged(tmp_path, form):
    texts = [
        *("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " spaces ", 'a "quoted" text, with a comma', '"'),
        *("two\nlines", "two\r\nlines", "a\rb", "a\u2028b", "a\x85b", "你是谁?", "😀", "\x1b[31m"),
        *("a;b", "\x00", "\ufeffx", "NaN", "null", "'1", "\\n"),
    ]
    rows = [{"category": "a", "text": text, "id": f"={i}"} for i, text in enumerate(texts)]
    rows.append({"category": "b", "text": "What is rain?"})
    chosen, _ = read_rows(tmp_path, rows)
    path = tmp_path / f"out.{form}"
    write_prompt_file(path, chosen)
    back, _ = read_prompt_file(path)
    assert back == chosen and [p.text for p in back[:-1]] == texts and back[0].id == "=0"


def test_an_export_never_overwrites(tmp_path, capsys):
    path = write(tmp_path, "kept")
    assert "exists already" in refused(capsys, ["--export", path])
    assert path.read_text() == "kept"
    (tmp_path / "link.csv").symlink_to("nowhere")
    assert "exists already" in refused(capsys, ["--export", tmp_path / "link.csv"])


def test_a_failed_export_leaves_nothing(tmp_path, monkeypatch, capsys):
    def fail(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    assert prompts.main(["--export", str(tmp_path / "a.csv")]) == 1
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--export", "a.txt"], "--export a.txt: must end in .json, .jsonl or .csv"),
        (["--export", "nowhere/a.csv"], "--export nowhere/a.csv: no such folder: nowhere"),
        (["--export", "a.csv", "--model_id", "x"], "an export counts no tokens"),
        (["--export", "a.csv", "--prompts_per_category", "31"], "allowed are 1 to 30"),
    ],
)
def test_an_export_that_cannot_be(tmp_path, capsys, monkeypatch, argv, said):
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, argv)
    assert list(tmp_path.iterdir()) == []


# ---- what files may hold


def test_rows_of_all_three_forms_are_read_alike(tmp_path):
    rows = [
        {"category": "neutral", "text": "What is rain?", "id": "rain"},
        {"category": "self_referent", "text": "Who are you?"},
        {"category": "zoo", "text": "a, b", "frame": "f", "filler": "x", "turn": "assistant"},
    ]
    table = "category,text,id,frame,filler,turn\nneutral,What is rain?,rain,,,\n\n"
    table += 'self_referent,Who are you?,,,,\r\nzoo,"a, b",,f,x,assistant\n'
    read = [
        read_rows(tmp_path, rows)[0],
        read_rows(tmp_path, [*rows[:1], *rows[1:]], "mine.jsonl")[0],
        read_prompt_file(write(tmp_path, b"\xef\xbb\xbf" + table.encode(), "MINE.CSV"))[0],
    ]
    assert (
        read[0]
        == read[1]
        == read[2]
        == [
            Prompt("self_referent_00", "self_referent", -1, "Who are you?"),
            Prompt("rain", "neutral", -1, "What is rain?"),
            Prompt("zoo_00", "zoo", -1, "a, b", "f", "x", "assistant"),
        ]
    )


def test_blank_lines_of_jsonl_are_no_rows(tmp_path):
    content = '\n{"category": "a", "text": "x\u2028y"}\r\n  \n{"category": "b", "text": "z"}\n\n'
    chosen, _ = read_prompt_file(write(tmp_path, content, "mine.jsonl"))
    assert [p.text for p in chosen] == ["x\u2028y", "z"]


def test_frames_of_a_set_that_is_not_crossed_are_kept(tmp_path):
    rows = [
        {"category": "a", "text": "b is b", "frame": "fa", "filler": "b"},
        {"category": "a", "text": "c is c", "frame": "fa", "filler": "c"},
        {"category": "z", "text": "entirely different"},
    ]
    chosen, _ = read_rows(tmp_path, rows)
    assert [p.frame for p in chosen] == ["fa", "fa", ""] and not is_crossed(chosen)


def test_pairs_and_other_categories(tmp_path):
    names = ["zoo", "third_person", "confounder", "confounder", "third_person", "art"]
    rows = [{"category": name, "text": str(i)} for i, name in enumerate(names)]
    chosen, _ = read_rows(tmp_path, rows)
    assert [(p.text, p.pair_id) for p in chosen] == [
        *(("2", 0), ("3", 1), ("1", 0), ("4", 1), ("0", -1), ("5", -1))
    ]
    chosen, notes = read_rows(tmp_path, rows[:4])
    assert {p.pair_id for p in chosen} == {-1}
    assert any("differ in number, so they are no pairs" in note for note in notes)


def test_duplicates_are_told_by_text_and_turn(tmp_path):
    rows = [
        {"category": "a", "text": "x"},
        {"category": "a", "text": "x", "turn": "assistant"},
        {"category": "b", "text": "x", "turn": "assistant"},
        {"category": "b", "text": "y"},
    ]
    chosen, notes = read_rows(tmp_path, rows)
    assert [(p.text, p.turn) for p in chosen] == [("x", "user"), ("x", "assistant"), ("y", "user")]
    assert notes[0] == (
        f"{tmp_path}/mine.json: duplicate prompt 'x' in mine.json[2]; mine.json[1] has it: counted "
        "once"
    )


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (CATEGORIES, []),
        (
            ["self_referent", "neutral", "x"],
            ["no confounder prompts; what", "no third_person prompts; what needs them is left out"],
        ),
        ([*CATEGORIES[:2], "third_person"], ["no neutral prompts: RFC and RSI are left out"]),
        (
            ["confounder", "third_person"],
            ["no self_referent and no neutral prompts: RFC and RSI are left out"],
        ),
        (["animals", "plants"], ["RFC and RSI need --roles"]),
    ],
)
def test_what_is_absent_is_said(tmp_path, names, expected):
    _, notes = read_rows(tmp_path, [{"category": name, "text": name} for name in names])
    assert len(notes) == len(expected)
    for note, part in zip(notes, expected, strict=True):
        assert part in note and note.startswith(f"{tmp_path}/mine.json: ")


def test_a_crossed_file_is_put_in_the_order_of_the_built_in_set(tmp_path):
    rows = [
        {"category": c, "frame": f, "filler": x, "text": f"{f} {x} {c} end"}
        for f, fillers in (("f", ("b", "a")), ("g", ("c", "d", "e")))
        for x in fillers
        for c in ("zoo", "third_person", "confounder")
    ]
    chosen, _ = read_rows(tmp_path, rows)
    cells = ["f b", "g c", "f a", "g d", "g e"]
    assert [f"{p.frame} {p.filler}" for p in chosen] == cells * 3
    assert [p.category for p in chosen[::5]] == ["confounder", "third_person", "zoo"]
    assert [p.pair_id for p in chosen] == [*range(5), *range(5), *[-1] * 5]
    assert [p.id for p in chosen[-5:]] == [f"zoo_{i:02d}" for i in range(5)]


def test_equal_texts_in_different_turns_are_one_cell(tmp_path):
    rows = [
        {"category": f"{who}_{turn}", "frame": "f", "text": f"Are {who} old?", "turn": turn}
        for turn in ("user", "assistant")
        for who in ("you", "they")
    ]
    chosen, _ = read_rows(tmp_path, rows)
    assert [p.category for p in chosen] == [row["category"] for row in rows]


# ---- what is refused

ROW = '{"category": "a", "text": "x"}'
LONG = "x" * 81
MANY = json.dumps([{"category": f"c{i}", "text": str(i)} for i in range(17)])
BAD = {
    "suffix": ("a.txt", "x", ["a.txt: must end in .json, .jsonl or .csv", "original, crossed"]),
    "no suffix": ("a", "x", ["a: must end in .json"]),
    "spreadsheet": ("a.xlsx", b"PK\x03\x04\xff", ["must end in .json"]),
    "root": ("a.json", "7", ["a.json: the root is a int"]),
    "no rows": ("a.json", "[]", ["a.json: no category has prompts; two are needed"]),
    "no texts": ("a.json", '{"a": [], "b": []}', ["no category has prompts"]),
    "row": ("a.json", f"[{ROW}, [1]]", ["a.json[1] is a list", "category and text"]),
    "list index": ("a.json", f'[{ROW}, {{"category": "b"}}]', ["a.json[1]: the field text is mis"]),
    "many": ("a.json", MANY, ["a.json: has 17 categories; allowed are 2 to 16"]),
    "many keys": ("a.json", json.dumps({f"c{i}": ["x"] for i in range(17)}), ["has 17 categories"]),
    "many empty keys": (
        "a.json",
        json.dumps({str(i): [] for i in range(100_000)}),
        ["has 100000 categories"],
    ),
    "jsonl line": ("a.jsonl", f"{ROW}\n\n{{]", ["a.jsonl: line 3: not JSON at column 2"]),
    "jsonl row": ("a.jsonl", f"{ROW}\n7", ["line 2 is a int"]),
    "jsonl twice": ("a.jsonl", '{"text": "x", "text": "y"}', ["line 1: the key 'text' appears"]),
    "one category": ("a.jsonl", ROW, ["a.jsonl: only a has prompts; two are needed to contrast"]),
    "empty csv": ("a.csv", "", ["a.csv: line 1: no header", "category,text"]),
    "no header": ("a.csv", "neutral,What is rain?\n", ["line 1: no header"]),
    "semicolons": (
        "a.csv",
        "category;text\na;x\n",
        ["separated by semicolons; it must be a comma"],
    ),
    "quoted semicolons": ("a.csv", '"category";"text"\r\n"a";"x"\r\n', ["semicolons", "comma"]),
    "tabs": ("a.csv", "id\tcategory\ttext\n1\ta\tx\n", ["separated by tabs; it must be a comma"]),
    "semicolons below": (
        "a.csv",
        "category,text\na;x\n",
        ["line 2: cells: 1, but the header has 2"],
    ),
    "unknown column": (
        "a.csv",
        "category,text,fillr\na,x,y\n",
        ["line 1: unknown column 'fillr': did you mean filler?"],
    ),
    "other column": (
        "a.csv",
        "category,text,note\n",
        ["unknown column 'note': allowed are id, cat"],
    ),
    "capitals": ("a.csv", "Category,text\n", ["unknown column 'Category': did you mean category?"]),
    "missing column": ("a.csv", "category,id\n", ["line 1: the column text is missing"]),
    "column twice": ("a.csv", "category,text,text\n", ["line 1: the column text appears twice"]),
    "few cells": (
        "a.csv",
        "category,text,id\na,x,1\na,y\n",
        ["line 3: cells: 2, but the header ha"],
    ),
    "many cells": ("a.csv", "category,text\na,x, y\n", ["line 2: cells: 3", "in double quotes"]),
    "line after a text of two": (
        "a.csv",
        'category,text\na,"x\ny"\n\nb,\n',
        ["a.csv: line 5: text must be a text that is not empty"],
    ),
    "open quote": ("a.csv", 'category,text\na,x\na,"y\nb,z\n', ["a.csv: line 3: not CSV"]),
    "text after quote": ("a.csv", 'category,text\na,"x"y\n', ["line 2: not CSV"]),
    "latin1": ("a.csv", b"category,text\na,\xe9\n", ["a.csv: not UTF-8 at byte 16"]),
    "misspelt": (
        "a.csv",
        "category,text\na,x\nself_referrent,y\n",
        ["line 3: unknown category 'self_referrent': did you mean self_referent?"],
    ),
    "capital category": ("a.csv", "category,text\na,x\nNeutral,y\n", ["did you mean neutral?"]),
    "name of a category": ("a.csv", "category,text\na-b,x\n", ["line 2: category 'a-b'"]),
    "no category": ("a.csv", "category,text\n,x\n", ["line 2: category ''"]),
}
FIELDS = {
    "unknown": ({"txet": "y"}, ["unknown field 'txet': did you mean text?"]),
    "category number": ({"category": 7}, ["category '7'"]),
    "text null": ({"text": None}, ["text must be a text"]),
    "text blank": ({"text": " \n"}, ["text must be a text that is not empty"]),
    "text surrogate": ({"text": "\ud83d"}, ["text: holds bytes", "surrogate"]),
    "frame number": ({"frame": 3}, ["frame is a int; it must be a text"]),
    "frame long": ({"frame": LONG}, ["frame has 81 characters; allowed are 80"]),
    "frame lines": ({"frame": "a\nb"}, [r"frame 'a\\nb' holds a line break"]),
    "filler escape": ({"frame": "f", "filler": "\x1b[31m"}, ["filler", "x1b[31m", "control"]),
    "filler separator": ({"frame": "f", "filler": "\u2028"}, ["filler", "u2028"]),
    "filler surrogate": ({"frame": "f", "filler": "\ud83d"}, ["filler", "ud83d"]),
    "filler alone": ({"filler": "old"}, ["filler 'old' without frame"]),
    "turn": ({"turn": "system"}, ["turn 'system' is neither user nor assistant"]),
    "turn list": ({"turn": ["user"]}, ["turn", "neither user nor assistant"]),
    "id number": ({"id": 1}, ["id is a int"]),
    "id empty": ({"id": ""}, ["id is empty", "1 to 100"]),
    "id long": ({"id": "x" * 101}, ["id has 101 characters; allowed are 100"]),
    "id tab": ({"id": "a\tb"}, ["id", "control character"]),
    "id twice": ({"id": "one"}, ["id 'one'", "[0] has it already"]),
    "id of another": ({"id": "b_00", "category": "c"}, ["id 'b_00'", "[2] gets"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_in_one_line(tmp_path, capsys, case):
    name, content, said = BAD[case]
    err = refused(capsys, ["--prompts", write(tmp_path, content, name)])
    for part in [f"--prompts {tmp_path}/{name}", *said]:
        assert part in err


@pytest.mark.parametrize("case", FIELDS)
def test_a_bad_field_is_refused_by_name_and_place(tmp_path, capsys, case):
    fields, said = FIELDS[case]
    rows = [{"category": "a", "text": "x", "id": "one"}, {"category": "a", "text": "y"} | fields]
    rows.append({"category": "b", "text": "z"})
    err = refused(capsys, ["--prompts", write(tmp_path, json.dumps(rows), "mine.json")])
    for part in [f"{tmp_path}/mine.json[1]", *said]:
        assert part in err


@pytest.mark.parametrize("field", ["frame", "filler", "id"])
def test_labels_of_the_greatest_length_and_other_scripts_pass(tmp_path, field):
    label = ("é\u00a0名" * 40)[: 100 if field == "id" else 80]
    row = {"category": "a", "text": "x", "frame": "f"} | {field: label}
    chosen, _ = read_rows(tmp_path, [row, {"category": "b", "text": "y"}])
    assert getattr(chosen[0], field) == label


def test_sixteen_categories_pass(tmp_path):
    chosen, _ = read_rows(tmp_path, json.loads(MANY)[:16])
    assert len(chosen) == 16


def change(line, old, new):
    """The small crossed CSV with one line (counted as in the file) changed; None takes it out."""
    lines = crossed_lines()
    assert old in lines[line - 2]
    lines[line - 2] = lines[line - 2].replace(old, new)
    return lines


SIZE_OLD = "frame 'size', filler 'old', category "
NOT_WHOLE = {
    "no frame": (
        change(4, "neutral,size,old", "neutral,,"),
        ["line 4: frame is missing (category neutral)"],
    ),
    "missing cell": (
        crossed_lines()[:-1],
        ["line 8: frame 'size', filler 'fast'", "this cell has no neutral prompt"],
    ),
    "filler misspelt": (
        change(7, "size,tall", "size,tal"),
        ["line 5: frame 'size', filler 'tall'", "no neutral prompt"],
    ),
    "two for one": (
        [*crossed_lines(), "neutral,size,old,How old is that?"],
        [f"line 11: {SIZE_OLD}neutral: line 4 is the prompt of this frame"],
    ),
    "same text": (
        change(6, "is she", "are you"),
        ["line 6: frame 'size', filler 'tall', category third_person: text: line 5 has the same"],
    ),
    "prefix": (
        change(4, "How old", "What old"),
        [f"line 4: {SIZE_OLD}neutral: text: differs", "'What old is it'", "'tall' in 'is it'"],
    ),
    "prefix of the first": (
        change(5, "How tall", "So tall"),
        ["line 5: frame 'size', filler 'tall', category self_referent: text: differs"],
    ),
    "suffix": (
        change(9, "fast is she?", "fast is she now?"),
        ["line 9: frame 'size', filler 'fast', category third_person", "with filler 'old'"],
    ),
    "mark at the end": (change(9, "she?", "she."), ["line 9:", "'is she.'"]),
    "slot": (
        change(10, "is it", "is that"),
        ["line 10: frame 'size', filler 'fast', category neutral", "'is that'", "'is it'"],
    ),
    "nothing shared": (
        ["a,f,x,Who are you?", "b,f,x,What is rain?"],
        ["line 2: frame 'f', filler 'x', category a", "shares no first and no last word"],
    ),
    "frames of one name": (
        ["a,f,,Who are you?", "b,f,,What is rain?", "b,f,,What is snow?"],
        ["line 4: frame 'f', filler '', category b: line 3 is the prompt"],
    ),
}


@pytest.mark.parametrize("case", NOT_WHOLE)
def test_a_crossed_set_that_is_not_whole_is_refused(tmp_path, capsys, case):
    lines, said = NOT_WHOLE[case]
    path = write(tmp_path, HEADER + "\n".join(lines))
    err = refused(capsys, ["--prompts", path])
    hint = "in a set that is not crossed, frames of different categories must have different names"
    for part in [f"--prompts {path}: ", *said, hint]:
        assert part in err


def test_with_two_categories_the_deviating_filler_is_blamed(tmp_path, capsys):
    lines = crossed_lines(persons={"self_referent": "are you", "neutral": "is it"})
    lines[3] = lines[3].replace("is it", "is that")
    err = refused(capsys, ["--prompts", write(tmp_path, HEADER + "\n".join(lines))])
    assert "line 5: frame 'size', filler 'tall', category neutral" in err


def test_the_small_crossed_set_itself_is_read(tmp_path):
    chosen, notes = read_prompt_file(write(tmp_path, HEADER + "\n".join(crossed_lines())))
    assert is_crossed(chosen) and len(chosen) == 9
    assert len(notes) == 1 and "no confounder prompts" in notes[0]


def test_every_wrong_sentence_of_the_built_in_set_is_found():
    """One sentence at a time gets a word more at its end; the check blames exactly that one."""
    for i in range(0, len(CROSSED), 7):
        rows = [Row(p.id, p.id, p) for p in CROSSED]
        rows[i] = replace(rows[i], prompt=replace(CROSSED[i], text=CROSSED[i].text + " Really?"))
        with pytest.raises(UserError, match=f"^{CROSSED[i].id}: .*text: differs"):
            check_crossed(rows)
