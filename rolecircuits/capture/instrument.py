"""Load a model and prove that it measures: its rows are those of its own eager attention.

The verdict goes into the run's config; a model that fails is refused before it measures anything.
"""

import numpy as np
import torch

from deterministic import prepare_environment, set_determinism
from rolecircuits.capture import masks, patterns
from rolecircuits.capture.attention import capture_patterns
from rolecircuits.capture.batches import is_out_of_memory, out_of_memory_fails, pad_right
from rolecircuits.capture.check_texts import check_batches, streaming_batches
from rolecircuits.capture.model_pass import EAGER, set_attention
from rolecircuits.capture.packed import DOES_NOT_FIT
from rolecircuits.capture.recorder import LayerRecorder, keys_seen, stream_layers
from rolecircuits.capture.streaming import block_scores
from rolecircuits.capture.tokens import TokenizedPrompt
from rolecircuits.inputs.errors import RunFailed, one_line
from rolecircuits.models.load import open_model, read_weights
from rolecircuits.models.rotary import batch_side
from rolecircuits.stats.masses import Places

# Half the summed differences of our rows from those that the model returns: the largest of all rows
# in float32, the mean of a layer's in short dtypes. There returned rows are rounded, and a model
# whose own softmax is rounded (gpt-oss) goes on with slightly other residuals.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
MEASURED = ("entropy", "entropy_sinkfree", "sink_mass", "first_mass", "last_mass", "edge_mass")
# Streamed rows against the float32 pattern of the same queries and keys, whatever the dtype.
KERNEL_TOLERANCE = 1e-4
# Against the patterns path, a second forward pass: in float32 the largest difference, in short
# dtypes the mean one. There the two passes round their residual streams differently, and single
# rows differ by what the dtype costs: on SmolLM2-135M in bfloat16 streamed entropies were at most
# 0.16 nats from those of the float32 model (mean 0.008), patterns 0.24 (mean 0.009).
PATH_TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 5e-3}
LONGEST_READ = 2**15  # tokens for which masks are read where that costs no pass


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
    """A text of at least 80 tokens (where the context holds them), and short ones in a padded
    batch, against the attention that the model returns for each of them: the verdict.

    Where packed rows are wrong, every prompt is computed whole from then on ("not_packed").
    Raises RunFailed beyond the tolerance, naming layer and head.
    """
    describe_attention(loaded)
    batches = check_batches(loaded)
    expected = [returned_rows(loaded, batch) for batch in batches]
    pairs = list(zip(batches, expected, strict=True))
    gaps = [compare_rows(loaded, *pair, whole=True) for pair in pairs[1:]]
    packed = compare_packed(loaded, pairs)
    gaps += [compare_rows(loaded, *pairs[0], whole=True)] if packed is None else packed
    loaded.facts["not_packed"] = masks.why_not_packed(loaded)
    returned = None not in gaps
    return {
        "rows": "those of its eager attention" if returned else "not returned by the model",
        "row_gap": max(gaps) if returned else None,
        "row_tolerance": TOLERANCE[loaded.facts["dtype"]],
    }


def packing_notes(loaded):
    """A line where prompts of a checked model are computed whole, each token as often as it stands
    there.
    """
    why = loaded.facts["not_packed"]
    return [] if why is None else [f"every prompt is computed whole: this model {why}"]


def compare_packed(loaded, pairs):
    """[`compare_rows`] of all texts of the check, packed; None for a model that is not packed, as
    it turns out here or was known before.

    pairs  [batch] (texts, `returned_rows` of them)
    """
    if masks.why_not_packed(loaded) is not None:
        return None
    texts, expected = (sum(parts, []) for parts in zip(*pairs, strict=True))
    side = batch_side(loaded.facts)
    if len({side(len(text)) for text in texts}) == 1:
        pairs = [(texts, expected)]
    try:
        return [compare_rows(loaded, *pair) for pair in pairs]
    except DOES_NOT_FIT as error:
        if is_out_of_memory(error):
            raise
        does = "has other rows" if isinstance(error, RunFailed) else "does not run"
        why = f"{does} where prompts are packed ({one_line(error, 160)})"
    loaded.attention["not_packed"] = why
    return None


def returned_rows(loaded, texts):
    """`eager_rows` of a batch of texts, each of them alone in float32. In short dtypes a text
    rounds otherwise in a batch than alone, so there the batch is fed.
    """
    batches = [[ids] for ids in texts] if loaded.facts["dtype"] == "float32" else [texts]
    return [rows for batch in batches for rows in eager_rows(loaded, batch)]


def compare_rows(loaded, texts, expected, whole=False):
    """How far our rows of a batch are from the model's own, or None where it returns none; refused
    beyond the tolerance.

    texts  [text] of token ids    expected  their `returned_rows`    whole  not packed
    """
    dtype, lengths = loaded.facts["dtype"], np.array([len(ids) for ids in texts])
    tolerance, worst = TOLERANCE[dtype], 0.0
    summary = summary_of(dtype)

    def on_layer(layer, pattern):
        nonlocal worst
        visible = masks.visible_keys(loaded, int(lengths.max()))[layer]
        patterns.check_patterns(pattern, lengths, layer, visible, loaded.n_heads)
        for rows, model_rows in zip(pattern, expected, strict=True):
            if model_rows is None:
                continue
            gaps = row_gaps(rows, model_rows[layer])
            gap = float(summary(gaps))
            if not gap <= tolerance:
                raise RunFailed(
                    f"instrument check: layer {layer} head {int(gaps.max(axis=1).argmax())}: our "
                    f"rows differ from the model's by {gap:.2g} ({summary.__name__}), allowed "
                    f"{tolerance:g}"
                )
            worst = max(worst, gap)

    patterns.read_patterns(loaded, texts, on_layer, whole)
    return None if None in expected else worst


