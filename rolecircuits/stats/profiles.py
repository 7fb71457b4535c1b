"""Profiles over layers: read from comparison tables, summarised, correlated between models.

kind  normalised, sinkfree: rfc_<kind>_diff_estimate and rsi_<kind>_diff_estimate of our tables
      original: rfc_diff and rsi_diff, the published estimator, which files of others have too
"""

import csv
import re
from itertools import combinations

import numpy as np

from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.folders import COMPARISON, check_kind
from rolecircuits.stats.moments import divide
from rolecircuits.stats.profile_noise import correct_correlation
from rolecircuits.stats.profile_tests import (
    TRENDS,
    align_profiles,
    average_ranks,
    compare_nulls,
    correlate_detrended,
)

FILE = "detailed_comparison.csv"
KINDS = ("normalised", "sinkfree", "original")
COLUMNS = ("rfc_diff", "rsi_diff")
CORRECTED = ("plain", "quadratic")  # where r is also given without the noise of the prompts
NEAR_ZERO = 0.01
# float() would also take 1_000 and the digits of other scripts.
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
MIN_LAYERS, MAX_LAYERS = 3, 1000  # the shifts of a profile take layers * layers numbers
LARGEST = 1e100  # its square is still a number


def read_profiles(folders, kind=None):
    """({name: profile}, kind): the profiles of several comparisons, all of one kind.

    folders   {name: Path}    kind  one of KINDS; None: normalised where every file has it, else
              original
    profile   {"layer": [layer], "rfc_diff": ..., "rsi_diff": ..., their _ci_low and _ci_high if
              they are there}, under these names whatever the kind
    raises    UserError with file, column and line unless there is one finite number a layer,
              layers 0 to L - 1
    """
    tables = {name: _read_table(folder) for name, folder in folders.items()}
    wanted = kind
    if kind is None:
        ours = [
            set(columns_of("normalised").values()) <= set(columns)
            for *_, columns in tables.values()
        ]
        kind = "normalised" if all(ours) else "original"
    return {name: _profile_of(*table, kind, wanted) for name, table in tables.items()}, kind


def columns_of(kind):
    """{name in a profile: column of the table} of the two differences of a kind."""
    if kind == "original":
        return {column: column for column in COLUMNS}
    return {column: column.replace("_diff", f"_{kind}_diff_estimate") for column in COLUMNS}


def table_file(folder):
    """The table of a comparison folder, or the table itself."""
    return folder / FILE if folder.is_dir() else folder


def _read_table(folder):
    """(path, rows, names of the columns) of a comparison."""
    path = table_file(folder)
    if not path.is_file() and folder.is_dir():
        check_kind(folder, COMPARISON)
    if not path.is_file():
        where = f"compare_base_instruct.py writes {FILE} into its folder"
        raise UserError(f"--comparison {path}: no such file; {where}")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8: {error}") from error
    return path, rows, [str(name) for name in reader.fieldnames or ()] if rows else []


def _profile_of(path, rows, columns, kind, wanted):
    """One profile; `wanted` is the kind that was asked for, or None."""
    names = {"layer": "layer"} | columns_of(kind)
    for column in names.values():
        if column not in columns:
            asked = f"--kind {wanted} needs" if wanted else "needed are"
            raise UserError(
                f"{path}: column {column} is missing; {asked} {', '.join(names.values())}"
            )
        if columns.count(column) > 1:
            raise UserError(f"{path}: column {column} appears twice; keep one of them")
    if not MIN_LAYERS <= len(rows) <= MAX_LAYERS:
        allowed = f"a profile needs at least {MIN_LAYERS} and at most {MAX_LAYERS}"
        raise UserError(f"{path}: column layer has {len(rows)} layers; {allowed}")
    profile = {name: _read_column(path, rows, column) for name, column in names.items()}
    for name, column in columns_of(kind).items():
        for end in ("low", "high"):
            of_end = f"{column.removesuffix('_estimate')}_{end}"
            of_end = f"{column}_ci_{end}" if kind == "original" else of_end
            if of_end in columns:
                profile[f"{name}_ci_{end}"] = _read_column(path, rows, of_end, True)
    if profile["layer"].tolist() != list(range(len(rows))):
        excerpt = ", ".join(f"{v:g}" for v in profile["layer"][:5])
        more = ", ..." if len(rows) > 5 else ""
        order = "column layer must count 0, 1, 2, ... in order"
        raise UserError(f"{path}: {order}; found {excerpt}{more}")
    return profile


