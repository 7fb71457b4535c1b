"""What signals and verdicts of a tuning study are called in figures, tables and the report."""

from rolecircuits.stats.indices import INDICES, KIND_NAMES
from rolecircuits.stats.signal_table import ALIKE, APART
from rolecircuits.stats.tuning_profiles import PROJECTION

CANNOT = "cannot be decided"  # what a verdict begins with that says why
NARROW = {APART: "tells apart", ALIKE: "alike"}  # verdicts where there is little room


def signal_name(name, short=False):
    """A signal in words: rfc_sinkfree_crossed as "RFC sink-free, crossed".

    short  a projection by the name of its profile alone
    """
    if name.startswith(PROJECTION):
        of = signal_name(name.removeprefix(PROJECTION))
        return of if short else f"profile of {of}"
    first, *rest = name.split("_")
    if first in INDICES and len(rest) == 2:
        return f"{first.upper()} {KIND_NAMES.get(rest[0], rest[0])}, {rest[1]}"
    if first == "deixis" and len(rest) == 1:
        return f"deixis {KIND_NAMES.get(rest[0], rest[0])}"
    return name.replace("_", " ")


def split_verdict(verdict):
    """(the verdict in two words, why): "cannot be decided: ..." has a reason, others none."""
    if verdict.startswith(CANNOT):
        return "undecidable", verdict
    return verdict, ""
