"""The candidate signals of a tuning study as they are shown: distances in units of seed noise.

distance  difference of the means of two arms at matched drift / seed noise
noise     standard deviation between runs of one arm at matched drift, pooled over arms
"""

import numpy as np

from rolecircuits.stats.tuning_profiles import project_runs
from rolecircuits.stats.tuning_tests import (
    find_matched,
    gather_runs,
    values_at_matched_drift,
    within_sd,
)

SHOWN = (("role", "facts"), ("role", "shuffled"))  # contrasts that a specific signal passes
FIELDS = ("p", "p_max", "rho", "icc", "r2_drift", "gain")


def noise_at_matched(checkpoints):
    """{signal: its seed noise}, projections too; at the last dose without scaled adapters."""
    study = gather_runs(vars(checkpoints))
    values = values_at_matched_drift(study)[0] if study.matched.any() else None
    values = study.change[:, study.last] if values is None else values
    slot, runs = find_matched(study)[0], np.arange(len(study.arm))
    projected = project_runs(study)
    values = np.column_stack([values, *(own[runs, slot] for own in projected.values())])
    names = [*study.signal, *projected]
    return dict(zip(names, within_sd(values, study.arm).tolist(), strict=True))


def signal_rows(checkpoints, signals):
    """What is shown of every row of signals.csv: both contrasts with their distances, and FIELDS.

    checkpoints  Checkpoints     signals  rows of signals.csv
    """
    noise = noise_at_matched(checkpoints)
    return [_signal_row(row, noise.get(row["signal"], np.nan)) for row in signals]


def _signal_row(row, noise):
    out = {"signal": row["signal"], "primary": row.get("primary") is True, "noise": noise}
    for contrast in map("_".join, SHOWN):
        estimate = row.get(f"{contrast}_estimate", np.nan)
        out |= {f"{contrast}_estimate": estimate, f"{contrast}_p": row.get(f"{contrast}_p", np.nan)}
        out[f"{contrast}_distance"] = estimate / noise if noise > 0 else np.nan
    out |= {name: row.get(name, np.nan) for name in FIELDS}
    return out | {"verdict": row.get("verdict", "")}


def distances(row):
    """The distances of a row of `signal_rows` that are defined."""
    own = np.array([row[f"{contrast}_distance"] for contrast in map("_".join, SHOWN)])
    return own[np.isfinite(own)]


def sort_signals(rows):
    """The primary signal first, then by the smaller distance; 0 where they differ in sign."""

    def key(row):
        own = distances(row)
        one_side = len(own) and own.min() * own.max() > 0
        return (not row["primary"], -np.abs(own).min() if one_side else 0.0)

    return sorted(rows, key=key)
