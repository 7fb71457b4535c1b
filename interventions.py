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
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

import effects
from deterministic import prepare_environment, set_determinism
from head_sweep import combine_layers, fingerprint, remove_work, sweep_layers, work_folder
from prompts import load_prompts
from rolecircuits.inputs.arguments import (
    DEFAULT_RESULTS,
    LATEST,
    LATEST_SWEEP,
    add_model_arguments,
    check_model_arguments,
    check_output_dir,
    controls_number,
)
from rolecircuits.inputs.categories import Prompt
from rolecircuits.inputs.errors import RunFailed, UserError, printable
from rolecircuits.inputs.parser import Parser, collector_paused, run_script
from work_engine import (
    Item,
    add_engine_arguments,
    check_engine_arguments,
    content_hash,
    model_key,
    open_engine,
    work_arguments,
)

DEFAULT_PLAN = Path(__file__).with_name("targeted_interventions.json")
BASELINE = "baseline"
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
    plan.add_argument("--sweep", choices=["heads"], help="ablate every head in turn instead of running a plan")
    plan.add_argument("--method", choices=SWEEP_METHODS, help="what --sweep does to a head (default zero_out)")
    add_engine_arguments(parser)
    parser.add_argument("--output_dir", default=DEFAULT_RESULTS)
    return parser.parse_args(argv)


def run(args):
    """Run the plan or the sweep; whatever can be refused is refused before the weights are read."""
    check_model_arguments(args)
    check_engine_arguments(args)
    check_output_dir(args.output_dir, link=LATEST_SWEEP if args.sweep else LATEST)
    if args.sweep and args.config_file:
        raise UserError("--sweep with --config_file: a sweep takes every head, give one of them")
    if args.method and not args.sweep:
        raise UserError(f"--method {args.method} needs --sweep heads; a plan names a method for each entry")
    plan = None if args.sweep else read_plan_for(args)
    prompts, notes = load_prompts(args.prompts, args.prompts_per_category)
    for note in notes:
        print(f"note: {note}")
    with open_engine(args) as engine:
        if args.sweep:
            run_sweep(engine, prompts, args)
        else:
            run_interventions(engine, prompts, plan, args)


def read_plan_for(args):
    from intervention_plan import read_plan

    return read_plan(args.config_file or DEFAULT_PLAN)


def load_checked(plan, args):
    """The model that the flags name, after its config has shown that it has the layers and heads of the plan."""

    from rolecircuits.capture.instrument import load_from_args

    if plan:
        prepare_environment()
        with collector_paused():
            from intervention_plan import check_against_model
            from rolecircuits.models.architecture import check_architecture
            from rolecircuits.models.source import locate_model, pin_revision, read_config

        source = locate_model(args.model_id)
        config = read_config(source, pin_revision(source, args.revision), args.trust_remote_code)
        check_architecture(args.model_id, config)
        text = config.get_text_config()
        check_against_model(plan, text.num_hidden_layers, text.num_attention_heads, args.model_id)
        for each in plan:
            if getattr(each, "source", None):
                resolve_source(each.source)
    return load_from_args(args)


