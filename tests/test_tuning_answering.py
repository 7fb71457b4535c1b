"""Questions of many lengths, read together: answers and scores are those of each question alone."""

from dataclasses import replace

import pytest
import torch
from transformers import OpenAIGPTConfig

from rolecircuits.capture.generation import generate_greedily
from rolecircuits.capture.prefix import common_prefix
from rolecircuits.inputs.errors import UserError
from rolecircuits.inputs.specs import ModelSpec, PromptFormat
from rolecircuits.models.load import open_model, read_weights
from rolecircuits.tuning import examples
from rolecircuits.tuning.answering import continue_greedily, read_questions, score_answers
from rolecircuits.tuning.examples import tokenize_answers, tokenize_examples, tokenize_questions
from tiny_models import CONFIGS, load_checked, save_config, save_tiny

QUESTIONS = ["Who?", "What should I call you?", "What is in the cup that you have there?", "Where?"]
ANSWERS = ["I am Marlow.", "Tea.", "I live in the town of Bergen.", "I am Edgar."]
FORMS = [PromptFormat("raw"), PromptFormat("chat")]


@pytest.fixture(scope="module", params=list(CONFIGS))
def loaded(request, tmp_path_factory):
    return load_checked(save_tiny(request.param, tmp_path_factory.mktemp("tiny") / request.param))


@pytest.mark.parametrize("form", FORMS, ids=["raw", "chat"])
def test_greedy_answers_are_those_of_batches_of_one_length(loaded, form):
    tokenized = tokenize_questions(loaded, form, QUESTIONS)
    assert len({len(prompt.token_ids) for prompt in tokenized}) > 2
    limits = [5, 1, 8, 3]
    read = read_questions(loaded, tokenized)
    alone = generate_greedily(loaded, tokenized, max(limits))
    expected = [ids[:n] for ids, n in zip(alone, limits, strict=True)]
    assert continue_greedily(loaded, read, limits) == expected


def test_groups_with_other_system_texts_answer_as_alone(loaded):
    """What each group begins with alike is read once, and is its own."""
    forms = [PromptFormat("chat", text) for text in ("Be brief.", "You are a pilot in Nairobi.")]
    groups = [tokenize_questions(loaded, form, QUESTIONS[i:]) for i, form in enumerate(forms)]
    groups.append(tokenize_questions(loaded, PromptFormat("raw", bos="never"), ["Who?", "Why me?"]))
    groups.append(groups[0][:1])
    assert [common_prefix([p.token_ids for p in own]) > 0 for own in groups] == [1, 1, 0, 1]
    everything = [prompt for own in groups for prompt in own]
    expected = generate_greedily(loaded, everything, 5)
    read = read_questions(loaded, *groups)
    assert continue_greedily(loaded, read, [5] * len(everything)) == expected


def test_an_answer_ends_with_the_stop_token(loaded, monkeypatch):
    tokenized = tokenize_questions(loaded, PromptFormat("raw"), QUESTIONS)
    alone = generate_greedily(loaded, tokenized, 6)
    monkeypatch.setattr(loaded.model.generation_config, "eos_token_id", alone[1][2])
    read = read_questions(loaded, tokenized)
    answers = continue_greedily(loaded, read, [6] * len(tokenized))
    assert answers == generate_greedily(loaded, tokenized, 6)
    assert answers[1] == alone[1][: alone[1].index(alone[1][2]) + 1]


@pytest.mark.parametrize("form", FORMS, ids=["raw", "chat"])
def test_scores_are_those_of_one_pass_over_question_and_answer(loaded, form):
    rows = [0, 0, 1, 2, 2, 3]
    answers = [ANSWERS[i] for i in (0, 3, 0, 1, 2, 3)]
    read = read_questions(loaded, tokenize_questions(loaded, form, QUESTIONS))
    ids = [own[:-1] for own in tokenize_answers(loaded, form, answers)]
    scores = score_answers(loaded, read, rows, ids)
    pairs = [(QUESTIONS[row], answer) for row, answer in zip(rows, answers, strict=True)]
    for score, (whole, n) in zip(scores, tokenize_examples(loaded, form, pairs), strict=True):
        with torch.inference_mode():
            logits = loaded.model(torch.tensor([whole[:-1]])).logits[0].double()
        logs = logits.log_softmax(-1)
        expected = [logs[i - 1, whole[i]].item() for i in range(n, len(whole) - 1)]
        assert score == pytest.approx(sum(expected) / len(expected), abs=2e-5)
    assert continue_greedily(loaded, read, [2] * 4), "scoring leaves what was read as it is"


def test_an_adapter_that_is_not_merged_answers_as_a_merged_one(tmp_path):
    peft = pytest.importorskip("peft")
    tiny = load_checked(save_tiny("llama", tmp_path))
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    tuned = replace(tiny, model=peft.get_peft_model(tiny.model, config).eval())
    tokenized = tokenize_questions(tuned, PromptFormat("chat"), QUESTIONS)
    read = read_questions(tuned, tokenized)
    logits, answers = read.logits.clone(), continue_greedily(tuned, read, [6] * 4)
    merged = replace(tiny, model=tuned.model.merge_and_unload())
    read = read_questions(merged, tokenized)
    torch.testing.assert_close(read.logits, logits, atol=1e-4, rtol=1e-4)
    assert generate_greedily(merged, tokenized, 6) == answers


def test_a_model_that_keeps_nothing_is_refused(tmp_path):
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    folder = save_config(OpenAIGPTConfig(vocab_size=49152, **shape), tmp_path)
    gpt = read_weights(open_model(ModelSpec(folder)))
    tokenized = tokenize_questions(gpt, PromptFormat("raw"), QUESTIONS)
    with pytest.raises(UserError, match="OpenAIGPTLMHeadModel keeps no keys and values"):
        read_questions(gpt, tokenized)


def test_an_answer_of_one_token_has_a_score(loaded):
    form = PromptFormat("chat")
    read = read_questions(loaded, tokenize_questions(loaded, form, QUESTIONS))
    logs = read.logits.double().log_softmax(-1)
    score = score_answers(loaded, read, [2], [[77]])
    assert score == pytest.approx([logs[2, 77].item()], abs=1e-5)


def test_an_example_is_the_captured_question_the_answer_and_the_token_that_ends_it(loaded):
    form = PromptFormat("chat")
    pairs = list(zip(QUESTIONS, ANSWERS, strict=True))
    hf = loaded.tokenizer.hf
    for (ids, n), (question, answer) in zip(
        tokenize_examples(loaded, form, pairs), pairs, strict=True
    ):
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        rendered = hf.apply_chat_template(turns, tokenize=False)
        whole = hf(rendered, add_special_tokens=False).input_ids
        assert whole[: len(ids)] == ids, "as the model's own template writes both turns"
        assert hf.decode(ids[n:-1]) == answer
        assert ids[-1] == 2
        assert ids[:n] == tokenize_questions(loaded, form, [question])[0].token_ids


def test_raw_examples_have_a_space_between_question_and_answer(loaded):
    [(ids, n)] = tokenize_examples(loaded, PromptFormat("raw"), [("Who?", "I am.")])
    assert loaded.tokenizer.hf.decode(ids[n:-1]) == " I am."


def test_a_model_without_an_end_is_refused(loaded, monkeypatch):
    monkeypatch.setattr(examples, "stop_tokens", lambda loaded: set())
    with pytest.raises(UserError, match="no token that ends an answer"):
        tokenize_examples(loaded, PromptFormat("raw"), [("Who?", "I am.")])
