"""The whole study of one model family in one command: analysis, figures, comparison, and a table of the main numbers.

    both runs -> nine figures for each -> tests of every layer and head -> base-versus-instruct comparison
    -> the base run's strongest heads cut, beside random heads of the same layers

    python run_pipeline.py --family demo
    python run_pipeline.py --family mistral --dtype bfloat16 --device cuda

The families are in model_families.json; add your own pair there or point --families_file at a file of the same form.
Results go to results_activation_analysis/NAME/, figures/NAME/, analysis_results/NAME/ and comparison_results/NAME/. `demo`
is the bundled model twice, on raw and on chat-formatted prompts: same weights, two framings, not two training stages.
"""

import contextlib
import io
import re
import sys
import time
from pathlib import Path

import activation_analysis
from cli import (
    DEFAULT_RESULTS,
    Parser,
    UserError,
    add_run_arguments,
    add_verify_argument,
    check_model_arguments,
    check_output_dir,
    positive_int,
    printable,
    run_script,
    say_unverified,
)
from fork_map import fork_map
from output_manager import resolve_run
from prompts import load_prompts, read_strict_json

RUNS = {"instruct": "latest", "base": "latest_base"}  # in the order they are run: the base model is edited afterwards
SIDES = ("base", "instruct")
FAMILIES_FILE = Path(__file__).resolve().parent / "model_families.json"
FAMILY_KEYS = ("model_id", "revision", "prompt_format", "system_prompt")


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("--family", required=True, help="a name in model_families.json: demo, mistral, qwen, ...")
    parser.add_argument("--families_file", default=str(FAMILIES_FILE))
    add_run_arguments(parser)
    parser.add_argument("--prompts", help="JSON file of your own prompts: {category: [text, ...]}")
    parser.add_argument("--raw", choices=["none", "patterns", "full"], default="none", help="the figures need none")
    parser.add_argument("--skip_analysis", action="store_true", help="use the newest runs of this family")
    parser.add_argument("--skip_visualization", action="store_true")
    parser.add_argument("--skip_comparison", action="store_true")
    parser.add_argument("--skip_interventions", action="store_true")
    parser.add_argument("--top_k", type=positive_int, default=3, help="heads that are cut (default 3, 2 controls each)")
    add_verify_argument(parser)
    return parser.parse_args(argv)


def run(args):
    """Run the stages that are not skipped; 0, or 3 if some prompts failed."""
    say_unverified(args)
    family = load_family(args.families_file, args.family)
    stage_args = {name: analysis_args(name, family[name], args) for name in RUNS}
    for each in stage_args.values():
        check_model_arguments(each)
    outputs = [
        results_dir(args),
        *(Path(root, args.family) for root in ("figures", "analysis_results", "comparison_results")),
    ]
    for folder in outputs:
        check_output_dir(folder)
    if note := family.get("note"):
        print(f"family {args.family}: {printable(note)}")
    loaded, failed = (None, []) if args.skip_analysis else analyze_family(stage_args)
    folders = {name: results_dir(args) / activation_analysis.LINKS[RUNS[name]] for name in SIDES}
    for folder in folders.values():
        resolve_run(folder)
    summary = report_family(folders, args)
    if not args.skip_interventions:
        intervene(loaded, stage_args["base"], args)
    print_main_numbers(folders, summary, args)
    return 3 if failed else 0


def results_dir(args):
    """Where this family's runs are."""
    return Path(DEFAULT_RESULTS, args.family)


def load_family(path, name):
    """One family of a families file, checked: {"base": {...}, "instruct": {...}, "note": optional}."""
    families = read_strict_json(Path(path), "--families_file")
    if not isinstance(families, dict) or not all(re.fullmatch(r"[A-Za-z0-9][\w.-]*", key) for key in families):
        raise UserError(f"--families_file {path}: must be an object whose keys are letters, digits, '_', '.' and '-'")
    if name not in families:
        raise UserError(f"--family {printable(name)}: unknown; {path} has {', '.join(families)}")
    family = families[name]
    for side in SIDES:
        entry = family.get(side) if isinstance(family, dict) else None
        if not isinstance(entry, dict) or not isinstance(entry.get("model_id"), str):
            raise UserError(f"{path}: {name}.{side} must be an object with a model_id")
        for key, value in entry.items():
            if key not in FAMILY_KEYS or not isinstance(value, str):
                raise UserError(
                    f"{path}: {name}.{side}.{printable(key)}: allowed are texts for {', '.join(FAMILY_KEYS)}"
                )
        if entry.get("prompt_format", "raw") not in ("raw", "chat"):
            raise UserError(f"{path}: {name}.{side}.prompt_format must be raw or chat")
    return family


def analysis_args(name, entry, args):
    """The arguments that activation_analysis.py would get on its own command line for this run."""
    flags = ["--output_dir", str(results_dir(args)), "--output_type", RUNS[name]]
    flags += [word for key, value in entry.items() for word in (f"--{key}", value)]
    for key in ("prompts", "prompts_per_category", "dtype", "device", "device_map", "batch_size", "seed", "raw"):
        value = getattr(args, key)
        flags += [] if value is None else [f"--{key}", str(value)]
    return activation_analysis.parse_args(flags)


