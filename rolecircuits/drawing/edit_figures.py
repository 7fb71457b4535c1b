"""Figures of interventions: numbers in, (matplotlib Figure, rows of its CSV) out. No model, no torch.

    effects      each candidate's effect beside the mean of its random control heads, by category, with 95 % intervals
    sweep        effect of ablating each head on the next token and on RFC and RSI of later layers: heatmaps [layer, head]

    draw_interventions("results_activation_analysis/latest_intervention", "figures/intervention")

writes effects.png, the sweep heatmap if a sweep lies beside the run, and the nine figures of every sub-folder under
<output_dir>/<intervention>/. KL and surprisal are in nats; a change is edited - unedited.
"""

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D

from rolecircuits.drawing.style import (
    COLOURS,
    DIVERGING,
    MARKERS,
    NAMES,
    NULL_COLOUR,
    RFC_COLOUR,
    RSI_COLOUR,
    number_axis,
    open_panels,
)
from rolecircuits.inputs.categories import CATEGORIES
from rolecircuits.inputs.errors import printable
from rolecircuits.runs.edit_results import EFFECT_PARTS

PANELS = (
    ("kl", "KL from unedited (nats)"),
    ("surprisal_change", "surprisal of unedited answer (nats)"),
    ("rfc_change", "RFC of later layers"),
    ("rsi_change", "RSI of later layers"),
)
INDEX_COLOURS = {"rfc_change": RFC_COLOUR, "rsi_change": RSI_COLOUR}
ROW_HEIGHT, MAX_SHOWN = 0.44, 30
EFFECTS_CAPTION = (
    "Points: effect of an edit with its 95 % bootstrap interval over prompts, by category for KL and surprisal, one value "
    "for RFC and RSI. Crosses: mean of the same edit on random other heads of the layer. q: test over prompts of "
    "candidate minus controls, Benjamini-Hochberg; for KL and surprisal over all prompts. Later layers: those after the edit."
)


def draw_effects(rows, label):
    """(Figure, rows): candidates down, one panel a metric, controls as crosses; rows as in effects.json."""
    candidates = [row for row in rows if row["role"] == "candidate"] or rows
    names = list(dict.fromkeys(row["intervention"] for row in candidates))
    shown = names[:MAX_SHOWN]
    handles = [
        Line2D(
            [], [], color=COLOURS[c], marker=MARKERS[c], linestyle="", markersize=5, label=NAMES[c]
        )
        for c in CATEGORIES
    ]
    handles.append(
        Line2D([], [], color=NULL_COLOUR, marker="x", linestyle="", label="mean of control heads")
    )
    cut = f"; the first {MAX_SHOWN} of {len(names)}" if len(names) > MAX_SHOWN else ""
    height = max(1.6, ROW_HEIGHT * len(shown) + 0.3)
    longest = max(len(name) for name in shown)
    gap = 0.35
    figure, axes = open_panels(
        (1, len(PANELS) + 1),
        (2.3, height),
        "Effect of each edit beside random heads of its layer",
        f"{label}{cut}",
        EFFECTS_CAPTION,
        handles,
        gap=(gap, 0.6),
        sharey=True,
    )
    names_axis, *panels = axes[0]
    names_axis.axis("off")
    for k, name in enumerate(shown):
        size = min(8.5, 2.3 * 72 / (0.62 * longest))
        names_axis.text(
            1.0,
            k,
            printable(name),
            ha="right",
            va="center",
            fontsize=size,
            transform=names_axis.get_yaxis_transform(),
        )
    for axis, (metric, title) in zip(panels, PANELS, strict=True):
        for k, name in enumerate(shown):
            own = [row for row in candidates if row["intervention"] == name]
            _draw_metric(axis, k, own, metric)
        axis.axvline(0, color="black", linewidth=0.7)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("change" if metric != "kl" else "nats")
        axis.tick_params(labelleft=False)
    panels[0].set_ylim(len(shown) - 0.5, -0.5)
    panels[0].set_yticks(range(len(shown)))
    columns = ["intervention", "role", "category", "n"]
    columns += [m + part for m, _ in PANELS for part in EFFECT_PARTS]
    return figure, [{c: np.nan if row[c] is None else row[c] for c in columns} for row in rows]


