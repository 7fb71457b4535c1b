"""Ablate every head in turn: 270 edits of a small model for the price of half as many passes.

    effect of (layer, head) on the next token and on the normalised RFC and RSI of later layers,
    as effects.py defines them

What makes it cheap: head_batches.py.

Every finished layer is a piece in <output_dir>/.sweep_heads/ until the sweep is published; the same
command goes on with them. Remove the folder to give unfinished sweeps up.

Axes: layer, head, prompt (or category).
"""

import time
from dataclasses import asdict
from functools import partial

import numpy as np
import torch

from deterministic import set_determinism
from rolecircuits.capture import instrument
from rolecircuits.capture.activations import collect_activations
from rolecircuits.capture.feeding import describe_feeding
from rolecircuits.capture.tokens import tokenize_prompts
from rolecircuits.edits import effects
from rolecircuits.edits.bench import NOT_HANDED_ON, check_complete
from rolecircuits.edits.check import check_edits
from rolecircuits.edits.donors import HOOKS, neutral_means
from rolecircuits.edits.effects import normalised_values
from rolecircuits.edits.head_batches import HeadBatches
from rolecircuits.edits.passes import capture_clean
from rolecircuits.edits.plan import FACTORS
from rolecircuits.engines.work import Item, content_hash
from rolecircuits.inputs.categories import Prompt, order_categories
from rolecircuits.inputs.errors import RunFailed, one_line
from rolecircuits.inputs.specs import Setting, model_identity
from rolecircuits.models.load import LoadedModel
from rolecircuits.runs.finished import piece_name, read_piece, remove_pieces, write_piece
from rolecircuits.runs.progress import progress
from rolecircuits.stats.units import design_of

FOLDER = ".sweep_heads"
PIECE_VERSION = 2
RESAMPLES = 2000


def sweep_payload(setting: Setting, prompts: list[Prompt], method):
    """The payload of both tasks, as JSON data."""
    prompts = [asdict(prompt) for prompt in prompts]
    return {"setting": asdict(setting), "prompts": prompts, "method": method}


def clean_task(state, payload):
    """The clean pass of a sweep, and what the driver must know of the model, as plain data."""
    sweep, determinism, timings = sweep_of(state, payload)
    sweep.check_start()
    form = Setting.from_plain(payload["setting"]).form
    return {
        "identity": model_identity(sweep.loaded.facts),
        "facts": sweep.loaded.facts,
        "feeding": describe_feeding(sweep.tokenized, sweep.loaded.tokenizer, form),
        "tokens": [[p.id, p.category, p.token_ids, p.span] for p in sweep.tokenized],
        "arrays": sweep.arrays,
        "determinism": determinism,
        "timings": timings,
    }


def layer_task(state, payload):
    """Every head of payload["layer"] ablated, as `Sweep.layer` returns it."""
    return sweep_of(state, payload)[0].layer(payload["layer"])


def sweep_of(state, payload):
    """(Sweep, record of determinism, timings) of a payload, made where the worker has another."""
    setting, started = Setting.from_plain(payload["setting"]), time.perf_counter()
    prompts = [Prompt(**prompt) for prompt in payload["prompts"]]
    check = partial(tokenize_prompts, prompts, form=setting.form)
    load = partial(instrument.load_model, setting.model, setting.seed, check)
    loaded = state.model(setting.model, load)
    timings = {"load_s": time.perf_counter() - started}

    def make():
        determinism = set_determinism(setting.seed)
        tokenized = tokenize_prompts(prompts, loaded.tokenizer, setting.form)
        sweep = Sweep(loaded, tokenized, payload["method"], setting.batch_size)
        return sweep, determinism, timings

    key = content_hash({name: payload[name] for name in payload if name != "layer"})
    return state.state(key, make)


