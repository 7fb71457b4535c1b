"""Attention entropies and the two role indices; numpy in, numpy out. Every quantity is defined here and only here.

    H = -sum_k A ln A                                         nats, 0 ln 0 = 0, no epsilon
    RFC(l) = 1 - H_self(l) / H_neutral(l)                     > 0: self-referent attention is the more focused
    RSI(l) = (H_confounder(l) - H_self(l)) / H_neutral(l)     > 0: self-referent is more focused than about-the-user

H_category(l) is the mean over prompts (equal weights) of a value of a prompt, which comes in three kinds:

    raw         mean over the rows of the prompt, then over heads. Grows with length whatever the model attends to.
    normalised  every row divided by ln(visible keys): 0 for a one-hot row, 1 for a uniform row of any length
    sinkfree    the normalised value after key 0, the attention sink, is dropped and the row renormalised

The rows are those of the prompt's own text; raw values of raw-format prompts also count the BOS row, as the original did.
The length null of an index is the same index for uniform attention. It is 0 for the normalised and the sink-free kind.

Axes everywhere, in this order: prompt, layer, head, query, key.
"""

import numpy as np

KINDS = ("raw", "normalised", "sinkfree")
INDICES = ("rfc", "rsi")
ROW_SUM_TOLERANCE = 1e-3
EDGE_TOKENS = 3
MIN_POSITION_ROWS = 3


def attention_entropy(pattern, tolerance=ROW_SUM_TOLERANCE):
    """Shannon entropy of every attention row, in nats.

    pattern    [..., query, key]   rows sum to 1; masked keys are exactly 0
    tolerance  how far a row sum may be from 1
    returns    [..., query] float64, between 0 and ln(visible keys)
    raises     ValueError with the offending sum: an all-zero row is an error, not an entropy of 0

    Adding an epsilon before the logarithm, as the original did, gives a zeroed head the entropy ln(keys).
    """
    pattern = np.asarray(pattern, dtype=np.float64)
    sums = pattern.sum(axis=-1)
    wrong = ~(np.abs(sums - 1) <= tolerance)
    if wrong.any():
        raise ValueError(f"an attention row sums to {sums[wrong][0]:.6g}, not 1 (tolerance {tolerance:g})")
    if (pattern < 0).any():
        raise ValueError(f"an attention probability is negative: {pattern.min():.6g}")
    logs = np.zeros_like(pattern)
    np.log(pattern, out=logs, where=pattern > 0)
    return np.maximum(-np.einsum("...k,...k->...", pattern, logs), 0.0) + 0.0


def sinkfree_pattern(pattern):
    """Rows without key 0, renormalised; all-NaN where nothing is left to renormalise.

    pattern  [..., query, key]      returns  [..., query, key - 1] float64
    """
    rest = np.asarray(pattern, dtype=np.float64)[..., 1:]
    left = rest.sum(axis=-1, keepdims=True)
    return np.divide(rest, left, out=np.full_like(rest, np.nan), where=left > 0)


def sinkfree_entropy(pattern, tolerance=ROW_SUM_TOLERANCE):
    """Entropy in nats after key 0 is dropped and the row renormalised.

    pattern  [..., query, key] -> [..., query]; NaN where all of the mass sat on key 0
    """
    rest = sinkfree_pattern(pattern)
    out = np.full(rest.shape[:-1], np.nan)
    defined = ~np.isnan(rest).any(axis=-1) if rest.shape[-1] else np.zeros(out.shape, bool)
    out[defined] = attention_entropy(rest[defined], tolerance)
    return out


def visible_keys(n_query, windows):
    """Keys that each row can see: query + 1, capped by the layer's sliding window.

    windows  one entry a layer: the window in tokens, or None for full causal attention
    returns  [layer, query] int
    """
    causal = np.arange(1, n_query + 1)
    return np.stack([causal if window is None else np.minimum(causal, window) for window in windows])


def sinkfree_keys(visible):
    """Keys left in each row once key 0 is dropped; rows whose window has moved past key 0 lose none.

    visible  [layer, query] int    returns  [layer, query] int
    """
    return np.where(visible == np.arange(1, visible.shape[-1] + 1), visible - 1, visible)


