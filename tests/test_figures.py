"""The ten figures: what they draw equals what the indices and resampling compute, and they stay
legible and honest."""

import csv
import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from scipy.stats import false_discovery_control

import output_manager
import visualize_results
from conftest import PROJECT
from rolecircuits.drawing import edit_figures, run_figures, style
from rolecircuits.drawing.colours import ROLE_LOOKS
from rolecircuits.drawing.study import study_run
from rolecircuits.inputs.categories import CATEGORIES, Prompt
from rolecircuits.inputs.errors import UserError
from rolecircuits.inputs.prompt_sets import built_in_prompts, cut_prompts
from rolecircuits.runs import edit_results, files
from rolecircuits.runs.arrays import ARRAYS
from rolecircuits.stats import indices, masses, role_tests, units
from rolecircuits.stats.resampling import infer_mean
from synthetic import make_run, save_run

NAMES = dict(enumerate(run_figures.FIGURES, start=1))
NUMBERS = range(1, 10)  # of every run; 10 is that of a run with slots
LONG_ID = r"/home/someone/a-very-long-organisation-name/$\bad{$ [/INST] "
LONG_ID += "Meta-Llama-3.1-70B-Instruct-finetuned-v17-000012345"


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def run():
    return make_run(n_layers=4, n_heads=3, effect=0.4)


@pytest.fixture(scope="module")
def study(run):
    return study_run(run, n_resamples=400)


def draw(number, study):
    return run_figures.draw_figure(NAMES[number], study)


def column(rows, name, **chosen):
    """One column of CSV rows as an array, of the rows whose other columns have these values."""
    return np.array(
        [row[name] for row in rows if all(row[key] == value for key, value in chosen.items())]
    )


def take(run, keep):
    """The run with some of its prompts."""
    rows = np.flatnonzero(keep)
    arrays = {
        name: getattr(run, name)[rows] for name, (_, axes) in ARRAYS.items() if axes[0] == "prompt"
    }
    return dataclasses.replace(run, prompts=[run.prompts[row] for row in rows], **arrays)


def resize(run, n_layers, n_heads):
    """The run with its layers and heads repeated until there are so many: a large model, without
    the wait."""
    sizes = {"layer": np.arange(n_layers) % run.n_layers, "head": np.arange(n_heads) % run.n_heads}
    arrays = {}
    for name, (_, axes) in ARRAYS.items():
        arrays[name] = getattr(run, name)
        for place, axis in enumerate(axes):
            if axis in sizes:
                arrays[name] = np.take(arrays[name], sizes[axis], axis=place)
    return dataclasses.replace(run, **arrays)


def scaled(run, keep, layer, head, factor):
    """The run with the entropy of one head multiplied for some prompts."""
    entropy = run.entropy.copy()
    entropy[np.flatnonzero(keep), layer, head] *= factor
    return dataclasses.replace(run, entropy=entropy)


def all_text(figure):
    return " ".join(text.get_text() for text in figure.findobj(plt.Text))


def test_layer_lines_show_means_and_differences_in_focus(run, study):
    _, rows = draw(1, study)
    for kind in ("normalised", "sinkfree"):
        values = indices.layer_values(run, kind)
        mean = {name: values[run.category == name].mean(axis=0) for name in CATEGORIES}
        for name in CATEGORIES:
            chosen = {"kind": kind, "category": name}
            assert np.allclose(column(rows, "estimate", **chosen), mean[name])
            found = column(rows, "difference_estimate", **chosen)
            if name == "neutral":
                assert np.isnan(found).all() and set(column(rows, "minus", **chosen)) == {""}
            else:
                assert np.allclose(found, mean["neutral"] - mean[name])
    assert (column(rows, "difference_estimate", category="self_referent") > 0).all()


def test_layer_lines_draw_what_their_rows_say(study):
    figure, rows = draw(1, study)
    normalised = {"kind": "normalised"}
    drawn = [line.get_ydata() for line in figure.axes[0].lines]
    means = [column(rows, "estimate", category=name, **normalised) for name in CATEGORIES]
    assert np.allclose(drawn, means)
    low = column(rows, "low", category="self_referent", **normalised)
    assert (low < means[0]).all()
    band = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert np.isclose(band.min(), low.min())
    differences = [line.get_ydata() for line in figure.axes[2].lines[:3]]
    others = [name for name in CATEGORIES if name != "neutral"]
    means = [column(rows, "difference_estimate", category=name, **normalised) for name in others]
    assert np.allclose(differences, means)


def test_a_wild_band_does_not_set_the_axis():
    rng = np.random.default_rng(0)
    mean = rng.normal(size=30)
    low, high = mean - 0.5, mean + 0.5
    low[3], high[3] = -1e4, 1e4
    _, axes = plt.subplots()
    style.limit_to_points([axes], [(mean, low, high)])
    bottom, top = axes.get_ylim()
    reach = 0.5 * np.ptp(mean)
    assert mean.min() - 1.2 * reach - 0.5 < bottom < np.delete(low, 3).min()
    assert np.delete(high, 3).max() < top < mean.max() + 1.2 * reach + 0.5
    style.limit_to_points([axes], [(mean, np.nan, np.nan)])
    assert axes.get_ylim()[0] < mean.min() and axes.get_ylim()[1] > mean.max()
    style.limit_to_points([axes], [(mean, low, high)], whole=(0, 1))
    assert axes.get_ylim() == (0, 1)


