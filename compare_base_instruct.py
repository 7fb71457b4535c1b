"""Compare a base and an instruct run, layer by layer, on the prompts that both
hold.

    RFC(l) = 1 - H_self / H_neutral               > 0: self-referent attention
                                                  is the more focused
    RSI(l) = (H_confounder - H_self) / H_neutral  > 0: it is the more focused
                                                  than about-the-user
    difference = instruct - base

Intervals are 95 % bootstrap-t intervals over frames, clusters of prompts that
begin alike, or prompts, as the set is built (docs/PROMPTS.md), the same draws
for both runs. Layers that pass Benjamini-Hochberg at 0.05 over all layers are
marked; counts are printed uncorrected and corrected side by side. Raw indices
move with prompt length alone and are therefore shown beside their length null.
Where both runs hold the same weights the difference is one of prompt formats,
not of training, and every title says so.

--contrast a-b compares categories of any name (contrast_comparison.csv and a
figure); --roles says which of them RFC and RSI are of. In a crossed set
everything is taken inside frames.

detailed_comparison.csv begins with the columns of the original study under its
estimator (rows pooled, t-intervals over heads), for comparison with published
numbers only; the columns behind them (rfc_normalised_diff, ...) are the result.
profile_rows.npz holds the rows behind them, from which
cross_model_correlation.py draws prompts jointly for two models.

    python compare_base_instruct.py --output_dir my_comparison \\
        --base_dir results_activation_analysis/demo/latest_base \\
        --instruct_dir results_activation_analysis/demo/latest_run
    python compare_base_instruct.py  # needs a base and an instruct run
"""

import sys

from output_manager import load_run
from rolecircuits.drawing.table_files import add_table_argument, writes_tables
from rolecircuits.engines.fork_map import fork_map
from rolecircuits.inputs.arguments import (
    ALPHA,
    DEFAULT_RESULTS,
    add_contrast_arguments,
    add_verify_argument,
    check_output_dir,
    say_unverified,
)
from rolecircuits.inputs.categories import REQUIRED
from rolecircuits.inputs.errors import printable
from rolecircuits.inputs.parser import Parser, collector_paused, run_script
from rolecircuits.runs import files, npz


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    base, instruct = (f"{DEFAULT_RESULTS}/latest_{side}" for side in ("base", "run"))
    parser.add_argument("--base_dir", default=base, help="a run folder")
    parser.add_argument("--instruct_dir", default=instruct, help="a run folder")
    parser.add_argument("--output_dir", default="comparison_results", help="for what is written")
    add_contrast_arguments(parser)
    add_verify_argument(parser)
    add_table_argument(parser)
    return parser.parse_args(argv)


@writes_tables
def run(args):
    say_unverified(args)
    check_output_dir(args.output_dir)
    folders = (args.base_dir, args.instruct_dir)
    runs = [load_run(path, not args.no_verify).rename(args.roles) for path in folders]
    print_summary(compare(*runs, args.output_dir, args.contrast))
    print(f"figures, tables and comparison_summary.json are in {printable(args.output_dir)}")


