"""A model, its unedited pass, and every edit of a plan measured against it."""

import time
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import torch

from deterministic import prepare_environment, set_determinism
from rolecircuits.capture import instrument
from rolecircuits.capture.batches import Rows, make_batches
from rolecircuits.capture.feeding import describe_feeding
from rolecircuits.capture.tokens import TokenizedPrompt, tokenize_prompts
from rolecircuits.edits.check import check_edits, edited_sites
from rolecircuits.edits.controls import find_controls
from rolecircuits.edits.donors import collect_donors, edited_hook, edited_prompts, neutral_means
from rolecircuits.edits.effects import BaseDistribution, normalised_values
from rolecircuits.edits.head_batches import HeadBatches
from rolecircuits.edits.hooks import prepare_edit
from rolecircuits.edits.passes import capture_clean, capture_edited
from rolecircuits.edits.plan import FACTORS, Entry, check_against_model, parse_entries
from rolecircuits.engines.work import content_hash
from rolecircuits.inputs.categories import Prompt
from rolecircuits.inputs.errors import RunFailed, UserError, printable
from rolecircuits.inputs.files import follow_links
from rolecircuits.inputs.specs import ModelSpec, Setting, model_identity
from rolecircuits.models.adapters import find_origin
from rolecircuits.models.architecture import model_shape
from rolecircuits.models.load import LoadedModel, open_config
from rolecircuits.models.rotary import batch_side
from rolecircuits.runs.arrays import PROMPT_ARRAYS
from rolecircuits.runs.files import read_json

BASELINE = "baseline"
# what a block raises that is handed the residual alone, and needs more of the block before
NOT_HANDED_ON = (ValueError, TypeError, IndexError, AttributeError)


def plan_payload(setting: Setting, prompts: list[Prompt], plan: list[Entry], controls):
    """The payload of the three tasks, as JSON data.

    controls  other heads of the layer a candidate is compared with, for a plan that has none
    """
    return {
        "setting": asdict(setting),
        "prompts": [asdict(prompt) for prompt in prompts],
        "plan": [entry.model_dump() for entry in plan],
        "controls": controls,
    }


def unedited_task(state, payload):
    """The unedited pass, and all that the driver must know of the model, as plain data."""
    bench, timings = bench_of(state, payload)
    return {
        "identity": model_identity(bench.loaded.facts),
        "facts": bench.loaded.facts,
        "feeding": describe_feeding(bench.tokenized, bench.loaded.tokenizer, bench.setting.form),
        "prompts": [asdict(prompt) for prompt in bench.tokenized],
        "entries": {entry.name: entry.model_dump() for entry in bench.entries},
        "controls": bench.batches_of_controls(),
        "notes": bench.notes,
        "arrays": bench.clean.arrays,
        "determinism": bench.determinism,
        "timings": timings,
    }


def edit_task(state, payload):
    """What `Bench.measure` gives for the entry whose name is payload["entry"]."""
    return bench_of(state, payload)[0].measure(payload["entry"])


def controls_task(state, payload):
    """{name: "measured" of `Bench.measure`} of the controls whose names are payload["entry"]."""
    return bench_of(state, payload)[0].measure_controls(payload["entry"])


def bench_of(state, payload):
    """(Bench of a payload, {"load_s": seconds}), made where the worker has another."""
    setting = Setting.from_plain(payload["setting"])
    plan, started = parse_entries(payload["plan"], "plan"), time.perf_counter()
    prompts = [Prompt(**prompt) for prompt in payload["prompts"]]
    loaded = state.model(setting.model, lambda: load_checked(plan, setting, prompts))
    timings = {"load_s": time.perf_counter() - started}
    key = content_hash({name: payload[name] for name in payload if name != "entry"})
    make = lambda: Bench(loaded, prompts, plan, setting, payload["controls"])  # noqa: E731
    return state.state(key, make), timings


def load_checked(plan: list[Entry], setting: Setting, prompts):
    """The model of a setting; refused before its weights are read where it lacks the layers and
    heads of the plan, or cannot be fed the prompts.
    """
    spec = setting.model
    if plan:
        prepare_environment()
        _, config = open_config(spec)
        shape = model_shape(config)
        check_against_model(plan, shape.n_layers, shape.n_heads, spec.model_id)
    for entry in plan:
        if source := getattr(entry, "source", None):
            resolve_source(source)
    check = partial(tokenize_prompts, prompts, form=setting.form)
    return instrument.load_model(spec, setting.seed, check)


