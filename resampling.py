"""Resampling inference over prompts: the prompt is the unit, heads and query rows never are.

    bootstrap   prompts are drawn with replacement within each category; a pair (confounder[i], third_person[i]) is drawn
                together; two runs of a comparison use the same draw
    interval    95 % percentile interval of the statistic over the draws

A draw is a row of counts, so that all category means of 10,000 draws are one matrix product per category.
Why not over heads, as the original: heads of a layer share the same prompts, so their spread says nothing about new ones.
"""

from statistics import NormalDist

import numpy as np

from prompts import PAIRED
from role_metrics import indices_of_means

N_RESAMPLES = 10_000
CONFIDENCE = 0.95
MIN_PROMPTS = 2


def bootstrap_counts(category, pair_id, n_resamples=N_RESAMPLES, seed=0):
    """How often each prompt is drawn in each resample: [resample, prompt] float64; each category keeps its size.

    category  [prompt] str      pair_id  [prompt] int, -1 for prompts without a partner
    """
    category, pair_id = np.asarray(category), np.asarray(pair_id)
    rng = np.random.default_rng(seed)
    counts = np.zeros((n_resamples, len(category)))
    paired = np.zeros(len(category), dtype=bool)
    left, right = (np.flatnonzero((category == name) & (pair_id >= 0)) for name in PAIRED)
    if len(left) and sorted(pair_id[left]) == sorted(pair_id[right]):
        drawn = _draw_counts(rng, len(left), n_resamples)
        for side in (left, right):
            counts[:, side[np.argsort(pair_id[side], kind="stable")]] = drawn
            paired[side] = True
    for name in dict.fromkeys(category):
        alone = np.flatnonzero((category == name) & ~paired)
        if len(alone):
            counts[:, alone] = _draw_counts(rng, len(alone), n_resamples)
    return counts


def _draw_counts(rng, n, n_resamples):
    return rng.multinomial(n, np.full(n, 1.0 / n), size=n_resamples).astype(np.float64)


def resampled_means(values, category, name, counts):
    """Mean of one category in every resample: values [prompt, ...], counts [resample, prompt] -> [resample, ...].

    Undefined values (NaN) are left out of the mean, as in `role_metrics.category_mean`.
    """
    chosen = np.asarray(category) == name
    part, weight = values[chosen], counts[:, chosen]
    if not chosen.any():
        return np.full((len(counts), *values.shape[1:]), np.nan)
    flat = part.reshape(len(part), -1)
    defined = ~np.isnan(flat)
    if defined.all():
        means = weight @ flat / weight.sum(axis=1, keepdims=True)
    else:
        total, size = weight @ np.where(defined, flat, 0.0), weight @ defined
        means = np.divide(total, size, out=np.full(total.shape, np.nan), where=size > 0)
    return means.reshape(len(counts), *values.shape[1:])


def resampled_indices(values, category, counts):
    """RFC and RSI in every resample: {"rfc": [resample, ...], "rsi": [resample, ...]} from values [prompt, ...]."""
    return indices_of_means(lambda name: resampled_means(values, category, name, counts))


def percentile_interval(draws, confidence=CONFIDENCE):
    """(low, high) over the first axis of [resample, ...]; NaN where a draw is undefined."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return low, high


def has_enough_prompts(category):
    """True if every category present has the two prompts that an interval needs."""
    _, n = np.unique(np.asarray(category), return_counts=True)
    return bool((n >= MIN_PROMPTS).all())


def simultaneous_band(value, draws, confidence=CONFIDENCE):
    """(low, high) of a band around value [layer] that holds all layers at once with this confidence (max-T).

    draws  [resample, layer]. Of L pointwise 95 % intervals 0.05 L miss by chance; of this band one in 20 does, as a whole.
    """
    spread = draws.std(axis=0, ddof=1)
    scaled = np.divide(np.abs(draws - value), spread, out=np.zeros(draws.shape), where=spread > 0)
    radius = np.quantile(scaled.max(axis=1), confidence) * spread
    return value - radius, value + radius


def head_interval(values, confidence=CONFIDENCE):
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


def head_difference_interval(base, instruct, confidence=CONFIDENCE):
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


def hedges_g(a, b):
    """Hedges' g: the difference a - b in pooled standard deviations, corrected for its small-sample bias.

    a, b     [prompt, ...] two groups of prompts; NaN is left out
    returns  [...] float64; NaN where the pooled standard deviation is 0 or a group has fewer than two prompts

    g = J (mean a - mean b) / s, J = 1 - 3 / (4 (n_a + n_b) - 9); Hedges & Olkin (1985), Statistical Methods for
    Meta-Analysis, ch. 5. The plain standardised difference is too large by 1 / J: 5 % for two groups of eight.
    """
    (n_a, mean_a, squares_a), (n_b, mean_b, squares_b) = _moments(a), _moments(b)
    defined = (n_a >= MIN_PROMPTS) & (n_b >= MIN_PROMPTS) & (squares_a + squares_b > 0)
    n = np.where(defined, n_a + n_b, 2 * MIN_PROMPTS)
    pooled = np.sqrt(np.where(defined, squares_a + squares_b, np.nan) / (n - 2))
    return (1 - 3 / (4 * n - 9)) * (mean_a - mean_b) / pooled


def hedges_g_interval(a, b, confidence=CONFIDENCE):
    """(low, high) of `hedges_g` by the large-sample normal approximation of Hedges & Olkin (1985), ch. 5, eq. 15.

    variance of g = (n_a + n_b) / (n_a n_b) + g^2 / (2 (n_a + n_b)); a, b as in `hedges_g`, low and high [...]
    """
    g, (n_a, *_), (n_b, *_) = hedges_g(a, b), _moments(a), _moments(b)
    n_a, n_b = np.where(np.isnan(g), np.nan, n_a), np.where(np.isnan(g), np.nan, n_b)
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * np.sqrt((n_a + n_b) / (n_a * n_b) + g**2 / (2 * (n_a + n_b)))
    return g - reach, g + reach


def _moments(values):
    """(n, mean, sum of squared deviations) along axis 0, NaN left out; sums below rounding error count as 0."""
    values = np.asarray(values, dtype=np.float64)
    defined = ~np.isnan(values)
    n = defined.sum(axis=0)
    mean = np.divide(np.where(defined, values, 0.0).sum(axis=0), n, out=np.full(n.shape, np.nan), where=n > 0)
    squares = np.where(defined, values - mean, 0.0) ** 2
    rounding = n * (np.abs(np.where(n > 0, mean, 0.0)) * 8 * np.finfo(np.float64).eps) ** 2
    total = squares.sum(axis=0)
    return n, mean, np.where(total > rounding, total, 0.0)
