"""Prompts that begin alike are one cluster: intervals and tests against a cluster bootstrap-t that
is written out here draw by draw, and against the sandwich formula."""

import numpy as np
import pytest

from rolecircuits.inputs.categories import CATEGORIES
from rolecircuits.stats import contrasts, resampling
from rolecircuits.stats.index_inference import Means, infer_indices, infer_mean_indices

SIZES = (1, 2, 5, 3, 1, 4, 2, 6, 1, 3, 2, 4, 3, 2)  # prompts of every cluster
UNIT = np.repeat(np.arange(len(SIZES)), SIZES)
SELF_NEUTRAL = ("self_referent", "neutral")
DRAWS = 199, 3
OFTEN = (1 + resampling.ENOUGH) / (1 + DRAWS[0])


def clustered(seed=0, n_layers=3):
    """(values [row, layer], category [row]): clusters have levels, categories are mixed in them."""
    rng = np.random.default_rng(seed)
    category = np.array(CATEGORIES[:3])[np.random.default_rng(9).permutation(len(UNIT)) % 3]
    level = 0.3 * rng.normal(size=(len(SIZES), n_layers))[UNIT]
    own = 0.15 * rng.normal(size=(len(UNIT), n_layers))
    factor = np.select([category == "self_referent", category == "neutral"], [0.92, 1.1], 1.0)
    return factor[:, None] * np.exp(level + own), category


def contrast_slopes(mean):
    return mean["neutral"] - mean["self_referent"], {"self_referent": -1.0, "neutral": 1.0}


def rfc_slopes(mean):
    ratio = mean["self_referent"] / mean["neutral"]
    slopes = {"self_referent": -1 / mean["neutral"], "neutral": ratio / mean["neutral"]}
    return 1 - ratio, slopes


def rsi_slopes(mean):
    n, difference = mean["neutral"], mean["confounder"] - mean["self_referent"]
    slopes = {"confounder": 1 / n, "self_referent": -1 / n, "neutral": -difference / n**2}
    return difference / n, slopes


def sandwich(clusters, measure):
    """(estimate, what every cluster adds to it) of clusters [(values [row, ...], category [row])].

    measure  function {category: mean} -> (estimate, {category: slope})
    """
    values = np.concatenate([own for own, _ in clusters])
    category = np.concatenate([names for _, names in clusters])
    n = {name: (category == name).sum() for name in CATEGORIES[:3]}
    mean = {name: values[category == name].mean(axis=0) for name in n if n[name]}
    estimate, slopes = measure(mean)
    parts = []
    for own, names in clusters:
        part = 0.0
        for name, slope in slopes.items():
            part = part + slope * (own[names == name] - mean[name]).sum(axis=0) / n[name]
        parts.append(part)
    return estimate, np.array(parts)


def by_loop(runs, category, measure, unit=UNIT, of_mean=False):
    """(estimate, low, high, p, error) by symmetric bootstrap-t over clusters; runs [row, layer]."""
    own = [np.flatnonzero(unit == g) for g in np.unique(unit)]
    counts = resampling.bootstrap_counts(category, unit, *DRAWS).astype(int)

    def draw(chosen):
        found = [sandwich([(run[g], category[g]) for g in chosen], measure) for run in runs]
        theta, parts = (a[0] - a[1] if len(a) == 2 else a[0] for a in zip(*found, strict=True))
        if of_mean:
            theta, parts = theta.mean(), parts.mean(axis=1)
        return theta, np.sqrt((parts**2).sum(axis=0) * len(parts) / (len(parts) - 1))

    theta, error = draw(own)
    drawn = [draw([g for g in own for _ in range(count[g[0]])]) for count in counts]
    t = np.sort([np.abs(star - theta) / spread for star, spread in drawn], axis=0)
    half = t[int(np.ceil(0.95 * (len(t) + 1))) - 1] * error
    p = (1 + (t >= np.abs(theta) / error).sum(axis=0)) / (1 + len(t))
    return theta, theta - half, theta + half, p, error


def assert_same(found, expected):
    for own, other in zip((*found[:3], found.error), (*expected[:3], expected[4]), strict=True):
        np.testing.assert_allclose(own, other, rtol=2e-3, atol=1e-6)
    p, other = np.atleast_1d(found.p), np.atleast_1d(expected[3])
    assert p[other >= OFTEN] == pytest.approx(other[other >= OFTEN], abs=0.0051)


def test_a_contrast_is_a_cluster_bootstrap_t_by_loop():
    values, category = clustered()
    found = contrasts.infer_contrast(values, category, UNIT, SELF_NEUTRAL, *DRAWS)
    used = np.isin(category, SELF_NEUTRAL)
    expected = by_loop([values[used]], category[used], contrast_slopes, UNIT[used])
    assert_same(found, expected)
    compared = contrasts.compare_categories(values, category, UNIT, SELF_NEUTRAL, *DRAWS)
    for name in ("low", "high", "p", "p_max"):
        np.testing.assert_array_equal(compared[name], getattr(found, name))
    scale = compared["g"] / compared["estimate"]
    np.testing.assert_allclose(compared["g_low"], found.low * scale)
    np.testing.assert_allclose(compared["g_high"], found.high * scale)


