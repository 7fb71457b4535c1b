"""One forward pass whose attention patterns are checked and reduced inside the hooks.

In bfloat16 and float16 the model rounds the softmax before hook_pattern, which moves entropies by
up to 0.045 nats, so there the pattern is the float32 softmax of hook_attn_scores.
"""

import contextlib
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from rolecircuits.capture.batches import pad_right
from rolecircuits.capture.prefix import shared_prefix
from rolecircuits.inputs.errors import RunFailed
from rolecircuits.stats import entropy
from rolecircuits.stats.masses import final_query_masses

ABOVE_DIAGONAL_TOLERANCE = 1e-6


class Resume(NamedTuple):
    """Where a forward pass starts: at block `layer`, with the residual `hidden` that enters it.

    hidden  [batch, query, unit]    as_tuple  the blocks of this architecture return a tuple
    """

    layer: int = 0
    hidden: Any = None
    as_tuple: bool = False


def pattern_hook_name(layer, dtype):
    """Where a layer's pattern is taken: after the softmax in float32, before it in short dtypes."""
    return f"blocks.{layer}.attn.{'hook_pattern' if dtype == 'float32' else 'hook_attn_scores'}"


def to_pattern(tensor, dtype):
    """What the hook received as a float32 numpy pattern [prompt, head, query, key]."""
    if dtype != "float32":
        tensor = torch.softmax(tensor.float(), dim=-1)
    return tensor.detach().to("cpu", torch.float32).numpy()


@contextlib.contextmanager
def skipped_blocks(bridge, resume):
    """Inside this context a forward pass starts where `resume` says.

    Blocks below are not executed: each hands the residual on. Everything else (masks, rotary
    angles, final norm, logit soft cap) stays the model's own code, so that nothing is rebuilt here.
    TransformerBridge's start_at_layer gives the same numbers but executes the blocks below.
    """

    def hand_on(*args, **kwargs):
        return (resume.hidden,) if resume.as_tuple else resume.hidden

    below = list(bridge.blocks[: resume.layer])
    own = [vars(block).get("forward") for block in below]  # accelerate keeps a wrapper here
    for block in below:
        # not setattr: a bridge passes attributes on to the module it wraps
        vars(block)["forward"] = hand_on
    try:
        yield
    finally:
        for block, forward in zip(below, own, strict=True):
            vars(block).pop("forward")
            if forward is not None:
                vars(block)["forward"] = forward


def run_layers(loaded, token_ids, on_layer, edits=(), want_logits=False, resume=None):
    """One forward pass of a right-padded batch; on_layer(layer, pattern) is called once per layer.

    token_ids  list of lists of int
    edits      (hook name, function) pairs that change activations; they are attached before
               anything that measures
    resume     a Resume: `on_layer` is called from its layer on
    returns    logits of each prompt's final token [prompt, vocabulary] float32 if want_logits; the
               projection to the vocabulary is computed for no other position
    raises     RunFailed if a hook fires more or less than once
    """
    bridge, dtype, resume = loaded.bridge, loaded.facts["dtype"], resume or Resume()
    ids, mask = pad_right(token_ids)
    final = torch.tensor([len(row) - 1 for row in token_ids])
    device = next(bridge.original_model.parameters()).device
    kept, column = kept_logits(bridge.original_model, final, ids.shape[1], device)
    fired = []

    def measure(tensor, hook, layer):
        fired.append(layer)
        on_layer(layer, to_pattern(tensor, dtype))

    layers = list(range(resume.layer, loaded.n_layers))
    hooks = [(pattern_hook_name(layer, dtype), partial(measure, layer=layer)) for layer in layers]
    # an edited pass is compared with an unedited one bit for bit, and both come with logits
    shares = not (edits or want_logits)
    once = shared_prefix(bridge.original_model, token_ids if shares else token_ids[:1])
    with torch.inference_mode(), skipped_blocks(bridge, resume), once:
        logits = bridge.run_with_hooks(
            ids.to(device),
            attention_mask=mask.to(device),
            fwd_hooks=[*edits, *hooks],
            logits_to_keep=kept if want_logits else 1,
        )
    if fired != layers:
        wrong = next((layer for layer in layers if fired.count(layer) != 1), -1)
        raise RunFailed(
            f"the attention hook of layer {wrong} fired {fired.count(wrong)} times, not once"
        )
    if not want_logits:
        return None
    return logits[torch.arange(len(final)), column.to(logits.device)].float()


