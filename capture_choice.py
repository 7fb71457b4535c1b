"""Which way attention is captured, and the proof that streaming gives what the patterns give.

patterns    every pattern is built layer by layer and reduced: [prompt, head, query, key] at a time; can be saved, edited
streaming   row entropies without patterns (streaming_attention.py): memory grows with the tokens
auto        patterns, unless a prompt has more than AUTO_TOKENS tokens or the patterns would not fit
"""

import numpy as np

from attention_capture import capture_attention, tokenize_prompts
from cli import RunFailed
from prompts import Prompt

AUTO_TOKENS = 512
PATTERN_COPIES = 4  # scores, softmax, float32 copy and its logarithm live at once
# largest difference between a streamed entropy and the pattern's, in nats. Patterns of short dtypes come from scores that
# the model has rounded to its dtype; streaming takes the scores in float32.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.02}
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


def check_streaming(loaded):
    """Two short prompts of different length through both paths; the verdict, or RunFailed where they disagree.

    returns  {"entropy_gap", "mass_gap", "tolerance"}: the largest absolute differences over all layers, heads and rows
    """
    texts = (CHECK_TEXT, CHECK_TEXT[: len(CHECK_TEXT) // 2])
    prompts = [Prompt(f"check_{i}", "neutral", -1, text) for i, text in enumerate(texts)]
    tokenized = [p for p in tokenize_prompts(prompts, loaded.tokenizer) if len(p.token_ids) > 2]
    streamed = capture_attention(loaded, tokenized, streaming=True).arrays
    patterns = capture_attention(loaded, tokenized).arrays
    tolerance = TOLERANCE[loaded.facts["dtype"]]
    gaps = {"entropy_gap": 0.0, "mass_gap": 0.0, "tolerance": tolerance}
    for name in ("entropy", "entropy_sinkfree", "sink_mass", "first_mass", "last_mass", "edge_mass"):
        gap = np.abs(streamed[name] - patterns[name])
        if not np.array_equal(np.isnan(streamed[name]), np.isnan(patterns[name])):
            raise RunFailed(f"instrument check: streaming and patterns define {name} in different rows")
        if not (worst := float(np.nanmax(gap, initial=0.0))) <= tolerance:
            layer, head = np.unravel_index(np.nanargmax(gap), gap.shape)[1:3]
            raise RunFailed(
                f"instrument check: streaming and patterns differ by {worst:.2g} in {name} of layer {layer} head {head}, "
                f"allowed {tolerance:g}; use --capture patterns"
            )
        kind = "entropy_gap" if name.startswith("entropy") else "mass_gap"
        gaps[kind] = max(gaps[kind], worst)
    return gaps