def compare(base, instruct, output_dir, asked=()):
    """Compare two loaded runs, write figures and tables to `output_dir`.

    asked    contrasts "a-b"; without any, those of a set that has no RFC
    returns  what comparison_summary.json holds
    """
    check_output_dir(output_dir)
    with collector_paused():
        from rolecircuits.drawing import pair_figures, style  # matplotlib: not for --help
        from rolecircuits.stats import (
            audit,
            contrasts,
            pair_tables,
            profile_noise,
            run_pairs,
        )  # numpy

    whole = {"base": base, "instruct": instruct}
    runs, notes = run_pairs.match_runs(base, instruct)
    verdicts = {side: audit.audit_design(run)["verdict"] for side, run in whole.items()}
    same = len(set(verdicts.values())) == 1
    notes += [verdicts["base"]] if same else [f"{side}: {v}" for side, v in verdicts.items()]
    has_indices = set(REQUIRED) <= set(runs["base"].counts)
    chosen = {}
    if asked or not has_indices:
        chosen = contrasts.available_contrasts(runs["base"].category, asked)
    compared = run_pairs.estimate_contrasts(runs, chosen)
    estimates, reasons = run_pairs.estimate_pair(runs) if has_indices else ({}, {})
    original = run_pairs.estimate_original(runs) if has_indices else {}
    reasons = [reason for reason in reasons.values() if reason]
    summary = pair_tables.summarise_comparison(runs, estimates, original, notes, reasons)
    summary["contrasts"] = pair_tables.summarise_contrasts(compared)
    why = {name: audit.contrast_reason(runs["base"], chosen[name]) for name in chosen}
    summary["contrast_intervals_left_out"] = [f"{name}: {why[name]}" for name in why if why[name]]
    drawings = list(pair_figures.FIGURES) if has_indices else []
    drawings += [pair_figures.CONTRASTS] if chosen else []

    def draw(name):
        numbers = compared if name == pair_figures.CONTRASTS else estimates
        drawing = pair_figures.draw_pair(name, numbers, summary)
        style.save_drawing(output_dir, name, drawing, facts=facts)

    folder, facts = files.prepare_folder(output_dir), run_pairs.facts_of_pair(runs)
    fork_map(draw, drawings)
    if has_indices:
        rows = pair_tables.list_layers(estimates, original)
        files.write_csv(folder / "detailed_comparison.csv", rows, facts=facts)
        npz.write_npz(folder / profile_noise.ROWS_FILE, profile_noise.profile_rows(runs))
    if chosen:
        rows = pair_tables.list_contrasts(compared)
        files.write_csv(folder / "contrast_comparison.csv", rows, facts=facts)
    files.write_json(folder / "comparison_summary.json", summary)
    return summary


def print_summary(summary):
    """The summary as two tables with the notes below them."""
    from rolecircuits.drawing import tables  # rich: --help does without it

    right = tables.right
    tables.say(f"base      {summary['base']['label']}\ninstruct  {summary['instruct']['label']}")
    original = dict(summary["original"])
    warning = original.pop("warning", None)
    differences = summary["differences"] | ({"original": original} if original else {})
    rows = [
        (f"{index.upper()} {tables.KIND_NAMES.get(kind, kind)}", *difference_cells(tables, entry))
        for kind, entries in differences.items()
        for index, entry in entries.items()
    ]
    rows += [(name, *difference_cells(tables, e)) for name, e in summary["contrasts"].items()]
    size = f"{summary['n_layers']} layers x {summary['n_heads']} heads"
    title = f"instruct - base over {size} ({summary['pair']}): means over layers; > 0: self-"
    title += "referent, or what is named first, gains focus"
    columns = ["", tables.interval("mean [95 %]"), right("null")]
    tables.print_table(columns, [row[:3] for row in rows], title, "null: length null")
    columns = ["", *map(right, ("min @layer", "max @layer", "95 %", "BH", "max-T", "layers"))]
    note = f"95 %: layers whose interval excludes 0, uncorrected; BH, max-T: q, p < {ALPHA}; "
    note += "raw differences are not tested"
    if warning:
        note += f"\n* layers whose t-interval over heads excludes 0: {warning}"
    tables.print_table(columns, [row[:1] + row[3:] for row in rows], "the same by layer", note)
    for text in summary["notes"]:
        tables.say(f"note: {text}")


def difference_cells(tables, entry):
    """Cells of one row: mean with interval, null, extremes, layers that pass each test, of how
    many; - for what is undefined or left out.

    tables  the module drawing.tables    entry  of `summarise_difference`
    """
    if entry["mean"] is None:
        return [*"-------", entry["layers"]]
    mean = tables.with_interval(entry["mean"], entry["mean_ci_low"], entry["mean_ci_high"])
    ends = [f"{entry[end]:+.3f} @{entry[f'{end}_layer']}" for end in ("min", "max")]
    if "head_intervals_excluding_zero" in entry:
        heads = entry["head_intervals_excluding_zero"]
        counts = ["-" if heads is None else f"{heads}*", "-", "-"]
    else:
        names = ("excluding_zero", "q_below_alpha", "p_max_below_alpha")
        counts = [tables.show(entry[f"layers_{name}"], "d") for name in names]
    null = tables.show(entry["length_null_mean"], "+.3f")
    return [mean, null, *ends, *counts, entry["layers"]]


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