def summary_of(dtype):
    """How differences of rows are summarised: the largest, in short dtypes the mean."""
    return np.max if dtype == "float32" else np.mean


def row_gaps(rows, model_rows):
    """Half the summed differences of our rows from those that the model returns: [head, query].

    rows  [head, query, key], a learned sink and padding among the keys. Beside a learned sink some
    models return rows that sum to 1 (granite_swa); then ours are compared without it.
    """
    n, sinks = model_rows.shape[-1], rows.shape[-1] - rows.shape[-2]
    own = rows[:, :n, sinks : sinks + n]
    if sinks and abs(model_rows.sum(axis=-1) - 1).max() < 1e-2:
        own = own / own.sum(axis=-1, keepdims=True)
    return abs(own - model_rows).sum(axis=-1) / 2


def eager_rows(loaded, texts):
    """What the model returns as attention of a padded batch: [text][layer] of [head, query, key],
    float32, or [text] of None for a model that returns none.
    """
    model = set_attention(loaded.model, EAGER)
    device = next(model.parameters()).device
    ids, mask = (part.to(device) for part in pad_right(texts))
    with torch.inference_mode():
        out = model.base_model(
            input_ids=ids, attention_mask=mask, use_cache=False, output_attentions=True
        )
    attentions = getattr(out, "attentions", None)
    if not attentions or len(attentions) != loaded.n_layers or attentions[0] is None:
        return [None] * len(texts)
    rows = [layer.float().cpu().numpy() for layer in attentions]
    return [
        [layer[i, :, : len(text), : len(text)] for layer in rows] for i, text in enumerate(texts)
    ]


def describe_attention(loaded):
    """Put into the model's facts how its attention is read, and whether it has learned sinks."""
    loaded.facts["attention_read_by"] = {
        masks.INTERFACE: "AttentionInterface",
        masks.EAGER: "the softmax of its eager attention",
    }[masks.way(loaded)]
    loaded.facts["learned_sinks"] = masks.has_sinks(loaded)
    loaded.facts["can_stream"] = masks.can_stream(loaded)
    reach = LONGEST_READ if masks.asks_rules(loaded) else len(check_batches(loaded)[0][0])
    masks.note_windows(loaded, min(loaded.facts["context"] or reach, reach))


class CheckedRecorder(LayerRecorder):
    """Compares what the kernel gives with the float32 pattern of the same queries and keys.

    largest  the largest difference so far, over all layers of this pass
    """

    def __init__(self, windows, n_tokens, places, on_layers):
        super().__init__(windows, n_tokens, places, self.compare_layers)
        self.hand_on, self.patterns, self.largest = on_layers, {}, 0.0

    def attend(self, layer, call):
        how = self.scoring(layer, call)
        whole = (0, call.query.shape[2])
        rows = block_scores(call.query, call.key, whole, whole, how)
        pattern = masks.joined(masks.with_sinks(rows, how.sinks)).cpu().numpy()
        self.patterns[layer] = pattern, keys_seen(whole[1], how)
        return super().attend(layer, call)

    def compare_layers(self, layers, arrays):
        for place, layer in enumerate(layers):
            pattern, visible = self.patterns.pop(layer)
            own = {name: arrays[name][place] for name in MEASURED}
            expected = patterns.reduce_pattern(pattern, self.n_tokens, self.places, visible)
            gap = compare(own, expected, f"layer {layer}", np.max, KERNEL_TOLERANCE)
            self.largest = max(self.largest, gap)
        self.hand_on(layers, arrays)


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
    """Streamed rows of the texts of the check against patterns: the verdict.

    kernel_gap  the largest difference from float32 patterns of the same queries and keys
    path_gap    the difference from the patterns path: the largest in float32, the mean in short
                dtypes
    Raises RunFailed beyond the tolerances.
    """
    gaps = [check_streamed(loaded, texts) for texts in streaming_batches(loaded)]
    kernel_gap, path_gap = np.max(gaps, axis=0).tolist()
    return {
        "kernel_gap": kernel_gap,
        "kernel_tolerance": KERNEL_TOLERANCE,
        "path_gap": path_gap,
        "path_tolerance": PATH_TOLERANCE[loaded.facts["dtype"]],
    }


def check_streamed(loaded, texts):
    """(kernel gap, path gap) of one batch of token ids."""
    tokenized = [
        TokenizedPrompt(f"check_{i}", "neutral", -1, "check", "", ids, [], (0, len(ids)))
        for i, ids in enumerate(texts)
    ]
    expected = capture_patterns(loaded, tokenized).arrays
    streamed = {name: np.empty_like(expected[name]) for name in MEASURED}

    def on_layers(layers, arrays):
        for name in MEASURED:
            streamed[name][:, layers] = arrays[name].swapaxes(0, 1)

    places = Places(expected["span"])
    windows = masks.windows_of(loaded.facts)
    recorder = CheckedRecorder(windows, expected["n_tokens"], places, on_layers)
    with (
        out_of_memory_fails("instrument check of streaming"),
        patterns.batch_of(loaded, texts) as batch,
    ):
        stream_layers(loaded, batch, recorder)
    dtype = loaded.facts["dtype"]
    summary, tolerance = summary_of(dtype), PATH_TOLERANCE[dtype]
    return recorder.largest, compare(streamed, expected, "all layers", summary, tolerance)
