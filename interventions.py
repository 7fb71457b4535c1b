"""Edit a model in the middle of its forward pass and measure what changes further on: heads, patterns, MLPs, the residual.

    plan -> the unedited run -> every edit through the same capture as activation_analysis.py -> effects.csv
    -> results_activation_analysis/intervention_<time>/ (baseline/, sh_29_26_zero_out/, ..., effects.csv, effects.json)

    python interventions.py --config_file ablation_candidates.json
    python interventions.py --model_id mistralai/Mistral-7B-Instruct-v0.1 --dtype bfloat16   (targeted_interventions.json)
    python interventions.py --sweep heads --method zero_out
    python interventions.py --sweep heads --engine ray --num_workers 4        (requirements-distributed.txt)

effects.csv has one row an intervention and category: KL of the next token, change of the top token, change of surprisal of
the unedited answer, change of the mean RFC and RSI of later layers (effects.py defines them), each with its interval and
its test against the same edit on random other heads of the layer. A plan without controls gets them drawn here.
--sweep heads ablates every head in turn and writes head_effects.npz [layer, head, category]; it can be interrupted and
continued. The newest run is linked as latest_intervention, the newest sweep as latest_sweep.
"""

import sys
import time
from dataclasses import asdict
from pathlib import Path

from prompts import load_prompts
from rolecircuits.engines.open import add_engine_arguments, check_engine_arguments, open_engine
from rolecircuits.engines.work import Item, work_arguments
from rolecircuits.inputs.arguments import (
    DEFAULT_RESULTS,
    LATEST_INTERVENTION,
    LATEST_SWEEP,
    add_model_arguments,
    check_model_arguments,
    check_output_dir,
    controls_number,
)
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.parser import Parser, run_script

DEFAULT_PLAN = Path(__file__).with_name("targeted_interventions.json")
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
        default=2,
        help="random control heads a candidate, for a plan that brings none (default 2; 0 leaves them out)",
    )
    plan.add_argument(
        "--sweep", choices=["heads"], help="ablate every head in turn instead of running a plan"
    )
    plan.add_argument(
        "--method", choices=SWEEP_METHODS, help="what --sweep does to a head (default zero_out)"
    )
    add_engine_arguments(parser)
    parser.add_argument("--output_dir", default=DEFAULT_RESULTS)
    return parser.parse_args(argv)


def run(args):
    """Run the plan or the sweep; whatever can be refused is refused before the weights are read."""
    from output_manager import say_limits

    check_model_arguments(args)
    check_engine_arguments(args)
    check_output_dir(args.output_dir, link=LATEST_SWEEP if args.sweep else LATEST_INTERVENTION)
    if args.sweep and args.config_file:
        raise UserError("--sweep with --config_file: a sweep takes every head, give one of them")
    if args.method and not args.sweep:
        raise UserError(
            f"--method {args.method} needs --sweep heads; a plan names a method for each entry"
        )
    plan = None if args.sweep else read_plan_for(args)
    prompts, notes = load_prompts(args.prompts, args.prompts_per_category)
    for note in notes:
        print(f"note: {note}")
    say_limits(args.output_dir)
    with open_engine(args) as engine:
        if args.sweep:
            run_sweep(engine, prompts, args)
        else:
            run_interventions(engine, prompts, plan, args)


def read_plan_for(args):
    from rolecircuits.edits.plan import read_plan

    return read_plan(args.config_file or DEFAULT_PLAN)


