"""Resampling inference against scipy, against hand computations, and against simulations whose
truth is known."""

import numpy as np
import pytest
from scipy import stats

from rolecircuits.stats import contrasts, entropy, indices, moments, resampling
from rolecircuits.stats.contrasts import hedges_g, hedges_g_interval
from rolecircuits.stats.index_inference import Means, infer_indices, infer_mean_indices
from rolecircuits.stats.resampling import bootstrap_counts
from synthetic import make_run

CATEGORY = np.repeat(["self_referent", "confounder", "neutral", "third_person"], 30)
PAIR = np.where(np.isin(CATEGORY, ["confounder", "third_person"]), np.tile(np.arange(30), 4), -1)

WORD = np.tile(np.repeat(np.arange(10), 3), 4)  # first words: ten clusters of three a category


def lognormal(shape, means=(1, 1, 1, 1), spread=(0.3, 0.3, 0.4, 0.3), per=30, seed=0):
    """[prompt, *shape] values with exact expectations `means`, one a category, in the order of
    CATEGORY."""
    z = np.random.default_rng(seed).normal(size=(4 * per, *shape))
    column = (-1, *[1] * len(shape))
    mean, sd = (np.repeat(x, per).reshape(column) for x in (means, spread))
    return mean * np.exp(sd * z - sd**2 / 2)


def drawn_indices(values, category, counts):
    """RFC and RSI of every resample by weighted means, draw by draw: {"rfc": [resample, ...],
    "rsi": ...}."""
    draws = {"rfc": [], "rsi": []}
    for count in counts:
        mean = {
            name: np.average(values[category == name], axis=0, weights=count[category == name])
            for name in ("self_referent", "confounder", "neutral")
        }
        for name, value in indices.indices_of_means(mean.get).items():
            draws[name].append(value)
    return {name: np.array(draw) for name, draw in draws.items()}


def own_draws(runs, weights, category=CATEGORY, unit=None):
    """{index: (estimate, shift, error)} as `Means` has them."""
    means = Means(runs, category, weights, unit)
    return {index: means.index_draws(index)[:3] for index in indices.INDICES}


def test_a_difference_is_symmetric_bootstrap_t_with_max_t_by_hand():
    """Unequal sizes and spreads, resample by resample; three columns are one family."""
    rng, draws = np.random.default_rng(3), (399, 4)
    a, b = rng.normal(0.6, 1, (12, 3)), rng.exponential(2, (20, 3))
    group = np.repeat(["a", "b"], [12, 20])
    counts = bootstrap_counts(group, np.full(32, -1), *draws).astype(int)

    def estimate_and_error(x, y):
        error = np.sqrt(x.var(axis=0, ddof=1) / len(x) + y.var(axis=0, ddof=1) / len(y))
        return x.mean(axis=0) - y.mean(axis=0), error

    estimate, error = estimate_and_error(a, b)
    drawn = [
        estimate_and_error(np.repeat(a, count[:12], axis=0), np.repeat(b, count[12:], axis=0))
        for count in counts
    ]
    t = np.array([np.abs(star - estimate) / spread for star, spread in drawn])
    points, observed = np.sort(t, axis=0), np.abs(estimate) / error
    found = resampling.infer_difference(a, b, False, *draws)
    np.testing.assert_allclose(found.estimate, estimate)
    np.testing.assert_allclose(found.error, error, rtol=1e-5)
    np.testing.assert_allclose(found.high - estimate, points[379] * error, rtol=1e-4)
    np.testing.assert_allclose(estimate - found.low, points[379] * error, rtol=1e-4)
    np.testing.assert_allclose(found.inner, points[359] * error, rtol=1e-4)
    reached, inside = (t >= observed).sum(axis=0), observed <= points[379]
    assert inside.tolist() == [True, False, False]
    assert found.p[0] == pytest.approx((1 + reached[0]) / 400, abs=0.0026)
    shares = np.concatenate([(a - a.mean(axis=0)) / 12, -(b - b.mean(axis=0)) / 20])
    tail = tail_by_hand(observed, points[379], shares)[1:]
    often = reached[1:] >= resampling.ENOUGH
    assert (found.p[1:] >= tail * (1 - 1e-4)).all() and (found.p[1:] < 0.05).all()
    expected = np.fmax(tail, reached[1:] / 399)
    assert found.p[1:][often] == pytest.approx(expected[often], rel=1e-3)
    assert found.p_max == pytest.approx(family_by_hand(found.p, t), rel=1e-6)


