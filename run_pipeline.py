"""The whole study of one model family in one command, and a table of the main numbers.

    both runs -> the base run's strongest heads cut, beside random heads of the same layers
    -> nine figures for each run -> tests of every layer and head -> base-versus-instruct comparison

    python run_pipeline.py --family demo
    python run_pipeline.py --family mistral --dtype bfloat16 --device cuda
    python run_pipeline.py --family mistral qwen llama --engine ray --num_workers 3

The families are in model_families.json, or in a file of that form that --families_file names.
Results go to results_activation_analysis/NAME/, figures/NAME/, analysis_results/NAME/ and
comparison_results/NAME/. With --engine ray a worker runs the models of a whole family. `demo` is
the bundled model twice, on raw and on chat-formatted prompts: same weights, two framings.
"""

import contextlib
import io
import sys
import time
from argparse import Namespace  # noqa: TID251  (a type)
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import activation_analysis
import analyze_results
import compare_base_instruct
import interventions
import visualize_results
from output_manager import load_run, publish_files, resolve_run, say_limits
from prompts import load_prompts
from rolecircuits.engines.fork_map import fork_map
from rolecircuits.engines.open import add_engine_arguments, check_engine_arguments, open_engine
from rolecircuits.engines.work import Item, LocalEngine, folder_aside
from rolecircuits.inputs import arguments
from rolecircuits.inputs.categories import Prompt
from rolecircuits.inputs.errors import RunFailed, UserError, printable
from rolecircuits.inputs.parser import Parser, run_script
from rolecircuits.inputs.specs import ModelSpec
from rolecircuits.models.families import FAMILIES_FILE, RUNS, SIDES, load_family, stage_flags
from rolecircuits.runs.files import pack_folder

LINKS = {run: arguments.LATEST_RUNS[kind] for run, kind in RUNS.items()}
LINKS |= {"edits": arguments.LATEST_INTERVENTION}
OUTPUTS = ("figures", "analysis_results", "comparison_results")


@dataclass
class Study:
    """One family: the flags of this script and of each stage, and what its models have to do."""

    family: str
    args: Namespace
    stages: dict
    payload: dict  # of `family_task`
    summary: dict | None = None  # of the comparison, once it is made

    def __post_init__(self):
        folder = Path(arguments.DEFAULT_RESULTS, self.family)
        self.links = {stage: folder / link for stage, link in LINKS.items()}
        self.runs = {side: self.links[side] for side in SIDES}


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    names = "one name in model_families.json or several: demo, mistral, qwen, ..."
    parser.add_argument("--family", required=True, nargs="+", dest="families", help=names)
    parser.add_argument("--families_file", default=str(FAMILIES_FILE))
    arguments.add_run_arguments(parser)
    add_engine_arguments(parser)
    parser.add_argument("--prompts", help="JSON file of your own prompts: {category: [text, ...]}")
    none = "the figures need none"
    parser.add_argument("--raw", choices=arguments.RAW, default="none", help=none)
    parser.add_argument("--skip_analysis", action="store_true", help="use the family's newest runs")
    for stage in ("visualization", "comparison", "interventions"):
        parser.add_argument(f"--skip_{stage}", action="store_true")
    heads = "heads that are cut (default 3, 2 controls each)"
    parser.add_argument("--top_k", type=arguments.positive_int, default=3, help=heads)
    arguments.add_verify_argument(parser)
    return parser.parse_args(argv)


def run(args):
    """Study every family, on Ray side by side; 3 if prompts failed."""
    check_engine_arguments(args)
    arguments.say_unverified(args)
    studies = [plan_study(args, name) for name in dict.fromkeys(args.families)]
    with open_engine(args) as engine:
        return 3 if run_families(studies, engine) else 0


def plan_study(args, name):
    """The Study of a family; UserError where it cannot work."""
    family = load_family(args.families_file, name)
    flags = {stage: stage_flags(stage, family, args, name) for stage in LINKS}
    prompts, notes = load_prompts(args.prompts, args.prompts_per_category)
    payload = {"flags": flags, "prompts": [asdict(prompt) for prompt in prompts]}
    payload |= {"analyse": not args.skip_analysis, "top_k": args.top_k}
    study = Study(name, args, parse_stages(flags), payload)
    for stage, link in study.links.items():
        arguments.check_model_arguments(study.stages[stage])
        arguments.check_output_dir(link.parent, link=link.name)
    for root in OUTPUTS:
        arguments.check_output_dir(Path(root, name))
    if "note" in family:
        print(f"family {name}: {printable(family['note'])}")
    for note in notes:
        print(f"note: {note}")
    payload["plan"] = [] if args.skip_interventions else None  # None: once the base run is there
    if args.skip_analysis and not args.skip_interventions:
        how = args.top_k, args.seed, not args.no_verify
        payload["plan"] = choose_heads(study.runs["base"], *how)
    return study


def parse_stages(flags, *more):
    """{stage: flags of its script}, parsed; `more` is added to each and wins."""
    scripts = dict.fromkeys(RUNS, activation_analysis) | {"edits": interventions}
    return {stage: scripts[stage].parse_args([*each, *more]) for stage, each in flags.items()}


