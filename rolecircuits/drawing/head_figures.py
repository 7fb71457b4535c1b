"""The figures of a run head by head: 2 heatmaps, 3 the final query, 4 distributions, 6 top heads,
10 attention on the slot of a crossed set.

Each takes (study, title) and returns (Figure, rows of its CSV).
"""

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.lines import Line2D

from rolecircuits.drawing import style
from rolecircuits.drawing.study import (
    UNITS,
    USUAL,
    Study,
    axis_rows,
    contrast_facts,
    draw_reason,
    estimate,
    has_learned_sinks,
    open_figure,
    sink_note,
    survivors_note,
    untested_notes,
    write_caption,
)
from rolecircuits.drawing.style import DIVERGING, Grid
from rolecircuits.inputs.arguments import ALPHA
from rolecircuits.stats.contrasts import compare_categories, contrast_sides, hedges_g
from rolecircuits.stats.resampling import SHARE
from rolecircuits.stats.role_tests import (
    MIN_HALF,
    blank_untestable,
    slot_masses,
    split_units,
    strongest_heads,
)

TARGETS = {
    "first_content_tokens": "attention on the first three content tokens",
    "key_0": "attention on key 0 (BOS or first template token)",
}
MAX_LAYERS_SHOWN, MAX_HEADS_SHOWN = 4, 6
MAX_AREA = 170.0  # of a marker, in square points
MIN_VIOLIN, NO_SPREAD = 5, 1e-6


def draw_heatmaps(study: Study, title):
    """2: differences of normalised entropy of every head, a panel a contrast, on one scale."""
    run, differences = study.run, [test["estimate"] for test in study.tests.values()]
    limit = np.nanmax(np.abs(differences), initial=0.0) or 1.0
    caption = write_caption(
        study,
        "Red: the category named first has the more focused attention.",
        survivors_note(study, "Dots"),
        "Grey: undefined." if np.isnan(differences).any() else "",
        intervals=False,
    )
    panel = (min(6.0, max(3.2, 0.11 * run.n_heads)), min(9.0, max(3.2, 0.11 * run.n_layers)))
    titles = [style.wrap_text(study.label(contrast), panel[0], 10) for contrast in study.tests]
    lines = 1 + max(title.count("\n") for title in titles)
    grid = Grid((1, len(differences)), panel, gap=(0.4, 0.6), heading=lines, right=1.3)
    options = {"sharey": True, "subplot_kw": {"facecolor": "#bbbbbb"}}
    figure, axes = open_figure(study, title, caption, grid, **options)
    rows = []
    tested = zip(axes[0], titles, study.tests.items(), strict=True)
    for place, panel_title, (contrast, test) in tested:
        shown = place.pcolormesh(test["estimate"], vmin=-limit, vmax=limit, cmap=DIVERGING)
        place.set_title(panel_title)
        place.grid(False)
        label_cells(place.xaxis, run.n_heads, "head")
        label_cells(place.yaxis, run.n_layers, "layer" if place is axes[0, 0] else "")
        row, column = np.nonzero(test["q"] < ALPHA)
        place.scatter(column + 0.5, row + 0.5, s=5, color="black", linewidths=0, zorder=3)
        facts = contrast_facts(study, contrast)
        for at, mean in np.ndenumerate(test["estimate"]):
            measured = {"mean": mean} | {name: test[name][at] for name in ("p", "q", "p_max")}
            rows.append({"layer": at[0], "head": at[1]} | facts | measured)
    axes[0, 0].invert_yaxis()
    style.add_colour_bar(figure, axes, shown, "difference of focus (-normalised entropy)")
    return figure, rows