def run_interventions(engine, prompts, plan, args):
    """Run a plan (entries from intervention_plan.read_plan) on an engine; returns (run folder, rows of effects.csv).

    args  the flags of this script; a worker gets those that a result depends on (work_engine.work_arguments)
    """

    from output_manager import create_run
    from rolecircuits.runs.record import describe_run

    payload = {"args": work_arguments(args), "prompts": [asdict(p) for p in prompts]}
    payload["plan"] = [entry.model_dump() for entry in plan]
    base = engine.prepare(Item(BASELINE, "interventions:unedited_task", payload))
    for note in base["notes"]:
        print(f"note: {printable(note)}")
    entries, timings, started = base["entries"], base["timings"], time.perf_counter()
    items = [Item(name, "interventions:edit_task", payload | {"entry": name}) for name in entries]
    with create_run(args.output_dir, LATEST, "intervention") as new:
        model, captured = Namespace(facts=base["facts"]), Namespace(arrays=base["arrays"], failed=[])
        config = describe_run(model, prompts, captured, args, timings, base["determinism"])
        config |= {"script": "interventions.py", "engine": engine.facts()}
        save_folder(new.path / BASELINE, base["prompts"], base["arrays"], config | {"intervention": None})
        base_values, measured = normalised_values(base["arrays"], config), {}
        for item, result in engine.run(items, "interventions", "edit"):
            name = item.label
            save_folder(new.path / name, base["prompts"], result["arrays"], config | {"intervention": entries[name]})
            measured[name] = result["measured"] | {"values": normalised_values(result["arrays"], config)}
        timings["capture_s"] = time.perf_counter() - started
        measured = {name: measured[name] for name in entries}
        rows, notes = tabulate_effects(measured, base_values, base["prompts"], base["notes"], args.seed)
        save_effects(new.path, rows, notes, measured, entries, config | {"timings": timings, "engine": engine.facts()})
    print_effects(rows, notes)
    print(
        f"{len(entries)} interventions, {len(prompts)} prompts, capture {timings['capture_s']:.1f} s -> "
        f"{printable(new.final)}"
    )
    return new.final, rows


def unedited_task(held, payload):
    """work_engine task: the unedited pass and all that the driver must know of the model, as plain data."""

    from rolecircuits.models.load import model_identity

    bench = hold_bench(held, payload)
    return {
        "identity": model_identity(bench.loaded),
        "facts": bench.loaded.facts,
        "prompts": [asdict(p) for p in bench.tokenized],
        "entries": {entry.name: entry.model_dump() for entry in bench.entries},
        "notes": bench.notes,
        "arrays": bench.clean.arrays,
        "determinism": bench.determinism,
        "timings": bench.timings,
    }


def edit_task(held, payload):
    """work_engine task: the entry that payload["entry"] names, by its folder."""
    return hold_bench(held, payload).measure(payload["entry"])


def hold_bench(held, payload):
    """The Bench of a payload, made where the worker does not hold it yet."""
    from intervention_plan import parse_entries

    args, plan = Namespace(**payload["args"]), parse_entries(payload["plan"], "plan")
    started = time.perf_counter()
    loaded = held.model(model_key(args), lambda: load_checked(plan, args))
    timings = {"load_s": time.perf_counter() - started}
    prompts = [Prompt(**prompt) for prompt in payload["prompts"]]
    key = content_hash([payload[name] for name in ("args", "prompts", "plan")])
    return held.state(key, lambda: Bench(loaded, prompts, plan, args, timings))