def normalise_entropy(entropy, keys):
    """Entropy divided by ln(keys); NaN for rows that see fewer than two keys, where it is undefined.

    entropy  [..., query] nats    keys  broadcastable to it    returns  [..., query] in [0, 1]
    """
    keys = np.broadcast_to(keys, np.shape(entropy))
    return np.divide(entropy, np.log(np.maximum(keys, 1)), out=np.full(keys.shape, np.nan), where=keys > 1)


def row_mask(n_tokens, span, n_query, whole_prompt):
    """Which rows belong to a prompt: [prompt, query] bool.

    whole_prompt  True: every token fed, BOS included; False: the prompt's own text only
    """
    query = np.arange(n_query)
    if whole_prompt:
        return query < n_tokens[:, None]
    return (query >= span[:, :1]) & (query < span[:, 1:])


def counts_whole_prompt(kind, prompt_format):
    """True where the rows of a value are all tokens fed: the raw value of raw-format prompts."""
    return kind == "raw" and prompt_format == "raw"


def prompt_values(run, kind="normalised"):
    """The value of every prompt for every head: the mean over its rows. [prompt, layer, head] float64.

    run   anything with entropy, entropy_sinkfree, visible_keys, n_tokens, span and prompt_format
    kind  raw (nats), normalised or sinkfree (both in [0, 1]); NaN for a prompt without a defined row
    """
    rows = row_mask(run.n_tokens, run.span, run.entropy.shape[-1], counts_whole_prompt(kind, run.prompt_format))
    if kind == "raw":
        values = run.entropy.astype(np.float64)
    elif kind == "normalised":
        values = normalise_entropy(run.entropy, run.visible_keys[None, :, None, :])
    elif kind == "sinkfree":
        values = normalise_entropy(run.entropy_sinkfree, sinkfree_keys(run.visible_keys)[None, :, None, :])
    else:
        raise ValueError(f"kind {kind!r} is none of {', '.join(KINDS)}")
    return mean_rows(values, rows[:, None, None, :])


def null_values(run, kind="normalised"):
    """What `prompt_values` gives for attention that is uniform over the visible keys: [prompt, layer] float64."""
    if kind != "raw":
        return np.ones((len(run.n_tokens), run.visible_keys.shape[0]))
    rows = row_mask(run.n_tokens, run.span, run.entropy.shape[-1], counts_whole_prompt(kind, run.prompt_format))
    uniform = np.broadcast_to(np.log(run.visible_keys), (len(rows), *run.visible_keys.shape))
    return mean_rows(uniform, rows[:, None, :])


def mean_rows(values, rows):
    """Mean over the last axis of the defined values inside `rows`; NaN where there is none."""
    used = rows & ~np.isnan(values)
    count = used.sum(axis=-1)
    total = np.where(used, values, 0.0).sum(axis=-1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def category_mean(values, category, name):
    """Mean over the prompts of one category, each weighing the same: [prompt, ...] -> [...], NaN if it has none.

    A prompt whose value is undefined (one token, say) is left out of its category's mean.
    """
    chosen = values[np.asarray(category) == name]
    if not len(chosen):
        return np.full(values.shape[1:], np.nan)
    defined = ~np.isnan(chosen)
    count = defined.sum(axis=0)
    total = np.where(defined, chosen, 0.0).sum(axis=0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def rfc(h_self, h_neutral):
    """Role-Focus Coefficient 1 - H_self / H_neutral; NaN where H_neutral is 0 (undefined, not 0)."""
    return 1.0 - _ratio(h_self, h_neutral)


def rsi(h_self, h_confounder, h_neutral):
    """Role-Separation Index (H_confounder - H_self) / H_neutral; NaN where H_neutral is 0 (undefined, not 0)."""
    return _ratio(np.asarray(h_confounder) - h_self, h_neutral)


def _ratio(numerator, denominator):
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, np.float64), np.asarray(denominator, np.float64))
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator != 0)


def indices_of_means(means):
    """{"rfc": [...], "rsi": [...]} from a function category name -> mean entropy [...]."""
    h_self, h_neutral = means("self_referent"), means("neutral")
    return {"rfc": rfc(h_self, h_neutral), "rsi": rsi(h_self, means("confounder"), h_neutral)}


