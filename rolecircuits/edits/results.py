"""What interventions.py writes and prints of its edits: run folders, effects, strongest heads."""

import numpy as np

from rolecircuits.drawing.tables import interval, print_table, right, say, show, with_interval
from rolecircuits.edits.effects import INDEX_METRICS
from rolecircuits.inputs.arguments import ALPHA
from rolecircuits.runs.arrays import Run, facts_of
from rolecircuits.runs.edit_results import csv_rows
from rolecircuits.runs.files import write_csv, write_json, write_prompts
from rolecircuits.runs.npz import write_npz
from rolecircuits.stats.indices import summarize

SIGNS = {
    "kl": "of the next token, unedited from edited",
    "top1_change": "share of prompts whose most likely next token is another",
    "surprisal_change": "in nats, of the unedited answer; > 0: it became less likely",
    "rfc_change": "edited - unedited; > 0: self-referent gains focus",
    "rsi_change": "edited - unedited; > 0: self-referent gains focus",
}
SHOWN = {
    "kl": "KL, nats",
    "top1_change": "top-1 changed",
    "surprisal_change": "answer surprisal",
    "rfc_change": "RFC of later layers",
    "rsi_change": "RSI of later layers",
}
UNSIGNED = ("kl", "top1_change")
HOW_TO_READ = (
    "rank: of the effect's size among the layer's heads, 1 the largest; q: does it differ from the "
    "mean of these controls?"
)
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
    write_csv(folder / "effects.csv", csv_rows(rows), facts=facts_of(config, "intervention"))
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
    chosen = [row for row in rows if row["category"] == "all" and row["role"] == "candidate"]
    columns = ["intervention", right("n"), interval("mean [95 %]"), right("rank")]
    columns += [right("mean of\ncontrols"), right("q")]
    for metric, title in SHOWN.items():
        cells = [[row["intervention"], row["n"], *effect_cells(row, metric)] for row in chosen]
        of_set = [describe_set(test) for test in tests if test["metric"] == metric]
        print_table(columns, cells, f"{title}: {SIGNS[metric]}", "\n".join(of_set))
    say(HOW_TO_READ)
    for note in notes:
        if any(text in note for text in SAID):
            say(f"note: {note}")


def effect_cells(row, metric):
    """Value with interval, rank, mean of the controls and q as texts; what is undefined is "-"."""
    form = ".2g" if metric in UNSIGNED else "+.2g"
    value, low, high, control, q, rank = (
        row[metric + part] for part in ("", "_low", "_high", "_control", "_q", "_rank")
    )
    place = "-" if np.isnan(rank) else f"{rank:g} of {row['pool']:g}"
    return [with_interval(value, low, high, form), place, show(control, form), show(q, ".2g")]


def describe_set(test):
    """One line: are the candidates of one edit a random choice of their layers' heads?"""
    n, layers = test["n_candidates"], test["n_layers"]
    heads = f"{n} candidate{'s' * (n > 1)} in {layers} layer{'s' * (layers > 1)}"
    ranks = f"mean rank {test['mean_rank']:.3g}, by chance {test['expected_rank']:.3g}"
    if test["smallest_p"] > ALPHA:
        verdict = f"too few for a test, the smallest p is {test['smallest_p']:.2g}"
    else:
        verdict = f"p {test['p']:.2g}, q {test['q']:.2g}"
    return f"{test['type']} {test['change']}, {heads}: {ranks}, {verdict}"


def print_strongest(arrays, n=10):
    """The heads of head_effects.npz with the largest KL."""
    kl, cells = arrays["kl_by_prompt"].mean(axis=-1), []
    for flat in np.argsort(-kl, axis=None)[:n]:
        place = np.unravel_index(flat, kl.shape)
        top1 = arrays["top1_change_by_prompt"][place].mean()
        changes = (show(arrays[metric][place], "+.4f") for metric in INDEX_METRICS)
        cells.append([*place, f"{kl[place]:.4f}", f"{top1:.0%}", *changes])
    columns = ["layer", "head", "KL,\nnats", "top-1\nchanged", "RFC of\nlater layers"]
    columns += ["RSI of\nlater layers"]
    title = "the heads with the largest KL of the next token; RFC and RSI: edited - unedited, "
    title += "> 0: self-referent gains focus"
    note = "a choice among all heads: head_effects.npz has every head, to compare these with"
    print_table(map(right, columns), cells, title, note)
