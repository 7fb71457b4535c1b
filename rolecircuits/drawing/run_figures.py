"""The nine figures of a run: numbers in, (matplotlib Figure, rows of its CSV) out. No model, no torch.

    1 layer lines       4 distributions of six heads     7 first versus last content tokens
    2 heatmaps          5 bars of differences            8 confounder - self beside its controls
    3 final query       6 top heads of every layer       9 RFC and RSI

Entropy is raw (nats) or normalised (0 one-hot, 1 uniform over the visible keys), as role_metrics defines it. "a - b" is the
mean of category a minus that of b: below 0, a is the more focused. RFC and RSI are above 0 if self-referent is the more
focused. Intervals are 95 % bootstrap-t intervals over prompts. Heads and layers that pass Benjamini-Hochberg at 0.05 among
all that are tested together are marked.

    study = study_run(load_run("results_activation_analysis/latest_run"))
    for name in FIGURES:
        figure, rows = draw_figure(name, study)
"""

from dataclasses import dataclass

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from rolecircuits.drawing import style
from rolecircuits.drawing.style import COLOURS, DIVERGING, MARKERS, NAMES, open_panels
from rolecircuits.inputs.arguments import DEFAULT_SEED
from rolecircuits.inputs.categories import CATEGORIES, PAIRED, REQUIRED
from rolecircuits.runs.arrays import Run
from rolecircuits.stats.contrasts import CONTRASTS, compare_categories, hedges_g, hedges_g_interval
from rolecircuits.stats.indices import index_values, null_values, prompt_values
from rolecircuits.stats.moments import category_mean
from rolecircuits.stats.resampling import (
    MIN_PROMPTS,
    N_RESAMPLES,
    mean_difference_interval,
    mean_interval,
    pair_rows,
)
from rolecircuits.stats.role_tests import ALPHA, infer_layers, split_prompts, strongest_heads

PANELS = ("raw", "normalised")
UNITS = {"raw": "raw entropy (nats)", "normalised": "normalised entropy"}
SHOWN = (CONTRASTS["self_neutral"], CONTRASTS["self_confounder"])
TARGETS = {
    "first_content_tokens": "attention on the first three content tokens",
    "key_0": "attention on key 0 (BOS or first template token)",
}
MAX_LAYERS_SHOWN, MAX_HEADS_SHOWN = 4, 6
MAX_AREA = 170.0
INTERVALS = "95 % bootstrap-t intervals over prompts ({:,} resamples)."
NULL_NOTE = "Dashed: length null, the same quantity if attention were uniform over the visible keys"
NULL_HANDLE = Line2D(
    [], [], color=style.NULL_COLOUR, linestyle="--", linewidth=1, label="length null (uniform)"
)


@dataclass
class Study:
    """A run with what its figures share: values {kind: [prompt, layer, head]}, seed, tests {contrast: compare_categories}."""

    run: Run
    values: dict
    tests: dict
    seed: int
    n_resamples: int

    @property
    def names(self):
        """The categories that the run has."""
        return list(self.run.counts)

    @property
    def subtitle(self):
        """Model, format and n, as every figure names them."""
        n = self.run.counts
        if len(set(n.values())) == 1:
            return f"{self.run.label}; n = {n[self.names[0]]} per category"
        return f"{self.run.label}; n = " + ", ".join(f"{n[name]} {NAMES[name]}" for name in n)

    def layers(self, kind):
        """The value of every prompt for every layer, the mean over heads: [prompt, layer]."""
        return self.values[kind].mean(axis=-1)


def study_run(run, n_resamples=N_RESAMPLES):
    """Reduce the entropies and test every head once for all figures, with the seed of the tables."""
    values, seed = {kind: prompt_values(run, kind) for kind in PANELS}, DEFAULT_SEED
    contrasts = [pair for pair in SHOWN if set(pair) <= set(run.counts)]
    tests = {
        pair: compare_categories(
            values["normalised"], run.category, run.pair_id, pair, n_resamples, seed
        )
        for pair in contrasts
    }
    return Study(run, values, tests, seed, n_resamples)


def draw_figure(name, study):
    """(Figure, rows) of one figure of FIGURES; a figure that says so where the run lacks a category that it needs."""
    function, title, needs = FIGURES[name]
    missing = [NAMES[category] for category in needs if category not in study.names]
    if missing:
        return draw_reason(
            study, title, f"This figure needs {' and '.join(missing)} prompts; this run has none."
        )
    return function(study, title)


