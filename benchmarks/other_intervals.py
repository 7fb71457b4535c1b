"""Intervals of RFC and RSI by other methods than ours, which calibration.py holds beside it."""

import numpy as np
from scipy.stats import norm
from simulated_runs import labels

from rolecircuits.stats import index_inference, resampling
from rolecircuits.stats.indices import INDICES, indices_of_means


def resampled_indices(values, category, counts):
    """RFC and RSI of every resample: {index: [resample, ...]} from values [prompt, ...]."""

    def means(name):
        chosen = category == name
        weight = counts[:, chosen] / counts[:, chosen].sum(axis=1, keepdims=True)
        return np.tensordot(weight, values[chosen], axes=1)

    return indices_of_means(means)


def bca_interval(category, counts, runs):
    """Bias-corrected accelerated interval (Efron 1987): {index: (low, high)}.

    The jackknife is over all prompts, as scipy's.
    """

    def indices(weight):
        own = [resampled_indices(run, category, weight) for run in runs]
        return {k: own[0][k] - own[1][k] if len(own) == 2 else own[0][k] for k in INDICES}

    draws, jackknife, estimate = (
        indices(counts),
        indices(1 - np.eye(len(category))),
        indices(np.ones((1, len(category)))),
    )
    size = np.array([(category == c).sum() for c in category])[:, None]
    out = {}
    for name in INDICES:
        pseudo = jackknife[name] - estimate[name]
        pseudo = -pseudo * (size - 1) / size
        acceleration = (pseudo**3).sum(axis=0) / (6 * (pseudo**2).sum(axis=0) ** 1.5)
        ordered = np.sort(draws[name], axis=0)
        bias = norm.ppf(
            np.clip(
                (draws[name] < estimate[name]).mean(axis=0), 1 / len(counts), 1 - 1 / len(counts)
            )
        )
        ends = []
        for z in norm.ppf([0.025, 0.975]):
            share = norm.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))
            place = np.clip((share * (len(counts) + 1)).astype(int) - 1, 0, len(counts) - 1)
            ends.append(np.take_along_axis(ordered, place[None], axis=0)[0])
        out[name] = tuple(ends)
    return out


def intervals_by_method(runs, n, n_draws, seed):
    """{method: {index: (low, high)}} of flat runs [prompt, column]; ours is `bootstrap-t`."""
    category, pair_id = labels(n)
    counts = resampling.bootstrap_counts(category, pair_id, n_draws, seed)
    base = runs[1] if len(runs) == 2 else None
    own = index_inference.infer_indices(runs[0], category, pair_id, base, n_draws, seed)
    out = {
        "bootstrap-t": {k: own[k][1:3] for k in own},
        "BCa": bca_interval(category, counts, runs),
    }
    draws = [resampled_indices(run, category, counts) for run in runs]
    out["percentile"], out["equal-tailed t"] = {}, {}
    means = index_inference.Means(runs, category, resampling.draw_weights(counts))
    for name in INDICES:
        estimate, shift, error, _ = means.index_draws(name)
        both = draws[0][name] - draws[1][name] if len(runs) == 2 else draws[0][name]
        out["percentile"][name] = tuple(np.quantile(both, [0.025, 0.975], axis=0))
        low, high = np.quantile(shift[:, 1:] / error[:, 1:], [0.025, 0.975], axis=1)
        out["equal-tailed t"][name] = (estimate - high * error[:, 0], estimate - low * error[:, 0])
    return out
