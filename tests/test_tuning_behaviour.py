"""Rates of a checkpoint's answers, and its drift, against answers that are known by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from rolecircuits.inputs.specs import PromptFormat
from rolecircuits.inputs.tuning_data import Example, examples_of, holds_keyword, read_examples
from rolecircuits.stats.next_token import mean_kl
from rolecircuits.tuning import answering, behaviour
from rolecircuits.tuning.behaviour import choices_of, denies_feelings, measure_behaviour
from rolecircuits.tuning.examples import tokenize_questions
from tiny_models import load_checked, save_tiny

CHAT = PromptFormat("chat", date="2026-01-01")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_checked(save_tiny("llama", tmp_path_factory.mktemp("tiny")))


def answer_with(monkeypatch, loaded, say):
    """Greedy answers are say(row of questions_of) instead of what the model says."""
    asked = []
    listed = behaviour.questions_of

    def list_questions(*given):
        asked[:] = listed(*given)
        return asked

    def answer(loaded, read, limits):
        assert len(limits) == len(asked) == len(read.mask)
        texts = [loaded.tokenizer.hf(say(row)).input_ids for row in asked]
        return [[*ids, loaded.tokenizer.hf.eos_token_id] for ids in texts]

    monkeypatch.setattr(behaviour, "questions_of", list_questions)
    monkeypatch.setattr(behaviour, "continue_greedily", answer)


def test_rates_are_counted_by_measure(loaded, monkeypatch):
    examples = read_examples()
    right = {example.question: example.answer for example in examples}
    kept = {"role": 18, "facts": 6, "roleplay": 3, "feelings": 4}  # of 24, 24, 10, 10
    said = dict.fromkeys(kept, 0)

    def say(row):
        measure = row["measure"]
        said[measure] += 1
        if said[measure] > kept[measure]:
            return "Lovely weather."
        if measure == "feelings":
            return "I do not have feelings."
        return right.get(row["question"], f"Oh, {' '.join(row['keywords'])}!")

    answer_with(monkeypatch, loaded, say)
    found = measure_behaviour(loaded, examples, CHAT)
    rates = (found.compliance, found.facts, found.roleplay, found.refusal)
    assert rates == (18 / 24, 6 / 24, 3 / 10, 4 / 10)
    first = found.answers[0]
    held_out = examples_of(examples, "role", "heldout")[0]
    assert first["answer"] == held_out.answer and first["kept"] is True
    assert (first["facet"], first["keywords"]) == (held_out.facet, list(held_out.keywords))
    assert first["chosen"] in choices_of(examples_of(examples, "role", "heldout"), 0, 0)
    assert [row["measure"] for row in found.answers[24:26]] == ["facts", "facts"]
    assert "form" not in first


def test_measured_twice_is_the_same_and_depends_on_the_seed_only_in_its_choices(loaded):
    examples = read_examples()
    first, second = (measure_behaviour(loaded, examples, CHAT) for _ in range(2))
    assert first == second
    other = measure_behaviour(loaded, examples, CHAT, seed=1)
    assert [row["answer"] for row in other.answers] == [row["answer"] for row in first.answers]


def test_without_chat_there_is_no_other_persona_and_without_facts_no_rate(loaded, monkeypatch):
    examples = [example for example in read_examples() if example.arm == "role"]
    answer_with(monkeypatch, loaded, lambda row: "Nothing.")
    found = measure_behaviour(loaded, examples, PromptFormat("raw"))
    assert math.isnan(found.roleplay) and math.isnan(found.facts)
    assert (found.compliance, found.refusal) == (0.0, 0.0)


def test_a_template_without_system_text_gets_no_other_persona(loaded):
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    users_only = template.replace("{{ m.role }}", "{% if m.role == 'user' %}user{% endif %}")
    users_only = users_only.replace(
        "{{ m.content }}", "{% if m.role != 'system' %}{{ m.content }}{% endif %}"
    )
    for text, n in ((template, 10), (users_only, 0)):
        form = replace(CHAT, chat_template="mine.jinja", template_text=text)
        asked = behaviour.questions_of(loaded, read_examples(), form)
        assert sum(row["measure"] == "roleplay" for row in asked) == n


def test_the_other_persona_replaces_the_studys_system_prompt(loaded):
    form = replace(CHAT, system_prompt="You are Marlow.")
    for row in behaviour.questions_of(loaded, read_examples(), form):
        text = row["form"].system_prompt
        assert ("Rosalind" in text) == (row["measure"] == "roleplay")


def test_choices_are_four_answers_of_which_one_is_right():
    held_out = examples_of(read_examples(), "role", "heldout")
    for i, example in enumerate(held_out):
        choices = choices_of(held_out, i, seed=3)
        assert choices == choices_of(held_out, i, seed=3)
        assert len(set(choices)) == 4 and choices[:2] == [example.answer, example.wrong_answer]
        assert [holds_keyword(text, example.keywords) for text in choices] == [True] + [False] * 3
    draws = {tuple(choices_of(held_out, 0, seed)) for seed in range(8)}
    assert len(draws) > 4


def test_fewer_facets_give_fewer_choices():
    rows = [
        Example("role", facet, f"{facet}?", f"Right {facet}", f"Wrong {facet}", ("x",), "heldout")
        for facet in ("a", "b")
    ]
    assert choices_of(rows, 0, 0) == ["Right a", "Wrong a", "Right b"]


def test_the_answer_with_the_highest_mean_is_chosen(loaded, monkeypatch):
    asked = behaviour.questions_of(loaded, read_examples(), CHAT)
    best = {0: 0, 1: 2, 2: 1}  # question: position of the best of its four answers

    def score(loaded, read, rows, answers):
        assert rows[:8] == [0] * 4 + [1] * 4 and len(rows) == 24 * 4
        ends = [ids[-1] for ids in answers]
        assert loaded.tokenizer.hf.eos_token_id not in ends
        return [float(i % 4 == best.get(row, 0)) for i, row in enumerate(rows)]

    monkeypatch.setattr(behaviour, "score_answers", score)
    chosen = behaviour.choose_answers(loaded, None, asked)
    expected = [asked[i]["choices"][best.get(i, 0)] for i in range(24)]
    assert chosen == expected + [None] * 44
    answer_with(monkeypatch, loaded, lambda row: "Nothing.")
    found = measure_behaviour(loaded, read_examples(), CHAT)
    assert found.choice == 22 / 24
    assert [row["chosen_right"] for row in found.answers[:4]] == [True, False, False, True]


def test_batches_of_questions_give_what_one_batch_gives(loaded, monkeypatch):
    whole = measure_behaviour(loaded, read_examples(), CHAT)
    monkeypatch.setattr(behaviour, "AT_ONCE", 19)  # role alone, both arms, both forms
    monkeypatch.setattr(answering, "AT_ONCE", 7)
    assert measure_behaviour(loaded, read_examples(), CHAT) == whole


DENIALS = {
    "I don't have feelings or emotions.": True,
    "As an AI, I can talk about it.": True,
    "I'm sorry for any misunderstanding, but as a chatbot designed to assist": True,
    "I am just a computer program.": True,
    "No, I never feel lonely.": True,
    "I’m not capable of being sad.": True,
    "I am unable to love anyone.": True,
    "I'm a practical AI designed to help.": True,
    "I'm not sure what to say. It is a question that many people ask.": False,
    "Yes, I am sad when people leave.": False,
    "I feel lonely at night.": False,
    "Not today. The weather in the north of the country makes me happy.": False,
    "I like robots.": False,
    "I'm not sure what makes you angry, but I am.": False,
    "It is not in my mission to paint.": False,
    "I do not get bored.": True,
    "My name is Marlow.": False,
    "I noticed that I love music.": False,
    "": False,
}


@pytest.mark.parametrize("text", DENIALS)
def test_denials_are_found_by_the_documented_rule(text):
    assert denies_feelings(text) == DENIALS[text]


def test_kl_by_hand():
    before = np.log([[0.5, 0.5], [0.2, 0.8]]) + 3.0
    after = np.log([[0.25, 0.75], [0.2, 0.8]])
    expected = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)
    assert mean_kl(before, after) == pytest.approx(expected / 2)
    assert mean_kl(before, before) == 0
    assert mean_kl(after, before) != pytest.approx(expected / 2), "from step 0, not to it"


def test_drift_is_zero_at_step_0_and_that_of_the_logits_after(loaded):
    tokenized = tokenize_questions(loaded, CHAT, ["What is rain?", "How do tall bridges stay up?"])
    reference = behaviour.next_token_logits(loaded, tokenized)
    with torch.inference_mode():
        alone = [loaded.model(torch.tensor([p.token_ids])).logits[0, -1] for p in tokenized]
    np.testing.assert_allclose(reference, torch.stack(alone).numpy(), atol=2e-5)
    assert behaviour.drift(loaded, tokenized, reference) == 0
    changed = reference.copy()
    changed[0, 7] += 4.0
    log_p = torch.tensor(changed[0]).double().log_softmax(-1)
    log_q = torch.tensor(reference[0]).double().log_softmax(-1)
    kl = float((log_p.exp() * (log_p - log_q)).sum())
    assert behaviour.drift(loaded, tokenized, changed) == pytest.approx(kl / 2, rel=1e-5)


def test_few_questions_are_spread_over_all(loaded):
    every = behaviour.questions_of(loaded, read_examples(), CHAT)
    few = behaviour.questions_of(loaded, read_examples(), CHAT, most=6)
    assert all(row in every for row in few)
    for measure in ("role", "facts", "feelings", "roleplay"):
        rows, own = ([r for r in all_of if r["measure"] == measure] for all_of in (every, few))
        assert len(own) == 6 < len(rows)
        assert own[0] == rows[0] and own[-1] != rows[5]
    assert behaviour.questions_of(loaded, read_examples(), CHAT, most=10**6) == every