def draw_reason(study, title, reason):
    """A figure of one line of text: why there is nothing to draw."""
    figure, axes = open_panels((1, 1), (6, 1), title, study.subtitle, "")
    axes[0, 0].set_axis_off()
    axes[0, 0].text(0, 0.5, reason, va="center", wrap=True)
    return figure, [{"note": reason}]


def estimate(study, values, name, minus=None):
    """Mean of a category, or its difference from that of `minus`, with its interval: (mean, ci_low, ci_high), each [...].

    values  [prompt, ...]; the interval is NaN where a category has too few prompts. Matched pairs are resampled as pairs.
    """
    run = study.run
    if minus is None:
        return mean_interval(values[run.category == name], study.n_resamples, study.seed)
    pairs = pair_rows(run.category, run.pair_id) if (name, minus) == PAIRED else None
    sides = [run.category == name, run.category == minus] if pairs is None else pairs
    return mean_difference_interval(
        *(values[side] for side in sides), pairs is not None, study.n_resamples, study.seed
    )


def survivors_note(study, what, contrasts=SHOWN):
    """What the marks mean and how many heads carry one, 0 where nothing survives."""
    q = {pair: test["q"] for pair, test in study.tests.items() if pair in contrasts}
    counts = [
        f"{int((q[pair] < ALPHA).sum())} of {q[pair].size} for {NAMES[pair[0]]} - {NAMES[pair[1]]}"
        for pair in q
    ]
    return f"{what}: heads that pass Benjamini-Hochberg at {ALPHA} over all heads ({', '.join(counts)})."


def axis_rows(axis, estimated, **columns):
    """CSV rows of an estimate along an axis, "layer" or "head"; a column is one value or one a row."""
    columns |= dict(zip(("mean", "ci_low", "ci_high"), estimated, strict=True))
    return [
        {axis: i} | {name: value[i] if np.ndim(value) else value for name, value in columns.items()}
        for i in range(len(estimated[0]))
    ]


def write_caption(study, *sentences, intervals=True):
    """What a reader must know under a figure: intervals or why there are none, missing categories, then `sentences`."""
    few = [f"{n} {NAMES[name]}" for name, n in study.run.counts.items() if n < MIN_PROMPTS]
    missing = [NAMES[name] for name in CATEGORIES if name not in study.names]
    notes = (
        [INTERVALS.format(study.n_resamples)] if intervals and len(few) < len(study.names) else []
    )
    if intervals and few:
        notes.append(
            f"No intervals for what rests on too few prompts ({', '.join(few)}): they need {MIN_PROMPTS}."
        )
    if missing:
        notes.append(
            f"This run has no {' and no '.join(missing)} prompts: what needs them is left out."
        )
    return " ".join(filter(None, [*notes, *sentences]))


def sink_note(run):
    """A warning for figures of content tokens where no BOS stands before them; empty otherwise."""
    n = int((run.span[:, 0] == 0).sum())
    return (
        f"Key 0, the attention sink, is itself a content token in {n} prompts without a BOS."
        if n
        else ""
    )


def layer_panel(study, height=2.9):
    """Size in inches of a panel with one value a layer."""
    return min(7.0, max(4.2, 2.4 + 0.085 * study.run.n_layers)), height


def draw_layer_lines(study, title):
    """1: entropy of every category over layers, raw beside normalised, with the length null of the raw one."""
    caption = write_caption(study, f"{NULL_NOTE}; for normalised entropy it is 1.")
    handles = [*style.category_handles(study.names), NULL_HANDLE]
    figure, axes = open_panels(
        (1, 2), layer_panel(study), title, study.subtitle, caption, handles, heading=0
    )
    rows = []
    for place, kind in zip(axes[0], PANELS, strict=True):
        layers, null = study.layers(kind), null_values(study.run, kind)
        for slot, name in enumerate(study.names):
            expected = category_mean(null, study.run.category, name)
            measured = estimate(study, layers, name)
            style.draw_series(place, measured, COLOURS[name], MARKERS[name], slot - 1.5)
            if kind == "raw":
                style.draw_null(place, expected, COLOURS[name])
            n = study.run.counts[name]
            rows += axis_rows(
                "layer", measured, kind=kind, category=name, n=n, length_null=expected
            )
        style.number_axis(place.xaxis, study.run.n_layers, "layer")
        place.set_ylabel(UNITS[kind])
    return figure, rows


