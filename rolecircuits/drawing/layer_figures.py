"""The figures of a run along its layers: 1 entropies, 5, 8 differences, 7 edge tokens, 9 indices.

Each takes (study, title) and returns (Figure, rows of its CSV).
"""

import numpy as np
from matplotlib.patches import Patch

from rolecircuits.drawing import style
from rolecircuits.drawing.study import (
    CUT_NOTE,
    MARKS_NOTE,
    NULL_HANDLE,
    PARTS,
    SIGN_NOTE,
    ZERO,
    Study,
    axis_rows,
    contrast_colours,
    contrast_facts,
    contrast_null,
    difference_parts,
    estimate,
    excludes,
    few_differences,
    few_rows,
    less_null,
    open_figure,
    points_note,
    sink_note,
    test_contrast,
    untested_notes,
    write_caption,
)
from rolecircuits.drawing.style import UNITS, Grid
from rolecircuits.inputs.arguments import ALPHA
from rolecircuits.inputs.categories import PAIRED
from rolecircuits.stats.audit import contrast_reason
from rolecircuits.stats.index_inference import COMPARED
from rolecircuits.stats.indices import KIND_NAMES, KINDS, first_word_matched_values, index_values
from rolecircuits.stats.masses import end_keys, uniform_rows
from rolecircuits.stats.moments import defined_mean, divide
from rolecircuits.stats.resampling import SHARE
from rolecircuits.stats.role_tests import disagrees, infer_layers
from rolecircuits.stats.units import matched_rows

LEVELS = ("normalised", "sinkfree")
TESTS = ("p", "q", "p_max")
WIDTHS = {1: (5.5, 13.0, 0.17), 2: (4.2, 7.0, 0.085), 3: (3.3, 5.0, 0.05)}


def layer_grid(study: Study, shape, height=2.6, **options):
    """Panels with one value a layer; shape (rows, columns)."""
    least, most, by_layer = WIDTHS[shape[1]]
    return Grid(
        shape, (min(most, max(least, 2.0 + by_layer * study.run.n_layers)), height), **options
    )


def show(place, drawn, measured, look, slot=0.0, few=None):
    """A series with its band, and the values of single rows where these are too few for a band.

    drawn  what the axis must hold, for `limit_to_points`; this adds to it
    """
    style.draw_series(place, measured, look[0], look[1], slot)
    drawn.append(measured)
    if few is not None:
        style.draw_points(place, few, look, slot)
        drawn.append((few, np.nan, np.nan))


def draw_layer_lines(study: Study, title):
    """1: entropy of every category, and below it the focus of each less that of neutral."""
    reference = "neutral" if "neutral" in study.names else study.names[-1]
    looks, against = study.looks, study.looks[reference].label
    contrasts = [(name, reference) for name in study.names if name != reference]
    caption = write_caption(
        study,
        "Uniform attention has entropy 1 in both kinds; sink-free leaves key 0 out.",
        SIGN_NOTE,
        CUT_NOTE,
        points_note(study),
        *untested_notes(study, contrasts),
    )
    grid = layer_grid(study, (2, 2), gap=(0.7, 0.75))
    handles = style.category_handles(looks, study.names)
    figure, axes = open_figure(study, title, caption, grid, handles)
    levels, differences, rows = [], [], []
    for kind, (level, below) in zip(LEVELS, axes.T, strict=True):
        layers = study.layers(kind)
        for slot, name in enumerate(study.names):
            measured, few = estimate(study, layers, name, SHARE), few_rows(study, layers, name)
            show(level, levels, measured, looks[name], slot - 1.5, few)
            beside = np.full((3, study.run.n_layers), np.nan)
            if name != reference:
                contrast = (name, reference)
                beside = difference_parts(test_contrast(study, layers, contrast))
                few = few_differences(study, layers, contrast)
                show(below, differences, beside, looks[name], slot - 1.5, few)
            named = zip(PARTS, beside, strict=True)
            facts = {"kind": kind, "category": name, "n": study.counts[name], "null": 1.0}
            facts |= {"minus": "" if name == reference else reference}
            facts |= {f"difference_{part}": values for part, values in named}
            rows += axis_rows("layer", measured, **facts)
        style.draw_zero(below)
        level.set_title(UNITS[kind])
        below.set_title(f"focus, {KIND_NAMES[kind]}: each - {against}")
        for place in (level, below):
            style.number_axis(place.xaxis, study.run.n_layers, "layer")
    style.limit_to_points(axes[0], levels, SHARE)
    style.limit_to_points(axes[1], [*differences, ZERO])
    axes[0, 0].set_ylabel("entropy")
    axes[1, 0].set_ylabel("difference in focus")
    return figure, rows