class Bench:
    """A loaded model, its unedited pass, and what the edits of a plan are made of.

    The blocks below an edited layer give what they gave in the unedited pass, so an edited pass starts at its layer.
    """

    def __init__(self, loaded, prompts, plan, args, timings=None):
        from ablation import collect_donors
        from effects import BaseDistribution
        from intervention_plan import check_against_model
        from rolecircuits.capture.attention import capture_clean
        from rolecircuits.capture.tokens import tokenize_prompts

        self.loaded, self.args, self.timings = loaded, args, dict(timings or {})
        check_against_model(plan, loaded.n_layers, loaded.n_heads, args.model_id)
        self.determinism = set_determinism(args.seed)
        self.tokenized = tokenize_prompts(prompts, loaded.tokenizer, args.prompt_format, args.system_prompt, args.bos)
        self.entries, self.notes = complete_plan(plan, loaded, self.tokenized, args)
        other = lambda source: load_source(source, args)  # noqa: E731
        self.donors = collect_donors(loaded, self.tokenized, self.entries, args.seed, args.batch_size, other)
        layers = sorted({entry.layer for entry in self.entries})
        base, self.clean = capture_clean(loaded, self.tokenized, layers, args.batch_size, BASELINE)
        check_complete(base, BASELINE)
        self.resumes = resumes_exactly(loaded, self.tokenized, base, self.clean, layers[-1:], args.batch_size)
        self.distribution = BaseDistribution(base.logits)

    def measure(self, name):
        """One edit: {"arrays" of attention.npz, "measured": what effects.effect_rows takes, less its values}."""
        from ablation import edited_prompts, prepare_edit
        from intervention_plan import controls_of
        from rolecircuits.capture.attention import capture_attention

        entry = next(entry for entry in self.entries if entry.name == name)
        edits = edits_for(prepare_edit(entry, self.donors), self.tokenized)
        start = (entry.layer, self.clean) if self.resumes else None
        batch = self.args.batch_size
        captured = capture_attention(self.loaded, self.tokenized, batch, edits, want_logits=True, start=start)
        check_complete(captured, name)
        edited = edited_prompts(entry, self.tokenized, self.args.seed)
        controls = [control.name for control in controls_of(entry, self.entries)] if entry.role == "candidate" else []
        labels = {
            "role": entry.role,
            "type": entry.type,
            "layer": entry.layer,
            "head": " ".join(map(str, entry.head_list)),
            "method": entry.method,
            "controls": " ".join(controls),
        }
        effects = effects_of(self.distribution, captured.logits, edited)
        measured = {"effects": effects, "layer": entry.layer, "controls": controls, "labels": labels}
        return {"arrays": captured.arrays, "measured": measured}


def complete_plan(plan, loaded, tokenized, args):
    """(entries, notes): the plan with controls, and what a reader must know about it."""
    from ablation import edited_prompts
    from intervention_plan import controls_of, draw_controls

    entries, notes = list(plan), []
    if args.controls and not any(entry.role == "control" for entry in plan):
        drawn = draw_controls(plan, loaded.n_heads, args.controls, args.seed)
        taken = {entry.name for entry in plan}
        entries += [entry for entry in drawn if entry.name not in taken]
        notes.append(f"the plan has no controls: {len(drawn)} random heads of the same layers drawn, seed {args.seed}")
    for entry in entries:
        edited = edited_prompts(entry, tokenized, args.seed)
        if not edited.any():
            raise UserError(f"{entry.name}: no prompt has a partner of the same length; there is nothing to patch from")
        if entry.method == "resample" and not edited.all():
            notes.append(f"{entry.name}: {(~edited).sum()} prompts have no other of their length and stay unedited")
        if entry.method == "paired":
            paired = sum(p.pair_id >= 0 for p in tokenized)
            if edited.sum() < paired:
                notes.append(f"{entry.name}: {paired - edited.sum()} prompts of unequal pairs stay unedited")
    alone = [e.name for e in entries if e.role == "candidate" and not controls_of(e, entries)]
    if alone:
        notes.append(f"without matched controls (no p-value): {', '.join(alone)}")
    return entries, notes


def load_source(source, args):
    """The other model of a patch: a model id or folder, or a run folder whose config names the model."""
    from rolecircuits.models.load import load_model

    return load_model(*resolve_source(source), args.dtype, args.device, args.device_map)


def resolve_source(source):
    """(model id, revision) of a patch's source; refused where a run folder names no model, or the model is not there."""
    import json

    from rolecircuits.models.source import locate_model, pin_revision

    model_id, revision = source, None
    try:
        config = Path(source) / "experiment_config.json"
        if config.is_file():
            facts = json.loads(config.read_text(encoding="utf-8"))["model"]
            model_id, revision = facts["id"], facts.get("revision")
        named = isinstance(model_id, str) and isinstance(revision, str | None)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        named = False
    if not named:
        raise UserError(f"source {printable(source)[:200]}: is no model, and no experiment_config.json in it names one")
    try:
        pin_revision(locate_model(model_id), revision)
    except UserError as error:
        raise UserError(f"source {printable(source)[:200]}: {error}") from error
    return model_id, revision