def _draw_metric(axis, k, rows, metric):
    """One intervention in one panel, around height k."""
    overall = next(row for row in rows if row["category"] == "all")
    if metric in INDEX_COLOURS:
        points = [(k, overall, INDEX_COLOURS[metric], "o")]
    else:
        present = [row for c in CATEGORIES for row in rows if row["category"] == c]
        spread = (
            np.linspace(-0.24, 0.24, len(present)) if len(present) > 1 else np.zeros(len(present))
        )
        points = [
            (k + d, r, COLOURS[r["category"]], MARKERS[r["category"]])
            for d, r in zip(spread, present, strict=True)
        ]
    for y, row, colour, marker in points:
        if row[metric] is None:
            continue
        if row[f"{metric}_low"] is not None:
            axis.plot(
                [row[f"{metric}_low"], row[f"{metric}_high"]], [y, y], color=colour, linewidth=1.3
            )
        axis.plot([row[metric]], [y], color=colour, marker=marker, markersize=4)
        if row[f"{metric}_control"] is not None:
            axis.plot([row[f"{metric}_control"]], [y], color=NULL_COLOUR, marker="x", markersize=5)
    if overall[metric] is None:
        axis.text(
            0.98,
            k,
            "no later layer",
            transform=axis.get_yaxis_transform(),
            ha="right",
            va="center",
            fontsize=7,
        )
    elif overall[f"{metric}_q"] is not None:
        q = f"q {overall[f'{metric}_q']:.2g}"
        place = {"ha": "right", "va": "bottom", "fontsize": 6.5, "color": "#444444"}
        axis.text(1.0, k - 0.3, q, transform=axis.get_yaxis_transform(), **place)


def draw_sweep(arrays, label, method):
    """(Figure, rows): effect of ablating every head; arrays as in head_effects.npz.

    KL is shown as its square root (it is quadratic in the size of an edit); RFC and RSI are centred at 0.
    """
    kl = arrays["kl_by_prompt"].mean(axis=-1)
    panels = [("square root of KL (nats)", np.sqrt(np.maximum(kl, 0.0)), "viridis")]
    panels += [
        (f"change of {m[:3].upper()}, later layers", arrays[m], DIVERGING) for m in INDEX_COLOURS
    ]
    n_layers, n_heads = kl.shape
    size = (max(2.2, min(3.6, 0.12 * n_heads + 1.2)), max(1.8, min(6.5, 0.14 * n_layers + 0.8)))
    caption = (
        f"Each head in turn, {method}; means over prompts. RFC and RSI: normalised, mean over the layers after the ablated "
        "one, colours centred at 0; the last layer has none (hatched). Numbers, also by category, in data/."
    )
    figure, axes = open_panels(
        (1, 3), size, "All heads ablated, one at a time", label, caption, gap=(1.15, 0.6), right=0.9
    )
    for axis, (title, values, colours) in zip(axes[0], panels, strict=True):
        limit = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
        scale = Normalize(-limit if colours == DIVERGING else 0.0, limit)
        axis.set_facecolor("#dddddd")
        if np.isnan(values).any():
            axis.patch.set_hatch("///")
        picture = axis.imshow(
            np.ma.masked_invalid(values),
            cmap=colours,
            norm=scale,
            aspect="auto",
            origin="lower",
            interpolation="nearest",
        )
        axis.grid(False)
        axis.set_title(title, fontsize=9)
        number_axis(axis.xaxis, n_heads, "head")
        number_axis(axis.yaxis, n_layers, "layer")
        figure.colorbar(picture, cax=axis.inset_axes([1.04, 0, 0.05, 1])).ax.grid(False)
    rows = []
    for layer in range(n_layers):
        for head in range(n_heads):
            row = {"layer": layer, "head": head, "kl": float(kl[layer, head])}
            row |= {m: float(arrays[m][layer, head]) for m in INDEX_COLOURS}
            by_category = {
                f"kl_{c}": float(v)
                for c, v in zip(arrays["category"], arrays["kl"][layer, head], strict=True)
            }
            rows.append(row | by_category)
    return figure, rows