def tail_by_hand(observed, width, shares):
    """Student's t through (width, 0.05) with as many degrees of freedom as units carry the
    variance; shares [unit, column] of the estimate.
    """
    freedom = (shares**2).sum(axis=0) ** 2 / (shares**4).sum(axis=0) - 1
    return 2 * stats.t.sf(observed * stats.t.ppf(0.975, freedom) / width, freedom)


def family_by_hand(p, t):
    """1 - (1 - p)^k: as many independent tests as pass 5 % of the draws with their smallest p."""
    least = (len(t) - stats.rankdata(t, axis=0) + 1).min(axis=1)
    k = next(k for k in range(1, len(t)) if (least <= k).mean() >= 0.05)
    tests = np.log(1 - (least <= k).mean()) / np.log(1 - k / len(t))
    return 1 - (1 - p) ** np.clip(tests, 1, t.shape[1])


def test_a_difference_of_normal_values_has_nearly_welchs_p_and_interval():
    rng = np.random.default_rng(5)
    a, b = rng.normal(0.5, 1, (40, 6)), rng.normal(0, 2, (40, 6))
    found, theirs = resampling.infer_difference(a, b), stats.ttest_ind(a, b, equal_var=False)
    assert found.p == pytest.approx(theirs.pvalue, abs=0.025)
    interval = theirs.confidence_interval()
    np.testing.assert_allclose(found[1:3], [interval.low, interval.high], atol=0.06)


def test_pairs_are_the_mean_of_their_differences():
    values = lognormal((4,))
    a, b = values[:30], values[:30] + 0.1 * values[30:60]
    paired, plain = (resampling.infer_difference(a, b, how, 499, 2) for how in (True, False))
    of_mean = resampling.infer_mean(a - b, np.full(30, "a"), None, n_resamples=499, seed=2)
    for own, expected in zip(paired, of_mean, strict=True):
        np.testing.assert_array_equal(own, expected)
    assert (paired.p < 0.002).all() and (plain.p > 0.05).all()


def test_draws_are_the_seeds_and_p_agrees_with_its_interval():
    a, b = lognormal((200,), (1, 1.15, 1, 1))[:60].reshape(2, 30, 200)
    found, again, other = (
        resampling.infer_difference(a, b, False, 499, seed) for seed in (1, 1, 2)
    )
    for own, same in zip(found, again, strict=True):
        np.testing.assert_array_equal(own, same)
    assert (found.p != other.p).any()
    out = (found.low > 0) | (found.high < 0)
    assert 0.1 < out.mean() < 0.95 and (out == (found.p <= 0.05)).all()


