"""Run prompts through a model and reduce every attention pattern to arrays, layer by layer, inside the hook.

    tokenise (raw text or chat template) -> batches of similar length, padded right, always with the attention mask
    -> one forward pass a batch -> entropies, sink mass, final-query masses; patterns themselves only if asked for

Right padding with a mask gives patterns identical to unpadded prompts; left padding without a mask is silently wrong.
In bfloat16 and float16 the model rounds the softmax before hook_pattern, which moves entropies by up to 0.045 nats, so
there the pattern is the float32 softmax of hook_attn_scores.

Axes: prompt, layer, head, query, key.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from rolecircuits.capture.batches import is_out_of_memory, make_batches, pad_right
from rolecircuits.capture.patterns import check_patterns, reduce_pattern, run_layers
from rolecircuits.capture.streaming import stream_layers
from rolecircuits.inputs.errors import UserError
from rolecircuits.stats import entropy

AUTO_TOKENS = 512
PATTERN_COPIES = 4  # scores, softmax, float32 copy and its logarithm live at once


def choose_capture(capture, raw, tokenized, facts, batch_size):
    """What to do: ("patterns" or "streaming", the --raw that goes with it, a line that says why auto chose streaming or None)."""
    import psutil

    if capture != "auto":
        return capture, raw or ("none" if capture == "streaming" else "patterns"), None
    if raw not in (None, "none"):
        return (
            "patterns",
            raw,
            None,
        )  # they were asked for; check_pattern_memory refuses what does not fit
    longest, free = max(len(p.token_ids) for p in tokenized), psutil.virtual_memory().available
    at_once = PATTERN_COPIES * min(batch_size, len(tokenized)) * facts["n_heads"] * longest**2 * 4
    kept = (
        0
        if raw == "none"
        else len(tokenized) * facts["n_layers"] * facts["n_heads"] * longest**2 * 4
    )
    lost = "" if raw == "none" else "; patterns are not saved"
    if longest > AUTO_TOKENS:
        return (
            "streaming",
            "none",
            f"capture: streaming, a prompt has {longest} tokens (more than {AUTO_TOKENS}){lost}",
        )
    if max(at_once, kept) > free / 2:
        size = max(at_once, kept) / 2**30
        why = f"patterns would take {size:.1f} GiB, {free / 2**30:.1f} GiB are free"
        return "streaming", "none", f"capture: streaming, {why}{lost}"
    return "patterns", raw or "patterns", None


def empty_arrays(tokenized, facts, n_query):
    """The arrays of attention.npz before anything is measured: NaN or 0 everywhere, labels and lengths filled in."""
    n, layers, heads = len(tokenized), facts["n_layers"], facts["n_heads"]
    rows, masses = (n, layers, heads, n_query), (n, layers, heads)
    return {
        "category": np.array([p.category for p in tokenized]),
        "prompt_id": np.array([p.id for p in tokenized]),
        "pair_id": np.array([p.pair_id for p in tokenized], dtype=np.int64),
        "n_tokens": np.array([len(p.token_ids) for p in tokenized], dtype=np.int64),
        "span": np.array([p.span for p in tokenized], dtype=np.int64).reshape(n, 2),
        "entropy": np.full(rows, np.nan, np.float32),
        "entropy_sinkfree": np.full(rows, np.nan, np.float32),
        "sink_mass": np.full(rows, np.nan, np.float32),
        "visible_keys": entropy.visible_keys(n_query, facts["sliding_windows"]).astype(np.int64),
        "first_mass": np.zeros(masses, np.float32),
        "last_mass": np.zeros(masses, np.float32),
        "edge_mass": np.zeros((*masses, 2), np.float32),
        "edge_tokens": np.zeros(n, np.int64),
    }


@dataclass
class Capture:
    """What a pass over all prompts gave, in the order of the prompt axis; prompts that failed are not in it.

    arrays    the arrays of attention.npz                    patterns  {layer: [prompt, head, query, key]}, {} unless kept
    logits    [prompt, vocabulary] float32 or None           failed    [(prompt id, reason)]
    batch_size  prompts that a forward pass may hold: as given, or what the last halving left
    """

    arrays: dict
    patterns: dict
    logits: np.ndarray
    failed: list
    batch_size: int | None = None


@dataclass
class CleanRun:
    """What an edited pass needs of the unedited one in order to start at the layer that it edits.

    arrays  as in Capture    residuals  {layer: [prompt, query, unit] on the model's device}    as_tuple  see skipped_blocks
    """

    arrays: dict
    residuals: dict
    as_tuple: bool


def capture_clean(loaded, tokenized, layers, batch_size=64, title=None):
    """(Capture with logits, CleanRun): the unedited pass, keeping the residual that enters each of `layers`."""
    residuals, tuples = {}, set()

    def keep(hidden, hook, layer, batch):
        shape = (len(tokenized), max(len(p.token_ids) for p in tokenized), hidden.shape[-1])
        whole = residuals.setdefault(
            layer, torch.zeros(shape, dtype=hidden.dtype, device=hidden.device)
        )
        whole[torch.tensor(batch, device=hidden.device), : hidden.shape[1]] = hidden.detach()

    def edits_for(batch):
        return [
            (f"blocks.{layer}.hook_in", partial(keep, layer=layer, batch=batch)) for layer in layers
        ]

    handle = loaded.bridge.blocks[0].register_forward_hook(
        lambda module, args, out: tuples.add(isinstance(out, tuple))
    )
    try:
        captured = capture_attention(
            loaded, tokenized, batch_size, edits_for, want_logits=True, title=title
        )
    finally:
        handle.remove()
    return captured, CleanRun(captured.arrays, residuals, tuples == {True})


def capture_attention(
    loaded,
    tokenized,
    batch_size=64,
    edits_for=None,
    keep_patterns=False,
    want_logits=False,
    title=None,
    start=None,
    streaming=False,
    batch_tokens=None,
):
    """Run every prompt once and reduce its attention: a Capture.

    edits_for      function of the batch's prompt positions (list of int) -> [(hook name, hook)], None for a clean run
    keep_patterns  also keep the patterns of all layers, zero-padded to the longest prompt
    title          text of the progress bar, None for no bar
    start          (layer, CleanRun): edits begin at that layer, so the layers below are taken from the clean run; None
                   runs everything. Not with keep_patterns.
    streaming      rows without patterns, from the model without its bridge: no edits, patterns or logits
    batch_tokens   at most so many tokens in a batch, padding counted; halved for good after an out-of-memory error
    """
    from tqdm import tqdm

    lengths = [len(p.token_ids) for p in tokenized]
    arrays = (
        empty_arrays(tokenized, loaded.facts, max(lengths))
        if start is None
        else copy_arrays(start[1].arrays)
    )
    patterns = {}
    if keep_patterns:
        shape = (len(tokenized), loaded.n_heads, max(lengths), max(lengths))
        check_pattern_memory(loaded.n_layers, shape)
        patterns = {layer: np.zeros(shape, np.float32) for layer in range(loaded.n_layers)}
    logits, failed = {}, []
    queue = make_batches(lengths, batch_size, batch_tokens)
    with tqdm(
        total=len(tokenized), desc=title, unit="prompt", disable=title is None, leave=False
    ) as bar:
        while queue:
            batch = queue.pop(0)
            try:
                if streaming:
                    final = _stream_batch(loaded, tokenized, batch, arrays)
                else:
                    final = _capture_batch(
                        loaded, tokenized, batch, arrays, patterns, edits_for, want_logits, start
                    )
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    failed.append((tokenized[batch[0]].id, "out of memory with a batch of one"))
                else:
                    longest = max(lengths[i] for i in batch)
                    tqdm.write(
                        f"out of memory with {len(batch)} prompts of {longest} tokens: halved"
                    )
                    left = [i for later in (batch, *queue) for i in later]
                    half = [len(batch) // 2, len(batch) * longest // 2]
                    batch_size = half[0]
                    queue = [
                        [left[i] for i in later]
                        for later in make_batches([lengths[i] for i in left], *half)
                    ]
                    continue
            else:
                logits.update(zip(batch, final, strict=True))
            bar.update(len(batch))
    lost = {prompt_id for prompt_id, _ in failed}
    kept = [i for i, p in enumerate(tokenized) if p.id not in lost]
    if failed:
        arrays = {name: a if name == "visible_keys" else a[kept] for name, a in arrays.items()}
        patterns = {layer: values[kept] for layer, values in patterns.items()}
    return Capture(
        arrays,
        patterns,
        np.stack([logits[i] for i in kept]) if want_logits and kept else None,
        failed,
        batch_size,
    )


def copy_arrays(arrays):
    return {name: array.copy() for name, array in arrays.items()}


def _capture_batch(loaded, tokenized, batch, arrays, patterns, edits_for, want_logits, start):
    """Run one batch and write its rows into `arrays` (and `patterns`) in place; returns final logits or Nones."""
    prompts = [tokenized[i] for i in batch]
    n_tokens, span = arrays["n_tokens"][batch], arrays["span"][batch]
    width = int(n_tokens.max())

    def on_layer(layer, pattern):
        check_patterns(pattern, n_tokens, layer, loaded.facts)
        if layer in patterns:
            real = (np.arange(width) < n_tokens[:, None])[:, None, :, None]
            patterns[layer][batch, :, :width, :width] = np.where(real, pattern, 0.0)
        _store_layer(
            arrays,
            batch,
            layer,
            reduce_pattern(pattern, n_tokens, span, arrays["visible_keys"][layer, :width]),
        )

    edits = [] if edits_for is None else edits_for(batch)
    resume = None
    if start is not None:
        layer, clean = start
        hidden = clean.residuals[layer]
        resume = (layer, hidden[torch.tensor(batch, device=hidden.device), :width], clean.as_tuple)
    ids, dtype = [p.token_ids for p in prompts], loaded.facts["dtype"]
    logits = run_layers(
        loaded.bridge, ids, loaded.n_layers, dtype, on_layer, edits, want_logits, resume
    )
    return [None] * len(batch) if logits is None else list(logits.cpu().numpy())


def _stream_batch(loaded, tokenized, batch, arrays):
    """As `_capture_batch`, without a pattern."""
    ids, mask = pad_right([tokenized[i].token_ids for i in batch])

    def on_layer(layer, reduced):
        _store_layer(arrays, batch, layer, reduced)

    stream_layers(
        loaded.plain,
        ids,
        mask,
        arrays["n_tokens"][batch],
        arrays["span"][batch],
        loaded.facts,
        on_layer,
    )
    return [None] * len(batch)


def _store_layer(arrays, batch, layer, reduced):
    """Write what one layer of one batch gave into the arrays of the run."""
    width = reduced["entropy"].shape[-1]
    for name, values in reduced.items():
        if name == "edge_tokens":
            arrays[name][batch] = values
        elif name in ("entropy", "entropy_sinkfree", "sink_mass"):
            arrays[name][batch, layer, :, :width] = values
        else:
            arrays[name][batch, layer] = values


def check_pattern_memory(n_layers, shape):
    """Refuse to keep patterns that would not fit into half of the free memory, with the numbers."""
    import psutil

    needed, free = n_layers * int(np.prod(shape)) * 4, psutil.virtual_memory().available
    if needed > free / 2:
        raise UserError(
            f"--raw patterns needs {needed / 2**30:.1f} GiB for prompts of up to {shape[-1]} tokens, {free / 2**30:.1f} GiB "
            "are free; use --raw none"
        )
