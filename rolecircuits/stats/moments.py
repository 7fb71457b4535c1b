"""Means and variances that leave undefined values (NaN) out."""

import numpy as np


def _defined_moments(values):
    """(n, mean, variance with ddof 1) over the first axis without NaN; NaN where there are too few values.

    Taken about the first row, so that values that are all equal have the variance 0 and not a rounding error.
    """
    values = np.asarray(values, dtype=np.float64)
    start = np.nan_to_num(values[0])
    values = values - start
    mean = category_mean(values, np.ones(len(values), dtype=bool), True)
    n = (~np.isnan(values)).sum(axis=0)
    squares = np.where(np.isnan(values), 0.0, (values - mean) ** 2).sum(axis=0)
    return (
        n,
        start + mean,
        np.divide(squares, n - 1, out=np.full(np.shape(mean), np.nan), where=n > 1),
    )


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


def _ratio(numerator, denominator):
    numerator, denominator = np.broadcast_arrays(
        np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    )
    return np.divide(
        numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator != 0
    )


def _divide(numerator, denominator):
    return np.divide(
        numerator, denominator, out=np.full(np.shape(numerator), np.nan), where=denominator > 0
    )


def later_mean(indices):
    """Mean over the defined layers of the last axis: [..., layer] -> [...]; NaN where no layer is defined."""
    defined = ~np.isnan(indices)
    count = defined.sum(axis=-1)
    total = np.where(defined, indices, 0.0).sum(axis=-1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def mean_draws(values, counts):
    """Mean over the defined prompts in every resample: values [prompt], counts [resample, prompt] -> [resample]."""
    defined = ~np.isnan(values)
    size = counts @ defined
    return np.divide(
        counts @ np.where(defined, values, 0.0),
        size,
        out=np.full(len(counts), np.nan),
        where=size > 0,
    )
