"""A batch packed into one row of tokens gives what the whole pass of the padded batch gives."""

from functools import partial

import numpy as np
import pytest
import torch

import activation_analysis
from rolecircuits.capture import attention, instrument, masks, recorder
from rolecircuits.capture.batches import pad_right
from rolecircuits.capture.packed import Packed
from rolecircuits.capture.tokens import TokenizedPrompt, tokenize_prompts
from rolecircuits.edits import packed_heads, sweep
from rolecircuits.inputs.prompt_sets import built_in_prompts, cut_prompts
from rolecircuits.inputs.specs import PromptFormat
from test_masks import codegen, dynamic, gpt_neo, gpt_oss, llama4, longrope
from tiny_models import CONFIGS, load_checked, save_config, save_tiny

OTHERS = {
    **{"gpt_oss": gpt_oss, "llama4": llama4, "gpt_neo": gpt_neo, "codegen": codegen},
    **{"phi3_longrope": longrope, "llama_dynamic": dynamic},
}
CROSSED = cut_prompts(built_in_prompts("crossed"), 6)
ORIGINAL = cut_prompts(built_in_prompts("original"), 5)


def test_a_packed_row_by_hand():
    packed = Packed([[5, 6, 7], [5, 6, 8, 7], [6]])
    assert packed.ids.tolist() == [5, 6, 7, 8, 7, 6]
    assert packed.positions.tolist() == [0, 1, 2, 2, 3, 0]
    assert packed.copies.view(3, 4).tolist() == [[0, 1, 2, 0], [0, 1, 3, 4], [5, 0, 0, 0]]
    assert packed.first.tolist() == [0, 1, 2, 6, 7, 8]
    row = torch.arange(12.0).view(1, 1, 6, 2)
    laid = packed.lay_out(row)
    assert laid[1, 0].tolist() == row[0, 0, [0, 1, 3, 4]].tolist()
    assert torch.equal(packed.gather(laid.transpose(1, 2)), row.transpose(1, 2))


def whole(loaded, monkeypatch):
    """From here on every prompt is computed, and reduced, by itself."""
    loaded.attention["not_packed"] = "is tested"
    reduce_pattern = attention.reduce_pattern
    monkeypatch.setattr(attention, "reduce_pattern", lambda *given: reduce_pattern(*given[:4]))


def assert_same(found, expected, atol=1e-5):
    for name, values in expected.arrays.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(found.arrays[name], values, atol=atol, err_msg=name)
        else:
            np.testing.assert_array_equal(found.arrays[name], values, err_msg=name)
    for layer, values in expected.patterns.items():
        np.testing.assert_allclose(found.patterns[layer], values, atol=atol)


@pytest.mark.parametrize("form", ["chat", "raw"])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_arrays_and_patterns_are_those_of_the_whole_pass(tmp_path, monkeypatch, name, form):
    """Sliding windows and soft caps are among these models."""
    loaded = load_checked(save_tiny(name, tmp_path / name), device="cpu")
    assert loaded.facts["not_packed"] is None
    tokenized = tokenize_prompts([*CROSSED, *ORIGINAL], loaded.tokenizer, PromptFormat(form))
    capture = partial(attention.capture_patterns, loaded, tokenized, 7, keep_patterns=True)
    found, streamed = capture(), attention.capture_streaming(loaded, tokenized, 7)
    whole(loaded, monkeypatch)
    assert_same(found, capture())
    assert_same(streamed, attention.capture_streaming(loaded, tokenized, 7))


@pytest.mark.parametrize("name", list(OTHERS))
def test_windows_chunks_sinks_and_other_models_too(tmp_path, monkeypatch, name):
    """llama4: chunks, and layers without positions. Eager-only ones are computed whole."""
    loaded = load_checked(save_config(OTHERS[name](), tmp_path), device="cpu")
    own = loaded.facts["not_packed"]
    assert (own is None) == (name in ("gpt_oss", "llama4", "phi3_longrope", "llama_dynamic")), own
    ids = [[(5 * i + i * i) % 90 + 3 for i in range(n)] for n in (21, 9, 15)]
    ids += [ids[0][:12] + ids[1], ids[0][:12]]
    texts = [tokenized_text(i, own) for i, own in enumerate(ids)]
    found = attention.capture_patterns(loaded, texts, keep_patterns=True)
    whole(loaded, monkeypatch)
    assert_same(found, attention.capture_patterns(loaded, texts, keep_patterns=True))


