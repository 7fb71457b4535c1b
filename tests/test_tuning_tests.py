"""The statistics of a tuning study: cases calculated by hand, and simulated studies of known truth.

More studies: benchmarks/tuning_calibration.py.
"""

import sys
from itertools import combinations

import numpy as np
import pytest

from conftest import PROJECT
from rolecircuits.inputs.errors import UserError
from rolecircuits.stats import signal_table as table
from rolecircuits.stats import tuning_profiles as profiles
from rolecircuits.stats import tuning_tests as tests
from synthetic import make_run

sys.path.insert(0, str(PROJECT / "benchmarks"))

import tuning_calibration as simulation  # noqa: E402  (the path comes first)


def arrays_of(rows, profile=None):
    """checkpoints.npz of rows (arm, seed, dose, matched, drift, compliance, one value)."""
    names = ("arm", "seed", "dose", "matched", "drift", "compliance")
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    arrays = dict(zip(names, columns, strict=False))
    n = len(rows)
    shapes = np.zeros((n, 1, 4)) if profile is None else np.asarray(profile)[:, None]
    return arrays | {
        "signal": np.array(["one"]),
        "value": columns[6].reshape(n, 1).astype(float),
        "profile": np.array(["shape"]),
        "profile_value": shapes,
    }


STEP_0 = ("base", -1, 0, False, 0.0, 0.05, 1.0)


# permutation tests


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        ([3, 4], [1, 2], 2 / 6),  # 6 splits, differences 2 1 0 0 -1 -2
        ([1, 4], [2, 3], 6 / 6),
        ([2, 4], [1, 3], 4 / 6),
        ([9], [1, 2, 3], 1 / 4),  # differences 7, -11/3, -7/3, -1: no mirror image
        ([6, 7, 8, 9, 10], [1, 2, 3, 4, 5], 2 / 252),
        ([5, 7, 8, 9, 10], [1, 2, 3, 4, 6], 4 / 252),
        ([1.0, 1.0], [1.0, 1.0], 1.0),
    ],
)
def test_exact_p_of_small_cases(first, second, p):
    found = tests.exact_permutation(first, second)
    assert found.p == pytest.approx(p)
    assert found.estimate == pytest.approx(np.mean(first) - np.mean(second))


def test_p_is_the_same_without_noise_and_at_any_scale():
    """No spread inside groups: splits that tie must tie whatever the rounding."""
    first, second = np.full((5, 3), 0.1), np.zeros((5, 3))
    second[:, 1], first[:, 2] = -1e8, 1e-9
    assert np.allclose(tests.exact_permutation(first, second).p, 2 / 252)


def test_an_undefined_value_leaves_its_signal_undefined():
    first, second = np.arange(10.0).reshape(5, 2), np.arange(10.0, 20).reshape(5, 2)
    first[0, 0] = np.nan
    found = tests.exact_permutation(first, second)
    assert np.isnan([found.p[0], found.low[0], found.high[0]]).all()
    assert found.p[1] == pytest.approx(2 / 252)
    assert np.isnan(tests.step_down(found.r)[0]) and tests.step_down(found.r)[1] < 0.01


def test_the_interval_holds_the_shifts_that_are_not_rejected():
    rng = np.random.default_rng(1)
    for n_first, n_second in ((5, 5), (4, 5)):
        first, second = rng.normal(size=(n_first, 3)), rng.normal(size=(n_second, 3)) * 3
        found = tests.exact_permutation(first, second)
        for end, inside in ((found.low, 1e-7), (found.high, -1e-7)):
            assert (tests.exact_permutation(first - (end + inside), second).p > 0.05).all()
            assert (tests.exact_permutation(first - (end - inside), second).p <= 0.05).all()
        assert ((found.low <= found.estimate) & (found.estimate <= found.high)).all()


def test_too_few_runs_have_no_interval():
    found = tests.exact_permutation([3.0, 4.0, 5.0], [0.0, 1.0, 2.0])
    assert found.p == pytest.approx(0.1) and np.isnan([found.low, found.high]).all()


