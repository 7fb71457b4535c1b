"""Do models change alike? Compares how RFC and RSI differ (instruct - base) in
several model pairs.

    as is, linear, quadratic  Pearson's r of two layer profiles, and of what is
          left after a line or a parabola in relative depth is removed from
          each; models of unequal depth are compared at the relative depths of
          the shallower, the deeper one interpolated linearly
    p     modified t-test: neighbouring layers are alike, so r is compared with
          t of as many degrees of freedom as the autocorrelation of both
          profiles leaves (rolecircuits/stats/profile_tests.py). Two profiles
          that drift with depth correlate whatever they are: only p of the
          quadratic column is near its level then, and is the one to read
    shifts, phases  the same of r as is, by circular shifts along depth and by
          phase-randomised profiles: the share of them that correlate as
          strongly. L layers have L shifts: under 21 cannot reach 0.05
    effective layers  of how many independent layers r is worth; free: p if all
          of them were independent, which they are not
    changes  r of what changes from one layer to the next
    corrected  r without the noise of the prompts, where two models ran on the
          same prompts and both folders hold profile_rows.npz: 2,000 joint
          resamples (stats/profile_noise.py). signal: the share of the variance
          of each profile that is no such noise; below 0.5 do not trust the
          corrected r. It has no interval: none that was tried covers

One layer can make a mean: it is given again without the layer that lies
farthest from the median, and layers are counted by their own intervals.
docs/PUBLISHED_STUDY.md reads the tables of the public study with it.

--kind normalised | sinkfree reads rfc_<kind>_diff_estimate and
rsi_<kind>_diff_estimate of the detailed_comparison.csv that
compare_base_instruct.py writes; original reads rfc_diff, rsi_diff, the
published estimator, which raw lengths move. Without the flag: normalised where
every file has it, else original of all. Written to --output_dir:
cross_model_summary.csv, cross_model_correlations.csv (also Spearman) and
cross_model_profiles.png.

    python cross_model_correlation.py --comparison \\
        original=comparison_results/demo crossed=comparison_results/demo/crossed
"""

import sys
from pathlib import Path

from rolecircuits.drawing.table_files import add_table_argument, writes_tables
from rolecircuits.inputs.arguments import check_output_dir
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.parser import Parser, run_script
from rolecircuits.runs import files, npz

DEFAULT_OUTPUT = "cross_model_results"
KINDS = ("normalised", "sinkfree", "original")


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    named = {"nargs": "+", "metavar": "NAME=DIR", "help": "a comparison folder, named"}
    parser.add_argument("--comparison", action="append", required=True, **named)
    kinds = "which columns are read (default: normalised where every file has it, else original)"
    parser.add_argument("--kind", choices=KINDS, help=kinds)
    parser.add_argument("--output_dir", default=DEFAULT_OUTPUT, help="for what is written")
    add_table_argument(parser)
    return parser.parse_args(argv)


@writes_tables
def run(args):
    comparisons = parse_comparisons([text for texts in args.comparison for text in texts])
    compare_models(comparisons, args.output_dir, args.kind)


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


def compare_models(comparisons, output_dir, kind=None):
    """Summarise, correlate and plot the comparison folders {name: Path}.

    kind     one of KINDS, or None: normalised where every file has it, else original
    returns  {"summary", "correlations": rows of the CSVs, "kind"}
    """
    folder = check_output_dir(output_dir)

    from rolecircuits.drawing import profile_figure, style, tables  # matplotlib
    from rolecircuits.stats import profile_noise, profiles  # scipy: --help does without it

    changes, used = profiles.read_profiles(comparisons, kind)
    summary = [
        profiles.summarise_profile(name, column, profile, used)
        for name, profile in changes.items()
        for column in profiles.COLUMNS
    ]
    draw, notes = None, []
    if used != "original":
        places = {name: profiles.table_file(path) for name, path in comparisons.items()}
        rows = read_rows(places, changes, profile_noise)
        draw, notes = profile_noise.prepare_draws(list(comparisons), rows, used)
    elif kind is None:
        missing = "rfc_normalised_diff_estimate and that of rsi are not in every file"
        notes = [f"read as original (rfc_diff, rsi_diff, the published estimator): {missing}"]
    correlations = profiles.correlate_models(changes, used, draw)

    folder.mkdir(parents=True, exist_ok=True)
    files.write_csv(folder / "cross_model_summary.csv", summary)
    if correlations:
        files.write_csv(folder / "cross_model_correlations.csv", correlations)
    figure = profile_figure.plot_profiles(changes, used)
    style.save_figure(figure, folder / "cross_model_profiles.png")

    title = f"{tables.KIND_NAMES.get(used, used)}, instruct - base: share of layers below -0.01, "
    title += "near 0, above +0.01; > 0: self-referent gains focus"
    tables.print_profile_summary(summary, title)
    if correlations:
        tables.print_profile_correlations(correlations, used)
    else:
        print("one model: nothing to correlate")
    for note in notes:
        tables.say(f"note: {note}")
    print(f"written to {printable(folder)}")
    return {"summary": summary, "correlations": correlations, "kind": used}


def read_rows(tables, changes, noise):
    """{name: arrays of its profile_rows.npz, checked} of the comparisons that have one.

    tables  {name: path of its table}, beside which the file lies
    changes  {name: profile}, whose layers it must have    noise  the module profile_noise
    """
    rows = {}
    for name, table in tables.items():
        path = table.parent / noise.ROWS_FILE
        if path.exists():
            rows[name] = npz.read_npz(path, noise.ARRAYS)
            noise.check_rows(path, rows[name], len(changes[name]["layer"]))
    return rows


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
