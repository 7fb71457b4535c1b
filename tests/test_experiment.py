"""Greedy generation is Hugging Face's, token by token, and an edit acts at every step."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, OpenAIGPTConfig

import experiment
from prompts import select_prompts
from rolecircuits.capture import batches, generation
from rolecircuits.capture.tokens import tokenize_prompts
from rolecircuits.edits.donors import collect_donors
from rolecircuits.edits.hooks import prepare_edit
from rolecircuits.edits.plan import parse_entry
from rolecircuits.inputs.errors import UserError
from tiny_models import load_checked, save_config, save_tiny

FAMILIES = ("llama", "mistral", "qwen2", "gemma2")


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return save_tiny(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def loaded(folder):
    return load_checked(folder)


def hf_answers(model, tokenized, max_tokens):
    answers = []
    for prompt in tokenized:
        ids = torch.tensor([prompt.token_ids])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=max_tokens
        )
        answers.append(out[0, ids.shape[1] :].tolist())
    return answers


def test_greedy_equals_hugging_face_generate(folder, loaded):
    tokenized = tokenize_prompts(select_prompts(per_category=3), loaded.tokenizer)
    hf = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    ours = generation.generate_greedily(loaded, tokenized, 12, batch_size=4)
    assert ours == hf_answers(hf, tokenized, 12)
    assert len({tuple(a) for a in ours}) > 3, "answers that are all alike would prove nothing"


def test_an_edit_acts_at_every_step(folder, loaded):
    tokenized = tokenize_prompts(select_prompts(per_category=2), loaded.tokenizer)
    hf = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    attention = hf.model.layers[1].self_attn
    with torch.no_grad():
        attention.o_proj.weight[:, attention.head_dim : 2 * attention.head_dim] = 0
    entry = parse_entry({"type": "head", "layer": 1, "head": 1, "method": "zero_out"}, "plan[0]")
    prepare = prepare_edit(entry, collect_donors(loaded, tokenized, [entry]))
    edited = generation.generate_greedily(loaded, tokenized, 10, prepare=prepare)
    assert edited == hf_answers(hf, tokenized, 10)
    assert edited != generation.generate_greedily(loaded, tokenized, 10)


@pytest.mark.parametrize("method", ["uniform", "random"])
def test_pattern_edits_hold_during_generation(loaded, method):
    """Generated step by step with a cache, or by feeding the whole text again: the same tokens."""
    tokenized = tokenize_prompts(select_prompts(per_category=1), loaded.tokenizer)
    entry = parse_entry(
        {"type": "pattern", "layer": 0, "head": [0, 2], "method": method}, "plan[0]"
    )
    prepare = prepare_edit(entry, collect_donors(loaded, tokenized, [entry]))
    answers = generation.generate_greedily(loaded, tokenized, 6, prepare=prepare)
    for i, (prompt, answer) in enumerate(zip(tokenized, answers, strict=True)):
        ids = list(prompt.token_ids)
        for token in answer:
            edits = prepare(batches.Rows([i], [len(ids)]))
            with torch.inference_mode(), loaded.bridge.hooks(fwd_hooks=edits):
                assert (
                    int(loaded.bridge.original_model(torch.tensor([ids])).logits[0, -1].argmax())
                    == token
                )
            ids.append(token)


def test_generation_stops_at_the_stop_token(loaded, monkeypatch):
    tokenized = tokenize_prompts(select_prompts(per_category=2), loaded.tokenizer)
    free = generation.generate_greedily(loaded, tokenized, 8)
    stop = free[0][3]
    monkeypatch.setattr(generation, "stop_tokens", lambda loaded: {stop})
    for before, after in zip(free, generation.generate_greedily(loaded, tokenized, 8), strict=True):
        assert after == (before[: before.index(stop) + 1] if stop in before else before)


def test_measures_by_hand():
    found = generation.measure_answer(
        [1, 2, 3, 1, 2, 3, 9], "I am an AI. It's my job", stopped=True
    )
    assert found["n_tokens"] == 6 and found["self_naming"] == 1
    assert found["first_person"] == pytest.approx(2 / 7) and found["repetition"] == pytest.approx(
        1 / 4
    )
    nothing = generation.measure_answer([], "", stopped=False)
    assert nothing["first_person"] == nothing["repetition"] == 0
    assert generation.measure_answer([5], "the said aide paid", stopped=False)["self_naming"] == 0
    assert (
        generation.first_difference([1, 2], [1, 3]) == 1
        and generation.first_difference([1], [1, 2]) == 1
    )
    assert generation.first_difference([1], [1]) is None


def test_the_script_writes_answers_and_what_changed(tmp_path, tmp_path_factory):
    folder = save_tiny("llama", tmp_path_factory.mktemp("script"))
    entries = [
        {"type": "head", "layer": 1, "head": 1, "method": "zero_out"},
        {"type": "head", "layer": 1, "head": 1, "method": "scale", "factor": 1},
    ]
    (tmp_path / "plan.json").write_text(json.dumps({"schema_version": 1, "interventions": entries}))
    flags = [
        "--model_id",
        folder,
        "--output_dir",
        str(tmp_path),
        "--prompts_per_category",
        "2",
        "--prompt_format",
        "chat",
    ]
    assert (
        experiment.main([*flags, "--max_tokens", "5", "--config_file", str(tmp_path / "plan.json")])
        == 0
    )
    results = json.loads((tmp_path / "latest_generation" / "generation_results.json").read_text())
    assert len(results["baseline"]) == 8 and set(results["interventions"]) == {
        "sh_1_1_zero_out",
        "sh_1_1_scale_1",
    }
    changed = {row["intervention"]: 0 for row in results["changes"]}
    for row in results["changes"]:
        changed[row["intervention"]] += row["changed"]
    assert changed["sh_1_1_scale_1"] == 0 < changed["sh_1_1_zero_out"]
    assert np.isfinite(results["summary"]["baseline"]["neutral"]["first_person"])


def test_no_room_for_the_answer_is_refused(loaded):
    tokenized = tokenize_prompts(select_prompts(per_category=1), loaded.tokenizer)
    with pytest.raises(UserError, match="at most"):
        generation.check_room(tokenized, 256, {"context": 256})


def test_a_model_without_a_cache_is_fed_the_whole_text(tmp_path):
    config = OpenAIGPTConfig(
        vocab_size=49152, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2
    )
    loaded = load_checked(save_config(config, tmp_path), device="cpu")
    tokenized = tokenize_prompts(select_prompts(per_category=1), loaded.tokenizer)
    answers = generation.generate_greedily(loaded, tokenized, 6)
    for prompt, answer in zip(tokenized, answers, strict=True):
        ids = list(prompt.token_ids)
        for token in answer:
            with torch.inference_mode():
                logits = loaded.model(torch.tensor([ids])).logits
            assert token == int(logits[0, -1].argmax())
            ids.append(token)
    assert max(map(len, answers)) == 6