def label_cells(axis, n, label):
    """Ticks in the middle of the cells of a heatmap, a dozen at most."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, n) if n <= 12 * step)
    axis.set_ticks(np.arange(0, n, step) + 0.5, np.arange(0, n, step))
    axis.set_label_text(label)


def draw_token_attention(study: Study, title):
    """3: what the final query of every head attends to: the first content tokens, and key 0."""
    run, prompts = study.run, np.arange(len(study.run.n_tokens))
    masses = (run.first_mass, run.sink_mass[prompts, :, :, run.n_tokens - 1])
    shown = np.linspace(0, run.n_layers - 1, min(MAX_LAYERS_SHOWN, run.n_layers))
    shown = np.unique(shown.round().astype(int))
    note = (
        "Attention of the last token fed, summed over keys; the panels of a column share their "
        "axis, which ends at 0 and 1."
    )
    caption, options = write_caption(study, note, sink_note(run)), {"sharex": True, "sharey": "col"}
    panel = (min(7.0, max(4.2, 0.11 * run.n_heads)), 1.55)
    grid, handles = (
        Grid((len(shown), 2), panel, (0.6, 0.35)),
        style.category_handles(study.looks, study.names),
    )
    figure, axes = open_figure(study, title, caption, grid, handles, **options)
    rows = []
    for column, (target, mass) in zip(axes.T, zip(TARGETS, masses, strict=True), strict=True):
        measured = {
            name: estimate(study, study.rows(mass[:, shown].astype(np.float64)), name, bounds=SHARE)
            for name in study.names
        }
        learned = target == "key_0" and has_learned_sinks(run)
        column[0].set_title("attention on the head's learned sink" if learned else TARGETS[target])
        for row, (place, layer) in enumerate(zip(column, shown, strict=True)):
            here = {name: [part[row] for part in measured[name]] for name in study.names}
            draw_heads(place, here, study.looks)
            for name in study.names:
                facts = {"layer": layer, "category": name, "target": target}
                rows += axis_rows("head", here[name], **facts, n=study.counts[name])
        style.number_axis(column[-1].xaxis, run.n_heads, "head")
        style.limit_to_mass(column[0])
    for place, layer in zip(axes[:, 0], shown, strict=True):
        place.set_ylabel(f"layer {layer}")
    return figure, rows


def draw_heads(axes, measured, looks):
    """One marker a head and category with its interval, categories side by side.

    measured  {category: (mean, low, high)}, each [head]
    """
    for slot, (name, (mean, low, high)) in enumerate(measured.items()):
        heads = np.arange(len(mean)) + 0.18 * (slot - (len(measured) - 1) / 2)
        size, alpha = (3.5, 0.6) if len(mean) <= 24 else (1.8, 0.35)
        look = {"linestyle": "none", "marker": looks[name].marker, "markersize": size}
        axes.plot(heads, mean, color=looks[name].colour, **look)
        axes.vlines(heads, low, high, color=looks[name].colour, linewidth=0.8, alpha=alpha)


def draw_distributions(study: Study, title):
    """4: the six heads with the largest |Hedges g| on half of the prompts, measured on the rest.

    A head chosen and measured on the same prompts looks stronger than it is: the largest of many
    noisy values is noise.
    """
    values, category = study.values["normalised"], study.category
    contrast = next(iter(study.tests))
    if contrast not in USUAL:
        title = f"Heads that separate the sides of {study.label(contrast)}"
    what = "frames" if study.run.crossed else "prompts"
    choosing = split_units(category, study.unit, study.seed)
    chosen_on, measured_on = (
        contrast_sides(values[half], category[half], study.unit[half], contrast)
        for half in (choosing, ~choosing)
    )
    n = [len(part) for part in measured_on[:2]]
    if min(n) < MIN_HALF:
        least, named = 2 * MIN_HALF, study.label(contrast)
        reason = f"This figure needs {least} {what} of each category of {named}."
        return draw_reason(study, title, reason)
    rows = (values[~choosing], category[~choosing], study.unit[~choosing])
    measured = compare_categories(*rows, contrast, study.n_resamples, study.seed)
    measured = blank_untestable(study.run, contrast, measured)
    sizes = {"hedges_g": measured["g"], "hedges_g_choosing_half": hedges_g(*chosen_on)}
    sizes |= {"ci_low": measured["g_low"], "ci_high": measured["g_high"]}
    heads = strongest_heads(sizes["hedges_g_choosing_half"], MAX_HEADS_SHOWN)
    if not heads:
        reason = "Hedges g is undefined for every head: no entropy varies between prompts."
        return draw_reason(study, title, reason)
    drawn = bool(np.isfinite(sizes["ci_low"]).any())
    note = (
        f"g: Hedges g of {study.label(contrast)}{' with its 95 % interval' * drawn}, "
        f"measured on the {' and '.join(map(str, dict.fromkeys(n)))} {what} of each side drawn; "
        "the heads were chosen on the other half, by |g|."
    )
    caption, handles = (
        write_caption(study, note, *untested_notes(study, [contrast], said=()), intervals=False),
        style.category_handles(study.looks, study.names),
    )
    columns = 2 if len(heads) == 4 else min(3, len(heads))
    grid = Grid((-(-len(heads) // columns), columns), (3.3, 2.0), (0.75, 0.65), heading=2)
    figure, axes = open_figure(study, title, caption, grid, handles)
    for place in axes.flat[len(heads) :]:
        place.set_axis_off()
    for place, at in zip(axes.flat, heads, strict=False):
        groups = {name: values[(~choosing & (category == name), *at)] for name in study.names}
        draw_violins(place, groups, study.looks)
        g, low, high = (sizes[name][at] for name in ("hedges_g", "ci_low", "ci_high"))
        measured = f"g = {g:+.2f}" + (f" [{low:+.2f}, {high:+.2f}]" if low == low else "")
        measured = "g undefined: no spread" if np.isnan(g) else measured
        place.set_title(f"layer {at[0]}, head {at[1]}\n{measured}", fontsize=9)
    for place in axes[:, 0]:
        place.set_ylabel(UNITS["normalised"])
    return figure, [row for at in heads for row in point_rows(study, at, ~choosing, sizes)]


def point_rows(study: Study, at, drawn, sizes):
    """CSV rows of the points of one (layer, head); sizes {name: [layer, head]}: effect sizes."""
    of_head = {"layer": at[0], "head": at[1]} | {name: size[at] for name, size in sizes.items()}
    return [
        of_head
        | {"category": study.category[i], "prompt_id": study.row_names[i]}
        | {"value": study.values["normalised"][(i, *at)]}
        for i in np.flatnonzero(drawn)
    ]


def draw_violins(axes, groups, looks):
    """Points of every category {name: [prompt]}, and a violin where there are enough of them."""
    groups = {name: points[np.isfinite(points)] for name, points in groups.items()}
    wide = {
        name: points
        for name, points in groups.items()
        if len(points) >= MIN_VIOLIN and np.ptp(points) > NO_SPREAD
    }
    if wide:
        import seaborn  # takes longer than a figure, and only this one needs it

        look = {
            "inner": None,
            "cut": 0,
            "density_norm": "width",
            "linewidth": 0.6,
            "color": "white",
        }
        seaborn.violinplot(wide, order=list(groups), ax=axes, **look)
        for violin, name in zip(axes.collections, wide, strict=True):
            violin.set(facecolor=looks[name].colour, alpha=0.3)
    jitter = np.random.default_rng(0)
    for slot, (name, points) in enumerate(groups.items()):
        x = slot + jitter.uniform(-0.12, 0.12, len(points))
        look = {"linestyle": "none", "marker": looks[name].marker, "markersize": 3, "alpha": 0.9}
        axes.plot(x, points, color=looks[name].colour, **look)
    axes.set(xticks=[], xlim=(-0.6, len(groups) - 0.4), xlabel="", ylabel="")


def draw_top_heads(study: Study, title):
    """6: the heads of every layer that differ most in the first contrast.

    The area of a marker is proportional to |difference|.
    """
    run, contrast = study.run, next(iter(study.tests))
    test, named = study.tests[contrast], study.label(contrast)
    difference = test["estimate"]
    k = min(5, -(-run.n_heads // 3))
    tops = [strongest_heads(difference[[layer]], k) for layer in range(run.n_layers)]
    layer = np.repeat(np.arange(run.n_layers), [len(top) for top in tops])
    if not len(layer):
        reason = "Normalised entropy is undefined for every head: no row sees two keys."
        return draw_reason(study, title, reason)
    head = np.array([head for top in tops for _, head in top])
    sizes = difference[layer, head]
    limit = np.abs(sizes).max() or 1.0
    area = MAX_AREA * np.abs(sizes) / limit
    caption = write_caption(
        study,
        f"Largest |{named}| in normalised entropy, {k} a layer; red: "
        "the first is the more focused. Ranked and drawn from the same prompts, so the largest "
        "are overstated; figure 4 avoids that.",
        survivors_note(study, "Black edge", [contrast]),
        intervals=False,
    )
    panel = (min(12.0, max(5.2, 2 + 0.16 * run.n_layers)), min(7.0, max(2.8, 0.11 * run.n_heads)))
    grid = Grid((1, 1), panel, heading=0, right=1.3)
    handles = [area_handle(share * limit, MAX_AREA * share) for share in (1.0, 0.5, 0.2)]
    figure, axes = open_figure(study, title, caption, grid, handles)
    passes = test["q"][layer, head] < ALPHA
    look = {"vmin": -limit, "vmax": limit, "cmap": DIVERGING, "clip_on": False, "zorder": 2}
    look |= {"edgecolors": np.where(passes, "black", "#bbbbbb")}
    look |= {"linewidths": np.where(passes, 1.0, 0.5)}
    points = axes[0, 0].scatter(layer, head, s=area, c=sizes, **look)
    style.number_axis(axes[0, 0].xaxis, run.n_layers, "layer")
    style.number_axis(axes[0, 0].yaxis, run.n_heads, "head")
    style.add_colour_bar(figure, axes, points, named)
    rank = np.concatenate([np.arange(1, 1 + len(top)) for top in tops])
    columns = {"layer": layer, "head": head, "rank_in_layer": rank}
    columns |= {"mean": sizes, "marker_area": area}
    columns |= {name: test[name][layer, head] for name in ("p", "q", "p_max")}
    values = zip(*columns.values(), strict=True)
    return figure, [dict(zip(columns, row, strict=True)) for row in values]


def area_handle(value, area):
    """Legend entry of the size of a marker; `area` in square points, as `scatter(s=...)` has it."""
    look = {"linestyle": "none", "marker": "o", "markersize": np.sqrt(area)}
    look |= {"markerfacecolor": "white", "markeredgecolor": "black", "markeredgewidth": 0.4}
    return Line2D([], [], label=f"|difference| = {value:.3g}", **look)


def draw_slot_attention(study: Study, title):
    """10: final query's attention on the slot, a panel a category, beside uniform attention."""
    run, masses = study.run, slot_masses(study.run)
    shown = {study.looks[name].label: masses[f"slot_mass_{name}"] for name in study.names}
    uniform = masses["slot_uniform"]
    columns = min(4, len(shown))
    panel = (min(5.0, max(2.4, 0.11 * run.n_heads)), min(9.0, max(3.2, 0.11 * run.n_layers)))
    grid = Grid((-(-len(shown) // columns), columns), panel, (0.4, 0.7), right=1.3)
    caption = write_caption(
        study,
        "Attention of the last token fed, summed over the tokens in which the persons differ, mean "
        "over prompts. Uniform attention would put "
        f"{describe_range(uniform[:, 0])} there (white mark on the colour bar: its mean). Colours "
        "follow the square root.",
        intervals=False,
    )
    figure, axes = open_figure(study, title, caption, grid, sharey=True)
    limit = max(max(mass.max() for mass in shown.values()), uniform.max())
    for place in axes.flat[len(shown) :]:
        place.set_axis_off()
    for place, (name, mass) in zip(axes.flat, shown.items(), strict=False):
        drawn = place.pcolormesh(mass, norm=PowerNorm(0.5, 0, limit), cmap="viridis")
        place.set_title(name)
        place.grid(False)
        label_cells(place.xaxis, run.n_heads, "head")
        label_cells(place.yaxis, run.n_layers, "layer" if place in axes[:, 0] else "")
    axes[0, 0].invert_yaxis()
    bar = style.add_colour_bar(figure, axes, drawn, "attention on the slot")
    bar.ax.axhline(uniform.mean(), color="white", linewidth=2)
    return figure, [
        {"layer": layer, "head": head, "slot_uniform": uniform[layer, head]}
        | {f"slot_mass_{name}": masses[f"slot_mass_{name}"][layer, head] for name in study.names}
        for layer, head in np.ndindex(uniform.shape)
    ]


def describe_range(values):
    """One number, or the smallest and the largest of several."""
    low, high = (f"{value:.3f}" for value in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"
