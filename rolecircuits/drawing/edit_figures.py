"""Figures of interventions: numbers in, (matplotlib Figure, rows of its CSV) out.

    effects   each candidate's effect with its interval, before the other heads of its layer
    sweep     effect of ablating each head on the next token and on RFC and RSI of later layers
    overlay   RFC, RSI and entropy of every layer, edited over unedited, and what changed

KL and surprisal are in nats; a change is edited - unedited.
"""

import numpy as np
from matplotlib.colors import Normalize

from rolecircuits.drawing import style
from rolecircuits.drawing.study import CUT_NOTE, ZERO, describe_n
from rolecircuits.drawing.style import CONTROL_COLOUR, DIVERGING, Grid, Line2D
from rolecircuits.inputs.arguments import DEFAULT_SEED
from rolecircuits.inputs.categories import REQUIRED, order_categories
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.runs.arrays import Run
from rolecircuits.runs.edit_results import EFFECT_PARTS, csv_rows
from rolecircuits.stats.audit import contrast_reason, name_units
from rolecircuits.stats.index_inference import COMPARED, infer_indices
from rolecircuits.stats.indices import index_values, layer_values
from rolecircuits.stats.moments import category_mean
from rolecircuits.stats.resampling import N_RESAMPLES, infer_mean, untestable_reason
from rolecircuits.stats.units import frame_values, labels_of

PANELS = {
    "kl": "KL from unedited (nats)",
    "surprisal_change": "surprisal of unedited answer (nats)",
    "rfc_change": "RFC of later layers",
    "rsi_change": "RSI of later layers",
}
INDEX_COLOURS = {"rfc_change": style.RFC_COLOUR, "rsi_change": style.RSI_COLOUR}
UNEDITED = {"linestyle": ":", "linewidth": 1.0, "markersize": 4, "markerfacecolor": "white"}
EDITED = {"linestyle": "-", "linewidth": 1.3, "markersize": 3}
TICKS = {"color": CONTROL_COLOUR, "marker": "|", "ls": "", "markersize": 4, "alpha": 0.7}
PARTS = ("estimate", "low", "high", "p")
ROW_HEIGHT, MAX_SHOWN = 0.56, 30
NAME_WIDTH, NAME_POINTS = 2.3, 8.5  # inches a name may take, and the largest font for it
EFFECTS_CAPTION = (
    "Points: effect of an edit with its 95 % bootstrap interval over prompts (frames), by "
    "category for KL and surprisal, one value for RFC and RSI. Grey: its controls, the same edit "
    "on other heads of the layer (all, or a draw of 31) unless the plan names its own. rank: of "
    "the size of the effect over all prompts among these, 1 the largest. Later layers: those after "
    "the edit. RFC, RSI above 0: by the edit self-referent gains focus."
)


def draw_effects(rows, label):
    """Candidates down, one panel a metric, their controls as grey ticks behind.

    rows   of effects.json      label  model, format and n, for the subtitle
    """
    candidates = [row for row in rows if row["role"] == "candidate"] or rows
    looks = category_looks_of(rows)
    names = list(dict.fromkeys(row["intervention"] for row in candidates))
    of_place = {(row["intervention"], row["category"]): row for row in rows}
    shown = names[:MAX_SHOWN]
    cut = f"; the first {MAX_SHOWN} of {len(names)}" if len(names) > MAX_SHOWN else ""
    handles = [
        Line2D([], [], color=look.colour, marker=look.marker, ls="", markersize=5, label=look.label)
        for look in looks.values()
    ]
    handles.append(Line2D([], [], **TICKS, label="other heads of the layer"))
    height = max(1.6, ROW_HEIGHT * len(shown) + 0.3)
    figure, axes = style.open_panels(
        Grid((1, len(PANELS) + 1), (NAME_WIDTH, height), gap=(0.35, 0.6)),
        (
            "Effect of each edit beside the other heads of its layer",
            f"{label}{cut}",
            EFFECTS_CAPTION,
        ),
        handles,
        sharey=True,
    )
    names_axis, *panels = axes[0]
    names_axis.axis("off")
    longest = max(len(name) for name in shown)
    look = {"ha": "right", "va": "center", "transform": names_axis.get_yaxis_transform()}
    look |= {"fontsize": min(NAME_POINTS, NAME_WIDTH * 72 / (0.62 * longest))}
    for height, name in enumerate(shown):
        names_axis.text(1.0, height, printable(name), **look)
    for axis, (metric, title) in zip(panels, PANELS.items(), strict=True):
        for height, name in enumerate(shown):
            own = [row for row in candidates if row["intervention"] == name]
            others = {
                row["category"]: [
                    found[metric]
                    for control in row["controls"].split()
                    if (found := of_place.get((control, row["category"])))
                ]
                for row in own
            }
            draw_effect(axis, height, own, others, metric, looks)
        axis.axvline(0, color="black", linewidth=0.7)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("change" if metric != "kl" else "nats")
        axis.tick_params(labelleft=False)
    panels[0].set_ylim(len(shown) - 0.5, -0.5)
    panels[0].set_yticks(range(len(shown)))
    columns = ["intervention", "role", "category", "n"]
    columns += [metric + part for metric in PANELS for part in EFFECT_PARTS]
    kept = [{c: np.nan if row[c] is None else row[c] for c in columns} for row in rows]
    return figure, csv_rows(kept)


