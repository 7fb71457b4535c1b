"""The bootstrap draws what it says, and the original study's intervals are its t-intervals."""

import numpy as np
import pytest
from scipy import stats

from prompts import select_prompts
from rolecircuits.stats import original_study, permutation, resampling

PROMPTS = select_prompts(per_category=5)
CATEGORY = np.array([p.category for p in PROMPTS])
PAIR_ID = np.array([p.pair_id for p in PROMPTS])


def test_every_resample_keeps_the_size_of_every_category():
    counts = resampling.bootstrap_counts(CATEGORY, PAIR_ID, 200, seed=1)
    assert counts.shape == (200, 20) and (counts == counts.round()).all()
    for name in set(CATEGORY):
        assert (counts[:, CATEGORY == name].sum(axis=1) == 5).all()


def test_pairs_are_drawn_together_and_other_categories_are_not():
    counts = resampling.bootstrap_counts(CATEGORY, PAIR_ID, 200, seed=1)
    side = {name: counts[:, CATEGORY == name] for name in set(CATEGORY)}
    assert (side["confounder"] == side["third_person"]).all()
    assert (side["confounder"] != side["neutral"]).any() and (
        side["self_referent"] != side["neutral"]
    ).any()


def test_pairs_follow_their_ids_not_their_places():
    order = np.array([3, 0, 4, 1, 2])
    shuffled = np.arange(20)
    shuffled[CATEGORY == "third_person"] = np.flatnonzero(CATEGORY == "third_person")[order]
    counts = resampling.bootstrap_counts(CATEGORY, PAIR_ID[shuffled], 100)
    left, right = counts[:, CATEGORY == "confounder"], counts[:, CATEGORY == "third_person"]
    assert (right == left[:, order]).all() and (right != left).any()


def test_unpaired_lists_are_drawn_on_their_own():
    counts = resampling.bootstrap_counts(CATEGORY, np.full(20, -1), 200)
    assert (counts[:, CATEGORY == "confounder"] != counts[:, CATEGORY == "third_person"]).any()
    assert (counts[:, CATEGORY == "third_person"].sum(axis=1) == 5).all()


def test_the_draw_is_the_seeds():
    first, again = (resampling.bootstrap_counts(CATEGORY, PAIR_ID, 50, seed=7) for _ in range(2))
    assert (first == again).all()
    assert (first != resampling.bootstrap_counts(CATEGORY, PAIR_ID, 50, seed=8)).any()


def test_counts_have_the_moments_of_drawing_with_replacement():
    counts = resampling.bootstrap_counts(np.array(["neutral"] * 10), np.full(10, -1), 20_000)
    assert counts.mean(axis=0) == pytest.approx(np.ones(10), abs=0.03)
    assert counts.var(axis=0) == pytest.approx(np.full(10, 0.9), abs=0.05)


@pytest.mark.parametrize(
    ("n_self", "n_neutral", "enough"),
    [(3, 3, True), (2, 3, False), (3, 1, False), (1, 1, False), (0, 3, True)],
)
def test_an_interval_needs_three_prompts_of_each_category(n_self, n_neutral, enough):
    category = ["self_referent"] * n_self + ["neutral"] * n_neutral
    assert (resampling.missing_prompts_reason(category) is None) is enough


def test_what_never_varies_has_an_interval_of_length_0():
    values = np.stack([np.full(6, 0.5), np.arange(6.0)], axis=1)
    estimate, low, high = resampling.mean_interval(values, n_resamples=500)
    assert low[0] == estimate[0] == high[0] == 0.5
    assert low[1] < estimate[1] == 2.5 < high[1]


def test_an_empty_group_gives_undefined_tests():
    found = permutation.permutation_test(np.ones((0, 4)), np.ones((3, 4)), 50)
    assert np.isnan(found.p).all() and found.p_max.shape == (4,)


def test_head_interval_is_the_originals_t_interval():
    values = np.random.default_rng(7).normal(size=(3, 9))
    found = original_study.head_interval(values)
    for layer, heads in enumerate(values):
        low, high = stats.t.interval(0.95, 8, loc=heads.mean(), scale=stats.sem(heads))
        assert (found["low"][layer], found["high"][layer]) == pytest.approx((low, high), rel=1e-12)
        assert found["std"][layer] == pytest.approx(heads.std(ddof=1))
    assert found["mean"] == pytest.approx(values.mean(axis=1)) and found["n"].tolist() == [9] * 3


def test_head_interval_leaves_undefined_heads_out_and_one_head_has_none():
    found = original_study.head_interval(
        np.array([[1.0, 3.0, np.nan], [5.0, np.nan, np.nan], [np.nan] * 3])
    )
    assert found["n"].tolist() == [2, 1, 0]
    assert found["mean"][:2].tolist() == [2, 5] and np.isnan(found["mean"][2])
    assert found["std"][0] == pytest.approx(2**0.5) and np.isnan(found["std"][1:]).all()
    assert np.isnan(found["low"][1:]).all() and found["low"][0] == pytest.approx(
        2 - 12.7062, abs=1e-3
    )


def test_head_difference_is_the_originals():
    base, instruct = np.random.default_rng(8).normal(size=(2, 1, 6))
    found = original_study.head_difference_interval(
        original_study.head_interval(base), original_study.head_interval(instruct)
    )
    error = np.sqrt(base.var(ddof=1) / 6 + instruct.var(ddof=1) / 6)
    expected = stats.t.interval(0.95, 5, loc=instruct.mean() - base.mean(), scale=error)
    assert found["value"] == pytest.approx(instruct.mean() - base.mean())
    assert (found["low"][0], found["high"][0]) == pytest.approx(expected, rel=1e-12)