def run_interventions(engine, prompts, plan, args):
    """Run a plan (entries from intervention_plan.read_plan) on an engine; returns (run folder, rows of effects.csv).

    args  the flags of this script; a worker gets those that a result depends on (work_engine.work_arguments)
    """

    from output_manager import create_run
    from rolecircuits.edits.bench import BASELINE, edit_task, normalised_values, unedited_task
    from rolecircuits.edits.effects import tabulate_effects
    from rolecircuits.runs.record import describe_prompts, describe_run, portable

    payload = {"args": work_arguments(args), "prompts": [asdict(p) for p in prompts]}
    payload["plan"] = [entry.model_dump() for entry in plan]
    base = engine.prepare(Item(BASELINE, unedited_task, payload))
    for note in base["notes"]:
        print(f"note: {printable(note)}")
    entries, timings, started = portable(base["entries"]), base["timings"], time.perf_counter()
    items = [Item(name, edit_task, payload | {"entry": name}) for name in entries]
    with create_run(args.output_dir, LATEST_INTERVENTION, "intervention") as new:
        script, fed = "interventions.py", describe_prompts(args, prompts)
        config = describe_run(script, args, base["facts"], fed, base["determinism"], timings)
        config |= {"engine": engine.facts()}
        save_folder(
            new.path / BASELINE, base["prompts"], base["arrays"], config | {"intervention": None}
        )
        base_values, measured = normalised_values(base["arrays"], config), {}
        for item, result in engine.run(items, "interventions", "edit"):
            name = item.label
            save_folder(
                new.path / name,
                base["prompts"],
                result["arrays"],
                config | {"intervention": entries[name]},
            )
            measured[name] = result["measured"] | {
                "values": normalised_values(result["arrays"], config)
            }
        timings["capture_s"] = time.perf_counter() - started
        measured = {name: measured[name] for name in entries}
        rows, notes = tabulate_effects(
            measured, base_values, base["prompts"], base["notes"], args.seed
        )
        save_effects(
            new.path,
            rows,
            notes,
            measured,
            entries,
            config | {"timings": timings, "engine": engine.facts()},
        )
    print_effects(rows, notes)
    print(
        f"{len(entries)} interventions, {len(prompts)} prompts, capture {timings['capture_s']:.1f} s -> "
        f"{printable(new.final)}"
    )
    return new.final, rows


def save_folder(folder, prompts, arrays, config):
    """A run folder inside the run: the arrays, prompts and config that `output_manager.load_run` reads."""

    from output_manager import write_manifest
    from rolecircuits.runs.arrays import Run
    from rolecircuits.runs.files import write_json, write_prompts
    from rolecircuits.runs.npz import write_npz
    from rolecircuits.stats.indices import summarize

    folder.mkdir()
    write_prompts(folder / "prompts.jsonl", prompts)
    write_npz(folder / "attention.npz", arrays)
    write_json(folder / "activations.json", summarize(Run(None, config, **arrays)))
    write_json(folder / "experiment_config.json", config)
    write_manifest(folder)


def save_effects(folder, rows, notes, measured, entries, config):
    """effects.csv, effects.json and experiment_config.json at the top of the run."""
    from rolecircuits.edits.effects import row_columns
    from rolecircuits.runs.files import write_csv, write_json

    labels = next(iter(measured.values()))["labels"]
    write_csv(folder / "effects.csv", rows, row_columns(labels))
    plan = [entry | {"folder": name} for name, entry in entries.items()]
    largest = {name: item["effects"]["logit_change"] for name, item in measured.items()}
    summary = {"schema_version": 1, "rows": rows, "notes": notes, "interventions": plan}
    summary["largest_logit_change"] = {
        name: max(v for v in values if v == v) for name, values in largest.items()
    }
    write_json(folder / "effects.json", summary)
    write_json(
        folder / "experiment_config.json", config | {"intervention": None, "interventions": plan}
    )


def print_effects(rows, notes):
    """The candidates' effects over all prompts beside their controls; categories and controls are in effects.csv."""
    from rolecircuits.drawing import tables

    name = tables.Column("intervention", no_wrap=True)
    columns = ["n", "KL, nats", "top-1", "answer surprisal"]
    columns += ["RFC of later layers", "RSI of later layers"]
    shown = []
    for row in rows:
        if row["category"] == "all" and row["role"] == "candidate":
            top1, changes = (
                f"{row['top1_change']:.0%}",
                ("surprisal_change", "rfc_change", "rsi_change"),
            )
            cells = [effect_cell(row, "kl"), top1, *(effect_cell(row, m) for m in changes)]
            shown.append([row["intervention"], row["n"], *cells])
    title = "effects over all prompts [95 % interval] | mean of the controls | q"
    look = tables.BOXED | {"title_justify": "left"}
    tables.print_table([name, *columns], shown, title, tables.WIDE, **look)
    for note in notes:
        if "no measurable effect" in note or "no intervals" in note:
            print(f"note: {printable(note)}")