class Bench:
    """A loaded model, its unedited pass, and what the edits of a plan are made of.

    The blocks below an edited layer give what they gave in the unedited pass, so an edited pass
    starts at its layer, where the architecture allows it.
    """

    def __init__(self, loaded: LoadedModel, prompts, plan, setting: Setting, controls=0):
        check_against_model(plan, loaded.n_layers, loaded.n_heads, setting.model.model_id)
        self.loaded, self.setting = loaded, setting
        self.determinism = set_determinism(setting.seed)
        self.tokenized = tokenize_prompts(prompts, loaded.tokenizer, setting.form)
        self.entries = list(plan)
        found = find_controls(plan, loaded.n_heads, controls, setting.seed)
        self.drawn, self.controls, self.notes = found
        self.notes += notes_on(self.entries, self.tokenized, setting.seed)
        if lonely := [name for name, names in self.controls.items() if not names]:
            self.notes.append(f"without controls (no rank, no p-value): {', '.join(lonely)}")
        edits, size = [*self.entries, *self.drawn], setting.batch_size
        check_edits(loaded, edited_sites(edits))
        self.donors = donors_for(loaded, self.tokenized, edits, setting)
        layers = sorted({entry.layer for entry in edits})
        base, self.clean = capture_clean(loaded, self.tokenized, layers, size, BASELINE)
        check_complete(base, BASELINE)
        self.distribution = BaseDistribution(base.logits)
        sides = base, self.clean
        self.starts_inside = starts_exactly(loaded, self.tokenized, *sides, layers[-1], size)
        self.batches = HeadBatches(loaded, self.tokenized, self.clean, self.distribution)

    def measure(self, name):
        """One entry of the plan: {"arrays" of attention.npz, "measured"}.

        measured  what effects.effect_rows takes
        """
        entry = next(entry for entry in self.entries if entry.name == name)
        captured = self.capture(entry)
        return {"arrays": captured.arrays, "measured": self.describe(entry, captured)}

    def capture(self, entry: Entry):
        """The Capture of an edit, of every prompt."""
        start = (entry.layer, self.clean) if self.starts_inside else None
        edit, size = prepare_edit(entry, self.donors), self.setting.batch_size
        edits = edits_for(edit, self.tokenized)
        captured = capture_edited(self.loaded, self.tokenized, edits, size, start, edit.alike)
        check_complete(captured, entry.name)
        return captured

    def describe(self, entry: Entry, captured):
        """What effects.effect_rows takes of an edit, from its Capture."""
        edited = edited_prompts(entry, self.tokenized, self.setting.seed)
        effects = {
            metric: np.where(edited, values, np.nan)  # NaN for prompts that it does not touch
            for metric, values in self.distribution.effects(captured.logits).items()
        }
        return self.label(entry) | {
            "effects": effects,
            "values": normalised_values(captured.arrays),
        }

    def label(self, entry: Entry):
        """The same of an edit, less its effects and values."""
        controls = self.controls.get(entry.name, [])
        labels = {"role": entry.role, "type": entry.type, "layer": entry.layer}
        labels |= {"head": " ".join(map(str, entry.head_list)), "method": entry.method}
        labels |= {"controls": " ".join(controls)}
        edit = {"layer": entry.layer, "change": entry.change, "labels": labels}
        return edit | {"controls": controls}

    def batches_of_controls(self):
        """{what they are: names} of the drawn controls that are measured together."""
        groups = {}
        for entry in self.drawn:
            n = len(entry.head_list)
            title = f"controls of layer {entry.layer}, {entry.type} {entry.change}"
            title += f" of {n} heads" if n > 1 else ""
            groups.setdefault(title, []).append(entry.name)
        return groups

    def measure_controls(self, names):
        """{name: what effects.effect_rows takes} of drawn controls: one layer, one edit."""
        entries = [entry for entry in self.drawn if entry.name in names]
        if not (self.starts_inside and all(map(shares_batches, entries))):
            return {entry.name: self.describe(entry, self.capture(entry)) for entry in entries}
        first, factor, means = entries[0], None, None
        if first.method == "mean":
            activations = self.donors.activations[edited_hook(first)]
            means = torch.tensor(neutral_means(self.tokenized, activations))
        else:
            factor = FACTORS.get(first.method, first.factor)
        heads = [head for entry in entries for head in entry.head_list]
        found = self.batches.measure(first.layer, heads, factor, means)
        values = found.pop("values")
        measured = {}
        for i, entry in enumerate(entries):
            effects = {metric: of_heads[i] for metric, of_heads in found.items()}
            measured[entry.name] = self.label(entry) | {"effects": effects, "values": values[i]}
        return measured


