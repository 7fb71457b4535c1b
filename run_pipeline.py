"""The whole study of one model family in one command: analysis, figures, comparison, and a table of the main numbers.

    both runs -> nine figures for each -> tests of every layer and head -> base-versus-instruct comparison
    -> the base run's strongest heads cut, beside random heads of the same layers

    python run_pipeline.py --family demo
    python run_pipeline.py --family mistral --dtype bfloat16 --device cuda
    python run_pipeline.py --family mistral qwen llama --engine ray --num_workers 3     side by side, one model a worker

The families are in model_families.json; add your own pair there or point --families_file at a file of the same form.
Results go to results_activation_analysis/NAME/, figures/NAME/, analysis_results/NAME/ and comparison_results/NAME/. `demo`
is the bundled model twice, on raw and on chat-formatted prompts: same weights, two framings, not two training stages.
"""

import contextlib
import io
import json
import sys
import tempfile
import time
from argparse import Namespace
from collections import deque
from dataclasses import asdict
from pathlib import Path

import activation_analysis
import interventions
from prompts import load_prompts
from rolecircuits.engines.fork_map import fork_map
from rolecircuits.engines.open import add_engine_arguments, check_engine_arguments, open_engine
from rolecircuits.engines.work import Item, LocalEngine, model_key, work_arguments
from rolecircuits.inputs import arguments
from rolecircuits.inputs.arguments import (
    DEFAULT_RESULTS,
    add_run_arguments,
    add_verify_argument,
    check_model_arguments,
    check_output_dir,
    positive_int,
    say_unverified,
)
from rolecircuits.inputs.categories import Prompt
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.parser import Parser, run_script
from rolecircuits.inputs.specs import ModelSpec
from rolecircuits.models.families import FAMILIES_FILE, SIDES, load_family

RUNS = {
    "instruct": "latest",
    "base": "latest_base",
}  # in the order they are run: the base model is edited afterwards


def analysis_item(family, stage_args):
    """The item that analyses both models of a family: stage_args {run name: flags of activation_analysis.py}."""
    stages = {name: stage_payload(args) for name, args in stage_args.items()}
    return Item(family, analysis_task, {"stages": stages}, near=family)


def intervention_item(family, plan, args):
    """The item that runs a plan on a family's base model, best on the worker that has just analysed it."""
    payload = stage_payload(args) | {"plan": [entry.plain() for entry in plan]}
    return Item(family, intervention_task, payload, near=family)


def stage_payload(args):
    prompts, _ = load_prompts(args.prompts, args.prompts_per_category)
    return {"args": work_arguments(args), "prompts": [asdict(p) for p in prompts]}


def analysis_task(state, payload):
    """{run name: {"files", "failed"}} of both models; a model that both use is loaded once."""

    from rolecircuits.capture import instrument
    from rolecircuits.runs.files import pack_folder

    found = {}
    for name, stage in payload["stages"].items():
        args, started = Namespace(**stage["args"]), time.perf_counter()
        loaded = state.model(
            model_key(args), lambda args=args: instrument.load_model(ModelSpec.of(args), args.seed)
        )
        timings = {"load_s": time.perf_counter() - started}
        prompts = [Prompt(**prompt) for prompt in stage["prompts"]]
        with folder_aside() as args.output_dir:
            folder, failed = activation_analysis.analyze_model(loaded, prompts, args, timings)
            found[name] = {"files": pack_folder(folder), "failed": failed}
    return found


def intervention_task(state, payload):
    """The files of an intervention run."""

    from rolecircuits.edits.plan import parse_entries
    from rolecircuits.runs.files import pack_folder

    args, prompts = (
        Namespace(**payload["args"]),
        [Prompt(**prompt) for prompt in payload["prompts"]],
    )
    with folder_aside() as args.output_dir:
        plan = parse_entries(payload["plan"], "plan")
        folder, _ = interventions.run_interventions(LocalEngine(state=state), prompts, plan, args)
        return pack_folder(folder)


@contextlib.contextmanager
def folder_aside():
    """A temporary folder; lines printed inside the block that name it are left out, because it will be gone."""
    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as aside:
        try:
            with contextlib.redirect_stdout(printed):
                yield aside
        finally:
            for line in printed.getvalue().splitlines():
                if aside not in line:
                    print(line)


