"""The arithmetic of docs/SCALE.md: its tables are those the formulas give, the formulas count real
models right, and model_families.json states what they give."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Qwen2Config,
)

from rolecircuits.capture.attention import empty_arrays
from rolecircuits.capture.tokens import TokenizedPrompt
from rolecircuits.models.architecture import model_shape
from rolecircuits.models.families import load_families
from rolecircuits.models.load import LoadedModel
from rolecircuits.models.source import bundled_folder
from rolecircuits.runs.arrays import ARRAYS

PROJECT = Path(__file__).resolve().parent.parent
LABELS = ("category", "prompt_id", "pair_id", "n_tokens", "span", "edge_tokens", "visible_keys")
LABELS += ("frame", "filler", "slot", "segment")
# The config of each family's models, and the parameters that their makers state, in millions.
FAMILIES = {
    "demo": (LlamaConfig, 134.5),
    "smollm2": (LlamaConfig, 134.5),
    "smollm2-360m": (LlamaConfig, 361.8),
    "gemma-270m": (Gemma3TextConfig, 268.1),
    "qwen-0.5b": (Qwen2Config, 494.0),
    "llama-1b": (LlamaConfig, 1235.8),
    "pythia-1.4b": (GPTNeoXConfig, 1414.6),
    "olmo-1b": (Olmo2Config, 1484.9),
    "mistral": (MistralConfig, 7241.7),
    "qwen": (Qwen2Config, 7615.6),
    "llama": (LlamaConfig, 8030.3),
}


@pytest.fixture(scope="module")
def scale():
    spec = importlib.util.spec_from_file_location("scale", PROJECT / "benchmarks" / "scale.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_what_the_script_prints(scale):
    lines = (PROJECT / "docs" / "SCALE.md").read_text(encoding="utf-8").splitlines()
    expected = [*scale.model_rows(), *scale.prompt_rows(8), *scale.prompt_rows(40)]
    assert [line for line in lines if line.startswith(("| 8B", "| 70B", "| 405B"))] == expected


def test_the_numbers_in_the_text(scale):
    text = (PROJECT / "docs" / "SCALE.md").read_text(encoding="utf-8").replace("\n", " ")
    assert "| attention.npz | `N(14LHT + 44LH + 28L)` |" in text
    unit = scale.Shape("", 1, 1, 1, 1, 1, 1, 1)
    assert scale.arrays(unit, 1000) == 14 * 1000 + 44 + 28
    _, middle, large = scale.SHAPES
    spare = 2 * 80 - scale.weights(middle) / scale.GB
    rest = round(scale.weights(large) / scale.GB) - 8 * 80 * scale.USED
    assert f"with {spare:.0f} GB to spare" in text
    assert f"812 - 576 = {rest:.0f} GB a pass, {rest / 5:.0f} s from a disk of 5 GB/s" in text
    assert f"patterns of {scale.patterns(middle, 4096) / scale.GB:.0f} GB on 70B" in text
    assert f"{120 * scale.arrays(middle, 40) / scale.GB:.3g} GB an intervention for 70B" in text


def test_the_formulas_count_a_real_model(scale):
    shape = scale.Shape("tiny", L=3, H=4, K=2, h=8, d=32, f=48, V=100)
    config = LlamaConfig(
        vocab_size=shape.V,
        hidden_size=shape.d,
        intermediate_size=shape.f,
        num_hidden_layers=shape.L,
        num_attention_heads=shape.H,
        num_key_value_heads=shape.K,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == scale.parameters(shape)
    prompt = TokenizedPrompt("p", "neutral", -1, "x", "x", [1] * 5, ["x"] * 5, (1, 5))
    masks = {"way": "interface", "sinks": [False] * shape.L, "not_streamed": None}
    masks |= {"first": np.zeros((shape.L, 5), int)}
    facts = {"n_layers": shape.L, "n_heads": shape.H}
    arrays = empty_arrays([prompt], LoadedModel(model, None, facts, masks))
    assert set(arrays) == set(ARRAYS)
    assert sum(a.nbytes for name, a in arrays.items() if name not in LABELS) == scale.arrays(
        shape, 5
    )


def test_families_state_what_the_arithmetic_gives(scale):
    stated = {name: family["cost"] for name, family in load_families(scale.FAMILIES_FILE).items()}
    assert stated == scale.family_rows() and set(stated) == set(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_shape_of_a_family_counts_its_parameters(scale, name):
    """Against the class of its config, biases and further norms included, and what is published."""
    family = load_families(scale.FAMILIES_FILE)[name]["shape"]
    shape, (kind, millions) = scale.Shape(name, **family), FAMILIES[name]
    config = kind(
        vocab_size=shape.V,
        hidden_size=shape.d,
        intermediate_size=shape.f,
        num_hidden_layers=shape.L,
        num_attention_heads=shape.H,
        num_key_value_heads=shape.K,
        head_dim=shape.h,
        tie_word_embeddings=shape.tied,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    counted = sum(p.numel() for p in model.parameters())
    assert abs(scale.parameters(shape) / counted - 1) < 1e-3
    assert abs(counted / (millions * 1e6) - 1) < 1e-3
    layers = sum(p.numel() for n, p in model.named_parameters() if ".layers." in n)
    assert abs(scale.layers(shape) / layers - 1) < 1e-3


def test_the_shape_of_the_bundled_model_is_that_of_its_config(scale):
    config = AutoConfig.from_pretrained(bundled_folder())
    own, shape = load_families(scale.FAMILIES_FILE)["demo"]["shape"], model_shape(config)
    assert (own["L"], own["H"], own["K"]) == (shape.n_layers, shape.n_heads, shape.n_kv_heads)
    assert (own["d"], own["f"], own["V"], own["tied"]) == (
        config.hidden_size,
        config.intermediate_size,
        config.vocab_size,
        config.tie_word_embeddings,
    )


def test_the_cost_of_a_family_by_hand(scale):
    """One layer, one head, all widths 1: what stands beside libraries and fixed time is counted."""
    unit, sets = scale.Shape("", 1, 1, 1, 1, 1, 1, 1), {"crossed": 25}
    n, held_out, tokens = 100, 50, 100 * (8 + 40) + 3 * 50 * 8
    layer = 2 + 2 + 3 + 2
    assert scale.parameters(unit) == 2 + layer + 1 and scale.layers(unit) == layer
    tied = scale.Shape("", 1, 1, 1, 1, 1, 1, 1, tied=True, gated=False)
    assert scale.parameters(tied) == 1 + layer - 1 + 1
    work = 4 * 64 * 40 * 3 + 8 * 64 * 40**2
    assert scale.activations(unit, 64, 40, 4) == work
    bytes_ = 4 * 12 + work + n * (14 * 40 + 44 + 28) + 12 * held_out
    cost = scale.family_cost(unit, sets)
    assert cost["peak_gb"] == scale.two_digits((scale.LIBRARIES + bytes_) / 1e9)
    seconds = scale.FIXED + 2 * layer * tokens / scale.SPEED
    assert cost["minutes"] == scale.two_digits(seconds / 60)
    large = scale.Shape("", 1, 1, 1, 1, 10**9, 1, 1)
    cost = scale.family_cost(large, sets)
    bytes_ = 4 * 12 * 10**9 + 4 * 64 * 40 * 10**9
    assert cost["peak_gb"] == scale.two_digits((scale.LIBRARIES + bytes_) / 1e9)
    seconds = scale.FIXED + 2 * layer * 10**9 * tokens / scale.SPEED
    assert cost["minutes"] == scale.two_digits(seconds / 60)
    assert [scale.two_digits(v) for v in (0.267, 9.96, 11.4, 903)] == [0.27, 10, 11, 900]
