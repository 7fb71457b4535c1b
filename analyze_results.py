"""Test every layer and head of a run: intervals, permutation p-values, corrections, effect sizes, ablation candidates.

    RFC = 1 - H_self / H_neutral, RSI = (H_confounder - H_self) / H_neutral     > 0: self-referent is the more focused
    Hedges g of a contrast first - second                                       > 0: the first has the higher entropy

Written to --output_dir, never into the run folder (methods and their sources: METHODS.md):

    layer_metrics.csv          RFC and RSI of every layer, four ways, with 95 % interval, null, p, q and max-T p
    head_ranking.csv           every head, strongest first: differences, g with interval, p, q and max-T p
    category_summary.csv       prompts, tokens, mean entropies and sink mass of each category
    ablation_candidates.json   heads for interventions.py: chosen on half of the prompts, measured on the other half

    python analyze_results.py --input_dir results_activation_analysis/latest_run --top_k 10
"""

import sys

from rolecircuits.inputs.arguments import (
    DEFAULT_SEED,
    add_verify_argument,
    check_output_dir,
    positive_int,
    say_unverified,
    seed_value,
)
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.parser import Parser, run_script

DEFAULT_OUTPUT = "analysis_results"


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--input_dir", required=True, help="a run folder, or a latest_* link to one"
    )
    parser.add_argument("--output_dir", default=DEFAULT_OUTPUT, help=f"default: {DEFAULT_OUTPUT}")
    parser.add_argument(
        "--top_k",
        type=positive_int,
        default=10,
        help="heads printed and proposed for ablation (10)",
    )
    parser.add_argument(
        "--seed",
        type=seed_value,
        default=DEFAULT_SEED,
        help=f"of resamples and prompt split (default {DEFAULT_SEED})",
    )
    add_verify_argument(parser)
    return parser.parse_args(argv)


def analyze(input_dir, output_dir=DEFAULT_OUTPUT, top_k=10, seed=DEFAULT_SEED, verify=True):
    """Analyse a run, write the four files and print the tables: {"layers", "heads", "categories", "candidates", ...}.

    layers, heads, categories  the rows written    candidates  the plan written    verdicts  the lines printed
    raises  UserError where the run cannot be read, the folder not be written, or no two categories are comparable
    """
    folder = check_output_dir(output_dir)

    from output_manager import load_run
    from rolecircuits.edits.candidates import select_candidates
    from rolecircuits.runs.files import write_csv, write_json
    from rolecircuits.stats.resampling import missing_prompts_reason
    from rolecircuits.stats.role_tests import (
        contrast_heads,
        layer_metrics,
        rank_heads,
        summarise_categories,
    )

    run = load_run(input_dir, verify)
    contrasts = contrast_heads(run, seed)
    if not contrasts:
        raise UserError(
            f"{input_dir}: has {', '.join(run.counts)}; no two categories that a contrast compares"
        )
    found = {"layers": layer_metrics(run, seed), "heads": rank_heads(contrasts)}
    found |= {
        "categories": summarise_categories(run, seed),
        "candidates": select_candidates(run, top_k, seed),
    }
    found["verdicts"] = _verdicts(found["layers"], contrasts, missing_prompts_reason(run.category))
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "layer_metrics.csv", found["layers"])
    write_csv(folder / "head_ranking.csv", found["heads"])
    write_csv(folder / "category_summary.csv", found["categories"])
    write_json(folder / "ablation_candidates.json", found["candidates"])
    _print_tables(run, found, next(iter(contrasts)), top_k)
    print(
        f"written to {printable(folder)}: layer_metrics, head_ranking, category_summary (csv), ablation_candidates (json)"
    )
    return found


def _verdicts(layers, contrasts, too_few):
    """One line a family of tests: heads of every contrast, layers of every index (normalised and sink-free)."""
    from rolecircuits.stats.role_tests import describe_survivors

    lines = [f"note: {too_few}; those are left empty"] if too_few else []
    lines += [
        f"{name}: {describe_survivors('head', measures)}" for name, measures in contrasts.items()
    ]
    for kind in ("normalised", "sinkfree", "position_matched"):
        for index in ("rfc", "rsi"):
            rows = [row for row in layers if row["kind"] == kind and row["index"] == index]
            tests = {key: [row[key] for row in rows] for key in ("p", "q", "p_max")}
            lines.append(f"{kind} {index.upper()}: {describe_survivors('layer', tests)}")
    return lines


def _print_tables(run, found, contrast, top_k):
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Column, Table

    console = Console(markup=False, highlight=False, emoji=False)
    title = f"{run.label}: strongest heads, {contrast.replace('_', ' - ')}, normalised entropy"
    interval = Column("95 % interval", no_wrap=True)
    table = Table(
        "layer", "head", "diff", "g", interval, "p", "q (BH)", "max-T p", box=SIMPLE, title=title
    )
    for row in found["heads"][:top_k]:
        value = {
            key: row[f"{contrast}_{key}"]
            for key in ("difference", "g", "g_low", "g_high", "p", "q", "p_max")
        }
        interval = f"{_show(value['g_low'], '+.2f')} {_show(value['g_high'], '+.2f')}"
        numbers = [_show(value["difference"], "+.4f"), _show(value["g"], "+.2f"), interval]
        numbers += [_show(value[key], ".4f") for key in ("p", "q", "p_max")]
        place = [str(row[key]) for key in ("layer", "head")]
        table.add_row(*place, *numbers)
    console.print(table)
    print("\n".join(found["verdicts"]))
    plan = found["candidates"]
    if plan["selection"]:
        held = sum(row["q_held_out"] < 0.05 for row in plan["selection"])
        print(
            f"ablation candidates: {len(plan['selection'])} heads, {held} confirmed on the held-out half (q < 0.05)"
        )
    if "note" in plan:
        print(plan["note"])


def _show(value, form):
    return "-" if value != value else format(value, form)


def run(args):
    say_unverified(args)
    analyze(args.input_dir, args.output_dir, args.top_k, args.seed, not args.no_verify)


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
