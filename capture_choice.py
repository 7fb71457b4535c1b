"""Which way attention is captured, and the proof that streaming gives what the patterns give.

patterns    every pattern is built layer by layer and reduced: [prompt, head, query, key] at a time; can be saved, edited
streaming   row entropies without patterns (streaming_attention.py): memory grows with the tokens
auto        patterns, unless a prompt has more than AUTO_TOKENS tokens or the patterns would not fit
"""

import numpy as np

from attention_capture import capture_attention, pad_right, reduce_pattern, tokenize_prompts
from rolecircuits.inputs.categories import Prompt
from rolecircuits.inputs.errors import RunFailed
from rolecircuits.stats import entropy
from streaming_attention import LayerRecorder, block_scores, stream_layers

MEASURED = ("entropy", "entropy_sinkfree", "sink_mass", "first_mass", "last_mass", "edge_mass")
AUTO_TOKENS = 512
PATTERN_COPIES = 4  # scores, softmax, float32 copy and its logarithm live at once
KERNEL_TOLERANCE = 1e-4  # streamed rows against the float32 pattern of the same queries and keys, whatever the dtype
# Against the patterns path, a second forward pass: in float32 the largest difference, in short dtypes the mean one. There the
# two passes round their residual streams differently, and single rows differ by what the dtype costs: on SmolLM2-135M in
# bfloat16 streamed entropies were at most 0.16 nats from those of the float32 model (mean 0.008), patterns 0.24 (mean 0.009).
PATH_TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 5e-3}
CHECK_TEXT = "How tall is the tower that stands beside the old bridge, and who built it for the town by the river?"


def choose_capture(capture, raw, tokenized, facts, batch_size):
    """What to do: ("patterns" or "streaming", the --raw that goes with it, a line that says why auto chose streaming or None)."""
    import psutil

    if capture != "auto":
        return capture, raw or ("none" if capture == "streaming" else "patterns"), None
    if raw not in (None, "none"):
        return "patterns", raw, None  # they were asked for; check_pattern_memory refuses what does not fit
    longest, free = max(len(p.token_ids) for p in tokenized), psutil.virtual_memory().available
    at_once = PATTERN_COPIES * min(batch_size, len(tokenized)) * facts["n_heads"] * longest**2 * 4
    kept = 0 if raw == "none" else len(tokenized) * facts["n_layers"] * facts["n_heads"] * longest**2 * 4
    lost = "" if raw == "none" else "; patterns are not saved"
    if longest > AUTO_TOKENS:
        return "streaming", "none", f"capture: streaming, a prompt has {longest} tokens (more than {AUTO_TOKENS}){lost}"
    if max(at_once, kept) > free / 2:
        size = max(at_once, kept) / 2**30
        why = f"patterns would take {size:.1f} GiB, {free / 2**30:.1f} GiB are free"
        return "streaming", "none", f"capture: streaming, {why}{lost}"
    return "patterns", raw or "patterns", None


class CheckedRecorder(LayerRecorder):
    """Compares what the kernel gives with the pattern of the same queries and keys, in float32, layer by layer."""

    largest = 0.0

    def measure(self, query, key, rest, layer, scale, window, softcap):
        arrays = super().measure(query, key, rest, layer, scale, window, softcap)
        whole = (0, query.shape[2])
        pattern = block_scores(query, key, whole, whole, scale, window, softcap).softmax(dim=-1).cpu().numpy()
        visible = entropy.visible_keys(query.shape[2], [window])[0]
        expected = reduce_pattern(pattern, self.n_tokens, self.span, visible)
        gap = compare(arrays, expected, f"layer {layer}", np.max, KERNEL_TOLERANCE)
        CheckedRecorder.largest = max(CheckedRecorder.largest, gap)
        return arrays


def compare(streamed, patterns, where, summary, tolerance):
    """The largest of the `summary` (np.max or np.mean) differences of the arrays; RunFailed beyond the tolerance."""
    worst = 0.0
    for name in MEASURED:
        defined = ~np.isnan(patterns[name])
        if not np.array_equal(defined, ~np.isnan(streamed[name])):
            raise RunFailed(f"instrument check: {where}: streaming and patterns define {name} in different rows")
        gap = np.abs(streamed[name] - patterns[name])[defined]
        found = float(summary(gap)) if gap.size else 0.0
        if not found <= tolerance:
            raise RunFailed(
                f"instrument check: {where}: streaming and patterns differ by {found:.2g} ({summary.__name__}) in {name}, "
                f"allowed {tolerance:g}; use --capture patterns"
            )
        worst = max(worst, found)
    return worst


def check_streaming(loaded):
    """Two short prompts of different length: streamed rows against patterns; the verdict, or RunFailed.

    returns  kernel_gap  the largest difference from float32 patterns of the same queries and keys, in all arrays
             path_gap    the difference from the patterns path: the largest in float32, the mean in short dtypes
    """
    texts = (CHECK_TEXT, CHECK_TEXT[: len(CHECK_TEXT) // 2])
    prompts = [Prompt(f"check_{i}", "neutral", -1, text) for i, text in enumerate(texts)]
    tokenized = tokenize_prompts(prompts, loaded.tokenizer)
    patterns = capture_attention(loaded, tokenized).arrays
    streamed = {name: np.empty_like(patterns[name]) for name in MEASURED}

    def on_layer(layer, arrays):
        for name in MEASURED:
            streamed[name][:, layer] = arrays[name]

    ids, mask = pad_right([p.token_ids for p in tokenized])
    CheckedRecorder.largest = 0.0
    lengths, spans = patterns["n_tokens"], patterns["span"]
    stream_layers(loaded.plain, ids, mask, lengths, spans, loaded.facts, on_layer, CheckedRecorder)
    dtype = loaded.facts["dtype"]
    summary, tolerance = np.max if dtype == "float32" else np.mean, PATH_TOLERANCE[dtype]
    path_gap = compare(streamed, patterns, "all layers", summary, tolerance)
    return {
        "kernel_gap": CheckedRecorder.largest,
        "kernel_tolerance": KERNEL_TOLERANCE,
        "path_gap": path_gap,
        "path_tolerance": tolerance,
    }
