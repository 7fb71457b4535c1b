"""Load a model and prove that it measures: its patterns are probabilities, its edits act, streaming agrees with patterns.

The verdict goes into the run's config; a model that fails is refused before it measures anything.
"""

import numpy as np

from deterministic import prepare_environment, set_determinism
from rolecircuits.capture.attention import capture_attention
from rolecircuits.capture.batches import pad_right
from rolecircuits.capture.patterns import reduce_pattern
from rolecircuits.capture.streaming import LayerRecorder, block_scores, stream_layers
from rolecircuits.capture.tokens import tokenize_prompts
from rolecircuits.inputs.categories import Prompt
from rolecircuits.inputs.errors import RunFailed
from rolecircuits.models.load import read_model
from rolecircuits.stats import entropy

TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 4e-3}
MEASURED = ("entropy", "entropy_sinkfree", "sink_mass", "first_mass", "last_mass", "edge_mass")
KERNEL_TOLERANCE = 1e-4  # streamed rows against the float32 pattern of the same queries and keys, whatever the dtype
# Against the patterns path, a second forward pass: in float32 the largest difference, in short dtypes the mean one. There the
# two passes round their residual streams differently, and single rows differ by what the dtype costs: on SmolLM2-135M in
# bfloat16 streamed entropies were at most 0.16 nats from those of the float32 model (mean 0.008), patterns 0.24 (mean 0.009).
PATH_TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 5e-3}
CHECK_TEXT = "How tall is the tower that stands beside the old bridge, and who built it for the town by the river?"


def load_model(spec, seed=None):
    """The LoadedModel of a ModelSpec with its instrument checked; the verdict is in its facts.

    seed    determinism is set with it before the weights are read (None: it is left as it is)
    raises  UserError where the request is wrong, RunFailed where the instrument is
    """
    prepare_environment()
    if seed is not None:
        set_determinism(seed)
    loaded = read_model(spec)
    loaded.facts["instrument"] = check_instrument(loaded)
    return loaded


def check_instrument(loaded):
    """Three short forward passes that prove the hooks measure and edit what they claim; returns the verdict.

    1 two prompts of different length in a right-padded batch: patterns are causal probabilities, one per head of the config
    2 the shorter prompt alone: the patterns it had in the batch, within rounding
    3 the same with one head zeroed: other logits (equal shapes round equally, so an ignored edit is bit-identical)
    Raises RunFailed with the first thing that is wrong.
    """
    from rolecircuits.capture.patterns import check_patterns, collect_patterns

    dtype, last = loaded.facts["dtype"], loaded.n_layers - 1
    hf = loaded.tokenizer.hf
    short, long = (
        hf(text, add_special_tokens=False).input_ids
        for text in ("Who is it", "How tall is the tower now")
    )
    if not 2 <= len(short) < len(long):
        short, long = long[:2], [*long, *long][:5]
    loaded.tokenizer.check_ids([*short, *long], "instrument check: a text")

    def zero_first_head(z, hook):  # [prompt, query, head, d_head]
        z = z.clone()
        z[:, :, 0] = 0
        return z

    edit = [(f"blocks.{last}.attn.hook_z", zero_first_head)]
    padded, _ = collect_patterns(loaded.bridge, [short, long], loaded.n_layers, dtype)
    alone, logits = collect_patterns(loaded.bridge, [short], loaded.n_layers, dtype)
    _, edited_logits = collect_patterns(loaded.bridge, [short], loaded.n_layers, dtype, edit)
    tolerance = TOLERANCE[dtype]
    padding_gap = 0.0
    for layer in range(loaded.n_layers):
        check_patterns(padded[layer], [len(short), len(long)], layer, loaded.facts, tolerance)
        gap = abs(padded[layer][0, :, : len(short), : len(short)] - alone[layer][0]).max()
        padding_gap = max(padding_gap, float(gap))
    if padding_gap > tolerance:
        raise RunFailed(
            f"instrument check: a padded batch changes a pattern by {padding_gap:.2g}, allowed {tolerance:g}"
        )
    change = float((logits - edited_logits).abs().max())
    if change == 0:
        raise RunFailed(
            f"instrument check: zeroing layer {last} head 0 leaves the logits as they were; edits are ignored"
        )
    return {
        "patterns": "causal probabilities",
        "padding_gap": padding_gap,
        "head_0_logit_change": change,
    }


class CheckedRecorder(LayerRecorder):
    """Compares what the kernel gives with the pattern of the same queries and keys, in float32, layer by layer."""

    largest = 0.0

    def measure(self, query, key, rest, layer, scale, window, softcap):
        arrays = super().measure(query, key, rest, layer, scale, window, softcap)
        whole = (0, query.shape[2])
        pattern = (
            block_scores(query, key, whole, whole, scale, window, softcap)
            .softmax(dim=-1)
            .cpu()
            .numpy()
        )
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
            raise RunFailed(
                f"instrument check: {where}: streaming and patterns define {name} in different rows"
            )
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
