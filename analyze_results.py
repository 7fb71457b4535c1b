"""Test every layer and head of a run: intervals, p-values, corrections, effect
sizes, candidates.

    RFC = 1 - H_self / H_neutral       RSI = (H_confounder - H_self) / H_neutral
    both > 0: self-referent is the more focused
    contrast a-b: H_b - H_a, also > 0: a is the more focused; g is its Hedges g

How the prompts are built is said first: what the first word and the token count
explain besides the category. In a crossed set differences are taken inside
frames, and frames are the unit.

Written to analysis_results/<name of the run folder>, never into the run (the
methods and their sources: METHODS.md):

    design.json               how the prompts are built, by layer
    layer_metrics.csv         RFC and RSI of every layer, five ways, each with
                              95 % interval, null, p, q and max-T p; how many
                              prompts and frames it rests on; what could have
                              been found, and whether it differs or is
                              equivalent to its null
    multiverse.csv            sign and significance under every choice of the
                              analysis
    contrasts.csv             every contrast, layer by layer
    head_ranking.csv          every head, strongest first: differences, g with
                              interval, p, q and max-T p; in a crossed set also
                              its attention on the slot, by category
    category_summary.csv      prompts, tokens, mean entropies and sink mass of
                              each category
    ablation_candidates.json  heads for interventions.py, chosen on half of the
                              prompts and measured on the other half
    head_changes.csv          with --compare: every head by how tuning changes
                              self_referent - neutral, beside the ranking of the
                              public study's later version (difference in
                              differences, log ratio, consistency)

    python analyze_results.py --top_k 5 \\
        --input_dir results_activation_analysis/demo/latest_run
    python analyze_results.py --contrast third_person-neutral \\
        --input_dir results_activation_analysis/demo/crossed/latest_run
    python analyze_results.py \\
        --input_dir results_activation_analysis/demo/crossed/latest_base \\
        --compare results_activation_analysis/demo/crossed/latest_run
"""

import sys
from pathlib import Path

from output_manager import load_run
from rolecircuits.drawing.table_files import add_table_argument, writes_tables
from rolecircuits.inputs.arguments import (
    DEFAULT_SEED,
    MARGIN,
    add_contrast_arguments,
    add_verify_argument,
    check_output_dir,
    positive_int,
    positive_number,
    say_unverified,
    seed_value,
)
from rolecircuits.inputs.errors import printable
from rolecircuits.inputs.parser import Parser, run_script
from rolecircuits.runs import files

DEFAULT_OUTPUT = "analysis_results"  # in it, a folder named as the run's


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    folder = "a run folder, or a latest_* link to one"
    parser.add_argument("--input_dir", required=True, help=folder)
    place = f"where the tables go (default {DEFAULT_OUTPUT}/<name of the run folder>)"
    parser.add_argument("--output_dir", help=place)
    proposed = "heads printed and proposed for ablation"
    parser.add_argument("--top_k", type=positive_int, default=10, help=proposed)
    use = f"of resamples and prompt split (default {DEFAULT_SEED})"
    parser.add_argument("--seed", type=seed_value, default=DEFAULT_SEED, help=use)
    least = f"an index nearer to its null than this is no effect (default {MARGIN})"
    parser.add_argument("--margin", type=positive_number, default=MARGIN, help=least)
    other = "an instruct run, --input_dir being its base: heads ranked by what tuning changes"
    parser.add_argument("--compare", metavar="RUN", help=other)
    add_contrast_arguments(parser)
    add_verify_argument(parser)
    add_table_argument(parser)
    return parser.parse_args(argv)


@writes_tables
def run(args):
    say_unverified(args)
    check_output_dir(args.output_dir or DEFAULT_OUTPUT)
    run = load_run(args.input_dir, not args.no_verify).rename(args.roles)
    place = args.output_dir or Path(DEFAULT_OUTPUT, run.name)
    pair = match_pair(run, args) if args.compare is not None else None
    analyze(run, place, args.top_k, args.seed, args.contrast, args.margin)
    if pair is not None:
        compare_heads(*pair, place, args.top_k, args.seed)


