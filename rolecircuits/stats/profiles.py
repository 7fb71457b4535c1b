"""Profiles of a quantity over layers: read from comparison tables, summarised, correlated between models.

p of a correlation = share of the circular shifts of one profile, the unshifted one among them, that correlate as strongly
"""

import csv
import re

from rolecircuits.inputs.errors import UserError, printable

FILE = "detailed_comparison.csv"
COLUMNS = ("rfc_diff", "rsi_diff")
NEAR_ZERO = 0.01
# float() would also take 1_000 and the digits of other scripts.
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
MIN_LAYERS, MAX_LAYERS = 3, 1000  # the shifts of a profile take layers * layers numbers
LARGEST = 1e100  # its square is still a number


def read_profile(folder):
    """{"layer": [layer], "rfc_diff": [layer], "rsi_diff": ..., and their _ci_low/_ci_high where the file has them}.

    raises  UserError with file, column and line for anything that is not one finite number a layer, layers 0 to L - 1
    """
    path = folder / FILE if folder.is_dir() else folder
    if not path.is_file():
        raise UserError(
            f"--comparison {path}: no such file; compare_base_instruct.py writes {FILE} into its folder"
        )
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8: {error}") from error
    columns = [str(name) for name in rows[0]] if rows else []
    for column in ("layer", *COLUMNS):
        if column not in columns:
            raise UserError(
                f"{path}: column {column} is missing; needed are layer, {', '.join(COLUMNS)}"
            )
        if reader.fieldnames.count(column) > 1:
            raise UserError(f"{path}: column {column} appears twice; keep one of them")
    if not MIN_LAYERS <= len(rows) <= MAX_LAYERS:
        raise UserError(
            f"{path}: column layer has {len(rows)} layers; a profile needs at least {MIN_LAYERS} and at most {MAX_LAYERS}"
        )
    intervals = [f"{c}_ci_{end}" for c in COLUMNS for end in ("low", "high")]
    optional = [c for c in intervals if c in columns]
    profile = {
        c: _read_column(path, rows, c, c in optional) for c in ("layer", *COLUMNS, *optional)
    }
    if profile["layer"].tolist() != list(range(len(rows))):
        raise UserError(
            f"{path}: column layer must count 0, 1, 2, ... in order; found {_excerpt(profile['layer'])}"
        )
    return profile


def _read_column(path, rows, column, may_be_empty):
    """A column as [layer] float64; an interval may be empty (NaN), everything else is a finite number."""
    import numpy as np

    values = np.full(len(rows), np.nan)
    for i, row in enumerate(rows):
        text = (row[column] or "").strip()
        if may_be_empty and text.lower() in ("", "nan"):
            continue
        number = float(text) if NUMBER.fullmatch(text) else np.inf
        if not abs(number) <= LARGEST:
            raise UserError(
                f"{path}: column {column}, line {i + 2}: {printable(text[:40])!r} is not a finite number"
            )
        values[i] = number
    return values


def _excerpt(values):
    return ", ".join(f"{v:g}" for v in values[:5]) + (", ..." if len(values) > 5 else "")


def summarise_profile(name, column, values):
    """One row of cross_model_summary.csv: mean, spread and shares of the layers; sd has ddof 1."""
    import numpy as np

    below, above = (values < -NEAR_ZERO).mean(), (values > NEAR_ZERO).mean()
    row = {
        "model": name,
        "index": column,
        "n_layers": len(values),
        "mean": values.mean(),
        "sd": values.std(ddof=1),
    }
    row |= {"median": np.median(values), "min": values.min(), "max": values.max()}
    return row | {"share_below": below, "share_near_zero": 1 - below - above, "share_above": above}


def align_profiles(left, right):
    """Both profiles at the relative depths of the shallower one: layer i of L lies at i / (L - 1)."""
    import numpy as np

    n = min(len(left), len(right))
    depth = np.linspace(0, 1, n)
    return tuple(np.interp(depth, np.linspace(0, 1, len(x)), x) for x in (left, right))


def correlate_profiles(left, right):
    """{"pearson": (r, p), "spearman": (r, p)} of two aligned profiles; NaN where a profile is constant.

    p  share of the circular shifts of one profile, the unshifted one among them, whose |r| reaches the observed |r|
    """
    import numpy as np
    from scipy.stats import rankdata

    found = {}
    for name, prepare in (("pearson", np.asarray), ("spearman", rankdata)):
        a, b = (
            x / (np.abs(x).max() or 1.0) for x in (prepare(left), prepare(right))
        )  # squares must not vanish
        if np.ptp(a) == 0 or np.ptp(b) == 0:
            found[name] = (np.nan, np.nan)
            continue
        shifted = np.stack([np.roll(b, k) for k in range(len(b))])
        a, shifted = a - a.mean(), shifted - shifted.mean(axis=1, keepdims=True)
        r = shifted @ a / np.sqrt((a**2).sum() * (shifted**2).sum(axis=1))
        found[name] = (float(r[0]), float((np.abs(r) >= np.abs(r[0]) * (1 - 1e-9)).mean()))
    return found


def correlate_models(profiles):
    """Rows of cross_model_correlations.csv: one a pair of models and index."""
    from itertools import combinations

    rows = []
    for left, right in combinations(profiles, 2):
        for column in COLUMNS:
            a, b = align_profiles(profiles[left][column], profiles[right][column])
            found = correlate_profiles(a, b)
            row = {"model_a": left, "model_b": right, "index": column, "n_points": len(a)}
            row["depth"] = (
                "equal"
                if len(profiles[left]["layer"]) == len(profiles[right]["layer"])
                else "interpolated"
            )
            for name, (r, p) in found.items():
                row |= {f"{name}_r": r, f"{name}_p": p}
            rows.append(row)
    return rows
