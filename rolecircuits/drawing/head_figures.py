"""The figures of a run head by head: 2 heatmaps, 3 the final query, 4 distributions, 6 top heads.

Each takes (study, title) and returns (Figure, rows of its CSV).
"""

import numpy as np
from matplotlib.lines import Line2D

from rolecircuits.drawing import style
from rolecircuits.drawing.study import (
    UNITS,
    Study,
    axis_rows,
    draw_reason,
    estimate,
    open_figure,
    sink_note,
    survivors_note,
    write_caption,
)
from rolecircuits.drawing.style import COLOURS, DIVERGING, MARKERS, NAMES, Grid
from rolecircuits.inputs.arguments import ALPHA
from rolecircuits.inputs.categories import REQUIRED
from rolecircuits.stats.contrasts import hedges_g, hedges_g_interval
from rolecircuits.stats.resampling import MIN_PROMPTS
from rolecircuits.stats.role_tests import split_prompts, strongest_heads

TARGETS = {
    "first_content_tokens": "attention on the first three content tokens",
    "key_0": "attention on key 0 (BOS or first template token)",
}
MAX_LAYERS_SHOWN, MAX_HEADS_SHOWN = 4, 6
MAX_AREA = 170.0  # of a marker, in square points
MIN_VIOLIN, NO_SPREAD = 5, 1e-6


def draw_heatmaps(study: Study, title):
    """2: normalised entropy of every head, self - neutral and self - confounder, on one scale."""
    run, differences = study.run, [test["difference"] for test in study.tests.values()]
    limit = np.nanmax(np.abs(differences), initial=0.0) or 1.0
    caption = write_caption(
        study,
        "Blue: self-referent attention is the more focused.",
        survivors_note(study, "Dots"),
        "Grey: undefined." if np.isnan(differences).any() else "",
        intervals=False,
    )
    panel = (min(6.0, max(3.2, 0.11 * run.n_heads)), min(9.0, max(3.2, 0.11 * run.n_layers)))
    grid = Grid((1, len(differences)), panel, gap=(0.4, 0.6), right=1.3)
    options = {"sharey": True, "subplot_kw": {"facecolor": "#bbbbbb"}}
    figure, axes = open_figure(study, title, caption, grid, **options)
    rows = []
    for place, ((a, b), test) in zip(axes[0], study.tests.items(), strict=True):
        shown = place.pcolormesh(test["difference"], vmin=-limit, vmax=limit, cmap=DIVERGING)
        place.set_title(f"{NAMES[a]} - {NAMES[b]}")
        place.grid(False)
        label_cells(place.xaxis, run.n_heads, "head")
        label_cells(place.yaxis, run.n_layers, "layer" if place is axes[0, 0] else "")
        row, column = np.nonzero(test["q"] < ALPHA)
        place.scatter(column + 0.5, row + 0.5, s=5, color="black", linewidths=0, zorder=3)
        contrast = {"category": a, "minus": b, "n": run.counts[a], "n_minus": run.counts[b]}
        for at, mean in np.ndenumerate(test["difference"]):
            measured = {"mean": mean} | {name: test[name][at] for name in ("p", "q", "p_max")}
            rows.append({"layer": at[0], "head": at[1]} | contrast | measured)
    axes[0, 0].invert_yaxis()
    style.add_colour_bar(figure, axes, shown, "difference of normalised entropy")
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
    grid, handles = Grid((len(shown), 2), panel, (0.6, 0.35)), style.category_handles(study.names)
    figure, axes = open_figure(study, title, caption, grid, handles, **options)
    rows = []
    for column, (target, mass) in zip(axes.T, zip(TARGETS, masses, strict=True), strict=True):
        measured = {
            name: estimate(study, mass[:, shown].astype(np.float64), name) for name in study.names
        }
        column[0].set_title(TARGETS[target])
        for row, (place, layer) in enumerate(zip(column, shown, strict=True)):
            here = {name: [part[row] for part in measured[name]] for name in study.names}
            draw_heads(place, here)
            for name in study.names:
                facts = {"layer": layer, "category": name, "target": target}
                rows += axis_rows("head", here[name], **facts, n=run.counts[name])
        style.number_axis(column[-1].xaxis, run.n_heads, "head")
        style.limit_to_mass(column[0])
    for place, layer in zip(axes[:, 0], shown, strict=True):
        place.set_ylabel(f"layer {layer}")
    return figure, rows