def test_heatmap_is_the_difference_in_focus_on_one_centred_scale(run, study):
    figure, rows = draw(2, study)
    values = indices.prompt_values(run, "normalised")
    limits = [axes.collections[0].get_clim() for axes in figure.axes[:2]]
    own, expected = values[run.category == "self_referent"].mean(axis=0), []
    for minus in ("neutral", "confounder"):
        difference = values[run.category == minus].mean(axis=0) - own
        found = column(rows, "estimate", minus=minus).reshape(difference.shape)
        assert np.allclose(found, difference)
        expected.append(difference)
    limit = np.abs(expected).max()
    assert np.allclose(limits, [(-limit, limit)] * 2)
    shown = figure.axes[0].collections[0]
    assert np.allclose(shown.get_array(), expected[0])
    red, _, blue, _ = shown.to_rgba(limit)
    assert red > 2 * blue and np.allclose(shown.to_rgba(0.0)[:3], 1, atol=0.05)
    low, high = (column(rows, end, minus="neutral") for end in ("low", "high"))
    assert (low < expected[0].ravel()).all() and (expected[0].ravel() < high).all()


def test_final_query_masses_are_less_what_uniform_attention_gives(run, study):
    figure, rows = draw(3, study)
    last, at = run.n_tokens - 1, {"layer": 3, "head": 2}
    start, stop = run.span.T
    by_hand = {  # mass of every prompt, and keys that hold it
        "sink": (run.sink_mass[np.arange(len(last)), 3, 2, last], np.ones(len(last))),
        "first": (run.first_mass[:, 3, 2], np.minimum(3, stop - start)),
        "last": (run.last_mass[:, 3, 2], np.minimum(3, stop - start)),
    }
    assert set(column(rows, "target")) == set(by_hand)
    for target, (mass, keys) in by_hand.items():
        excess = mass - keys / (last + 1)
        means = [excess[run.category == name].mean() for name in CATEGORIES]
        (row,) = (r for r in rows if r["target"] == target and {k: r[k] for k in at} == at)
        assert np.allclose([row[f"{name}_estimate"] for name in CATEGORIES], means, atol=1e-6)
        assert np.isclose(row["estimate"], np.mean(means), atol=1e-6)
        assert np.isclose(row["uniform"], (keys / (last + 1)).mean())
    for axes, target in zip(figure.axes, by_hand, strict=False):
        shown = axes.collections[0]
        assert np.allclose(shown.get_array().ravel(), column(rows, "estimate", target=target))
        low, high = shown.get_clim()
        assert low == -high == -np.abs(column(rows, "estimate")).max()
        assert np.allclose(shown.to_rgba(0.0)[:3], 1, atol=0.06)


def test_uniform_attention_stands_on_what_a_window_leaves_visible():
    """A text of tokens 1 to 5 behind a BOS, and a layer that sees the last four keys."""
    n_tokens, visible = np.array([6]), np.array([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 4, 4]])
    uniform = masses.uniform_rows(n_tokens, visible, 6)
    expected = [[1 / 6] * 6, [0, 0, 1 / 4, 1 / 4, 1 / 4, 1 / 4]]
    assert np.allclose(uniform, [expected])
    first, last = masses.end_keys(np.array([[1, 6]]), 3, 6)
    assert first[0].tolist() == [False, True, True, True, False, False]
    assert last[0].tolist() == [False, False, False, True, True, True]
    assert np.allclose(masses.learned_sink_share(n_tokens, visible), 0)
    assert np.allclose(masses.learned_sink_share(n_tokens, visible[:1] + 1), 1 / 7)


def drawn_heads(figure):
    """(layer/head, g) of every line of a forest, as drawn."""
    (axes,) = figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    points = [line for line in axes.lines if line.get_marker() == "o"]
    return [(labels[int(p.get_ydata()[0])], p.get_xdata()[0]) for p in points]


def hedges_by_hand(a, b):
    """g of the difference in focus of a and b, 15 entropies each."""
    spread = np.sqrt((14 * a.var(ddof=1) + 14 * b.var(ddof=1)) / 28)
    return (1 - 3 / (4 * 30 - 9)) * (b.mean() - a.mean()) / spread


def test_planted_head_is_found_and_measured_on_other_prompts():
    base = make_run(n_layers=4, n_heads=5, effect=0.0, seed=3)
    run = scaled(base, base.category == "self_referent", layer=2, head=4, factor=0.5)
    study = study_run(run, n_resamples=50)
    figure, rows = draw(4, study)
    assert (rows[0]["layer"], rows[0]["head"]) == (2, 4) and len(rows) == 12
    measures = ~role_tests.split_units(*units.labels_of(run))
    value = indices.prompt_values(run, "normalised")[:, 2, 4]
    a, b = (value[measures & (run.category == name)] for name in ("self_referent", "neutral"))
    assert len(a) == len(b) == rows[0]["n"] == rows[0]["n_minus"] == 15
    assert "measured on the 15 prompts of each side" in all_text(figure).replace("\n", " ")
    assert np.isclose(rows[0]["g_estimate"], hedges_by_hand(a, b))
    assert np.isclose(rows[0]["estimate"], b.mean() - a.mean())
    assert 0 < rows[0]["g_low"] < rows[0]["g_estimate"] < rows[0]["g_high"]
    assert [row["rank"] for row in rows] == list(range(1, 13))
    chosen = np.abs(column(rows, "g_choosing"))
    assert (np.diff(chosen) <= 0).all()
    heads = [(f"{row['layer']}/{row['head']}", row["g_estimate"]) for row in rows]
    assert drawn_heads(figure) == heads
    figure, top = draw(6, study)
    assert (top[0]["layer"], top[0]["head"]) == (2, 4)