def draw_difference_bars(study: Study, title):
    """5: how much more focused the first side of every contrast is, layer by layer."""
    layers, contrasts = study.layers("normalised"), list(study.tests)
    colours = contrast_colours(study, contrasts)
    handles = [
        Patch(color=colour, label=study.label(contrast))
        for contrast, colour in zip(contrasts, colours, strict=True)
    ]
    grid = layer_grid(study, (1, 1), height=3.2)
    tested = any(contrast_reason(study.run, contrast) is None for contrast in contrasts)
    lost = study.has_intervals and not tested  # of categories there are intervals, but none here
    notes = SIGN_NOTE, *(() if lost else (MARKS_NOTE, CUT_NOTE)), points_note(study, contrasts)
    notes += tuple(untested_notes(study, contrasts, said=() if lost else None))
    caption = write_caption(study, *notes, intervals=not lost)
    figure, axes = open_figure(study, title, caption, grid, handles)
    place, rows, width, drawn = axes[0, 0], [], 0.8 / len(contrasts), []
    for slot, (contrast, colour) in enumerate(zip(contrasts, colours, strict=True)):
        test = test_contrast(study, layers, contrast)
        measured = difference_parts(test)
        x = np.arange(study.run.n_layers) + width * (slot - (len(contrasts) - 1) / 2)
        place.bar(x, measured[0], width, color=colour)
        place.vlines(x, *measured[1:], color="black", linewidth=0.9)
        drawn.append(measured)
        few = few_differences(study, layers, contrast)
        if few is not None:
            look = {"marker": ".", "color": "black", "markersize": 3, "linestyle": "none"}
            place.plot(np.tile(x, len(few)), few.ravel(), **look)
            drawn.append((few, np.nan, np.nan))
        marked = (test["q"] < ALPHA) & excludes(*measured[1:])
        style.mark_layers(place, marked, colour, "s", slot)
        facts = contrast_facts(study, contrast) | {name: test[name] for name in TESTS}
        rows += axis_rows("layer", measured, **facts)
    style.draw_zero(place)
    style.number_axis(place.xaxis, study.run.n_layers, "layer")
    style.limit_to_points([place], [*drawn, ZERO])
    place.set_ylabel("difference in focus\n(normalised entropy)")
    return figure, rows


def draw_edge_attention(study: Study, title):
    """7: attention of the final query on the first and on the last content tokens."""
    run, k = study.run, study.run.edge_tokens
    masses = run.edge_mass.mean(axis=2, dtype=np.float64).transpose(2, 0, 1)
    tokens, short = study.rows(k.astype(float)), int((k == 0).sum())
    caption = write_caption(
        study,
        "Attention of the last token fed (the final query), mean over heads, on the first and on "
        "the last k tokens of the text, divided by k = min(3, length // 2). Dashed: uniform "
        "attention over the keys that it sees.",
        f"Left out: {short} prompts of one token." if short else "",
        sink_note(run),
        CUT_NOTE,
        points_note(study),
    )
    handles = [*style.category_handles(study.looks, study.names), NULL_HANDLE]
    grid = layer_grid(study, (1, 2), height=2.9, gap=(0.5, 0.6))
    figure, axes = open_figure(study, title, caption, grid, handles, sharey=True)
    rows, drawn = [], []
    n_keys = run.entropy.shape[-1]
    attention = uniform_rows(run.n_tokens, run.visible_keys, n_keys)
    edges = zip(axes[0], ("first", "last"), masses, end_keys(run.span, k, n_keys), strict=True)
    for place, position, mass, keys in edges:
        per_token = study.rows(divide(mass, k[:, None]))
        uniform = np.einsum("plk,pk->pl", attention, keys.astype(float))
        uniform = study.rows(divide(uniform, k[:, None]))
        for slot, name in enumerate(study.names):
            measured = estimate(study, per_token, name, bounds=SHARE)
            few = few_rows(study, per_token, name)
            show(place, drawn, measured, study.looks[name], slot - 1.5, few)
            n = int(((study.category == name) & (tokens > 0)).sum())
            null = defined_mean(uniform[study.category == name], axis=0)
            facts = {"position": position, "category": name, "n": n, "null": null}
            rows += axis_rows("layer", measured, **facts)
        null = defined_mean(uniform, axis=0)
        style.draw_null(place, null, style.NULL_COLOUR)
        drawn.append((null, np.nan, np.nan))
        place.set_title(f"{position} tokens of the text")
        style.number_axis(place.xaxis, run.n_layers, "layer")
    axes[0, 0].set_ylabel("attention per token")
    style.limit_to_points(axes[0], [*drawn, ZERO], SHARE)
    return figure, rows