def index_values(values, category):
    """RFC and RSI from the values of prompts: [prompt, ...] -> {"rfc": [...], "rsi": [...]}."""
    return indices_of_means(lambda name: category_mean(values, category, name))


def layer_values(run, kind="normalised"):
    """The value of every prompt for every layer: the mean over heads of `prompt_values`. [prompt, layer]."""
    return prompt_values(run, kind).mean(axis=-1)


def layer_indices(run, kind="normalised"):
    """RFC and RSI of every layer: {"rfc": [layer], "rsi": [layer]}."""
    return index_values(layer_values(run, kind), run.category)


def layer_null(run, kind="normalised"):
    """RFC and RSI of every layer if attention were uniform: {"rfc": [layer], "rsi": [layer]}; 0 unless raw."""
    return index_values(null_values(run, kind), run.category)


def position_weights(run):
    """Weight of every query index where all categories of the indices have rows: [layer, query], sums to 1 per layer.

        w(q) proportional to min over categories of (rows at q / prompts), 0 where a category has fewer than three rows

    Rows at one query index of a layer see the same number of keys, so nothing about length is left to compare. Categories
    are self_referent, neutral and, where present, confounder. A layer without a shared position is NaN.
    """
    share = np.stack([_position_counts(run, name) / (run.category == name).sum() for name in _index_categories(run)])
    least = np.stack([_position_counts(run, name) for name in _index_categories(run)]).min(axis=0)
    weight = np.where(least >= MIN_POSITION_ROWS, share.min(axis=0), 0.0)
    total = weight.sum(axis=-1, keepdims=True)
    return np.divide(weight, total, out=np.full(weight.shape, np.nan), where=total > 0)


def position_matched_values(run):
    """Values whose category means are position-matched: [prompt, layer]; NaN for prompts of other categories.

        H_c = sum_q w(q) m_c(q)       m_c(q) the mean of the normalised entropy over the prompts of c with a row at q
        value of prompt i of c = H_c + N_c sum over its rows q of w(q) / n_c(q) (h_i(q) - m_c(q))

    The second line is the linearised contribution of a prompt to H_c (Hajek's estimator; Sarndal, Swensson and Wretman
    1992, ch. 5): the mean over the prompts of c is H_c, and their spread gives its standard error with w held fixed.
    """
    rows, weight = _own_rows(run), position_weights(run)
    out = np.full(rows.shape[:2], np.nan)
    for name in _index_categories(run):
        chosen = run.category == name
        part, count = rows[chosen], _position_counts(run, name)
        mean = category_mean(rows, run.category, name)
        each = np.divide(weight, count, out=np.zeros(count.shape), where=count > 0)
        residual = np.where(np.isnan(part), 0.0, part - mean)
        level = np.where(weight > 0, weight * np.nan_to_num(mean), weight * 0).sum(axis=-1)
        out[chosen] = level + chosen.sum() * (each * residual).sum(axis=-1)
    return out


def _index_categories(run):
    return [name for name in ("self_referent", "neutral", "confounder") if (run.category == name).any()]


def _own_rows(run):
    """Normalised entropy of every row of the prompt's own text, mean over heads; NaN elsewhere: [prompt, layer, query]."""
    rows = row_mask(run.n_tokens, run.span, run.entropy.shape[-1], False)
    values = normalise_entropy(run.entropy, run.visible_keys[None, :, None, :]).mean(axis=2)
    return np.where(rows[:, None], values, np.nan)


def _position_counts(run, name):
    """Prompts of a category with a defined row at each query index: [layer, query]."""
    return (~np.isnan(_own_rows(run)[run.category == name])).sum(axis=0)


def length_null(category, n_tokens, span, whole_prompt=True):
    """The raw indices of full causal uniform attention, from lengths alone: {"rfc": float, "rsi": float}.

    n_tokens [prompt] tokens fed    span [prompt, 2] the prompt's own tokens    whole_prompt as in `row_mask`
    """
    rows = row_mask(n_tokens, span, int(n_tokens.max()), whole_prompt)
    values = mean_rows(np.broadcast_to(np.log(visible_keys(rows.shape[1], [None])), rows.shape), rows)
    return {name: float(value) for name, value in index_values(values, category).items()}


