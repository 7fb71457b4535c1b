"""The prompts under benchmarks/data and the values measured on them belong together.

No model runs here: that the files are what the model gives is seen by running make_data.py again.
"""

import re
from collections import Counter

import numpy as np
import pytest

from conftest import PROJECT
from prompts import load_prompts
from rolecircuits.inputs.categories import CATEGORIES, first_word, frame_of
from rolecircuits.runs.npz import read_npz

DATA = PROJECT / "benchmarks" / "data"
NOBODY = [f"nobody_{i}" for i in range(1, 7)]
OWN = ["prompts", *NOBODY]
LABELS = ("category", "frame", "filler", "pair_id", "first_word", "text")
PERSONS = {
    "self_referent": "you your yours yourself",
    "confounder": "i me my mine myself",
    "neutral": "",
    "third_person": "he she him her hers his they them their theirs himself herself themselves",
}
ANY_PERSON = {*" ".join(PERSONS.values()).split(), "we", "us", "our", "ours", "ourselves"}


def read_set(name):
    """The prompts of a set, and none of them left out."""
    prompts, notes = load_prompts("crossed" if name == "crossed" else str(DATA / f"{name}.csv"))
    assert not notes
    return prompts


def words_by_category(prompts):
    """{category: Counter of first words}."""
    found = {name: Counter() for name in CATEGORIES}
    for prompt in prompts:
        found[prompt.category][first_word(prompt.text)] += 1
    return found


def persons_in(text):
    return set(re.findall(r"[a-z]+", text.lower())) & ANY_PERSON


@pytest.mark.parametrize("form", ["raw", "chat"])
@pytest.mark.parametrize("name", ["crossed", *OWN])
def test_values_are_of_these_prompts(name, form):
    data, prompts = read_npz(DATA / f"{name}_{form}.npz", ("values", *LABELS)), read_set(name)
    assert data["values"].shape == (len(prompts), 30, 9)
    assert data["values"].dtype == np.float32
    assert (data["values"] >= 0).all() and (data["values"] <= 1).all()  # NaN is neither
    assert data["category"].tolist() == [prompt.category for prompt in prompts]
    assert data["frame"].tolist() == [frame_of(prompt) for prompt in prompts]
    assert data["filler"].tolist() == [prompt.filler for prompt in prompts]
    assert data["pair_id"].tolist() == [prompt.pair_id for prompt in prompts]
    assert data["text"].tolist() == [prompt.text for prompt in prompts]
    assert data["first_word"].tolist() == [first_word(prompt.text) for prompt in prompts]


def test_no_two_files_hold_the_same_values():
    files = sorted(DATA.glob("*.npz"))
    assert len(files) == 2 * (len(OWN) + 1)
    assert len({read_npz(path, ["values"])["values"].tobytes() for path in files}) == len(files)
    assert sum(path.stat().st_size for path in files) < 4e6


def test_every_text_is_new():
    texts = [prompt.text for name in OWN for prompt in read_set(name)]
    assert len(texts) == len(set(texts)) == 440 + 6 * 120
    built_in = {p.text for name in ("original", "crossed") for p in load_prompts(name)[0]}
    assert not built_in & set(texts)


def test_prompts_begin_with_many_words_unequally():
    prompts = read_set("prompts")
    assert {len(prompt.text.split()) for prompt in prompts} <= set(range(3, 13))
    words = words_by_category(prompts)
    for name, counts in words.items():
        assert counts.total() == 110 and len(counts) >= 20
        assert 10 <= max(counts.values()) <= 14
        assert sum(n <= 4 for n in counts.values()) > len(counts) / 2
        assert set(counts) - set().union(*(words[other] for other in words if other != name))
    assert len(set.intersection(*map(set, words.values()))) >= 20


def test_prompts_are_about_the_person_of_their_category():
    for prompt in read_set("prompts"):
        own = set(PERSONS[prompt.category].split())
        named = persons_in(prompt.text)
        assert named <= own and bool(named) == bool(own), prompt.text


@pytest.mark.parametrize("name", NOBODY)
def test_nobody_is_about_nobody(name):
    prompts = read_set(name)
    assert Counter(p.category for p in prompts) == dict.fromkeys(CATEGORIES, 30)
    assert not [prompt.text for prompt in prompts if persons_in(prompt.text)]


def test_nobody_sets_begin_as_the_text_says():
    words = {name: words_by_category(read_set(name)) for name in NOBODY}
    sizes = {name: [len(own) for own in words[name].values()] for name in NOBODY}
    shared = {name: set.intersection(*map(set, words[name].values())) for name in NOBODY}
    for name in NOBODY[:2]:  # no word in two categories
        assert len(set().union(*words[name].values())) == sum(sizes[name])
    assert sizes["nobody_1"] == [3] * 4 and min(sizes["nobody_2"]) >= 8
    assert sizes["nobody_3"] == [8] * 4 and len(shared["nobody_3"]) == 4
    for word in shared["nobody_3"]:
        counts = [own[word] for own in words["nobody_3"].values()]
        assert max(counts) >= 4 * min(counts)
    assert sizes["nobody_4"] == [6] * 4 and len(shared["nobody_4"]) == 2
    for name in NOBODY[4:]:
        assert set(sizes[name]) <= {10, 11, 12} and len(shared[name]) == 5
    assert words["nobody_6"]["self_referent"]["why"] == 10
