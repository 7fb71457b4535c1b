"""What is drawn or held out as one: the unit of inference.

    crossed set        the frame: all of its persons and fillers
    any other set      the frame too (the first word, unless frames are given), if a category has
                       several prompts of one: they have alike entropies, so they are one cluster
    no category has    a matched pair (confounder[i], third_person[i]); else the prompt alone
    two of one frame

In a crossed set the values of a run are first averaged over the fillers of a frame, so that a frame
has one value a category, and differences are taken inside frames (`frame_values`). What resamples
takes (category, unit) of its rows: rows that share a unit go together, a negative unit goes alone.

A `design` is a Run, or anything else with its category, pair_id, frame, filler and crossed.
"""

from dataclasses import dataclass

import numpy as np

from rolecircuits.inputs.categories import PAIRED, order_categories
from rolecircuits.inputs.errors import UserError, printable

ALONE = -1


@dataclass
class Design:
    """How a set of prompts is built: labels [prompt], and whether it is crossed."""

    category: np.ndarray
    pair_id: np.ndarray
    frame: np.ndarray
    filler: np.ndarray
    crossed: bool


def design_of(arrays):
    """The Design of the prompts of these arrays of attention.npz (schema 2)."""
    crossed = bool((arrays["slot"][:, 0] >= 0).all())
    return Design(*(arrays[name] for name in ("category", "pair_id", "frame", "filler")), crossed)


def units_of(design):
    """The unit of every prompt: [prompt] int, ALONE where it has no partner."""
    frame, category = np.asarray(design.frame), np.asarray(design.category)
    frames = np.unique(frame, return_inverse=True)[1]
    if design.crossed:
        places = {name: i for i, name in enumerate(dict.fromkeys(frame.tolist()))}
        return np.array([places[name] for name in frame.tolist()])
    if is_clustered(category, frames):
        return frames
    pair_id = np.asarray(design.pair_id)
    left, right = (pair_id[(category == name) & (pair_id >= 0)] for name in PAIRED)
    whole = sorted(left.tolist()) == sorted(right.tolist())
    return np.where(np.isin(category, PAIRED) & whole, pair_id, ALONE)


def is_clustered(category, unit):
    """True if some unit holds several rows of one category."""
    unit = np.asarray(unit)
    used = unit >= 0
    cells = list(zip(np.asarray(category)[used].tolist(), unit[used].tolist(), strict=True))
    return len(set(cells)) < len(cells)


def effective_number(size):
    """How many units of equal size units of these sizes are worth: (sum n)^2 / sum n^2 (Kish
    1965).
    """
    return float(size.sum() ** 2 / (size**2).sum()) if len(size) else 0.0


def effective_units(unit):
    """`effective_number` of the units of these rows."""
    unit = np.asarray(unit)
    size = np.unique(unit[unit >= 0], return_counts=True)[1]
    return effective_number(np.concatenate([size, np.ones((unit < 0).sum())]))


def labels_of(design):
    """(category, unit), each [row], of the rows that `frame_values` gives."""
    if not design.crossed:
        return np.asarray(design.category), units_of(design)
    rows = _frame_rows(design)
    return np.array([name for name, _ in rows]), np.array([unit for _, unit in rows])


def row_categories(design):
    """The category of each of those rows."""
    return labels_of(design)[0] if design.crossed else np.asarray(design.category)


def frame_values(design, values):
    """[prompt, ...] -> [row, ...]: one row a category and frame of a crossed set.

    It is the mean over the fillers. A cell (frame, filler) that lacks a category, because a prompt
    failed, counts for none. The values of another set are returned as they are.
    """
    if not design.crossed:
        return values
    return np.stack([values[rows].mean(axis=0) for rows in _frame_rows(design).values()])


def _frame_rows(design):
    """{(category, unit): rows of its fillers} of whole cells, the same units in every category."""
    cells, rows = {}, {}
    names = order_categories(design.category.tolist())
    keys = zip(units_of(design).tolist(), design.filler.tolist(), strict=True)
    for row, key in enumerate(keys):
        cells.setdefault(key, {})[str(design.category[row])] = row
    for name in names:
        for (unit, _), cell in cells.items():
            if len(cell) == len(names):
                rows.setdefault((name, unit), []).append(cell[name])
    if not rows:
        raise UserError(f"no frame has all of {', '.join(map(printable, names))}")
    return rows


def shared_units(category, unit):
    """[[rows of a unit], ...] of the units of several rows, in lists of units of one composition.

    Units are in ascending order; those of one list hold the same categories, row for row.
    """
    category, unit = np.asarray(category), np.asarray(unit)
    strata, order = {}, np.argsort(unit, kind="stable")
    order = order[unit[order] >= 0]
    for rows in np.split(order, np.flatnonzero(np.diff(unit[order])) + 1):
        if len(rows) > 1:
            rows = rows[np.argsort(category[rows], kind="stable")]
            strata.setdefault(tuple(category[rows].tolist()), []).append(rows.tolist())
    return list(strata.values())


def strata_of(category, unit):
    """What is drawn within what: lists of units, each unit an array of its rows.

    Clusters are one list. Else units of one composition are a list each (all frames of a crossed
    set; pairs), and then the rows of every category that are units by themselves.
    """
    category, unit = np.asarray(category), np.asarray(unit)
    if is_clustered(category, unit):
        own = np.where(unit >= 0, unit, unit.max() + 1 + np.arange(len(unit)))
        order = np.argsort(own, kind="stable")
        return [np.split(order, np.flatnonzero(np.diff(own[order])) + 1)]
    strata = [[np.array(rows) for rows in stratum] for stratum in shared_units(category, unit)]
    alone = np.ones(len(category), dtype=bool)
    for stratum in strata:
        alone[np.concatenate(stratum)] = False
    for name in dict.fromkeys(category.tolist()):
        rows = np.flatnonzero((category == name) & alone)
        if len(rows):
            strata.append(list(rows[:, None]))
    return strata


def matched_rows(category, unit, names):
    """[rows of each of these categories], unit for unit, or None where they do not match.

    They match where each unit has one row in every one of these categories.
    unit  [row], or None: every row alone
    """
    if unit is None:
        return None
    category, unit = np.asarray(category), np.asarray(unit)
    sides = [np.flatnonzero(category == name) for name in names]
    sides = [side[np.argsort(unit[side], kind="stable")] for side in sides]
    first = unit[sides[0]]
    if not len(first) or first[0] < 0 or len(np.unique(first)) < len(first):
        return None
    if any(not np.array_equal(unit[side], first) for side in sides):
        return None
    return sides