def analyze_family(stage_args):
    """Run both analyses, a model that both use is loaded once: (the base run's model, the prompts that failed)."""
    failed, loaded, key = [], None, None
    for each in stage_args.values():
        prompts, notes = load_prompts(each.prompts, each.prompts_per_category)
        for note in notes:
            print(f"note: {note}")
        started = time.perf_counter()
        timings = {"load_s": 0.0}
        if key != (each.model_id, each.revision):
            loaded = None  # the previous model's memory is free before the next one is read
            loaded, key = activation_analysis.load_from_args(each), (each.model_id, each.revision)
            timings["load_s"] = time.perf_counter() - started
        failed += activation_analysis.analyze_model(loaded, prompts, each, timings)[1]
    return loaded, failed


def report_family(folders, args):
    """Figures and tests of each run and the comparison of both, side by side; returns the comparison's summary or None.

    figures/NAME/{base,instruct}, analysis_results/NAME/{base,instruct} and comparison_results/NAME
    """

    def report(part):
        with contextlib.redirect_stdout(io.StringIO()) as said:  # printed below, one part after the other
            summary = compare_family(folders, args) if part == "comparison" else None
            if part in folders and not args.skip_visualization:
                draw_run(folders[part], part, args)
            if part in folders:
                test_run(folders[part], part, args)
        return said.getvalue(), summary

    parts = [*folders] if args.skip_comparison else [*folders, "comparison"]
    reports = fork_map(report, parts)
    for said, _ in reports:
        print(said, end="")
    return None if args.skip_comparison else reports[-1][1]


def draw_run(folder, side, args):
    """The nine figures of a run, into figures/NAME/base or figures/NAME/instruct."""
    from visualize_results import visualize

    visualize(folder, Path("figures", args.family, side), verify=not args.no_verify)


def test_run(folder, side, args):
    """Tests of every layer and head of a run, into analysis_results/NAME/base or analysis_results/NAME/instruct."""
    from analyze_results import analyze

    analyze(folder, Path("analysis_results", args.family, side), args.top_k, args.seed, not args.no_verify)


def compare_family(folders, args):
    """The comparison of the two runs, into comparison_results/NAME; returns its summary."""
    from compare_base_instruct import compare

    return compare(folders["base"], folders["instruct"], Path("comparison_results", args.family), not args.no_verify)


def intervene(loaded, base_args, args):
    """Cut the heads that analyze_results.py proposed for the base run, and draw the effects; nothing if it proposed none."""
    import interventions
    from intervention_plan import read_plan
    from visualize_results import visualize_interventions

    plan_file = Path("analysis_results", args.family, "base", "ablation_candidates.json")
    plan_args = interventions.parse_args([])
    vars(plan_args).update({key: value for key, value in vars(base_args).items() if hasattr(plan_args, key)})
    try:
        plan = read_plan(plan_file)
    except UserError as reason:
        print(f"no interventions: {reason}")
        return
    prompts, _ = load_prompts(base_args.prompts, base_args.prompts_per_category)
    loaded = loaded or activation_analysis.load_from_args(base_args)
    interventions.run_interventions(loaded, prompts, plan, plan_args)
    if not args.skip_visualization:
        folder = results_dir(args) / interventions.LATEST
        visualize_interventions(
            folder, Path("figures", args.family, "intervention"), each_run=False, verify=not args.no_verify
        )


def print_main_numbers(folders, summary, args):
    """One table: the mean over layers of each index in both runs beside its length null, and what to open."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from output_manager import load_run
    from role_metrics import INDICES, KINDS, layer_indices, layer_null

    console = Console(markup=False, highlight=False)
    runs = {name: load_run(folder, not args.no_verify) for name, folder in folders.items()}
    table = Table("index", title=f"{args.family}: means over layers (length null)", box=SIMPLE)
    for name, each in runs.items():
        table.add_column(f"{name}, {each.prompt_format}", justify="right")
    table.add_column("instruct - base [95 %]", justify="right")
    for index in INDICES:
        for kind in KINDS:
            values = [layer_indices(each, kind)[index].mean() for each in runs.values()]
            nulls = [layer_null(each, kind)[index].mean() for each in runs.values()]
            cells = [f"{value:+.3f} ({null:+.3f})" for value, null in zip(values, nulls, strict=True)]
            table.add_row(f"{index.upper()} {kind}", *cells, _difference(values, summary, kind, index))
    console.print(table)
    if summary is not None and summary["pair"]:
        console.print(summary["pair"])
    for name, folder in folders.items():
        figures = "" if args.skip_visualization else f"   figures {Path('figures', args.family, name)}/"
        console.print(
            f"{name:9} {runs[name].label}: {resolve_run(folder).relative_to(Path.cwd())}/{figures}", soft_wrap=True
        )
    if summary is not None:
        console.print(f"comparison {Path('comparison_results', args.family)}/")


def _difference(values, summary, kind, index):
    """instruct - base of the means over layers, with its interval where the comparison has one."""
    entry = {} if summary is None else summary["differences"][kind][index]
    if entry.get("mean_ci_low") is None:
        return f"{values[1] - values[0]:+.3f}"
    return f"{entry['mean']:+.3f} [{entry['mean_ci_low']:+.3f}, {entry['mean_ci_high']:+.3f}]"


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
