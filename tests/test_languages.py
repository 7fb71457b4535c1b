"""Crossed sets in other languages: whole, grammatical where that can be counted, found by name, and
matched by the tokenizer exactly as far as it goes."""

import json
import re

import pytest

import prompts
from prompts import load_prompts
from rolecircuits.capture import frames
from rolecircuits.capture.tokens import tokenize_all
from rolecircuits.inputs.categories import (
    CATEGORIES,
    Prompt,
    cells_of,
    count_words,
    first_word,
    is_crossed,
    slot_words,
    spoken_words,
)
from rolecircuits.inputs.errors import UserError
from rolecircuits.inputs.languages import (
    DROP,
    DROPPING,
    FEATURES,
    HERE,
    LANGUAGES,
    PREFIX,
    language_sets,
    read_frames,
    read_typology,
)
from rolecircuits.inputs.prompt_files import read_prompt_file, write_prompt_file
from rolecircuits.inputs.prompt_sets import Row, built_in_prompts, check_crossed, cut_prompts
from rolecircuits.models.families import list_sets
from rolecircuits.models.load import load_tokenizer
from rolecircuits.models.source import BUNDLED

OVERT = [f"{PREFIX}{code}" for code in LANGUAGES]
DROPPED = [f"{PREFIX}{code}{DROP}" for code in DROPPING]
# frames that SmolLM2's tokenizer matches, of each set
KEPT = {
    "en": 36,
    "de": 6,
    "fr": 17,
    "es": 21,
    "it": 10,
    "pt": 8,
    "zh": 24,
    "ja": 0,
    "tr": 25,
    "fi": 0,
}
KEPT |= {"es-drop": 10, "it-drop": 8, "pt-drop": 5, "tr-drop": 7}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(BUNDLED)


def texts_of(frame):
    return [
        frame["template"].format(filler=filler, slot=slot)
        for filler in frame["fillers"]
        for slot in frame["slots"].values()
    ]


@pytest.mark.parametrize("source", language_sets())
def test_every_set_is_a_whole_crossed_set_of_all_its_persons(source):
    own, notes = load_prompts(source)
    persons = CATEGORIES[:3] if source in DROPPED else CATEGORIES
    found = read_frames(source)
    assert len(found) >= (10 if source in DROPPED else 20) and notes == []
    assert len({frame["frame"] for frame in found}) == len(found)
    assert len(own) == 3 * len(found) * len(persons) == len({prompt.text for prompt in own})
    assert is_crossed(own) and len({p.id for p in own}) == len(own)
    for cell in cells_of(own).values():
        assert [prompt.category for prompt in cell] == list(persons)
    check_crossed([Row("", "", prompt) for prompt in own])


@pytest.mark.parametrize("source", language_sets())
def test_the_slot_found_in_the_texts_is_the_one_that_was_written(source):
    written = {frame["frame"]: frame["slots"] for frame in read_frames(source)}
    for (frame, _), cell in cells_of(load_prompts(source)[0]).items():
        for prompt, place in zip(cell, slot_words(cell), strict=True):
            assert prompt.text[slice(*place)] == written[frame][prompt.category]


@pytest.mark.parametrize("source", ["crossed:zh", "crossed:tr-drop"])
def test_a_set_can_be_written_as_a_file_and_read_back(source, tmp_path):
    own = load_prompts(source)[0]
    write_prompt_file(tmp_path / "own.csv", own)
    read, notes = read_prompt_file(tmp_path / "own.csv")
    assert read == own and len(notes) == (source in DROPPED)  # third_person is absent


def test_words_of_scripts_without_spaces_are_characters():
    pair = [Prompt(c, c, -1, f"为什么{c}这么慢?") for c in ("你", "她们")]
    assert [p.text[slice(*at)] for p, at in zip(pair, slot_words(pair), strict=True)] == [
        "你",
        "她们",
    ]
    assert first_word("为什么你?") == "为" and first_word("Ｗhat's up?".lower()) == "ｗhat's"
    assert spoken_words("誰が、コーヒー?") == [*"誰がコーヒー"]
    assert count_words("为什么你这么慢?") == 7 and count_words("don't go, she said") == 4
    assert spoken_words("Où es-tu ?") == ["Où", "es", "tu"]
    assert spoken_words("왜 너는") == ["왜", "너는"]  # Korean puts spaces


@pytest.mark.parametrize("code", DROPPING)
def test_what_is_dropped_is_the_pronoun_and_she_he_and_it_become_one(code):
    overt = {frame["frame"]: frame for frame in read_frames(f"{PREFIX}{code}")}
    for frame in read_frames(f"{PREFIX}{code}{DROP}"):
        whole = overt[frame["frame"].removesuffix("_drop")]
        assert frame["frame"].endswith("_drop")
        assert (frame["template"], frame["fillers"]) == (whole["template"], whole["fillers"])
        for person, verb in frame["slots"].items():
            left = whole["slots"][person].split()
            left.remove(verb)
            assert len(left) == 1, (code, frame["frame"], person)  # the pronoun, one word
        verbs = list(frame["slots"].values())
        assert len(set(verbs)) == 3
        assert frame["slots"]["neutral"] in whole["slots"]["third_person"].split()