def test_prompts_that_choose_heads_do_not_measure_them():
    base = make_run(n_layers=4, n_heads=5, effect=0.0, seed=3)
    chooses = role_tests.split_units(*units.labels_of(base))
    planted = scaled(
        base, chooses & (base.category == "self_referent"), layer=2, head=4, factor=0.5
    )
    _, rows = draw(4, study_run(planted, n_resamples=50))
    assert (rows[0]["layer"], rows[0]["head"]) == (2, 4)
    assert rows[0]["g_choosing"] > 1.5
    assert rows[0]["g_low"] < 0 < rows[0]["g_high"]
    assert all(chooses[base.category == name].sum() == 15 for name in CATEGORIES)


def test_the_strongest_heads_are_those_of_the_ranking_with_their_intervals(run, study):
    figure, rows = draw(6, study)
    test = study.tests["self_referent", "neutral"]
    ranked = role_tests.rank_heads({"self_neutral": test}, run)
    assert [(r["layer"], r["head"]) for r in rows] == [(r["layer"], r["head"]) for r in ranked[:20]]
    assert [row["g_estimate"] for row in rows] == [r["self_neutral_g"] for r in ranked[:20]]
    bars = [bar.get_segments()[0][:, 0] for bar in figure.axes[0].collections]
    assert np.allclose(bars, [(row["g_low"], row["g_high"]) for row in rows])
    points = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    filled = [point.get_markerfacecolor() != "white" for point in points]
    assert filled == [row["q"] < 0.05 for row in rows] and any(filled)
    said = all_text(figure).replace("\n", " ")
    assert "Chosen and measured on the same prompts" in said and "overstated" in said


def test_lines_of_a_forest_do_not_overlap(study):
    figure, _ = draw(6, study_run(resize(study.run, 30, 9), n_resamples=50))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    for texts in (axes.get_yticklabels(), axes.texts):
        boxes = sorted((text.get_window_extent() for text in texts), key=lambda box: box.y0)
        assert len(boxes) == 20
        assert all(low.y1 < high.y0 for low, high in zip(boxes, boxes[1:], strict=False))


def test_bars_are_above_zero_where_the_first_is_focused(run, study):
    figure, rows = draw(5, study)
    values = indices.layer_values(run)
    for minus in ("neutral", "confounder"):
        difference = values[run.category == minus].mean(axis=0) - values[
            run.category == "self_referent"
        ].mean(axis=0)
        assert np.allclose(column(rows, "estimate", minus=minus), difference)
        assert difference.mean() > 0
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert np.allclose(heights, column(rows, "estimate"))


def test_edge_attention_is_per_token_and_leaves_out_one_token_prompts(run):
    run = dataclasses.replace(run, edge_tokens=run.edge_tokens.copy())
    self_referent = np.flatnonzero(run.category == "self_referent")
    run.edge_tokens[self_referent[:3]] = 0
    figure, rows = draw(7, study_run(run, n_resamples=50))
    kept = self_referent[3:]
    expected = [np.mean([run.edge_mass[i, 1, :, 1].mean() / run.edge_tokens[i] for i in kept])]
    assert np.allclose(
        column(rows, "estimate", category="self_referent", position="last", layer=1), expected
    )
    uniform = np.mean([1 / run.n_tokens[i] for i in kept])
    assert np.allclose(column(rows, "null", category="self_referent"), uniform)
    assert set(column(rows, "n", category="self_referent")) == {27}
    assert "3 prompts" in all_text(figure)
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


def test_pairs_are_resampled_together(run):
    copied = {name: getattr(run, name).copy() for name in ("entropy", "entropy_sinkfree")}
    for entropy in copied.values():
        entropy[run.category == "third_person"] = entropy[run.category == "confounder"]
    copied = dataclasses.replace(run, **copied)
    _, rows = draw(8, study_run(copied, n_resamples=50))
    control = {"category": "third_person", "minus": "confounder"}
    bounds = [column(rows, end, **control) for end in ("estimate", "low", "high")]
    assert np.allclose(bounds, 0, atol=1e-12)
    own = {"category": "self_referent", "minus": "confounder"}
    assert (column(rows, "high", **own) - column(rows, "low", **own) > 0).all()
    null = indices.null_values(run, "raw")
    difference = (
        null[run.category == "confounder"].mean() - null[run.category == "self_referent"].mean()
    )
    assert np.allclose(column(rows, "null", kind="raw", **own), difference)
    assert np.allclose(column(rows, "null", kind="sinkfree", **own), 0)
    for kind in indices.KINDS:
        values = indices.layer_values(run, kind)
        mean = {name: values[run.category == name].mean(axis=0) for name in CATEGORIES}
        expected = mean["confounder"] - mean["self_referent"]
        assert np.allclose(column(rows, "estimate", kind=kind, **own), expected)
    assert np.isnan(column(rows, "q", kind="raw")).all()