def edits_for(prepare, tokenized):
    """A function of a batch's prompt positions for `capture_attention`."""
    from rolecircuits.capture.batches import Rows

    return lambda batch: prepare(Rows(list(batch), [len(tokenized[i].token_ids) for i in batch]))


def resumes_exactly(loaded, tokenized, base, clean, layers, batch_size):
    """True if a pass that starts at these layers gives the logits of the whole pass, bit for bit.

    False for an architecture whose blocks hand on more than the residual: then every pass runs whole.
    """
    import numpy as np

    from rolecircuits.capture.attention import capture_attention
    from rolecircuits.capture.batches import make_batches

    chosen = sorted(make_batches([len(p.token_ids) for p in tokenized], batch_size)[0])
    few = [tokenized[i] for i in chosen]
    for layer in layers:
        part = type(clean)(
            {name: a if name == "visible_keys" else a[chosen] for name, a in clean.arrays.items()},
            {layer: clean.residuals[layer][chosen]},
            clean.as_tuple,
        )
        again = capture_attention(loaded, few, batch_size, want_logits=True, start=(layer, part))
        if not np.array_equal(again.logits, base.logits[chosen]):
            return False
    return True


def check_complete(captured, name):
    """Every prompt must be measured in every run, or the runs cannot be compared prompt by prompt."""
    if captured.failed:
        prompt_id, reason = captured.failed[0]
        raise RunFailed(f"{name}: prompt {prompt_id}: {reason}; try a smaller model or --dtype bfloat16")


def normalised_values(arrays, config):
    """Normalised entropy of every prompt and layer, mean over heads: [prompt, layer]."""
    from rolecircuits.runs.arrays import Run
    from rolecircuits.stats.indices import layer_values

    return layer_values(Run(path=None, config=config, **arrays), "normalised")


def effects_of(distribution, logits, edited):
    """`BaseDistribution.effects`, NaN for prompts that the edit does not touch (edited [prompt] bool)."""
    import numpy as np

    return {metric: np.where(edited, values, np.nan) for metric, values in distribution.effects(logits).items()}


def save_folder(folder, prompts, arrays, config):
    """A run folder inside the run: the arrays, prompts and config that `output_manager.load_run` reads."""

    from output_manager import write_manifest
    from rolecircuits.runs.files import write_json, write_prompts
    from rolecircuits.runs.npz import write_npz
    from rolecircuits.stats.indices import summarize

    folder.mkdir()
    write_prompts(folder / "prompts.jsonl", prompts)
    write_npz(folder / "attention.npz", arrays)
    write_json(folder / "activations.json", summarize(arrays, config))
    write_json(folder / "experiment_config.json", config)
    write_manifest(folder)


def tabulate_effects(measured, base_values, prompts, notes, seed):
    """(rows of effects.csv, notes with what has no interval or no effect)."""
    import numpy as np

    import effects
    from rolecircuits.stats.resampling import bootstrap_counts, has_enough_prompts

    category = np.array([p["category"] for p in prompts])
    enough = has_enough_prompts(category)
    counts = bootstrap_counts(category, np.array([p["pair_id"] for p in prompts]), seed=seed) if enough else None
    notes = list(notes)
    if not enough:
        notes.append("a category has one prompt: no intervals")
    rows = effects.effect_rows(measured, base_values, category, counts, effects.random_signs(len(category), seed))
    for name, item in measured.items():
        largest = np.nanmax(item["effects"]["logit_change"])
        if largest < effects.NO_EFFECT:
            notes.append(f"{name}: no measurable effect, the largest change of a logit is {largest:.2g}")
    return rows, notes


