"""A tuning study in a report: behaviour, drift and every signal by dose, and which signals tell the
role arm from its controls at matched drift.

A change is tuned - step 0. The training run, an arm with a seed, is the unit of every test.
"""

import numpy as np

from rolecircuits.drawing.tuning_lines import describe_counts, describe_found
from rolecircuits.drawing.tuning_names import signal_name, split_verdict
from rolecircuits.drawing.tuning_signals import signal_rows, sort_signals
from rolecircuits.inputs.errors import printable
from rolecircuits.report.palette import arm_looks
from rolecircuits.report.section import Context, Section, show_interval, show_number
from rolecircuits.report.static_svg import line_chart
from rolecircuits.runs.tuning_results import Study, dose_rows, load_study
from rolecircuits.stats.tuning_profiles import project_runs, summarise_counts
from rolecircuits.stats.tuning_tests import CONTRASTS, gather_runs, values_at_matched_drift

SEE = (
    "What a signal follows while a model is tuned: one that measures the role rises with "
    "compliance in the arm role, and at equal drift tells this arm from one tuned on facts and "
    "from one tuned on shuffled answers."
)
RATE_NAMES = {
    "compliance": "compliance",
    "choice": "choice of the right answer",
    "facts": "facts about the ship",
    "roleplay": "another persona kept",
    "refusal": "refusal of claims to feel",
}
NUMBERS = ("p", "p_max", "rho", "icc", "r2_drift", "r2_compliance", "gain", "gain_p", "seed_sd")


def tuning_section(context: Context):
    """The Section, or None without a study."""
    if context.folders.tuning is None:
        return None
    study = load_study(context.folders.tuning, context.verified)
    looks, points = arm_looks(study.checkpoints.arms), study.checkpoints
    counts = summarise_counts(study.layer_counts)
    static = {"said": describe_study(study), "of": study.label}
    static |= {"charts": static_charts(study, looks), "counts": count_cells(study, counts)}
    static |= {"columns": STATIC_COLUMNS, "signals": list(map(signal_cells, study.signals))}
    data = plain_study(study) | {"arms": looks, "behaviour": RATE_NAMES}
    facts = {name: study.facts[name] for name in ("model", "set", "format")}
    tables = {"doses.csv": dose_rows(points, facts), "signals.csv": study.signals}
    tables |= {"layer_counts.csv": study.layer_counts} if study.layer_counts else {}
    return Section("tuning", "Tuning", SEE, static, data, tables)


def candidate_changes(checkpoints):
    """{signal: change at every checkpoint}, projections (0 at step 0) too: each [checkpoint]."""
    study, places = gather_runs(vars(checkpoints)), {}
    for run, (arm, seed) in enumerate(zip(study.arm.tolist(), study.seed.tolist(), strict=True)):
        for slot, (dose, matched) in enumerate(zip(study.dose, study.matched, strict=True)):
            places[arm, seed, int(dose), bool(matched)] = run, slot
    columns = (checkpoints.arm, checkpoints.seed, checkpoints.dose, checkpoints.matched)
    keys = list(zip(*(column.tolist() for column in columns), strict=True))
    changes = {name: checkpoints.change(name) for name in checkpoints.signal.tolist()}
    for name, values in project_runs(study).items():
        changes[name] = np.array([values[places[key]] if key in places else 0.0 for key in keys])
    return changes


def plain_study(study: Study):
    """What tuning.js needs: {"points": columns, [checkpoint]; "changes": {signal: [checkpoint]};
    "matched": {"arm", "seed", "values": {signal: [run]}}; "signals": rows of its table}."""
    points, changes = study.checkpoints, candidate_changes(study.checkpoints)
    columns = ("arm", "seed", "dose", "matched", "drift", *RATE_NAMES)
    runs = gather_runs(vars(points))
    at_drift = values_at_matched_drift(runs)[0] if runs.matched.any() else runs.change[:, runs.last]
    values = dict(zip(runs.signal, at_drift.T, strict=True))
    slot = -1 if runs.matched.any() else runs.last
    values |= {name: own[:, slot] for name, own in project_runs(runs).items()}
    order = [row["signal"] for row in sort_signals(signal_rows(points, study.signals))]
    rows = {row["signal"]: row for row in study.signals}
    return {
        "points": {name: getattr(points, name) for name in columns},
        "changes": changes,
        "matched": {"arm": runs.arm, "seed": runs.seed, "values": values},
        "at": "at matched drift" if runs.matched.any() else "at the last dose",
        "signals": [plain_signal(rows[name]) for name in order if name in changes],
        "primary": study.primary,
    }


def plain_signal(row):
    """One row of the page's table of signals."""
    verdict, why = split_verdict(row["verdict"])
    plain = {"signal": row["signal"], "name": signal_name(row["signal"]), "verdict": verdict}
    plain |= {"why": why, "primary": row.get("primary") is True}
    for contrast in map("_".join, CONTRASTS):
        for part in ("estimate", "low", "high", "p"):
            plain[f"{contrast}_{part}"] = row.get(f"{contrast}_{part}", np.nan)
    return plain | {name: row.get(name, np.nan) for name in NUMBERS}