@pytest.mark.parametrize(
    ("n", "p"), [((5, 5), 2 / 252), ((2, 2), 2 / 6), ((4, 4), 2 / 70), ((4, 5), 1 / 126)]
)
def test_smallest_p(n, p):
    assert tests.smallest_p(*n) == pytest.approx(p)
    apart = tests.exact_permutation(10.0 + np.arange(n[0]), -(np.arange(float(n[1])) ** 3))
    assert apart.p >= p - 1e-12


def test_step_down_of_a_family():
    """Three signals, four splits: the largest of all, of the two weaker ones, of the weakest."""
    r = np.array([[0.5, -0.9, 0.6], [0.1, 0.2, -0.7], [0.65, 0.1, 0.1], [0.0, 0.8, 0.0]])
    assert np.allclose(tests.step_down(r), [3 / 4, 1 / 4, 3 / 4])
    single = [tests.step_down(r[:, [i]])[0] for i in range(3)]
    assert np.allclose(single, [2 / 4, 1 / 4, 2 / 4])


def test_step_down_never_falls_below_a_stronger_signal():
    r = np.array([[0.8, 0.7], [0.9, 0.1], [0.2, 0.3], [0.1, 0.0]])
    assert np.allclose(tests.step_down(r), [2 / 4, 2 / 4])


def test_the_spread_of_other_arms_changes_max_t_and_no_single_p():
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(5, 4)) + 1, rng.normal(size=(5, 4))
    plain = tests.exact_permutation(first, second)
    pooled = tests.exact_permutation(first, second, np.array([0.0, 50.0, 1.0, 1.0]))
    assert np.allclose(plain.p, pooled.p)
    assert (np.abs(pooled.r[:, 1]) < 0.6 * np.abs(plain.r[:, 1]).max()).all()
    ratio = pooled.r[:, 1] / plain.r[:, 1]
    assert np.allclose(ratio, ratio[0])


def test_many_runs_draw_splits_and_keep_the_observed_one(monkeypatch):
    monkeypatch.setattr(tests, "MOST_SPLITS", 100)
    splits = tests.list_splits(6, 6)
    assert splits.shape == (100, 12) and (splits.sum(axis=1) == 6).all()
    assert splits[0].tolist() == [True] * 6 + [False] * 6
    assert tests.exact_permutation(np.arange(6.0) + 9, np.arange(6.0)).p <= 2 / 100


def test_power_is_close_to_that_of_a_t_test():
    """A t test of 5 against 5 finds 2.02 standard deviations with 80 %; two contrasts need more."""
    one = tests.smallest_difference((5, 5))
    assert 1.9 < one < 2.2
    assert one + 0.15 < tests.smallest_difference((5, 5, 5)) < one + 0.6
    assert tests.smallest_difference((5, 5), power=0.5) < one - 0.4
    assert np.isnan(tests.smallest_difference((3, 3)))


# the study


def two_arms(values, drift=0.1, matched=()):
    """Rows of step 0 and of runs with one dose: values {arm: list}, drift a number or [run]."""
    drifts = iter(np.broadcast_to(drift, sum(map(len, values.values()))).tolist())
    rows = [STEP_0]
    for arm, of_arm in values.items():
        for seed, value in enumerate(of_arm):
            rows.append((arm, seed, 10, False, next(drifts), 0.5, value))
    return rows + list(matched)


def test_runs_are_gathered_in_order_and_from_step_0():
    rows = [
        ("shuffled", 0, 20, False, 0.4, 0.10, 3.0),
        ("role", 1, 10, False, 0.1, 0.55, 1.5),
        STEP_0,
        ("role", 0, 20, True, 0.2, 0.45, 4.0),
        ("role", 0, 20, False, 0.3, 0.65, 2.0),
        ("role", 0, 10, False, -1e-12, 0.25, 1.25),
    ]
    study = tests.gather_runs(arrays_of(rows))
    assert study.arm.tolist() == ["role", "role", "shuffled"] and study.seed.tolist() == [0, 1, 0]
    assert study.dose.tolist() == [10, 20, 20] and study.matched.tolist() == [False, False, True]
    nan = np.nan
    change = [[0.25, 1.0, 3.0], [0.5, nan, nan], [nan, 2.0, nan]]
    assert np.allclose(study.change[..., 0], change, equal_nan=True)
    assert np.allclose(study.compliance[0], [0.2, 0.6, 0.4])
    assert study.drift[0].tolist() == [0.0, 0.3, 0.2] and study.last == 1


