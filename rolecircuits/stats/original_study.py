"""The published study's estimator, kept only to set its numbers beside ours.

Entropies are pooled over all rows of a category, RFC and RSI are taken per head, and their spread
is that over heads. Long prompts weigh more, length is not controlled, and heads are no independent
samples: they read the same prompts and feed one another, so their spread says nothing about what
other prompts would give.
"""

import numpy as np
from scipy.special import stdtrit

from rolecircuits.stats.indices import counts_whole_prompt, indices_of_means, row_mask
from rolecircuits.stats.moments import defined_mean, divide
from rolecircuits.stats.resampling import CONFIDENCE


def original_head_indices(run):
    """RFC and RSI per head from pooled rows: {"rfc": [layer, head], "rsi": [layer, head]}."""
    whole = counts_whole_prompt("raw", run.prompt_format)
    rows = row_mask(run.n_tokens, run.span, run.entropy.shape[-1], whole)

    def pooled_mean(name):
        chosen = np.asarray(run.category) == name
        pooled = run.entropy[chosen].transpose(0, 3, 1, 2)[rows[chosen]].astype(np.float64)
        return pooled.mean(axis=0) if len(pooled) else np.full(run.entropy.shape[1:3], np.nan)

    return indices_of_means(pooled_mean)


def pooled_length_null(lengths):
    """{"rfc": float, "rsi": float} of this estimator under uniform causal attention.

    lengths  {category: [prompt] tokens fed}. A row that sees k keys has entropy ln k, and all rows
             of a category are pooled: what the lengths alone make of the indices
    """

    def pooled_mean(name):
        return np.concatenate([np.log(np.arange(1, n + 1)) for n in lengths[name]]).mean()

    return {name: float(value) for name, value in indices_of_means(pooled_mean).items()}


def head_interval(values):
    """The original's columns: mean, std (ddof 1), 95 % t-interval over heads and n, each [layer].

    values  [layer, head]; an undefined head (NaN) is left out; one head has no std and no interval
    """
    n = (~np.isnan(values)).sum(axis=-1)
    mean = defined_mean(values)
    squares = np.nansum((values - mean[..., None]) ** 2, axis=-1)
    std = np.sqrt(divide(squares, np.maximum(n - 1, 0)))
    radius = _t_quantile(n - 1) * divide(std, np.sqrt(n))
    return {"mean": mean, "std": std, "low": mean - radius, "high": mean + radius, "n": n}


def head_difference_interval(base, instruct):
    """instruct - base of two `head_interval`s, the original way: estimate, low, high, each [layer].

    Standard errors are added in squares as if the heads of the two models were unrelated samples,
    with min(n) - 1 degrees of freedom. Layer l head h is the same head in both, so even over heads
    this is the wrong interval.
    """
    error = np.hypot(*(divide(side["std"], np.sqrt(side["n"])) for side in (base, instruct)))
    radius = _t_quantile(np.minimum(base["n"], instruct["n"]) - 1) * error
    value = instruct["mean"] - base["mean"]
    return {"estimate": value, "low": value - radius, "high": value + radius}


def _t_quantile(freedom):
    """Two-sided Student t quantile; NaN where there is no degree of freedom."""
    return np.where(freedom > 0, stdtrit(np.maximum(freedom, 1), (1 + CONFIDENCE) / 2), np.nan)
