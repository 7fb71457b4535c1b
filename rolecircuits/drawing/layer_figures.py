"""The figures of a run along its layers: 1 entropies, 5, 8 differences, 7 edge tokens, 9 indices.

Each takes (study, title) and returns (Figure, rows of its CSV).
"""

import numpy as np
from matplotlib.patches import Patch

from rolecircuits.drawing import style
from rolecircuits.drawing.study import (
    NULL_HANDLE,
    NULL_NOTE,
    PANELS,
    UNITS,
    USUAL,
    Study,
    axis_rows,
    contrast_estimate,
    contrast_facts,
    estimate,
    open_figure,
    sink_note,
    untested_notes,
    write_caption,
)
from rolecircuits.drawing.style import Grid
from rolecircuits.inputs.arguments import ALPHA
from rolecircuits.inputs.categories import PAIRED
from rolecircuits.stats.audit import contrast_reason
from rolecircuits.stats.index_inference import COMPARED
from rolecircuits.stats.indices import first_word_matched_values, index_values
from rolecircuits.stats.moments import category_mean
from rolecircuits.stats.resampling import SHARE
from rolecircuits.stats.role_tests import disagrees, infer_layers
from rolecircuits.stats.units import matched_rows


def two_panels(study: Study, **options):
    """Two panels side by side with one value a layer."""
    return Grid((1, 2), (min(7.0, max(4.2, 2.4 + 0.085 * study.run.n_layers)), 2.9), **options)


def draw_layer_lines(study: Study, title):
    """1: entropy of every category, raw beside normalised, with the length null of the raw one."""
    caption = write_caption(study, f"{NULL_NOTE}; for normalised entropy it is 1.")
    handles = [*style.category_handles(study.looks, study.names), NULL_HANDLE]
    figure, axes = open_figure(study, title, caption, two_panels(study, heading=0), handles)
    rows = []
    for place, kind in zip(axes[0], PANELS, strict=True):
        layers, null = study.layers(kind), study.null(kind)
        for slot, name in enumerate(study.names):
            expected = category_mean(null, study.category, name)
            bounds = (0.0, np.inf) if kind == "raw" else SHARE
            measured = estimate(study, layers, name, bounds=bounds)
            look = study.looks[name]
            style.draw_series(place, measured, look.colour, look.marker, slot - 1.5)
            if kind == "raw":
                style.draw_null(place, expected, look.colour)
            facts = {"kind": kind, "category": name, "n": study.counts[name]}
            rows += axis_rows("layer", measured, **facts, length_null=expected)
        style.number_axis(place.xaxis, study.run.n_layers, "layer")
        place.set_ylabel(UNITS[kind])
    return figure, rows


def draw_difference_bars(study: Study, title):
    """5: how much more focused the first side of every contrast is, layer by layer."""
    layers, contrasts = study.layers("normalised"), list(study.tests)
    title = title if set(study.tests) <= set(USUAL) else "Differences between categories by layer"
    colours = [colour_of(study, contrast, i) for i, contrast in enumerate(contrasts)]
    handles = [
        Patch(color=colour, label=study.label(contrast))
        for contrast, colour in zip(contrasts, colours, strict=True)
    ]
    grid = Grid((1, 1), (min(13.0, max(5.5, 2 + 0.17 * study.run.n_layers)), 3.0), heading=0)
    note = "Above 0: the category that is named first has the more focused attention."
    caption = write_caption(study, note, *untested_notes(study, contrasts))
    figure, axes = open_figure(study, title, caption, grid, handles)
    place, rows, width = axes[0, 0], [], 0.8 / len(contrasts)
    for slot, (contrast, colour) in enumerate(zip(contrasts, colours, strict=True)):
        mean, low, high = contrast_estimate(study, layers, contrast)
        x = np.arange(len(mean)) + width * (slot - (len(contrasts) - 1) / 2)
        place.bar(x, mean, width, color=colour)
        place.vlines(x, low, high, color="black", linewidth=0.9)
        rows += axis_rows("layer", (mean, low, high), **contrast_facts(study, contrast))
    style.draw_zero(place)
    style.number_axis(place.xaxis, study.run.n_layers, "layer")
    place.set_ylabel("difference of focus (-normalised entropy)")
    return figure, rows


def colour_of(study: Study, contrast, place):
    """The colour of a contrast: that of its first category, unless both sides are several."""
    first = contrast[1]
    return study.looks[first].colour if isinstance(first, str) else style.OTHER_COLOURS[place]


def draw_edge_attention(study: Study, title):
    """7: attention of the final query on the first and on the last content tokens."""
    run, k = study.run, study.run.edge_tokens[:, None]
    masses = run.edge_mass.mean(axis=2, dtype=np.float64).transpose(2, 0, 1)
    tokens = study.rows(run.edge_tokens.astype(float))
    short = int((k == 0).sum())
    caption = write_caption(
        study,
        "Attention of the last token fed per token, mean over heads: on the first and on the last "
        "k tokens of the text, k = min(3, length // 2).",
        f"Left out: {short} prompts of one token." if short else "",
        sink_note(run),
    )
    grid, handles = (
        two_panels(study, gap=(0.5, 0.6)),
        style.category_handles(study.looks, study.names),
    )
    figure, axes = open_figure(study, title, caption, grid, handles, sharey=True)
    rows = []
    for place, position, mass in zip(axes[0], ("first", "last"), masses, strict=True):
        per_token = np.divide(mass, k, out=np.full(mass.shape, np.nan), where=k > 0)
        per_token = study.rows(per_token)
        for slot, name in enumerate(study.names):
            measured = estimate(study, per_token, name, bounds=SHARE)
            look = study.looks[name]
            style.draw_series(place, measured, look.colour, look.marker, slot - 1.5)
            n = int(((study.category == name) & (tokens > 0)).sum())
            rows += axis_rows("layer", measured, category=name, position=position, n=n)
        place.set_title(f"{position} content tokens")
        style.number_axis(place.xaxis, run.n_layers, "layer")
    axes[0, 0].set_ylabel("attention per token")
    style.limit_to_mass(axes[0, 0])
    return figure, rows