def test_a_study_without_step_0_or_with_a_checkpoint_twice_is_refused():
    rows = two_arms({"role": [1.0]})
    with pytest.raises(UserError, match="step 0"):
        tests.gather_runs(arrays_of(rows[1:]))
    with pytest.raises(UserError, match="two checkpoints of role 0 at dose 10"):
        tests.gather_runs(arrays_of([*rows, rows[1]]))


def test_what_is_left_of_the_mismatch_is_taken_out():
    """A signal of sqrt(drift) alone is equal at matched drift, though drifts are 10 % off."""
    drifts = {"role": 0.11, "facts": 0.09, "shuffled": 0.10}
    rows = [STEP_0]
    for arm, drift in drifts.items():
        rows.append((arm, 0, 10, False, 0.4, 0.5, 9.0))
        rows.append((arm, 0, 10, True, drift, 0.5, 1 + 3 * np.sqrt(drift)))
    study = tests.gather_runs(arrays_of(rows))
    wanted = (0.11 * 0.09 * 0.10) ** (1 / 3)
    assert np.allclose(tests.values_at_matched_drift(study)[0], 3 * np.sqrt(wanted))
    assert tests.find_matched(study)[2] == pytest.approx(wanted)


def test_a_run_without_matched_checkpoint_counts_where_its_last_dose_is_near():
    matched = [("role", 0, 10, True, 0.1, 0.5, 2.0)]
    rows = two_arms({"role": [9.0], "facts": [3.0, 3.0]}, [0.4, 0.12, 0.16], matched)
    change = tests.values_at_matched_drift(tests.gather_runs(arrays_of(rows)))[0][:, 0]
    assert change[0] == pytest.approx(1.0)
    assert change[1] == pytest.approx(2 * np.sqrt(0.1 / 0.12))
    assert np.isnan(change[2])  # 1.6 times the drift wanted
    nothing = tests.gather_runs(arrays_of(rows[:-1]))
    assert np.isnan(tests.values_at_matched_drift(nothing)[0]).all()


def test_equal_drift_is_interpolated_between_doses():
    """sqrt(drift) 0.1, 0.3 and 0.2, 0.4: at 0.3, half way from the second run's first dose."""
    rows = [STEP_0]
    for arm, roots, values in (("role", (0.1, 0.3), (2.0, 3.0)), ("facts", (0.2, 0.4), (2.0, 6.0))):
        for dose, root, value in zip((10, 20), roots, values, strict=True):
            rows.append((arm, 0, dose, False, root**2, 0.5, value))
    change, drift = tests.values_at_equal_drift(tests.gather_runs(arrays_of(rows)))
    assert drift == pytest.approx(0.09)
    assert np.allclose(change[:, 0], [2.0, 3.0])


# what predicts a run that is left out


def test_left_out_r2_by_hand():
    """Three runs of one checkpoint, 0, 1 and 5: means of the others 3, 2.5 and 0.5, errors 31.5.

    x = 0, 1, 2: lines through the other two predict -3, 2.5 and 2: errors 9 + 2.25 + 9 = 20.25.
    """
    values, x = np.array([[0.0], [1.0], [5.0]]), np.array([[0.0], [1.0], [2.0]])
    plain = tests.left_out_weights([np.zeros((3, 1))])
    assert np.allclose(plain @ values, [[3.0], [2.5], [0.5]])
    line = tests.left_out_weights([x])
    assert np.allclose(line @ values, [[-3.0], [2.5], [2.0]])
    assert tests.left_out_r2(values, line, plain) == pytest.approx(1 - 20.25 / 31.5)