def match_pair(run, args):
    """(the two runs on their common prompts, notes); refused before anything is computed."""
    from rolecircuits.stats import head_changes  # numpy: --help does without it

    other = load_run(args.compare, not args.no_verify).rename(args.roles)
    return head_changes.match_pair(run, other)


def compare_heads(runs, notes, output_dir, top_k=10, seed=DEFAULT_SEED):
    """Rank heads by what tuning changes, write head_changes.csv, print the first; returns rows."""
    from rolecircuits.drawing import tables  # rich, as below
    from rolecircuits.stats import head_changes, run_pairs  # numpy, as above

    rows = head_changes.list_head_changes(runs, seed)
    facts = run_pairs.facts_of_pair(runs)
    files.write_csv(Path(output_dir, "head_changes.csv"), rows, facts=facts)
    tables.print_head_changes(rows, top_k, head_changes.compare_rankings(rows, top_k))
    for text in notes:
        tables.say(f"note: {text}")
    print(f"written to {printable(output_dir)}: head_changes (csv)")
    return rows


def analyze(run, output_dir, top_k=10, seed=DEFAULT_SEED, asked=(), margin=MARGIN):
    """Analyse a loaded run, write the files, print the tables.

    asked    contrasts "a-b"; without any the usual ones    margin  as --margin
    returns  {"layers", "contrasts", "heads", "categories", "multiverse": rows of the CSVs,
             "candidates": the plan, "design": the audit, "verdicts": the lines printed}
    """
    folder = check_output_dir(output_dir)

    from rolecircuits.drawing import tables  # rich and numpy: --help does without them
    from rolecircuits.edits import candidates  # numpy
    from rolecircuits.stats import contrasts, multiverse, role_tests, verdicts  # numpy

    chosen = contrasts.available_contrasts(run.category, asked)
    design = tables.print_audit(run)
    tests = role_tests.contrast_heads(run, chosen, seed)
    compared = role_tests.contrast_layers(run, chosen, seed)
    inferred = role_tests.infer_kinds(run, seed)
    layers = role_tests.layer_metrics(run, inferred, margin)
    heads = role_tests.rank_heads(tests, run)
    categories = role_tests.summarise_categories(run, seed)
    plan = candidates.select_candidates(run, top_k, seed, chosen)
    choices = multiverse.multiverse_rows(run, inferred, seed)
    reasons = role_tests.list_reasons(run, chosen)
    said = verdicts.list_verdicts(layers, tests, reasons, margin)

    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / "design.json", design)
    files.write_csv(folder / "contrasts.csv", compared, facts=run.facts)
    columns = role_tests.LAYER_COLUMNS
    files.write_csv(folder / "layer_metrics.csv", layers, columns, run.facts)
    files.write_csv(folder / "head_ranking.csv", heads, facts=run.facts)
    files.write_csv(folder / "category_summary.csv", categories, facts=run.facts)
    columns = multiverse.CHOICE_COLUMNS
    files.write_csv(folder / "multiverse.csv", choices, columns, run.facts)
    files.write_json(folder / "ablation_candidates.json", plan)

    tables.print_contrasts(run, chosen, compared)
    tables.print_heads(run, heads[:top_k], next(iter(chosen)))
    tables.say("\n".join(said))
    if plan["selection"]:
        q = [row["q_held_out"] for row in plan["selection"]]
        confirmed = f"{sum(x < 0.05 for x in q)} confirmed on the held-out half (q < 0.05)"
        if all(x != x for x in q):
            confirmed = "the held-out half is too small to confirm one"
        print(f"ablation candidates: {len(q)} heads, {confirmed}")
    tables.say(plan.get("note", ""))
    tables.say(
        f"written to {printable(folder)}: layer_metrics, multiverse, contrasts, head_ranking, "
        "category_summary (csv), design, ablation_candidates (json)"
    )
    results = {"layers": layers, "contrasts": compared, "heads": heads, "categories": categories}
    results |= {"multiverse": choices, "candidates": plan}
    return results | {"design": design, "verdicts": said}


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