@pytest.mark.parametrize("code", LANGUAGES)
def test_no_frame_names_a_person_outside_its_slot(code):
    """A word that some slot of the language consists of stands in no template or filler."""
    found = read_frames(f"{PREFIX}{code}")
    kinds = ("self_referent", "confounder")
    persons = {frame["slots"][kind] for frame in found for kind in kinds}
    for frame in found:
        for filler in frame["fillers"]:
            around = frame["template"].format(slot="|", filler=filler)
            words = around if code in ("zh", "ja") else spoken_words(around.lower())
            assert not [word for word in persons if word in words], around


def test_french_clitics_stand_before_consonants():
    for frame in read_frames("crossed:fr"):
        if frame["slots"]["self_referent"] == "te":
            for text in texts_of(frame):
                assert not re.search(r"\b(te|me|la|le) [aeiouyhéèêâîôû]", text), text


def test_an_unknown_language_is_refused_in_one_line(capsys):
    for name in ("crossed:xx", "crossed:", "crossed:de-drop", "crossed:DE"):
        assert prompts.main(["--prompts", name]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith(f"error: --prompts {name}: no such language; there are")
        assert err.count("\n") == 1 and "es-drop" in err
    with pytest.raises(UserError, match="no such language"):
        list_sets({"prompts": {}}, ["crossed:de"], None)
        load_prompts("crossed:fr-drop")


def test_english_is_crossed_itself_and_a_folder_has_no_colon():
    assert load_prompts("crossed:en") == load_prompts("crossed")
    sets = list_sets({"prompts": {}}, ["crossed", "crossed:de", "crossed:es-drop"], 2)
    assert list(sets) == ["crossed", "crossed_de", "crossed_es-drop"]
    assert sets["crossed_de"] == ("crossed:de", 2)


def test_typology_says_every_feature_of_every_language():
    whole = json.loads((HERE / "languages" / "typology.json").read_text("utf-8"))
    languages = read_typology()
    assert list(languages) == list(LANGUAGES)
    assert set(whole["values"]) == set(whole["sources"]) == set(FEATURES)
    for code, facts in languages.items():
        assert facts["name"] == LANGUAGES[code] and facts["family"] and facts["you"] and facts["it"]
        for feature in FEATURES:
            assert facts[feature] in whole["values"][feature], (code, feature)
        assert (facts["pro_drop"] == "yes") == (code in DROPPING)
    for feature in FEATURES:  # a feature without variety says nothing
        assert len({facts[feature] for facts in languages.values()}) > 1


@pytest.mark.parametrize("source", language_sets())
def test_the_tokenizer_matches_what_it_matches(source, tokenizer):
    own = cut_prompts(built_in_prompts(source))
    tokenized = tokenize_all(own, tokenizer)
    left_out = frames.find_left_out(tokenized)
    n = len(read_frames(source))
    assert n - len(left_out) == KEPT[source.removeprefix(PREFIX)]
    assert sum(frames.count_reasons(left_out).values()) == len(left_out)
    for cell in cells_of([p for p in tokenized if p.frame not in left_out]).values():
        assert len({len(prompt.token_ids) for prompt in cell}) == 1
        inside = [tokenizer.hf.decode(p.token_ids[slice(*p.slot)]).strip() for p in cell]
        slots = next(f for f in read_frames(source) if f["frame"] == cell[0].frame)["slots"]
        assert inside == [slots[prompt.category] for prompt in cell]


def test_reasons_are_counted_by_kind():
    left_out = {"a": "old: 4 or 5 tokens", "b": f"x: {frames.PLACE}", "c": frames.OUTSIDE}
    assert frames.count_reasons(left_out) == {"lengths": 1, "place": 1, "outside": 1}


def test_languages_prints_a_table_of_all_sets(capsys):
    assert prompts.main(["--languages", "--model_id", BUNDLED]) == 0
    out = capsys.readouterr().out
    rows = {
        line.split()[0]: line.split()[1:]
        for line in out.splitlines()
        if line[:7] == "crossed" and "%" in line
    }
    assert list(rows) == language_sets()
    assert rows["crossed:fr"] == ["25", "17", "68%", "8", "0", "0"]
    assert prompts.main(["--languages"]) == 2
    assert prompts.main(["--languages", "--prompts", "crossed:de", "--model_id", BUNDLED]) == 2
    assert "it takes every language" in capsys.readouterr().err
