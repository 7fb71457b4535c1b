"""What one checkpoint of a tuning study gives by layer, and as one number each: candidate signals.

    rfc_<kind>_<set>, rsi_<kind>_<set>   RFC and RSI less their length null
    deixis_<kind>                        "is it about the model?": the interaction of the set deixis
    slot_self_<set>                      attention of the final query on the slot, "you"
    slot_difference_<set>                the same less that of third-person prompts on their slot
    <segment>_<set>                      attention of the final query on a segment, all prompts

A profile is by layer; the signal of its name is its mean over the layers where it is defined.
RFC, RSI and deixis: > 0, self-referent (about the model) is the more focused.
"""

import numpy as np

from rolecircuits.stats.contrasts import INTERACTIONS, contrast_sides
from rolecircuits.stats.indices import INDICES, KINDS, layer_indices, layer_null, layer_values
from rolecircuits.stats.moments import defined_mean
from rolecircuits.stats.units import frame_values, labels_of

SEGMENTS = ("system_text", "user_text", "sink")


def profile_names(sets):
    """The names that `layer_profiles` gives for built-in prompt sets of these names."""
    names = []
    for name in sets:
        if name == "deixis":
            names += [f"deixis_{kind}" for kind in KINDS]
            continue
        names += [f"{index}_{kind}_{name}" for kind in KINDS for index in INDICES]
        if name == "crossed":
            names += [f"slot_self_{name}", f"slot_difference_{name}"]
        names += [f"{part}_{name}" for part in SEGMENTS]
    return names


def layer_profiles(runs):
    """{profile: [layer]} of the runs {set: Run} of one checkpoint."""
    profiles = {}
    for name, run in runs.items():
        if name == "deixis":
            profiles |= _interactions(run)
            continue
        for kind in KINDS:
            found, null = layer_indices(run, kind), layer_null(run, kind)
            profiles |= {f"{index}_{kind}_{name}": found[index] - null[index] for index in found}
        if run.has_slots:
            own, third = (_slot_mass(run, c) for c in ("self_referent", "third_person"))
            profiles |= {f"slot_self_{name}": own, f"slot_difference_{name}": own - third}
        profiles |= {f"{part}_{name}": _segment_mass(run, part) for part in SEGMENTS}
    return profiles


def mean_signals(profiles):
    """{signal: the mean of its profile over the layers where it is defined}."""
    return {name: float(defined_mean(np.asarray(values))) for name, values in profiles.items()}


def _interactions(run):
    """{"deixis_<kind>": [layer]}: half of (you - I) in the user's turn less in the assistant's."""
    category, unit = labels_of(run)
    found = {}
    for kind in KINDS:
        values = frame_values(run, layer_values(run, kind))
        second, first, _ = contrast_sides(values, category, unit, INTERACTIONS["about_model"])
        found[f"deixis_{kind}"] = (second - first).mean(axis=0)
    return found


def _slot_mass(run, category):
    return run.slot_mass[run.category == category].mean(axis=(0, 2), dtype=np.float64)


def _segment_mass(run, segment):
    column = run.segment.tolist().index(segment)
    return run.segment_mass[..., column].mean(axis=(0, 2), dtype=np.float64)
