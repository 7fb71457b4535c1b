"""The table of a tuning study: which signals follow compliance, and not merely drift.

A signal is called SPECIFIC if all of this holds (`judge`):

    1  with n against n runs the exact test can reach 0.05 at all: 4 against 4, or 3 against 4;
       and at matched drift the role runs comply more than the facts and the shuffled runs, p below
       0.05 in each exact test: else there is no compliance there that a signal could show
    2  sensitive: the mean change of the role runs from step 0 to the last dose has a 95 % t
       interval without 0 (a sign test of five runs cannot go below 2 / 32), and over step 0 and
       the doses it follows compliance, both averaged over role runs: Spearman's |rho| >= LEAST_RHO
    3  at matched drift the role runs differ from the facts runs AND from the shuffled runs, both
       times in the direction in which they moved: the larger p of the two exact permutation tests
       (intersection-union test, Berger 1982) is below 0.05. The primary signal, declared before the
       first step, is tested alone; every other one by step-down max-T over all others, in each
       contrast
    4  facts and shuffled, which should not differ, differ by less than role does from either
    5  reliable between seeds: ICC(1) of the last dose's changes, arms as groups, >= LEAST_ICC
    6  compliance adds to drift: R2 of a left-out run grows (gain > 0)

Else the first of these that holds:

    "cannot be decided"    1 fails
    "undefined"            a number above is not defined
    "tells arms apart"     3, 4 and 5 hold, but it does not follow compliance: 2 or 6 fails
    "follows drift"        sqrt(drift) explains LEAST_R2 of the changes of a left-out run, and more
                           than compliance does
    "not sensitive"        2 fails
    "alike in all arms"    5 fails, and the mean change of all runs is more than LEAST_CHANGE
                           standard deviations between runs of an arm
    "unreliable"           5 fails
    "undecided"

Spearman's rho, R2 and ICC have no test in this rule; the gain has one beside the table.
"""

from itertools import product

import numpy as np
from scipy.special import stdtrit

from rolecircuits.inputs.arguments import ALPHA, DEFAULT_SEED
from rolecircuits.inputs.errors import UserError
from rolecircuits.stats.moments import divide
from rolecircuits.stats.profile_tests import average_ranks, correlate_rows
from rolecircuits.stats.tuning_profiles import PROJECTION, contrast_projections, project_runs
from rolecircuits.stats.tuning_tests import (
    ARMS,
    CONTRASTS,
    N_PERMUTATIONS,
    Permutation,
    exact_permutation,
    explain_changes,
    find_matched,
    icc,
    smallest_difference,
    smallest_p,
    step_down,
    values_at_equal_drift,
    values_at_matched_drift,
    within_sd,
    within_squares,
)

SPECIFIC, APART, DRIFT = "specific", "tells arms apart", "follows drift"
INSENSITIVE, ALIKE, UNRELIABLE = "not sensitive", "alike in all arms", "unreliable"
UNDECIDED, UNDEFINED, UNDECIDABLE = "undecided", "undefined", "cannot be decided"
PARTS = ("estimate", "low", "high", "p")
LEAST_RHO, LEAST_ICC, LEAST_R2, LEAST_CHANGE = 0.5, 0.5, 0.25, 2.0


def contrast_arms(study, contrast, values, profiles):
    """Permutation of first - second arm over all signals, then all projections: [candidate].

    values  [run, signal]    profiles  [run, profile, layer]
    """
    elsewhere = ~np.isin(study.arm, contrast)
    squares = within_squares(values[elsewhere], study.arm[elsewhere])[0]
    plain = exact_permutation(*(values[study.runs_of(arm)] for arm in contrast), squares)
    projected = contrast_projections(study, contrast, profiles)
    return Permutation(
        *(np.concatenate(pair, axis=-1) for pair in zip(plain, projected, strict=True))
    )


def contrast_rows(study, candidates=None):
    """Rows of arms compared: one a signal, contrast and place.

    place  "dose 100" (each dose), "matched drift" (scaled adapters), "equal drift" (interpolated
           between doses; signals only). Projections come with p and without an interval.
    """
    names = [*study.signal, *(PROJECTION + name for name in study.profile)]
    nothing = np.full_like(study.profile_change[:, 0], np.nan)
    places = {
        f"dose {study.dose[slot]}": (study.change[:, slot], study.profile_change[:, slot])
        for slot in np.flatnonzero(~study.matched)
    }
    if study.matched.any():
        places["matched drift"] = values_at_matched_drift(study)
    places["equal drift"] = values_at_equal_drift(study)[0], nothing
    rows = []
    for first, second in present_contrasts(study):
        for place, (values, profiles) in places.items():
            found = contrast_arms(study, (first, second), values, profiles)
            for at, name in enumerate(names):
                if place == "equal drift" and name.startswith(PROJECTION):
                    continue
                if candidates is None or name in candidates:
                    row = {"signal": name, "contrast": f"{first}-{second}", "place": place}
                    rows.append(row | {key: float(getattr(found, key)[at]) for key in PARTS})
    return rows