def test_indices_equal_their_formula(run, study):
    figure, rows = draw(9, study)
    for kind in indices.KINDS:
        expected, null = indices.layer_indices(run, kind), indices.layer_null(run, kind)
        for index in ("rfc", "rsi"):
            mean, low, high = (
                column(rows, end, kind=kind, index=index) for end in ("estimate", "low", "high")
            )
            assert np.allclose(mean, expected[index])
            assert ((low < mean) & (mean < high)).all()
            assert np.allclose(column(rows, "null", kind=kind, index=index), null[index])
            less = column(rows, "less_null_estimate", kind=kind, index=index)
            assert np.allclose(less, expected[index] - null[index])
    assert [axes.get_title() for axes in figure.axes] == [
        f"{index}, {kind}"
        for index in ("RFC", "RSI")
        for kind in ("normalised", "sink-free", "raw")
    ]
    drawn = figure.axes[5].lines[1].get_ydata()
    assert np.allclose(drawn, less) and np.abs(null["rsi"]).min() > 0.01
    assert len({axes.get_ylim() for axes in figure.axes[:3]}) == 1


def test_a_marked_layer_excludes_the_null():
    """Prompts of very unequal lengths: the raw index lies far from 0, and at its null."""
    study = study_run(make_run(n_layers=12, n_heads=2, effect=0.5, per_category=12), 400)
    figure, rows = draw(9, study)
    marked = 0
    for axes in figure.axes:
        name, kind = axes.get_title().split(", ")
        kind = kind.replace("-", "")
        own = [r for r in rows if (r["index"], r["kind"]) == (name.lower(), kind)]
        marks = [c for c in axes.collections if c.get_transform() != axes.transData]
        layers = {int(x) for c in marks for x, y in c.get_offsets() if y > 1}
        for row in own:
            excluded = row["less_null_low"] > 0 or row["less_null_high"] < 0
            assert (row["layer"] in layers) == (row["q"] < 0.05 and excluded)
            assert excluded == (row["p"] < 0.05)
        marked += len(layers)
    assert 0 < marked < len(rows)


@pytest.mark.parametrize(
    "absent, numbers, undrawn, contrast",
    [
        (("third_person",), (1, 8), [], ("self_referent", "neutral")),
        (("confounder", "third_person"), (1, 2, 5, 7, 8, 9), [8], ("self_referent", "neutral")),
        (("neutral",), (1, 2, 4, 5, 6, 8, 9), [9], ("self_referent", "confounder")),
        (("self_referent",), (1, 2, 4, 5, 6, 8, 9), [8, 9], ("confounder", "third_person")),
    ],
)
def test_missing_category_is_said_and_the_rest_is_drawn(run, absent, numbers, undrawn, contrast):
    study = study_run(take(run, ~np.isin(run.category, absent)), n_resamples=50)
    assert next(iter(study.tests)) == contrast
    notes = []
    for number in numbers:
        figure, rows = draw(number, study)
        text = all_text(figure)
        assert rows and style.CATEGORY_LOOKS[absent[0]].label in text
        assert ("this run has none" in text) == (list(rows[0]) == ["note"])
        notes += [number] if list(rows[0]) == ["note"] else []
        assert np.isfinite([row["estimate"] for row in rows if "estimate" in row]).all()
    assert notes == undrawn


def test_contrasts_asked_for_replace_the_usual_ones(run):
    """Figures 2, 4, 5 and 6 by hand, for a contrast that none of them draws unasked."""
    study = study_run(run, n_resamples=50, asked=["third_person-neutral", "neutral-confounder"])
    assert list(study.tests) == [("third_person", "neutral"), ("neutral", "confounder")]
    heads, layers = indices.prompt_values(run, "normalised"), indices.layer_values(run)
    third, neutral = (run.category == name for name in ("third_person", "neutral"))
    difference = heads[neutral].mean(axis=0) - heads[third].mean(axis=0)
    figure, rows = draw(2, study)
    titles = ["third person - neutral", "neutral - confounder"]
    assert [axes.get_title() for axes in figure.axes[:2]] == titles
    assert np.allclose(column(rows, "estimate", category="third_person"), difference.ravel())
    assert set(column(rows, "minus", category="third_person")) == {"neutral"}
    figure, rows = draw(4, study)
    assert "Hedges g of third person - neutral" in all_text(figure).replace("\n", " ")
    at, measures = (
        (rows[0]["layer"], rows[0]["head"]),
        ~role_tests.split_units(*units.labels_of(run)),
    )
    a, b = (heads[(measures & own, *at)] for own in (third, neutral))
    assert np.isclose(rows[0]["g_estimate"], hedges_by_hand(a, b))
    figure, rows = draw(5, study)
    by_layer = layers[neutral].mean(axis=0) - layers[third].mean(axis=0)
    assert np.allclose(column(rows, "estimate", category="third_person", minus="neutral"), by_layer)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == titles
    _, rows = draw(6, study)
    assert {(row["category"], row["minus"]) for row in rows} == {("third_person", "neutral")}
    for row in rows:
        assert np.isclose(row["estimate"], difference[row["layer"], row["head"]])


@pytest.fixture(scope="module")
def crossed():
    """Frames of unequal numbers of fillers: four have two of them."""
    prompts = cut_prompts(built_in_prompts("crossed"), 40)
    return make_run(n_layers=3, n_heads=2, effect=0.4, prompts=prompts)


