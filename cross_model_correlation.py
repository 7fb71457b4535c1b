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

import sys
from pathlib import Path

from rolecircuits.inputs.arguments import check_output_dir
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.parser import Parser, run_script


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--comparison",
        action="append",
        required=True,
        nargs="+",
        metavar="NAME=DIR",
        help="a comparison folder, named",
    )
    parser.add_argument(
        "--output_dir", default="cross_model_results", help="default: cross_model_results"
    )
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
            raise UserError(
                f"--comparison {printable(text)}: the name {printable(name)} is used twice"
            )
        folders[name] = Path(folder)
    return folders


def compare_models(comparisons, output_dir):
    """Summarise, correlate and plot the comparison folders {name: Path}: {"summary": rows, "correlations": rows}."""

    from rolecircuits.drawing.profile_figure import plot_profiles
    from rolecircuits.stats.profiles import (
        COLUMNS,
        correlate_models,
        read_profile,
        summarise_profile,
    )

    folder = check_output_dir(output_dir)
    profiles = {name: read_profile(path) for name, path in comparisons.items()}

    from rolecircuits.drawing.style import save_figure
    from rolecircuits.runs.files import write_csv

    summary = [
        summarise_profile(name, c, profile[c])
        for name, profile in profiles.items()
        for c in COLUMNS
    ]
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
    table = Table(
        "model",
        "index",
        "layers",
        "mean",
        "sd",
        "below",
        "near 0",
        "above",
        box=SIMPLE,
        title=title,
    )
    for row in summary:
        shares = [f"{row[f'share_{part}']:.0%}" for part in ("below", "near_zero", "above")]
        numbers = [str(row["n_layers"]), f"{row['mean']:+.4f}", f"{row['sd']:.4f}"]
        table.add_row(printable(row["model"]), row["index"], *numbers, *shares)
    console.print(table)
    if not correlations:
        print("one model: nothing to correlate")
        return
    table = Table(
        "models",
        "index",
        "layers",
        "Pearson r",
        "p",
        "Spearman r",
        "p",
        box=SIMPLE,
        title="layer profiles",
    )
    for row in correlations:
        numbers = [
            f"{row['pearson_r']:+.3f}",
            f"{row['pearson_p']:.3f}",
            f"{row['spearman_r']:+.3f}",
        ]
        pair = printable(f"{row['model_a']} - {row['model_b']}")
        table.add_row(
            pair, row["index"], str(row["n_points"]), *numbers, f"{row['spearman_p']:.3f}"
        )
    console.print(table)


def run(args):
    compare_models(
        parse_comparisons([text for group in args.comparison for text in group]), args.output_dir
    )


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
