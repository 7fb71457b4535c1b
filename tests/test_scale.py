"""The arithmetic of docs/SCALE.md: its tables are those the formulas give, and the formulas count a
real model right."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from rolecircuits.capture.attention import empty_arrays
from rolecircuits.capture.tokens import TokenizedPrompt
from rolecircuits.models.load import LoadedModel
from rolecircuits.runs.arrays import ARRAYS

PROJECT = Path(__file__).resolve().parent.parent
LABELS = ("category", "prompt_id", "pair_id", "n_tokens", "span", "edge_tokens", "visible_keys")
LABELS += ("frame", "filler", "slot", "segment")


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