def trajectories(n_runs=12, n_slots=5, seed=0):
    """A Study of three arms whose signals are drift's, compliance's, of both and of each run."""
    rng = np.random.default_rng(seed)
    drift, compliance = rng.random((2, n_runs, n_slots))
    own = np.repeat(rng.normal(size=(n_runs, 1)), n_slots, axis=1)
    change = np.stack([3 * np.sqrt(drift), compliance, np.sqrt(drift) - compliance, own], axis=-1)
    change += 1e-3 * rng.normal(size=change.shape)
    arm = np.repeat(tests.ARMS, n_runs // 3)
    empty = np.zeros((n_runs, n_slots, 0, 4))
    slots = np.arange(n_slots), np.zeros(n_slots, dtype=bool)
    seeds = np.tile(np.arange(n_runs // 3), 3)
    names = ("of drift", "of compliance", "of both", "of the run")
    return tests.Study(arm, seeds, *slots, drift, compliance, names, change, (), empty)


def test_r2_and_gain_say_what_a_signal_follows():
    found = tests.explain_changes(trajectories(), n_permutations=199)
    assert np.allclose(found.drift[0], 1, atol=1e-3) and found.compliance[0] < 0.1
    assert np.allclose(found.compliance[1], 1, atol=1e-3) and found.drift[1] < 0.1
    assert np.allclose(found.both[:3], 1, atol=1e-3)
    assert (found.gain[1:3] > 0.3).all() and abs(found.gain[0]) < 1e-4
    assert np.allclose(found.gain_p[1:3], 1 / 200)
    assert found.gain_p[0] > 0.05 and found.gain_p[3] > 0.05
    assert found.both[3] < 0.1  # what is each run's own cannot be seen in the others


def test_the_permutation_of_the_gain_moves_whole_runs():
    """A signal of the run alone, and compliance of the run alone: 12 runs, not 60 checkpoints."""
    p = []
    for seed in range(60):
        study = trajectories(seed=seed)
        rng = np.random.default_rng(1000 + seed)
        constant = np.repeat(rng.random((12, 1)), 5, axis=1)
        p.append(tests.explain_changes(study._replace(compliance=constant), 59).gain_p[3])
    assert np.mean(np.array(p) <= 0.05) <= 0.15
    assert 0.25 < np.median(p) < 0.85  # 1.0 where checkpoints are permuted one by one


def test_checkpoints_that_a_run_lacks_are_left_out_for_all():
    study = trajectories()
    broken = study._replace(drift=study.drift.copy(), change=study.change.copy())
    broken.drift[0, 2] = np.nan
    broken.change[0, 2] = np.nan
    there = np.array([0, 1, 3, 4])
    cut = study._replace(
        drift=study.drift[:, there],
        compliance=study.compliance[:, there],
        change=study.change[:, there],
    )
    for one, other in zip(*(tests.explain_changes(s, 9) for s in (broken, cut)), strict=True):
        assert np.allclose(one, other)


def test_icc_and_spread_by_hand():
    """Groups (1, 3) and (5, 7): MSB 16, MSW 2, so (16 - 2) / (16 + 2)."""
    values = np.array([[1.0, 0.0], [3.0, 1.0], [5.0, 0.0], [7.0, 1.0]])
    group = np.array(["a", "a", "b", "b"])
    assert tests.icc(values, group)[0] == pytest.approx(14 / 18)
    assert tests.icc(values, group)[1] == pytest.approx(-1.0)
    assert np.allclose(tests.within_sd(values, group), [np.sqrt(2), np.sqrt(0.5)])
    assert np.isnan(tests.icc(values, np.array(list("abcd")))).all()


# profiles


def test_projections_leave_their_own_run_out():
    rng = np.random.default_rng(3)
    here, there = rng.normal(size=(2, 6, 9))
    chosen = np.array([[1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 0]], dtype=bool)
    found = profiles.agree_with(profiles.centre(here), profiles.centre(there), chosen)
    for split, run in np.ndindex(found.shape):
        others = [i for i in np.flatnonzero(chosen[split]) if i != run]
        expected = np.corrcoef(here[run], there[others].sum(axis=0))[0, 1]
        assert found[split, run] == pytest.approx(expected)
    alone = profiles.agree_with(here, there, np.arange(6)[None] == 2)
    assert np.isnan(alone[0, 2]) and np.isfinite(np.delete(alone[0], 2)).all()


def noise_study(rng, n_seeds=4, shift=0.0):
    """A Study without signals whose one profile is noise around a shape that all arms share."""
    n = 3 * n_seeds
    change = rng.normal(size=(n, 2, 1, 12)) + 2 * rng.normal(size=12)
    change[:n_seeds] += shift * rng.normal(size=12)
    slots = np.array([10, 10]), np.array([False, True])
    runs = np.repeat(tests.ARMS, n_seeds), np.tile(np.arange(n_seeds), 3)
    empty = np.zeros((n, 2, 0))
    return tests.Study(*runs, *slots, np.ones((n, 2)), np.ones((n, 2)), (), empty, ("s",), change)


def test_projections_are_tested_with_templates_made_anew():
    """The projections of every split, from its own template; other arms pool their spread."""
    study = noise_study(np.random.default_rng(4), 3, 1.0)
    here = study.profile_change[:, 1]
    found = profiles.contrast_projections(study, ("role", "facts"), here)
    sizes = []
    for chosen in combinations(range(6), 3):
        values = []
        for run in range(9):
            template = study.profile_change[[i for i in chosen if i != run], 0, 0].mean(axis=0)
            values.append(np.corrcoef(here[run, 0], template)[0, 1])
        values, own = np.array(values), np.isin(np.arange(6), chosen)
        difference = values[:6][own].mean() - values[:6][~own].mean()
        squares = ((values[:6] - values[:6].mean()) ** 2).sum() + values[6:].var() * 3
        sizes.append(difference * np.sqrt(1.5) / np.sqrt(squares))
    assert np.allclose(found.r[:, 0], sizes)
    assert found.p[0] == pytest.approx(np.mean(np.abs(sizes) >= abs(sizes[0]) - 1e-12))
    values = profiles.project_runs(study)["projection_s"]
    difference = values[:3, 1].mean() - values[3:6, 1].mean()
    assert found.estimate[0] == pytest.approx(difference)


def test_projections_of_equal_arms_hold_their_level():
    rng = np.random.default_rng(5)

    def p_of(study):
        here = study.profile_change[:, 1]
        return profiles.contrast_projections(study, ("role", "facts"), here).p[0]

    p = np.array([p_of(noise_study(rng)) for _ in range(150)])
    assert np.mean(p < 0.05) <= 0.10  # 7 of 150 expected
    assert p_of(noise_study(rng, shift=5.0)) < 0.05


@pytest.mark.parametrize("metric", profiles.METRICS)
def test_a_left_out_run_is_classified_as_by_hand(metric):
    rng = np.random.default_rng(6)
    arm = np.array(["b", "a", "c", "b", "a", "c", "c"])
    for _ in range(20):
        shapes = rng.normal(size=(7, 8))
        hits = 0
        for run in range(7):
            means = {
                name: np.mean([shapes[i] for i in range(7) if arm[i] == name and i != run], axis=0)
                for name in "abc"
            }
            if metric == "correlation":
                near = {k: np.corrcoef(shapes[run], m)[0, 1] for k, m in means.items()}
            else:
                near = {k: -np.linalg.norm(shapes[run] - m) for k, m in means.items()}
            hits += max(near, key=near.get) == arm[run]
        assert profiles.classify_runs(shapes, arm, metric)[0] == pytest.approx(hits / 7)


def test_p_of_a_perfect_classification():
    """3 against 3: of 20 labellings the true one and its mirror image are perfect."""
    shapes = np.vstack([np.eye(4)[[0, 0, 0]], np.eye(4)[[1, 1, 1]]])
    shapes += 0.01 * np.random.default_rng(7).normal(size=shapes.shape)
    arm = np.repeat(["role", "facts"], 3)
    for metric in profiles.METRICS:
        assert profiles.classify_runs(shapes, arm, metric) == (1.0, pytest.approx(2 / 20))
    alone = profiles.classify_runs(shapes, np.array(["a", *"bbbbb"]), "correlation")
    assert np.isnan(alone).all()


def test_labellings_are_all_or_drawn():
    for label, n in (([0, 0, 1, 1], 6), ([1, 0, 2, 0, 1, 2], 90)):
        found = profiles.labellings(np.array(label))
        assert len(found) == n == len({tuple(one) for one in found.tolist()})
        assert found[0].tolist() == label
        assert (np.sort(found, axis=1) == np.sort(label)).all()
    fifteen = np.repeat([0, 1, 2], 5)
    many = profiles.labellings(fifteen)
    assert len(many) == profiles.MOST_LABELLINGS and (many[0] == fifteen).all()


def test_profiles_agree_within_and_between_arms():
    study = noise_study(np.random.default_rng(8), 3, 4.0)
    row = profiles.profile_agreement(study)[0]
    r = np.corrcoef(study.profile_change[:, 0, 0])
    pairs = [(i, j) for i, j in combinations(range(9), 2) if i // 3 == j // 3]
    assert row["within"] == pytest.approx(np.mean([r[pair] for pair in pairs]))
    assert row["role_shuffled"] == pytest.approx(r[:3, 6:].mean())
    assert row["chance"] == pytest.approx(1 / 3) and 0 < row["p_euclidean"] <= 1


# layers counted


def test_pairs_never_share_a_seed_and_use_every_run_alike():
    runs = np.repeat(tests.ARMS, 5), np.tile(np.arange(5), 3)
    study = noise_study(np.random.default_rng(0), 5)._replace(arm=runs[0], seed=runs[1])
    pairs = profiles.choose_pairs(study)
    same = [pair for pair in pairs if pair[0][0] == pair[1][0]]
    assert len(same) == 15 and len(pairs) == 30 and len(set(map(frozenset, pairs))) == 30
    assert all(one[1] != other[1] for one, other in pairs)
    counts = [sum(run in pair for pair in same) for run in [("role", i) for i in range(5)]]
    assert counts == [2] * 5
    two = noise_study(np.random.default_rng(0), 2)
    assert len(profiles.choose_pairs(two)) == 3 + 6


def test_layers_that_differ_are_counted_between_runs():
    runs = {0: make_run(n_layers=3, seed=1), 1: make_run(n_layers=3, seed=2)}
    runs |= {2: make_run(n_layers=3, seed=1, effect=1.5)}
    pairs = [(("role", 0), ("role", 1)), (("role", 0), ("facts", 2)), (("facts", 2), ("role", 0))]
    rows = profiles.layer_counts(pairs, lambda arm, seed: runs[seed])
    assert [row["same_arm"] for row in rows] == [True, False, False]
    assert [row["layers_q_below_alpha"] for row in rows] == [0, 3, 3]
    assert rows[1]["mean_difference"] > 0.05 and rows[2]["mean_difference"] < -0.05
    found = profiles.summarise_counts([*rows[1:2], *rows[:1]])
    assert [row["pair"] for row in found] == ["role-role", "role-facts"]
    assert found[1]["mean_layers"] == 3 and found[0]["pairs"] == 1
    few = {seed: make_run(n_layers=3, per_category=3) for seed in (0, 1)}
    row = profiles.layer_counts(pairs[:1], lambda arm, seed: few[seed])[0]
    assert np.isnan(row["layers_q_below_alpha"])


# the table and its rule

GOOD = {
    "primary": False, "change_role": 0.04, "change_facts": 0.01, "change_shuffled": 0.01,
    "rho": 0.9, "moved_sd": 4.0, "moved_least": 1.24, "seed_sd": 0.01, "icc": 0.8,
    "role_facts_estimate": 0.03, "role_shuffled_estimate": 0.03, "facts_shuffled_estimate": 0.0,
    "p": 0.008, "p_max": 0.02, "r2_drift": 0.1, "r2_compliance": 0.6, "gain": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "specific"),
        ({"p_max": 0.051}, "undecided"),
        ({"p_max": 0.051, "primary": True}, "specific"),
        ({"p": 0.051, "primary": True}, "undecided"),
        ({"role_shuffled_estimate": -0.03}, "undecided"),
        ({"change_role": -0.04}, "undecided"),
        ({"facts_shuffled_estimate": -0.031}, "undecided"),
        ({"rho": 0.4}, "tells arms apart"),
        ({"moved_sd": 1.2}, "tells arms apart"),
        ({"gain": -0.01}, "tells arms apart"),
        ({"rho": -0.9}, "specific"),
        ({"icc": 0.4}, "unreliable"),
        ({"icc": 0.4, "change_facts": 0.04, "change_shuffled": 0.04}, "alike in all arms"),
        ({"p_max": 0.5, "moved_sd": -1.0}, "not sensitive"),
        ({"p_max": 0.5, "r2_drift": 0.7}, "follows drift"),
        ({"p_max": 0.5, "r2_drift": 0.5}, "undecided"),
        ({"p_max": 0.5, "r2_drift": 0.2, "r2_compliance": -0.1}, "undecided"),
        ({"r2_drift": 0.7}, "specific"),
        ({"icc": np.nan}, "undefined"),
        ({"facts_shuffled_estimate": np.nan}, "undefined"),
    ],
)
def test_the_rule_for_every_verdict(change, verdict):
    assert table.judge(GOOD | change) == verdict
    assert table.judge(GOOD | change, "cannot be decided: why") == "cannot be decided: why"


def simulated(n_seeds=5, seed=0):
    arrays, _ = simulation.draw_study(np.random.default_rng(seed), n_seeds, copies=2)
    return tests.gather_runs(arrays)


def test_the_table_of_a_simulated_study():
    study = simulated()
    rows = table.signal_table(study, "compliance_0", n_permutations=99)
    by_name = {row["signal"]: row for row in rows}
    assert len(rows) == len(study.signal) + len(study.profile)
    first = by_name["compliance_0"]
    assert first["primary"] and np.isnan(first["p_max"]) and first["verdict"] == "specific"
    assert first["role_facts_p"] == pytest.approx(2 / 252)
    assert first["gain_p"] == pytest.approx(0.01)
    low, high = first["role_facts_low"], first["role_facts_high"]
    assert 0 < low < first["role_facts_estimate"] < high
    assert by_name["noise_0"]["p_max"] > by_name["noise_0"]["p"]
    for row in rows:
        both = max(row["role_facts_p"], row["role_shuffled_p"])
        assert row["p"] == pytest.approx(both)
        assert np.isnan(row["gain_p"]) == row["signal"].startswith("projection_")
    drift = by_name["drift, root_0"]
    assert drift["verdict"] == "follows drift" and drift["r2_drift"] > drift["r2_compliance"]
    lines = table.describe_power(study)
    assert lines[0] == "runs: 5 role, 5 facts, 5 shuffled"
    assert "smallest p 0.0079" in lines[1] and "matched drift 0.1" in lines[2]


def test_a_primary_signal_that_is_no_candidate_is_refused():
    with pytest.raises(UserError, match="rfc is none of the candidates"):
        table.signal_table(simulated(), "rfc", n_permutations=0)


def test_rho_is_of_means_over_role_runs_from_step_0():
    """Compliance 0, 0.1, 0.2, 0.3; one signal 0, -1, 2, 3 (means; ranks 2 1 3 4): rho 0.8."""
    rows = [STEP_0]
    for arm, values in (("role", (-3, 2, 3)), ("role", (1, 2, 3)), ("facts", (9, -9, -9))):
        for dose, value in zip((10, 20, 30), values, strict=True):
            said = 0.05 + dose / 100 if arm == "role" else 0.9 - dose / 100
            seed = sum(row[0] == arm and row[2] == dose for row in rows)
            rows.append((arm, seed, dose, False, 0.1, said, 1.0 + value))
    study = tests.gather_runs(arrays_of(rows))
    rho = table.follow_compliance(study, np.concatenate([study.change, -study.change], axis=2))
    assert np.allclose(rho, [0.8, -0.8])


def test_contrasts_by_dose_and_at_both_kinds_of_equal_drift():
    study = simulated()
    rows = table.contrast_rows(study, ["drift, root_0", "projection_profile_role"])
    found = {(row["signal"], row["contrast"], row["place"]): row for row in rows}
    assert len(found) == 3 * (8 + 7)
    gap = {
        place: abs(found["drift, root_0", "role-shuffled", place]["estimate"])
        for place in ("dose 100", "matched drift", "equal drift")
    }
    assert gap["dose 100"] > 0.02 and max(gap["matched drift"], gap["equal drift"]) < 0.015
    last = study.change[:, study.last, study.signal.index("drift, root_0")]
    expected = last[:5].mean() - last[5:10].mean()
    assert found["drift, root_0", "role-facts", "dose 100"]["estimate"] == pytest.approx(expected)


def test_two_seeds_decide_nothing_however_large_the_effect():
    arrays, _ = simulation.draw_study(np.random.default_rng(0), 2, copies=1)
    arrays["value"][arrays["arm"] == "role"] += 100.0
    study = tests.gather_runs(arrays)
    rows = table.signal_table(study, "compliance_0", n_permutations=9)
    said = "cannot be decided with 2 against 2 runs: smallest p 0.33"
    assert {row["verdict"] for row in rows} == {said}
    assert said in table.describe_power(study)


def test_where_matched_role_runs_do_not_comply_more_nothing_is_decided():
    """A scale at which the persona is gone: that a signal is alike there says nothing of it."""
    study = simulated()
    assert table.cannot_decide(study) is None
    slot = np.flatnonzero(study.matched)[0]
    compliance = study.compliance.copy()
    compliance[study.runs_of("role"), slot] = compliance[study.runs_of("shuffled"), slot]
    compliance[study.runs_of("facts"), slot] -= 1.0
    said = table.cannot_decide(study._replace(compliance=compliance))
    assert said == ("cannot be decided: at matched drift role does not comply more than shuffled")
    compliance[study.runs_of("role"), slot] = -2.0
    assert "than facts and shuffled" in table.cannot_decide(study._replace(compliance=compliance))


def test_a_study_without_an_arm_decides_nothing_and_keeps_its_columns():
    arrays, _ = simulation.draw_study(np.random.default_rng(0), 5, copies=1)
    there = arrays["arm"] != "shuffled"
    cut = {k: v if k in ("signal", "profile") else v[there] for k, v in arrays.items()}
    rows = table.signal_table(tests.gather_runs(cut), "compliance_0", n_permutations=9)
    whole = table.signal_table(tests.gather_runs(arrays), "compliance_0", n_permutations=9)
    assert rows[0].keys() == whole[0].keys()
    assert rows[0]["verdict"] == "cannot be decided: fewer than 2 runs of shuffled"
    assert np.isnan([rows[0]["p"], rows[0]["role_shuffled_p"]]).all()
    assert rows[0]["role_facts_p"] < 0.05


def test_simulated_studies_are_called_what_they_are():
    """60 studies; benchmarks/tuning_calibration.py has more, and prints every truth."""
    rng, alone, among = np.random.default_rng(11), {}, {}
    for _ in range(60):
        for truth, first, second, _ in simulation.judge_study(rng):
            alone.setdefault(truth, []).append(first == "specific")
            among.setdefault(truth, []).append(second == "specific")
    for truth in ("compliance", "both", "profile_role"):
        assert np.mean(alone[truth]) >= 0.93, truth
    assert np.mean(among["compliance"]) >= 0.65
    for truth in set(alone) - set(simulation.RIGHT):
        assert np.mean(alone[truth]) <= 0.05 and np.mean(among[truth]) <= 0.02, truth
