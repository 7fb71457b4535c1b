"""What interventions.py writes and prints of its edits: run folders, effects, strongest heads."""

import numpy as np
from rich.table import Column

from rolecircuits.drawing.tables import BOXED, WIDE, print_table
from rolecircuits.edits.effects import INDEX_METRICS, row_columns
from rolecircuits.inputs.errors import printable
from rolecircuits.runs.arrays import Run
from rolecircuits.runs.files import write_csv, write_json, write_prompts
from rolecircuits.runs.npz import write_npz
from rolecircuits.stats.indices import summarize

SHOWN = {
    "kl": "KL, nats",
    "surprisal_change": "answer surprisal",
    "rfc_change": "RFC of later layers",
    "rsi_change": "RSI of later layers",
}
SAID = ("no measurable effect", "no intervals")


def save_edit(folder, prompts, arrays, config):
    """An edit or the unedited pass as a run folder inside the run, less its manifest."""
    folder.mkdir()
    write_prompts(folder / "prompts.jsonl", prompts)
    write_npz(folder / "attention.npz", arrays)
    write_json(folder / "activations.json", summarize(Run(None, config, **arrays)))
    write_json(folder / "experiment_config.json", config)


def save_effects(folder, rows, notes, measured, config):
    """effects.csv, effects.json and experiment_config.json at the top of the run.

    measured  {name: what Bench.measure gave}    config  with "interventions", the plan that was run
    """
    labels = next(iter(measured.values()))["labels"]
    write_csv(folder / "effects.csv", rows, row_columns(labels))
    largest = {m: float(np.nanmax(e["effects"]["logit_change"])) for m, e in measured.items()}
    summary = {"schema_version": 1, "rows": rows, "notes": notes}
    summary |= {"interventions": config["interventions"], "largest_logit_change": largest}
    write_json(folder / "effects.json", summary)
    write_json(folder / "experiment_config.json", config | {"intervention": None})


def save_sweep(folder, arrays, config):
    """head_effects.npz and experiment_config.json of a sweep."""
    write_npz(folder / "head_effects.npz", arrays)
    write_json(folder / "experiment_config.json", config)


def print_effects(rows, notes):
    """The candidates' effects over all prompts beside their controls; effects.csv has the rest."""
    columns = [Column("intervention", no_wrap=True), "n", *SHOWN.values()]
    columns.insert(3, "top-1")
    cells = []
    for row in rows:
        if row["category"] == "all" and row["role"] == "candidate":
            kl, *others = (effect_cell(row, metric) for metric in SHOWN)
            cells.append([row["intervention"], row["n"], kl, f"{row['top1_change']:.0%}", *others])
    title = "effects over all prompts [95 % interval] | mean of the controls | q"
    print_table(columns, cells, title, file_width=WIDE, title_justify="left", **BOXED)
    for note in notes:
        if any(text in note for text in SAID):
            print(f"note: {printable(note)}")


def effect_cell(row, metric):
    """value [low, high] | control | q as text; what is undefined (NaN) is left out."""
    sign = "" if metric == "kl" else "+"
    value, low, high, control, p, q = (
        row[metric + part] for part in ("", "_low", "_high", "_control", "_p", "_q")
    )
    if np.isnan(value):
        return "-"
    text = f"{value:{sign}.2g}"
    if not np.isnan(low):
        text += f" [{low:{sign}.2g}, {high:{sign}.2g}]"
    if not np.isnan(p):
        text += f" | {control:{sign}.2g} | {q:.2g}"
    return text


def print_strongest(arrays, n=10):
    """The heads of head_effects.npz with the largest KL."""
    kl, cells = arrays["kl_by_prompt"].mean(axis=-1), []
    for flat in np.argsort(-kl, axis=None)[:n]:
        place = np.unravel_index(flat, kl.shape)
        top1 = arrays["top1_change_by_prompt"][place].mean()
        changes = (f"{arrays[metric][place]:+.4f}" for metric in INDEX_METRICS)
        cells.append([*place, f"{kl[place]:.4f}", f"{top1:.0%}", *changes])
    columns = ["layer", "head", "KL, nats", "top-1 changed"]
    columns += [SHOWN[metric] for metric in INDEX_METRICS]
    print_table(columns, cells, **BOXED)