def category_looks_of(rows):
    """{category: Look} of rows of effects.json, without the one over all categories."""
    names = order_categories(row["category"] for row in rows if row["category"] != "all")
    looks = style.category_looks(names)
    return {name: looks[name] for name in names}


def draw_effect(axis, height, rows, others, metric, looks):
    """One intervention in one panel, around `height`.

    rows  its rows of effects.json    others  {category: effects of its controls}
    """
    overall = next(row for row in rows if row["category"] == "all")
    if metric in INDEX_COLOURS:
        points = [(height, overall, INDEX_COLOURS[metric], "o")]
    else:
        present = [row for c in looks for row in rows if row["category"] == c]
        spread = np.linspace(-0.18, 0.3, len(present)) if len(present) > 1 else [0.0]
        points = [
            (height + aside, row, *looks[row["category"]][:2])
            for aside, row in zip(spread, present, strict=False)
        ]
    for y, row, colour, marker in points:
        value, low, high = (row[metric + part] for part in ("", "_low", "_high"))
        if value is None:
            continue
        ticks = [effect for effect in others[row["category"]] if effect is not None]
        axis.plot(ticks, [y] * len(ticks), **TICKS, zorder=1.5)
        if low is not None:
            axis.plot([low, high], [y, y], color=colour, linewidth=1.3)
        axis.plot([value], [y], color=colour, marker=marker, markersize=4)
    place = {"transform": axis.get_yaxis_transform(), "ha": "right"}
    if overall[metric] is None:
        axis.text(0.98, height, "no later layer", va="center", fontsize=7, **place)
    elif overall[f"{metric}_rank"] is not None:
        rank = f"rank {overall[f'{metric}_rank']:g} of {overall['pool']:g}"
        axis.text(1.0, height - 0.27, rank, va="bottom", fontsize=6.5, color="#444444", **place)


def draw_sweep(arrays, label, method):
    """Effect of ablating every head: heatmaps [layer, head].

    arrays  of head_effects.npz      label  model and format      method  what was done to a head

    KL is shown as its square root (it is quadratic in the size of an edit); RFC and RSI are
    centred at 0.
    """
    kl = arrays["kl_by_prompt"].mean(axis=-1)
    n_layers, n_heads = kl.shape
    panels = [("square root of KL (nats)", np.sqrt(np.maximum(kl, 0.0)), "viridis")]
    panels += [
        (f"change of {name[:3].upper()}, later layers", arrays[name], DIVERGING)
        for name in INDEX_COLOURS
    ]
    size = (max(2.2, min(3.6, 0.12 * n_heads + 1.2)), max(1.8, min(6.5, 0.14 * n_layers + 0.8)))
    caption = (
        f"Each head in turn, {method}; means over prompts. RFC and RSI: normalised, mean over the "
        "layers after the ablated one; red: self-referent gains focus by the edit, blue: it loses, "
        "white: 0; the last layer has none (hatched). Numbers, also by category, in data/."
    )
    texts = ("All heads ablated, one at a time", label, caption)
    figure, axes = style.open_panels(Grid((1, 3), size, gap=(1.15, 0.6), right=0.9), texts)
    look = {"aspect": "auto", "origin": "upper", "interpolation": "nearest"}
    for axis, (title, values, colours) in zip(axes[0], panels, strict=True):
        limit = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
        scale = Normalize(-limit if colours == DIVERGING else 0.0, limit)
        axis.set_facecolor("#dddddd")
        if np.isnan(values).any():
            axis.patch.set_hatch("///")
        picture = axis.imshow(np.ma.masked_invalid(values), cmap=colours, norm=scale, **look)
        axis.grid(False)
        axis.set_title(title, fontsize=9)
        style.number_axis(axis.xaxis, n_heads, "head")
        style.number_axis(axis.yaxis, n_layers, "layer")
        axis.invert_yaxis()  # layer 0 at the top, as in every map of heads
        figure.colorbar(picture, cax=axis.inset_axes([1.04, 0, 0.05, 1])).ax.grid(False)
    rows = []
    for layer, head in np.ndindex(kl.shape):
        row = {"layer": layer, "head": head, "kl": kl[layer, head]}
        row |= {name: arrays[name][layer, head] for name in INDEX_COLOURS}
        names = [f"kl_{category}" for category in arrays["category"]]
        rows.append(row | dict(zip(names, arrays["kl"][layer, head], strict=True)))
    return figure, rows


