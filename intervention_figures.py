"""Figures of interventions: numbers in, (matplotlib Figure, rows of its CSV) out. No model, no torch.

    effects      each candidate's effect beside the mean of its random control heads, by category, with 95 % intervals
    sweep        effect of ablating each head on the next token and on RFC and RSI of later layers: heatmaps [layer, head]

    draw_interventions("results_activation_analysis/latest_intervention", "figures/intervention")

writes effects.png, the sweep heatmap if a sweep lies beside the run, and the nine figures of every sub-folder under
<output_dir>/<intervention>/. KL and surprisal are in nats; a change is edited - unedited.
"""

from pathlib import Path

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D

from output_manager import check_files, prepare_folder, read_config, read_json, read_npz, write_csv
from plot_style import (
    COLOURS,
    DIVERGING,
    MARKERS,
    NAMES,
    NULL_COLOUR,
    RFC_COLOUR,
    RSI_COLOUR,
    number_axis,
    open_panels,
    save_figure,
)
from rolecircuits.inputs.categories import CATEGORIES
from rolecircuits.inputs.errors import UserError, printable

PANELS = (
    ("kl", "KL from unedited (nats)"),
    ("surprisal_change", "surprisal of unedited answer (nats)"),
    ("rfc_change", "RFC of later layers"),
    ("rsi_change", "RSI of later layers"),
)
INDEX_COLOURS = {"rfc_change": RFC_COLOUR, "rsi_change": RSI_COLOUR}
ROW_HEIGHT, MAX_SHOWN = 0.44, 30
ROLES = ("candidate", "control")
EFFECT_PARTS = ("", "_low", "_high", "_control", "_p", "_q")
LARGEST = 1e100  # numbers beyond this are damage: no axis holds them
NO_KL = 1e-3  # rounding may take a divergence of float32 logits a little below 0
SWEEP_ARRAYS = ("kl", "category", "kl_by_prompt", "rfc_change", "rsi_change")
EFFECTS_CAPTION = (
    "Points: effect of an edit with its 95 % bootstrap interval over prompts, by category for KL and surprisal, one value "
    "for RFC and RSI. Crosses: mean of the same edit on random other heads of the layer. q: sign-flip test over prompts of "
    "candidate minus controls, Benjamini-Hochberg; for KL and surprisal over all prompts. Later layers: those after the edit."
)


def draw_effects(rows, label):
    """(Figure, rows): candidates down, one panel a metric, controls as crosses; rows as in effects.json."""
    candidates = [row for row in rows if row["role"] == "candidate"] or rows
    names = list(dict.fromkeys(row["intervention"] for row in candidates))
    shown = names[:MAX_SHOWN]
    handles = [
        Line2D([], [], color=COLOURS[c], marker=MARKERS[c], linestyle="", markersize=5, label=NAMES[c])
        for c in CATEGORIES
    ]
    handles.append(Line2D([], [], color=NULL_COLOUR, marker="x", linestyle="", label="mean of control heads"))
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
            1.0, k, printable(name), ha="right", va="center", fontsize=size, transform=names_axis.get_yaxis_transform()
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
        spread = np.linspace(-0.24, 0.24, len(present)) if len(present) > 1 else np.zeros(len(present))
        points = [
            (k + d, r, COLOURS[r["category"]], MARKERS[r["category"]]) for d, r in zip(spread, present, strict=True)
        ]
    for y, row, colour, marker in points:
        if row[metric] is None:
            continue
        if row[f"{metric}_low"] is not None:
            axis.plot([row[f"{metric}_low"], row[f"{metric}_high"]], [y, y], color=colour, linewidth=1.3)
        axis.plot([row[metric]], [y], color=colour, marker=marker, markersize=4)
        if row[f"{metric}_control"] is not None:
            axis.plot([row[f"{metric}_control"]], [y], color=NULL_COLOUR, marker="x", markersize=5)
    if overall[metric] is None:
        axis.text(0.98, k, "no later layer", transform=axis.get_yaxis_transform(), ha="right", va="center", fontsize=7)
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
    panels += [(f"change of {m[:3].upper()}, later layers", arrays[m], DIVERGING) for m in INDEX_COLOURS]
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
                f"kl_{c}": float(v) for c, v in zip(arrays["category"], arrays["kl"][layer, head], strict=True)
            }
            rows.append(row | by_category)
    return figure, rows


