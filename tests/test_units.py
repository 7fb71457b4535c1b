"""Units of inference: which rows belong together, and what a crossed set's frames do to values,
draws, errors and contrasts. Every expectation is computed by hand, frame by frame."""

import numpy as np
import pytest

from conftest import PROJECT
from prompts import load_prompts, select_prompts
from rolecircuits.inputs.categories import CATEGORIES, Prompt
from rolecircuits.inputs.errors import UserError
from rolecircuits.inputs.prompt_sets import built_in_prompts
from rolecircuits.stats import contrasts, indices, resampling, units
from rolecircuits.stats.index_inference import Means, infer_indices, infer_mean_indices
from rolecircuits.stats.role_tests import infer_layers, split_units
from synthetic import make_run

N, LAYERS = 9, 3
FRAMES = np.tile(np.arange(N), len(CATEGORIES))  # unit of every row of `crossed_values`
CATEGORY = np.repeat(CATEGORIES, N)
NUMERATOR = {"rfc": {"self_referent": -1}, "rsi": {"confounder": 1, "self_referent": -1}}
DEIXIS = {  # the mean of each category
    "you_user": 3.0, "i_user": 1.0, "third_user": 0.5, "it_user": 0.25,
    "you_assistant": 2.0, "i_assistant": 7.0, "third_assistant": 1.5, "it_assistant": 0.75,
}  # fmt: skip


def make_design(n_frames, n_fillers, order=None):
    """A Design and the place (category, frame, filler) of every prompt, in an order of rows."""
    places = [
        (c, f"f{i}", f"w{k}") for c in CATEGORIES for i in range(n_frames) for k in range(n_fillers)
    ]
    places = [places[row] for row in (range(len(places)) if order is None else order)]
    category, frame, filler = (np.array(x) for x in zip(*places, strict=True))
    return units.Design(category, np.full(len(places), -1), frame, filler, True), places


def crossed_values(seed=0):
    """[row, layer], row by row as CATEGORY and FRAMES: persons of a frame move together."""
    rng = np.random.default_rng(seed)
    frame, own = rng.normal(size=(1, N, LAYERS)), rng.normal(size=(len(CATEGORIES), N, LAYERS))
    level = np.array([0.9, 1.1, 1.2, 1.0])[:, None, None]
    return (level * np.exp(0.3 * frame + 0.1 * own)).reshape(-1, LAYERS)


def rows_of(values, name):
    return values[CATEGORY == name]