def final_query_masses(final_row, span):
    """What the last token attends to: `first_mass`, `last_mass`, `edge_mass`, and `edge_tokens`.

    final_row  [prompt, head, key]   attention of every prompt's final query, 0 beyond its tokens
    span       [prompt, 2]           the prompt's own tokens; the BOS is never in it
    returns    first_mass, last_mass [prompt, head]   on the first / last three tokens of the text, all if it is shorter
               edge_mass [prompt, head, 2]            on the first / last k tokens, k = min(3, length // 2): disjoint
               edge_tokens [prompt] int               that k; 0 for a text of one token
    """
    key = np.arange(final_row.shape[-1])
    start, stop = span[:, :1], span[:, 1:]
    edge = np.minimum(EDGE_TOKENS, (stop - start) // 2)
    inside = (key >= start) & (key < stop)

    def mass(keys):
        return np.einsum("phk,pk->ph", final_row, (keys & inside).astype(final_row.dtype))

    return {
        "first_mass": mass(key < start + EDGE_TOKENS),
        "last_mass": mass(key >= stop - EDGE_TOKENS),
        "edge_mass": np.stack([mass(key < start + edge), mass(key >= stop - edge)], axis=-1),
        "edge_tokens": edge[:, 0].astype(np.int64),
    }


def pooled_rows(run, name):
    """Every row of a category, pooled: [row, layer, head], the rows of the raw value. The original study's sample."""
    whole = counts_whole_prompt("raw", run.prompt_format)
    rows = row_mask(run.n_tokens, run.span, run.entropy.shape[-1], whole)
    chosen = np.asarray(run.category) == name
    return run.entropy[chosen].transpose(0, 3, 1, 2)[rows[chosen]].astype(np.float64)


def original_head_indices(run):
    """RFC and RSI per head with entropies pooled over all rows of a category: {"rfc": [layer, head], "rsi": ...}.

    The estimator of the published numbers. Long prompts weigh more, and length is not controlled: for comparison only.
    """

    def pooled_mean(name):
        rows = pooled_rows(run, name)
        return rows.mean(axis=0) if len(rows) else np.full(run.entropy.shape[1:3], np.nan)

    return indices_of_means(pooled_mean)


def head_interval(values, confidence=0.95):
    """The original study's columns: mean, std (ddof 1), t-interval over heads and n; a dict of [layer] arrays.

    values  [layer, head]; a head without a defined value (NaN) is left out; one head has no std and no interval (NaN)

    Kept so that published numbers can be set beside ours, and never used for a claim: heads read the same prompts and
    feed one another, so they are no independent samples, and their spread says nothing about what other prompts would give.
    """
    defined = ~np.isnan(values)
    n = defined.sum(axis=-1)
    mean = _divide(np.where(defined, values, 0.0).sum(axis=-1), n)
    squares = np.where(defined, values - mean[..., None], 0.0) ** 2
    std = np.sqrt(_divide(squares.sum(axis=-1), n - 1))
    radius = _t_quantile(n - 1, confidence) * _divide(std, np.sqrt(n))
    return {"mean": mean, "std": std, "low": mean - radius, "high": mean + radius, "n": n}


def head_difference_interval(base, instruct, confidence=0.95):
    """instruct - base of two `head_interval` results, the original's way: {"value", "low", "high"}, each [layer].

    Standard errors are added in squares as if the heads of the two models were unrelated samples, and the t-quantile has
    min(n) - 1 degrees of freedom. Layer l head h is the same head in both, so even over heads this is the wrong interval.
    """
    error = np.hypot(*(_divide(side["std"], np.sqrt(side["n"])) for side in (base, instruct)))
    radius = _t_quantile(np.minimum(base["n"], instruct["n"]) - 1, confidence) * error
    value = instruct["mean"] - base["mean"]
    return {"value": value, "low": value - radius, "high": value + radius}


def _divide(numerator, denominator):
    return np.divide(numerator, denominator, out=np.full(np.shape(numerator), np.nan), where=denominator > 0)


def _t_quantile(freedom, confidence):
    """Two-sided Student t quantile; NaN where there is no degree of freedom."""
    from scipy.special import stdtrit

    return np.where(freedom > 0, stdtrit(np.maximum(freedom, 1), (1 + confidence) / 2), np.nan)
