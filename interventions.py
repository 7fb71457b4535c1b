"""Edit a model in the middle of its forward pass and measure what changes
further on.

    plan -> the unedited run -> every edit, captured as activation_analysis.py
    does -> results_activation_analysis/intervention_<time>/
       (baseline/, sh_29_26_zero_out/, ..., effects.csv, effects.json)

    python interventions.py --prompts crossed --prompts_per_category 36 \\
        --held_out --config_file \\
        analysis_results/demo/crossed/base/ablation_candidates.json
    python interventions.py --sweep heads --prompts_per_category 5
    python interventions.py --dtype bfloat16 \\
        --model_id mistralai/Mistral-7B-Instruct-v0.1  # needs the hub
    python interventions.py --sweep heads --engine ray --num_workers 4
        # needs requirements-distributed.txt

Heads, patterns, MLPs and the residual can be edited; plan.py lists how. A plan
says which model it is for and is refused by another one. Without a plan the
published heads are cut in the two models that they are of
(targeted_interventions.json). effects.csv has one row an intervention and
category: KL of the next token, change of the top token, change
of surprisal of the unedited answer, change of the mean RFC and RSI of later
layers (effects.py defines them), each with its interval and its rank among the
other heads of the layer under the same edit. Whether all candidates together
are more than a random choice of heads is tested exactly (ranks.py). A plan may
bring its own controls instead.

--sweep heads ablates every head in turn and writes head_effects.npz [layer,
head, category]; it can be interrupted and continued. The newest run is linked
as latest_intervention, the newest sweep as latest_sweep.
"""

import sys
import time
from pathlib import Path

from output_manager import create_run, say_limits, write_manifest
from prompts import load_prompts
from rolecircuits.drawing.table_files import add_table_argument, writes_tables
from rolecircuits.edits import plan_source
from rolecircuits.engines.open import add_engine_arguments, check_engine_arguments, open_engine
from rolecircuits.engines.work import Item
from rolecircuits.inputs.arguments import (
    LATEST_INTERVENTION,
    LATEST_SWEEP,
    add_model_arguments,
    add_output_argument,
    check_model_arguments,
    check_output_dir,
    controls_number,
)
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.parser import Parser, collector_paused, leave, run_script, say_notes
from rolecircuits.inputs.prompt_sets import check_turns
from rolecircuits.inputs.specs import Setting
from rolecircuits.runs import record

DEFAULT_PLAN = Path(__file__).with_name("targeted_interventions.json")
WHAT_TO_GIVE = """\
give a plan, a file that says which heads to edit and how:
  {{"schema_version": 1, "interventions": [
    {{"type": "head", "layer": 1, "head": 3, "method": "zero_out"}}]}}
this makes one, of the heads that react in a run, and says where it lies:
  python analyze_results.py --input_dir results_activation_analysis/latest_run
and this cuts them, on the prompts that did not choose them:
  python interventions.py --held_out --config_file .../ablation_candidates.json
without a plan every head can be cut in turn:
  python interventions.py --sweep heads
and the published heads, in the models that they are of:
  python interventions.py --model_id {}"""
SWEEP_METHODS = ("zero_out", "half_out", "mean")


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    add_model_arguments(parser)
    plan = parser.add_argument_group("interventions")
    plan.add_argument(
        "--config_file",
        "--interventions",
        help="plan (default: targeted_interventions.json, the published Mistral heads)",
    )
    plan.add_argument(
        "--controls",
        type=controls_number,
        default=31,
        help="other heads of the layer to rank a candidate among, all if it has no more; "
        "of no account for a plan that brings controls (default 31, 0: none)",
    )
    plan.add_argument(
        "--sweep", choices=["heads"], help="ablate every head in turn instead of running a plan"
    )
    plan.add_argument(
        "--method", choices=SWEEP_METHODS, help="what --sweep does to a head (default zero_out)"
    )
    kept = "measure on the prompts that did not choose the plan's heads (its held_out)"
    plan.add_argument("--held_out", action="store_true", help=kept)
    add_engine_arguments(parser)
    add_output_argument(parser)
    add_table_argument(parser)
    return parser.parse_args(argv)