def test_rare_columns_get_more_draws_and_others_keep_theirs():
    """Of 24 columns two are far from 0: 499 draws cannot say how far."""
    values = np.random.default_rng(1).normal(size=(30, 24))
    values += np.linspace(0, 1.2, 24) * stats.sem(values) - values.mean(axis=0)
    values[:, 0] += 3
    values[:, 1] += 0.45
    found = [resampling.infer_mean(values, n_resamples=499, seed=seed) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(found[0].p, found[1].p)
    assert found[0].p[0] < 0.05 / (20 * 24) and found[0].p_max[0] < 0.001
    observed, centred = np.abs(stats.ttest_1samp(values, 0).statistic), values - values.mean(axis=0)

    def draw(seed):
        counts = bootstrap_counts(np.full(30, "all"), np.full(30, -1), 499, seed)
        mean = counts @ centred / 30
        return np.abs(mean / np.sqrt((counts @ centred**2 / 30 - mean**2) / 29))

    first = draw(1)
    reached = (first >= observed).sum(axis=0)
    often = reached >= resampling.ENOUGH
    assert often.tolist() == [False] * 2 + [True] * 22
    assert found[0].p[often] == pytest.approx((1 + reached[often]) / 500, abs=0.0021)
    rare, rounds = reached[1], 1
    while rare < resampling.ENOUGH:
        rare += (draw((1, rounds)) >= observed).sum(axis=0)[1]
        rounds += 1
    width = np.sort(first, axis=0)[int(np.ceil(0.95 * 500)) - 1]
    tail = tail_by_hand(observed, width, centred)[1]
    expected = max(tail, rare / (499 * rounds))
    assert rounds > 1 and found[0].p[1] == pytest.approx(expected, rel=1e-3)


def test_far_out_p_is_that_of_the_units_that_carry_the_variance():
    """One unit of thirty carries nearly all variance: nothing is sure, however far out."""
    values = np.full((30, 2), 1.0)
    values[:, 0] += 0.3 * np.random.default_rng(1).normal(size=30)
    values[:, 1] += np.where(np.arange(30) == 4, 1.5, 0.01 * values[:, 0])
    many, single = resampling.tail_freedom(values - values.mean(axis=0))
    assert 5 < many < 20 and single == 1
    found = resampling.infer_mean(values, n_resamples=999, seed=1)
    assert found.p[0] < 1e-4 and found.p[1] > 0.05


def test_indices_agree_with_their_formula_in_every_resample():
    values, base = lognormal((5,), (0.9, 1, 1, 1)), lognormal((5,), (0.5, 0.6, 0.6, 0.6), seed=1)
    counts = bootstrap_counts(CATEGORY, PAIR, 50, seed=2)
    expected = [drawn_indices(run, CATEGORY, counts) for run in (values, base)]
    found = own_draws([values, base], resampling.draw_weights(counts))
    for name, (estimate, shift, _) in found.items():
        draws = (expected[0][name] - expected[1][name]).T
        np.testing.assert_allclose(estimate[:, None] + shift[:, 1:], draws, atol=2e-6)
        np.testing.assert_allclose(shift[:, 0], 0, atol=1e-6)


def test_standard_error_is_the_delta_method_by_hand():
    values = lognormal((), (0.9, 1, 1.2, 1))
    s, c, n = (values[k * 30 : k * 30 + 30] for k in range(3))
    found = own_draws([values[:, None]], np.ones((120, 2), np.float32))
    rfc = np.sqrt(
        s.var(ddof=1) / 30 / n.mean() ** 2 + s.mean() ** 2 * n.var(ddof=1) / 30 / n.mean() ** 4
    )
    d = (c.mean() - s.mean()) / n.mean()
    rsi = np.sqrt((c.var(ddof=1) + s.var(ddof=1) + d**2 * n.var(ddof=1)) / 30) / n.mean()
    assert found["rfc"][2][0, 0] == pytest.approx(rfc, rel=1e-5)
    assert found["rsi"][2][0, 0] == pytest.approx(rsi, rel=1e-5)


def test_standard_error_of_two_runs_uses_the_same_prompts():
    """By hand: the error of instruct - base is that of the per-prompt differences of the two
    linearised indices."""
    values = lognormal((), (0.9, 1, 1.2, 1))
    base = 0.5 * values * lognormal((), spread=(0.1,) * 4, seed=1)
    found = own_draws([values[:, None], base[:, None]], np.ones((120, 2), np.float32))["rfc"]

    def linearised(run):
        s, n = run[:30], run[60:90]
        return -s / n.mean(), s.mean() * n / n.mean() ** 2

    parts = [a - b for a, b in zip(linearised(values), linearised(base), strict=True)]
    assert found[2][0, 0] == pytest.approx(
        np.sqrt(sum(part.var(ddof=1) / 30 for part in parts)), rel=1e-4
    )


def test_spread_of_the_draws_agrees_with_scipy_bootstrap():
    values = lognormal((), (0.8, 1, 1, 1))
    s, n = values[:30], values[60:90]
    how = {"vectorized": False, "method": "percentile", "n_resamples": 4000, "rng": 0}
    theirs = stats.bootstrap((s, n), lambda x, y: 1 - x.mean() / y.mean(), **how)
    counts = bootstrap_counts(CATEGORY, PAIR, 4000)
    estimate, shift, _ = own_draws([values[:, None]], resampling.draw_weights(counts))["rfc"]
    draws = estimate + shift[0, 1:]
    ours = np.quantile(draws, [0.025, 0.975])
    np.testing.assert_allclose(ours, theirs.confidence_interval, atol=0.012)
    assert draws.std() == pytest.approx(theirs.standard_error, rel=0.05)
    low, high = infer_indices(values, CATEGORY, PAIR)["rfc"][1:3]
    assert 1.0 < (high - low) / np.ptp(ours) < 1.2


def test_index_interval_is_symmetric_bootstrap_t_by_hand():
    values = lognormal((), (0.8, 1, 1, 1))
    counts = bootstrap_counts(CATEGORY, PAIR, 999, seed=5)
    s, n = values[:30], values[60:90]

    def estimate_and_error(a, b):
        error = np.sqrt(
            a.var(ddof=1) / b.mean() ** 2 + a.mean() ** 2 * b.var(ddof=1) / b.mean() ** 4
        ) / np.sqrt(30)
        return 1 - a.mean() / b.mean(), error

    estimate, error = estimate_and_error(s, n)
    t = []
    for row in counts.astype(int):
        star, star_error = estimate_and_error(np.repeat(s, row[:30]), np.repeat(n, row[60:90]))
        t.append(abs(star - estimate) / star_error)
    found = infer_indices(values, CATEGORY, PAIR, n_resamples=999, seed=5)["rfc"]
    critical = np.sort(t)[949]
    np.testing.assert_allclose(
        found[:3], [estimate, estimate - critical * error, estimate + critical * error], rtol=1e-4
    )
    assert found.p == pytest.approx((1 + np.sum(t >= abs(estimate) / error)) / 1000, abs=0.0011)


def test_pairs_are_drawn_together_and_categories_keep_their_size():
    counts = bootstrap_counts(CATEGORY, PAIR, 100, seed=1)
    np.testing.assert_array_equal(counts[:, 30:60], counts[:, 90:120])
    assert (counts[:, :30].sum(axis=1) == 30).all()
    assert (counts[:, :30] != counts[:, 60:90]).any()


def test_two_runs_share_their_resamples():
    values = lognormal((4,), (0.8, 1, 1, 1))
    difference = infer_indices(values, CATEGORY, PAIR, base=0.5 * values)["rfc"]
    np.testing.assert_allclose(difference.estimate, 0, atol=1e-12)
    noisy = infer_indices(
        values, CATEGORY, PAIR, base=0.5 * values * np.exp(0.01 * lognormal((4,), seed=9))
    )["rfc"]
    single = infer_indices(values, CATEGORY, PAIR)["rfc"]
    assert (noisy.high - noisy.low < 0.1 * (single.high - single.low)).all()


def mean_index_by_hand(values, base, counts):
    """(estimate, error, t of every draw) of the mean over layers of RFC(values) - RFC(base), prompt
    by prompt."""
    rows = {name: np.flatnonzero(CATEGORY == name) for name in ("self_referent", "neutral")}

    def index_and_error(weights):
        index, slopes = 0.0, np.zeros(len(CATEGORY))
        for sign, x in ((1, values), (-1, base)):
            h = {name: np.average(x[r], axis=0, weights=weights[r]) for name, r in rows.items()}
            index += sign * (1 - h["self_referent"] / h["neutral"]).mean()
            own, other = x[rows["self_referent"]], x[rows["neutral"]]
            slopes[rows["self_referent"]] -= sign * (own / h["neutral"]).mean(axis=1)
            ratio = h["self_referent"] / h["neutral"] ** 2
            slopes[rows["neutral"]] += sign * (other * ratio).mean(axis=1)
        variance = 0.0
        for r in rows.values():
            centre = np.average(slopes[r], weights=weights[r])
            variance += np.average((slopes[r] - centre) ** 2, weights=weights[r]) / (len(r) - 1)
        return index, np.sqrt(variance)

    estimate, error = index_and_error(np.ones(len(CATEGORY)))
    draws = np.array([index_and_error(count) for count in counts])
    return estimate, error, np.abs(draws[:, 0] - estimate) / draws[:, 1]


def test_the_mean_over_layers_is_symmetric_bootstrap_t_by_hand():
    values, base = lognormal((5,), (0.8, 1, 1, 1)), lognormal((5,), (0.7, 1, 1, 1), seed=1)
    estimate, error, t = mean_index_by_hand(values, base, bootstrap_counts(CATEGORY, PAIR, 999, 5))
    found = infer_mean_indices(values, CATEGORY, PAIR, base, 999, 5)["rfc"]
    reach = np.sort(t)[949] * error
    expected = [estimate, estimate - reach, estimate + reach]
    np.testing.assert_allclose(found[:3], expected, rtol=1e-4, atol=1e-6)
    assert found.p == pytest.approx((1 + np.sum(t >= abs(estimate) / error)) / 1000, abs=0.0011)


def test_the_mean_over_one_layer_is_that_layer():
    values, base = lognormal((1,), (0.9, 1, 1, 1)), lognormal((1,), seed=1)
    values[[0, 65]] = np.nan
    alone = infer_indices(values, CATEGORY, PAIR, base, 499)
    for index, mean in infer_mean_indices(values, CATEGORY, PAIR, base, 499).items():
        np.testing.assert_allclose(mean[:4], np.ravel(alone[index][:4]), rtol=1e-3, atol=1e-6)


def test_the_mean_leaves_undefined_layers_and_prompts_out():
    """A prompt undefined in one layer counts in the others; a layer without neutral entropy does
    not count."""
    values = lognormal((4,))
    values[3, 1], values[CATEGORY == "neutral", 2] = np.nan, 0.0
    found = infer_mean_indices(values, CATEGORY, PAIR, None, 499)["rfc"]
    layers = [
        1 - np.nanmean(values[:30, layer]) / values[60:90, layer].mean() for layer in (0, 1, 3)
    ]
    assert found.estimate == pytest.approx(np.mean(layers))
    near = infer_mean_indices(lognormal((4,))[:, [0, 1, 3]], CATEGORY, PAIR, None, 499)["rfc"]
    assert (found.high - found.low) / (near.high - near.low) == pytest.approx(1, abs=0.05)
    assert found.error / near.error == pytest.approx(1, abs=0.05)
    nothing = infer_mean_indices(np.zeros((120, 0)), CATEGORY, PAIR, None, 99)["rsi"]
    assert np.isnan(nothing[:7]).all()


def test_interval_of_the_mean_over_layers_covers():
    """300 data sets of 6 layers that move together, 12 prompts a category; percentile intervals are
    too short."""
    rng, category = (
        np.random.default_rng(8),
        np.repeat(["self_referent", "confounder", "neutral"], 12),
    )
    held, short = [], []
    for seed in range(300):
        z = 0.8 * rng.normal(size=(36, 1)) + 0.6 * rng.normal(size=(36, 6))
        values = np.exp(0.5 * z - 0.125) * np.repeat([0.9, 1, 1], 12)[:, None]
        found = infer_mean_indices(values, category, None, None, 499, seed)["rfc"]
        held.append(found.low <= 0.1 <= found.high)
        counts = resampling.bootstrap_counts(category, np.full(36, -1), 499, seed)
        draws = drawn_indices(values, category, counts)["rfc"].mean(axis=1)
        low, high = np.quantile(draws, [0.025, 0.975])
        short.append(low <= 0.1 <= high)
    assert 0.92 < np.mean(held) < 0.985 and np.mean(short) < np.mean(held)


def test_a_mean_over_categories_is_stratified_and_keeps_pairs():
    """The standard error by hand: variances of the categories' prompts, pairs as one."""
    values = lognormal((1,), (0.5, 1, 1.5, 1))
    values[90:] = 0.5 * values[30:60] + 0.5 * values[90:]
    estimate, low, high = resampling.infer_mean(values, CATEGORY, PAIR, seed=1)[:3]
    parts = [values[:30], values[60:90], values[30:60] + values[90:]]
    error = np.sqrt(sum(part.var(ddof=1) * 30 for part in parts)) / 120
    assert estimate[0] == pytest.approx(values.mean())
    assert 1.9 < (high[0] - estimate[0]) / error < 2.15
    assert estimate[0] - low[0] == pytest.approx(high[0] - estimate[0])
    independent = resampling.infer_mean(values, CATEGORY, None, seed=1)
    assert independent.high[0] - independent.low[0] < 0.97 * (high[0] - low[0])


def test_half_a_pair_counts_as_one_prompt():
    """n of the mean is the number of defined values; the error is that of a ratio of two sums."""
    values = lognormal((2,))
    values[[91, 95, 99], 0] = np.nan
    draws = {"n_resamples": 1999, "seed": 1}
    estimate, low, high = resampling.infer_mean(values, CATEGORY, PAIR, **draws)[:3]
    np.testing.assert_allclose(estimate, np.nanmean(values, axis=0))
    assert (high - low)[0] == pytest.approx((high - low)[1], rel=0.15) and low[0] < high[0]
    sums, sizes, stratum = resampling.sum_units(values, CATEGORY, PAIR)
    strata = ["confounder third_person", "neutral", "self_referent"]
    assert sums.shape == (90, 2) and sorted(set(stratum)) == strata
    assert (stratum == strata[0]).tolist() == [False] * 60 + [True] * 30
    assert sums[61, 0] == values[31, 0] and sizes[61].tolist() == [1, 2]
    assert sums[60, 0] == pytest.approx(values[30, 0] + values[90, 0])


def test_one_category_alone_is_a_plain_mean_within_its_bounds():
    values = lognormal((3,))[:30]
    plain = resampling.infer_mean(values, n_resamples=499, seed=1)
    stratified = resampling.infer_mean(values, CATEGORY[:30], n_resamples=499, seed=1)
    np.testing.assert_allclose(stratified[:6], plain[:6], rtol=1e-6)
    counts = bootstrap_counts(CATEGORY[:30], np.full(30, -1), 499, 1)
    mean = counts @ values / 30
    error = np.sqrt((counts @ values**2 / 30 - mean**2) / 29)
    t = np.sort(np.abs(mean - values.mean(axis=0)) / error, axis=0)[474]
    reach = t * stats.sem(values)
    np.testing.assert_allclose(plain.high, values.mean(axis=0) + reach, rtol=1e-4)
    bounds = (float(values.mean(axis=0).min()), 1.0)
    cut = resampling.infer_mean(values, None, None, bounds, 499, 1)
    np.testing.assert_array_equal(cut.low, np.clip(plain.low, *bounds))
    np.testing.assert_array_equal(cut.high, np.clip(plain.high, *bounds))


def test_what_is_undefined_for_every_prompt_stays_undefined():
    values = lognormal((2,))
    values[:, 1] = np.nan
    for found in (
        resampling.infer_mean(values, n_resamples=99),
        resampling.infer_mean(values, CATEGORY, PAIR, n_resamples=99),
        resampling.infer_difference(values[:30], values[30:60], True, 99),
        resampling.infer_difference(values[:30], values[30:60], False, 99),
        contrasts.infer_contrast(values, CATEGORY, WORD, ("self_referent", "neutral"), 99),
    ):
        assert np.isnan(np.stack(found[:7])[:, 1]).all()
        assert np.isfinite(np.stack(found[:7])[:, 0]).all()


def test_undefined_values_are_left_out_column_by_column():
    values = lognormal((3,))
    values[[0, 65], 1] = np.nan
    keep = ~np.isnan(values[:, 1])
    found = infer_indices(values, CATEGORY, PAIR)["rfc"]
    counts = bootstrap_counts(CATEGORY, PAIR)[:, keep]
    weights = resampling.draw_weights(counts)
    alone = own_draws([values[keep][:, 1:2]], weights, CATEGORY[keep])["rfc"]
    assert found.estimate[1] == pytest.approx(alone[0][0])
    t = np.sort(np.abs(alone[1][0, 1:] / alone[2][0, 1:]))[9500]
    assert found.high[1] - found.estimate[1] == pytest.approx(t * alone[2][0, 0], rel=1e-5)
    difference = resampling.infer_difference(values[:30], values[60:90], False, 99)
    expected = np.nanmean(values[:30], axis=0) - np.nanmean(values[60:90], axis=0)
    np.testing.assert_allclose(difference.estimate, expected)
    assert np.isfinite(difference.p).all()


def test_too_few_units_give_estimates_alone_and_effect_sizes_of_one_prompt_nothing():
    keep = np.concatenate([np.arange(7) + 30 * k for k in range(4)])
    values = lognormal((2,))[keep]
    found = [
        *infer_indices(values, CATEGORY[keep], n_resamples=99).values(),
        *infer_mean_indices(values, CATEGORY[keep], n_resamples=99).values(),
        resampling.infer_mean(values[:7], n_resamples=99),
        resampling.infer_difference(values[:7], values[7:14], False, 99),
        resampling.infer_difference(values[:7], values[7:14], True, 99),
        resampling.infer_difference(lognormal((2,))[:30], values[:7], False, 99),
    ]
    for one in found:
        assert np.isfinite(one.estimate).all()
        assert np.isnan(np.stack([np.atleast_1d(field) for field in one[1:7]])).all()
    more = resampling.infer_difference(lognormal((2,))[:8], lognormal((2,))[30:38], False, 99)
    assert np.isfinite(np.stack(more[:7])).all()
    assert np.isnan(hedges_g(np.ones((1, 2)), np.zeros((1, 2)))).all()


def test_nothing_varies_nothing_tested():
    a = np.full((10, 2), 0.1)
    a[:, 1] = np.arange(10)
    test = resampling.infer_difference(a, a[::-1], False, 99)
    assert np.isnan(test.p[0]) and test.p[1] == 1 and np.isnan(test.p_max[0])
    assert test.low[0] == test.high[0] == test.error[0] == 0
    assert np.isnan(hedges_g(a, a)[0]) and hedges_g(a, a)[1] == 0


def test_q_values_are_scipys_with_ties_and_without_the_undefined():
    p = np.random.default_rng(3).random((6, 40)).round(2)
    p[::2, ::7] = np.nan
    defined = ~np.isnan(p)
    q = contrasts.q_values(p)
    np.testing.assert_allclose(
        q[defined], stats.false_discovery_control(p[defined], method="bh"), rtol=1e-12
    )
    assert np.isnan(q[~defined]).all()


def test_q_values_are_benjamini_hochberg_without_the_undefined():
    q = contrasts.q_values(np.array([0.01, np.nan, 0.04, 0.03]))
    np.testing.assert_allclose(q, [0.03, np.nan, 0.04, 0.04])


def test_hedges_g_by_hand():
    """The mean of both variances, whatever the sizes; the interval is Bonett's (2008, eq. 7)."""
    a, b = np.array([4.0, 6.0, 8.0]), np.array([1.0, 3.0, 5.0, 9.0, 2.0])
    sa, sb = a.var(ddof=1), b.var(ddof=1)
    s2, j = (sa + sb) / 2, 1 - 3 / (4 * 6 - 1)
    d = 2 / np.sqrt(s2)
    variance = d**2 * (sa**2 / 2 + sb**2 / 4) / (8 * s2**2) + sa / (2 * s2) + sb / (4 * s2)
    half = 1.959964 * j * np.sqrt(variance)
    assert hedges_g(a, b) == pytest.approx(j * d)
    np.testing.assert_allclose(hedges_g_interval(a, b), (j * d - half, j * d + half), rtol=1e-6)
    assert hedges_g(b, a) == -hedges_g(a, b)


def test_the_interval_of_g_covers_with_unequal_variances_and_sizes():
    """The larger group has the smaller spread: an interval from a pooled variance would not."""
    rng, n = np.random.default_rng(2), (12, 48)
    a, b = 1 + 2 * rng.normal(size=(n[0], 4000)), rng.normal(size=(n[1], 4000))
    low, high = hedges_g_interval(a, b)
    true = 1 / np.sqrt((4 + 1) / 2)
    assert 0.93 < ((low < true) & (true < high)).mean() < 0.98
    pooled = (11 * a.var(axis=0, ddof=1) + 47 * b.var(axis=0, ddof=1)) / 58
    d = (a.mean(axis=0) - b.mean(axis=0)) / np.sqrt(pooled)
    half = 1.96 * np.sqrt(1 / 12 + 1 / 48 + d**2 / 120)
    assert (np.abs(d - 1 / np.sqrt((11 * 4 + 47) / 58)) < half).mean() < 0.87


def test_paired_g_by_hand():
    a, b = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 2.0, 1.0, 3.0])
    pooled, r, df = (a.var(ddof=1) + b.var(ddof=1)) / 2, np.corrcoef(a, b)[0, 1], 3
    d = 1 / np.sqrt(pooled)
    j = 1 - 3 / (4 * 2 * df / (1 + r**2) - 1)
    sa, sb = a.var(ddof=1), b.var(ddof=1)
    variance = d**2 * (sa**2 + sb**2 + 2 * r**2 * sa * sb) / (8 * df * pooled**2) + (a - b).var(
        ddof=1
    ) / (pooled * df)
    half = stats.t.ppf(0.975, df) * j * np.sqrt(variance)
    assert hedges_g(a, b, paired=True) == pytest.approx(j * d)
    np.testing.assert_allclose(hedges_g_interval(a, b, paired=True), (j * d - half, j * d + half))


