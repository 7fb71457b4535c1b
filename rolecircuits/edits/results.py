"""What interventions.py writes and prints of its edits: run folders, effects, strongest heads."""

import numpy as np
from rich.table import Column

from rolecircuits.drawing.tables import BOXED, WIDE, print_table, right
from rolecircuits.edits.effects import INDEX_METRICS, row_columns
from rolecircuits.inputs.arguments import ALPHA
from rolecircuits.inputs.errors import printable
from rolecircuits.runs.arrays import Run
from rolecircuits.runs.files import write_csv, write_json, write_prompts
from rolecircuits.runs.npz import write_npz
from rolecircuits.stats.indices import summarize

SHOWN = {
    "kl": "KL, nats",
    "top1_change": "top-1 changed",
    "surprisal_change": "answer surprisal",
    "rfc_change": "RFC of later layers",
    "rsi_change": "RSI of later layers",
}
UNSIGNED = ("kl", "top1_change")
SAID = ("no measurable effect", "no interval")


def save_edit(folder, prompts, arrays, config):
    """An edit or the unedited pass as a run folder inside the run, less its manifest."""
    folder.mkdir()
    write_prompts(folder / "prompts.jsonl", prompts)
    write_npz(folder / "attention.npz", arrays)
    write_json(folder / "activations.json", summarize(Run(None, config, **arrays)))
    write_json(folder / "experiment_config.json", config)


def save_effects(folder, effects, measured, config):
    """effects.csv, effects.json and experiment_config.json at the top of the run.

    effects   (rows, set tests, notes) of effects.tabulate_effects
    measured  {name: what Bench.measure gave}    config  with "interventions", the plan that was run
    """
    rows, tests, notes = effects
    labels = next(iter(measured.values()))["labels"]
    write_csv(folder / "effects.csv", rows, row_columns(labels))
    names = [entry["folder"] for entry in config["interventions"]]
    changes = {name: measured[name]["effects"]["logit_change"] for name in names}
    largest = {name: float(np.nanmax(change)) for name, change in changes.items()}
    summary = {"schema_version": 1, "rows": rows, "set_tests": tests, "notes": notes}
    summary |= {"interventions": config["interventions"], "largest_logit_change": largest}
    write_json(folder / "effects.json", summary)
    write_json(folder / "experiment_config.json", config | {"intervention": None})


def save_sweep(folder, arrays, config):
    """head_effects.npz and experiment_config.json of a sweep."""
    write_npz(folder / "head_effects.npz", arrays)
    write_json(folder / "experiment_config.json", config)


def print_effects(rows, tests, notes):
    """The candidates' effects over all prompts beside their controls; effects.csv has the rest."""
    columns = [Column("intervention", no_wrap=True), "n", "effect", "mean [95 % interval]"]
    columns += [right("rank"), right("mean of controls"), right("q")]
    cells = []
    for row in rows:
        if row["category"] == "all" and row["role"] == "candidate":
            place = row["intervention"], row["n"]
            for metric, title in SHOWN.items():
                cells.append([*place, title, *effect_cells(row, metric)])
                place = "", ""
    title = "effects over all prompts; rank: among the layer's heads, 1 the largest; "
    title += "q: differs from the mean of these controls"
    print_table(columns, cells, title, file_width=WIDE, title_justify="left", **BOXED)
    for test in tests:
        print(describe_set(test))
    for note in notes:
        if any(text in note for text in SAID):
            print(f"note: {printable(note)}")


def effect_cells(row, metric):
    """Value with interval, rank, mean of the controls and q as texts; what is undefined is "-"."""
    sign = "" if metric in UNSIGNED else "+"
    value, low, high, control, q, rank = (
        row[metric + part] for part in ("", "_low", "_high", "_control", "_q", "_rank")
    )
    text = f"{value:{sign}.2g}"
    if not np.isnan(low):
        text += f" [{low:{sign}.2g}, {high:{sign}.2g}]"
    place = f"{rank:g} of {row['pool']:g}"
    shown = (value, text), (rank, place), (control, f"{control:{sign}.2g}"), (q, f"{q:.2g}")
    return ["-" if np.isnan(number) else words for number, words in shown]


def describe_set(test):
    """One line: are the candidates of one edit a random choice of their layers' heads?"""
    n, layers = test["n_candidates"], test["n_layers"]
    heads = f"{n} candidate{'s' * (n > 1)} in {layers} layer{'s' * (layers > 1)}"
    ranks = f"mean rank {test['mean_rank']:.3g}, by chance {test['expected_rank']:.3g}"
    if test["smallest_p"] > ALPHA:
        verdict = f"too few for a test, the smallest p is {test['smallest_p']:.2g}"
    else:
        verdict = f"p {test['p']:.2g}, q {test['q']:.2g}"
    edit = f"{test['type']} {test['change']}"
    return f"{edit}, {heads}, {SHOWN[test['metric']]}: {ranks}, {verdict}"


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
