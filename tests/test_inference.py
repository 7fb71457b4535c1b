"""Resampling inference against scipy, against hand computations, and against simulations whose
truth is known."""

import numpy as np
import pytest
from scipy import stats

from rolecircuits.stats import contrasts, entropy, indices, moments, resampling
from rolecircuits.stats.contrasts import hedges_g, hedges_g_interval
from rolecircuits.stats.permutation import permutation_test, sign_flip_test
from rolecircuits.stats.resampling import bootstrap_counts, infer_indices, infer_mean_indices
from synthetic import make_run

CATEGORY = np.repeat(["self_referent", "confounder", "neutral", "third_person"], 30)
PAIR = np.where(np.isin(CATEGORY, ["confounder", "third_person"]), np.tile(np.arange(30), 4), -1)


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


def welch(a, b, axis=-1):
    """Welch's |t| along an axis, as scipy.stats.ttest_ind(equal_var=False) has it."""
    variance = a.var(axis=axis, ddof=1) / a.shape[axis] + b.var(axis=axis, ddof=1) / b.shape[axis]
    return abs(a.mean(axis=axis) - b.mean(axis=axis)) / np.sqrt(variance)


def test_permutation_enumerates_as_scipy_does():
    a, b = np.array([1.0, 2.5, 2.0, 4.0]), np.array([3.0, 5.5, 4.5])
    ours = permutation_test(a, b)
    theirs = stats.permutation_test((a, b), welch, n_resamples=np.inf, alternative="greater")
    assert ours.p == pytest.approx(theirs.pvalue, abs=1e-12)
    assert ours.difference == pytest.approx(a.mean() - b.mean())


def test_sign_flips_enumerate_as_scipy_does():
    d = np.array([0.3, -0.1, 0.8, 0.4, 0.05, 0.6])
    theirs = stats.permutation_test(
        (d,),
        lambda x: abs(x.mean()),
        permutation_type="samples",
        n_resamples=np.inf,
        alternative="greater",
    )
    assert sign_flip_test(d).p == pytest.approx(theirs.pvalue, abs=1e-12)


def test_permutation_by_hand():
    # 4 prompts, 2 and 2: six labellings; the observed split {1, 2} against {3, 4} and its mirror
    # are the two extremes
    assert permutation_test(np.array([1.0, 2.0]), np.array([3.0, 4.0])).p == pytest.approx(2 / 6)
    assert sign_flip_test(np.array([1.0, 2.0, 3.0])).p == pytest.approx(2 / 8)


def test_sampled_permutations_agree_with_scipy_and_count_the_observed_one():
    rng = np.random.default_rng(3)
    a, b = rng.normal(0.5, 1, 20), rng.normal(0, 2, 20)
    ours = permutation_test(a, b, n_permutations=9999)
    theirs = stats.permutation_test((a, b), welch, n_resamples=2000, alternative="greater", rng=1)
    assert ours.p == pytest.approx(theirs.pvalue, abs=0.04)
    assert permutation_test(a + 100, b, n_permutations=999).p == pytest.approx(1 / 1000)


def test_indices_agree_with_their_formula_in_every_resample():
    values, base = lognormal((5,), (0.9, 1, 1, 1)), lognormal((5,), (0.5, 0.6, 0.6, 0.6), seed=1)
    counts = bootstrap_counts(CATEGORY, PAIR, 50, seed=2)
    expected = [drawn_indices(run, CATEGORY, counts) for run in (values, base)]
    found = resampling.studentised_indices(
        [values, base], CATEGORY, resampling.draw_weights(counts)
    )
    for name, (estimate, shift, _) in found.items():
        draws = (expected[0][name] - expected[1][name]).T
        np.testing.assert_allclose(estimate[:, None] + shift[:, 1:], draws, atol=2e-6)
        np.testing.assert_allclose(shift[:, 0], 0, atol=1e-6)


def test_standard_error_is_the_delta_method_by_hand():
    values = lognormal((), (0.9, 1, 1.2, 1))
    s, c, n = (values[k * 30 : k * 30 + 30] for k in range(3))
    found = resampling.studentised_indices(
        [values[:, None]], CATEGORY, np.ones((120, 2), np.float32)
    )
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
    found = resampling.studentised_indices(
        [values[:, None], base[:, None]], CATEGORY, np.ones((120, 2), np.float32)
    )["rfc"]

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
    drawn = resampling.studentised_indices(
        [values[:, None]], CATEGORY, resampling.draw_weights(counts)
    )
    estimate, shift, _ = drawn["rfc"]
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
    nothing = infer_mean_indices(np.zeros((120, 0)), CATEGORY, PAIR, None, 99)["rsi"]
    assert np.isnan(nothing).all()


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
    estimate, low, high = resampling.stratified_mean_interval(values, CATEGORY, PAIR, 9999, 1)
    parts = [values[:30], values[60:90], values[30:60] + values[90:]]
    error = np.sqrt(sum(part.var(ddof=1) * 30 for part in parts)) / 120
    assert estimate[0] == pytest.approx(values.mean())
    assert 1.9 < (high[0] - estimate[0]) / error < 2.15
    assert estimate[0] - low[0] == pytest.approx(high[0] - estimate[0])
    independent = resampling.stratified_mean_interval(values, CATEGORY, None, 9999, 1)
    assert independent[2][0] - independent[1][0] < 0.97 * (high[0] - low[0])


