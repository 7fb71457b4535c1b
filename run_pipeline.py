"""The whole study of a model family in one command, and its main numbers.

    each prompt set: both runs -> figures -> tests of every head -> comparison
    the crossed one, else the first: the base run's strongest heads cut, and all
    others of their layers, on the half of the prompts that did not choose them;
    a few answers of both models, and with these heads cut -> one page of it all

    python run_pipeline.py --list  # the families, and what each takes
    python run_pipeline.py --family demo
    python run_pipeline.py --family demo --skip_analysis
    python run_pipeline.py --family smollm2  # a real pair; needs the hub
    python run_pipeline.py --family mistral --device cuda  # hub and GPU
    python run_pipeline.py --family qwen llama --engine ray  # hub and Ray

Families are in model_families.json; `demo` is the bundled model, on raw and on
chat prompts. Results go to NAME/ in results_activation_analysis, figures,
analysis_results and comparison_results, a second prompt set's to NAME/SET/; the
page is analysis_results/NAME/report.html. On Ray a worker runs a whole family.
"""

import contextlib
import io
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import activation_analysis
import analyze_results
import compare_base_instruct
import experiment
import interventions
import report
import visualize_results
from output_manager import load_run, say_limits
from prompts import load_prompts
from rolecircuits.drawing import table_files
from rolecircuits.edits import family_plan
from rolecircuits.engines.fork_map import fork_map
from rolecircuits.engines.open import add_engine_arguments, check_engine_arguments, open_engine
from rolecircuits.engines.work import Item, LocalEngine, folder_aside
from rolecircuits.inputs import arguments
from rolecircuits.inputs.categories import Prompt, is_crossed
from rolecircuits.inputs.errors import RunFailed, UserError, printable
from rolecircuits.inputs.parser import Parser, run_script
from rolecircuits.inputs.prompt_sets import check_turns
from rolecircuits.inputs.specs import ModelSpec
from rolecircuits.models import families
from rolecircuits.models.families import ANSWERS, LINKS, OUTPUTS, SIDES


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    families.add_family_arguments(parser)
    arguments.add_run_arguments(parser)
    add_engine_arguments(parser)
    arguments.add_raw_argument(parser)
    skip = "make no run again that is there with this model, format, prompts and plan"
    parser.add_argument("--skip_analysis", action="store_true", help=skip)
    for stage in ("visualization", "comparison", "interventions", "answers", "report"):
        parser.add_argument(f"--skip_{stage}", action="store_true", help="leave this stage out")
    heads = "heads cut and ranked in their layers"
    parser.add_argument("--top_k", type=arguments.positive_int, default=3, help=heads)
    arguments.add_verify_argument(parser)
    table_files.add_table_argument(parser)
    return parser.parse_args(argv)


@table_files.writes_tables
def run(args):
    """Study every family, on Ray side by side; 3 if prompts failed. Or list them."""
    if args.list:
        from rolecircuits.drawing import family_table  # rich: not for --help

        return family_table.print_families(args.families_file)
    check_engine_arguments(args)
    arguments.say_unverified(args)
    studies = {name: plan_family(args, name) for name in dict.fromkeys(args.families)}
    with open_engine(args) as engine:
        return 3 if run_families(studies, engine) else 0


def plan_family(args, name):
    """[Study] of a family, one a prompt set; UserError where it cannot work."""
    family = families.load_family(args.families_file, name)
    if "note" in family:
        print(f"family {name}: {printable(family['note'])}")
    sets = families.list_sets(family, args.prompts, args.prompts_per_category)
    studies = []
    for label, chosen in sets.items():
        folder = f"{name}/{label}" if studies else name
        flags = {s: families.stage_flags(s, family, args, folder, chosen) for s in LINKS}
        prompts, notes = load_prompts(*chosen)
        payload = {"flags": flags, "prompts": [asdict(prompt) for prompt in prompts]}
        study = families.Study(folder, args, parse_stages(flags), payload, label)
        study.crossed = is_crossed(prompts)
        for stage, link in study.links.items():
            arguments.check_model_arguments(study.stages[stage])
            check_turns(prompts, study.stages[stage].prompt_format, chosen[0])
            arguments.check_output_dir(link.parent, link=link.name)
        for root in OUTPUTS:
            arguments.check_output_dir(Path(root, folder))
        for note in notes:
            print(f"note: {note}")
        studies.append(study)
    return studies


def parse_stages(flags):
    """{stage: flags of its script}, parsed."""
    scripts = dict.fromkeys(SIDES, activation_analysis) | {"edits": interventions}
    scripts |= dict.fromkeys(ANSWERS.values(), experiment)
    return {stage: scripts[stage].parse_args(each) for stage, each in flags.items()}


def run_families(studies_of, engine):
    """The models of {family: [Study]}, one item a family, and its report; returns lost prompts."""
    say_limits(arguments.DEFAULT_RESULTS)
    here, failed, items = {"here": engine.name == "local"}, [], []
    for name, studies in studies_of.items():
        payload = family_plan.family_payload(studies) | here
        if family_plan.has_work(payload):
            items.append(Item(name, family_task, payload))
        else:
            report_family(name, studies, {"edited": payload["kept"]} | payload)
    for item, done in engine.run(items, None if here["here"] else "families", "family"):
        studies = studies_of[item.label]
        table_files.record(*done["tables"])
        for study, published in zip(studies, done["files"], strict=False):
            family_plan.publish_stages(study, published, engine.facts())
        report_family(item.label, studies, done)
        failed += done["failed"]
        if done["error"]:
            raise done["error"]
    return failed