def present_contrasts(study):
    """Contrasts of arms that both have at least two runs."""
    return [c for c in CONTRASTS if all(len(study.runs_of(arm)) >= 2 for arm in c)]


def follow_compliance(study, values):
    """Spearman's rho of a signal and compliance over step 0 and the doses, means of role runs.

    values  [run, slot, candidate]    returns  [candidate]
    """
    role, doses = study.runs_of("role"), ~study.matched
    if not len(role):
        return np.full(values.shape[-1], np.nan)
    means = values[role][:, doses].mean(axis=0)
    means = np.concatenate([np.zeros((1, means.shape[1])), means])
    compliance = np.append(0.0, study.compliance[role][:, doses].mean(axis=0))
    ranks = [average_ranks(column) for column in (compliance, *means.T)]
    ranks = [rank - rank.mean() for rank in ranks]
    rho = [float(correlate_rows(rank, ranks[0])) for rank in ranks[1:]]
    return np.where(np.isnan(means).any(axis=0), np.nan, rho)


def signal_table(study, primary, n_permutations=N_PERMUTATIONS, seed=DEFAULT_SEED):
    """Rows of signals.csv, one a candidate, in the study's order, projections last.

    study    as `tuning_tests.gather_runs` gives it
    primary  name of the signal that was declared before the first step, or None
    change_<arm>           mean change from step 0 at the last dose
    rho, moved_sd          role runs: Spearman's rho with compliance; their mean change in standard
                           deviations between them; moved_least: above it, 0 is outside the interval
    seed_sd, icc           between runs of an arm at the last dose
    <first>_<second>_...   estimate, low, high and p of the contrast at matched drift
    p, p_max               the larger of role against facts and role against shuffled; p_max among
                           all candidates but the primary, which has none
    r2_..., gain, gain_p   as `explain_changes`; a projection has no gain_p, as it is made from arms
    """
    projected = project_runs(study)
    names = [*study.signal, *projected]
    values = [study.change, *(one[:, :, None] for one in projected.values())]
    values = np.concatenate(values, axis=2)
    if primary is not None and primary not in names:
        raise UserError(f"the primary signal {primary} is none of the candidates")
    last = values[:, study.last]
    columns = {f"change_{arm}": _mean_run(last[study.runs_of(arm)]) for arm in ARMS}
    columns["rho"] = follow_compliance(study, values)
    columns |= _moved(last[study.runs_of("role")])
    columns |= {"seed_sd": within_sd(last, study.arm), "icc": icc(last, study.arm)}
    columns |= _contrast_columns(study, [name == primary for name in names])
    r2 = explain_changes(study._replace(change=values), n_permutations, seed)
    columns |= {f"r2_{name}": getattr(r2, name) for name in ("drift", "compliance", "both")}
    made_from_arms = np.arange(len(names)) >= len(study.signal)
    columns |= {"gain": r2.gain, "gain_p": np.where(made_from_arms, np.nan, r2.gain_p)}
    rows, reason = [], cannot_decide(study)
    for at, name in enumerate(names):
        row = {"signal": name, "primary": name == primary}
        row |= {key: float(column[at]) for key, column in columns.items()}
        rows.append(row | {"verdict": judge(row, reason)})
    return rows


def _mean_run(values):
    """Mean over runs, NaN without any."""
    return values.mean(axis=0) if len(values) else np.full(values.shape[1], np.nan)


def _moved(role):
    """How far the role runs moved, in standard deviations between them, and its least |value|."""
    n = len(role)
    if n < 2:
        return dict.fromkeys(("moved_sd", "moved_least"), np.full(role.shape[1], np.nan))
    moved = divide(role.mean(axis=0), role.std(axis=0, ddof=1))
    least = stdtrit(n - 1, 1 - ALPHA / 2) / np.sqrt(n)
    return {"moved_sd": moved, "moved_least": np.full(len(moved), least)}


