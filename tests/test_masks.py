"""What a row sees comes from the model's masks; learned sinks, rotary sides and eager-only models.

Every expected value is made from the attention that the plain model returns for a text alone.
"""

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CodeGenConfig,
    GPTNeoConfig,
    GptOssConfig,
    Llama4TextConfig,
    LlamaConfig,
    Phi3Config,
)
from transformers.masking_utils import chunked_overlay, sliding_window_causal_mask_function

import activation_analysis
import output_manager
from rolecircuits.capture import masks, patterns
from rolecircuits.capture.attention import TURN_MASS, capture_patterns, capture_streaming
from rolecircuits.capture.tokens import TokenizedPrompt
from rolecircuits.drawing.head_figures import draw_token_attention
from rolecircuits.drawing.study import sink_note, study_run
from rolecircuits.inputs.errors import RunFailed, UserError
from rolecircuits.stats import entropy as entropies
from tiny_models import SHAPE, load_checked, save_config, save_tiny, two_turns

ORIGINAL = 24  # tokens after which the LongRoPE and dynamic models change their angles
SPREAD = {"initializer_range": 0.2}
SMALL = {"hidden_size": 32, "vocab_size": 49152, "bos_token_id": 1, "eos_token_id": 2}


def gpt_neo():
    return GPTNeoConfig(
        **SMALL | SPREAD,
        num_layers=4,
        num_heads=4,
        intermediate_size=48,
        max_position_embeddings=256,
        attention_types=[[["global", "local"], 2]],
        window_size=8,
    )


def codegen():
    shape = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256, "rotary_dim": 8}
    return CodeGenConfig(**{**SMALL, "hidden_size": 64} | SPREAD | shape)


def gpt_oss():
    return GptOssConfig(
        **SHAPE | {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1},
        sliding_window=8,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )


def llama4():
    return Llama4TextConfig(
        **SHAPE | {"num_hidden_layers": 4, "head_dim": 8, "intermediate_size_mlp": 48},
        num_local_experts=2,
        attention_chunk_size=8,
        no_rope_layers=[1, 1, 1, 0],
        layer_types=["chunked_attention"] * 3 + ["full_attention"],
    )


def longrope():
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4}
    rope |= {"long_factor": [8.0, 16.0, 32.0, 64.0], "original_max_position_embeddings": ORIGINAL}
    return Phi3Config(**SHAPE, original_max_position_embeddings=ORIGINAL, rope_parameters=rope)


def dynamic():
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    return LlamaConfig(**SHAPE | {"max_position_embeddings": ORIGINAL}, rope_parameters=rope)


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """A function (config's maker, dtype) -> LoadedModel; each is saved and loaded once."""
    folders, loaded = {}, {}

    def once(make, dtype="float32"):
        if make not in folders:
            folders[make] = save_config(make(), tmp_path_factory.mktemp(make.__name__))
        if (make, dtype) not in loaded:
            loaded[make, dtype] = load_checked(folders[make], dtype=dtype, device="cpu")
        return loaded[make, dtype]

    once.folders = folders
    return once


def texts(*lengths):
    """TokenizedPrompts of so many tokens, all different, with all segments."""
    ids = np.random.default_rng(0).integers(100, 40_000, size=(len(lengths), max(lengths)))
    segments = [0, *(1 + key % 5 for key in range(max(lengths) - 1))]
    return [
        TokenizedPrompt(
            *(f"t{i}", "neutral", -1, "t", "", ids[i, :n].tolist(), [], (0, n)),
            segments=tuple(segments[:n]),
        )
        for i, n in enumerate(lengths)
    ]