def family_task(state, payload):
    """Analyses, edits and answers of a family, one model after the other.

    returns  {"failed", "edited", "answered", "error", "files", "tables"}
    error    what kept a model from being edited or from answering: the rest is not lost for it
    files    [{stage: those of its run}] of the prompt sets, unless `here` says that this is where
             runs are published
    """
    sets = [[Prompt(**prompt) for prompt in item["prompts"]] for item in payload["sets"]]
    done = {"failed": [], "edited": payload["kept"], "answered": list(payload["answered"])}
    plan, error = payload["plan"], None
    aside = contextlib.nullcontext() if payload["here"] else folder_aside()
    with aside as aside, table_files.recorded_tables() as tables:
        stages = [parse_stages(item["flags"]) for item in payload["sets"]]
        for i, of_set in enumerate(stages if aside else ()):
            for args in of_set.values():
                args.output_dir = str(Path(aside, str(i)))
        prompts, of_set = sets[payload["edited"]], stages[payload["edited"]]
        for side in SIDES:
            for i in (i for i, item in enumerate(payload["sets"]) if side in item["runs"]):
                done["failed"] += analyze_set(state, sets[i], stages[i][side])
            try:
                if plan is None:  # the base run is the first
                    base = Path(of_set["base"].output_dir, LINKS["base"])
                    plan = family_plan.choose_heads(base, payload["top_k"], of_set["base"].seed)
                if side == "base" and payload["cut"] and plan["interventions"]:
                    cut_heads(state, prompts, plan, of_set["edits"])
                    done["edited"] = True
                if side in payload["answers"]:
                    answer_set(state, prompts, of_set[ANSWERS[side]], side, plan)
                    done["answered"].append(side)
            except (UserError, RunFailed) as refused:
                error = error or refused
        files = [family_plan.pack_stages(of_set) for of_set in stages if aside]
    return done | {"error": error, "files": files, "tables": tables}


def analyze_set(state, prompts, args):
    """The run of a model on a prompt set; returns the prompts that failed."""
    started = time.perf_counter()
    loaded = load_model(state, prompts, args)
    timings = {"load_s": time.perf_counter() - started}
    return activation_analysis.analyze_model(loaded, prompts, args, timings)[1]


def load_model(state, prompts, args):
    """The model of these flags; of two only one is in memory."""
    return state.model(ModelSpec.of(args), partial(activation_analysis.load_for, prompts, args))


def cut_heads(state, prompts, plan, args):
    """The plan's heads cut, on the prompts that did not choose them."""
    held_out = [prompt for prompt in prompts if prompt.id in plan["held_out"]]
    entries = family_plan.entries_of(plan["interventions"])
    interventions.run_interventions(LocalEngine(state), held_out, entries, args)


def answer_set(state, prompts, args, side, plan):
    """A few held-out prompts answered, by the base model also with each head of the plan cut."""
    prompts = family_plan.choose_answered(prompts, plan)
    entries = family_plan.entries_of(family_plan.answer_cuts(side, plan))
    loaded, link = load_model(state, prompts, args), LINKS[ANSWERS[side]]
    print(f"{side}: {experiment.answer_model(loaded, prompts, entries, args, link=link)[1]}")


def report_family(name, studies, done):
    """Figures and tests of each run and the comparison, side by side; table, report of what is
    `done` ("edited" and "answered" of `family_task`).
    """
    args, verify = studies[0].args, not studies[0].args.no_verify
    whats = SIDES if args.skip_comparison else (*SIDES, "comparison")
    parts = [(study, what) for study in studies for what in whats]

    def report_part(part):
        study, what = part
        figures, tests, comparison = (Path(root, study.folder) for root in OUTPUTS)
        said = io.StringIO()  # printed below, part after part
        with contextlib.redirect_stdout(said), table_files.recorded_tables() as printed:
            if what == "comparison":
                loaded = (load_run(link, verify) for link in study.runs.values())
                return said, printed, compare_base_instruct.compare(*loaded, comparison)
            run = load_run(study.runs[what], verify)
            if not args.skip_visualization:
                visualize_results.visualize(run, figures / what)
            tested = analyze_results.analyze(run, tests / what, args.top_k, args.seed)
        return said, printed, tested

    for (study, what), (said, printed, found) in zip(
        parts, fork_map(report_part, parts), strict=True
    ):
        print(said.getvalue(), end="")
        table_files.record(*printed)
        study.found[what] = found
    if done["edited"] and not args.skip_visualization:
        study = studies[families.edited_study(studies)]
        edits = study.links["edits"], Path("figures", study.folder, "intervention")
        visualize_results.visualize_interventions(*edits, verify=verify)
    from rolecircuits.drawing.family_summary import print_main_numbers  # matplotlib: not for --help

    print_main_numbers(name, studies)
    if not args.skip_report:
        report.report_family(name, studies, done)


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    import run_pipeline  # workers find `family_task` by this name; they know no __main__

    sys.exit(run_pipeline.main())