def test_compare_categories_uses_the_pairs():
    values = lognormal((6,), per=30)
    values[90:] = values[30:60] * 1.02 + np.random.default_rng(0).normal(size=(30, 6)) * 0.001
    own = values, CATEGORY
    found, alone = (
        contrasts.compare_categories(*own, unit, ("confounder", "third_person"), 999)
        for unit in (PAIR, np.full(120, -1))
    )
    assert (found["p_max"] < 0.05).all() and (alone["p"] > 0.5).all()
    assert (found["low"] > 0).all() and (alone["low"] < 0).all()


def test_intervals_cover_and_percentile_would_not():
    """400 data sets of 10 prompts a category: the bound lies between what bootstrap-t and
    percentile intervals reach."""
    values = lognormal((400,), (0.9, 1, 1, 1), (0.4, 0.4, 0.6, 0.4), per=10)
    category = np.repeat(["self_referent", "confounder", "neutral", "third_person"], 10)
    pair = np.full(40, -1)
    low, high = infer_indices(values, category, pair, n_resamples=999)["rfc"][1:3]
    assert 0.925 < ((low <= 0.1) & (high >= 0.1)).mean() < 0.985
    draws = drawn_indices(values, category, bootstrap_counts(category, pair, 999))["rfc"]
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    assert ((low <= 0.1) & (high >= 0.1)).mean() < 0.925