def publish_files(files, args, latest, engine, prefix="run"):
    """Write the files of a worker's run into args.output_dir and publish them under `latest`."""

    from output_manager import create_run, write_manifest
    from rolecircuits.runs.files import write_json
    from rolecircuits.runs.record import git_state, portable

    ours = portable({"arguments": vars(args), "git": git_state(), "engine": engine.facts()})
    with create_run(args.output_dir, latest, prefix) as new:
        for name, content in files.items():
            path = new.path / name
            path.parent.mkdir(exist_ok=True)
            if path.name == "experiment_config.json":
                write_json(path, json.loads(content) | ours)
            else:
                path.write_bytes(content)
        for name in files:
            if name.endswith(
                "/manifest.json"
            ):  # a folder inside the run: its config is another now
                write_manifest((new.path / name).parent)
    return new.final


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--family",
        required=True,
        nargs="+",
        dest="families",
        help="one name in model_families.json or several: demo, mistral, qwen, ...",
    )
    parser.add_argument("--families_file", default=str(FAMILIES_FILE))
    add_run_arguments(parser)
    add_engine_arguments(parser)
    parser.add_argument("--prompts", help="JSON file of your own prompts: {category: [text, ...]}")
    parser.add_argument(
        "--raw", choices=["none", "patterns", "full"], default="none", help="the figures need none"
    )
    parser.add_argument(
        "--skip_analysis", action="store_true", help="use the newest runs of this family"
    )
    parser.add_argument("--skip_visualization", action="store_true")
    parser.add_argument("--skip_comparison", action="store_true")
    parser.add_argument("--skip_interventions", action="store_true")
    parser.add_argument(
        "--top_k",
        type=positive_int,
        default=3,
        help="heads that are cut (default 3, 2 controls each)",
    )
    add_verify_argument(parser)
    return parser.parse_args(argv)


def run(args):
    """Run the stages that are not skipped, of one family after the other or of all side by side; 3 if prompts failed."""
    check_engine_arguments(args)
    say_unverified(args)
    studies = {name: plan_study(args, name) for name in dict.fromkeys(args.families)}
    if args.engine == "ray":
        with open_engine(args) as engine:
            failed = run_side_by_side(studies, engine)
    else:
        failed = [lost for study in studies.values() for lost in run_study(study)]
    return 3 if failed else 0


def plan_study(args, name):
    """What is to be run of one family, checked: {"args" (with args.family), "stages": {run name: its flags}}."""
    args = Namespace(**vars(args) | {"family": name})
    family = load_family(args.families_file, name)
    stage_args = {run: analysis_args(run, family[run], args) for run in RUNS}
    for each in stage_args.values():
        check_model_arguments(each)
    outputs = [
        results_dir(args),
        *(Path(root, name) for root in ("figures", "analysis_results", "comparison_results")),
    ]
    for folder in outputs:
        check_output_dir(folder)
    for output_type in RUNS.values():
        check_output_dir(results_dir(args), link=arguments.LINKS[output_type])
    load_prompts(args.prompts, args.prompts_per_category)
    if note := family.get("note"):
        print(f"family {name}: {printable(note)}")
    return Namespace(args=args, stages=stage_args, summary=None)


def run_study(study):
    """One family in this process; returns the prompts that failed."""
    loaded, failed = (None, []) if study.args.skip_analysis else analyze_family(study.stages)
    read_study(study)
    if found := None if study.args.skip_interventions else proposed_plan(study):
        import interventions

        plan, plan_args = found
        prompts, _ = load_prompts(plan_args.prompts, plan_args.prompts_per_category)
        interventions.run_interventions(LocalEngine(loaded, plan_args), prompts, plan, plan_args)
        draw_interventions(study)
    print_main_numbers(study)
    return failed


def run_side_by_side(studies, engine):
    """All families on the workers of an engine: models there, figures, tests and comparisons here; as `run_study`."""
    from rolecircuits.inputs import arguments

    queue, failed = deque(), []
    first = next(iter(studies.values())).args
    for note in load_prompts(first.prompts, first.prompts_per_category)[1]:
        print(f"note: {note}")

    def after_analysis(study):
        read_study(study)
        if found := None if study.args.skip_interventions else proposed_plan(study):
            queue.append(intervention_item(study.args.family, *found))
        else:
            print_main_numbers(study)

    for name, study in studies.items():
        if study.args.skip_analysis:
            after_analysis(study)
        else:
            queue.append(analysis_item(name, study.stages))
    for item, found in engine.run(queue, "families", "stage"):
        study = studies[item.label]
        if "stages" in item.payload:
            for run_name, each in found.items():
                args = study.stages[run_name]
                folder = publish_files(
                    each["files"], args, arguments.LINKS[args.output_type], engine
                )
                print(f"{item.label}: {run_name} run -> {folder}")
                failed += each["failed"]
            after_analysis(study)
        else:
            plan_args = proposed_plan(study)[1]
            print(
                f"{item.label}: interventions -> {publish_files(found, plan_args, arguments.LATEST, engine, 'intervention')}"
            )
            draw_interventions(study)
            print_main_numbers(study)
    return failed


def read_study(study):
    """Figures, tests and comparison of a family whose two runs are there."""

    from output_manager import resolve_run

    args, folders = study.args, run_folders(study.args)
    for folder in folders.values():
        resolve_run(folder)
    study.summary = report_family(folders, args)


def run_folders(args):
    """The links to the two runs of this family."""
    return {name: results_dir(args) / arguments.LINKS[RUNS[name]] for name in SIDES}


