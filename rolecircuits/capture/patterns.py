"""Attention patterns of one layer, checked and reduced to the arrays of a run.

The pattern is the float32 softmax of the model's own scores, whatever dtype it runs in: rounded to
bfloat16 a softmax moves entropies by up to 0.045 nats. Where heads have learned sinks (gpt-oss), a
row is over the sink and the keys: the sink is the first key of the row, ahead of the tokens.
Axes: prompt, head, query, key.
"""

import contextlib

import numpy as np
import torch

from rolecircuits.capture.batches import pad_right
from rolecircuits.capture.masks import first_keys, hidden_keys, joined, read_scores, why_not_packed
from rolecircuits.capture.packed import Packed
from rolecircuits.capture.prefix import shared_prefix
from rolecircuits.inputs.errors import RunFailed
from rolecircuits.stats import entropy
from rolecircuits.stats.masses import masses_beside_sink, segment_rows, turn_masses

ABOVE_DIAGONAL_TOLERANCE = 1e-6


def read_patterns(loaded, token_ids, on_layer, whole=False):
    """One pass of a right-padded batch; on_layer(layer, pattern) is called once a layer, in order.

    token_ids  list of lists of int    whole  never packed
    pattern    [prompt, head, query, key] float32 numpy; with learned sinks one more key, the first
    raises     RunFailed where a layer hides other keys than `masks.first_keys` says
    """
    n_tokens = [len(row) for row in token_ids]
    first = first_keys(loaded, max(n_tokens))

    def read(layer, scores):
        check_hidden(hidden_keys(scores).cpu().numpy(), n_tokens, first[layer], layer)

    def read_rows(layer, rows):
        on_layer(layer, joined(rows).detach().to("cpu", torch.float32).numpy())

    with batch_of(loaded, token_ids, whole) as batch:
        read_scores(loaded, batch, read, read_rows)


@contextlib.contextmanager
def batch_of(loaded, token_ids, whole=False):
    """What a pass is fed: packed where the model allows it, else right-padded (ids, mask), with
    common beginnings computed once by linear layers inside the block.

    whole  never packed
    """
    if not whole and why_not_packed(loaded) is None:
        yield Packed(token_ids)
        return
    with shared_prefix(loaded.model, token_ids):
        yield pad_right(token_ids)


def check_hidden(hidden, n_tokens, first, layer):
    """Stop unless the real rows of a layer see exactly the keys that its masks were read to show.

    hidden  [prompt, query, key] bool    first  [query] the first key that a row sees
    A key that a row is thought to see, and that all heads hide, would count as attention of 0.
    """
    query, key = np.arange(hidden.shape[1]), np.arange(hidden.shape[2])
    allowed = (key <= query[:, None]) & (key >= first[:, None])
    real = (query < np.asarray(n_tokens)[:, None])[:, :, None]
    if (wrong := (hidden == allowed) & real).any():
        prompt, row, at = np.argwhere(wrong)[0]
        does = "hides" if hidden[prompt, row, at] else "shows"
        raise RunFailed(
            f"layer {layer}: query row {row} {does} key {at} in all heads, which its mask did not "
            "say; nothing was saved"
        )


def check_patterns(pattern, n_tokens, layer, visible, n_heads):
    """Stop with layer and head unless every real row is a distribution over keys it may see.

    pattern  [prompt, head, query, key]    n_tokens  [prompt]
    visible  [query] keys that a row of this layer sees: the last ones up to its own
    """
    n_tokens, tolerance = np.asarray(n_tokens), entropy.ROW_SUM_TOLERANCE
    if pattern.ndim != 4 or pattern.shape[:2] != (len(n_tokens), n_heads):
        raise RunFailed(
            f"layer {layer}: pattern has shape {pattern.shape}, expected {n_heads} heads"
        )
    query, sinks = np.arange(pattern.shape[2]), pattern.shape[3] - pattern.shape[2]
    real = (query < n_tokens[:, None])[:, None, :]
    key, first = np.arange(pattern.shape[3]) - sinks, query + 1 - (visible - sinks)
    allowed = (key <= query[:, None]) & ((key >= first[:, None]) | (key < 0))
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


def reduce_pattern(pattern, n_tokens, places, visible, packed=None):
    """The arrays of one layer of one batch; rows beyond a prompt's tokens are NaN.

    pattern [prompt, head, query, key], a learned sink ahead of the keys    n_tokens [prompt]
    places  Places of the prompts    visible [query] keys a row can see
    packed  the Packed of the batch where rows behind the same tokens are equal: one is reduced
    returns entropy, entropy_sinkfree, sink_mass [prompt, head, query], `final_query_masses`, and
            with turns turn_mass [prompt, head, turn, segment]
    """
    n_prompts, n_heads, n_query, n_key = pattern.shape
    beyond = np.arange(n_query) >= n_tokens[:, None]
    first = np.flatnonzero(~beyond) if packed is None else packed.first.numpy()
    prompt, query = np.divmod(first, n_query)
    rows = pattern[prompt, :, query]  # [row, head, key]
    few = entropy.sinkfree_keys(visible)[query] < 2
    sinkfree = np.full(rows.shape[:2], np.nan)
    sinkfree[~few] = entropy.sinkfree_entropy(rows[~few])
    arrays = {}
    for name, values in (
        ("entropy", entropy.attention_entropy(rows)),
        ("entropy_sinkfree", sinkfree),
        ("sink_mass", rows[..., 0]),
    ):
        full = np.full((beyond.size, n_heads), np.nan, dtype=np.float32)
        full[first] = values
        if packed is not None:
            full = full[first[packed.copies.numpy()]]
        full = full.reshape(n_prompts, n_query, n_heads)
        full[beyond] = np.nan
        arrays[name] = full.transpose(0, 2, 1)
    if places.turns is not None:
        arrays["turn_mass"] = turn_masses(segment_rows(pattern, places.segment), places.turns)
    final = pattern[np.arange(n_prompts), :, n_tokens - 1]
    return arrays | masses_beside_sink(final, places, n_key > n_query)