def test_figures_of_a_crossed_run_count_frames(crossed):
    study = study_run(crossed, n_resamples=50)
    assert "n = 36 frames per category" in study.subtitle
    values = indices.layer_values(crossed)
    frames = dict.fromkeys(crossed.frame.tolist())
    by_frame = {
        name: np.array(
            [values[(crossed.category == name) & (crossed.frame == f)].mean(axis=0) for f in frames]
        )
        for name in CATEGORIES
    }
    figure, rows = draw(1, study)
    assert "bootstrap-t intervals over frames" in all_text(figure)
    for name, own in by_frame.items():
        means = column(rows, "estimate", kind="normalised", category=name)
        np.testing.assert_allclose(means, own.mean(axis=0), rtol=1e-6)
    assert set(column(rows, "n")) == {36}
    _, rows = draw(5, study)
    paired = by_frame["neutral"] - by_frame["self_referent"]
    expected = infer_mean(paired, n_resamples=50, seed=study.seed)[:3]
    chosen = {"category": "self_referent", "minus": "neutral"}
    found = [column(rows, end, **chosen) for end in ("estimate", "low", "high")]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    figure, rows = draw(4, study)
    assert {(row["n"], row["n_minus"]) for row in rows} == {(18, 18)}
    assert "measured on the 18 frames of each side" in all_text(figure).replace("\n", " ")
    _, rows = draw(3, study)
    on_slot = crossed.slot_mass[:, 1, 0] - crossed.slot_uniform[:, 1]
    chosen = {"target": "slot", "layer": 1, "head": 0}
    found = column(rows, "self_referent_estimate", **chosen)
    own = crossed.category == "self_referent"
    frame_means = [on_slot[own & (crossed.frame == f)].mean() for f in frames]
    assert found == pytest.approx(np.mean(frame_means), abs=1e-6)


def test_slot_attention_is_the_mean_over_prompts_beside_uniform_attention(crossed):
    figure, rows = draw(10, study_run(crossed, n_resamples=50))
    last = crossed.n_tokens - 1
    first, stop = crossed.slot.T
    assert (stop == first + 1).all()
    row = np.arange(len(last))
    for at in ((0, 1), (2, 0)):
        on_slot = crossed.final_row[(row, *at, first)].astype(float)
        (found,) = (r for r in rows if (r["layer"], r["head"]) == at)
        for name in CATEGORIES:
            mean = on_slot[crossed.category == name].mean()
            assert found[f"slot_mass_{name}"] == pytest.approx(mean, abs=1e-3)
        assert found["slot_uniform"] == pytest.approx((1 / (last + 1)).mean())
    assert len(rows) == 3 * 2
    panels = [axes for axes in figure.axes if axes.get_title()]
    labels = [style.CATEGORY_LOOKS[name].label for name in CATEGORIES]
    assert [axes.get_title() for axes in panels] == labels
    largest = max(row[f"slot_mass_{name}"] for row in rows for name in CATEGORIES)
    for axes, name in zip(panels, CATEGORIES, strict=True):
        shown = axes.collections[0]
        assert np.allclose(shown.get_array().ravel(), column(rows, f"slot_mass_{name}"))
        assert shown.get_clim() == (0, pytest.approx(max(largest, rows[0]["slot_uniform"])))
    (mark,) = (line for line in figure.axes[-1].lines if line.get_color() == "white")
    assert np.allclose(mark.get_ydata(), (1 / (last + 1)).mean())
    assert f"Uniform attention would put {(1 / (last + 1)).mean():.3f} there" in all_text(figure)


def test_one_prompt_per_category_has_no_intervals_and_says_why():
    study = study_run(make_run(3, 2, per_category=1), n_resamples=50)
    for number in NUMBERS:
        figure, rows = draw(number, study)
        ends = [row[end] for row in rows for end in row if end.split("_")[-1] in ("low", "high")]
        assert np.isnan(ends).all()
        said = all_text(figure).replace("\n", " ")
        assert "95 % interval" not in said and "cut off" not in said
        if number in (1, 5, 7, 8, 9):
            assert "o interval and no test below 8 prompts" in said, number
    figure, _ = draw(5, study)
    assert not any(line.size for bars in figure.axes[0].collections for line in bars.get_segments())
    reason = "needs 6 prompts of each category of self-referent - neutral."
    assert reason in all_text(draw(4, study)[0]).replace("\n", " ")


def test_an_interval_is_left_out_only_where_a_category_has_one_prompt(run):
    first = np.char.endswith(run.prompt_id, "_00")
    study = study_run(take(run, first | (run.category != "third_person")), n_resamples=50)
    rows = draw(8, study)[1]
    assert np.isnan(column(rows, "low", category="third_person")).all()
    assert np.isfinite(column(rows, "low", category="self_referent")).all()
    assert np.isfinite(column(draw(9, study)[1], "low")).all()


def test_few_prompts_are_drawn_one_by_one():
    run = make_run(4, 2, per_category=3)
    figure, _ = draw(1, study_run(run, n_resamples=50))
    values = indices.layer_values(run)
    small = [line for line in figure.axes[0].lines if line.get_markersize() == 2]
    assert np.allclose([line.get_ydata() for line in small], values)
    assert "Small points: every prompt" in all_text(figure).replace("\n", " ")
    bottom, top = figure.axes[0].get_ylim()
    assert bottom < values.min() and values.max() < top
    prompts = cut_prompts(built_in_prompts("crossed"), 3)
    run = make_run(4, 2, prompts=prompts)
    study = study_run(run, n_resamples=50)
    figure, _ = draw(8, study)
    values = units.frame_values(run, indices.layer_values(run))
    of_name = {name: values[study.category == name] for name in CATEGORIES}
    paired = of_name["confounder"] - of_name["self_referent"]
    small = [line for line in figure.axes[0].lines if line.get_markersize() == 2][:3]
    assert np.allclose([line.get_ydata() for line in small], paired)
    assert "Small points: every frame" in all_text(figure).replace("\n", " ")


