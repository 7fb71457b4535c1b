"""Compare a base and an instruct run, layer by layer, on the prompts that both hold.

    RFC(l) = 1 - H_self / H_neutral                    > 0: self-referent attention is the more focused
    RSI(l) = (H_confounder - H_self) / H_neutral       > 0: self-referent is more focused than about-the-user
    difference = instruct - base

Intervals are 95 % bootstrap-t intervals over prompts, the same resamples for both runs; layers are marked that pass
Benjamini-Hochberg at 0.05 over all layers, and counts are printed uncorrected and corrected side by side. Raw indices move
with prompt length alone and are therefore shown beside their length null. Where both runs hold the same weights the
difference is one of prompt formats, not of training, and every title says so.

detailed_comparison.csv begins with the columns of the original study under its estimator (rows pooled, t-intervals over
heads), for comparison with published numbers only; the columns behind them (rfc_normalised_diff, ...) are the result.

    python compare_base_instruct.py --base_dir results_activation_analysis/latest_base \\
        --instruct_dir results_activation_analysis/latest_run --output_dir comparison_results
"""

import sys

from rolecircuits.engines.fork_map import fork_map
from rolecircuits.inputs.arguments import (
    DEFAULT_RESULTS,
    DEFAULT_SEED,
    add_verify_argument,
    check_output_dir,
    say_unverified,
)
from rolecircuits.inputs.errors import printable
from rolecircuits.inputs.parser import Parser, collector_paused, run_script
from rolecircuits.inputs.specs import same_weights

NOT_INFERENCE = "uncorrected, and heads are no independent samples: not valid inference, only for published numbers"


def compare(base_dir, instruct_dir, output_dir, verify=True):
    """Compare two run folders, write figures and tables to `output_dir`; returns what comparison_summary.json holds."""

    from output_manager import load_run
    from rolecircuits.runs.files import prepare_folder, write_csv, write_json
    from rolecircuits.stats.run_pairs import estimate_original, estimate_pair, match_runs

    check_output_dir(output_dir)
    runs, notes = match_runs(load_run(base_dir, verify), load_run(instruct_dir, verify))
    estimates, reasons = estimate_pair(runs)
    original = estimate_original(runs)
    summary = summarise_comparison(
        runs, estimates, original, notes, [text for text in reasons.values() if text]
    )
    folder = prepare_folder(output_dir)
    write_figures(folder, estimates, summary)
    write_csv(folder / "detailed_comparison.csv", list_layers(estimates, original))
    write_json(folder / "comparison_summary.json", summary)
    return summary


def list_layers(estimates, original):
    """Rows of detailed_comparison.csv, one a layer: the original columns in their order, then the new ones."""

    import numpy as np

    from rolecircuits.stats.indices import INDICES, KINDS
    from rolecircuits.stats.run_pairs import P_VALUES, SIDES

    columns = {"layer": np.arange(len(original["rfc"]["diff"]["value"]))}
    for run in SIDES:
        for index in INDICES:
            side = original[index][run]
            columns |= {f"{index}_{part}_{run}": side[part] for part in ("mean", "std")}
            columns |= {f"{index}_ci_{end}_{run}": side[end] for end in ("low", "high")}
        columns[f"n_heads_{run}"] = original["rfc"][run]["n"]
    columns |= {f"{index}_diff": original[index]["diff"]["value"] for index in INDICES}
    columns |= {
        f"{index}_diff_ci_{end}": original[index]["diff"][end]
        for index in INDICES
        for end in ("low", "high")
    }
    for kind in KINDS:
        for index in INDICES:
            for name, estimate in estimates[kind][index].items():
                columns[f"{index}_{kind}_{name}"] = estimate["value"]
                columns |= {
                    f"{index}_{kind}_{name}_ci_{end}": estimate[end] for end in ("low", "high")
                }
                columns |= {f"{index}_{kind}_{name}_{test}": estimate[test] for test in P_VALUES}
    for index in INDICES:
        columns |= {
            f"{index}_null_raw_{name}": side["null"]
            for name, side in estimates["raw"][index].items()
        }
    return [{name: column[layer] for name, column in columns.items()} for layer in columns["layer"]]


def summarise_comparison(runs, estimates, original, notes, reasons):
    """comparison_summary.json: what was compared, the notes, and per kind and index the difference over layers."""

    from rolecircuits.stats.indices import INDICES, KINDS
    from rolecircuits.stats.resampling import CONFIDENCE, N_RESAMPLES
    from rolecircuits.stats.run_pairs import describe_pair, facts_of_run, summarise_difference

    base, instruct = runs["base"], runs["instruct"]
    differences = {
        kind: {index: summarise_difference(estimates[kind][index]["diff"]) for index in INDICES}
        for kind in KINDS
    }
    heads = {index: summarise_difference(original[index]["diff"]) for index in INDICES}
    for entry in heads.values():
        entry["head_intervals_excluding_zero"] = entry.pop("layers_excluding_zero")
    undefined = [
        f"{i.upper()} {k}" for k in KINDS for i in INDICES if differences[k][i]["layers_undefined"]
    ]
    if undefined:
        notes = [
            *notes,
            f"undefined in some layers (neutral entropy 0, or no prompts): {', '.join(undefined)}",
        ]
    return {
        "pair": describe_pair(base, instruct),
        "same_weights": same_weights(base.config["model"], instruct.config["model"]),
        **{name: facts_of_run(run) for name, run in runs.items()},
        "n_layers": base.n_layers,
        "n_heads": base.n_heads,
        "prompts_compared": base.counts,
        "notes": notes + reasons,
        "intervals_left_out": reasons,
        "bootstrap": {
            "unit": "prompt",
            "resamples": N_RESAMPLES,
            "seed": DEFAULT_SEED,
            "confidence": CONFIDENCE,
        },
        "difference": "instruct - base",
        "differences": differences,
        "original": {"warning": NOT_INFERENCE, **heads},
    }