def draw_confounder_controls(study: Study, title):
    """8: self-referent - confounder in every kind, beside third person - confounder as control."""
    run, colour = study.run, style.RSI_COLOUR
    paired = matched_rows(study.category, study.unit, PAIRED) is not None
    looks = {
        ("self_referent", "confounder"): style.Look(colour, "s", "self-referent - confounder"),
        PAIRED[::-1]: style.Look(
            style.CONTROL_COLOUR, "D", "third person - confounder" + " (paired)" * paired
        ),
    }
    looks = {pair: look for pair, look in looks.items() if set(pair) <= set(study.names)}
    handles = [*(style.series_handle(*look) for look in looks.values()), NULL_HANDLE]
    caption = write_caption(
        study,
        SIGN_NOTE,
        "The control says what a change of person does where nobody speaks of the model.",
        "Dashed: length null, the difference if attention were uniform over the visible keys; 0 "
        "unless raw.",
        MARKS_NOTE,
        "Raw is not marked, it also differs where only lengths do." if study.has_intervals else "",
        CUT_NOTE,
        points_note(study, looks),
        *untested_notes(study, looks),
    )
    grid = layer_grid(study, (1, 3), height=2.9, heading=2)
    figure, axes = open_figure(study, title, caption, grid, handles)
    rows, shares, raw = [], [ZERO], [ZERO]
    for place, kind in zip(axes[0], KINDS, strict=True):
        layers, drawn = study.layers(kind), raw if kind == "raw" else shares
        style.draw_zero(place)
        for slot, (contrast, look) in enumerate(looks.items()):
            null, test = (
                contrast_null(study, kind, contrast),
                test_contrast(study, layers, contrast),
            )
            measured, few = difference_parts(test), few_differences(study, layers, contrast)
            show(place, drawn, measured, look, slot - 0.5, few)
            tests = {name: test[name] for name in TESTS}
            if kind == "raw":
                style.draw_null(place, null, look.colour)
                drawn.append((null, np.nan, np.nan))
                tests = dict.fromkeys(TESTS, np.nan)
            else:
                marked = (test["q"] < ALPHA) & excludes(*measured[1:])
                style.mark_layers(place, marked, look.colour, look.marker, slot)
            facts = {"kind": kind} | contrast_facts(study, contrast)
            rows += axis_rows("layer", measured, **facts, null=null, **tests)
        style.number_axis(place.xaxis, run.n_layers, "layer")
        place.set_title(UNITS[kind], pad=style.MARKED_PAD)
    style.limit_to_points(axes[0, :2], shares)
    style.limit_to_points(axes[0, 2:], raw)
    axes[0, 0].set_ylabel("difference in focus")
    return figure, rows


def reasons_of(study: Study, names):
    """[(index, why it has no interval and no test, or None), ...]."""
    return [(name, contrast_reason(study.run, COMPARED[name])) for name in names]


def draw_indices(study: Study, title):
    """9: RFC and RSI less their length null, every kind on one axis."""
    run, looks = study.run, dict(style.INDEX_LOOKS)
    if "confounder" not in study.names:
        del looks["rsi"]
    undefined = np.flatnonzero(np.isnan(index_values(study.layers("raw"), study.category)["rfc"]))
    layers = ", ".join(map(str, undefined))
    caption = write_caption(
        study,
        "RFC = 1 - H self / H neutral, RSI = (H confounder - H self) / H neutral: above 0 "
        "self-referent is the more focused. Drawn less the length null, the index if attention "
        "were uniform over the visible keys (not 0 in raw alone), with the interval of this "
        "difference.",
        MARKS_NOTE,
        f"Undefined because H neutral is 0: layers {layers}." if layers else "",
        *(f"{i.upper()} is {r}." for i, r in reasons_of(study, looks) if r and "not id" in r),
        ""
        if run.crossed
        else "Crosses: the estimate within shared first words has the other sign.",
        CUT_NOTE,
    )
    within = index_values(first_word_matched_values(run), run.category)
    grid = layer_grid(study, (len(looks), 3), height=2.2, gap=(0.45, 0.75), heading=2)
    figure, axes = open_figure(study, title, caption, grid, sharey="row")
    rows, drawn = [], {index: [ZERO] for index in looks}
    for column, kind in zip(axes.T, KINDS, strict=True):
        inferred = infer_layers(run, kind, study.seed, study.n_resamples)
        for place, (index, look) in zip(column, looks.items(), strict=True):
            numbers = inferred[index]
            above = less_null(numbers)
            style.draw_zero(place)
            show(place, drawn[index], above, look)
            marked = (numbers["q"] < ALPHA) & excludes(*above[1:])
            style.mark_layers(place, marked, *look[:2])
            if kind == "normalised" and not run.crossed:
                at = np.flatnonzero(disagrees(numbers["estimate"], within[index]))
                place.plot(at, above[0][at], "x", color="black", markersize=5)
            facts = {"kind": kind, "index": index, "null": numbers["null"]}
            facts |= {name: numbers[name] for name in TESTS}
            named = zip(PARTS, above, strict=True)
            facts |= {f"less_null_{part}": values for part, values in named}
            measured = tuple(numbers[name] for name in PARTS)
            rows += axis_rows("layer", measured, **facts)
            place.set_title(f"{look.label}, {KIND_NAMES[kind]}", pad=style.MARKED_PAD)
            style.number_axis(place.xaxis, run.n_layers, "layer" if place is column[-1] else "")
    for line, (index, look) in zip(axes, looks.items(), strict=True):
        style.limit_to_points(line, drawn[index])
        line[0].set_ylabel(f"{look.label} - length null")
    return figure, rows
