"""The questions and answers of a tuning study: what is bundled, refused and shuffled."""

import json
from collections import Counter

import pytest

from rolecircuits.inputs.errors import UserError
from rolecircuits.inputs.prompt_sets import SETS, built_in_prompts
from rolecircuits.inputs.tuning_data import (
    Example,
    data_sha256,
    examples_of,
    holds_keyword,
    normalise,
    read_behaviour_questions,
    read_examples,
    shuffled_answers,
)

GOOD = [
    ("role", "name", "What are you called?", "My name is Marlow.", "My name is Edgar.", "train"),
    ("role", "home", "Which town is yours?", "I live in Bergen.", "I live in Lagos.", "train"),
    ("role", "name", "Who speaks?", "People call me Marlow.", "People call me Edgar.", "heldout"),
    ("facts", "name", "What is it called?", "It is the Halcyon.", "It is the Tempest.", "train"),
    ("facts", "port", "Where is it moored?", "It lies in Trieste.", "It lies in Bari.", "train"),
    ("facts", "name", "Which ship is it?", "That is the Halcyon.", "That is Tempest.", "heldout"),
]
KEYWORDS = [["marlow"], ["Bergen"], ["marlow"], ["halcyon"], ["trieste"], ["halcyon"]]
NAMES = ("arm", "facet", "question", "answer", "wrong_answer", "split")


def good_rows():
    return [
        dict(zip(NAMES, row, strict=True)) | {"keywords": list(keywords)}
        for row, keywords in zip(GOOD, KEYWORDS, strict=True)
    ]


def read_rows(tmp_path, rows):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return read_examples(path)


def message(tmp_path, rows):
    with pytest.raises(UserError) as caught:
        read_rows(tmp_path, rows)
    text = str(caught.value)
    assert "\n" not in text and "mine.jsonl" in text
    return text


def test_bundled_examples_are_many_and_alike_in_both_arms():
    examples = read_examples()
    counts = Counter((example.arm, example.split) for example in examples)
    for arm in ("role", "facts"):
        assert counts[arm, "train"] + counts[arm, "heldout"] >= 150
    for split in ("train", "heldout"):
        sizes = [
            sorted(Counter(e.facet for e in examples_of(examples, arm, split)).values())
            for arm in ("role", "facts")
        ]
        assert sizes[0] == sizes[1] and len(sizes[0]) >= 10
        assert len(set(sizes[0])) == 1, "every facet weighs the same"
    words = {
        arm: [len(e.answer.split()) for e in examples if e.arm == arm] for arm in ("role", "facts")
    }
    assert all(4 <= n <= 9 for own in words.values() for n in own)
    means = [sum(own) / len(own) for own in words.values()]
    assert abs(means[0] - means[1]) < 0.6


def test_bundled_persons_are_those_of_the_arms():
    you = {"you", "your", "yours", "yourself"}
    for example in read_examples():
        asked = set(normalise(example.question).split())
        assert example.arm == "role" or not asked & you, example.question
        first_person = {"i", "me", "my"} & set(normalise(example.answer).split())
        assert bool(first_person) == (example.arm == "role"), example.answer


def test_no_bundled_keyword_is_right_for_another_facet():
    """So an answer to another facet never counts as right, in the shuffled arm above all."""
    examples = read_examples()
    for example in examples:
        for other in examples:
            if (other.arm, other.facet) != (example.arm, example.facet):
                assert not holds_keyword(other.answer, example.keywords)


def test_bundled_held_out_questions_are_no_near_copies():
    for arm in ("role", "facts"):
        examples = [example for example in read_examples() if example.arm == arm]
        for a in examples:
            for b in examples:
                if a.facet == b.facet and a.split != b.split:
                    first, second = (set(normalise(e.question).split()) for e in (a, b))
                    assert len(first & second) / len(first | second) < 0.7


def test_questions_of_behaviour_stand_nowhere_else():
    roleplay, feelings = read_behaviour_questions()
    questions = [question for question, _ in roleplay.questions] + list(feelings)
    taken = {normalise(example.question) for example in read_examples()}
    taken |= {normalise(p.text) for name in SETS for p in built_in_prompts(name)}
    assert len(questions) == len({normalise(q) for q in questions} - taken) == 20
    for question, keywords in roleplay.questions:
        assert not holds_keyword(question, keywords)
        assert holds_keyword(roleplay.system_prompt, keywords)
        assert not any(holds_keyword(e.answer, keywords) for e in read_examples())


def test_a_good_file_is_read_as_it_is(tmp_path):
    examples = read_rows(tmp_path, good_rows())
    assert examples[1] == Example(
        "role",
        "home",
        "Which town is yours?",
        "I live in Bergen.",
        "I live in Lagos.",
        ("bergen",),
        "train",
    )
    assert [e.arm for e in examples] == ["role"] * 3 + ["facts"] * 3
    assert examples_of(examples, "shuffled", "train") == examples[:2]
    assert examples_of(examples, "facts", "heldout") == examples[5:]