def draw_overlay(edited: Run, unedited: Run, n_resamples=N_RESAMPLES, seed=DEFAULT_SEED):
    """(Figure, rows): RFC, RSI and entropy by layer, edited over unedited left, what changed right.

    Normalised entropy; a change is edited - unedited, its interval drawn over the units of the set.
    """
    if edited.prompt_id.tolist() != unedited.prompt_id.tolist():
        raise UserError(f"{edited.path}: its prompts are not those of the unedited run beside it")
    lines, reasons = overlay_lines(edited, unedited, (n_resamples, seed))
    looks, n_layers = style.category_looks(unedited.counts), edited.n_layers
    used = [style.INDEX_LOOKS[name] for name in lines if name != "entropy"]
    handles = [style.series_handle(*look) for look in used]
    handles += style.category_handles(looks, unedited.counts)
    look = {"color": "black", "marker": "o"}
    handles.append(Line2D([], [], label="edited", **look, **EDITED))
    handles.append(Line2D([], [], label="unedited", **look, **UNEDITED))
    caption = (
        "Normalised entropy, its RFC and RSI (above 0: self-referent is the more focused). Right: "
        f"edited - unedited with 95 % bootstrap-t intervals over {name_units(unedited)} "
        f"({n_resamples:,} resamples). Vertical line: the edited layer; layers before it do not "
        "change. "
    )
    caption += " ".join([CUT_NOTE, *(f"{reason}." for reason in dict.fromkeys(reasons))])
    n = describe_n(unedited, labels_of(unedited)[0])
    panel = (max(4.2, min(7.0, 2.4 + 0.085 * n_layers)), 2.0)
    texts = f"{edited.edit}: edited over unedited, by layer", f"{unedited.label}; n = {n}", caption
    grid = Grid((len(lines), 2), panel, gap=(0.8, 0.45), heading=0)
    figure, panels = style.open_panels(grid, texts, handles)
    rows = []
    for (level, change), (name, series) in zip(panels, lines.items(), strict=True):
        levels, changes = [ZERO] if name != "entropy" else [], [ZERO]
        for slot, (category, (before, after, measured)) in enumerate(series.items()):
            look = looks[category] if name == "entropy" else style.INDEX_LOOKS[name]
            layers = np.arange(n_layers) + (0.1 * slot if n_layers == 1 else 0.0)
            colours = {"color": look.colour, "marker": look.marker}
            level.plot(layers, before, **colours, **UNEDITED)
            level.plot(layers, after, **colours, **EDITED)
            style.draw_series(change, measured[:3], look.colour, look.marker, slot)
            levels += [(before, np.nan, np.nan), (after, np.nan, np.nan)]
            changes.append(measured[:3])
            rows += [
                {"quantity": name, "category": category, "layer": layer}
                | {"unedited_estimate": before[layer], "edited_estimate": after[layer]}
                | {
                    f"change_{part}": values[layer]
                    for part, values in zip(PARTS, measured, strict=True)
                }
                for layer in range(n_layers)
            ]
        style.limit_to_points([level], levels)
        style.limit_to_points([change], changes)
        style.draw_zero(change)
        if name != "entropy":
            style.draw_zero(level)
        level.set_ylabel(name if name == "entropy" else name.upper())
        change.set_ylabel("edited - unedited")
        for place in (level, change):
            place.axvline(edited.config["intervention"]["layer"], color="black", linewidth=0.6)
            style.number_axis(place.xaxis, n_layers, "layer" if name == "entropy" else "")
    return figure, rows


def overlay_lines(edited: Run, unedited: Run, draws):
    """({"rfc", "rsi" or "entropy": {category: (unedited, edited, change)}}, reasons).

    The category of an index is "". unedited, edited [layer]; change (estimate, low, high, p).
    reasons  why an interval is missing
    draws  (number of resamples, seed)
    """
    category, unit = labels_of(unedited)
    before, after = (frame_values(run, layer_values(run)) for run in (unedited, edited))
    lines, reasons, blank = {}, [], np.full((3, edited.n_layers), np.nan)
    if set(REQUIRED) <= set(unedited.counts):
        inferred = infer_indices(after, category, unit, before, *draws)
        levels = [index_values(values, category) for values in (before, after)]
        for index, pair in COMPARED.items():
            if set(pair) <= set(unedited.counts):
                reason, found = contrast_reason(unedited, pair), inferred[index]
                reasons += [f"{index.upper()}: {reason}"] if reason else []
                rest = blank if reason else (found.low, found.high, found.p)
                lines[index] = {"": (*(own[index] for own in levels), (found.estimate, *rest))}
    lines["entropy"] = {}
    for name in unedited.counts:
        rows = category == name
        reason = untestable_reason(category, unit, [name], name_units(unedited))
        reasons += [reason] if reason else []
        found = infer_mean((after - before)[rows], None, unit[rows], n_resamples=draws[0])
        rest = blank if reason else (found.low, found.high, found.p)
        means = (category_mean(values, category, name) for values in (before, after))
        lines["entropy"][name] = (*means, (found.estimate, *rest))
    return lines, reasons