def results_dir(args):
    """Where this family's runs are."""
    return Path(DEFAULT_RESULTS, args.family)


def analysis_args(name, entry, args):
    """The arguments that activation_analysis.py would get on its own command line for this run."""
    flags = ["--output_dir", str(results_dir(args)), "--output_type", RUNS[name]]
    flags += [
        f"--{key}={value}" for key, value in entry.items()
    ]  # one word: a value may begin with a hyphen
    for key in (
        "prompts",
        "prompts_per_category",
        "dtype",
        "device",
        "device_map",
        "batch_size",
        "seed",
        "raw",
    ):
        value = getattr(args, key)
        flags += [] if value is None else [f"--{key}={value}"]
    return activation_analysis.parse_args(flags)


def analyze_family(stage_args):
    """Run both analyses, a model that both use is loaded once: (the base run's model, the prompts that failed)."""

    from rolecircuits.capture import instrument

    failed, loaded, key = [], None, None
    for each in stage_args.values():
        prompts, notes = load_prompts(each.prompts, each.prompts_per_category)
        for note in notes:
            print(f"note: {note}")
        started = time.perf_counter()
        timings = {"load_s": 0.0}
        if key != (each.model_id, each.revision):
            loaded = None  # the previous model's memory is free before the next one is read
            loaded, key = (
                instrument.load_model(ModelSpec.of(each), each.seed),
                (each.model_id, each.revision),
            )
            timings["load_s"] = time.perf_counter() - started
        failed += activation_analysis.analyze_model(loaded, prompts, each, timings)[1]
    return loaded, failed


def report_family(folders, args):
    """Figures and tests of each run and the comparison of both, side by side; returns the comparison's summary or None.

    figures/NAME/{base,instruct}, analysis_results/NAME/{base,instruct} and comparison_results/NAME
    """

    def report(part):
        with contextlib.redirect_stdout(
            io.StringIO()
        ) as said:  # printed below, one part after the other
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

    analyze(
        folder,
        Path("analysis_results", args.family, side),
        args.top_k,
        args.seed,
        not args.no_verify,
    )


def compare_family(folders, args):
    """The comparison of the two runs, into comparison_results/NAME; returns its summary."""
    from compare_base_instruct import compare

    return compare(
        folders["base"],
        folders["instruct"],
        Path("comparison_results", args.family),
        not args.no_verify,
    )


def proposed_plan(study):
    """(plan, flags of interventions.py) for the heads that analyze_results.py proposed for the base run, or None."""
    import interventions
    from rolecircuits.edits.plan import read_plan

    plan_file = Path("analysis_results", study.args.family, "base", "ablation_candidates.json")
    plan_args, base_args = interventions.parse_args([]), study.stages["base"]
    vars(plan_args).update(
        {key: value for key, value in vars(base_args).items() if hasattr(plan_args, key)}
    )
    try:
        return read_plan(plan_file), plan_args
    except UserError as reason:
        print(f"no interventions: {printable(reason)}")
        return None


def draw_interventions(study):
    """The effects of the newest interventions, into figures/NAME/intervention."""
    from rolecircuits.inputs import arguments
    from visualize_results import visualize_interventions

    if not study.args.skip_visualization:
        folder = results_dir(study.args) / arguments.LATEST
        figures = Path("figures", study.args.family, "intervention")
        visualize_interventions(folder, figures, each_run=False, verify=not study.args.no_verify)


def print_main_numbers(study):
    """One table: the mean over layers of each index in both runs beside its length null, and what to open."""

    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from output_manager import load_run, resolve_run
    from rolecircuits.stats.indices import INDICES, KINDS, layer_indices, layer_null

    args, folders, summary = study.args, run_folders(study.args), study.summary
    console = Console(markup=False, highlight=False, emoji=False)
    runs = {name: load_run(folder, not args.no_verify) for name, folder in folders.items()}
    table = Table("index", title=f"{args.family}: means over layers (length null)", box=SIMPLE)
    for name, each in runs.items():
        table.add_column(f"{name}, {each.prompt_format}", justify="right")
    table.add_column("instruct - base [95 %]", justify="right")
    for index in INDICES:
        for kind in KINDS:
            values = [layer_indices(each, kind)[index].mean() for each in runs.values()]
            nulls = [layer_null(each, kind)[index].mean() for each in runs.values()]
            cells = [
                f"{value:+.3f} ({null:+.3f})" for value, null in zip(values, nulls, strict=True)
            ]
            table.add_row(
                f"{index.upper()} {kind}", *cells, _difference(values, summary, kind, index)
            )
    console.print(table)
    if summary is not None and summary["pair"]:
        console.print(summary["pair"])
    for name, folder in folders.items():
        figures = (
            "" if args.skip_visualization else f"   figures {Path('figures', args.family, name)}/"
        )
        console.print(
            f"{name:9} {runs[name].label}: {printable(folder.parent / resolve_run(folder).name)}/{figures}",
            soft_wrap=True,
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