def test_two_run_test_keeps_its_level_when_scales_differ():
    """Equal RFC in both runs, one at 0.3 times the entropy: 5 % rejected; comparing the raw
    differences rejects all."""
    z = lognormal((500,), (0.8, 1, 1, 1), seed=4)
    other = 0.3 * z * lognormal((500,), spread=(0.2,) * 4, seed=5)
    found = infer_indices(z, CATEGORY, PAIR, base=other, n_resamples=999)["rfc"]
    assert 0.025 < (found.p < 0.05).mean() < 0.08
    lower = z * np.where(CATEGORY == "self_referent", 0.85, 1)[:, None]
    moved = infer_indices(lower, CATEGORY, PAIR, base=other, n_resamples=999)["rfc"]
    assert (moved.p < 0.05).mean() > 0.6


def test_tests_keep_their_level_with_unequal_spread():
    rng = np.random.default_rng(6)
    a, b = rng.normal(size=(30, 800)), 1.5 * rng.normal(size=(15, 800))
    assert 0.03 < (resampling.infer_difference(a, b, False, 499).p < 0.05).mean() < 0.075
    skewed = np.exp(rng.normal(size=(30, 800))) - np.exp(0.5)
    for pairs in (rng.normal(size=(30, 800)), skewed):
        p = resampling.infer_mean(pairs, n_resamples=499).p
        assert 0.02 < (p < 0.05).mean() < 0.1