def describe_study(study: Study):
    """What the study says, in lines."""
    points = study.checkpoints
    row = next(row for row in study.signals if row["signal"] == study.primary)
    lines = [describe_runs(study), describe_behaviour(points), describe_primary(study, row)]
    lines += filter(None, [describe_found(study), describe_counts(study)])
    return [printable(line) for line in lines]


def describe_runs(study):
    """How many runs there are, and what a test of so many can find."""
    points = study.checkpoints
    runs = {arm: sum(run[0] == arm for run in points.runs) for arm in points.arms}
    said = f"{study.label} ({', '.join(f'{arm} {n}' for arm, n in runs.items())})"
    power = study.summary.get("power")
    smallest, least = (
        power.get(name) if isinstance(power, dict) else None
        for name in ("smallest_p", "smallest_difference_sd")
    )
    if isinstance(smallest, float):
        said += f"; no p can be below {smallest:.2g}"
    if isinstance(least, float):
        said += (
            f"; a difference of {least:.1f} standard deviations between runs is found with 80 % "
        )
        said += "power"
    return f"{said}."


def describe_behaviour(points):
    """Compliance and drift of every arm at the last dose, over runs."""
    said = []
    for arm in points.arms:
        rows = points.rows_of(arm)
        rows = rows[points.dose[rows] == points.dose.max()]
        if len(rows):
            own, drift = points.compliance[rows], points.drift[rows].mean()
            ends = f"{own.min():.2f} to {own.max():.2f}"
            said.append(f"{arm} {own.mean():.2f} ({ends}) at a drift of {drift:.3g} nats")
    return f"Compliance after {points.dose.max()} steps: {'; '.join(said)}."


def describe_primary(study, row):
    """What the signal declared before the first step turned out to be."""
    name, why = signal_name(study.primary), split_verdict(row["verdict"])[1]
    said = f"{name}, declared before the first step: {why or row['verdict']}."
    r2 = [row.get(f"r2_{part}", np.nan) for part in ("drift", "compliance")]
    if np.isfinite(r2).all():
        said += f" Of the changes of runs left out of the fit, drift explains R2 {r2[0]:.2f}, "
        said += f"compliance {r2[1]:.2f}."
    for first, second in CONTRASTS[:2]:
        parts = [
            row.get(f"{first}_{second}_{part}", np.nan) for part in ("estimate", "low", "high")
        ]
        p = row.get(f"{first}_{second}_p", np.nan)
        if np.isfinite(p):
            said += f" At matched drift {first} less {second}: {show_interval(*parts, 4)}, exact p "
            said += f"{p:.3f}."
    return said


def count_cells(study, counts):
    """Rows of the table of layer counts, as texts."""
    n = study.checkpoints.profile_value.shape[-1]
    return [
        (row["pair"], "one arm" if row["same_arm"] else "two arms", row["pairs"])
        + (f"{row['mean_layers']:.1f} of {n}", f"{row['fewest']:g} to {row['most']:g}")
        for row in counts
    ]


STATIC_COLUMNS = ("signal", "role less facts", "role less shuffled", "p", "rho", "ICC", "drift R2")
STATIC_COLUMNS += ("verdict",)


def signal_cells(row):
    """One line of the table that is read without JavaScript; p as the verdict takes it."""
    cells = [signal_name(row["signal"])]
    for contrast in map("_".join, CONTRASTS[:2]):
        ends = [row.get(f"{contrast}_{part}", np.nan) for part in ("estimate", "low", "high")]
        cells.append(show_interval(*ends, 4))
    p = row.get("p" if row.get("primary") is True else "p_max", np.nan)
    cells.append(f"{p:.3f}" if np.isfinite(p) else "-")
    cells += [show_number(row.get(name, np.nan), 2) for name in ("rho", "icc", "r2_drift")]
    return [*cells, row["verdict"]]


def static_charts(study: Study, looks):
    """Compliance, drift and the primary signal by dose: means, and bands from least to most."""
    points, name = study.checkpoints, signal_name(study.primary)
    doses = sorted(set(points.dose.tolist()))
    drawn = (
        (points.compliance, "compliance", "compliance by dose"),
        (points.drift, "drift (nats)", "drift by dose"),
        (points.change(study.primary), name, f"change of {name} by dose, tuned - step 0"),
    )
    charts = []
    for values, label, title in drawn:
        series = []
        for arm, look in looks.items():
            ends = np.full((3, len(doses)), np.nan)
            ends[:, 0] = values[points.base]
            for row in points.rows_of(arm):
                at = doses.index(int(points.dose[row]))
                own = points.rows_of(arm)
                own = values[own[points.dose[own] == doses[at]]]
                ends[:, at] = own.mean(), own.min(), own.max()
            series.append((look["name"], look["colour"], *ends))
        charts.append(line_chart(series, label, title, list(map(str, doses))))
    return [chart for chart in charts if chart is not None]
