"""What a tuning study found, in lines: printed by tuning_study.py, and part of the report."""

from collections import Counter

import numpy as np

from rolecircuits.drawing.tuning_names import signal_name, split_verdict
from rolecircuits.inputs.arguments import ALPHA
from rolecircuits.runs.tuning_results import Study
from rolecircuits.stats.signal_table import SPECIFIC
from rolecircuits.stats.tuning_profiles import summarise_counts

LISTED = 6  # specific signals that are named


def describe_found(study: Study):
    """Which candidates are specific to the role; where none is, how often each verdict fell."""
    n = len(study.signals)
    found = [signal_name(row["signal"]) for row in study.signals if row["verdict"] == SPECIFIC]
    if found:
        more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
        named = ", ".join(found[:LISTED]).replace(", crossed", " crossed")
        named = named.replace(", original", " original")
        return f"Specific to the role, of {n} candidates: {named}{more}."
    verdicts = Counter(split_verdict(row["verdict"]) for row in study.signals)
    if any(why for _, why in verdicts):
        return f"No candidate is specific to the role: with these runs none of {n} can be decided."
    said = ", ".join(f"{verdict} {times}" for (verdict, _), times in verdicts.most_common())
    return f"No candidate is specific to the role. Verdicts on {n}: {said}."


def describe_counts(study: Study):
    """Layers that "differ" between two runs of one arm, and beside them between two arms.

    "" where no two runs of one arm were compared: the count of two arms says nothing alone.
    """
    counts = summarise_counts(study.layer_counts)
    same = [row["mean_layers"] for row in counts if row["same_arm"]]
    if not same or np.isnan(same).all():
        return ""
    others = [
        f"{row['mean_layers']:.1f} between {row['pair'].replace('-', ' and ')}"
        for row in counts
        if not row["same_arm"]
    ]
    said = f"{np.nanmean(same):.1f} of {study.checkpoints.profile_value.shape[-1]} layers between "
    said += "two runs of one arm" + ("; " if others else "") + ", ".join(others)
    first = study.layer_counts[0]
    named = f"{str(first.get('index', '')).upper()} {first.get('kind', '')}".strip()
    return f'Layers that "differ" ({named}, q < {ALPHA}): {said}.'


def describe_erasure(study: Study):
    """Whether the person at the final query can be erased at step 0, and what the known nulls said.

    "" where the study's summary has none.
    """
    found = study.summary.get("erasure")
    if not found:
        return ""
    said = f"Person at the final query of step 0: a linear probe names {found['before']:.2f} of "
    said += f"held-out prompts (chance {found['chance']:.2f}), after LEACE {found['after']:.2f}: "
    said += f"{found['verdict']}."
    if found["null_caught"] is None:
        return said
    nulls = ", ".join(
        f"of {name} {own['after']:.2f} ({own['verdict']})" for name, own in found["null"].items()
    )
    said += f" Erasures that must fail: {nulls}."
    return said if found["null_caught"] else f"{said} The check failed: they are not told apart."
