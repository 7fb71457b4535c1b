"""Do models change alike? Compares the RFC and RSI differences (instruct - base) of any number of model pairs along depth.

    correlation   Pearson and Spearman of two layer profiles; models of unequal depth are compared on relative depth,
                  the deeper one interpolated linearly at the layers of the shallower one
    p             share of the circular shifts of one profile along depth, the unshifted one among them, that correlate
                  as strongly. Neighbouring layers are alike, so shuffling layers would find correlations everywhere; L
                  layers have L shifts, so p cannot be below 1 / L: fewer than 21 layers cannot reach 0.05

A folder holds detailed_comparison.csv as compare_base_instruct.py writes it; only layer, rfc_diff and rsi_diff are needed,
so that files of others can be read. Written to --output_dir: cross_model_summary.csv, cross_model_correlations.csv and
cross_model_profiles.png.

    python cross_model_correlation.py --comparison mistral=comparison_results/mistral --comparison qwen=comparison_results/qwen
"""

import csv
import re
import sys
from pathlib import Path

from rolecircuits.inputs.arguments import check_output_dir
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.parser import Parser, run_script

FILE = "detailed_comparison.csv"
COLUMNS = ("rfc_diff", "rsi_diff")
NEAR_ZERO = 0.01
# float() would also take 1_000 and the digits of other scripts.
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
MIN_LAYERS, MAX_LAYERS = 3, 1000  # the shifts of a profile take layers * layers numbers
LARGEST = 1e100  # its square is still a number


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--comparison", action="append", required=True, nargs="+", metavar="NAME=DIR", help="a comparison folder, named"
    )
    parser.add_argument("--output_dir", default="cross_model_results", help="default: cross_model_results")
    return parser.parse_args(argv)


def parse_comparisons(texts):
    """{name: folder} from NAME=DIR texts; refused: a missing name or folder, a name used twice."""
    folders = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not equals or not name.strip() or not folder:
            raise UserError(
                f"--comparison {printable(text)}: expected NAME=DIR, for example mistral=comparison_results"
            )
        if name in folders:
            raise UserError(f"--comparison {printable(text)}: the name {printable(name)} is used twice")
        folders[name] = Path(folder)
    return folders


def read_profile(folder):
    """{"layer": [layer], "rfc_diff": [layer], "rsi_diff": ..., and their _ci_low/_ci_high where the file has them}.

    raises  UserError with file, column and line for anything that is not one finite number a layer, layers 0 to L - 1
    """
    path = folder / FILE if folder.is_dir() else folder
    if not path.is_file():
        raise UserError(f"--comparison {path}: no such file; compare_base_instruct.py writes {FILE} into its folder")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8: {error}") from error
    columns = [str(name) for name in rows[0]] if rows else []
    for column in ("layer", *COLUMNS):
        if column not in columns:
            raise UserError(f"{path}: column {column} is missing; needed are layer, {', '.join(COLUMNS)}")
        if reader.fieldnames.count(column) > 1:
            raise UserError(f"{path}: column {column} appears twice; keep one of them")
    if not MIN_LAYERS <= len(rows) <= MAX_LAYERS:
        raise UserError(
            f"{path}: column layer has {len(rows)} layers; a profile needs at least {MIN_LAYERS} and at most {MAX_LAYERS}"
        )
    intervals = [f"{c}_ci_{end}" for c in COLUMNS for end in ("low", "high")]
    optional = [c for c in intervals if c in columns]
    profile = {c: _read_column(path, rows, c, c in optional) for c in ("layer", *COLUMNS, *optional)}
    if profile["layer"].tolist() != list(range(len(rows))):
        raise UserError(f"{path}: column layer must count 0, 1, 2, ... in order; found {_excerpt(profile['layer'])}")
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
            raise UserError(f"{path}: column {column}, line {i + 2}: {printable(text[:40])!r} is not a finite number")
        values[i] = number
    return values


def _excerpt(values):
    return ", ".join(f"{v:g}" for v in values[:5]) + (", ..." if len(values) > 5 else "")


def summarise_profile(name, column, values):
    """One row of cross_model_summary.csv: mean, spread and shares of the layers; sd has ddof 1."""
    import numpy as np

    below, above = (values < -NEAR_ZERO).mean(), (values > NEAR_ZERO).mean()
    row = {"model": name, "index": column, "n_layers": len(values), "mean": values.mean(), "sd": values.std(ddof=1)}
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
        a, b = (x / (np.abs(x).max() or 1.0) for x in (prepare(left), prepare(right)))  # squares must not vanish
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
            row["depth"] = "equal" if len(profiles[left]["layer"]) == len(profiles[right]["layer"]) else "interpolated"
            for name, (r, p) in found.items():
                row |= {f"{name}_r": r, f"{name}_p": p}
            rows.append(row)
    return rows