def write_figures(folder, estimates, summary):
    """rfc_rsi_comparison.png, rfc_rsi_differences.png, and the numbers behind each in data/*.csv."""

    from rolecircuits.drawing.pair_figures import FIGURE_KINDS, draw_indices, list_points
    from rolecircuits.runs.files import write_csv
    from rolecircuits.stats.run_pairs import SIDES

    with collector_paused():
        from rolecircuits.drawing.style import save_figure

    def draw(name):
        kinds, shown = FIGURE_KINDS[name], SIDES if name == "rfc_rsi_comparison" else ("diff",)
        figure = draw_indices(estimates, summary, kinds, shown)
        save_figure(figure, folder / f"{name}.png")
        rows = [
            row
            for kind in kinds
            for run in shown
            for row in list_points(estimates[kind], kind, run)
        ]
        write_csv(folder / "data" / f"{name}.csv", rows)

    fork_map(draw, FIGURE_KINDS)


def print_summary(summary):
    """The summary as one table with the notes below it."""

    from rich.console import Console
    from rich.table import Table

    from rolecircuits.stats.indices import INDICES, KINDS
    from rolecircuits.stats.role_tests import ALPHA

    console = Console(markup=False, highlight=False, emoji=False)
    columns = ("", "mean [95 %]", "null", "min @layer", "max @layer", "layers")
    table = Table(*columns, box=None, pad_edge=False)
    rows = [(kind, entry) for kind in KINDS for entry in summary["differences"][kind].items()]
    rows += [("original", (index, summary["original"][index])) for index in INDICES]
    for kind, (index, entry) in rows:
        table.add_row(f"{index.upper()} {kind}", *_format_difference(entry))
    console.print(
        f"base      {summary['base']['label']}\ninstruct  {summary['instruct']['label']}",
        soft_wrap=True,
    )
    size = f"{summary['n_layers']} layers x {summary['n_heads']} heads"
    console.print(f"instruct - base over {size} ({summary['pair']})", soft_wrap=True)
    console.print(table)
    tests = f"95 % interval excludes 0, uncorrected / Benjamini-Hochberg q < {ALPHA} / max-T p < {ALPHA}"
    console.print(
        f"null: length null. layers: {tests}; raw differences are not tested", soft_wrap=True
    )
    console.print(
        f"* layers whose t-interval over heads excludes 0: {NOT_INFERENCE}", soft_wrap=True
    )
    for note in summary["notes"]:
        console.print(f"note: {note}", soft_wrap=True)


def _format_difference(entry):
    """Cells of one row of the table; - for what is undefined or left out."""
    if entry["mean"] is None:
        return ["undefined", *["-"] * 4]
    mean, null = f"{entry['mean']:+.3f}", entry["length_null_mean"]
    if entry["mean_ci_low"] is not None:
        mean += f" [{entry['mean_ci_low']:+.3f}, {entry['mean_ci_high']:+.3f}]"
    ends = [f"{entry[end]:+.3f} @{entry[f'{end}_layer']}" for end in ("min", "max")]
    excluding = "-"
    if entry.get("head_intervals_excluding_zero") is not None:
        excluding = f"{entry['head_intervals_excluding_zero']}*"
    elif entry.get("layers_excluding_zero") is not None:
        counts = [
            entry[f"layers_{name}"]
            for name in ("excluding_zero", "q_below_alpha", "p_max_below_alpha")
        ]
        excluding = "/".join("-" if count is None else str(count) for count in counts)
    return [mean, "-" if null is None else f"{null:+.3f}", *ends, excluding]


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--base_dir",
        default=f"{DEFAULT_RESULTS}/latest_base",
        help="run folder (default %(default)s)",
    )
    parser.add_argument(
        "--instruct_dir", default=f"{DEFAULT_RESULTS}/latest_run", help="default %(default)s"
    )
    parser.add_argument("--output_dir", default="comparison_results", help="default %(default)s")
    add_verify_argument(parser)
    return parser.parse_args(argv)


def run(args):
    say_unverified(args)
    print_summary(compare(args.base_dir, args.instruct_dir, args.output_dir, not args.no_verify))
    print(
        f"figures, detailed_comparison.csv and comparison_summary.json are in {printable(args.output_dir)}"
    )


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