def draw_heatmaps(study, title):
    """2: difference of normalised entropy for every head, self - neutral and self - confounder, on one colour scale."""
    run, contrasts = study.run, list(study.tests)
    differences = [test["difference"] for test in study.tests.values()]
    limit = np.nanmax(np.abs(differences), initial=0.0) or 1.0
    panel = (min(6.0, max(3.2, 0.11 * run.n_heads)), min(9.0, max(3.2, 0.11 * run.n_layers)))
    grey = "Grey: undefined." if np.isnan(differences).any() else ""
    dots = survivors_note(study, "Dots")
    caption = write_caption(
        study, "Blue: self-referent attention is the more focused.", dots, grey, intervals=False
    )
    options = {
        "right": 1.3,
        "gap": (0.4, 0.6),
        "sharey": True,
        "subplot_kw": {"facecolor": "#bbbbbb"},
    }
    figure, axes = open_panels(
        (1, len(contrasts)), panel, title, study.subtitle, caption, **options
    )
    rows = []
    for place, (a, b), values in zip(axes[0], contrasts, differences, strict=True):
        shown = place.pcolormesh(values, vmin=-limit, vmax=limit, cmap=DIVERGING)
        place.set_title(f"{NAMES[a]} - {NAMES[b]}")
        place.grid(False)
        style.label_cells(place.xaxis, run.n_heads, "head")
        style.label_cells(place.yaxis, run.n_layers, "layer" if place is axes[0, 0] else "")
        test, cells = (
            study.tests[a, b],
            {"category": a, "minus": b, "n": run.counts[a], "n_minus": run.counts[b]},
        )
        style.mark_cells(place, test["q"] < ALPHA)
        for at, mean in np.ndenumerate(values):
            measured = {"mean": mean} | {name: test[name][at] for name in ("p", "q", "p_max")}
            rows.append({"layer": at[0], "head": at[1]} | cells | measured)
    axes[0, 0].invert_yaxis()
    style.add_colour_bar(figure, axes, shown, "difference of normalised entropy")
    return figure, rows


def draw_token_attention(study, title):
    """3: what the final query attends to, head by head: the first three content tokens, and key 0 beside them."""
    run, prompts = study.run, np.arange(len(study.run.n_tokens))
    masses = (run.first_mass, run.sink_mass[prompts, :, :, run.n_tokens - 1])
    shown = np.unique(
        np.linspace(0, run.n_layers - 1, min(MAX_LAYERS_SHOWN, run.n_layers)).round().astype(int)
    )
    note = "Attention of the last token fed, summed over keys; the panels of a column share their axis, which ends at 0 and 1."
    caption = write_caption(study, note, sink_note(run))
    panel = (min(7.0, max(4.2, 0.11 * run.n_heads)), 1.55)
    options = {
        "handles": style.category_handles(study.names),
        "gap": (0.6, 0.35),
        "sharex": True,
        "sharey": "col",
    }
    figure, axes = open_panels((len(shown), 2), panel, title, study.subtitle, caption, **options)
    rows = []
    for column, (target, mass) in enumerate(zip(TARGETS, masses, strict=True)):
        measured = {
            name: estimate(study, mass[:, shown].astype(np.float64), name) for name in study.names
        }
        axes[0, column].set_title(TARGETS[target])
        for row, layer in enumerate(shown):
            here = {name: [part[row] for part in measured[name]] for name in study.names}
            style.draw_heads(axes[row, column], here)
            for name in study.names:
                columns = {
                    "layer": layer,
                    "category": name,
                    "target": target,
                    "n": run.counts[name],
                }
                rows += axis_rows("head", here[name], **columns)
        style.number_axis(axes[-1, column].xaxis, run.n_heads, "head")
        style.limit_to_mass(axes[0, column])
    for row, layer in enumerate(shown):
        axes[row, 0].set_ylabel(f"layer {layer}")
    return figure, rows