def test_family_error_of_max_t():
    """200 families of 60 correlated heads, six heavy-tailed, no effect: some head below 0.05 in
    most, max-T in at most 5 %."""
    rng = np.random.default_rng(7)
    alone, family, scale = [], [], np.where(np.arange(60) < 6, 1.2, 0.3)
    for i in range(200):
        values = np.exp(scale * (0.7 * rng.normal(size=(60, 1)) + rng.normal(size=(60, 60))))
        test = resampling.infer_difference(values[:30], values[30:], False, 399, i)
        alone.append(test.p.min() < 0.05)
        family.append(test.p_max.min() < 0.05)
    assert np.mean(alone) > 0.6
    assert np.mean(family) < 0.08


def test_a_family_of_families_is_judged_by_the_largest_of_all():
    """max-T over both is max-T over all their columns at once: the draws are the same."""
    values, draws = lognormal((9,), (0.9, 1, 1, 1)), (499, 3)
    sides = values[:30], values[60:90]
    whole = resampling.infer_difference(*sides, False, *draws)
    parts = [
        resampling.infer_difference(*(side[:, own] for side in sides), False, *draws)
        for own in (slice(0, 4), slice(4, 9))
    ]
    joined = np.concatenate(resampling.join_families(parts))
    np.testing.assert_allclose(joined, whole.p_max)
    assert (joined >= np.concatenate([part.p_max for part in parts])).all()
    assert (joined[:4] > parts[0].p_max).any()