def kept_logits(model, final, width, device):
    """(what the model is told to keep, the column of each prompt's final token [prompt] in it).

    One device: the final positions themselves. Several: a number of last positions, which takes a
    few more columns, because an index tensor would have to lie on the device of the last layer.
    """
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        count = width - int(final.min())
        return count, final - (width - count)
    kept, column = torch.unique(final, return_inverse=True)
    return kept.to(device), column


def collect_patterns(loaded, token_ids, edits=()):
    """(patterns, final logits) of one batch: patterns[layer] is [prompt, head, query, key]."""
    patterns = {}
    logits = run_layers(loaded, token_ids, patterns.__setitem__, edits, want_logits=True)
    return patterns, logits


def check_patterns(pattern, n_tokens, layer, facts, tolerance=entropy.ROW_SUM_TOLERANCE):
    """Stop with layer and head unless every real row is a distribution over keys it may see.

    pattern  [prompt, head, query, key]    n_tokens  [prompt]
    facts    needs n_heads and sliding_windows
    """
    n_tokens = np.asarray(n_tokens)
    if pattern.ndim != 4 or pattern.shape[:2] != (len(n_tokens), facts["n_heads"]):
        raise RunFailed(
            f"layer {layer}: pattern has shape {pattern.shape}, expected {facts['n_heads']} heads"
        )
    query, key = np.arange(pattern.shape[2]), np.arange(pattern.shape[3])
    real = (query < n_tokens[:, None])[:, None, :]
    window = facts["sliding_windows"][layer]
    allowed = key[None, :] <= query[:, None]
    if window is not None:
        allowed &= key[None, :] > query[:, None] - window
    hidden = np.where(allowed, 0.0, pattern).sum(axis=-1)
    for what, wrong in (
        ("is NaN or infinite", ~np.isfinite(pattern).all(axis=-1)),
        ("does not sum to 1", ~(np.abs(pattern.sum(axis=-1) - 1) <= tolerance)),
        ("attends to keys it cannot see", hidden > ABOVE_DIAGONAL_TOLERANCE),
    ):
        if (wrong & real).any():
            prompt, head, row = np.argwhere(wrong & real)[0]
            total = pattern[prompt, head, row].sum()
            raise RunFailed(
                f"layer {layer} head {head}: query row {row} {what} (sum {total:.6g}); nothing was "
                "saved"
            )


def reduce_pattern(pattern, n_tokens, places, visible, shared=0):
    """The arrays of one layer of one batch; rows beyond a prompt's tokens are NaN.

    pattern [prompt, head, query, key]    n_tokens [prompt]    places  Places of the prompts
    visible [query] keys a row can see    shared  first rows that are equal in all prompts
    returns entropy, entropy_sinkfree, sink_mass [prompt, head, query], `final_query_masses`
    """
    n_prompts, n_heads, n_query, _ = pattern.shape
    real = np.arange(n_query) < n_tokens[:, None]
    real[1:, :shared] = False  # those of the first prompt are copied
    rows = pattern.transpose(0, 2, 1, 3)[real]  # [row, head, key]
    few = (entropy.sinkfree_keys(visible) < 2)[np.nonzero(real)[1]]
    sinkfree = np.full(rows.shape[:2], np.nan)
    sinkfree[~few] = entropy.sinkfree_entropy(rows[~few])
    arrays = {}
    for name, values in (
        ("entropy", entropy.attention_entropy(rows)),
        ("entropy_sinkfree", sinkfree),
        ("sink_mass", rows[..., 0]),
    ):
        full = np.full((n_prompts, n_query, n_heads), np.nan, dtype=np.float32)
        full[real] = values
        full[1:, :shared] = full[0, :shared]
        arrays[name] = full.transpose(0, 2, 1)
    final = pattern[np.arange(n_prompts), :, n_tokens - 1]
    return arrays | final_query_masses(final, places)