def read_effects(folder):
    """effects.json of an intervention run, its rows checked for what the figure and its CSV need."""
    path = folder / "effects.json"
    found = read_json(path)
    rows = found.get("rows") if isinstance(found, dict) else None
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: rows is missing or empty; run interventions.py again")
    texts = ("intervention", "role", "category")
    numbers = ["n", *(metric + part for metric, _ in PANELS for part in EFFECT_PARTS)]
    for i, row in enumerate(rows):
        for name in (*texts, *numbers):
            if not isinstance(row, dict) or name not in row:
                raise UserError(f"{path}: rows[{i}] lacks {name}; run interventions.py again")
            value = row[name]
            finite = type(value) in (int, float) and abs(value) <= LARGEST  # False for NaN
            if not (isinstance(value, str) and value if name in texts else value is None or finite):
                raise UserError(f"{path}: rows[{i}].{name} is {printable(value)[:60]}; it is damaged")
        for name, allowed in (("category", ("all", *CATEGORIES)), ("role", ROLES)):
            if row[name] not in allowed:
                raise UserError(f"{path}: rows[{i}].{name} is {printable(row[name])[:60]!r}; it is damaged")
        for metric, _ in PANELS:
            if (row[f"{metric}_low"] is None) != (row[f"{metric}_high"] is None):
                raise UserError(f"{path}: rows[{i}] has half an interval of {metric}; it is damaged")
    whole = {(row["intervention"], row["role"]) for row in rows if row["category"] == "all"}
    for i, row in enumerate(rows):
        if (row["intervention"], row["role"]) not in whole:
            raise UserError(f"{path}: rows[{i}]: {printable(row['intervention'])[:60]} has no row for all categories")
    return rows


def read_sweep(folder, verify=True):
    """(arrays, label, method) of a sweep run, shapes and values checked."""
    folder = check_files(folder, ("head_effects.npz", "experiment_config.json"), verify)
    path = folder / "head_effects.npz"
    arrays, config = read_npz(path, list(SWEEP_ARRAYS)), read_config(folder)
    sizes = arrays["kl"].shape
    prompts = arrays["kl_by_prompt"].shape[-1:]
    shapes = {"kl": sizes, "category": sizes[2:], "kl_by_prompt": sizes[:2] + prompts}
    shapes |= dict.fromkeys(INDEX_COLOURS, sizes[:2])
    for name, shape in shapes.items():
        kind = "U" if name == "category" else "f"
        if len(sizes) != 3 or 0 in sizes + prompts or (arrays[name].shape, arrays[name].dtype.kind) != (shape, kind):
            found = f"{arrays[name].dtype} {arrays[name].shape}"
            raise UserError(f"{path}: {name} is {found}, expected {shape} of kind {kind}")
    unknown = set(arrays["category"].tolist()) - set(CATEGORIES)
    if unknown:
        raise UserError(f"{path}: unknown category {printable(sorted(unknown)[0])!r}")
    for name in ("kl", "kl_by_prompt"):
        if not (np.isfinite(arrays[name]).all() and (arrays[name] > -NO_KL).all()):
            raise UserError(f"{path}: {name} holds a value that no KL divergence has")
    for name in INDEX_COLOURS:
        if np.isinf(arrays[name]).any():
            raise UserError(f"{path}: {name} is infinite")
    sweep = config.get("sweep")
    if not isinstance(sweep, dict) or not isinstance(sweep.get("method"), str):
        raise UserError(f"{folder / 'experiment_config.json'}: sweep.method is missing; it is damaged")
    label = f"{printable(config['model']['id'])}, {config['prompts']['format']} prompts"
    return arrays, label, printable(sweep["method"])


def draw_interventions(input_dir, output_dir, file_format="png", sweep_dir=None, draw_run=None, verify=True):
    """Draw an intervention run; returns the paths of effects and sweep.

    sweep_dir  a sweep run, by default latest_sweep beside the run if there is one
    draw_run   function (sub-folder, output folder, file_format, verify) that draws the nine figures of a run:
               visualize_results.visualize; None leaves them out
    verify     False leaves out the SHA-256 of the files
    """
    folder = check_files(input_dir, ("effects.json", "experiment_config.json"), verify)
    rows, config = read_effects(folder), read_config(folder)
    n = printable(config["prompts"].get("n", "unknown"))
    label = f"{printable(config['model']['id'])}, {config['prompts']['format']} prompts, n = {n}"
    output, drawings = prepare_folder(output_dir), {"effects": draw_effects(rows, label)}
    sweep_dir = Path(sweep_dir) if sweep_dir else Path(input_dir).parent / "latest_sweep"
    if (sweep_dir / "head_effects.npz").is_file():
        drawings["head_sweep"] = draw_sweep(*read_sweep(sweep_dir, verify))
    paths = []
    for name, (figure, data) in drawings.items():
        paths.append(output / f"{name}.{file_format}")
        save_figure(figure, paths[-1])
        write_csv(output / "data" / f"{name}.csv", data)
    for sub in sorted(path.parent for path in folder.glob("*/manifest.json")) if draw_run else []:
        if sub.is_symlink():
            raise UserError(f"{sub}: is a symlink; a run holds its own folders")
        draw_run(sub, output / sub.name, file_format, verify)
    return paths
