"""What a finished tuning study says: its checkpoints as arrays, its tables, figures and summary."""

import time
from pathlib import Path

import numpy as np

from rolecircuits.drawing import tuning_figures
from rolecircuits.inputs.arguments import LATEST_STUDY
from rolecircuits.inputs.errors import printable
from rolecircuits.inputs.parser import say_notes
from rolecircuits.runs import record
from rolecircuits.runs.files import read_json, temporary_folder, write_csv, write_json
from rolecircuits.runs.load import load_run
from rolecircuits.runs.publish import point_link
from rolecircuits.runs.tuning_results import (
    AGREEMENT,
    BASE,
    BEHAVIOUR,
    CHECKPOINTS,
    CONFIG,
    CONTRASTS,
    DOSES,
    LAYER_COUNTS,
    LAYERS,
    RATES,
    SIGNALS,
    SUMMARY,
    Checkpoints,
    checkpoint_name,
    dose_rows,
    finish_study,
    load_study,
    save_checkpoints,
)
from rolecircuits.stats import signal_table, tuning_profiles, tuning_tests
from rolecircuits.stats.indices import INDICES, KINDS, layer_indices, layer_null
from rolecircuits.tuning import residual_signals
from rolecircuits.tuning.study import CHECKPOINT

MACHINE = ("gpu", "processor", "torch_threads")