@pytest.mark.parametrize("two_runs", [False, True])
@pytest.mark.parametrize(("index", "measure"), [("rfc", rfc_slopes), ("rsi", rsi_slopes)])
def test_indices_are_a_cluster_bootstrap_t_by_loop(index, measure, two_runs):
    values, category = clustered()
    base = 0.7 * values * np.exp(0.05 * clustered(1)[0]) if two_runs else None
    runs = [values, base][: 1 + two_runs]
    found = infer_indices(values, category, UNIT, base, *DRAWS)[index]
    assert_same(found, by_loop(runs, category, measure))
    found = infer_mean_indices(values, category, UNIT, base, *DRAWS)[index]
    assert_same(found, by_loop(runs, category, measure, of_mean=True))


def test_a_mean_over_clusters_is_a_ratio_of_two_sums():
    values, category = clustered()
    values[3, 1] = np.nan
    found = resampling.infer_mean(values[:, [0, 2]], category, UNIT, n_resamples=199, seed=3)
    clusters = [values[UNIT == g][:, [0, 2]] for g in range(len(SIZES))]

    def ratio(chosen):
        sums, sizes = (
            np.array([own.sum(axis=0) for own in chosen]),
            np.array(list(map(len, chosen))),
        )
        mean, k = sums.sum(axis=0) / sizes.sum(), len(chosen)
        square = ((sums - mean * sizes[:, None]) ** 2).sum(axis=0) * k / (k - 1)
        return mean, np.sqrt(square) / sizes.sum()

    counts = resampling.bootstrap_counts(np.full(14, "all"), np.full(14, -1), *DRAWS).astype(int)
    mean, error = ratio(clusters)
    drawn = [ratio([clusters[g] for g in np.repeat(np.arange(14), count)]) for count in counts]
    t = np.sort([np.abs(star - mean) / spread for star, spread in drawn], axis=0)
    np.testing.assert_allclose(found.estimate, mean)
    np.testing.assert_allclose(found.error, error, rtol=1e-4)
    whole = resampling.infer_mean(values, category, UNIT, n_resamples=199, seed=3)
    assert whole.estimate[1] == pytest.approx(np.nanmean(values[:, 1]))
    np.testing.assert_allclose(whole.high[[0, 2]], found.high)
    assert np.isfinite(whole.high[1])
    order = resampling.sum_units(values[:, [0]], category, UNIT)[1][:, 0]
    assert sorted(order.tolist()) == sorted(SIZES)
    width = (found.high - found.estimate) / error
    assert width == pytest.approx(t[int(np.ceil(0.95 * 200)) - 1], rel=0.25)


def test_clusters_of_one_prompt_have_the_errors_of_independent_prompts():
    """Up to n / (n - 1) of a group against k / (k - 1) of all clusters."""
    category = np.repeat(SELF_NEUTRAL, [9, 14])
    values = np.random.default_rng(4).gamma(4, 1, (23, 3))
    once = np.ones((23, 2), np.float32)
    slopes = {"self_referent": 1.0, "neutral": -1.0}
    found = Means([values], category, once, np.arange(23), SELF_NEUTRAL).draws(slopes)[2][:, 0]
    parts = [values[:9].var(axis=0) / 9, values[9:].var(axis=0) / 14]
    np.testing.assert_allclose(found, np.sqrt(sum(parts) * 23 / 22), rtol=1e-5)


def test_clusters_widen_what_lies_between_them_and_not_what_lies_inside():
    """Each cluster has as many of both categories: its level cancels, and an effect of the cluster
    on the difference does not."""
    unit, category = np.repeat(np.arange(20), 6), np.tile(np.repeat(SELF_NEUTRAL, 3), 20)
    rng = np.random.default_rng(1)
    own, level = 0.1 * rng.normal(size=(120, 1)), rng.normal(size=(20, 1))[unit]
    where = category == "self_referent"

    def errors(values):
        clusters = contrasts.infer_contrast(values, category, unit, SELF_NEUTRAL, 199).error[0]
        alone = contrasts.infer_contrast(values, category, None, SELF_NEUTRAL, 199).error[0]
        return clusters / alone

    assert errors(own + level) < 0.2 and 0.7 < errors(own) < 1.3
    assert errors(own + np.where(where[:, None], level, -level)) > 1.5


def test_the_level_of_clustered_tests_holds_and_that_of_independent_ones_does_not():
    """400 sets of 20 first words of one to six prompts, no effect of the category."""
    rng = np.random.default_rng(2)
    sizes = rng.integers(1, 7, 20)
    unit = np.repeat(np.arange(20), sizes)
    # a word leans to one category, as in the original prompts
    category = np.where(rng.random(len(unit)) < np.tile([0.8, 0.2], 10)[unit], *SELF_NEUTRAL)
    values = rng.normal(size=(20, 400))[unit] + 0.5 * rng.normal(size=(len(unit), 400))
    clusters, alone = (
        contrasts.infer_contrast(values, category, own, SELF_NEUTRAL, 399).p for own in (unit, None)
    )
    assert 0.02 < (clusters < 0.05).mean() < 0.09 and (alone < 0.05).mean() > 0.15
    covered = resampling.infer_mean(values, category, unit, n_resamples=399)
    assert 0.91 < ((covered.low < 0) & (covered.high > 0)).mean() < 0.98
