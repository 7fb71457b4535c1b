"""The bootstrap draws what it says, and the original study's intervals are its t-intervals."""

import numpy as np
import pytest
from scipy import stats

from prompts import select_prompts
from rolecircuits.stats import original_study, resampling

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


def units_of_sizes(**sizes):
    """(category, unit): every category with clusters of these sizes, numbered from 0 in each."""
    rows = [(name, k) for name, own in sizes.items() for k, n in enumerate(own) for _ in range(n)]
    category, unit = zip(*rows, strict=True)
    return np.array(category), np.array(unit)


@pytest.mark.parametrize(
    ("n_self", "n_neutral", "reason"),
    [
        (8, 8, None),
        (7, 8, "no interval and no test below 8 prompts: self_referent has 7"),
        (30, 1, "no interval and no test below 8 prompts: neutral has 1"),
        (0, 8, None),
    ],
)
def test_an_interval_needs_eight_prompts_of_each_category(n_self, n_neutral, reason):
    category = np.array(["self_referent"] * n_self + ["neutral"] * n_neutral)
    names = ["self_referent", "neutral"]
    assert resampling.untestable_reason(category, None, names) == reason
    assert resampling.is_testable(category, None, names) is (reason is None and n_self > 0)
    if reason:
        assert resampling.untestable_reason(category, None, names, "frames") == reason.replace(
            "prompts", "frames"
        )


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"a": [2] * 8, "b": [1] * 8}, None),
        (
            {"a": [9, 1, 1, 1, 1, 1, 1, 1], "b": [2] * 8},
            "no interval and no test below 5 effective frames: the prompts of a begin in 8 ways, "
            "worth 2.9",
        ),
        ({"a": [2] * 7, "b": [2] * 6}, "no interval and no test below 8 frames: a and b have 7"),
    ],
)
def test_clusters_need_eight_frames_and_five_effective_ones(sizes, reason):
    category, unit = units_of_sizes(**sizes)
    assert resampling.untestable_reason(category, unit) == reason
    assert resampling.is_testable(category, unit) is (reason is None)


def test_frames_of_a_contrast_are_counted_over_both_of_its_categories():
    category, unit = units_of_sizes(a=[2] * 6, b=[2] * 6, c=[1])
    unit[category == "b"] += 3
    assert resampling.untestable_reason(category, unit, ["a", "b"]) is None
    assert "c begin in 1 ways, worth 1.0" in resampling.untestable_reason(category, unit)
    category, unit = units_of_sizes(a=[2] * 6, b=[2] * 6, c=[1] * 9)
    assert resampling.untestable_reason(category, unit, ["a", "b"]).endswith(
        "frames: a and b have 6"
    )


def test_what_never_varies_has_an_interval_of_length_0():
    values = np.stack([np.full(9, 0.5), np.arange(9.0)], axis=1)
    estimate, low, high = resampling.infer_mean(values, n_resamples=500)[:3]
    assert low[0] == estimate[0] == high[0] == 0.5
    assert low[1] < estimate[1] == 4 < high[1]


def test_an_empty_group_gives_undefined_tests():
    found = resampling.infer_difference(np.ones((0, 4)), np.ones((9, 4)), False, 50)
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
    assert found["estimate"] == pytest.approx(instruct.mean() - base.mean())
    assert (found["low"][0], found["high"][0]) == pytest.approx(expected, rel=1e-12)


def test_further_draws_are_made_once_for_the_blocks_of_a_family(monkeypatch):
    """A strong column in each of ten blocks: ten are few, so they share what one alone would
    need; before, every block counted its own and drew up to 200 sets."""
    rng, sets, draw_counts = np.random.default_rng(0), [], resampling.bootstrap_counts
    category, values = np.repeat(["a", "b"], 20), rng.normal(size=(40, 520))
    strong = np.arange(10) * 52
    values[np.ix_(category == "a", strong)] += 4.0

    def counted(*args):
        sets.append(args)
        return draw_counts(*args)

    monkeypatch.setattr(resampling, "bootstrap_counts", counted)
    found = resampling.infer_difference(values[:20], values[20:], seed=3)
    assert (found.p[strong] < 0.05 / 520).all()
    assert len(sets) <= 12