def draw_distributions(study, title):
    """4: the six heads with the largest |Hedges g| on one half of the prompts, measured on the other half.

    A head chosen and measured on the same prompts looks stronger than it is: the largest of many noisy values is noise.
    """
    values, category = study.values["normalised"], study.run.category
    chooses = split_prompts(category, study.run.pair_id, study.seed)
    halves = [
        [values[half & (category == name)] for name in REQUIRED] for half in (chooses, ~chooses)
    ]
    n = [len(part) for part in halves[1]]
    if min(n) < MIN_PROMPTS:
        return draw_reason(
            study,
            title,
            f"This figure needs {2 * MIN_PROMPTS} self-referent and {2 * MIN_PROMPTS} neutral prompts.",
        )
    sizes = {"hedges_g": hedges_g(*halves[1]), "hedges_g_choosing_half": hedges_g(*halves[0])}
    sizes |= dict(zip(("ci_low", "ci_high"), hedges_g_interval(*halves[1]), strict=True))
    heads = strongest_heads(sizes["hedges_g_choosing_half"], MAX_HEADS_SHOWN)
    if not heads:
        return draw_reason(
            study, title, "Hedges g is undefined for every head: no entropy varies between prompts."
        )
    note = (
        "g: Hedges g of self-referent - neutral with its 95 % interval (normal approximation), measured on the "
        f"{n[0]} self-referent and {n[1]} neutral prompts drawn; the heads were chosen on the other half, by |g|."
    )
    caption, columns = (
        write_caption(study, note, intervals=False),
        2 if len(heads) == 4 else min(3, len(heads)),
    )
    options = {"handles": style.category_handles(study.names), "gap": (0.75, 0.65), "heading": 2}
    figure, axes = open_panels(
        (-(-len(heads) // columns), columns), (3.3, 2.0), title, study.subtitle, caption, **options
    )
    for place in axes.flat[len(heads) :]:
        place.set_axis_off()
    for place, at in zip(axes.flat, heads, strict=False):
        style.draw_violins(
            place, {name: values[(~chooses & (category == name), *at)] for name in study.names}
        )
        g, low, high = (sizes[name][at] for name in ("hedges_g", "ci_low", "ci_high"))
        measured = (
            "g undefined: no spread" if np.isnan(g) else f"g = {g:+.2f} [{low:+.2f}, {high:+.2f}]"
        )
        place.set_title(f"layer {at[0]}, head {at[1]}\n{measured}", fontsize=9)
    for place in axes[:, 0]:
        place.set_ylabel(UNITS["normalised"])
    return figure, [point for at in heads for point in point_rows(study, at, ~chooses, sizes)]


def point_rows(study, at, drawn, sizes):
    """CSV rows of the points of one (layer, head), with the effect sizes {name: [layer, head]} of that head."""
    of_head = {"layer": at[0], "head": at[1]} | {name: size[at] for name, size in sizes.items()}
    return [
        of_head
        | {"category": study.run.category[i], "prompt_id": study.run.prompt_id[i]}
        | {"value": study.values["normalised"][(i, *at)]}
        for i in np.flatnonzero(drawn)
    ]


def draw_difference_bars(study, title):
    """5: how much more diffuse than self-referent attention the others are, layer by layer."""
    layers, others = study.layers("normalised"), [b for _, b in SHOWN if b in study.names]
    handles = [
        Patch(color=COLOURS[name], label=f"{NAMES[name]} - self-referent") for name in others
    ]
    panel = (min(13.0, max(5.5, 2 + 0.17 * study.run.n_layers)), 3.0)
    caption = write_caption(study, "Above 0: self-referent attention is the more focused.")
    figure, axes = open_panels((1, 1), panel, title, study.subtitle, caption, handles, heading=0)
    place, rows, width = axes[0, 0], [], 0.8 / len(others)
    for slot, name in enumerate(others):
        mean, low, high = estimate(study, layers, name, "self_referent")
        x = np.arange(len(mean)) + width * (slot - (len(others) - 1) / 2)
        place.bar(x, mean, width, color=COLOURS[name])
        place.vlines(x, low, high, color="black", linewidth=0.9)
        n = {"n": study.run.counts[name], "n_minus": study.run.counts["self_referent"]}
        rows += axis_rows("layer", (mean, low, high), category=name, minus="self_referent", **n)
    style.draw_zero(place)
    style.number_axis(place.xaxis, study.run.n_layers, "layer")
    place.set_ylabel("difference of normalised entropy")
    return figure, rows


def draw_top_heads(study, title):
    """6: the heads of every layer that differ most between self-referent and neutral; area is proportional to |difference|."""
    run, test = study.run, study.tests[REQUIRED]
    difference = test["difference"]
    k = min(5, -(-run.n_heads // 3))
    top = [
        (layer, head)
        for layer in range(run.n_layers)
        for _, head in strongest_heads(difference[[layer]], k)
    ]
    if not top:
        return draw_reason(
            study, title, "Normalised entropy is undefined for every head: no row sees two keys."
        )
    layer, head = np.array(top).T
    sizes = difference[layer, head]
    limit = np.abs(sizes).max() or 1.0
    area = MAX_AREA * np.abs(sizes) / limit
    handles = [style.area_handle(share * limit, MAX_AREA * share) for share in (1.0, 0.5, 0.2)]
    caption = write_caption(
        study,
        f"Largest |self-referent - neutral| in normalised entropy, {k} a layer; blue: self-referent is the more focused. "
        "Ranked and drawn from the same prompts, so the largest are overstated; figure 4 avoids that.",
        survivors_note(study, "Black edge", [REQUIRED]),
        intervals=False,
    )
    panel = (min(12.0, max(5.2, 2 + 0.16 * run.n_layers)), min(7.0, max(2.8, 0.11 * run.n_heads)))
    figure, axes = open_panels(
        (1, 1), panel, title, study.subtitle, caption, handles, heading=0, right=1.3
    )
    scale = {"vmin": -limit, "vmax": limit, "cmap": DIVERGING}
    passes = test["q"][layer, head] < ALPHA
    edge = {
        "edgecolors": np.where(passes, "black", "#bbbbbb"),
        "linewidths": np.where(passes, 1.0, 0.5),
    }
    edge |= {"clip_on": False, "zorder": 2}
    points = axes[0, 0].scatter(layer, head, s=area, c=sizes, **scale, **edge)
    style.number_axis(axes[0, 0].xaxis, run.n_layers, "layer")
    style.number_axis(axes[0, 0].yaxis, run.n_heads, "head")
    style.add_colour_bar(figure, axes, points, "self-referent - neutral")
    rank = np.concatenate([np.arange(1, 1 + np.sum(layer == i)) for i in np.unique(layer)])
    columns = {
        "layer": layer,
        "head": head,
        "rank_in_layer": rank,
        "mean": sizes,
        "marker_area": area,
    }
    columns |= {name: test[name][layer, head] for name in ("p", "q", "p_max")}
    return figure, [
        dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
    ]


def draw_edge_attention(study, title):
    """7: attention of the final query on the first and on the last content tokens, two sets that never overlap."""
    run, k = study.run, study.run.edge_tokens[:, None]
    masses = run.edge_mass.mean(axis=2, dtype=np.float64).transpose(2, 0, 1)
    short = int((k == 0).sum())
    caption = write_caption(
        study,
        "Attention of the last token fed per token, mean over heads: on the first and on the last k tokens of the text, "
        "k = min(3, length // 2).",
        f"Left out: {short} prompts of one token." if short else "",
        sink_note(run),
    )
    options = {"handles": style.category_handles(study.names), "sharey": True, "gap": (0.5, 0.6)}
    figure, axes = open_panels(
        (1, 2), layer_panel(study), title, study.subtitle, caption, **options
    )
    rows = []
    for place, position, mass in zip(axes[0], ("first", "last"), masses, strict=True):
        per_token = np.divide(mass, k, out=np.full(mass.shape, np.nan), where=k > 0)
        for slot, name in enumerate(study.names):
            measured = estimate(study, per_token, name)
            style.draw_series(place, measured, COLOURS[name], MARKERS[name], slot - 1.5)
            n = int(((run.category == name) & (run.edge_tokens > 0)).sum())
            rows += axis_rows("layer", measured, category=name, position=position, n=n)
        place.set_title(f"{position} content tokens")
        style.number_axis(place.xaxis, run.n_layers, "layer")
    axes[0, 0].set_ylabel("attention per token")
    style.limit_to_mass(axes[0, 0])
    return figure, rows


def draw_confounder_controls(study, title):
    """8: confounder - self beside its length null and beside confounder - third person, where only the person differs."""
    run, contrasts = study.run, [("confounder", "self_referent"), PAIRED]
    contrasts = [pair for pair in contrasts if set(pair) <= set(study.names)]
    paired = bool((run.pair_id[np.isin(run.category, PAIRED)] >= 0).all())
    looks = {
        "self_referent": ("black", "o"),
        "third_person": (COLOURS["third_person"], MARKERS["third_person"]),
    }
    labels = {"self_referent": "confounder - self-referent"}
    labels["third_person"] = "confounder - third person" + (" (paired)" if paired else "")
    handles = [style.series_handle(*looks[b], labels[b]) for _, b in contrasts]
    note = "Above 0: the confounder is the more diffuse."
    caption = write_caption(study, f"{NULL_NOTE}; for normalised entropy it is 0.", note)
    options = {"handles": [*handles, NULL_HANDLE], "heading": 0}
    figure, axes = open_panels(
        (1, 2), layer_panel(study), title, study.subtitle, caption, **options
    )
    rows = []
    for place, kind in zip(axes[0], PANELS, strict=True):
        layers, null = study.layers(kind), null_values(run, kind)
        style.draw_zero(place)
        for slot, (a, b) in enumerate(contrasts):
            expected = category_mean(null, run.category, a) - category_mean(null, run.category, b)
            measured = estimate(study, layers, a, b)
            style.draw_series(place, measured, *looks[b], slot - 0.5)
            if kind == "raw":
                style.draw_null(place, expected, looks[b][0])
            n = {"n": run.counts[a], "n_minus": run.counts[b]}
            rows += axis_rows(
                "layer", measured, kind=kind, category=a, minus=b, **n, length_null=expected
            )
        style.number_axis(place.xaxis, run.n_layers, "layer")
        place.set_ylabel(f"difference of {UNITS[kind]}")
    return figure, rows


def draw_indices(study, title):
    """9: RFC and RSI, raw beside normalised; the raw ones are worth only their distance from the length null."""
    run, looks = study.run, {"rfc": (style.RFC_COLOUR, "o"), "rsi": (style.RSI_COLOUR, "s")}
    if "confounder" not in study.names:
        del looks["rsi"]
    handles = [style.series_handle(*look, index.upper()) for index, look in looks.items()]
    undefined = np.flatnonzero(np.isnan(index_values(study.layers("raw"), run.category)["rfc"]))
    caption = write_caption(
        study,
        "RFC = 1 - H self / H neutral, RSI = (H confounder - H self) / H neutral: above 0 self-referent is the more focused.",
        f"{NULL_NOTE}; for normalised entropy it is 0.",
        f"Above the panels: layers that differ from the null by Benjamini-Hochberg at {ALPHA}, over all layers.",
        f"Undefined because H neutral is 0: layers {', '.join(map(str, undefined))}."
        if len(undefined)
        else "",
    )
    options = {"handles": [*handles, NULL_HANDLE], "sharey": True, "gap": (0.5, 0.6), "heading": 2}
    figure, axes = open_panels(
        (1, 2), layer_panel(study), title, study.subtitle, caption, **options
    )
    rows = []
    for place, kind in zip(axes[0], PANELS, strict=True):
        found = infer_layers(run, kind, study.seed, study.n_resamples)
        style.draw_zero(place)
        for slot, (index, look) in enumerate(looks.items()):
            numbers = found[index]
            measured = tuple(numbers[name] for name in ("estimate", "low", "high"))
            style.draw_series(place, measured, *look, slot - 0.5)
            style.mark_layers(place, numbers["q"] < ALPHA, *look, slot)
            if kind == "raw":
                style.draw_null(place, numbers["null"], look[0])
            tested = {name: numbers[name] for name in ("p", "q", "p_max")}
            rows += axis_rows(
                "layer", measured, kind=kind, index=index, length_null=numbers["null"], **tested
            )
        style.number_axis(place.xaxis, run.n_layers, "layer")
        place.set_title(UNITS[kind], pad=style.MARKED_PAD)
    axes[0, 0].set_ylabel("index")
    return figure, rows


FIGURES = {
    "visualization_1_layer_attention_lines": (draw_layer_lines, "Attention entropy by layer", ()),
    "visualization_2_heatmaps": (draw_heatmaps, "Entropy differences by layer and head", REQUIRED),
    "visualization_3_token_attention": (
        draw_token_attention,
        "What the final query attends to, by head",
        (),
    ),
    "visualization_4_distributions": (
        draw_distributions,
        "Heads that separate self-referent from neutral",
        REQUIRED,
    ),
    "visualization_5_delta_bar_summary": (
        draw_difference_bars,
        "Neutral and confounder minus self-referent by layer",
        REQUIRED,
    ),
    "visualization_6_top_k_head_ranking": (draw_top_heads, "Top heads of every layer", REQUIRED),
    "visualization_7_cross_token_control": (
        draw_edge_attention,
        "First versus last content tokens",
        (),
    ),
    "visualization_8_delta_h_per_layer": (
        draw_confounder_controls,
        "Confounder minus self-referent, against its controls",
        ("self_referent", "confounder"),
    ),
    "visualization_9_role_focus_separation": (
        draw_indices,
        "Role-Focus and Role-Separation by layer",
        REQUIRED,
    ),
}
