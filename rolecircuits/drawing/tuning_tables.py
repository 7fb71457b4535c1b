"""What a tuning study prints: what its runs can show, the arms at the last dose and at matched
drift, every signal, and what was found.

print_study(load_study("tuning_results/latest_study"))
"""

import numpy as np

from rolecircuits.drawing.tables import FOCUSED, print_table, right, say, show
from rolecircuits.drawing.tuning_lines import describe_counts, describe_erasure, describe_found
from rolecircuits.drawing.tuning_names import NARROW, signal_name, split_verdict
from rolecircuits.drawing.tuning_signals import SHOWN, signal_rows, sort_signals
from rolecircuits.runs.tuning_results import BASE, Study
from rolecircuits.stats.moments import defined_mean
from rolecircuits.stats.tuning_profiles import PROJECTION

SHARES = ("compliance", "choice", "roleplay", "refusal")
APART = (
    "role less facts, role less shuffled at matched drift, in units of seed noise (standard "
    "deviation between runs of one arm there)"
)
HOW_TO_READ = (
    "p: the larger of both exact tests; of all but the primary signal (*) corrected for all "
    "(max-T). rho: Spearman's, with compliance over the doses of the role arm. ICC: reliability "
    "between seeds. R2: of runs left out, from drift alone."
)
ARM_NOTE = (
    "matched: the last dose, scaled to equal drift. compliance, choice: of held-out questions; "
    "roleplay: another persona, given by a system prompt, is kept; refusal: of claims to feel"
)


def print_study(study: Study):
    """Lines and tables of a loaded Study."""
    lines = study.summary.get("said", [])
    print()
    for line in lines:
        say(line)
    print_arms(study)
    print_signals(study, lines)
    print()
    for line in (describe_counts(study), describe_erasure(study), describe_found(study)):
        say(line)


def print_arms(study: Study):
    """Behaviour, drift and the primary signal of each arm: step 0, last dose, matched drift."""
    points = study.checkpoints
    change = points.change(study.primary)
    rows = [["step 0", "", *arm_cells(points, np.array([points.base]), change)]]
    last = int(points.dose.max())
    for arm in points.arms:
        for place, matched in ((f"dose {last}", False), ("matched", True)):
            chosen = points.rows_of(arm, matched=matched)
            chosen = chosen[points.dose[chosen] == last]
            if len(chosen):
                rows.append([arm, place, *arm_cells(points, chosen, change)])
    columns = ["arm", "at", right("runs"), *map(right, SHARES), right("drift\nnats")]
    columns.append(right("change"))
    title = f"{study.label}: means over runs; change: of {signal_name(study.primary)} (mean over "
    title += f"layers), tuned - step 0; {FOCUSED}"
    print_table(columns, rows, title, ARM_NOTE)


def arm_cells(points, rows, change):
    """Cells of one line of the table of arms; rows [run] of Checkpoints."""
    n = 0 if points.arm[rows[0]] == BASE else len(rows)
    shares = [show(mean(getattr(points, name)[rows]), ".2f") for name in SHARES]
    values = [show(mean(points.drift[rows]), ".3f"), show(mean(change[rows]), "+.4f")]
    return [n or "-", *shares, *values]


def mean(values):
    """The mean of what is defined, NaN where nothing is."""
    return float(defined_mean(np.asarray(values, dtype=np.float64)))


def print_signals(study: Study, said=()):
    """Every candidate signal: specificity, sensitivity, reliability, verdict; projections apart.

    said  lines that are printed already: why nothing can be decided is said once
    """
    rows = signal_rows(study.checkpoints, study.signals)
    whys = dict.fromkeys(split_verdict(row["verdict"])[1] for row in rows)
    for projected in (False, True):
        own = [row for row in rows if row["signal"].startswith(PROJECTION) == projected]
        if not own:
            continue
        title = "candidate signals, means over layers"
        if projected:
            title = "profiles over layers: how a run's changes correlate with those of the other "
            title += "role runs"
        cells = [signal_cells(row) for row in sort_signals(own)]
        columns = ["profile" if projected else "signal", right("less\nfacts"), right("shuf-\nfled")]
        columns += [*map(right, ("p", "rho", "ICC", "drift\nR2")), "verdict"]
        print_table(columns, cells, f"{title}; {APART}", HOW_TO_READ if not projected else "")
    for why in whys:
        if why and why not in said:
            say(f"undecidable: {why}")


def signal_cells(row):
    """Cells of one line of the table of signals."""
    name = signal_name(row["signal"], short=True).replace(",", "") + "*" * row["primary"]
    apart = [show(row[f"{'_'.join(contrast)}_distance"], "+.1f") for contrast in SHOWN]
    p = row["p"] if row["primary"] else row["p_max"]
    numbers = ["<.001" if p < 0.001 else show(p, ".3f"), show(row["rho"], "+.2f")]
    numbers += [show(row["icc"], ".2f"), show(row["r2_drift"], ".2f")]
    verdict = split_verdict(row["verdict"])[0]
    return [name, *apart, *numbers, NARROW.get(verdict, verdict)]
