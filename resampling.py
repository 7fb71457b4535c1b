"""Resampling inference over prompts: the prompt is the unit, heads and query rows never are.

    bootstrap   prompts are drawn with replacement within each category; a pair (confounder[i], third_person[i]) is drawn
                together; two runs of a comparison use the same draw
    interval    95 % percentile interval of the statistic over the draws

A draw is a row of counts, so that all category means of 10,000 draws are one matrix product per category.
Why not over heads, as the original: heads of a layer share the same prompts, so their spread says nothing about new ones.
"""

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