def test_a_colour_has_one_meaning():
    looks = [look.colour for look in style.CATEGORY_LOOKS.values()]
    colours = [*looks, *style.OTHER_COLOURS, *style.CONTRAST_COLOURS]
    colours += [style.RFC_COLOUR, style.RSI_COLOUR, style.NULL_COLOUR, style.CONTROL_COLOUR]
    colours += [style.BASE_COLOUR, style.INSTRUCT_COLOUR, style.DIFFERENCE_COLOUR]
    colours += [look.colour for look in (*ROLE_LOOKS.values(), *style.ARM_LOOKS.values())]
    rgb = np.array([to_rgb(colour) for colour in [*colours, style.ABOVE, style.BELOW]])
    apart = np.abs(rgb[:, None] - rgb[None]).max(axis=-1) + np.eye(len(rgb))
    assert apart.min() > 0.06
    many = style.category_looks([f"kind {i}" for i in range(16)])
    assert len({look[:2] for look in many.values()}) == len(many)


def test_marks_are_what_benjamini_hochberg_passes():
    planted = make_run(n_layers=5, n_heads=4, effect=0.0)
    rows, by = planted.category == "self_referent", np.float32(0.6)
    planted.entropy[rows, 2, 1] *= by
    study = study_run(planted, n_resamples=999)
    for number in (2, 6):
        figure, rows = draw(number, study)
        passed = [row for row in rows if row["q"] < 0.05]
        assert 0 < len(passed) < len(rows)
        assert (2, 1) in {(row["layer"], row["head"]) for row in passed}
        q = study.tests["self_referent", "neutral"]["q"]
        expected = false_discovery_control(study.tests["self_referent", "neutral"]["p"].ravel())
        np.testing.assert_allclose(q.ravel(), expected)
    dots = draw(2, study)[0].axes[0].collections[1].get_offsets()
    assert {(int(y), int(x)) for x, y in dots} == {tuple(at) for at in np.argwhere(q < 0.05)}


def test_heads_of_noise_are_not_marked_and_that_is_said():
    study = study_run(make_run(n_layers=3, n_heads=3, effect=0.0), n_resamples=999)
    figure, rows = draw(2, study)
    assert "(0 of 9 for self-referent - neutral, 0 of 9" in all_text(figure).replace("\n", " ")
    assert not (column(rows, "q") < 0.05).any()


def test_undefined_index_and_missing_bos_are_said(run):
    silent = dataclasses.replace(
        run, entropy=np.where(np.isnan(run.entropy), np.nan, np.float32(0))
    )
    study = study_run(silent, n_resamples=50)
    assert "Undefined because H neutral is 0: layers 0, 1, 2, 3" in all_text(
        draw(9, study)[0]
    ).replace("\n", " ")
    assert "undefined for every head" in all_text(draw(4, study)[0])
    bare = dataclasses.replace(run, span=np.where([True, False], 0, run.span))
    for number in (3, 7):
        assert "120 prompts without a BOS" in all_text(
            draw(number, study_run(bare, 50))[0]
        ).replace("\n", " ")


@pytest.mark.parametrize("n_layers, n_heads", [(1, 1), (2, 2), (80, 64)])
@pytest.mark.parametrize("prompt_set", ["original", "deixis"])
def test_text_is_neither_clipped_nor_overlapping(run, prompt_set, n_layers, n_heads):
    if prompt_set == "deixis":  # eight categories, contrasts of long names, and figure 10
        run = make_run(2, 2, prompts=cut_prompts(built_in_prompts(prompt_set), 8))
    run = resize(run, n_layers, n_heads)
    run.config = run.config | {"model": run.config["model"] | {"id": LONG_ID}}
    study = study_run(run, n_resamples=50)
    assert len(run_figures.names_for(run)) == (11 if prompt_set == "deixis" else 10)
    for number, name in enumerate(run_figures.names_for(run), start=1):
        figure, _ = draw(number, study)
        figure.draw_without_rendering()
        boxes = [text.get_window_extent() for text in figure.texts]
        boxes += [axes.get_tightbbox() for axes in figure.axes]
        for text in (box for box in boxes[: len(figure.texts)] if box.width):
            for axes in boxes[len(figure.texts) :]:
                apart = text.y0 > axes.y1 - 1 or text.y1 < axes.y0 + 1
                assert apart, (name, "the text of the figure meets a panel", text, axes)
        for box in boxes:
            inside = [box.x0, box.y0, figure.bbox.x1 - box.x1, figure.bbox.y1 - box.y1]
            assert min(inside) > -1, (name, box, figure.bbox)
        for axes in figure.axes:
            shown = [
                tick.label1.get_window_extent()
                for tick in axes.xaxis.get_major_ticks()
                if tick.label1.get_visible()
            ]
            shown = sorted((box for box in shown if box.width), key=lambda box: box.x0)
            assert all(left.x1 < right.x0 for left, right in zip(shown, shown[1:], strict=False)), (
                name
            )
        assert r"$\bad{$ [/INST]" in all_text(figure).replace("\n", " ")


