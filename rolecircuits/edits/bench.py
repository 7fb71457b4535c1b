"""A model, its unedited pass, and every edit of a plan measured against it."""

import time
from argparse import Namespace
from dataclasses import asdict
from functools import partial
from pathlib import Path

from deterministic import prepare_environment, set_determinism
from rolecircuits.capture.instrument import load_model
from rolecircuits.capture.tokens import tokenize_prompts
from rolecircuits.engines.work import content_hash, model_key
from rolecircuits.inputs.categories import Prompt
from rolecircuits.inputs.errors import RunFailed, UserError, printable
from rolecircuits.inputs.parser import collector_paused
from rolecircuits.inputs.specs import ModelSpec, PromptFormat, model_identity

BASELINE = "baseline"


def load_checked(plan, args, prompts=()):
    """The model that the flags name, refused before its weights are read where it lacks the layers
    and heads of the plan, or cannot be fed the prompts.
    """
    if plan:
        prepare_environment()
        with collector_paused():
            from rolecircuits.edits.plan import check_against_model
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
    check = partial(tokenize_prompts, prompts, form=PromptFormat.of(args))
    return load_model(ModelSpec.of(args), args.seed, check)


def unedited_task(held, payload):
    """work_engine task: the unedited pass and all that the driver must know of the model, as plain data."""
    bench = hold_bench(held, payload)
    return {
        "identity": model_identity(bench.loaded.facts),
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
    from rolecircuits.edits.plan import parse_entries

    args, plan = Namespace(**payload["args"]), parse_entries(payload["plan"], "plan")
    prompts, started = [Prompt(**p) for p in payload["prompts"]], time.perf_counter()
    loaded = held.model(model_key(args), lambda: load_checked(plan, args, prompts))
    timings = {"load_s": time.perf_counter() - started}
    key = content_hash([payload[name] for name in ("args", "prompts", "plan")])
    return held.state(key, lambda: Bench(loaded, prompts, plan, args, timings))


class Bench:
    """A loaded model, its unedited pass, and what the edits of a plan are made of.

    The blocks below an edited layer give what they gave in the unedited pass, so an edited pass starts at its layer.
    """

    def __init__(self, loaded, prompts, plan, args, timings=None):
        from rolecircuits.capture.attention import capture_clean
        from rolecircuits.edits.donors import collect_donors
        from rolecircuits.edits.effects import BaseDistribution
        from rolecircuits.edits.plan import check_against_model

        self.loaded, self.args, self.timings = loaded, args, dict(timings or {})
        check_against_model(plan, loaded.n_layers, loaded.n_heads, args.model_id)
        self.determinism = set_determinism(args.seed)
        self.tokenized = tokenize_prompts(prompts, loaded.tokenizer, PromptFormat.of(args))
        self.entries, self.notes = complete_plan(plan, loaded, self.tokenized, args)
        other = lambda source: load_source(source, args)  # noqa: E731
        self.donors = collect_donors(
            loaded, self.tokenized, self.entries, args.seed, args.batch_size, other
        )
        layers = sorted({entry.layer for entry in self.entries})
        base, self.clean = capture_clean(loaded, self.tokenized, layers, args.batch_size, BASELINE)
        check_complete(base, BASELINE)
        self.resumes = resumes_exactly(
            loaded, self.tokenized, base, self.clean, layers[-1:], args.batch_size
        )
        self.distribution = BaseDistribution(base.logits)

    def measure(self, name):
        """One edit: {"arrays" of attention.npz, "measured": what effects.effect_rows takes, less its values}."""
        from rolecircuits.capture.attention import capture_edited
        from rolecircuits.edits.donors import edited_prompts
        from rolecircuits.edits.hooks import prepare_edit
        from rolecircuits.edits.plan import controls_of

        entry = next(entry for entry in self.entries if entry.name == name)
        edits = edits_for(prepare_edit(entry, self.donors), self.tokenized)
        start = (entry.layer, self.clean) if self.resumes else None
        batch = self.args.batch_size
        captured = capture_edited(self.loaded, self.tokenized, edits, batch, start)
        check_complete(captured, name)
        edited = edited_prompts(entry, self.tokenized, self.args.seed)
        controls = (
            [control.name for control in controls_of(entry, self.entries)]
            if entry.role == "candidate"
            else []
        )
        labels = {
            "role": entry.role,
            "type": entry.type,
            "layer": entry.layer,
            "head": " ".join(map(str, entry.head_list)),
            "method": entry.method,
            "controls": " ".join(controls),
        }
        effects = effects_of(self.distribution, captured.logits, edited)
        measured = {
            "effects": effects,
            "layer": entry.layer,
            "controls": controls,
            "labels": labels,
        }
        return {"arrays": captured.arrays, "measured": measured}


def complete_plan(plan, loaded, tokenized, args):
    """(entries, notes): the plan with controls, and what a reader must know about it."""
    from rolecircuits.edits.donors import edited_prompts
    from rolecircuits.edits.plan import controls_of, draw_controls

    entries, notes = list(plan), []
    if args.controls and not any(entry.role == "control" for entry in plan):
        drawn = draw_controls(plan, loaded.n_heads, args.controls, args.seed)
        taken = {entry.name for entry in plan}
        entries += [entry for entry in drawn if entry.name not in taken]
        notes.append(
            f"the plan has no controls: {len(drawn)} random heads of the same layers drawn, seed {args.seed}"
        )
    for entry in entries:
        edited = edited_prompts(entry, tokenized, args.seed)
        if not edited.any():
            raise UserError(
                f"{entry.name}: no prompt has a partner of the same length; there is nothing to patch from"
            )
        if entry.method == "resample" and not edited.all():
            notes.append(
                f"{entry.name}: {(~edited).sum()} prompts have no other of their length and stay unedited"
            )
        if entry.method == "paired":
            paired = sum(p.pair_id >= 0 for p in tokenized)
            if edited.sum() < paired:
                notes.append(
                    f"{entry.name}: {paired - edited.sum()} prompts of unequal pairs stay unedited"
                )
    alone = [e.name for e in entries if e.role == "candidate" and not controls_of(e, entries)]
    if alone:
        notes.append(f"without matched controls (no p-value): {', '.join(alone)}")
    return entries, notes


def load_source(source, args):
    """The other model of a patch: a model id or folder, or a run folder whose config names the model."""
    model_id, revision = resolve_source(source)
    return load_model(ModelSpec(model_id, revision, args.dtype, args.device, args.device_map))


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
        raise UserError(
            f"source {printable(source)[:200]}: is no model, and no experiment_config.json in it names one"
        )
    try:
        pin_revision(locate_model(model_id), revision)
    except UserError as error:
        raise UserError(f"source {printable(source)[:200]}: {error}") from error
    return model_id, revision


def edits_for(prepare, tokenized):
    """A function of a batch's prompt positions for `capture_edited`."""
    from rolecircuits.capture.batches import Rows

    return lambda batch: prepare(Rows(list(batch), [len(tokenized[i].token_ids) for i in batch]))


def resumes_exactly(loaded, tokenized, base, clean, layers, batch_size):
    """True if a pass that starts at these layers gives the logits of the whole pass, bit for bit.

    False for an architecture whose blocks hand on more than the residual: then every pass runs whole.
    """
    import numpy as np

    from rolecircuits.capture.attention import capture_edited
    from rolecircuits.capture.batches import make_batches

    chosen = sorted(make_batches([len(p.token_ids) for p in tokenized], batch_size)[0])
    few = [tokenized[i] for i in chosen]
    for layer in layers:
        part = type(clean)(
            {name: a if name == "visible_keys" else a[chosen] for name, a in clean.arrays.items()},
            {layer: clean.residuals[layer][chosen]},
            clean.as_tuple,
        )
        again = capture_edited(loaded, few, lambda batch: [], batch_size, start=(layer, part))
        if not np.array_equal(again.logits, base.logits[chosen]):
            return False
    return True


def check_complete(captured, name):
    """Every prompt must be measured in every run, or the runs cannot be compared prompt by prompt."""
    if captured.failed:
        prompt_id, reason = captured.failed[0]
        raise RunFailed(
            f"{name}: prompt {prompt_id}: {reason}; try a smaller model or --dtype bfloat16"
        )


def normalised_values(arrays, config):
    """Normalised entropy of every prompt and layer, mean over heads: [prompt, layer]."""
    from rolecircuits.runs.arrays import Run
    from rolecircuits.stats.indices import layer_values

    return layer_values(Run(path=None, config=config, **arrays), "normalised")


def effects_of(distribution, logits, edited):
    """`BaseDistribution.effects`, NaN for prompts that the edit does not touch (edited [prompt] bool)."""
    import numpy as np

    return {
        metric: np.where(edited, values, np.nan)
        for metric, values in distribution.effects(logits).items()
    }