class Sweep:
    """The clean pass of a model and what every layer of the sweep shares with it.

    method  zero_out, half_out or mean    rows  as in HeadBatches
    """

    def __init__(self, loaded: LoadedModel, tokenized, method, batch_size=32, rows=None):
        self.loaded, self.tokenized, self.batch_size = loaded, tokenized, batch_size
        self.factor = None if method == "mean" else FACTORS[method]
        layers = range(loaded.n_layers)
        check_edits(loaded, {("head", layer): [f"layer {layer}"] for layer in layers})
        self.base, clean = capture_clean(loaded, tokenized, layers, batch_size, "clean pass")
        check_complete(self.base, "clean pass")
        self.arrays = self.base.arrays
        self.distribution = effects.BaseDistribution(self.base.logits)
        self.batches = HeadBatches(loaded, tokenized, clean, self.distribution, rows)

    def check_start(self):
        """Stop unless a pass that starts in the middle gives the clean logits."""
        lengths = self.batches.lengths
        most = max(set(lengths), key=lengths.count)
        positions = np.flatnonzero(np.array(lengths) == most)[:4]
        try:
            logits, _ = self.batches.run_batch(self.loaded.n_layers // 2, positions, [], positions)
        except NOT_HANDED_ON as error:
            raise RunFailed(
                f"a pass cannot start in the middle ({one_line(error, 100)}); this model cannot be "
                "swept"
            ) from error
        clean = self.base.logits[positions]
        gap = float(np.abs(logits - clean).max())
        if gap > 1e-3 * max(1.0, float(np.abs(clean).max())):
            raise RunFailed(
                f"a pass that starts in the middle differs by {gap:.2g} in the logits; this model "
                "cannot be swept"
            )

    def layer(self, layer):
        """Ablate every head of a layer: {metric: [head, prompt], "values": [head, prompt, layer]}.

        values  normalised entropy, mean over heads, of the later layers; NaN up to the ablated one
        """
        site, means = HOOKS["head"].format(layer), None
        if self.factor is None:
            donor = collect_activations(self.loaded, self.tokenized, [site], self.batch_size)[site]
            means = torch.tensor(neutral_means(self.tokenized, donor))
        found = self.batches.measure(layer, range(self.loaded.n_heads), self.factor, means)
        return {name: found[name] for name in (*effects.PROMPT_METRICS, "values")}


def sweep_heads(engine, payload, base, folder):
    """(arrays of head_effects.npz, files of the layers, which may go once they are published).

    base    what `clean_task` gave    folder  where finished layers are kept
    """
    facts, what = base["facts"], {"method": payload["method"], "prompts": base["tokens"]}
    layers = range(facts["n_layers"])
    paths = [folder / piece_name(PIECE_VERSION, facts, **what, layer=i) for i in layers]
    done = finish_layers(engine, payload, base, paths)
    return combine_layers(done, base, payload["setting"]["seed"]), paths


def remove_layers(paths):
    """Remove the files of the layers, once head_effects.npz is published."""
    remove_pieces(paths)


def finish_layers(engine, payload, base, paths):
    """Yield (layer, what `Sweep.layer` gave): first the layers that have a file, then the others.

    Late layers are cheap. In this process they come first, so that an early end leaves many; on
    several workers they come last, so that no costly one is waited for at the end.
    """
    shapes, missing = layer_shapes(base["facts"], len(base["tokens"])), []
    for layer in range(len(paths)) if engine.name == "ray" else reversed(range(len(paths))):
        if (arrays := read_piece(paths[layer], shapes)) is None:
            missing.append(layer)
        else:
            yield layer, arrays
    if len(missing) < len(paths):
        print(f"{len(paths) - len(missing)} of {len(paths)} layers were done before")
    items = [Item(f"layer {layer}", layer_task, payload | {"layer": layer}) for layer in missing]
    n_heads = base["facts"]["n_heads"]
    with progress(len(missing) * n_heads, "sweep", "head") as bar:
        for item, arrays in engine.run(items):
            write_piece(paths[item.payload["layer"]], arrays)
            bar.update(n_heads)
            yield item.payload["layer"], arrays


def layer_shapes(facts, n_prompts):
    """{array: shape} of what is kept of a layer."""
    by_prompt = (facts["n_heads"], n_prompts)
    shapes = dict.fromkeys(effects.PROMPT_METRICS, by_prompt)
    return shapes | {"values": (*by_prompt, facts["n_layers"])}


def combine_layers(done, base, seed):
    """The arrays of head_effects.npz from what `finish_layers` yields.

    <metric>_by_prompt [layer, head, prompt], <metric> its means [layer, head, category];
    index changes, their _low and _high [layer, head]
    """
    category, values = base["arrays"]["category"], normalised_values(base["arrays"])
    design = design_of(base["arrays"])
    shape = (base["facts"]["n_layers"], base["facts"]["n_heads"])
    by_prompt = [f"{metric}_by_prompt" for metric in effects.PROMPT_METRICS]
    parts = [metric + part for metric in effects.INDEX_METRICS for part in ("", "_low", "_high")]
    out = {name: np.zeros((*shape, len(category)), np.float32) for name in by_prompt}
    out |= {name: np.full(shape, np.nan, np.float32) for name in parts}
    for layer, arrays in done:
        for metric in effects.PROMPT_METRICS:
            out[f"{metric}_by_prompt"][layer] = arrays[metric]
        for head, edited in enumerate(arrays["values"] if layer + 1 < shape[0] else []):
            sides = values[:, layer + 1 :], edited[:, layer + 1 :]
            changes = effects.infer_index_changes(*sides, design, seed, n_resamples=RESAMPLES)
            for metric, change in changes.items():
                for part, number in zip(("", "_low", "_high"), change[:3], strict=True):
                    out[metric + part][layer, head] = number
    names = order_categories(category.tolist())
    for metric, name in zip(effects.PROMPT_METRICS, by_prompt, strict=True):
        means = [out[name][:, :, category == group].mean(axis=-1) for group in names]
        out[metric] = np.stack(means, axis=-1)
    named = {"category": np.array(names), "prompt_category": category}
    return out | named | {"prompt_id": base["arrays"]["prompt_id"]}
