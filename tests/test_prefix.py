"""What all prompts of a batch begin with is computed once, and nothing changes."""

import contextlib

import numpy as np
import pytest
import torch

from rolecircuits.capture import attention, patterns
from rolecircuits.capture.prefix import common_prefix, shared_prefix, shared_tokens
from rolecircuits.capture.tokens import tokenize_prompts
from rolecircuits.edits import passes
from rolecircuits.inputs.prompt_sets import built_in_prompts, cut_prompts
from rolecircuits.inputs.specs import PromptFormat
from tiny_models import CONFIGS, load_checked, save_tiny

CROSSED = cut_prompts(built_in_prompts("crossed"), 6)


@pytest.mark.parametrize(
    ("rows", "n"),
    [
        ([[1, 2, 3], [1, 2, 4]], 2),
        ([[1, 2], [1, 2, 0, 0]], 2),  # padding with 0 is no token of the first prompt
        ([[5], [6]], 0),
        ([[1, 2], [1, 2]], 2),
        ([[7, 8, 9]], 3),
    ],
)
def test_the_common_prefix_by_hand(rows, n):
    assert common_prefix(rows) == n


@pytest.mark.parametrize("name", list(CONFIGS))
def test_arrays_and_patterns_are_those_of_the_whole_pass(tmp_path, monkeypatch, name):
    loaded = load_checked(save_tiny(name, tmp_path / name), device="cpu")
    tokenized = tokenize_prompts(CROSSED, loaded.tokenizer, PromptFormat("chat"))
    ids = [prompt.token_ids for prompt in tokenized]
    assert common_prefix(ids) > 15, "a chat template begins alike"
    loaded.attention["not_packed"] = "is tested"
    found = attention.capture_patterns(loaded, tokenized, keep_patterns=True)
    monkeypatch.setattr(patterns, "shared_prefix", lambda *given: contextlib.nullcontext())
    whole = attention.capture_patterns(loaded, tokenized, keep_patterns=True)
    for key, expected in whole.arrays.items():
        if expected.dtype.kind == "f":
            np.testing.assert_allclose(found.arrays[key], expected, atol=2e-6, err_msg=key)
    for layer, expected in whole.patterns.items():
        np.testing.assert_allclose(found.patterns[layer], expected, atol=2e-6)


def test_linear_layers_get_each_shared_token_once_and_are_as_before_afterwards(tmp_path):
    loaded = load_checked(save_tiny("llama", tmp_path), device="cpu")
    model, rows, seen = loaded.model, [[1, 2, 3, 4], [1, 2, 3, 5, 6]], []
    linear = next(part for part in model.modules() if type(part) is torch.nn.Linear)
    hidden = torch.randn(2, 5, linear.in_features)
    hidden[1, :3] = hidden[0, :3]
    plain, forward = linear(hidden), linear.forward
    wrapped = lambda values: seen.append(values.shape) or forward(values)  # noqa: E731
    linear.forward = wrapped
    with shared_prefix(model, rows):
        torch.testing.assert_close(linear(hidden), plain)
    assert seen == [(3 + 2 * 2, linear.in_features)]
    with pytest.raises(RuntimeError, match="inside"), shared_prefix(model, rows):
        raise RuntimeError("inside")
    assert linear.forward is wrapped
    linears = [part for part in model.modules() if type(part) is torch.nn.Linear]
    assert [part for part in linears if "forward" in vars(part)] == [linear]


def test_rows_of_one_owner_share_what_they_begin_with_alike(tmp_path):
    """Not with rows of another owner, whose edit is another, nor after the first other token."""
    loaded = load_checked(save_tiny("llama", tmp_path), device="cpu")
    model, rows, seen = loaded.model, [[1, 2, 3], [1, 2, 4], [1, 5, 3]] * 2, []
    linear = next(part for part in model.modules() if type(part) is torch.nn.Linear)
    hidden = torch.randn(6, 3, linear.in_features)
    for first in (0, 3):  # alike where tokens and owner are; nowhere else
        hidden[first + 1, :2] = hidden[first, :2]
        hidden[first + 2, 0] = hidden[first, 0]
    plain, forward = linear(hidden), linear.forward
    linear.forward = lambda values: seen.append(len(values)) or forward(values)
    with shared_tokens(model, rows, [7, 7, 7, 0, 0, 0]):
        torch.testing.assert_close(linear(hidden), plain)
        linear(hidden[:, :1])  # another shape, as the logits of the final token have: left alone
    assert seen == [2 * (9 - 3), 6]


def test_edits_are_never_shared(tmp_path, monkeypatch):
    """An edit may treat prompts differently, and is compared with a clean pass: both run whole."""
    loaded = load_checked(save_tiny("llama", tmp_path), device="cpu")
    loaded.attention["not_packed"] = "is tested"
    tokenized = tokenize_prompts(CROSSED, loaded.tokenizer, PromptFormat("chat"))
    used, n = [], len(tokenized)
    monkeypatch.setattr(
        patterns,
        "shared_prefix",
        lambda model, ids: used.append(len(ids)) or contextlib.nullcontext(),
    )

    def cut_first_prompt(z, hook):
        z = z.clone()
        z[0] = 0
        return z

    edits = [("blocks.0.attn.hook_z", cut_first_prompt)]
    passes.capture_edited(loaded, tokenized, lambda batch: edits)
    passes.capture_edited(loaded, tokenized, lambda batch: [])
    attention.capture_patterns(loaded, tokenized)
    assert used == [n]