def _read_column(path, rows, column, may_be_empty=False):
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


def summarise_profile(name, column, profile, kind):
    """One row of cross_model_summary.csv: mean, spread and shares of the layers; sd has ddof 1.

    One layer can make a mean, so it is given again without the layer that lies farthest from the
    median, beside how far that is, in median absolute deviations from the median. Layers are also
    counted by their own intervals (empty where the table has none): a share of layers beyond a
    fixed distance is no test.
    """
    values = profile[column]
    below, above = (values < -NEAR_ZERO).mean(), (values > NEAR_ZERO).mean()
    row = {"model": name, "index": column, "kind": kind, "n_layers": len(values)}
    row |= {"mean": values.mean(), "sd": values.std(ddof=1)}
    row |= {"median": np.median(values), "min": values.min(), "max": values.max()}
    row |= {"share_below": below, "share_near_zero": 1 - below - above, "share_above": above}
    distance = np.abs(values - row["median"])
    farthest = int(distance.argmax())
    row |= {"farthest_layer": farthest, "farthest": values[farthest]}
    row["farthest_mads"] = float(divide(distance[farthest], np.median(distance)))
    row["mean_without"] = np.delete(values, farthest).mean()
    return row | _interval_cells(profile, column)


def _interval_cells(profile, column):
    """How many layers lie below and above 0 by their own intervals, and how wide these are."""
    names = ("interval_below", "interval_above", "interval_half_width")
    low, high = (profile.get(f"{column}_ci_{end}") for end in ("low", "high"))
    width = np.array([]) if low is None or high is None else high - low
    if np.isnan(width).all():  # no layer has both ends
        return dict.fromkeys(names, np.nan)
    half = float(np.nanmedian(width / 2))
    return dict(zip(names, (int((high < 0).sum()), int((low > 0).sum()), half), strict=True))


def correlate_spearman(left, right):
    """(r, share of shifts) of the ranks of two aligned profiles; NaN if one is constant."""
    found = correlate_detrended(average_ranks(left), average_ranks(right), TRENDS["plain"])
    return found.r, found.shift_p


def correlate_models(profiles, kind, draw=None):
    """Rows of cross_model_correlations.csv: one a pair of models and index.

    draw   (model, model) -> profile_noise.JointDraws of the two, or None where they share no rows
    """
    rows = []
    for left, right in combinations(profiles, 2):
        depths = {len(profiles[name]["layer"]) for name in (left, right)}
        draws = draw(left, right) if draw else None
        for column in COLUMNS:
            a, b = align_profiles(profiles[left][column], profiles[right][column])
            row = {"model_a": left, "model_b": right, "index": column, "kind": kind}
            row |= {"n_points": len(a), "depth": "equal" if len(depths) == 1 else "interpolated"}
            for trend, degree in TRENDS.items():
                found = correlate_detrended(a, b, degree)
                row |= {f"{trend}_{part}": value for part, value in found._asdict().items()}
            row |= compare_nulls(a, b)._asdict()
            row["spearman_r"], row["spearman_shift_p"] = correlate_spearman(a, b)
            rows.append(row | _corrected_cells(draws, column.removesuffix("_diff")))
    return rows


def _corrected_cells(draws, index):
    """Columns of the correlation without the noise of the prompts; NaN without joint draws."""
    row = {"shared_rows": draws.shared if draws else 0}
    for trend in CORRECTED:
        cells = (np.nan,) * 3
        if draws:
            cells = correct_correlation(draws, index, TRENDS[trend])
        names = ("corrected_r", "signal_a", "signal_b")
        row |= {f"{trend}_{name}": cell for name, cell in zip(names, cells, strict=True)}
    return row
