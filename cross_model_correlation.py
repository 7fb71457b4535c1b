"""Do models change alike? Compares how RFC and RSI differ (instruct - base) in several model pairs.

    correlation  Pearson and Spearman of two layer profiles; models of unequal depth are compared on
                 relative depth, the deeper one interpolated linearly at the layers of the shallower
    p            share of the circular shifts of one profile along depth, the unshifted one among
                 them, that correlate as strongly. Neighbouring layers are alike, so shuffling
                 would find correlations everywhere; L layers have L shifts, so p cannot be below
                 1 / L: fewer than 21 layers cannot reach 0.05

A folder holds detailed_comparison.csv as compare_base_instruct.py writes it; only layer, rfc_diff
and rsi_diff are needed, so that files of others can be read. Written to --output_dir:
cross_model_summary.csv, cross_model_correlations.csv and cross_model_profiles.png.

    python cross_model_correlation.py --comparison mistral=comparison_results/mistral \\
        --comparison qwen=comparison_results/qwen
"""

import sys
from pathlib import Path

from rolecircuits.inputs.arguments import check_output_dir
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.parser import Parser, run_script
from rolecircuits.runs import files

DEFAULT_OUTPUT = "cross_model_results"


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    named = {"nargs": "+", "metavar": "NAME=DIR", "help": "a comparison folder, named"}
    parser.add_argument("--comparison", action="append", required=True, **named)
    parser.add_argument("--output_dir", default=DEFAULT_OUTPUT, help=f"default: {DEFAULT_OUTPUT}")
    return parser.parse_args(argv)


def run(args):
    comparisons = parse_comparisons([text for texts in args.comparison for text in texts])
    compare_models(comparisons, args.output_dir)


def parse_comparisons(texts):
    """{name: folder} from NAME=DIR texts; refused: a missing name or folder, a name used twice."""
    folders = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not equals or not name.strip() or not folder:
            raise UserError(
                f"--comparison {printable(text)}: expected NAME=DIR, "
                "for example mistral=comparison_results"
            )
        if name in folders:
            raise UserError(
                f"--comparison {printable(text)}: the name {printable(name)} is used twice"
            )
        folders[name] = Path(folder)
    return folders


def compare_models(comparisons, output_dir):
    """Summarise, correlate and plot the comparison folders {name: Path}.

    returns  {"summary", "correlations": rows of the CSVs}
    """
    folder = check_output_dir(output_dir)

    from rolecircuits.drawing import profile_figure, style, tables  # matplotlib
    from rolecircuits.stats import profiles  # numpy: --help does without it

    changes = {name: profiles.read_profile(path) for name, path in comparisons.items()}
    summary = [
        profiles.summarise_profile(name, column, profile[column])
        for name, profile in changes.items()
        for column in profiles.COLUMNS
    ]
    correlations = profiles.correlate_models(changes)

    folder.mkdir(parents=True, exist_ok=True)
    files.write_csv(folder / "cross_model_summary.csv", summary)
    if correlations:
        files.write_csv(folder / "cross_model_correlations.csv", correlations)
    style.save_figure(profile_figure.plot_profiles(changes), folder / "cross_model_profiles.png")

    columns = ("model", "index", "layers", "mean", "sd", "below", "near 0", "above")
    title = "share of layers: below -0.01, near 0, above +0.01"
    tables.print_table(columns, map(summary_cells, summary), title)
    if correlations:
        columns = ("models", "index", "layers", "Pearson r", "p", "Spearman r", "p")
        tables.print_table(columns, map(correlation_cells, correlations), "layer profiles")
    else:
        print("one model: nothing to correlate")
    print(f"written to {printable(folder)}")
    return {"summary": summary, "correlations": correlations}


def summary_cells(row):
    """Cells of one row of cross_model_summary.csv on the terminal."""
    shares = [f"{row[f'share_{part}']:.0%}" for part in ("below", "near_zero", "above")]
    moments = [f"{row['mean']:+.4f}", f"{row['sd']:.4f}"]
    return [row["model"], row["index"], row["n_layers"], *moments, *shares]


def correlation_cells(row):
    """Cells of one row of cross_model_correlations.csv on the terminal."""
    pair = f"{row['model_a']} - {row['model_b']}"
    pearson, spearman = (
        [f"{row[f'{name}_r']:+.3f}", f"{row[f'{name}_p']:.3f}"] for name in ("pearson", "spearman")
    )
    return [pair, row["index"], row["n_points"], *pearson, *spearman]


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