def test_position_matching_removes_what_position_does():
    """Entropies that depend on the position alone, categories of unequal length: matched RFC is 0,
    normalised is not."""
    run = make_run(n_layers=2, n_heads=2, effect=0.0)
    extra = np.where(np.arange(len(run.category)) % 2, 0, 2) * (run.category == "self_referent")
    run.n_tokens = np.minimum(run.n_tokens + extra, run.entropy.shape[-1])
    run.span[:, 1] = run.n_tokens
    share = np.linspace(0.9, 0.3, run.entropy.shape[-1])
    real = np.arange(run.entropy.shape[-1]) < run.n_tokens[:, None]
    rows = share * np.log(run.visible_keys[0])
    run.entropy = np.where(real[:, None, None], rows, np.nan) * np.ones((1, 2, 2, 1))
    matched = indices.position_matched_values(run)
    means = indices.indices_of_means(
        lambda name: moments.category_mean(matched, run.category, name)
    )
    np.testing.assert_allclose([means["rfc"], means["rsi"]], 0, atol=1e-12)
    assert indices.layer_indices(run, "normalised")["rfc"][0] > 0.01


def test_position_matched_means_by_hand():
    run = make_run(n_layers=1, n_heads=2, effect=0.3, seed=2)
    weight = indices.position_weights(run)[0]
    assert weight.sum() == pytest.approx(1) and weight[0] == 0
    rows = entropy.normalise_entropy(run.entropy, run.visible_keys[None, :, None, :]).mean(axis=2)[
        :, 0
    ]
    total = 0.0
    for q in np.flatnonzero(weight):
        here = (run.category == "neutral") & (run.span[:, 0] <= q) & (q < run.span[:, 1])
        assert here.sum() >= 3
        total += weight[q] * rows[here, q].mean()
    values = indices.position_matched_values(run)
    assert values[run.category == "neutral", 0].mean() == pytest.approx(total)
    assert np.isnan(values[run.category == "third_person"]).all()


def test_memory_is_bounded_by_blocks():
    blocks = list(moments.column_blocks(np.ones((120, 5120)), 10_000))
    assert max(len(columns) for columns, _ in blocks) * 10_001 <= moments.BLOCK
    assert sum(len(columns) for columns, _ in blocks) == 5120
