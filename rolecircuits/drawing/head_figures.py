"""The figures of a run head by head: 2 heatmaps, 3 the final query, 4 heads chosen on one half, 6
the strongest heads, 10 attention on the slot of a crossed set.

Each takes (study, title) and returns (Figure, rows of its CSV).
"""

import numpy as np
from matplotlib.colors import PowerNorm

from rolecircuits.drawing import style
from rolecircuits.drawing.study import (
    CUT_NOTE,
    PARTS,
    ZERO,
    Study,
    contrast_facts,
    draw_reason,
    has_learned_sinks,
    open_figure,
    sink_note,
    survivors_note,
    untested_notes,
    write_caption,
)
from rolecircuits.drawing.style import DIVERGING, Grid
from rolecircuits.inputs.arguments import ALPHA
from rolecircuits.stats.audit import contrast_reason
from rolecircuits.stats.contrasts import categories_of, compare_categories, contrast_sides, hedges_g
from rolecircuits.stats.masses import EDGE_TOKENS, end_keys, learned_sink_share, uniform_rows
from rolecircuits.stats.moments import category_mean
from rolecircuits.stats.resampling import untestable_reason
from rolecircuits.stats.role_tests import (
    MIN_HALF,
    blank_untestable,
    slot_masses,
    split_units,
    strongest_heads,
)

TARGETS = {
    "sink": "sink (key 0)",
    "first": "first three tokens",
    "last": "last three tokens",
    "slot": "slot (the person)",
}
MAX_HELD_OUT, MAX_STRONGEST = 12, 20
ROW_HEIGHT = 0.27  # inches a head of a forest takes
TESTS = ("p", "q", "p_max")
G_PARTS = ("g", "g_low", "g_high")
PASSES = f"passes Benjamini-Hochberg at {ALPHA}"


def draw_heatmaps(study: Study, title):
    """2: differences of normalised entropy of every head, a panel a contrast, on one scale."""
    run, differences = study.run, [test["estimate"] for test in study.tests.values()]
    limit = np.nanmax(np.abs(differences), initial=0.0) or 1.0
    caption = write_caption(
        study,
        "Red, above 0: what is named first has the more focused attention (the lower "
        "normalised entropy); blue: the second has; white: 0.",
        survivors_note(study, "Dots"),
        "Grey: undefined." if np.isnan(differences).any() else "",
        intervals=False,
    )
    panel = (min(6.0, max(3.2, 0.11 * run.n_heads)), min(9.0, max(3.2, 0.11 * run.n_layers)))
    titles = [style.wrap_text(study.label(contrast), panel[0], 10) for contrast in study.tests]
    cell = 72 * min(panel[0] / run.n_heads, panel[1] / run.n_layers)  # points
    dot = min(20.0, max(4.0, (0.3 * cell) ** 2))
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
        place.scatter(column + 0.5, row + 0.5, s=dot, color="black", linewidths=0, zorder=3)
        facts = contrast_facts(study, contrast)
        for at in np.ndindex(test["estimate"].shape):
            measured = {name: test[name][at] for name in (*PARTS, *TESTS)}
            rows.append({"layer": at[0], "head": at[1]} | facts | measured)
    axes[0, 0].invert_yaxis()
    style.add_colour_bar(figure, axes, shown, "difference in focus (normalised entropy)")
    return figure, rows