def draw_heads(axes, measured):
    """One marker a head and category with its interval, categories side by side.

    measured  {category: (mean, low, high)}, each [head]
    """
    for slot, (name, (mean, low, high)) in enumerate(measured.items()):
        heads = np.arange(len(mean)) + 0.18 * (slot - (len(measured) - 1) / 2)
        size, alpha = (3.5, 0.6) if len(mean) <= 24 else (1.8, 0.35)
        look = {"linestyle": "none", "marker": MARKERS[name], "markersize": size}
        axes.plot(heads, mean, color=COLOURS[name], **look)
        axes.vlines(heads, low, high, color=COLOURS[name], linewidth=0.8, alpha=alpha)


def draw_distributions(study: Study, title):
    """4: the six heads with the largest |Hedges g| on half of the prompts, measured on the rest.

    A head chosen and measured on the same prompts looks stronger than it is: the largest of many
    noisy values is noise.
    """
    values, category = study.values["normalised"], study.run.category
    choosing = split_prompts(category, study.run.pair_id, study.seed)
    chosen_on, measured_on = (
        [values[half & (category == name)] for name in REQUIRED] for half in (choosing, ~choosing)
    )
    n = [len(part) for part in measured_on]
    if min(n) < MIN_PROMPTS:
        least = 2 * MIN_PROMPTS
        reason = f"This figure needs {least} self-referent and {least} neutral prompts."
        return draw_reason(study, title, reason)
    sizes = {"hedges_g": hedges_g(*measured_on), "hedges_g_choosing_half": hedges_g(*chosen_on)}
    sizes |= dict(zip(("ci_low", "ci_high"), hedges_g_interval(*measured_on), strict=True))
    heads = strongest_heads(sizes["hedges_g_choosing_half"], MAX_HEADS_SHOWN)
    if not heads:
        reason = "Hedges g is undefined for every head: no entropy varies between prompts."
        return draw_reason(study, title, reason)
    note = (
        "g: Hedges g of self-referent - neutral with its 95 % interval (normal approximation), "
        f"measured on the {n[0]} self-referent and {n[1]} neutral prompts drawn; the heads were "
        "chosen on the other half, by |g|."
    )
    caption, handles = (
        write_caption(study, note, intervals=False),
        style.category_handles(study.names),
    )
    columns = 2 if len(heads) == 4 else min(3, len(heads))
    grid = Grid((-(-len(heads) // columns), columns), (3.3, 2.0), (0.75, 0.65), heading=2)
    figure, axes = open_figure(study, title, caption, grid, handles)
    for place in axes.flat[len(heads) :]:
        place.set_axis_off()
    for place, at in zip(axes.flat, heads, strict=False):
        groups = {name: values[(~choosing & (category == name), *at)] for name in study.names}
        draw_violins(place, groups)
        g, low, high = (sizes[name][at] for name in ("hedges_g", "ci_low", "ci_high"))
        measured = f"g = {g:+.2f} [{low:+.2f}, {high:+.2f}]"
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
        | {"category": study.run.category[i], "prompt_id": study.run.prompt_id[i]}
        | {"value": study.values["normalised"][(i, *at)]}
        for i in np.flatnonzero(drawn)
    ]


def draw_violins(axes, groups):
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
            violin.set(facecolor=COLOURS[name], alpha=0.3)
    jitter = np.random.default_rng(0)
    for slot, (name, points) in enumerate(groups.items()):
        x = slot + jitter.uniform(-0.12, 0.12, len(points))
        look = {"linestyle": "none", "marker": MARKERS[name], "markersize": 3, "alpha": 0.9}
        axes.plot(x, points, color=COLOURS[name], **look)
    axes.set(xticks=[], xlim=(-0.6, len(groups) - 0.4), xlabel="", ylabel="")


def draw_top_heads(study: Study, title):
    """6: the heads of every layer that differ most between self-referent and neutral.

    The area of a marker is proportional to |difference|.
    """
    run, test = study.run, study.tests[REQUIRED]
    difference = test["difference"]
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
        f"Largest |self-referent - neutral| in normalised entropy, {k} a layer; blue: "
        "self-referent is the more focused. Ranked and drawn from the same prompts, so the largest "
        "are overstated; figure 4 avoids that.",
        survivors_note(study, "Black edge", [REQUIRED]),
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
    style.add_colour_bar(figure, axes, points, "self-referent - neutral")
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