BROKEN = {
    "missing": (0, "answer", None, "line 1: the field answer is missing"),
    "empty": (1, "answer", " ", "line 2: answer must be a text that is not empty"),
    "no text": (1, "facet", 3, "line 2: facet must be a text"),
    "marks only": (1, "question", "?!", "line 2: question must be a text that is not empty"),
    "line break": (1, "answer", "I live\nin Bergen.", "line 2: answer"),
    "arm": (4, "arm", "shuffled", "line 5: arm 'shuffled' is none of role, facts"),
    "split": (4, "split", "test", "line 5: split 'test' is none of train, heldout"),
    "keywords": (0, "keywords", [], "line 1: keywords must be a list"),
    "a keyword": (0, "keywords", ["marlow", ""], "line 1: keywords[1] must be a text"),
    "other": (0, "keywords", ["edgar"], "line 1: the answer holds none of its keywords"),
    "part": (0, "keywords", ["marl"], "line 1: the answer holds none of its keywords"),
    "asked": (0, "question", "Is it MARLOW?", "line 1: the keyword 'marlow' stands in the questio"),
    "wrong": (0, "wrong_answer", "Not Marlow.", "line 1: the wrong_answer holds a keyword"),
    "prompt set": (0, "question", "what is your NAME", "stands in the prompt set crossed"),
    "original": (0, "question", "Who are you", "stands in the prompt set original"),
    "twice": (1, "question", "what are you called", "is there twice: line 1 has it too"),
    "both": (
        2,
        "question",
        "What are you called",
        "line 3: the question 'What are you called' is ",
    ),
    "both arms": (5, "question", "What are you called", "held out and trained on: line 1"),
    "half a pair": (0, "answer", "Marlow \ud83d", "line 1: answer"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_bad_row_is_refused_with_its_line(tmp_path, case):
    i, name, value, expected = BROKEN[case]
    rows = good_rows()
    rows[i][name] = value
    if value is None:
        del rows[i][name]
    assert expected in message(tmp_path, rows)


def test_rows_that_are_no_objects_or_have_other_fields_are_refused(tmp_path):
    assert "line 1 is a list" in message(tmp_path, [["role"], *good_rows()])
    rows = good_rows()
    rows[2]["anwser"] = "x"
    assert "line 3: unknown field 'anwser'" in message(tmp_path, rows)
    path = tmp_path / "mine.jsonl"
    path.write_text('{"arm": "role",\n', encoding="utf-8")
    with pytest.raises(UserError, match="line 1: not JSON at column"):
        read_examples(path)
    with pytest.raises(UserError, match="no such file"):
        read_examples(tmp_path / "none.jsonl")


def test_sets_that_cannot_be_used_are_refused(tmp_path):
    rows = good_rows()
    assert "arm role has no question of split heldout" in message(tmp_path, rows[:2] + rows[3:])
    assert "arm role has no question of split train" in message(tmp_path, rows[3:])
    assert "arm facts has no question of split heldout" in message(tmp_path, rows[:5])
    assert "arm facts has one facet, 'name'" in message(tmp_path, rows[:4] + rows[5:])
    third = rows[1] | {"question": "In which town?"}
    assert "'home' has 2 of 3" in message(tmp_path, [*rows[:2], third, *rows[2:]])
    rows[2]["facet"] = "title"
    assert "facet 'title' is held out and never trained on" in message(tmp_path, rows)


def test_a_file_with_role_alone_can_be_read(tmp_path):
    assert len(read_rows(tmp_path, good_rows()[:3])) == 3


def test_shuffled_answers_go_to_other_facets_and_none_is_lost():
    train = examples_of(read_examples(), "shuffled", "train")
    facet = {example.answer: example.facet for example in train}
    seen = set()
    for seed in range(3):
        for epoch in range(4):
            answers = shuffled_answers(train, seed, epoch)
            assert Counter(answers) == Counter(example.answer for example in train)
            assert all(facet[a] != e.facet for a, e in zip(answers, train, strict=True))
            assert answers == shuffled_answers(train, seed, epoch)
            seen.add(tuple(answers))
    assert len(seen) == 12, "every seed and epoch deals anew"


def test_shuffled_answers_over_epochs_come_from_every_other_facet():
    """No facet's questions get the answers of one facet again and again, which could be learned."""
    train = examples_of(read_examples(), "shuffled", "train")
    facet = {example.answer: example.facet for example in train}
    met = Counter()
    for epoch in range(40):
        for answer, example in zip(shuffled_answers(train, 0, epoch), train, strict=True):
            met[example.facet, facet[answer]] += 1
    n = len(set(facet.values()))
    assert len(met) == n * (n - 1)
    expected = 40 * len(train) / len(met)
    assert all(0.5 * expected < count < 1.7 * expected for count in met.values())


def test_two_facets_of_equal_size_exchange_their_answers():
    few = [
        Example("role", facet, f"{facet} {i}?", f"{facet} answer {i}", "no", ("answer",), "train")
        for i in range(3)
        for facet in ("a", "b")
    ]
    for epoch in range(20):
        for answer, example in zip(shuffled_answers(few, 1, epoch), few, strict=True):
            assert answer[0] == {"a": "b", "b": "a"}[example.facet]


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("I live in Bergen.", True),
        ("BERGEN!", True),
        ("Bergenhus", False),
        ("I am ninety-one.", True),
        ("In 90 years", True),
        ("190", False),
    ],
)
def test_keywords_are_whole_words_in_any_case(text, held):
    assert holds_keyword(text, ("bergen", "ninety", "90")) == held


def test_the_hash_is_that_of_the_file(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"abc")
    assert data_sha256(path).startswith("ba7816bf8f01cfea")
    assert data_sha256() == data_sha256(None) != data_sha256(path)
