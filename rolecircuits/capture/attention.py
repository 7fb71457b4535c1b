"""Run all prompts through a model and reduce their attention to arrays, layer by layer.

    capture_patterns    every pattern, reduced layer by layer; kept whole only if asked for
    capture_streaming   the same arrays without a pattern

Right padding with a mask gives patterns identical to unpadded prompts; left padding without a mask
is silently wrong. Axes: prompt, layer, head, query, key.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from rolecircuits.capture.batches import ALONE, BATCH_TOKENS, run_batches
from rolecircuits.capture.masks import note_windows, visible_keys, windows_of
from rolecircuits.capture.packed import Packed
from rolecircuits.capture.patterns import batch_of, check_patterns, read_patterns, reduce_pattern
from rolecircuits.capture.recorder import LayerRecorder, stream_layers
from rolecircuits.inputs.categories import frame_of
from rolecircuits.models.devices import check_memory, free_bytes
from rolecircuits.models.rotary import batch_side
from rolecircuits.runs.arrays import PROMPT_ARRAYS
from rolecircuits.stats.masses import SEGMENTS, Places, uniform_masses

AUTO_TOKENS = 512
PATTERN_COPIES = 4  # scores, softmax, float32 copy and its logarithm live at once
TURN_MASS = "turn_mass"  # of conversations only, and in no run of prompts
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


def choose_capture(capture, raw, tokenized, facts, batch_size):
    """(method, why auto chose streaming or None) of --capture and --raw.

    method  "patterns" or "streaming"
    """
    if capture != "auto":
        return capture, None
    if raw != "none":  # asked for; activations.check_raw refuses what does not fit
        return "patterns", None
    n, longest = min(batch_size, len(tokenized)), max(len(p.token_ids) for p in tokenized)
    one_layer = pattern_bytes(facts, n, longest) / facts["n_layers"]
    needed, free = PATTERN_COPIES * one_layer, free_bytes()
    if not facts.get("can_stream", True):
        what = f"a batch of patterns of up to {longest} tokens, which this model cannot stream,"
        check_memory(needed, what, "use shorter texts or a smaller --batch_size", share=0.5)
        return "patterns", None
    if str(facts.get("device")).startswith("cuda"):
        why = "patterns would be reduced on the processor, rows are on the card"
    elif longest > AUTO_TOKENS:
        why = f"a prompt has {longest} tokens (more than {AUTO_TOKENS})"
    elif needed > free / 2:
        why = f"patterns would take {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
    else:
        return "patterns", None
    return "streaming", f"capture: streaming, {why}"


def pattern_bytes(facts, n_prompts, longest):
    """Bytes of the float32 patterns of all layers of so many prompts, padded to the longest."""
    return facts["n_layers"] * n_prompts * facts["n_heads"] * longest**2 * 4


def empty_arrays(tokenized, loaded):
    """The arrays of attention.npz before anything is measured: labels and lengths, NaN or 0.

    What the masks show for texts of these lengths is read from the model, and goes into its facts.
    """
    facts = loaded.facts
    n_tokens = np.array([len(p.token_ids) for p in tokenized], dtype=np.int64)
    masses = (len(tokenized), facts["n_layers"], facts["n_heads"])
    rows, places = (*masses, n_tokens.max()), places_of(tokenized)
    visible = visible_keys(loaded, rows[-1])
    note_windows(loaded, int(rows[-1]))
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


def add_turns(arrays, places, turns):
    """The Places with turns, for which "turn_mass" [prompt, layer, head, turn, segment] is added to
    the arrays; as they are without (None).

    turns  [prompt] of spans ((start, stop), ...)
    """
    if turns is None:
        return places
    spans = np.full((len(turns), max(map(len, turns)), 2), -1)
    for own, given in zip(spans, turns, strict=True):
        own[: len(given)] = np.array(given).reshape(-1, 2)
    shape = arrays["first_mass"].shape
    arrays[TURN_MASS] = np.full((*shape, spans.shape[1], len(SEGMENTS)), np.nan, np.float32)
    return places._replace(turns=spans)


def capture_patterns(loaded, tokenized, batch_size=64, keep_patterns=False, title=None, turns=None):
    """The Capture of an unedited pass; keep_patterns: all of them, zero-padded to the longest.

    turns  as in `add_turns`
    """
    kept = empty_patterns(tokenized, loaded.facts) if keep_patterns else {}
    arrays, places = empty_arrays(tokenized, loaded), places_of(tokenized)
    places = add_turns(arrays, places, turns)

    def run_batch(batch):
        n_tokens, at, ids = arrays["n_tokens"][batch], places.take(batch), ids_of(tokenized, batch)
        width, packed = int(n_tokens.max()), Packed(ids)
        real = (np.arange(width) < n_tokens[:, None])[:, None, :, None]

        def on_layer(layer, pattern):
            visible = arrays["visible_keys"][layer, :width]
            check_patterns(pattern, n_tokens, layer, visible, loaded.n_heads)
            if layer in kept:
                kept[layer][batch, :, :width, :width] = np.where(real, pattern[..., -width:], 0.0)
            store_layer(
                arrays, batch, layer, reduce_pattern(pattern, n_tokens, at, visible, packed)
            )

        read_patterns(loaded, ids, on_layer)

    lengths, side = arrays["n_tokens"].tolist(), batch_side(loaded.facts)
    failed, batch_size = run_batches(lengths, run_batch, batch_size, title=title, side=side)
    return without_failed(Capture(arrays, kept), failed, batch_size)


def capture_streaming(
    loaded, tokenized, batch_size=64, batch_tokens=BATCH_TOKENS, title=None, turns=None
):
    """The Capture of a pass without patterns, through the model without its bridge.

    turns  as in `add_turns`
    """
    arrays, places = empty_arrays(tokenized, loaded), places_of(tokenized)
    places = add_turns(arrays, places, turns)
    windows, side = windows_of(loaded.facts), batch_side(loaded.facts)

    def run_batch(batch):
        recorder = LayerRecorder(
            windows,
            arrays["n_tokens"][batch],
            places.take(batch),
            lambda layers, reduced: store_layers(arrays, batch, layers, reduced),
        )
        with batch_of(loaded, ids_of(tokenized, batch)) as fed:
            stream_layers(loaded, fed, recorder)

    lengths = arrays["n_tokens"].tolist()
    limits = batch_size, batch_tokens, title, side
    failed, batch_size = run_batches(lengths, run_batch, *limits)
    return without_failed(Capture(arrays), failed, batch_size)


def ids_of(tokenized, batch):
    """The token ids of the prompts at these positions."""
    return [tokenized[i].token_ids for i in batch]


def store_layer(arrays, batch, layer, reduced):
    """Write what one layer of one batch gave into the arrays of the run."""
    store_layers(arrays, batch, [layer], {name: values[None] for name, values in reduced.items()})


def store_layers(arrays, batch, layers, reduced):
    """The same of consecutive layers; reduced [layer, prompt, ...]."""
    own, width = slice(layers[0], layers[-1] + 1), reduced["entropy"].shape[-1]
    for name, values in reduced.items():
        if name == "edge_tokens":
            arrays[name][batch] = values[0]
        elif name in PADDED:
            arrays[name][batch, own, :, :width] = values.swapaxes(0, 1)
        else:
            arrays[name][batch, own] = values.swapaxes(0, 1)


def without_failed(captured, failed, batch_size):
    """The Capture of a finished pass, without the prompts (positions) that did not fit alone."""
    captured = replace(captured, batch_size=batch_size)
    if not failed:
        return captured
    ids, arrays = captured.arrays["prompt_id"], captured.arrays
    kept = np.setdiff1d(np.arange(len(ids)), failed)
    return replace(
        captured,
        arrays={
            name: a[kept] if name in (*PROMPT_ARRAYS, TURN_MASS) else a
            for name, a in arrays.items()
        },
        patterns={layer: values[kept] for layer, values in captured.patterns.items()},
        logits=captured.logits[kept] if captured.logits is not None and len(kept) else None,
        failed=[(str(ids[i]), ALONE) for i in failed],
    )