def effect_cell(row, metric):
    """value [low, high] | control | q as text; what is undefined is left out."""

    def number(key):
        return f"{row[key]:.2g}" if metric == "kl" else f"{row[key]:+.2g}"

    if row[metric] != row[metric]:
        return "-"
    text = number(metric)
    if row[f"{metric}_low"] == row[f"{metric}_low"]:
        text += f" [{number(f'{metric}_low')}, {number(f'{metric}_high')}]"
    if row[f"{metric}_p"] == row[f"{metric}_p"]:
        text += f" | {number(f'{metric}_control')} | {row[f'{metric}_q']:.2g}"
    return text


def main(argv=None):
    return run_script(parse_args, run, argv)


def run_sweep(engine, prompts, args):
    """Sweep a model on an engine and publish head_effects.npz; returns the run folder."""

    from output_manager import create_run
    from rolecircuits.edits.sweep import (
        clean_task,
        combine_layers,
        fingerprint,
        remove_work,
        sweep_layers,
        work_folder,
    )
    from rolecircuits.runs.files import write_json
    from rolecircuits.runs.npz import write_npz
    from rolecircuits.runs.record import describe_prompts, describe_run

    method = args.method or "zero_out"
    payload = {
        "args": work_arguments(args) | {"method": method},
        "prompts": [asdict(p) for p in prompts],
    }
    base = engine.prepare(Item("clean pass", clean_task, payload))
    facts, timings, started = base["facts"], base["timings"], time.perf_counter()
    n_layers, n_heads = facts["n_layers"], facts["n_heads"]
    key = fingerprint(facts, prompts, args, method)
    with work_folder(Path(args.output_dir), method, key) as work:
        sweep_layers(engine, payload, n_layers, n_heads, work)
        timings["sweep_s"] = time.perf_counter() - started
        arrays = combine_layers(work, base["arrays"], n_layers, n_heads, args.seed)
        with create_run(args.output_dir, LATEST_SWEEP, "sweep") as new:
            write_npz(new.path / "head_effects.npz", arrays)
            script, fed = "interventions.py", describe_prompts(args, prompts)
            config = describe_run(script, args, facts, fed, base["determinism"], timings)
            config |= {"sweep": {"of": "heads", "method": method}}
            write_json(new.path / "experiment_config.json", config | {"engine": engine.facts()})
        remove_work(work)
    print_strongest(arrays)
    print(
        f"{n_layers * n_heads} heads, {len(prompts)} prompts, {timings['sweep_s']:.1f} s -> {printable(new.final)}"
    )
    return new.final


def print_strongest(arrays, n=10):
    """The heads with the largest KL, in a table."""

    import numpy as np

    from rolecircuits.drawing import tables
    from rolecircuits.edits import effects

    kl = arrays["kl_by_prompt"].mean(axis=-1)
    columns = ["layer", "head", "KL, nats", "top-1 changed"]
    columns += ["RFC of later layers", "RSI of later layers"]
    rows = []
    for flat in np.argsort(-kl, axis=None)[:n]:
        layer, head = np.unravel_index(flat, kl.shape)
        top1 = arrays["top1_change_by_prompt"][layer, head].mean()
        cells = [f"{arrays[m][layer, head]:+.4f}" for m in effects.INDEX_METRICS]
        rows.append([layer, head, f"{kl[layer, head]:.4f}", f"{top1:.0%}", *cells])
    tables.print_table(columns, rows, **tables.BOXED)


if __name__ == "__main__":
    sys.exit(main())