def run_families(studies, engine):
    """Every family's models on the engine, one item each, and its report; returns lost prompts."""
    say_limits(arguments.DEFAULT_RESULTS)
    by_name, failed = {study.family: study for study in studies}, []
    here = {"here": engine.name == "local"}
    items = [Item(name, family_task, by_name[name].payload | here) for name in by_name]
    for item, done in engine.run(items, None if here["here"] else "families", "family"):
        study = by_name[item.label]
        for stage, files in done["files"].items():
            args, prefix = study.stages[stage], "run" if stage in RUNS else "intervention"
            ours = {"arguments": args, "engine": engine.facts()}
            folder = publish_files(files, args.output_dir, LINKS[stage], prefix, ours)
            print(f"{study.family}: {stage} -> {printable(folder)}")
        report_family(study, done["edited"])
        failed += done["failed"]
        if done["error"]:
            raise done["error"]
    return failed


def family_task(state, payload):
    """A family's analyses and the edits of its base model: {"failed", "edited", "error", "files"}.

    error  what kept the base model from being edited: the analyses are not lost for it
    files  {stage: those of its run}, unless `here` says that this is where runs are published
    """
    prompts = [Prompt(**prompt) for prompt in payload["prompts"]]
    failed, plan, error, files = [], payload["plan"], None, {}
    with contextlib.nullcontext() if payload["here"] else folder_aside() as aside:
        stages = parse_stages(payload["flags"], *([f"--output_dir={aside}"] if aside else []))
        links = {stage: Path(args.output_dir, LINKS[stage]) for stage, args in stages.items()}
        for args in (stages[run] for run in RUNS if payload["analyse"]):
            started, loaded = time.perf_counter(), None  # its memory is free for the next one
            load = partial(activation_analysis.load_for, prompts, args)
            loaded = state.model(ModelSpec.of(args), load)
            timings = {"load_s": time.perf_counter() - started}
            failed += activation_analysis.analyze_model(loaded, prompts, args, timings)[1]
        try:
            if plan is None:
                plan = choose_heads(links["base"], payload["top_k"], stages["base"].seed)
            if plan:
                from rolecircuits.edits.plan import parse_entries  # pydantic: only for edits

                engine, entries = LocalEngine(state), parse_entries(plan, "plan")
                interventions.run_interventions(engine, prompts, entries, stages["edits"])
        except (UserError, RunFailed) as refused:
            error = refused
        if aside:
            made = {stage: link for stage, link in links.items() if link.exists()}
            files = {stage: pack_folder(resolve_run(link)) for stage, link in made.items()}
    return {"failed": failed, "edited": bool(plan) and not error, "error": error, "files": files}


def choose_heads(folder, top_k, seed, verify=True):
    """Entries of a plan: a run's strongest heads and controls; says why if there are none."""
    from rolecircuits.edits.candidates import select_candidates  # numpy: not for --help

    plan = select_candidates(load_run(folder, verify), top_k, seed)
    if not plan["interventions"]:
        print(f"no interventions: {printable(plan['note'])}")
    return plan["interventions"]


def report_family(study, edited):
    """Figures and tests of each run and the comparison of both, side by side; then the table."""
    args, runs, verify = study.args, study.runs, not study.args.no_verify
    figures, tests, comparison = (Path(root, study.family) for root in OUTPUTS)
    for link in runs.values():
        resolve_run(link)

    def report(part):
        summary = None
        with contextlib.redirect_stdout(io.StringIO()) as said:  # printed below, part after part
            if part == "comparison":
                loaded = (load_run(link, verify) for link in runs.values())
                summary = compare_base_instruct.compare(*loaded, comparison)
            else:
                run = load_run(runs[part], verify)
                if not args.skip_visualization:
                    visualize_results.visualize(run, figures / part)
                analyze_results.analyze(run, tests / part, args.top_k, args.seed)
        return said.getvalue(), summary

    parts = [*runs] if args.skip_comparison else [*runs, "comparison"]
    for said, study.summary in fork_map(report, parts):
        print(said, end="")
    if edited and not args.skip_visualization:
        edits = study.links["edits"], figures / "intervention"
        visualize_results.visualize_interventions(*edits, each_run=False, verify=verify)
    print_main_numbers(study)


def print_main_numbers(study):
    """One table: the mean over layers of each index of both runs beside its length null."""
    from rolecircuits.drawing import tables  # rich and numpy: --help does without them
    from rolecircuits.stats.run_pairs import main_numbers  # numpy

    args, name, summary = study.args, study.family, study.summary
    runs = {side: load_run(link, not args.no_verify) for side, link in study.runs.items()}
    headings = [f"{side}, {run.prompt_format}" for side, run in runs.items()]
    columns = ["index", *map(tables.right, [*headings, "instruct - base [95 %]"])]
    title = f"{name}: means over layers (length null)"
    tables.print_table(columns, main_numbers(runs, summary), title)
    if summary is not None and summary["pair"]:
        print(summary["pair"])
    for side, link in study.runs.items():
        where = f"{printable(link.parent / resolve_run(link).name)}/"
        if not args.skip_visualization:
            where += f"   figures {Path('figures', name, side)}/"
        print(f"{side:9} {runs[side].label}: {where}")
    if summary is not None:
        print(f"comparison {Path('comparison_results', name)}/")


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    import run_pipeline  # workers find `family_task` by this name; they know no __main__

    sys.exit(run_pipeline.main())