def influence(values, index):
    """psi [frame, ...] of an index: what each frame adds to it, its persons summed one by one."""
    mean = {name: rows_of(values, name).mean(axis=0) for name in CATEGORIES}
    numerator = sum(a * mean[name] for name, a in NUMERATOR[index].items())
    psi = np.zeros((len(values) // len(CATEGORIES), *values.shape[1:]))
    for frame in range(len(psi)):
        for name, a in NUMERATOR[index].items():
            own = values[(CATEGORY == name) & (FRAMES == frame)][0]
            psi[frame] += a * (own - mean[name]) / mean["neutral"]
        own = values[(CATEGORY == "neutral") & (FRAMES == frame)][0]
        psi[frame] -= numerator * (own - mean["neutral"]) / mean["neutral"] ** 2
    return psi


def error_of(psi):
    return psi.std(axis=0, ddof=1) / np.sqrt(len(psi))


def own_errors(runs, crossed):
    """{index: (estimate, delta-method error)} of the sample itself, as resampling has it."""
    once = np.ones((len(CATEGORY), 1), np.float32)
    means = Means(runs, CATEGORY, once, FRAMES if crossed else None)
    drawn = {name: means.index_draws(name)[:3] for name in indices.INDICES}
    return {name: (estimate, error[:, 0]) for name, (estimate, _, error) in drawn.items()}


def by_loop(index, counts, runs, of_mean):
    """(theta, low, high, p) by symmetric bootstrap-t, resample by resample, frame by frame."""

    def draw(chosen):
        rows = np.concatenate([c * N + chosen for c in range(len(CATEGORIES))])
        parts = [run[rows] for run in runs]
        theta = [indices.index_values(part, CATEGORY)[index] for part in parts]
        psi = [influence(part, index) for part in parts]
        theta, psi = (x[0] - x[1] if len(x) == 2 else x[0] for x in (theta, psi))
        if of_mean:
            theta, psi = theta.mean(), psi.mean(axis=1)
        return theta, error_of(psi)

    theta, error = draw(np.arange(N))
    t = []
    for count in counts[:, :N].astype(int):
        drawn, spread = draw(np.repeat(np.arange(N), count))
        t.append(np.abs(drawn - theta) / spread)
    t = np.sort(t, axis=0)
    half = t[int(np.ceil(0.95 * (len(t) + 1))) - 1] * error
    p = (1 + (t >= np.abs(theta) / error).sum(axis=0)) / (1 + len(t))
    return theta, theta - half, theta + half, p


def assert_same(found, expected):
    """Estimate and interval agree, and p where these draws are enough for it."""
    for own, other in zip(found[:3], expected[:3], strict=True):
        assert own == pytest.approx(other, rel=2e-3)
    often = np.atleast_1d(expected[3] >= (1 + resampling.ENOUGH) / 201)
    p, other = np.atleast_1d(found.p), np.atleast_1d(expected[3])
    assert p[often] == pytest.approx(other[often], abs=0.0051)
    assert (p[~often] < 0.2).all()


def test_a_frame_has_one_value_a_category_the_mean_over_its_fillers():
    order = np.random.default_rng(1).permutation(4 * 5 * 3)
    design, places = make_design(5, 3, order)
    values = np.random.default_rng(2).normal(size=(len(places), 2))
    found, (category, unit) = units.frame_values(design, values), units.labels_of(design)
    assert found.shape == (20, 2) and len(category) == len(unit) == 20
    names = list(dict.fromkeys(frame for _, frame, _ in places))
    for row, name, number in zip(found, category, unit, strict=True):
        own = [values[i] for i, p in enumerate(places) if p[:2] == (name, names[number])]
        assert len(own) == 3 and row == pytest.approx(np.mean(own, axis=0))


def test_rows_stand_category_by_category_with_the_same_units_in_each():
    design, _ = make_design(5, 2, np.random.default_rng(3).permutation(40))
    category, unit = units.labels_of(design)
    assert category.tolist() == np.repeat(CATEGORIES, 5).tolist()
    assert (unit.reshape(4, 5) == unit[:5]).all() and sorted(unit[:5]) == list(range(5))


def test_a_cell_that_lacks_a_category_counts_for_none():
    design, places = make_design(3, 2)
    missing = [("neutral", "f0", "w1"), ("confounder", "f2", "w0"), ("neutral", "f2", "w1")]
    kept = [row for row, place in enumerate(places) if place not in missing]
    cut, left = make_design(3, 2, kept)
    values = np.random.default_rng(4).normal(size=len(places))
    found, (category, unit) = units.frame_values(cut, values[kept]), units.labels_of(cut)
    assert category.tolist() == np.repeat(CATEGORIES, 2).tolist() and set(unit) == {0, 1}
    for row, name, number in zip(found, category, unit, strict=True):
        fillers = ("w0",) if number == 0 else ("w0", "w1")
        own = [values[places.index((name, f"f{number}", w))] for w in fillers]
        assert row == pytest.approx(np.mean(own))
    assert len(left) == len(values) - 3 and len(units.units_of(cut)) == len(left)


def test_a_value_that_is_undefined_stays_undefined_for_its_frame():
    design, places = make_design(3, 2)
    values = np.ones(len(places))
    values[places.index(("neutral", "f1", "w0"))] = np.nan
    found, (category, unit) = units.frame_values(design, values), units.labels_of(design)
    assert (np.isnan(found) == ((category == "neutral") & (unit == 1))).all()


def test_the_values_of_another_set_are_returned_as_they_are():
    run = make_run(per_category=4)
    values = indices.layer_values(run)
    assert units.frame_values(run, values) is values
    category, unit = units.labels_of(run)
    assert (category == run.category).all() and (unit == units.units_of(run)).all()


def test_pairs_are_units_where_they_are_whole():
    run = make_run(per_category=4)
    paired = np.isin(run.category, ["confounder", "third_person"])
    whole = units.units_of(run)
    assert (whole[paired] == run.pair_id[paired]).all() and (whole[paired] >= 0).all()
    assert (whole[~paired] == units.ALONE).all()
    third = np.flatnonzero(run.category == "third_person")
    broken = units.units_of(run.take(np.delete(np.arange(16), third[1])))
    assert (broken == units.ALONE).all()
    both = np.delete(np.arange(16), [third[1], np.flatnonzero(run.category == "confounder")[1]])
    assert sorted(units.units_of(run.take(both)))[-6:] == [0, 0, 2, 2, 3, 3]


def test_a_run_of_the_crossed_set_has_its_frames_as_units():
    run = make_run(2, 2, prompts=built_in_prompts("crossed"))
    category, unit = units.labels_of(run)
    assert len(category) == 4 * 36 and units.units_of(run).max() == 35
    values, found = indices.layer_values(run), units.frame_values(run, indices.layer_values(run))
    names = list(dict.fromkeys(run.frame.tolist()))
    for row, name, number in zip(found, category, unit, strict=True):
        own = values[(run.category == name) & (run.frame == names[number])]
        assert len(own) == 3 and row == pytest.approx(own.mean(axis=0))
    arrays = {key: getattr(run, key) for key in ("category", "pair_id", "frame", "filler", "slot")}
    design = units.design_of(arrays)
    assert design.crossed and (units.units_of(design) == units.units_of(run)).all()
    assert not units.design_of(arrays | {"slot": np.full_like(run.slot, -1)}).crossed


def test_rows_match_unit_for_unit_or_not_at_all():
    left, right = "confounder", "neutral"
    category = np.array([left, right, left, right, left, right])
    a, b = units.matched_rows(category, [5, 2, 2, 9, 9, 5], (left, right))
    assert a.tolist() == [2, 0, 4] and b.tolist() == [1, 5, 3]
    alone = [-1] * 6
    twice = [1, 1, 1, 1, 2, 2]
    unlike = [1, 1, 2, 2, 3, 4]
    partly = [-1, -1, 2, 2, 3, 3]
    for unit in (alone, twice, unlike, partly):
        assert units.matched_rows(category, unit, (left, right)) is None
    assert units.matched_rows(category, [1, 1, 2, 2, 3, 3], (left, "third_person")) is None
    assert units.matched_rows(category, [1, 1, 2, 2, 3, 3], ("third_person", left)) is None


def test_frames_are_drawn_whole():
    (stratum,) = units.strata_of(CATEGORY, FRAMES)
    for frame, rows in enumerate(stratum):
        assert (FRAMES[rows] == frame).all() and CATEGORY[rows].tolist() == sorted(CATEGORIES)
    assert len(stratum) == N
    counts = resampling.bootstrap_counts(CATEGORY, FRAMES, 300, 1).reshape(300, 4, N)
    assert (counts == counts[:, :1]).all() and (counts.sum(axis=2) == N).all()
    assert counts[:, 0].var(axis=0).min() > 0.5


def test_prompts_of_a_frame_are_drawn_together_whatever_their_number():
    design, places = make_design(4, 3, np.random.default_rng(5).permutation(48))
    unit = units.units_of(design)
    counts = resampling.bootstrap_counts(design.category, unit, 100, 1)
    for number in range(4):
        own = counts[:, unit == number]
        assert own.shape == (100, 12) and (own == own[:, :1]).all()
    assert (counts.sum(axis=1) == len(places)).all()


def test_prompts_alone_are_drawn_inside_their_category_and_pairs_in_theirs():
    prompts = select_prompts(per_category=6)
    category = np.array([p.category for p in prompts])
    unit = np.array([p.pair_id for p in prompts])
    strata = units.strata_of(category, unit)
    assert [np.shape(s) for s in strata] == [(6, 2), (6, 1), (6, 1)]
    covered = np.sort(np.concatenate([np.ravel(s) for s in strata]))
    assert covered.tolist() == list(range(24))
    for stratum in strata[1:]:
        assert len(set(category[np.ravel(stratum)])) == 1
    alone = resampling.bootstrap_counts(category, np.full(24, -1), 300, 1).reshape(300, 4, 6)
    assert (alone.sum(axis=2) == 6).all()
    correlation = np.corrcoef(alone.reshape(300, 24).T)[:6, 6:]
    assert np.abs(correlation).max() < 0.3


def test_units_of_unlike_composition_are_drawn_apart():
    category, unit = np.array(list("abababab" + "ac" * 3)), np.repeat(np.arange(7), 2)
    assert [np.shape(s) for s in units.strata_of(category, unit)] == [(4, 2), (3, 2)]
    counts = resampling.bootstrap_counts(category, unit, 50, 1)
    assert (counts[:, :8].sum(axis=1) == 8).all() and (counts[:, 0] == counts[:, 1]).all()


def test_prompts_that_begin_alike_are_one_cluster_whatever_their_category():
    """All clusters are one pool, and so categories vary in size; a prompt alone is one too."""
    run = make_run(1, 1, first_words=True)
    unit = units.units_of(run)
    assert units.is_clustered(run.category, unit) and (units.labels_of(run)[1] == unit).all()
    for frame in set(run.frame.tolist()):
        assert len(set(unit[run.frame == frame])) == 1
    assert len(set(unit.tolist())) == len(set(run.frame.tolist())) < 40
    (stratum,) = units.strata_of(run.category, unit)
    assert len(stratum) == unit.max() + 1
    counts = resampling.bootstrap_counts(run.category, unit, 200, 1)
    for number in range(len(stratum)):
        own = counts[:, unit == number]
        assert (own == own[:, :1]).all()
    first = [counts[:, unit == number][:, 0] for number in range(len(stratum))]
    assert (np.sum(first, axis=0) == len(stratum)).all()
    sizes = counts[:, run.category == "neutral"].sum(axis=1)
    assert sizes.mean() == pytest.approx(30, rel=0.1) and sizes.std() > 3
    (mixed,) = units.strata_of(np.array(list("aabcc")), np.array([0, 0, -1, 0, -1]))
    assert [rows.tolist() for rows in mixed] == [[0, 1, 3], [2], [4]]
    assert not units.is_clustered(["a", "a", "b"], [-1, -1, 0])
    assert not units.is_clustered(["a", "b"], [0, 0]) and units.is_clustered(["a", "a"], [1, 1])


def test_frames_of_unequal_size_are_worth_less():
    assert units.effective_units([0, 0, 1, 1, 2, 2]) == pytest.approx(3)
    assert units.effective_units([-1, -1, -1]) == pytest.approx(3)
    assert units.effective_units([0] * 8 + [1, -1]) == pytest.approx(100 / 66)
    assert units.effective_units([]) == 0


@pytest.mark.parametrize("index", ["rfc", "rsi"])
def test_the_error_in_a_crossed_set_is_that_of_the_frames_sums(index):
    values, base = crossed_values(), 0.7 * crossed_values(1)
    estimate, error = own_errors([values], True)[index]
    assert estimate == pytest.approx(indices.index_values(values, CATEGORY)[index])
    assert error == pytest.approx(error_of(influence(values, index)), rel=1e-4)
    apart = own_errors([values], False)[index][1]
    assert (apart > 1.5 * error).all()
    _, error = own_errors([values, base], True)[index]
    expected = error_of(influence(values, index) - influence(base, index))
    assert error == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("two_runs", [False, True])
@pytest.mark.parametrize("index", ["rfc", "rsi"])
def test_intervals_and_p_are_bootstrap_t_over_frames_by_loop(index, two_runs):
    runs = [crossed_values(), 0.7 * crossed_values(1)][: 1 + two_runs]
    base, draws = (runs[1] if two_runs else None), (200, 3)
    counts = resampling.bootstrap_counts(CATEGORY, FRAMES, *draws)
    found = infer_indices(runs[0], CATEGORY, FRAMES, base, *draws)[index]
    assert_same(found, by_loop(index, counts, runs, False))
    found = infer_mean_indices(runs[0], CATEGORY, FRAMES, base, *draws)[index]
    assert_same(found, by_loop(index, counts, runs, True))


def test_what_scales_all_persons_of_a_frame_costs_the_indices_nothing():
    scale = np.exp(np.random.default_rng(6).normal(size=(1, N, 1)))
    level = np.array([0.9, 1.1, 1.2, 1.0])[:, None, None]
    values = (level * scale).reshape(-1, 1)
    for index, (estimate, error) in own_errors([values], True).items():
        assert error[0] < 1e-3 * own_errors([values], False)[index][1][0]
        assert estimate[0] == pytest.approx({"rfc": 1 - 0.9 / 1.2, "rsi": 0.2 / 1.2}[index])


def test_what_shifts_all_persons_of_a_frame_costs_rsi_nothing_where_neutral_is_constant():
    values = crossed_values()
    values[CATEGORY == "neutral"] = 1.2
    shift = np.where(CATEGORY == "neutral", 0.0, np.tile(np.arange(N) - (N - 1) / 2, 4))[:, None]
    before, after = (own_errors([run], True)["rsi"] for run in (values, values + shift))
    assert after[0] == pytest.approx(before[0]) and after[1] == pytest.approx(before[1], rel=1e-3)
    difference = rows_of(values, "confounder") - rows_of(values, "self_referent")
    assert before[1] == pytest.approx(error_of(difference / 1.2), rel=1e-4)
    assert (own_errors([values + shift], False)["rsi"][1] > 10 * before[1]).all()


@pytest.mark.parametrize("side", [0, 1])
def test_an_undefined_person_takes_its_frame_along_in_that_column(side):
    runs = [crossed_values(), 0.7 * crossed_values(1)]
    whole = infer_indices(runs[0], CATEGORY, FRAMES, runs[1], 100, 1)
    runs[side][(CATEGORY == "confounder") & (FRAMES == 2), 1] = np.nan
    found = infer_indices(runs[0], CATEGORY, FRAMES, runs[1], 100, 1)
    without = [run[FRAMES != 2] for run in runs]
    left = [indices.index_values(run, CATEGORY[FRAMES != 2]) for run in without]
    for index in ("rfc", "rsi"):
        expected = left[0][index] - left[1][index]
        assert found[index].estimate[1] == pytest.approx(expected[1])
        assert found[index].estimate[1] != pytest.approx(whole[index].estimate[1], rel=1e-6)
        for end in ("low", "high", "p"):
            own, before = (getattr(x[index], end) for x in (found, whole))
            assert own[[0, 2]] == pytest.approx(before[[0, 2]]) and own[1] != before[1]
    of_mean = infer_mean_indices(runs[0], CATEGORY, FRAMES, runs[1], 100, 1)
    expected = [found[index].estimate.mean() for index in ("rfc", "rsi")]
    assert [of_mean[index].estimate for index in ("rfc", "rsi")] == pytest.approx(expected)


def test_third_person_is_no_category_of_the_indices():
    values = crossed_values()
    values[(CATEGORY == "third_person") & (FRAMES == 2)] = np.nan
    draws = 100, 1
    found = infer_indices(values, CATEGORY, FRAMES, None, *draws)
    whole = infer_indices(crossed_values(), CATEGORY, FRAMES, None, *draws)
    for index in ("rfc", "rsi"):
        assert found[index].low == pytest.approx(whole[index].low)


def test_rows_of_the_categories_in_unlike_order_are_refused():
    order = np.concatenate([np.arange(N)[::-1], np.arange(N, 4 * N)])
    with pytest.raises(ValueError, match="same order of units"):
        infer_indices(crossed_values()[order], CATEGORY, FRAMES[order], None, 50, 1)


def test_units_that_are_shared_only_in_part_do_not_covary():
    """The pairs of the original set are drawn together; none of the indices holds both of them."""
    values, pair = crossed_values(), np.where(np.isin(CATEGORY, CATEGORIES[1::2]), FRAMES, -1)
    weights = resampling.draw_weights(resampling.bootstrap_counts(CATEGORY, pair, 200, 1))
    found = infer_indices(values, CATEGORY, pair, None, 200, 1)
    means = Means([values], CATEGORY, weights)
    for index, own in found.items():
        estimate, shift, error, _ = means.index_draws(index)
        t = np.sort(np.abs(shift[:, 1:] / error[:, 1:]), axis=1)
        half = t[:, int(np.ceil(0.95 * 201)) - 1] * error[:, 0]
        assert own.high == pytest.approx(estimate + half, rel=1e-4)


def test_a_contrast_of_a_crossed_set_is_taken_inside_frames_whatever_the_order_of_rows():
    order = np.concatenate([c * N + np.random.default_rng(c).permutation(N) for c in range(4)])
    contrast, draws = ("self_referent", "neutral"), (500, 2)
    own = crossed_values()[order], CATEGORY[order]
    difference = rows_of(crossed_values(), contrast[1]) - rows_of(crossed_values(), contrast[0])
    found = contrasts.infer_contrast(*own, FRAMES[order], contrast, *draws)
    expected = resampling.infer_mean(difference, n_resamples=500, seed=2)
    assert found.estimate == pytest.approx(expected.estimate)
    assert found.error == pytest.approx(error_of(difference), rel=1e-4)
    assert (found.error < 0.6 * contrasts.infer_contrast(*own, None, contrast, *draws).error).all()
    alone = contrasts.infer_contrast(*own, np.full(len(FRAMES), -1), contrast, *draws)
    sides = [own[0][own[1] == name] for name in reversed(contrast)]
    for one, other in zip(alone, resampling.infer_difference(*sides, False, *draws), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_interaction_is_the_difference_of_differences_inside_frames():
    rng, names = np.random.default_rng(7), list(DEIXIS)
    own = {name: level + rng.normal(size=(6, 2)) for name, level in DEIXIS.items()}
    order = np.concatenate([k * 6 + rng.permutation(6) for k in range(len(names))])
    category, unit = np.repeat(names, 6)[order], np.tile(np.arange(6), len(names))[order]
    values = np.concatenate(list(own.values()))[order]
    for name, persons in (("about_model", ("you", "i")), ("control_third_it", ("third", "it"))):
        contrast = contrasts.available_contrasts(category)[name]
        first, second = persons
        of_user = own[f"{first}_user"] - own[f"{second}_user"]
        of_assistant = own[f"{first}_assistant"] - own[f"{second}_assistant"]
        expected = (of_assistant - of_user) / 2  # > 0: the first pair is the more focused
        a, b, paired = contrasts.contrast_sides(values, category, unit, contrast)
        assert paired and a - b == pytest.approx(expected)
        found = contrasts.compare_categories(values, category, unit, contrast, 100)
        assert found["estimate"] == pytest.approx(expected.mean(axis=0))
        with pytest.raises(UserError, match="needs a crossed set"):
            contrasts.contrast_sides(values, category, np.full(len(unit), -1), contrast)


@pytest.mark.parametrize("name", ["crossed", "benchmarks/data/prompts.csv"])
def test_layers_of_a_run_are_tested_over_its_units(name):
    chosen = built_in_prompts(name) if name == "crossed" else load_prompts(PROJECT / name)[0]
    run = make_run(2, 2, effect=0.02, prompts=chosen, first_words=True)
    found, layers = infer_layers(run, n_resamples=200, seed=4), indices.layer_values(run)
    labels, values = units.labels_of(run), units.frame_values(run, layers)
    expected = infer_indices(values, *labels, None, 200, 4)
    plain = infer_indices(layers, run.category, None, None, 200, 4)
    for index in indices.INDICES:
        assert np.isfinite(found[index]["p"]).all()
        for name in ("low", "high", "p", "p_max"):
            assert found[index][name] == pytest.approx(getattr(expected[index], name))
        assert found[index]["error"] != pytest.approx(plain[index].error, rel=0.01)


def test_a_frame_adds_up_whole_in_a_mean_over_all_prompts():
    design, places = make_design(4, 3)
    values = np.random.default_rng(8).normal(size=(len(places), 2))
    values[places.index(("neutral", "f2", "w1")), 0] = np.nan
    sums, sizes, stratum = resampling.sum_units(values, design.category, units.units_of(design))
    for frame in range(4):
        own = values[design.frame == f"f{frame}"]
        assert sums[frame] == pytest.approx(np.nansum(own, axis=0))
        assert sizes[frame].tolist() == (~np.isnan(own)).sum(axis=0).tolist()
    assert len(sums) == 4 and len(set(stratum)) == 1


def test_half_of_the_frames_choose_heads_and_no_frame_is_split():
    design, _ = make_design(7, 3, np.random.default_rng(9).permutation(84))
    unit = units.units_of(design)
    chosen = split_units(design.category, unit, seed=1)
    shares = [chosen[unit == number].mean() for number in range(7)]
    assert sorted(shares) == [0.0] * 4 + [1.0] * 3


def test_halves_of_clusters_are_whole_and_balanced():
    run = make_run(1, 1, first_words=True)
    category, unit = units.labels_of(run)
    halves = [split_units(category, unit, seed) for seed in range(20)]
    for chosen in halves:
        shares = {chosen[unit == number].mean() for number in set(unit.tolist())}
        assert shares <= {0.0, 1.0}
        largest = np.unique(unit, return_counts=True)[1].max()
        assert abs(chosen.sum() - (~chosen).sum()) <= largest
    assert (halves[0] != halves[1]).any()
    assert (halves[0] == split_units(category, unit, 0)).all()


def test_a_set_of_one_category_a_frame_is_not_crossed():
    prompts = [Prompt(str(i), CATEGORIES[i % 2], -1, f"Text {i}", f"frame{i}") for i in range(8)]
    run = make_run(1, 1, prompts=prompts)
    assert not run.crossed and (units.units_of(run) == units.ALONE).all()