def draw_confounder_controls(study: Study, title):
    """8: self - confounder, beside its length null and beside third person - confounder."""
    run = study.run
    paired = matched_rows(study.category, study.unit, PAIRED) is not None
    third = "third person - confounder" + (" (paired)" if paired else "")
    looks = {
        "self_referent": ("black", "o", "self-referent - confounder"),
        "third_person": (*study.looks["third_person"][:2], third),
    }
    looks = {name: look for name, look in looks.items() if name in study.names}
    handles = [*(style.series_handle(*look) for look in looks.values()), NULL_HANDLE]
    note = "Above 0: the confounder is the less focused."
    untested = untested_notes(study, [(name, "confounder") for name in looks])
    caption = write_caption(study, f"{NULL_NOTE}; for normalised entropy it is 0.", note, *untested)
    figure, axes = open_figure(study, title, caption, two_panels(study, heading=0), handles)
    rows = []
    for place, kind in zip(axes[0], PANELS, strict=True):
        layers, null = study.layers(kind), study.null(kind)
        confounder = category_mean(null, study.category, "confounder")
        style.draw_zero(place)
        for slot, (name, (colour, marker, _)) in enumerate(looks.items()):
            expected = confounder - category_mean(null, study.category, name)
            measured = estimate(study, layers, name, "confounder")
            style.draw_series(place, measured, colour, marker, slot - 0.5)
            if kind == "raw":
                style.draw_null(place, expected, colour)
            facts = {"kind": kind, "category": name, "minus": "confounder"}
            facts |= {"n": study.counts[name], "n_minus": study.counts["confounder"]}
            rows += axis_rows("layer", measured, **facts, length_null=expected)
        style.number_axis(place.xaxis, run.n_layers, "layer")
        place.set_ylabel(f"difference of focus, -{UNITS[kind]}")
    return figure, rows


def reasons_of(study: Study, names):
    """[(index, why it has no interval and no test, or None), ...]."""
    return [(name, contrast_reason(study.run, COMPARED[name])) for name in names]


def draw_indices(study: Study, title):
    """9: RFC and RSI, raw beside normalised; raw ones count by their distance from the null."""
    run, looks = study.run, {"rfc": (style.RFC_COLOUR, "o"), "rsi": (style.RSI_COLOUR, "s")}
    if "confounder" not in study.names:
        del looks["rsi"]
    handles = [style.series_handle(*look, index.upper()) for index, look in looks.items()]
    undefined = np.flatnonzero(np.isnan(index_values(study.layers("raw"), study.category)["rfc"]))
    layers = ", ".join(map(str, undefined))
    caption = write_caption(
        study,
        "RFC = 1 - H self / H neutral, RSI = (H confounder - H self) / H neutral: "
        "above 0 self-referent is the more focused.",
        f"{NULL_NOTE}; for normalised entropy it is 0.",
        "Above the panels: layers that differ from the null by Benjamini-Hochberg at "
        f"{ALPHA}, over all layers.",
        f"Undefined because H neutral is 0: layers {layers}." if layers else "",
        *(f"{i.upper()} is {r}." for i, r in reasons_of(study, looks) if r and "not id" in r),
        ""
        if run.crossed
        else "Crosses: the estimate within shared first words has the other sign.",
    )
    within = index_values(first_word_matched_values(run), run.category)
    grid, handles = two_panels(study, gap=(0.5, 0.6), heading=2), [*handles, NULL_HANDLE]
    figure, axes = open_figure(study, title, caption, grid, handles, sharey=True)
    rows = []
    for place, kind in zip(axes[0], PANELS, strict=True):
        inferred = infer_layers(run, kind, study.seed, study.n_resamples)
        style.draw_zero(place)
        for slot, (index, look) in enumerate(looks.items()):
            numbers = inferred[index]
            measured = tuple(numbers[name] for name in ("estimate", "low", "high"))
            style.draw_series(place, measured, *look, slot - 0.5)
            style.mark_layers(place, numbers["q"] < ALPHA, *look, slot)
            if kind == "normalised" and not run.crossed:
                other = disagrees(numbers["estimate"], within[index])
                at = np.flatnonzero(other)
                place.plot(at + 0.12 * (slot - 0.5), numbers["estimate"][at], "x", color=look[0])
            if kind == "raw":
                style.draw_null(place, numbers["null"], look[0])
            facts = {"kind": kind, "index": index, "length_null": numbers["null"]}
            facts |= {name: numbers[name] for name in ("p", "q", "p_max")}
            rows += axis_rows("layer", measured, **facts)
        style.number_axis(place.xaxis, run.n_layers, "layer")
        place.set_title(UNITS[kind], pad=style.MARKED_PAD)
    axes[0, 0].set_ylabel("index")
    return figure, rows
