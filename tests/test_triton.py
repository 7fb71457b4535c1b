"""The CUDA kernel: its numbers, by Triton's interpreter where there is no card; its code compiled.

The interpreter multiplies bfloat16 as integers (triton 3.7): float16 stands for the short dtypes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton has wheels for Linux on x86-64 only")

from rolecircuits.capture import streaming, triton_kernel
from rolecircuits.capture.attention import TURN_MASS, capture_patterns, capture_streaming
from rolecircuits.capture.recorder import keys_seen
from rolecircuits.capture.streaming import (
    MEASURED_ROWS,
    Scoring,
    chunked_output,
    chunked_rest,
    join_sink,
    sink_scores,
)
from rolecircuits.capture.tokens import tokenize_prompts
from rolecircuits.inputs.categories import Prompt
from tiny_models import WINDOW, load_checked, save_tiny, two_turns

# bytes that a block may have: on consumer cards of compute capability 8.6 and 8.9, on an H100
SHARED = {80: 99 * 1024, 90: 227 * 1024}


# Without a card the interpreter runs the kernel. On one, float32 products are three of TF32.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ATOL = 2e-5 if DEVICE == "cuda" else 5e-6


def tensors(n_rows, heads, kv_heads, widths, dtype, sink):
    """Queries, keys and values as a model hands them over: transposed views, key 0 favoured."""
    generator, (width, value_width) = torch.Generator().manual_seed(0), widths
    shapes = ((heads, width), (kv_heads, width), (kv_heads, value_width))
    query, key, value = (
        torch.randn(2, n_rows, *shape, generator=generator).to(DEVICE, dtype).transpose(1, 2)
        for shape in shapes
    )
    key[:, :, 0] += sink * query[:, :1].float().mean(dim=2).sign().to(dtype)
    return query, key, value


def assert_rows(found, query, key, how, atol):
    """The kernel's rows [3, prompt, head, query] are those of blocks of scores."""
    parts = (sink_scores(query, key, how), *chunked_rest(query, key, how))
    parts = [part.cpu().numpy() for part in parts]
    expected = join_sink(*parts, keys_seen(query.shape[2], how))
    for name, values in zip(MEASURED_ROWS, found.numpy(), strict=True):
        np.testing.assert_allclose(values, expected[name], atol=atol, rtol=0, err_msg=name)


@pytest.mark.parametrize(
    ("shape", "window", "softcap", "dtype", "sink"),
    [  # shape: rows, heads, key heads, (width of keys, of values)
        ((37, 4, 2, (8, 8)), None, None, torch.float32, 0.0),
        ((1, 2, 1, (16, 16)), None, None, torch.float32, 0.0),
        ((130, 4, 2, (16, 12)), 5, None, torch.float32, 0.0),
        ((130, 2, 1, (24, 24)), 70, None, torch.float32, 2.0),
        ((70, 2, 1, (64, 64)), 1, None, torch.float32, 0.0),
        ((70, 2, 1, (64, 64)), None, 3.0, torch.float32, 0.0),
        ((130, 4, 1, (128, 128)), None, None, torch.float32, 8.0),
        ((130, 2, 1, (64, 64)), 40, None, torch.float16, 2.0),
    ],
)
def test_the_kernel_equals_blocks_of_scores(shape, window, softcap, dtype, sink):
    query, key, value = tensors(*shape, dtype, sink)
    how = Scoring(shape[3][0] ** -0.5, window, softcap)
    out, rows = triton_kernel.rows_and_output(query, key, value, how.scale, window, softcap)
    assert_rows(rows.cpu(), query, key, how, ATOL)
    whole = chunked_output(query.float(), key.float(), value.float(), how)
    assert out.dtype == dtype
    torch.testing.assert_close(
        out.float(), whole, atol=ATOL if dtype == torch.float32 else 2e-3, rtol=0
    )


@pytest.mark.parametrize("item_size", [2, 4])
@pytest.mark.parametrize("n_rows", [33, 300])
@pytest.mark.parametrize("window", [None, 70])
def test_every_tile_gives_the_same_rows(item_size, n_rows, window, monkeypatch):
    """The tiles of short dtypes and of large cards, here with float32."""
    tile = triton_kernel.tile_of(64, item_size, True, n_rows)
    monkeypatch.setattr(triton_kernel, "choose_tile", lambda *_: tile)
    query, key, value = tensors(n_rows, 2, 1, (64, 64), torch.float32, 2.0)
    how = Scoring(0.125, window)
    out, rows = triton_kernel.rows_and_output(query, key, value, how.scale, window)
    assert_rows(rows.cpu(), query, key, how, ATOL)
    whole = chunked_output(query, key, value, how)
    torch.testing.assert_close(out, whole, atol=ATOL, rtol=0)


@pytest.mark.parametrize("name", ["mistral", "gemma2"])
def test_a_model_is_captured_through_the_kernel(name, tmp_path, monkeypatch):
    tiny = load_checked(save_tiny(name, tmp_path), device=DEVICE)
    words = "the tower by the river is older than the town".split() * 4
    texts = [" ".join(words[:count]) for count in (3 * WINDOW, 2, 9)]
    tokenized = tokenize_prompts(
        [Prompt(f"p{i}", "neutral", -1, t) for i, t in enumerate(texts)], tiny.tokenizer
    )
    turns = two_turns(tokenized)
    expected = capture_patterns(tiny, tokenized, turns=turns).arrays
    used = []
    monkeypatch.setattr(
        streaming, "cuda_kernel", lambda *parts: used.append(parts) or triton_kernel
    )
    found = capture_streaming(tiny, tokenized, turns=turns).arrays
    assert used
    for row in (*MEASURED_ROWS, TURN_MASS):
        torch.testing.assert_close(
            torch.from_numpy(found[row]),
            torch.from_numpy(expected[row]),
            atol=2 * ATOL,
            rtol=0,
            equal_nan=True,
        )


@pytest.mark.parametrize(
    ("dtype", "width", "capability"),
    [("bf16", 128, 90), ("bf16", 256, 90), ("bf16", 64, 80), ("fp32", 128, 80)],
)
def test_the_kernel_compiles_to_tensor_cores_within_shared_memory(
    dtype, width, capability, tmp_path
):
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    script = Path(__file__).with_name("compile_kernel.py")
    command = [sys.executable, script, dtype, str(width), str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    made = json.loads(done.stdout)
    assert made["tensor_cores"]
    assert made["shared"] <= SHARED[capability]