def test_the_model_is_fed_each_beginning_once(tmp_path):
    loaded = load_checked(save_tiny("llama", tmp_path), device="cpu")
    tokenized = tokenize_prompts(CROSSED, loaded.tokenizer, PromptFormat("chat"))
    ids, seen = [prompt.token_ids for prompt in tokenized], []
    embed = loaded.model.get_input_embeddings()
    hook = embed.register_forward_hook(lambda module, given, out: seen.append(out.shape[:2]))
    attention.capture_patterns(loaded, tokenized, batch_size=len(ids))
    hook.remove()
    beginnings = {tuple(own[: i + 1]) for own in ids for i in range(len(own))}
    assert seen == [(1, len(beginnings))]
    assert len(beginnings) < sum(map(len, ids)) / 2


def mix_tokens(model):
    """Let an MLP add a bit of the token before: something other than attention moves."""
    mlp = model.model.layers[0].mlp
    forward = mlp.forward
    before = partial(torch.nn.functional.pad, pad=(0, 0, 1, -1))
    mlp.forward = lambda hidden: forward(hidden) + 0.3 * before(hidden)


def test_a_model_that_moves_something_else_between_tokens_is_not_packed(tmp_path, monkeypatch):
    loaded = load_checked(save_tiny("llama", tmp_path), device="cpu")
    assert loaded.facts["not_packed"] is None
    mix_tokens(loaded.model)
    loaded.facts["instrument"] = instrument.check_instrument(loaded)
    why = masks.why_not_packed(loaded)
    assert why.startswith("has other rows where prompts are packed (instrument check: layer")
    assert loaded.facts["not_packed"] == why
    assert instrument.packing_notes(loaded) == [f"every prompt is computed whole: this model {why}"]
    tokenized = tokenize_prompts(CROSSED, loaded.tokenizer, PromptFormat("chat"))
    found = attention.capture_patterns(loaded, tokenized)
    alone = attention.capture_patterns(loaded, tokenized[-1:])
    n = alone.arrays["entropy"].shape[-1]
    np.testing.assert_allclose(
        found.arrays["entropy"][-1:, ..., :n], alone.arrays["entropy"], atol=1e-5
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_wrong_positions_are_found(tmp_path, monkeypatch, dtype):
    """Weights are large, so that attention is as uneven as that of a trained model."""
    folder = save_tiny("llama", tmp_path, initializer_range=0.3)
    loaded = load_checked(folder, device="cpu", dtype=dtype)
    assert loaded.facts["not_packed"] is None
    real = Packed.__init__

    def count_on(self, token_ids):
        real(self, token_ids)
        self.positions = torch.arange(len(self.ids))

    monkeypatch.setattr(Packed, "__init__", count_on)
    instrument.check_instrument(loaded)
    assert "has other rows where prompts are packed (instrument" in loaded.facts["not_packed"]


def test_the_analysis_says_that_prompts_are_computed_whole(tmp_path, monkeypatch, capsys):
    loaded = load_checked(save_tiny("llama", tmp_path / "llama"), device="cpu")
    loaded.facts["not_packed"] = "finds out positions itself"
    monkeypatch.setattr(instrument, "load_model", lambda *_: loaded)
    flags = ["--model_id", "tiny", "--prompts_per_category", "2", "--output_dir", str(tmp_path)]
    assert activation_analysis.main(flags) == 0
    assert "computed whole: this model finds out positions itself" in capsys.readouterr().out


def test_a_long_text_is_streamed_the_same_packed_or_padded(tmp_path):
    loaded = load_checked(save_tiny("llama", tmp_path), device="cpu")
    ids = [[(7 * i) % 90 + 3 for i in range(n)] for n in (700, 300)]
    found = {}
    for name, batch in (("packed", Packed(ids)), ("padded", pad_right(ids))):
        gathered = found[name] = []
        prompts = [tokenized_text(i, own) for i, own in enumerate(ids)]
        places = attention.places_of(prompts)
        masks.note_windows(loaded, 700)
        windows = masks.windows_of(loaded.facts)
        keep = recorder.LayerRecorder(
            windows, [700, 300], places, lambda _, arrays, own=gathered: own.append(arrays)
        )
        recorder.stream_layers(loaded, batch, keep)
    for own, expected in zip(found["packed"], found["padded"], strict=True):
        for name in ("entropy", "entropy_sinkfree", "sink_mass", "first_mass"):
            np.testing.assert_allclose(own[name], expected[name], atol=1e-5, err_msg=name)


def tokenized_text(i, ids):
    return TokenizedPrompt(f"text_{i}", "neutral", -1, "text", "", ids, [], (0, len(ids)))


@pytest.mark.parametrize("method", ["zero_out", "mean"])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_sweep_is_that_of_the_bridge(tmp_path, name, method):
    """Weights are ten times as large as usual, so that cutting a head changes what is said."""
    loaded = load_checked(save_tiny(name, tmp_path / name, initializer_range=0.2), device="cpu")
    tokenized = tokenize_prompts([*CROSSED, *ORIGINAL], loaded.tokenizer, PromptFormat("chat"))
    made = sweep.Sweep(loaded, tokenized, method, rows=50)
    assert made.batches.packed is not None
    for layer in range(loaded.n_layers):
        found = made.layer(layer)
        made.batches.packed, kept = None, made.batches.packed
        expected = made.layer(layer)
        made.batches.packed = kept
        assert expected["kl"].max() > 1e-3
        for metric, values in expected.items():
            np.testing.assert_allclose(found[metric], values, atol=1e-5, err_msg=metric)


def test_packed_heads_that_are_not_the_bridge_s_are_not_used(tmp_path, monkeypatch):
    loaded = load_checked(save_tiny("llama", tmp_path, initializer_range=0.2), device="cpu")
    tokenized = tokenize_prompts(ORIGINAL, loaded.tokenizer)
    run = packed_heads.PackedHeads.run

    def another_head(self, layer, prompts, heads, *rest):
        return run(self, layer, prompts, (np.asarray(heads) + 1) % 2, *rest)

    monkeypatch.setattr(packed_heads.PackedHeads, "run", another_head)
    assert sweep.Sweep(loaded, tokenized, "zero_out").batches.packed is None
    monkeypatch.setattr(packed_heads.PackedHeads, "run", run)
    assert sweep.Sweep(loaded, tokenized, "zero_out").batches.packed is not None


def test_a_mean_before_a_gate_is_not_the_bridge_s(tmp_path, monkeypatch):
    """Zero behind a gate is zero before it, so only the mean shows it."""
    loaded = load_checked(save_tiny("llama", tmp_path, initializer_range=0.2), device="cpu")
    tokenized = tokenize_prompts(ORIGINAL, loaded.tokenizer)
    edit = packed_heads.edit_own_head

    def gated(heads, factor=None, means=None):
        return edit(heads, factor, None if means is None else 0.5 * means)

    run = packed_heads.PackedHeads.run

    def run_gated(self, *given, **how):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(packed_heads, "edit_own_head", gated)
            return run(self, *given, **how)

    monkeypatch.setattr(packed_heads.PackedHeads, "run", run_gated)
    assert sweep.Sweep(loaded, tokenized, "zero_out").batches.packed is None


def test_rotary_angles_that_depend_on_the_batch_are_left_to_the_bridge(tmp_path):
    loaded = load_checked(save_config(OTHERS["llama_dynamic"](), tmp_path), device="cpu")
    tokenized = tokenize_prompts(ORIGINAL, loaded.tokenizer)
    assert sweep.Sweep(loaded, tokenized, "zero_out").batches.packed is None


def test_what_a_packed_pass_hands_on_is_gone_afterwards(tmp_path):
    loaded = load_checked(save_tiny("llama", tmp_path), device="cpu")
    tokenized = tokenize_prompts(ORIGINAL, loaded.tokenizer)
    before = attention.capture_patterns(loaded, tokenized).arrays["entropy"]
    made = sweep.Sweep(loaded, tokenized, "zero_out")
    made.layer(1)
    after = attention.capture_patterns(loaded, tokenized).arrays["entropy"]
    np.testing.assert_array_equal(after, before)
