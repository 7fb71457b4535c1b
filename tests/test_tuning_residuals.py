"""The residual stream that is read is the model's own, at the right tokens."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from rolecircuits.capture.attention import capture_patterns, capture_streaming
from rolecircuits.capture.model_pass import decoder_layers
from rolecircuits.capture.tokens import tokenize_prompts
from rolecircuits.inputs.errors import RunFailed, UserError
from rolecircuits.inputs.prompt_sets import built_in_prompts, cut_prompts
from rolecircuits.inputs.specs import ModelSpec, PromptFormat
from rolecircuits.models.load import LoadedModel, open_model, read_weights
from rolecircuits.tuning.residuals import read_residuals, watch_residuals
from tiny_models import CONFIGS, load_checked, save_tiny
from tiny_multimodal import KINDS, save_multimodal

CHAT = PromptFormat("chat")


def crossed(loaded, n=3, form=CHAT):
    return tokenize_prompts(cut_prompts(built_in_prompts("crossed"), n), loaded.tokenizer, form)


def hidden_states(loaded, prompt):
    """[layer][query, unit] of one prompt alone; transformers gives the last one after the norm."""
    with torch.inference_mode():
        ids = torch.tensor([prompt.token_ids])
        out = loaded.model.base_model(input_ids=ids, output_hidden_states=True, use_cache=False)
    return [layer[0].numpy() for layer in out.hidden_states[1:]]


def n_hooks(loaded):
    """Hooks on the model; transformers has some of its own."""
    parts = loaded.model.modules()
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in parts)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_they_are_the_hidden_states_of_the_model(tmp_path, name):
    loaded = load_checked(save_tiny(name, tmp_path / name))
    tokenized = crossed(loaded)
    found = read_residuals(loaded, tokenized)
    assert found.final.shape == (12, 3, 32) and found.final.dtype == np.float32
    norm = loaded.model.base_model.norm
    for i, prompt in enumerate(tokenized):
        expected = hidden_states(loaded, prompt)
        for layer in range(2):
            own, (start, stop) = expected[layer], prompt.slot
            np.testing.assert_allclose(found.final[i, layer], own[-1], atol=2e-5)
            np.testing.assert_allclose(found.slot[i, layer], own[start:stop].mean(0), atol=2e-5)
        with torch.inference_mode():
            normed = norm(torch.tensor(found.final[i, 2])).numpy()
        np.testing.assert_allclose(normed, expected[2][-1], atol=2e-5)


def test_batches_change_nothing_and_a_repetition_is_identical(tmp_path):
    loaded = load_checked(save_tiny("llama", tmp_path))
    tokenized, hooks = crossed(loaded), n_hooks(loaded)
    found, again = (read_residuals(loaded, tokenized) for _ in range(2))
    np.testing.assert_array_equal(found.final, again.final)
    np.testing.assert_array_equal(found.slot, again.slot)
    alone = read_residuals(loaded, tokenized, batch_size=1)
    np.testing.assert_allclose(found.final, alone.final, atol=2e-5)
    assert n_hooks(loaded) == hooks


def test_prompts_without_a_slot_have_none(tmp_path):
    loaded = load_checked(save_tiny("llama", tmp_path))
    plain = tokenize_prompts(cut_prompts(built_in_prompts("original"), 2), loaded.tokenizer)
    found = read_residuals(loaded, plain)
    assert np.isnan(found.slot).all() and np.isfinite(found.final).all()


@pytest.mark.parametrize("capture", [capture_patterns, capture_streaming])
def test_watching_a_capture_costs_no_pass_and_changes_nothing(tmp_path, capture):
    loaded = load_checked(save_tiny("mistral", tmp_path))
    loaded.attention["not_packed"] = "is watched"  # a packed pass is fed no prompt as it is
    tokenized = crossed(loaded)
    own, plain = read_residuals(loaded, tokenized), capture(loaded, tokenized)
    wanted = [tokenized[7], tokenized[2], tokenized[7]]
    with watch_residuals(loaded, wanted) as found:
        watched = capture(loaded, tokenized)
    for name, array in plain.arrays.items():
        np.testing.assert_array_equal(watched.arrays[name], array)
    assert np.isnan(found.final[:, -1]).all(), "a capture ends before the last layer has run"
    for row, i in enumerate((7, 2, 7)):
        np.testing.assert_allclose(found.final[row, :-1], own.final[i, :-1], atol=2e-5)
        np.testing.assert_allclose(found.slot[row, :-1], own.slot[i, :-1], atol=2e-5)


def test_what_is_not_read_fails(tmp_path):
    loaded = load_checked(save_tiny("llama", tmp_path))
    tokenized = crossed(loaded)
    with pytest.raises(RunFailed, match="no prompt was fed"), watch_residuals(loaded, tokenized):
        capture_patterns(loaded, tokenized)  # packed
    loaded.attention["not_packed"] = "is watched"
    with pytest.raises(RunFailed, match="no prompt was fed"), watch_residuals(loaded, tokenized):
        pass
    with pytest.raises(RunFailed, match=tokenized[5].id), watch_residuals(loaded, tokenized):
        capture_patterns(loaded, tokenized[:5] + tokenized[6:])
    with torch.no_grad():
        decoder_layers(loaded)[1].mlp.down_proj.weight[0, 0] = torch.inf
    with pytest.raises(RunFailed, match="not finite"):
        read_residuals(loaded, tokenized)


def test_an_error_inside_is_the_one_that_is_seen(tmp_path):
    loaded = load_checked(save_tiny("llama", tmp_path))
    with pytest.raises(ZeroDivisionError), watch_residuals(loaded, crossed(loaded)):
        raise ZeroDivisionError


SMALL = {
    "gpt2": {"n_layer": 2, "n_embd": 8, "n_head": 2},
    "gpt_neox": {},
    "opt": {"ffn_dim": 8, "word_embed_proj_dim": 8},
    "bloom": {"n_layer": 2, "hidden_size": 8, "n_head": 2},
    "falcon": {},
    "phi3": {"pad_token_id": 0},
    "mixtral": {"num_local_experts": 2},
    "gpt_oss": {"num_local_experts": 4, "head_dim": 4},
}
SIZES = {"num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 8}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 32}


@pytest.mark.parametrize("kind", list(SMALL))
def test_layers_are_found_whatever_they_are_called(kind):
    sizes = SMALL[kind] if "n_layer" in SMALL[kind] else SIZES | HEADS | SMALL[kind]
    config = CONFIG_MAPPING[kind](**{"vocab_size": 32} | sizes)
    model = AutoModelForCausalLM.from_config(config).eval()
    layers = decoder_layers(LoadedModel(model, None, {"n_layers": 2, "architecture": kind}))
    states = []
    for layer in layers:
        layer.register_forward_hook(
            lambda module, given, out: states.append(out[0] if isinstance(out, tuple) else out)
        )
    with torch.inference_mode():
        out = model(torch.tensor([[1, 2, 3]]), output_hidden_states=True)
    assert len(states) == 2
    torch.testing.assert_close(states[0], out.hidden_states[1])
    with pytest.raises(UserError, match="no list of 7 layers"):
        decoder_layers(LoadedModel(model, None, {"n_layers": 7, "architecture": kind}))


@pytest.mark.parametrize("kind", ["gemma3", "llava"])
def test_a_multimodal_model_is_read_on_its_text_side(tmp_path, kind):
    assert kind in KINDS
    loaded = read_weights(open_model(ModelSpec(save_multimodal(kind, tmp_path))))
    tokenized = tokenize_prompts(cut_prompts(built_in_prompts("crossed"), 1), loaded.tokenizer)
    found = read_residuals(loaded, [replace(prompt) for prompt in tokenized])
    assert found.final.shape[1:] == (loaded.n_layers, 32) and np.isfinite(found.final).all()
