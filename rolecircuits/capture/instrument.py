"""Load a model and prove that it measures: patterns are probabilities, edits act, streaming agrees.

The verdict goes into the run's config; a model that fails is refused before it measures anything.
"""

import numpy as np

from deterministic import prepare_environment, set_determinism
from rolecircuits.capture import patterns
from rolecircuits.capture.attention import capture_patterns
from rolecircuits.capture.batches import out_of_memory_fails, pad_right
from rolecircuits.capture.streaming import LayerRecorder, block_scores, stream_layers
from rolecircuits.capture.tokens import tokenize_prompts
from rolecircuits.inputs.categories import Prompt
from rolecircuits.inputs.errors import RunFailed
from rolecircuits.models.load import open_model, read_weights
from rolecircuits.stats import entropy
from rolecircuits.stats.masses import Places

TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 4e-3}
MEASURED = ("entropy", "entropy_sinkfree", "sink_mass", "first_mass", "last_mass", "edge_mass")
# Streamed rows against the float32 pattern of the same queries and keys, whatever the dtype.
KERNEL_TOLERANCE = 1e-4
# Against the patterns path, a second forward pass: in float32 the largest difference, in short
# dtypes the mean one. There the two passes round their residual streams differently, and single
# rows differ by what the dtype costs: on SmolLM2-135M in bfloat16 streamed entropies were at most
# 0.16 nats from those of the float32 model (mean 0.008), patterns 0.24 (mean 0.009).
PATH_TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 5e-3}
CHECK_TEXT = (
    "How tall is the tower that stands beside the old bridge, and who built it for the town by "
    "the river?"
)


def load_model(spec, seed=None, check=None):
    """The LoadedModel of a ModelSpec with its instrument checked; the verdict is in its facts.

    seed    determinism is set with it before the weights are read (None: it is left as it is)
    check   function of the ModelTokenizer, called before the weights are read: what it raises, a
            prompt that cannot be tokenised say, costs no loading
    raises  UserError where the request is wrong, RunFailed where the instrument is
    """
    prepare_environment()
    if seed is not None:
        set_determinism(seed)
    opened = open_model(spec)
    if check is not None:
        check(opened.tokenizer)
    with out_of_memory_fails("loading the model"):
        loaded = read_weights(opened)
    with out_of_memory_fails("instrument check"):
        loaded.facts["instrument"] = check_instrument(loaded)
    return loaded


def check_instrument(loaded):
    """Three short passes that prove the hooks measure and edit what they claim: the verdict.

    1 two prompts of different length in a right-padded batch: causal probabilities, one pattern a
      head of the config
    2 the shorter prompt alone: the patterns it had in the batch, within rounding
    3 the same with one head zeroed: other logits (equal shapes round equally, so an ignored edit is
      bit-identical)
    Raises RunFailed with the first thing that is wrong.
    """
    tolerance, last = TOLERANCE[loaded.facts["dtype"]], loaded.n_layers - 1
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
    padded, _ = patterns.collect_patterns(loaded, [short, long])
    alone, logits = patterns.collect_patterns(loaded, [short])
    _, edited_logits = patterns.collect_patterns(loaded, [short], edit)
    padding_gap, n = 0.0, len(short)
    for layer in range(loaded.n_layers):
        lengths = [n, len(long)]
        patterns.check_patterns(padded[layer], lengths, layer, loaded.facts, tolerance)
        gap = abs(padded[layer][0, :, :n, :n] - alone[layer][0]).max()
        padding_gap = max(padding_gap, float(gap))
    if padding_gap > tolerance:
        raise RunFailed(
            f"instrument check: a padded batch changes a pattern by {padding_gap:.2g}, allowed "
            f"{tolerance:g}"
        )
    change = float((logits - edited_logits).abs().max())
    if change == 0:
        raise RunFailed(
            f"instrument check: zeroing layer {last} head 0 leaves the logits as they were; edits "
            "are ignored"
        )
    return {
        "patterns": "causal probabilities",
        "padding_gap": padding_gap,
        "head_0_logit_change": change,
    }


class CheckedRecorder(LayerRecorder):
    """Compares what the kernel gives with the float32 pattern of the same queries and keys.

    largest  the largest difference so far, over all layers of this pass
    """

    def __init__(self, facts, n_tokens, places, on_layer):
        super().__init__(facts, n_tokens, places, on_layer)
        self.largest = 0.0

    def measure(self, query, key, rest, layer, how):
        arrays = super().measure(query, key, rest, layer, how)
        whole = (0, query.shape[2])
        pattern = block_scores(query, key, whole, whole, how).softmax(dim=-1).cpu().numpy()
        visible = entropy.visible_keys(query.shape[2], [how.window])[0]
        expected = patterns.reduce_pattern(pattern, self.n_tokens, self.places, visible)
        gap = compare(arrays, expected, f"layer {layer}", np.max, KERNEL_TOLERANCE)
        self.largest = max(self.largest, gap)
        return arrays


def compare(streamed, expected, where, summary, tolerance):
    """The largest of the `summary` (np.max or np.mean) differences of the arrays.

    raises  RunFailed where that is beyond the tolerance
    """
    worst = 0.0
    for name in MEASURED:
        defined = ~np.isnan(expected[name])
        if not np.array_equal(defined, ~np.isnan(streamed[name])):
            raise RunFailed(
                f"instrument check: {where}: streaming and patterns define {name} in different rows"
            )
        gaps = np.abs(streamed[name] - expected[name])[defined]
        gap = float(summary(gaps)) if gaps.size else 0.0
        if not gap <= tolerance:
            raise RunFailed(
                f"instrument check: {where}: streaming and patterns differ by {gap:.2g} "
                f"({summary.__name__}) in {name}, allowed {tolerance:g}; use --capture patterns"
            )
        worst = max(worst, gap)
    return worst


def check_streaming(loaded):
    """Two short prompts of different length: streamed rows against patterns; the verdict.

    kernel_gap  the largest difference from float32 patterns of the same queries and keys
    path_gap    the difference from the patterns path: the largest in float32, the mean in short
                dtypes
    Raises RunFailed beyond the tolerances.
    """
    texts = (CHECK_TEXT, CHECK_TEXT[: len(CHECK_TEXT) // 2])
    prompts = [Prompt(f"check_{i}", "neutral", -1, text) for i, text in enumerate(texts)]
    tokenized = tokenize_prompts(prompts, loaded.tokenizer)
    expected = capture_patterns(loaded, tokenized).arrays
    streamed = {name: np.empty_like(expected[name]) for name in MEASURED}

    def on_layer(layer, arrays):
        for name in MEASURED:
            streamed[name][:, layer] = arrays[name]

    places = Places(expected["span"])
    recorder = CheckedRecorder(loaded.facts, expected["n_tokens"], places, on_layer)
    with out_of_memory_fails("instrument check of streaming"):
        stream_layers(loaded.plain, *pad_right([p.token_ids for p in tokenized]), recorder)
    dtype = loaded.facts["dtype"]
    summary, tolerance = np.max if dtype == "float32" else np.mean, PATH_TOLERANCE[dtype]
    return {
        "kernel_gap": recorder.largest,
        "kernel_tolerance": KERNEL_TOLERANCE,
        "path_gap": compare(streamed, expected, "all layers", summary, tolerance),
        "path_tolerance": tolerance,
    }