def save_effects(folder, rows, notes, measured, entries, config):
    """effects.csv, effects.json and experiment_config.json at the top of the run."""
    from effects import row_columns
    from rolecircuits.runs.files import write_csv, write_json

    labels = next(iter(measured.values()))["labels"]
    write_csv(folder / "effects.csv", rows, row_columns(labels))
    plan = [entry | {"folder": name} for name, entry in entries.items()]
    largest = {name: item["effects"]["logit_change"] for name, item in measured.items()}
    summary = {"schema_version": 1, "rows": rows, "notes": notes, "interventions": plan}
    summary["largest_logit_change"] = {name: max(v for v in values if v == v) for name, values in largest.items()}
    write_json(folder / "effects.json", summary)
    write_json(folder / "experiment_config.json", config | {"intervention": None, "interventions": plan})


def print_effects(rows, notes):
    """The candidates' effects over all prompts beside their controls; categories and controls are in effects.csv."""
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 132
    table = Table(title="effects over all prompts [95 % interval] | mean of the controls | q", title_justify="left")
    table.add_column("intervention", no_wrap=True)
    for heading in ("n", "KL, nats", "top-1", "answer surprisal", "RFC of later layers", "RSI of later layers"):
        table.add_column(heading)
    for row in rows:
        if row["category"] == "all" and row["role"] == "candidate":
            cells = [effect_cell(row, m) for m in ("kl", "surprisal_change", "rfc_change", "rsi_change")]
            table.add_row(row["intervention"], str(row["n"]), cells[0], f"{row['top1_change']:.0%}", *cells[1:])
    console.print(table)
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
    from rolecircuits.inputs.arguments import LATEST_SWEEP
    from rolecircuits.runs.files import write_json
    from rolecircuits.runs.npz import write_npz
    from rolecircuits.runs.record import describe_run

    method = args.method or "zero_out"
    payload = {"args": work_arguments(args) | {"method": method}, "prompts": [asdict(p) for p in prompts]}
    base = engine.prepare(Item("clean pass", "head_sweep:clean_task", payload))
    loaded, timings, started = Namespace(facts=base["facts"]), base["timings"], time.perf_counter()
    n_layers, n_heads = (base["facts"][name] for name in ("n_layers", "n_heads"))
    with work_folder(Path(args.output_dir), method, fingerprint(loaded, prompts, args, method)) as work:
        sweep_layers(engine, payload, n_layers, n_heads, work)
        timings["sweep_s"] = time.perf_counter() - started
        arrays = combine_layers(work, base["arrays"], n_layers, n_heads, args.seed)
        with create_run(args.output_dir, LATEST_SWEEP, "sweep") as new:
            write_npz(new.path / "head_effects.npz", arrays)
            captured = Namespace(arrays=base["arrays"], failed=[])
            config = describe_run(loaded, prompts, captured, args, timings, base["determinism"])
            config |= {"script": "interventions.py", "sweep": {"of": "heads", "method": method}}
            write_json(new.path / "experiment_config.json", config | {"engine": engine.facts()})
        remove_work(work)
    print_strongest(arrays)
    print(f"{n_layers * n_heads} heads, {len(prompts)} prompts, {timings['sweep_s']:.1f} s -> {printable(new.final)}")
    return new.final


def print_strongest(arrays, n=10):
    """The heads with the largest KL, in a table."""

    import numpy as np
    from rich.console import Console
    from rich.table import Table

    kl = arrays["kl_by_prompt"].mean(axis=-1)
    table = Table("layer", "head", "KL, nats", "top-1 changed", "RFC of later layers", "RSI of later layers")
    for flat in np.argsort(-kl, axis=None)[:n]:
        layer, head = np.unravel_index(flat, kl.shape)
        top1 = arrays["top1_change_by_prompt"][layer, head].mean()
        cells = [f"{arrays[m][layer, head]:+.4f}" for m in effects.INDEX_METRICS]
        table.add_row(str(layer), str(head), f"{kl[layer, head]:.4f}", f"{top1:.0%}", *map(printable, cells))
    Console(markup=False, highlight=False).print(table)


if __name__ == "__main__":
    sys.exit(main())
