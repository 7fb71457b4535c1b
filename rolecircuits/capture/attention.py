"""Run all prompts through a model and reduce their attention to arrays, layer by layer.

    capture_patterns    every pattern, reduced inside its hook; kept whole only if asked for
    capture_streaming   the same arrays without a pattern
    capture_clean       the unedited pass, with logits and the residuals that edits start from
    capture_edited      the same pass with edits, from the layer that they begin at

Right padding with a mask gives patterns identical to unpadded prompts; left padding without a mask
is silently wrong. Axes: prompt, layer, head, query, key.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch

from rolecircuits.capture.batches import ALONE, BATCH_TOKENS, pad_right, run_batches
from rolecircuits.capture.patterns import Resume, check_patterns, reduce_pattern, run_layers
from rolecircuits.capture.prefix import common_prefix
from rolecircuits.capture.streaming import LayerRecorder, stream_layers
from rolecircuits.inputs.categories import frame_of
from rolecircuits.models.devices import free_bytes
from rolecircuits.models.load import LoadedModel
from rolecircuits.runs.arrays import PROMPT_ARRAYS
from rolecircuits.stats import entropy
from rolecircuits.stats.masses import SEGMENTS, Places, uniform_masses

AUTO_TOKENS = 512
PATTERN_COPIES = 4  # scores, softmax, float32 copy and its logarithm live at once
ROWS = ("entropy", "entropy_sinkfree", "sink_mass")
PADDED = (*ROWS, "final_row")  # their last axis is as long as the longest prompt


@dataclass
class Capture:
    """What a pass over all prompts gave, in the order of the prompt axis, without failed prompts.

    arrays      the arrays of attention.npz
    patterns    {layer: [prompt, head, query, key]}, {} unless kept
    logits      [prompt, vocabulary] float32 of the final token, None unless wanted
    failed      [(prompt id, reason)]
    batch_size  prompts that a forward pass may hold: as given, or what the last halving left
    """

    arrays: dict
    patterns: dict = field(default_factory=dict)
    logits: np.ndarray | None = None
    failed: list = field(default_factory=list)
    batch_size: int | None = None


@dataclass
class CleanRun:
    """What an edited pass needs of the unedited one in order to start at the layer that it edits.

    arrays     as in Capture
    residuals  {layer: [prompt, query, unit] on the model's device}
    as_tuple   the blocks of this architecture return a tuple
    """

    arrays: dict
    residuals: dict
    as_tuple: bool


def choose_capture(capture, raw, tokenized, facts, batch_size):
    """(method, the --raw that goes with it, why auto chose streaming or None) of the flags.

    method  "patterns" or "streaming"
    """
    if capture != "auto":
        return capture, raw or ("none" if capture == "streaming" else "patterns"), None
    if raw in ("patterns", "full"):  # asked for; activations.check_raw refuses what does not fit
        return "patterns", raw, None
    n, longest = len(tokenized), max(len(p.token_ids) for p in tokenized)
    one_layer = pattern_bytes(facts, min(batch_size, n), longest) / facts["n_layers"]
    kept = 0 if raw == "none" else pattern_bytes(facts, n, longest)
    needed, free = max(PATTERN_COPIES * one_layer, kept), free_bytes()
    if longest > AUTO_TOKENS:
        why = f"a prompt has {longest} tokens (more than {AUTO_TOKENS})"
    elif needed > free / 2:
        why = f"patterns would take {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
    else:
        return "patterns", raw or "patterns", None
    lost = "" if raw == "none" else "; patterns are not saved"
    return "streaming", "none", f"capture: streaming, {why}{lost}"


def pattern_bytes(facts, n_prompts, longest):
    """Bytes of the float32 patterns of all layers of so many prompts, padded to the longest."""
    return facts["n_layers"] * n_prompts * facts["n_heads"] * longest**2 * 4


def empty_arrays(tokenized, facts):
    """The arrays of attention.npz before anything is measured: labels and lengths, NaN or 0."""
    n_tokens = np.array([len(p.token_ids) for p in tokenized], dtype=np.int64)
    masses = (len(tokenized), facts["n_layers"], facts["n_heads"])
    rows, places = (*masses, n_tokens.max()), places_of(tokenized)
    visible = entropy.visible_keys(rows[-1], facts["sliding_windows"]).astype(np.int64)
    uniform = uniform_masses(places, n_tokens, visible)
    return {
        "category": np.array([p.category for p in tokenized]),
        "prompt_id": np.array([p.id for p in tokenized]),
        "pair_id": np.array([p.pair_id for p in tokenized], dtype=np.int64),
        "n_tokens": n_tokens,
        "span": places.span,
        "frame": np.array([frame_of(p) for p in tokenized]),
        "filler": np.array([p.filler for p in tokenized]),
        "slot": places.slot,
        **{name: np.full(rows, np.nan, np.float32) for name in ROWS},
        "visible_keys": visible,
        "first_mass": np.zeros(masses, np.float32),
        "last_mass": np.zeros(masses, np.float32),
        "edge_mass": np.zeros((*masses, 2), np.float32),
        "edge_tokens": np.zeros(len(tokenized), np.int64),
        "slot_mass": np.zeros(masses, np.float32),
        "segment": np.array(SEGMENTS),
        "segment_mass": np.zeros((*masses, len(SEGMENTS)), np.float32),
        "final_row": np.zeros(rows, np.float16),
        **{name: values.astype(np.float32) for name, values in uniform.items()},
    }


def places_of(tokenized):
    """The Places of all prompts, over as many keys as the longest has."""
    longest = max(len(p.token_ids) for p in tokenized)
    segment = np.full((len(tokenized), longest), -1)
    for row, prompt in zip(segment, tokenized, strict=True):
        row[: len(prompt.segments)] = prompt.segments
    span, slot = (
        np.array(pairs, dtype=np.int64).reshape(-1, 2)
        for pairs in zip(*((p.span, p.slot) for p in tokenized), strict=True)
    )
    return Places(span, slot, segment)


def empty_patterns(tokenized, facts):
    """Zeros for the patterns of every layer: {layer: [prompt, head, query, key]}."""
    longest = max(len(p.token_ids) for p in tokenized)
    shape = (len(tokenized), facts["n_heads"], longest, longest)
    return {layer: np.zeros(shape, np.float32) for layer in range(facts["n_layers"])}


def capture_patterns(loaded, tokenized, batch_size=64, keep_patterns=False, title=None):
    """The Capture of an unedited pass; keep_patterns: all of them, zero-padded to the longest."""
    kept = empty_patterns(tokenized, loaded.facts) if keep_patterns else {}
    captured = Capture(empty_arrays(tokenized, loaded.facts), kept)
    return PatternPass(loaded, tokenized, captured).run(batch_size, title)


def capture_clean(loaded, tokenized, layers=(), batch_size=64, title=None):
    """(Capture with logits, CleanRun with the residual that enters each of `layers`)."""
    residuals, tuples = {}, set()
    shape = (len(tokenized), max(len(p.token_ids) for p in tokenized))

    def keep(hidden, hook, layer, batch):
        whole = residuals.setdefault(layer, hidden.new_zeros((*shape, hidden.shape[-1])))
        whole[torch.tensor(batch, device=hidden.device), : hidden.shape[1]] = hidden.detach()

    def keep_residuals(batch):
        names = {layer: f"blocks.{layer}.hook_in" for layer in layers}
        return [(name, partial(keep, layer=i, batch=batch)) for i, name in names.items()]

    handle = loaded.bridge.blocks[0].register_forward_hook(
        lambda module, args, out: tuples.add(isinstance(out, tuple))
    )
    try:
        captured = capture_edited(loaded, tokenized, keep_residuals, batch_size, title=title)
    finally:
        handle.remove()
    return captured, CleanRun(captured.arrays, residuals, tuples == {True})


def capture_edited(loaded, tokenized, edits_for, batch_size=64, start=None, title=None):
    """The Capture, with logits, of a pass with edits.

    edits_for  function of the batch's prompt positions (list of int) -> [(hook name, hook)]
    start      (layer, CleanRun): nothing is edited below that layer, so the layers below it are
               not run again and their values are those of the clean run; None runs everything
    """
    arrays = empty_arrays(tokenized, loaded.facts) if start is None else start[1].arrays
    arrays = {name: array.copy() for name, array in arrays.items()}
    return PatternPass(loaded, tokenized, Capture(arrays), edits_for, start).run(batch_size, title)


@dataclass
class PatternPass:
    """A pass over all prompts through hooks, written into `captured` batch by batch.

    edits_for, start  as `capture_edited` takes them; without edits_for no logits are computed
    """

    loaded: LoadedModel
    tokenized: list
    captured: Capture
    edits_for: Callable | None = None
    start: tuple | None = None

    def __post_init__(self):
        self.places = places_of(self.tokenized)

    def run(self, batch_size, title):
        lengths = self.captured.arrays["n_tokens"].tolist()
        failed, batch_size = run_batches(lengths, self.run_batch, batch_size, title=title)
        return without_failed(self.captured, failed, batch_size)

    def run_batch(self, batch):
        captured, arrays, width = self.captured, self.captured.arrays, self._width(batch)
        n_tokens, places = arrays["n_tokens"][batch], self.places.take(batch)
        real = (np.arange(width) < n_tokens[:, None])[:, None, :, None]
        ids = [self.tokenized[i].token_ids for i in batch]
        shared = common_prefix(ids) if self.edits_for is None else 0

        def on_layer(layer, pattern):
            check_patterns(pattern, n_tokens, layer, self.loaded.facts)
            if layer in captured.patterns:
                kept = np.where(real, pattern, 0.0)
                captured.patterns[layer][batch, :, :width, :width] = kept
            visible = arrays["visible_keys"][layer, :width]
            reduced = reduce_pattern(pattern, n_tokens, places, visible, shared)
            store_layer(arrays, batch, layer, reduced)

        edits = [] if self.edits_for is None else self.edits_for(batch)
        want_logits, resume = self.edits_for is not None, self._resume(batch)
        logits = run_layers(self.loaded, ids, on_layer, edits, want_logits, resume)
        if want_logits:
            if captured.logits is None:
                shape = (len(self.tokenized), logits.shape[-1])
                captured.logits = np.zeros(shape, np.float32)
            captured.logits[batch] = logits.cpu().numpy()

    def _width(self, batch):
        return int(self.captured.arrays["n_tokens"][batch].max())

    def _resume(self, batch):
        if self.start is None:
            return None
        layer, clean = self.start
        hidden = clean.residuals[layer]
        rows = torch.tensor(batch, device=hidden.device)
        return Resume(layer, hidden[rows, : self._width(batch)], clean.as_tuple)


def capture_streaming(loaded, tokenized, batch_size=64, batch_tokens=BATCH_TOKENS, title=None):
    """The Capture of a pass without patterns, through the model without its bridge."""
    arrays, places = empty_arrays(tokenized, loaded.facts), places_of(tokenized)

    def run_batch(batch):
        recorder = LayerRecorder(
            loaded.facts,
            arrays["n_tokens"][batch],
            places.take(batch),
            lambda layer, reduced: store_layer(arrays, batch, layer, reduced),
        )
        ids, mask = pad_right([tokenized[i].token_ids for i in batch])
        stream_layers(loaded.plain, ids, mask, recorder)

    lengths = arrays["n_tokens"].tolist()
    failed, batch_size = run_batches(lengths, run_batch, batch_size, batch_tokens, title)
    return without_failed(Capture(arrays), failed, batch_size)


def store_layer(arrays, batch, layer, reduced):
    """Write what one layer of one batch gave into the arrays of the run."""
    width = reduced["entropy"].shape[-1]
    for name, values in reduced.items():
        if name == "edge_tokens":
            arrays[name][batch] = values
        elif name in PADDED:
            arrays[name][batch, layer, :, :width] = values
        else:
            arrays[name][batch, layer] = values


def without_failed(captured, failed, batch_size):
    """The Capture of a finished pass, without the prompts (positions) that did not fit alone."""
    captured = replace(captured, batch_size=batch_size)
    if not failed:
        return captured
    ids, arrays = captured.arrays["prompt_id"], captured.arrays
    kept = np.setdiff1d(np.arange(len(ids)), failed)
    return replace(
        captured,
        arrays={name: a[kept] if name in PROMPT_ARRAYS else a for name, a in arrays.items()},
        patterns={layer: values[kept] for layer, values in captured.patterns.items()},
        logits=captured.logits[kept] if captured.logits is not None and len(kept) else None,
        failed=[(str(ids[i]), ALONE) for i in failed],
    )