def test_script_writes_its_figures_without_torch(run, tmp_path):
    folder = save_run(run, tmp_path / "results")
    command = (
        "import sys, visualize_results as v; code = v.main(sys.argv[1:]); "
        "print(code, sorted({'torch', 'transformers', 'transformer_lens'} & set(sys.modules)))"
    )
    arguments = ["--input_dir", folder, "--output_dir", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-c", command, *arguments], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.stderr == ""
    line, verdict = done.stdout.splitlines()
    assert verdict == "0 []"
    assert line.startswith(
        "10 figures of synthetic, raw prompts (4 layers x 3 heads, 120 prompts) in "
    )
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    numbers = [*NUMBERS, 11]
    assert written == sorted(["data", *(f"{NAMES[number]}.png" for number in numbers)])
    assert run_figures.names_for(run) == [NAMES[number] for number in numbers]
    with open(tmp_path / "out" / "data" / f"{NAMES[9]}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
        assert list(rows[0])[:4] == ["model", "set", "format", "run"]
        assert rows[0]["model"] == "synthetic" and rows[0]["run"] == folder.name
        rows = [row for row in rows if row["kind"] == "raw" and row["index"] == "rfc"]
    assert np.allclose(
        [float(row["estimate"]) for row in rows], indices.layer_indices(run, "raw")["rfc"]
    )


@pytest.mark.parametrize("file_format", visualize_results.FORMATS)
def test_every_format_is_written_and_is_the_same_twice(study, tmp_path, file_format):
    written = []
    for name in ("first", "second"):
        path = tmp_path / f"{name}.{file_format}"
        style.save_figure(draw(5, study)[0], path)
        written.append(path.read_bytes())
    assert written[0] == written[1] and len(written[0]) > 5000


def test_help_needs_no_numbers_library():
    command = (
        "import sys, visualize_results as v\n"
        "try: v.parse_args(['--help'])\n"
        "except SystemExit:\n"
        "    print(sorted({'numpy', 'matplotlib', 'seaborn', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--input_dir", "no_such_run"], "no_such_run: no such folder"),
        (["--output_type", "intervention"], "no intervention run found"),
        (["--output_dir", "file/below"], "is a file, not a folder"),
    ],
)
def test_wrong_requests_are_one_line(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert visualize_results.main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_output_type_chooses_the_folders(tmp_path, monkeypatch):
    """The run is loaded once, checked unless --no_verify, its categories under their roles."""
    monkeypatch.chdir(tmp_path)
    results, asked, checked = "results_activation_analysis", [], []
    run = make_run(1, 1, per_category=1).rename({"neutral": "stone"})
    for link in ("latest_run", "latest_base"):
        save_run(run, tmp_path / results, link)
    load = visualize_results.load_run

    def watch(path, verify):
        checked.append((str(path), verify))
        return load(path, verify)

    monkeypatch.setattr(visualize_results, "load_run", watch)
    monkeypatch.setattr(visualize_results, "visualize", lambda *request: asked.append(request))
    for arguments in (
        [],
        ["--output_type", "base", "--format", "svg", "--no_verify"],
        [
            "--output_type",
            "normal",
            "--roles",
            "neutral=stone",
            "--contrast",
            "neutral-confounder",
            "confounder-neutral",
        ],
    ):
        assert visualize_results.main(arguments) == 0
    latest, base = f"{results}/latest_run", f"{results}/latest_base"
    assert checked == [(latest, True), (base, False), (latest, True)]
    paths = [Path(path).resolve() for path, _ in checked]
    assert [request[0].path for request in asked] == paths
    assert ["stone" in request[0].counts for request in asked] == [True, True, False]
    assert list(asked[2][0].counts) == list(CATEGORIES)
    assert [request[1:] for request in asked] == [
        ("figures", "png", []),
        ("figures_base", "svg", []),
        ("figures", "png", ["neutral-confounder", "confounder-neutral"]),
    ]
    arguments = ["--output_type", "intervention", "--contrast", "a-b"]
    assert visualize_results.main(arguments) == 2 and len(asked) == 3


def test_old_words_of_the_output_type_are_those_of_today(capsys):
    words = {"normal": "instruct", "latest": "instruct", "latest_base": "base", "base": "base"}
    for old, new in words.items():
        assert visualize_results.parse_args(["--output_type", old]).output_type == new
    assert visualize_results.parse_args([]).output_type == "instruct"
    with pytest.raises(SystemExit, match="2"):
        visualize_results.main(["--output_type", "edited"])
    assert "'base', 'instruct', 'intervention'" in capsys.readouterr().err
    assert visualize_results.main(["--all_figures"]) == 2
    assert "--all_figures is for --output_type intervention" in capsys.readouterr().err


HEAD = {"type": "head", "layer": 1, "head": 0, "method": "zero_out", "role": "candidate"}


@pytest.fixture(scope="module")
def edits():
    """{sub-folder: Run} of an intervention run: unedited, a candidate edit and its control."""
    unedited = make_run(n_layers=4, n_heads=3, effect=0.4)
    runs = {"baseline": unedited}
    for name, factor, entry in (
        ("sh_1_0_zero_out", 0.8, HEAD),
        ("sh_1_1_zero_out", 0.9, HEAD | {"head": 1, "role": "control"}),
    ):
        runs[name] = scaled(
            unedited, unedited.category == "self_referent", 2, 1, np.float32(factor)
        )
        runs[name].config = unedited.config | {"intervention": entry}
    return runs


def test_overlay_is_edited_over_unedited_and_their_difference(edits):
    edited, unedited = edits["sh_1_0_zero_out"], edits["baseline"]
    figure, rows = edit_figures.draw_overlay(edited, unedited, n_resamples=400)
    before, after = (indices.layer_indices(run) for run in (unedited, edited))
    for index in ("rfc", "rsi"):
        chosen = {"quantity": index}
        assert np.allclose(column(rows, "unedited_estimate", **chosen), before[index])
        assert np.allclose(column(rows, "edited_estimate", **chosen), after[index])
        change = column(rows, "change_estimate", **chosen)
        assert np.allclose(change, after[index] - before[index]) and change[2] > 0
        assert column(rows, "change_low", **chosen)[2] > 0
        assert np.allclose(change[[0, 1, 3]], 0)
    values = [indices.layer_values(run) for run in (unedited, edited)]
    own = unedited.category == "self_referent"
    means = [value[own].mean(axis=0) for value in values]
    chosen = {"quantity": "entropy", "category": "self_referent"}
    change = column(rows, "change_estimate", **chosen)
    assert np.allclose(change, means[1] - means[0]) and change[2] < 0
    drawn = figure.axes[0].lines[:2]
    assert np.allclose(drawn[0].get_ydata(), before["rfc"]) and drawn[0].get_linestyle() == ":"
    assert np.allclose(drawn[1].get_ydata(), after["rfc"]) and drawn[1].get_linestyle() == "-"
    said = all_text(figure).replace("\n", " ")
    assert "zero_out of head 1/0: edited over unedited" in said
    assert "n = 30 per category" in said and "edited layer" in said
    other = edited.take(np.arange(119))
    with pytest.raises(UserError, match="its prompts are not those of the unedited run"):
        edit_figures.draw_overlay(other, unedited, n_resamples=50)


def test_overlay_of_few_prompts_and_of_a_set_without_indices(edits):
    pair = [edits[name].take(np.arange(0, 120, 15)) for name in ("sh_1_0_zero_out", "baseline")]
    figure, rows = edit_figures.draw_overlay(*pair, n_resamples=50)
    assert np.isnan(column(rows, "change_low")).all()
    assert "no interval and no test below 8" in all_text(figure).replace("\n", " ")
    roles = {name: f"kind {i}" for i, name in enumerate(CATEGORIES)}
    pair = [edits[name].rename(roles) for name in ("sh_1_0_zero_out", "baseline")]
    _, rows = edit_figures.draw_overlay(*pair, n_resamples=50)
    assert {row["quantity"] for row in rows} == {"entropy"}


def test_an_intervention_run_gets_an_overlay_of_every_candidate(edits, tmp_path, monkeypatch):
    effect = dict.fromkeys(edit_results.NUMBERS, None) | {"kl": 0.1, "n": 120}
    effect |= {"intervention": "sh_1_0_zero_out", "role": "candidate", "category": "all"}
    with output_manager.create_run(tmp_path, "latest_intervention") as new:
        files.write_json(new.path / "effects.json", {"rows": [effect | {"controls": ""}]})
        files.write_json(new.path / "experiment_config.json", edits["baseline"].config)
        for name, run in edits.items():
            folder = save_run(run, tmp_path / "parts", name)
            shutil.copytree(folder, new.path / name)
    monkeypatch.chdir(tmp_path)
    drawn, out = ["edit_sh_1_0_zero_out.png", "effects.png"], tmp_path / "out"
    asked = ["--output_type", "intervention", "--input_dir", str(new.final), "--output_dir"]
    assert visualize_results.main([*asked, str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["data", *drawn]
    with open(out / "data" / "edit_sh_1_0_zero_out.csv", newline="") as file:
        row = next(csv.DictReader(file))
    assert row["edit"] == "zero_out of head 1/0" and row["run"].endswith("/sh_1_0_zero_out")
    assert visualize_results.main([*asked, str(tmp_path / "all"), "--all_figures"]) == 0
    assert len(list((tmp_path / "all").glob("*/*.png"))) == 10 * len(edits)
    one = [*asked[:2], "--input_dir", str(new.final / "sh_1_1_zero_out"), "--output_dir", "one"]
    assert visualize_results.main(one) == 0
    with open(Path("one", "data", f"{NAMES[9]}.csv"), newline="") as file:
        assert next(csv.DictReader(file))["edit"] == "zero_out of head 1/1"
    study = study_run(edits["sh_1_1_zero_out"], n_resamples=50)
    assert "zero_out of head 1/1" in all_text(draw(2, study)[0]).replace("\n", " ")


def test_bars_of_contrasts_that_are_not_tested_claim_no_interval():
    names = {"robot": "you", "stone": "it"}  # no first word is shared: nothing is identified
    prompts = [
        Prompt(f"{name}{i}", name, -1, f"{word} thing number {i}")
        for name, word in names.items()
        for i in range(10)
    ]
    own = make_run(2, 2, prompts=prompts, first_words=True)
    for run, tested in ((own, False), (make_run(2, 2), True)):
        figure, rows = draw(5, study_run(run, n_resamples=50))
        said = " ".join(" ".join(text.get_text().split()) for text in figure.texts)
        assert ("bootstrap-t intervals" in said and "Above the panels" in said) == tested
        assert ("not identified" in said) != tested
        assert np.isfinite(column(rows, "low")).any() == tested
