"""Means, variances and ratios that leave undefined values (NaN) out."""

import numpy as np

BLOCK = 2**19  # columns times draws of a block


def defined_mean(values, axis=-1, where=True):
    """Mean over one axis of the defined values inside `where`; NaN where there is none."""
    used = where & ~np.isnan(values)
    return divide(np.where(used, values, 0.0).sum(axis=axis), used.sum(axis=axis))


def category_mean(values, category, name):
    """Mean over the prompts of one category, each weighing the same: [prompt, ...] -> [...].

    A prompt whose value is undefined (one token, say) is left out; NaN if no prompt is left.
    """
    return defined_mean(values[np.asarray(category) == name], axis=0)


def defined_moments(values):
    """(n, mean, variance with ddof 1) of the defined values over the first axis; NaN if too few.

    Taken about the first row: values that are all equal have variance 0 and no rounding error.
    """
    values = np.asarray(values, dtype=np.float64)
    start = np.nan_to_num(values[0])
    values = values - start
    mean = defined_mean(values, axis=0)
    n = (~np.isnan(values)).sum(axis=0)
    squares = np.where(np.isnan(values), 0.0, (values - mean) ** 2).sum(axis=0)
    return n, start + mean, divide(squares, np.maximum(n - 1, 0))


def divide(numerator, denominator):
    """numerator / denominator, float64; NaN where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    out = np.full(numerator.shape, np.nan)
    return np.divide(numerator, denominator, out=out, where=denominator != 0)


def column_blocks(present, n_draws):
    """(columns, rows): columns that have the same rows, few enough for the memory of their draws.

    present  [row, column]; 0 or False: undefined. Columns of a block are equal in it.
    """
    if (present == present[:, :1]).all():
        patterns, member = present[:, :1].T, np.zeros(present.shape[1], dtype=int)
    else:
        patterns, member = np.unique(present.T, axis=0, return_inverse=True)
    step = max(1, BLOCK // (n_draws + 1))
    for i, pattern in enumerate(patterns):
        columns, rows = np.flatnonzero(member.ravel() == i), np.flatnonzero(pattern)
        for start in range(0, len(columns) if len(rows) else 0, step):
            yield columns[start : start + step], rows