def label_cells(axis, n, label):
    """Ticks in the middle of the cells of a heatmap, a dozen at most."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, n) if n <= 12 * step)
    axis.set_ticks(np.arange(0, n, step) + 0.5, np.arange(0, n, step))
    axis.set_label_text(label)


def draw_token_attention(study: Study, title):
    """3: what the final query of every head attends to, less what uniform attention gives it."""
    run, found = study.run, final_masses(study.run)
    excess = {target: mass - uniform[..., None] for target, (mass, uniform) in found.items()}
    means = {t: category_means(study, values) for t, values in excess.items()}
    pooled = {
        target: np.mean(list(of_target.values()), axis=0) for target, of_target in means.items()
    }
    titles = TARGETS | ({"sink": "the learned sink"} if has_learned_sinks(run) else {})
    shares = [f"{titles[t]} {describe_range(found[t][1].mean(axis=0))}" for t in found]
    key_0 = "" if has_learned_sinks(run) else "Key 0 is the BOS or first template token."
    slot = "The slot is where the persons differ." if run.has_slots else ""
    caption = write_caption(
        study,
        "Attention of the last token fed (the final query), summed over key 0 or the named tokens "
        "of the text, less the sum if it were uniform over the keys that the query sees; mean over "
        "prompts, then over categories. Orange: more than uniform; purple: less; white: as much; "
        f"colours follow the square root. Uniform: {', '.join(shares)}. By category in data/.",
        key_0,
        slot,
        sink_note(run),
        intervals=False,
    )
    panel = (min(5.0, max(2.4, 0.11 * run.n_heads)), min(9.0, max(3.2, 0.11 * run.n_layers)))
    grid = Grid((1, len(found)), panel, (0.4, 0.6), right=1.3)
    options = {"sharey": True, "subplot_kw": {"facecolor": "#bbbbbb"}}
    figure, axes = open_figure(study, title, caption, grid, **options)
    limit = np.nanmax(np.abs(list(pooled.values())), initial=0.0) or 1.0
    look = {"norm": style.signed_root(limit), "cmap": style.EXCESS}
    for place, (target, values) in zip(axes[0], pooled.items(), strict=True):
        shown = place.pcolormesh(values, **look)
        place.set_title(titles[target])
        place.grid(False)
        label_cells(place.xaxis, run.n_heads, "head")
        label_cells(place.yaxis, run.n_layers, "layer" if place is axes[0, 0] else "")
    axes[0, 0].invert_yaxis()
    style.add_colour_bar(figure, axes, shown, "attention - uniform attention")
    return figure, [
        {"layer": at[0], "head": at[1], "target": target, "estimate": pooled[target][at]}
        | {"uniform": found[target][1][:, at[0]].mean()}
        | {f"{name}_estimate": values[at] for name, values in means[target].items()}
        for target in found
        for at in np.ndindex(run.n_layers, run.n_heads)
    ]


def final_masses(run):
    """{target: (mass [prompt, layer, head], its uniform value [prompt, layer])} of TARGETS that the
    run has."""
    n_keys, rows = run.entropy.shape[-1], np.arange(len(run.n_tokens))
    uniform = uniform_rows(run.n_tokens, run.visible_keys, n_keys)
    first, last = end_keys(run.span, EDGE_TOKENS, n_keys).astype(float)
    learned = learned_sink_share(run.n_tokens, run.visible_keys)
    on_sink = learned if has_learned_sinks(run) else uniform[..., 0]
    found = {"sink": (run.sink_mass[rows, :, :, run.n_tokens - 1], on_sink)}
    found["first"] = run.first_mass, np.einsum("plk,pk->pl", uniform, first)
    found["last"] = run.last_mass, np.einsum("plk,pk->pl", uniform, last)
    if run.has_slots:
        found["slot"] = run.slot_mass, run.slot_uniform
    return {t: tuple(part.astype(np.float64) for part in parts) for t, parts in found.items()}


def category_means(study: Study, values):
    """{category: mean over its rows}; values [prompt, ...]."""
    rows = study.rows(values)
    return {name: category_mean(rows, study.category, name) for name in study.names}


def draw_distributions(study: Study, title):
    """4: the heads with the largest |Hedges g| on half of the prompts, measured on the rest.

    A head chosen and measured on the same prompts looks stronger than it is: the largest of many
    noisy values is noise.
    """
    values, category = study.values["normalised"], study.category
    contrast, what = next(iter(study.tests)), "frames" if study.run.crossed else "prompts"
    named = study.label(contrast)
    choosing = split_units(category, study.unit, study.seed)
    halves = [(values[h], category[h], study.unit[h]) for h in (choosing, ~choosing)]
    n = [len(side) for side in contrast_sides(*halves[1], contrast)[1::-1]]
    if min(n) < MIN_HALF:
        least = 2 * MIN_HALF
        reason = f"This figure needs {least} {what} of each category of {named}."
        return draw_reason(study, title, reason)
    chosen_g = hedges_g(*contrast_sides(*halves[0], contrast))
    heads = strongest_heads(chosen_g, MAX_HELD_OUT)
    if not heads:
        reason = "Hedges g is undefined for every head: no entropy varies between prompts."
        return draw_reason(study, title, reason)
    at = tuple(np.transpose(heads))
    measured = compare_categories(
        halves[1][0][:, at[0], at[1]], *halves[1][1:], contrast, study.n_resamples, study.seed
    )
    measured = blank_untestable(study.run, contrast, measured)
    of_half = untestable_reason(*halves[1][1:], categories_of(contrast), what)
    reason = contrast_reason(study.run, contrast)
    sides = " and ".join(map(str, dict.fromkeys(n)))
    caption = write_caption(
        study,
        f"Hedges g of {named} in focus (normalised entropy), measured on the {sides} {what} of "
        "each side that did not choose the heads"
        + (
            "."
            if reason or of_half
            else f", with its 95 % interval; filled: {PASSES} over these heads."
        ),
        f"{of_half[0].upper()}{of_half[1:]} there." if of_half and not reason else "",
        "Crosses: g on the half that chose the heads, the largest |g| first; choosing overstates "
        "it. Red: what is named first is the more focused; blue: the second.",
        "" if reason or of_half else CUT_NOTE,
        *untested_notes(study, [contrast], said=()),
        intervals=False,
    )
    figure, axes = open_forest(study, (title, caption), heads)
    draw_forest(axes[0, 0], measured)
    axes[0, 0].plot(chosen_g[at], np.arange(len(heads)), "x", color="black", markersize=4.5)
    crosses = (chosen_g[at], np.nan, np.nan)
    drawn = [tuple(measured[m] for m in ("g", "g_low", "g_high")), crosses]
    style.limit_to_points(axes[0], [*drawn, ZERO], axis="x")
    facts = contrast_facts(study, contrast) | dict(zip(("n", "n_minus"), n, strict=True))
    return figure, forest_rows(heads, measured, facts, g_choosing=chosen_g[at])


def draw_top_heads(study: Study, title):
    """6: the heads with the largest |Hedges g| of the first contrast, by the same prompts."""
    contrast = next(iter(study.tests))
    test, named = study.tests[contrast], study.label(contrast)
    heads = strongest_heads(test["g"], MAX_STRONGEST)
    if not heads:
        reason = "Hedges g is undefined for every head: too few prompts, or nothing varies."
        return draw_reason(study, title, reason)
    at = tuple(np.transpose(heads))
    measured = {name: values[at] for name, values in test.items()}
    with_interval = " with its 95 % interval" * bool(np.isfinite(test["g_low"]).any())
    for_one = ", and each interval is of one head, not of the choice" if with_interval else ""
    caption = write_caption(
        study,
        f"Hedges g of {named} in focus (normalised entropy){with_interval}, the {len(heads)} "
        f"largest of {test['g'].size} heads by |g|. Chosen and measured on the same prompts, so "
        f"the largest are overstated{for_one}; figure 4 measures heads on prompts that did not "
        "choose them. Red: what is named first is the more focused; blue: the second.",
        survivors_note(study, "Filled", [contrast]),
        CUT_NOTE,
        intervals=False,
    )
    figure, axes = open_forest(study, (title, caption), heads)
    draw_forest(axes[0, 0], measured)
    drawn = [tuple(measured[m] for m in ("g", "g_low", "g_high")), ZERO]
    style.limit_to_points(axes[0], drawn, axis="x")
    return figure, forest_rows(heads, measured, contrast_facts(study, contrast))


def open_forest(study: Study, texts, heads):
    """(figure, axes [1, 1]) with a line a head, named layer/head; texts (title, caption)."""
    grid = Grid((1, 1), (4.6, 0.3 + ROW_HEIGHT * len(heads)), heading=1, right=1.75)
    figure, axes = open_figure(study, *texts, grid)
    place = axes[0, 0]
    place.set(ylim=(len(heads) - 0.4, -0.6), xlabel="Hedges g", ylabel="layer/head")
    place.set_yticks(range(len(heads)), [f"{layer}/{head}" for layer, head in heads])
    place.axvline(0, color="black", linewidth=0.7, zorder=1)
    return figure, axes


def draw_forest(axes, measured):
    """g of every head with its interval, and both as text right of the panel.

    measured  what compare_categories gave, [head]
    """
    for row, (g, low, high) in enumerate(zip(*(measured[m] for m in G_PARTS), strict=True)):
        colour, text = style.ABOVE if g > 0 else style.BELOW, f"{g:+.2f}" if g == g else "-"
        filled = colour if measured["q"][row] < ALPHA else "white"
        if low == low:
            axes.hlines(row, low, high, color=colour, linewidth=1.3)
            text += f" [{low:+.2f}, {high:+.2f}]"
        look = {"color": colour, "markerfacecolor": filled, "markersize": 5}
        axes.plot([g], [row], "o", **look)
        place = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 8}
        axes.text(1.03, row, text, **place)


def forest_rows(heads, measured, facts, **columns):
    """CSV rows of a forest, one a head; columns {name: [head]}."""
    parts = {f"g_{part}": measured[m] for part, m in zip(PARTS, G_PARTS, strict=True)}
    parts |= {name: measured[name] for name in (*PARTS, *TESTS)} | columns
    return [
        {"rank": row + 1, "layer": layer, "head": head}
        | facts
        | {name: values[row] for name, values in parts.items()}
        for row, (layer, head) in enumerate(heads)
    ]


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