def _contrast_columns(study, is_primary):
    """Columns of the three contrasts at matched drift, and p of the two that role takes part in."""
    others, columns, role = ~np.array(is_primary), {}, []
    for contrast, key in product(CONTRASTS, PARTS):
        columns[f"{'_'.join(contrast)}_{key}"] = np.full(len(others), np.nan)
    values, profiles = values_at_matched_drift(study)
    for contrast in present_contrasts(study):
        found = contrast_arms(study, contrast, values, profiles)
        name = "_".join(contrast)
        for key in PARTS:
            columns[f"{name}_{key}"] = getattr(found, key)
        if contrast[0] == "role":
            p_max = np.full(len(others), np.nan)
            p_max[others] = step_down(found.r[:, others])
            role.append((found.p, p_max))
    if len(role) == 2:
        p, p_max = (np.maximum(*pair) for pair in zip(*role, strict=True))
    else:
        p, p_max = np.full((2, len(others)), np.nan)
    return columns | {"p": p, "p_max": p_max}


def cannot_decide(study):
    """Why no signal of this study can be called specific, or None."""
    lacking = [arm for arm in ARMS if len(study.runs_of(arm)) < 2]
    if lacking:
        return f"{UNDECIDABLE}: fewer than 2 runs of {' and '.join(lacking)}"
    n = [len(study.runs_of(arm)) for arm in ARMS]
    least = max(smallest_p(n[0], n[1]), smallest_p(n[0], n[2]))
    if least >= ALPHA:
        return f"{UNDECIDABLE} with {n[0]} against {min(n[1:])} runs: smallest p {least:.2f}"
    alike = [arm for first, arm in CONTRASTS if first == "role" and not _complies_more(study, arm)]
    if alike:
        return (
            f"{UNDECIDABLE}: at matched drift role does not comply more than {' and '.join(alike)}"
        )
    return None


def _complies_more(study, arm):
    """Whether the role runs comply more than an arm's at matched drift, p < ALPHA."""
    slot = find_matched(study)[0]
    complied = study.compliance[np.arange(len(slot)), slot]
    found = exact_permutation(complied[study.runs_of("role")], complied[study.runs_of(arm)])
    return bool(found.p < ALPHA and found.estimate > 0)


def judge(row, reason=None):
    """The verdict on a row of `signal_table`; the rule stands above.

    reason  as `cannot_decide` gives it
    """
    if reason:
        return reason
    wanted = [f"{'_'.join(contrast)}_estimate" for contrast in CONTRASTS]
    if any(np.isnan(row[key]) for key in (*wanted, "change_role", "rho", "icc", "gain")):
        return UNDEFINED
    apart = [row["role_facts_estimate"], row["role_shuffled_estimate"]]
    sign = np.sign(row["change_role"])
    p = row["p"] if row["primary"] else row["p_max"]
    sensitive = abs(row["moved_sd"]) > row["moved_least"] and abs(row["rho"]) >= LEAST_RHO
    differs = p < ALPHA and all(np.sign(x) == sign for x in apart)
    differs = differs and abs(row["facts_shuffled_estimate"]) < min(map(abs, apart))
    reliable = row["icc"] >= LEAST_ICC
    mean = np.mean([row[f"change_{arm}"] for arm in ARMS])
    if differs and reliable:
        return SPECIFIC if sensitive and row["gain"] > 0 else APART
    if row["r2_drift"] >= max(LEAST_R2, row["r2_compliance"]):
        return DRIFT
    if not sensitive:
        return INSENSITIVE
    if reliable:
        return UNDECIDED
    return ALIKE if abs(mean) > LEAST_CHANGE * row["seed_sd"] else UNRELIABLE


def describe_power(study):
    """Lines: what so many runs can show, and how well drift was matched."""
    n = {arm: len(study.runs_of(arm)) for arm in ARMS if len(study.runs_of(arm))}
    lines = [f"runs: {', '.join(f'{k} {arm}' for arm, k in n.items())}"]
    if (reason := cannot_decide(study)) is not None:
        lines.append(reason)
    else:
        sizes = [n[arm] for arm in ARMS]
        p = max(smallest_p(sizes[0], k) for k in sizes[1:])
        one, both = smallest_difference(sizes[:2]), smallest_difference(sizes)
        lines.append(
            f"smallest p {p:.4f}; 80 % power of the primary signal: differences of {one:.1f} "
            f"standard deviations between runs in one contrast, {both:.1f} in both"
        )
    slot, ratio, wanted = find_matched(study)
    if np.isfinite(wanted):
        drift = study.drift[np.arange(len(slot)), slot]
        means = ", ".join(f"{arm} {drift[study.runs_of(arm)].mean():.4f}" for arm in n)
        lines.append(f"matched drift {wanted:.4f} nats: {means}")
        if lost := int(np.isnan(ratio).sum()):
            lines.append(f"{lost} runs are too far from it and left out")
    return lines