@writes_tables
def run(args):
    """Run the plan or the sweep; what can be refused is refused before the weights are read."""
    check_model_arguments(args)
    check_engine_arguments(args)
    check_output_dir(args.output_dir, link=LATEST_SWEEP if args.sweep else LATEST_INTERVENTION)
    if args.sweep and args.config_file:
        raise UserError("--sweep with --config_file: a sweep takes every head, give one of them")
    if args.method and not args.sweep:
        raise UserError(
            f"--method {args.method} needs --sweep heads; a plan names a method for each entry"
        )
    if args.held_out and not args.config_file:
        raise UserError("--held_out needs --config_file: a plan that analyze_results.py wrote")
    plan, held_out, path = None, None, args.config_file or DEFAULT_PLAN
    if not args.sweep:
        from rolecircuits.edits.plan import read_held_out, read_plan  # pydantic: not for --help

        published = plan_source.source_models(plan_source.read_source(DEFAULT_PLAN))
        if args.config_file is None and args.model_id not in published:
            print(WHAT_TO_GIVE.format(published[0]), file=sys.stderr)
            return 2
        plan = read_plan(path)
        held_out = read_held_out(path) if args.held_out else None
    prompts, notes = load_prompts(args.prompts, args.prompts_per_category)
    check_turns(prompts, args.prompt_format, args.prompts)
    notes += [] if args.sweep else plan_source.check_source(path, args, prompts)
    if held_out is not None:
        prompts = [prompt for prompt in prompts if prompt.id in held_out]
        if not prompts:
            raise UserError("--held_out: none of the plan's prompts is in this prompt set")
    say_notes(notes)
    say_limits(args.output_dir)
    with open_engine(args) as engine:
        if args.sweep:
            run_sweep(engine, prompts, args)
        else:
            run_interventions(engine, prompts, plan, args)
    return 0


def run_interventions(engine, prompts, plan, args):
    """Run a plan (entries from edits.plan.read_plan) on an engine.

    returns  (run folder, rows of effects.csv)
    """
    with collector_paused():
        from rolecircuits.edits import bench, effects, results  # torch: after all checks

    payload = bench.plan_payload(Setting.of(args), prompts, plan, args.controls)
    base = engine.prepare(Item(bench.BASELINE, bench.unedited_task, payload))
    for note in base["notes"]:
        print(f"note: {printable(note)}")
    entries, timings = record.portable(base["entries"]), base["timings"]
    started = time.perf_counter()
    items = [Item(name, bench.edit_task, payload | {"entry": name}) for name in entries]
    for title, names in base["controls"].items():
        items.append(Item(title, bench.controls_task, payload | {"entry": names}))
    config, measured = describe(engine, base, prompts, args), {}
    n_prompts = len(base["prompts"])
    with create_run(args.output_dir, LATEST_INTERVENTION, "intervention") as new:

        def save(name, arrays, entry):
            edit = config | {"intervention": entry}
            results.save_edit(new.path / name, base["prompts"], arrays, edit)

        save(bench.BASELINE, base["arrays"], None)
        for item, result in engine.run(items, "interventions", "edit"):
            if item.label in entries:
                save(item.label, result["arrays"], entries[item.label])
                result = {item.label: result["measured"]}  # noqa: PLW2901
            measured |= result
        timings["capture_s"] = time.perf_counter() - started
        drawn = [name for names in base["controls"].values() for name in names]
        measured = {name: measured[name] for name in (*entries, *drawn)}
        values = effects.normalised_values(base["arrays"])
        fed = base["arrays"], base["notes"]
        found = effects.tabulate_effects(measured, values, *fed, args.seed)
        ran = [entry | {"folder": name} for name, entry in entries.items()]
        config |= {"timings": timings, "engine": engine.facts(), "interventions": ran}
        results.save_effects(new.path, found, measured, config)
        for name in (bench.BASELINE, *entries):
            write_manifest(new.path / name)
    results.print_effects(*found)
    print(
        f"{len(entries)} interventions, {len(drawn)} control edits, {n_prompts} prompts, "
        f"capture {timings['capture_s']:.1f} s -> {printable(new.final)}"
    )
    return new.final, found[0]


def run_sweep(engine, prompts, args):
    """Sweep a model on an engine and publish head_effects.npz; returns the run folder."""
    with collector_paused():
        from rolecircuits.edits import results, sweep  # torch: after all checks

    method = args.method or "zero_out"
    payload = sweep.sweep_payload(Setting.of(args), prompts, method)
    base = engine.prepare(Item("clean pass", sweep.clean_task, payload))
    timings, started = base["timings"], time.perf_counter()
    pieces = Path(args.output_dir, sweep.FOLDER)
    arrays, finished_layers = sweep.sweep_heads(engine, payload, base, pieces)
    timings["sweep_s"] = time.perf_counter() - started
    with create_run(args.output_dir, LATEST_SWEEP, "sweep") as new:
        config = describe(engine, base, prompts, args)
        results.save_sweep(new.path, arrays, config | {"sweep": {"of": "heads", "method": method}})
    sweep.remove_layers(finished_layers)
    results.print_strongest(arrays)
    print(
        f"{arrays['rfc_change'].size} heads, {len(base['tokens'])} prompts, "
        f"{timings['sweep_s']:.1f} s -> {printable(new.final)}"
    )
    return new.final


def describe(engine, base, prompts, args):
    """experiment_config.json of a run whose unedited pass is `base`."""
    say_notes(base["feeding"]["notes"])
    fed = record.describe_fed(args, prompts, base["feeding"], base["arrays"]["prompt_id"].tolist())
    how = (base["determinism"], base["timings"])
    config = record.describe_run("interventions.py", args, base["facts"], fed, *how)
    return config | {"engine": engine.facts()}


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    leave(main())