def plot_profiles(profiles):
    """Figure: RFC and RSI difference of every model against relative depth, with the intervals that the files give."""
    import numpy as np

    from plot_style import NULL_COLOUR, plt

    figure, axes = plt.subplots(2, 1, figsize=(7.5, 6), sharex=True)
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.88, len(profiles)))
    markers = "os^Dv<>PX*"
    for axis, column in zip(axes, COLUMNS, strict=True):
        axis.axhline(0, color=NULL_COLOUR, linewidth=0.8)
        for i, (name, profile) in enumerate(profiles.items()):
            depth = np.linspace(0, 1, len(profile["layer"]))
            axis.plot(
                depth,
                profile[column],
                color=colours[i],
                marker=markers[i % len(markers)],
                markersize=3,
                label=printable(name),
            )
            if f"{column}_ci_low" in profile and f"{column}_ci_high" in profile:
                ends = (profile[f"{column}_ci_low"], profile[f"{column}_ci_high"])
                axis.fill_between(depth, *ends, color=colours[i], alpha=0.12, linewidth=0)
        _limit_axis(axis, np.concatenate([profile[column] for profile in profiles.values()]))
        axis.set_ylabel(f"{column[:3].upper()}, instruct - base")
    axes[0].set_title("change from base to instruct along depth (shaded: the intervals in each file)")
    axes[1].set_xlabel("relative depth (0 first layer, 1 last layer)")
    axes[0].legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _limit_axis(axis, values):
    """Keep one undefined-looking layer (a head whose neutral entropy is nearly 0) from flattening all the others."""
    import numpy as np

    low, high = np.quantile(values, [0.02, 0.98])
    reach = high - low
    outside = int(((values < low - 1.5 * reach) | (values > high + 1.5 * reach)).sum())
    if outside:
        axis.set_ylim(low - 0.6 * reach, high + 0.6 * reach)
        axis.annotate(
            f"{outside} points outside the frame",
            (0.99, 0.97),
            xycoords="axes fraction",
            ha="right",
            va="top",
            fontsize=8,
        )


def compare_models(comparisons, output_dir):
    """Summarise, correlate and plot the comparison folders {name: Path}: {"summary": rows, "correlations": rows}."""
    folder = check_output_dir(output_dir)
    profiles = {name: read_profile(path) for name, path in comparisons.items()}

    from plot_style import save_figure
    from rolecircuits.runs.files import write_csv

    summary = [summarise_profile(name, c, profile[c]) for name, profile in profiles.items() for c in COLUMNS]
    correlations = correlate_models(profiles)
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "cross_model_summary.csv", summary)
    if correlations:
        write_csv(folder / "cross_model_correlations.csv", correlations)
    save_figure(plot_profiles(profiles), folder / "cross_model_profiles.png")
    _print_tables(summary, correlations)
    print(f"written to {printable(folder)}")
    return {"summary": summary, "correlations": correlations}


def _print_tables(summary, correlations):
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False, emoji=False)
    title = "share of layers: below -0.01, near 0, above +0.01"
    table = Table("model", "index", "layers", "mean", "sd", "below", "near 0", "above", box=SIMPLE, title=title)
    for row in summary:
        shares = [f"{row[f'share_{part}']:.0%}" for part in ("below", "near_zero", "above")]
        numbers = [str(row["n_layers"]), f"{row['mean']:+.4f}", f"{row['sd']:.4f}"]
        table.add_row(printable(row["model"]), row["index"], *numbers, *shares)
    console.print(table)
    if not correlations:
        print("one model: nothing to correlate")
        return
    table = Table("models", "index", "layers", "Pearson r", "p", "Spearman r", "p", box=SIMPLE, title="layer profiles")
    for row in correlations:
        numbers = [f"{row['pearson_r']:+.3f}", f"{row['pearson_p']:.3f}", f"{row['spearman_r']:+.3f}"]
        pair = printable(f"{row['model_a']} - {row['model_b']}")
        table.add_row(pair, row["index"], str(row["n_points"]), *numbers, f"{row['spearman_p']:.3f}")
    console.print(table)


def run(args):
    compare_models(parse_comparisons([text for group in args.comparison for text in group]), args.output_dir)


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
