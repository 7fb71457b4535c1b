"""Which heads a candidate is compared with: the other heads of its layer, under the same edit.

    drawn, controls = draw_controls(plan, n_heads=9, n_controls=31, seed=0)

A pool is the candidates of one edit in one layer and their controls. Candidates of a layer are each
other's controls: they are heads of the layer like any other. A plan that brings entries of role
control keeps these instead.
"""

from itertools import combinations
from math import comb

import numpy as np

from rolecircuits.edits.plan import Entry, names_candidate

ENUMERATED = 5000  # sets of heads that are listed; of more, some are drawn until enough differ


def controls_of(candidate, entries):
    """The controls of a candidate: those that name it, and unnamed ones of its type and method."""
    kind = (candidate.type, candidate.change)
    return [
        entry
        for entry in entries
        if entry.role == "control"
        and (
            any(names_candidate(entry, target, candidate) for target in entry.targets)
            or (not entry.targets and (entry.type, entry.change) == kind)
        )
    ]


def find_controls(plan: list[Entry], n_heads, n_controls, seed):
    """(control entries drawn here, {candidate: names of its controls}, notes).

    n_controls  as in `draw_controls`; of no account for a plan with its own controls
    """
    candidates = [entry for entry in plan if entry.role == "candidate"]
    if len(candidates) < len(plan):
        note = "the plan brings its own controls: ranks are among these, not all heads of a layer"
        controls = {e.name: [c.name for c in controls_of(e, plan)] for e in candidates}
        return [], controls, [note]
    drawn, controls = draw_controls(plan, n_heads, n_controls, seed)
    sizes = sorted({len(names) for names in controls.values() if names})
    if not sizes:
        return drawn, controls, []
    counts = " or ".join(map(str, sizes))
    note = f"controls of a candidate: the same edit on {counts} other heads of its layer"
    whole = all(len(entry.head_list) < 2 for entry in plan) and sizes == [n_heads - 1]
    return drawn, controls, [f"{note}, {'all of them' if whole else f'drawn with seed {seed}'}"]


def draw_controls(plan: list[Entry], n_heads, n_controls, seed=0):
    """([control entries], {candidate: names of its controls}) of a plan without controls.

    A pool holds n_controls + 1 heads, or twice its candidates if these are more, at most all of the
    layer; what it draws depends on the seed, the layer and its candidates alone. A candidate of
    several heads has random sets of as many heads, which may overlap with it: the sets of a pool
    are then equally likely. Edits of a whole layer, an MLP or the residual have no controls.
    """
    pools, drawn, controls = {}, [], {entry.name: [] for entry in plan}
    for entry in plan:
        key = (entry.type, entry.change, entry.layer, getattr(entry, "source", None))
        pools.setdefault((*key, len(entry.head_list)), []).append(entry)
    taken = set(controls)
    for (_, _, layer, _, size), members in pools.items():
        if not (n_controls and size):
            continue
        wanted = max(n_controls + 1, 2 * len(members)) - len(members)
        sets = [entry.head_list for entry in members]
        heads = draw_heads(sets, n_heads, wanted, np.random.default_rng([seed, layer]))
        others = [edit_others(members[0], each) for each in heads]
        others = [entry for entry in others if entry.name not in taken]
        drawn += others
        taken |= {entry.name for entry in others}
        names = [entry.name for entry in (*members, *others)]
        controls |= {entry.name: [n for n in names if n != entry.name] for entry in members}
    return drawn, controls


def draw_heads(members, n_heads, wanted, rng):
    """`wanted` sets of heads, fewer if there are fewer, as large as the members and none of them.

    returns  [(head, ...)] in ascending order
    """
    members, size = {tuple(sorted(heads)) for heads in members}, len(members[0])
    if comb(n_heads, size) <= ENUMERATED:
        free = [heads for heads in combinations(range(n_heads), size) if heads not in members]
        order = rng.permutation(len(free))[:wanted] if len(free) > wanted else range(len(free))
        return sorted(free[i] for i in order)
    found = set()
    while len(found) < wanted:
        heads = tuple(sorted(rng.choice(n_heads, size, replace=False).tolist()))
        found |= {heads} - members
    return sorted(found)


def edit_others(entry: Entry, heads):
    """The edit of a candidate on other heads, as an entry of role control."""
    head = list(heads) if isinstance(entry.head, list) else heads[0]
    update = {"head": head, "role": "control", "control_for": None, "note": None}
    return entry.model_copy(update=update)