def write_config(work, description, determinism):
    """study_config.json before the first step; a study that goes on keeps its first one, and it is
    said where rounding may differ from what was begun.
    """
    path = work.folder / CONFIG
    if path.is_file():
        say_notes(describe_changes(read_json(path), work.args, determinism))
        return
    prompt_set = work.sets[0]
    fed = record.describe_prompts(work.args, prompt_set.prompts, prompt_set.how_fed)
    config = record.describe_run("tuning_study.py", work.args, work.loaded.facts, fed, {}, {})
    config |= {"status": "running", "determinism": determinism, "study": description}
    config |= {"primary": description["primary"], "created": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    write_json(path, config)


def describe_changes(begun, args, determinism):
    """A line for everything that rounding depends on and that is not as the study was begun.

    begun  its study_config.json
    """
    asked = {name: getattr(args, name) for name in ("jobs", "batch_size")}
    now = record.package_versions() | {name: determinism[name] for name in MACHINE} | asked
    was = begun["packages"] | begun["determinism"] | begun["arguments"]
    return [
        f"the study was begun with {name} {printable(was.get(name))} and goes on with "
        f"{printable(value)}: checkpoints may differ by rounding"
        for name, value in now.items()
        if was.get(name) != value
    ]


def collect_checkpoints(work):
    """The Checkpoints of a study whose every checkpoint is there."""
    plan, rows = work.plan, [read_json(work.folder / BASE / CHECKPOINT)]
    for arm, seed in plan.runs:
        places = [checkpoint_name(arm, seed, dose, False) for dose in plan.doses]
        places.append(checkpoint_name(arm, seed, plan.doses[-1], True))
        rows += [read_json(work.folder / place / CHECKPOINT) for place in places]
    signals, profiles = list(rows[0]["signals"]), list(rows[0]["profiles"])
    own = {
        name: np.array([row[name] for row in rows]) for name in ("arm", "seed", "dose", "matched")
    }
    own |= {name: _numbers([row[name] for row in rows]) for name in BEHAVIOUR}
    return Checkpoints(
        **own,
        signal=np.array(signals),
        value=_numbers([[row["signals"][name] for name in signals] for row in rows]),
        profile=np.array(profiles),
        profile_value=_numbers([[row["profiles"][name] for name in profiles] for row in rows]),
    )


def _numbers(values):
    """Floats, NaN for None."""
    return np.array(values, dtype=np.float64)


def write_outcome(work, description):
    """Every table, the summary and the figures of a finished study; returns it as read again.

    work.loaded is untouched again, so that the erasure is checked at step 0.
    """
    folder, primary = work.folder, description["primary"]
    checkpoints = collect_checkpoints(work)
    save_checkpoints(folder / CHECKPOINTS, checkpoints)
    facts = {"model": work.loaded.facts["id"], "set": " ".join(work.plan.sets)}
    facts |= {"format": work.plan.form.prompt_format}
    write_csv(folder / DOSES, dose_rows(checkpoints, facts))
    write_csv(folder / LAYERS, layer_rows(work))
    runs = tuning_tests.gather_runs(vars(checkpoints))
    table = signal_table.signal_table(runs, primary)
    named = facts | {"run": folder.name}
    write_csv(folder / SIGNALS, table, facts=named)
    write_csv(folder / CONTRASTS, signal_table.contrast_rows(runs, [primary]), facts=named)
    profiles = tuning_profiles.profile_agreement(runs)
    write_csv(folder / AGREEMENT, profiles, facts=named)
    counts = count_layers(work, runs)
    write_csv(folder / LAYER_COUNTS, counts, facts=named)
    summary = summarise(checkpoints, runs, table) | {"primary": primary}
    summary["layer_counts"] = tuning_profiles.summarise_counts(counts)
    summary["profiles"] = profiles
    summary["erasure"] = residual_signals.person_erasure(work.loaded, work.crossed)
    write_json(folder / SUMMARY, summary)
    finish_study(folder, read_json(folder / CONFIG))
    study = load_study(folder)
    tuning_figures.draw_study(study, folder / "figures")
    return study


def layer_rows(work):
    """Rows of layers.csv: RFC and RSI of every checkpoint, set, kind and layer.

    `model` is the one that was tuned, as in every CSV of a study; `run` says which checkpoint.
    """
    rows, model = [], {"model": work.loaded.facts["id"]}
    for path in sorted(work.folder.rglob(CHECKPOINT)):
        row = read_json(path)
        place = {name: row[name] for name in ("arm", "seed", "dose", "matched")}
        for folder in sorted(path.parent.iterdir()):
            if not (folder / record.CONFIG).is_file() or folder.name == "deixis":
                continue
            run = load_run(folder, verify=False)
            for kind in KINDS:
                found, null = layer_indices(run, kind), layer_null(run, kind)
                for index in INDICES:
                    pairs = zip(found[index], null[index], strict=True)
                    rows += [
                        run.facts
                        | model
                        | {"run": folder.relative_to(work.folder).as_posix()}
                        | place
                        | {"index": index, "kind": kind, "layer": layer}
                        | {"estimate": estimate, "null": of_null}
                        for layer, (estimate, of_null) in enumerate(pairs)
                    ]
    return rows


def count_layers(work, runs):
    """Rows of layer_counts.csv: layers that "differ" between runs of one arm, and of two."""
    name = "crossed" if "crossed" in work.plan.sets else work.plan.sets[0]
    if name == "deixis":  # has neither index
        return []
    dose, known = work.plan.doses[-1], {}

    def load(arm, seed):
        if (arm, seed) not in known:
            place = checkpoint_name(arm, seed, dose, False)
            known[arm, seed] = load_run(work.folder / place / name, verify=False)
        return known[arm, seed]

    return tuning_profiles.layer_counts(tuning_profiles.choose_pairs(runs), load)


def summarise(checkpoints, runs, table):
    """What is said of a study: its runs, what a test of them can find, behaviour at step 0, at the
    last dose and at matched drift, the verdicts; "said": the first two in lines.
    """
    sizes = {arm: len(runs.runs_of(arm)) for arm in checkpoints.arms}
    places = {BASE: np.array([checkpoints.base])}
    for arm in checkpoints.arms:
        rows = checkpoints.rows_of(arm)
        places[arm] = rows[checkpoints.dose[rows] == checkpoints.dose.max()]
        places[f"{arm}_matched"] = checkpoints.rows_of(arm, matched=True)
    behaviour = {
        name: {what: spread(getattr(checkpoints, what)[rows]) for what in ("drift", *RATES)}
        for name, rows in places.items()
    }
    n = list(sizes.values())
    power = {}
    if len(n) > 1 and min(n) > 1:
        power["smallest_p"] = tuning_tests.smallest_p(n[0], n[1])
        power["smallest_difference_sd"] = tuning_tests.smallest_difference(n)
    return {
        "said": signal_table.describe_power(runs),
        "runs": sizes,
        "doses": sorted(set(checkpoints.dose.tolist()) - {0}),
        "matched_drift": float(checkpoints.drift[checkpoints.matched].mean()),
        "power": power,
        "behaviour": behaviour,
        "verdicts": {row["signal"]: row["verdict"] for row in table},
        "specific": [row["signal"] for row in table if row["verdict"] == signal_table.SPECIFIC],
    }


def spread(values):
    """Mean, least and most of the runs of an arm."""
    return {"mean": values.mean(), "least": values.min(), "most": values.max()}


def link_study(output_dir, name):
    """Let latest_study name this study."""
    with temporary_folder(Path(output_dir)) as aside:
        point_link(Path(output_dir, LATEST_STUDY), name, aside)
