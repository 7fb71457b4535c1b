"""The published study's estimator, kept so that its numbers can be set beside ours. For comparison only.

Entropies are pooled over all rows of a category, RFC and RSI are taken per head, and their spread is that over heads. Long
prompts weigh more, length is not controlled, and heads are no independent samples.
"""

import numpy as np

from rolecircuits.stats.indices import counts_whole_prompt, indices_of_means, row_mask
from rolecircuits.stats.moments import _divide


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


def _t_quantile(freedom, confidence):
    """Two-sided Student t quantile; NaN where there is no degree of freedom."""
    from scipy.special import stdtrit

    return np.where(freedom > 0, stdtrit(np.maximum(freedom, 1), (1 + confidence) / 2), np.nan)
