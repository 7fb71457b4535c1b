"""Profiles over layers: read from comparison tables, summarised, correlated between models."""

import csv
import re
from itertools import combinations

import numpy as np

from rolecircuits.inputs.errors import UserError, printable

FILE = "detailed_comparison.csv"
COLUMNS = ("rfc_diff", "rsi_diff")
NEAR_ZERO = 0.01
# float() would also take 1_000 and the digits of other scripts.
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
MIN_LAYERS, MAX_LAYERS = 3, 1000  # the shifts of a profile take layers * layers numbers
LARGEST = 1e100  # its square is still a number


def read_profile(folder):
    """{"layer": [layer], "rfc_diff": ..., "rsi_diff": ..., their _ci_low and _ci_high if there}.

    raises  UserError with file, column and line unless there is one finite number a layer,
            layers 0 to L - 1
    """
    path = folder / FILE if folder.is_dir() else folder
    if not path.is_file():
        where = f"compare_base_instruct.py writes {FILE} into its folder"
        raise UserError(f"--comparison {path}: no such file; {where}")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8: {error}") from error
    columns = [str(name) for name in rows[0]] if rows else []
    for column in ("layer", *COLUMNS):
        if column not in columns:
            needed = ", ".join(("layer", *COLUMNS))
            raise UserError(f"{path}: column {column} is missing; needed are {needed}")
        if reader.fieldnames.count(column) > 1:
            raise UserError(f"{path}: column {column} appears twice; keep one of them")
    if not MIN_LAYERS <= len(rows) <= MAX_LAYERS:
        allowed = f"a profile needs at least {MIN_LAYERS} and at most {MAX_LAYERS}"
        raise UserError(f"{path}: column layer has {len(rows)} layers; {allowed}")
    intervals = [f"{c}_ci_{end}" for c in COLUMNS for end in ("low", "high")]
    optional = [c for c in intervals if c in columns]
    wanted = ("layer", *COLUMNS, *optional)
    profile = {c: _read_column(path, rows, c, c in optional) for c in wanted}
    if profile["layer"].tolist() != list(range(len(rows))):
        excerpt = ", ".join(f"{v:g}" for v in profile["layer"][:5])
        more = ", ..." if len(rows) > 5 else ""
        order = "column layer must count 0, 1, 2, ... in order"
        raise UserError(f"{path}: {order}; found {excerpt}{more}")
    return profile


def _read_column(path, rows, column, may_be_empty):
    """[layer] float64 of a column; an interval may be empty (NaN), all else is a finite number."""
    values = np.full(len(rows), np.nan)
    for i, row in enumerate(rows):
        text = (row[column] or "").strip()
        if may_be_empty and text.lower() in ("", "nan"):
            continue
        number = float(text) if NUMBER.fullmatch(text) else np.inf
        if not abs(number) <= LARGEST:
            what = f"{printable(text[:40])!r} is not a finite number"
            raise UserError(f"{path}: column {column}, line {i + 2}: {what}")
        values[i] = number
    return values


def summarise_profile(name, column, values):
    """One row of cross_model_summary.csv: mean, spread and shares of the layers; sd has ddof 1."""
    below, above = (values < -NEAR_ZERO).mean(), (values > NEAR_ZERO).mean()
    row = {"model": name, "index": column, "n_layers": len(values)}
    row |= {"mean": values.mean(), "sd": values.std(ddof=1)}
    row |= {"median": np.median(values), "min": values.min(), "max": values.max()}
    return row | {"share_below": below, "share_near_zero": 1 - below - above, "share_above": above}


def align_profiles(left, right):
    """Both profiles at the relative depths of the shallower: layer i of L lies at i / (L - 1)."""
    depth = np.linspace(0, 1, min(len(left), len(right)))
    return tuple(np.interp(depth, np.linspace(0, 1, len(x)), x) for x in (left, right))


def average_ranks(values):
    """Ranks from 1; equal values share the mean of their ranks."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def correlate_profiles(left, right):
    """{"pearson": (r, p), "spearman": (r, p)} of two aligned profiles; NaN where one is constant.

    p  share of the circular shifts of one profile, the unshifted one among them, whose |r| is as
       large as the observed |r|
    """
    correlations = {}
    for name, prepare in (("pearson", np.asarray), ("spearman", average_ranks)):
        # scaled, so that squares do not vanish
        a, b = (x / (np.abs(x).max() or 1.0) for x in (prepare(left), prepare(right)))
        if np.ptp(a) == 0 or np.ptp(b) == 0:
            correlations[name] = (np.nan, np.nan)
            continue
        shifted = np.stack([np.roll(b, k) for k in range(len(b))])
        a, shifted = a - a.mean(), shifted - shifted.mean(axis=1, keepdims=True)
        r = shifted @ a / np.sqrt((a**2).sum() * (shifted**2).sum(axis=1))
        reached = np.abs(r) >= np.abs(r[0]) * (1 - 1e-9)
        correlations[name] = (float(r[0]), float(reached.mean()))
    return correlations


def correlate_models(profiles):
    """Rows of cross_model_correlations.csv: one a pair of models and index."""
    rows = []
    for left, right in combinations(profiles, 2):
        depths = {len(profiles[name]["layer"]) for name in (left, right)}
        for column in COLUMNS:
            a, b = align_profiles(profiles[left][column], profiles[right][column])
            row = {"model_a": left, "model_b": right, "index": column, "n_points": len(a)}
            row["depth"] = "equal" if len(depths) == 1 else "interpolated"
            for name, (r, p) in correlate_profiles(a, b).items():
                row |= {f"{name}_r": r, f"{name}_p": p}
            rows.append(row)
    return rows