def model_rows(folder, prompt):
    """[layer, head, query, key] float64: what the plain model returns for one text, unpadded."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.inference_mode():
        out = model(torch.tensor([prompt.token_ids]), output_attentions=True)
    return torch.cat(out.attentions).double().numpy()


def entropy_of(rows):
    return -np.where(rows > 0, rows * np.log(np.where(rows > 0, rows, 1)), 0).sum(axis=-1)


def test_a_window_field_that_the_code_ignores_is_no_window(tmp_path):
    loaded = load_checked(save_tiny("llama", tmp_path, sliding_window=3))
    assert loaded.model.config.sliding_window == 3
    captured = capture_patterns(loaded, texts(20))
    assert loaded.facts["sliding_windows"] == [None] * 3
    assert (captured.arrays["visible_keys"] == np.arange(1, 21)).all()


@pytest.mark.parametrize("make", [gpt_neo, llama4])
def test_rows_see_what_the_model_s_rows_are_made_of(load, make):
    loaded, prompts = load(make), texts(30, 11)
    arrays = capture_patterns(loaded, prompts).arrays
    for i, prompt in enumerate(prompts):
        rows, n = model_rows(load.folders[make], prompt), len(prompt.token_ids)
        assert ((rows > 0).any(axis=1).sum(axis=-1) == arrays["visible_keys"][:, :n]).all()
        np.testing.assert_allclose(arrays["entropy"][i, ..., :n], entropy_of(rows), atol=1e-5)
    assert (arrays["visible_keys"] < np.arange(1, 31)).any(), "no layer has a window or chunks"


def test_windows_and_chunks_are_named(load):
    assert load(gpt_neo).facts["sliding_windows"] == [None, 8, None, 8]
    facts = load(llama4).facts
    assert facts["chunk_sizes"] == [8, 8, 8, None] and facts["sliding_windows"] == [None] * 4
    assert facts["masks_read_for_tokens"] == SHAPE["max_position_embeddings"]


def test_chunks_are_streamed_as_their_patterns_say(load):
    loaded, prompts = load(llama4), texts(30, 11, 9, 1)
    turns = two_turns(prompts)
    expected = capture_patterns(loaded, prompts, turns=turns).arrays
    found = capture_streaming(loaded, prompts, turns=turns).arrays
    for name in ("entropy", "entropy_sinkfree", "sink_mass", "first_mass", "last_mass", TURN_MASS):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5, err_msg=name)


@pytest.mark.parametrize("make", [gpt_neo, codegen])
def test_eager_only_models_are_not_streamed_and_that_is_said(load, make, tmp_path, capsys):
    loaded = load(make)
    assert loaded.facts["attention_read_by"] == "the softmax of its eager attention"
    with pytest.raises(UserError, match="runs its own eager attention.*--capture patterns"):
        capture_streaming(loaded, texts(9))


@pytest.mark.parametrize("make", [gpt_neo, codegen, gpt_oss])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_dtypes_take_the_softmax_in_float32(load, make, dtype):
    loaded, sums = load(make, dtype), []

    def on_layer(layer, pattern):
        sums.append(abs(pattern.astype(np.float64).sum(axis=-1) - 1).max())

    patterns.read_patterns(loaded, [p.token_ids for p in texts(20)], on_layer)
    assert len(sums) == loaded.n_layers and max(sums) < 1e-6


def test_a_learned_sink_is_a_key_of_its_own(load):
    loaded, prompts = load(gpt_oss), texts(30, 11)
    turns = two_turns(prompts)
    for arrays in (
        capture_patterns(loaded, prompts, turns=turns).arrays,
        capture_streaming(loaded, prompts, turns=turns).arrays,
    ):
        for i, prompt in enumerate(prompts):
            rows, n = model_rows(load.folders[gpt_oss], prompt), len(prompt.token_ids)
            sink = 1 - rows.sum(axis=-1)
            whole = entropy_of(np.concatenate([sink[..., None], rows], axis=-1))
            rest = entropy_of(rows / rows.sum(axis=-1, keepdims=True))
            np.testing.assert_allclose(arrays["sink_mass"][i, ..., :n], sink, atol=1e-5)
            np.testing.assert_allclose(arrays["entropy"][i, ..., :n], whole, atol=1e-5)
            np.testing.assert_allclose(
                arrays["entropy_sinkfree"][i, ..., 1:n], rest[..., 1:], atol=1e-5
            )
            seen = (rows > 0).any(axis=1).sum(axis=-1)
            assert (arrays["visible_keys"][:, :n] == seen + 1).all()
            for turn, (start, stop) in enumerate(turns[i]):
                found, own = arrays[TURN_MASS][i, :, :, turn], slice(start, stop)
                with_sink = (sink + rows[..., 0])[..., own].mean(axis=-1)
                np.testing.assert_allclose(found[..., 0], with_sink, atol=1e-5)
                np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-5)
            np.testing.assert_allclose(arrays["final_row"][i, ..., :n], rows[:, :, -1], atol=1e-3)
        assert sink.max() > 0.05 and np.isnan(arrays["entropy_sinkfree"][..., 0]).all()


def test_a_run_with_learned_sinks_is_read_again(load, tmp_path):
    load(gpt_oss)
    command = ["--model_id", load.folders[gpt_oss], "--prompts_per_category", "2"]
    assert activation_analysis.main([*command, "--output_dir", str(tmp_path)]) == 0
    run = output_manager.load_run(tmp_path / "latest_run")
    assert run.config["model"]["learned_sinks"] is True
    np.testing.assert_allclose(run.segment_mass.sum(axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(run.segment_uniform.sum(axis=-1), 1, atol=1e-6)
    keys = entropies.sinkfree_keys(run.visible_keys)
    assert (keys == run.visible_keys - 1).all()


@pytest.mark.parametrize("make", [longrope, dynamic])
@pytest.mark.parametrize("capture", [capture_patterns, capture_streaming])
def test_a_text_has_the_numbers_that_it_has_alone(load, make, capture):
    loaded = load(make)
    tokenizer = loaded.tokenizer
    object.__setattr__(tokenizer, "context", 256)  # beyond what dynamic angles were made for
    prompts = texts(20, ORIGINAL, ORIGINAL + 1, 40)
    together = capture(loaded, prompts).arrays
    for i, prompt in enumerate(prompts):
        n = len(prompt.token_ids)
        expected = entropy_of(model_rows(load.folders[make], prompt))
        np.testing.assert_allclose(together["entropy"][i, ..., :n], expected, atol=1e-5)
    for i in (0, 2):  # after the longest text, whose angles must not stay
        again = capture(loaded, prompts[i : i + 1]).arrays["entropy"][0]
        n = len(prompts[i].token_ids)
        np.testing.assert_allclose(again, together["entropy"][i, ..., :n], atol=1e-5)


def test_first_keys_of_long_texts_are_found_without_a_matrix():
    window = sliding_window_causal_mask_function(100)
    first = masks.first_of_rule(window, 5000)
    assert (first == np.maximum(np.arange(5000) - 99, 0)).all()
    assert masks.window_of(first) == (100, None)
    chunk = chunked_overlay(70, torch.zeros(1, dtype=torch.int64))
    causal = lambda b, h, q, k: chunk(b, h, q, k) & (k <= q)  # noqa: E731
    assert masks.window_of(masks.first_of_rule(causal, 500)) == (None, 70)
    assert masks.window_of(masks.first_of_rule(window, 80)) == (None, None)


def test_rows_that_see_more_than_one_stretch_are_refused():
    every_other = lambda b, h, q, k: (k <= q) & ((q - k) % 2 == 0)  # noqa: E731
    with pytest.raises(UserError, match="not one stretch"):
        masks.first_of_rule(every_other, 10)
    later = lambda b, h, q, k: k <= q + 1  # noqa: E731
    with pytest.raises(UserError, match="not one stretch"):
        masks.first_of_rule(later, 10)


def test_a_visible_key_that_all_heads_hide_stops_the_run(tmp_path):
    """As if the masks had been misread: counted as attention of 0 it would pass for focus."""
    loaded = load_checked(save_tiny("mistral", tmp_path))
    capture_patterns(loaded, texts(9))
    loaded.attention["first"] = np.zeros_like(loaded.attention["first"])
    with pytest.raises(RunFailed, match=r"layer 0: query row 3 hides key 0 in all heads"):
        capture_patterns(loaded, texts(9))


def test_figures_say_that_the_sink_is_learned(load, tmp_path):
    load(gpt_oss)
    command = ["--model_id", load.folders[gpt_oss], "--prompts_per_category", "2"]
    assert activation_analysis.main([*command, "--output_dir", str(tmp_path)]) == 0
    run = output_manager.load_run(tmp_path / "latest_run")
    assert "learned key" in sink_note(run)
    figure, _ = draw_token_attention(study_run(run, 200), "three")
    titles = [axes.get_title() for axes in figure.axes]
    assert "the learned sink" in titles