def test_half_a_pair_counts_as_one_prompt():
    """n of the mean is the number of defined values; the error is that of a ratio of two sums."""
    values = lognormal((2,))
    values[[91, 95, 99], 0] = np.nan
    estimate, low, high = resampling.stratified_mean_interval(values, CATEGORY, PAIR, 1999, 1)
    np.testing.assert_allclose(estimate, np.nanmean(values, axis=0))
    assert (high - low)[0] == pytest.approx((high - low)[1], rel=0.15) and low[0] < high[0]
    sums, sizes, stratum = resampling.sum_units(values, CATEGORY, PAIR)
    strata = ["confounder third_person", "neutral", "self_referent"]
    assert sums.shape == (90, 2) and sorted(set(stratum)) == strata
    assert (stratum == strata[0]).tolist() == [False] * 60 + [True] * 30
    assert sums[61, 0] == values[31, 0] and sizes[61].tolist() == [1, 2]
    assert sums[60, 0] == pytest.approx(values[30, 0] + values[90, 0])


def test_one_category_alone_is_a_plain_mean():
    values = lognormal((3,))[:30]
    plain = resampling.mean_interval(values, 499, 1)
    stratified = resampling.stratified_mean_interval(values, CATEGORY[:30], None, 499, 1)
    np.testing.assert_allclose(stratified, plain, rtol=1e-6)


def test_what_is_undefined_for_every_prompt_stays_undefined():
    values = lognormal((2,))
    values[:, 1] = np.nan
    for found in (
        resampling.mean_interval(values, 99),
        resampling.mean_difference_interval(values[:30], values[30:60], n_resamples=99),
        resampling.stratified_mean_interval(values, CATEGORY, PAIR, 99),
        sign_flip_test(values, 99),
        permutation_test(values[:30], values[30:60], 99),
    ):
        assert np.isnan(np.stack(found)[:, 1]).all() and np.isfinite(np.stack(found)[:, 0]).all()


def test_undefined_values_are_left_out_column_by_column():
    values = lognormal((3,))
    values[[0, 65], 1] = np.nan
    keep = ~np.isnan(values[:, 1])
    found = infer_indices(values, CATEGORY, PAIR)["rfc"]
    counts = bootstrap_counts(CATEGORY, PAIR)[:, keep]
    alone = resampling.studentised_indices(
        [values[keep][:, 1:2]], CATEGORY[keep], resampling.draw_weights(counts)
    )["rfc"]
    assert found.estimate[1] == pytest.approx(alone[0][0])
    t = np.sort(np.abs(alone[1][0, 1:] / alone[2][0, 1:]))[9500]
    assert found.high[1] - found.estimate[1] == pytest.approx(t * alone[2][0, 0], rel=1e-5)
    assert np.isfinite(permutation_test(values[:30], values[60:90], 99).p).all()


def test_too_few_prompts_give_nothing_and_the_reason():
    category = CATEGORY[[0, 30, 60, 90]]
    result = infer_indices(
        lognormal((2,))[[0, 30, 60, 90]], category, np.full(4, -1), n_resamples=99
    )["rfc"]
    assert np.isfinite(result.estimate).all()
    assert np.isnan([result.low, result.high, result.p, result.p_max]).all()
    assert "at least 3 prompts a category; confounder has 1" in resampling.missing_prompts_reason(
        category
    )
    assert resampling.missing_prompts_reason(CATEGORY) is None
    assert np.isnan(permutation_test(np.ones((1, 2)), np.zeros((1, 2))).p).all()
    assert np.isnan(hedges_g(np.ones((1, 2)), np.zeros((1, 2)))).all()


def test_nothing_varies_nothing_tested():
    a = np.full((10, 2), 0.1)
    a[:, 1] = np.arange(10)
    test = permutation_test(a, a[::-1], 99)
    assert np.isnan(test.p[0]) and test.p[1] == 1
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
    a, b = np.array([4.0, 6.0, 8.0]), np.array([1.0, 3.0, 5.0])
    d, j = 3 / 2, 1 - 3 / (4 * 4 - 1)
    half = 1.959964 * np.sqrt(2 / 3 + (j * d) ** 2 / 12)
    assert hedges_g(a, b) == pytest.approx(j * d)
    np.testing.assert_allclose(hedges_g_interval(a, b), (j * d - half, j * d + half), rtol=1e-6)
    assert hedges_g(b, a) == -hedges_g(a, b)


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
    found = contrasts.compare_categories(
        values, CATEGORY, PAIR, ("confounder", "third_person"), 999
    )
    alone = contrasts.compare_categories(
        values, CATEGORY, np.full(120, -1), ("confounder", "third_person"), 999
    )
    assert (found["p_max"] < 0.05).all() and (alone["p"] > 0.5).all()


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
    assert 0.03 < (permutation_test(a, b, 499).p < 0.05).mean() < 0.075
    assert 0.03 < (sign_flip_test(rng.normal(size=(30, 800)), 499).p < 0.05).mean() < 0.075


def test_family_error_of_max_t():
    """200 families of 60 correlated heads without effect: some head below 0.05 in nearly all, max-T
    in about 5 %."""
    rng = np.random.default_rng(7)
    alone, family = [], []
    for i in range(200):
        values = np.exp(0.3 * (0.7 * rng.normal(size=(60, 1)) + rng.normal(size=(60, 60))))
        test = permutation_test(values[:30], values[30:], 399, i)
        alone.append(test.p.min() < 0.05)
        family.append(test.p_max.min() < 0.05)
    assert np.mean(alone) > 0.6
    assert 0.01 < np.mean(family) < 0.095


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