def shares_batches(entry: Entry):
    """True for one head whose output is scaled or replaced by a mean: HeadBatches can do it."""
    one_head = entry.type in ("head", "layer_heads") and len(entry.head_list) == 1
    return one_head and entry.method in (*FACTORS, "scale", "mean")


def notes_on(entries: list[Entry], tokenized: list[TokenizedPrompt], seed):
    """What a reader must know about a plan; an entry that would edit no prompt is refused."""
    notes, n_paired = [], sum(prompt.pair_id >= 0 for prompt in tokenized)
    for entry in entries:
        edited = edited_prompts(entry, tokenized, seed)
        if not edited.any():
            raise UserError(
                f"{entry.name}: no prompt has a partner of the same length; there is nothing to "
                "patch from"
            )
        alone, unequal = (~edited).sum(), n_paired - edited.sum()
        if entry.method == "resample" and alone:
            notes.append(
                f"{entry.name}: {alone} prompts have no other of their length and stay unedited"
            )
        if entry.method == "paired" and unequal > 0:
            notes.append(f"{entry.name}: {unequal} prompts of unequal pairs stay unedited")
    return notes


def donors_for(loaded: LoadedModel, tokenized, entries, setting: Setting):
    """The Donors of these entries; the other model of a patch runs where and as this one does."""

    def load(source):
        model_id, revision = resolve_source(source)
        spec = replace(setting.model, model_id=model_id, revision=revision, trust_remote_code=False)
        return instrument.load_model(spec)

    return collect_donors(loaded, tokenized, entries, setting.seed, setting.batch_size, load)


def resolve_source(source):
    """(model id, revision) of a patch's source: a model, or a run folder whose config names one."""
    where, model_id, revision = f"source {printable(source)[:200]}", source, None
    try:
        config = follow_links(source) / "experiment_config.json"
        if config.is_file():
            facts = read_json(config)["model"]
            model_id, revision = facts["id"], facts.get("revision")
        named = isinstance(model_id, str) and isinstance(revision, str | None)
    except (OSError, ValueError, KeyError, TypeError, UserError):
        named = False
    if not named:
        raise UserError(f"{where}: is no model, and no experiment_config.json in it names one")
    try:
        find_origin(ModelSpec(model_id, revision))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return model_id, revision


def edits_for(prepare, tokenized):
    """A function of a batch's prompt positions for `capture_edited`."""
    return lambda batch: prepare(Rows(list(batch), [len(tokenized[i].token_ids) for i in batch]))


def starts_exactly(loaded: LoadedModel, tokenized, base, clean, layer, batch_size):
    """True if a pass that starts at this layer gives the logits of the whole pass, bit for bit.

    False for an architecture whose blocks hand on more than the residual: every pass runs whole.
    """
    lengths, side = [len(p.token_ids) for p in tokenized], batch_side(loaded.facts)
    chosen = sorted(make_batches(lengths, batch_size, None, side)[0])
    part = type(clean)(
        {name: a[chosen] if name in PROMPT_ARRAYS else a for name, a in clean.arrays.items()},
        {layer: clean.residuals[layer][chosen]},
        clean.as_tuple,
    )
    few = [tokenized[i] for i in chosen]
    try:
        start = layer, part
        again = capture_edited(loaded, few, lambda batch: [], batch_size, start, alike=True)
    except NOT_HANDED_ON:
        return False
    return np.array_equal(again.logits, base.logits[chosen])


def check_complete(captured, name):
    """Every prompt must be measured in every run, or they cannot be compared prompt by prompt."""
    if captured.failed:
        prompt_id, reason = captured.failed[0]
        raise RunFailed(
            f"{name}: prompt {prompt_id}: {reason}; try a smaller model or --dtype bfloat16"
        )
