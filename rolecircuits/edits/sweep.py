"""Ablate every head in turn: 270 interventions of a small model for the price of half as many forward passes.

    effect of (layer, head) on the next token and on the normalised RFC and RSI of later layers, as effects.py defines them

What makes it cheap: prompts of one length are batched without padding, many ablations share a batch (its rows differ in the
head they lose), the blocks below the ablated layer are not executed (the clean residual is put in their place), and
logits are computed for the final token only. Proved equal to one ablation at a time in tests/test_interventions.py.

Finished layers are kept in <output_dir>/.sweep_heads_<method>/ until the sweep is complete; the same command continues.

Axes: layer, head, prompt (or category).
"""

import contextlib
import fcntl
import json
import os
import shutil
import time
from dataclasses import asdict
from functools import partial
from types import SimpleNamespace as Namespace

import numpy as np
import torch

from rolecircuits.capture.activations import collect_activations
from rolecircuits.capture.attention import capture_clean
from rolecircuits.capture.patterns import Resume, run_layers
from rolecircuits.capture.tokens import tokenize_prompts
from rolecircuits.edits import effects
from rolecircuits.edits.donors import SITES, neutral_means
from rolecircuits.edits.hooks import edit_own_head
from rolecircuits.edits.plan import FACTORS
from rolecircuits.engines.work import Item, content_hash, model_key
from rolecircuits.inputs.categories import CATEGORIES, Prompt, prompt_set_sha256
from rolecircuits.inputs.errors import RunFailed, UserError
from rolecircuits.inputs.specs import ModelSpec, PromptFormat, model_identity
from rolecircuits.runs.files import temporary_name, write_json
from rolecircuits.runs.npz import read_npz, write_npz
from rolecircuits.runs.record import portable
from rolecircuits.stats import indices
from rolecircuits.stats.entropy import attention_entropy
from rolecircuits.stats.resampling import bootstrap_counts, has_enough_prompts, percentile_interval

ROWS = 96
RESAMPLES = 2000
LAYER_ARRAYS = (*effects.PROMPT_METRICS, "values")
FINGERPRINT = (
    "id",
    "revision",
    "weights_sha256",
    "tokenizer_sha256",
    "dtype",
    "n_layers",
    "n_heads",
)


def clean_task(held, payload):
    """work_engine task: the clean pass of a sweep, and what the driver must know of the model, as plain data."""

    sweep, determinism, timings = hold_sweep(held, payload)
    sweep.check_resuming()
    answer = {
        "identity": model_identity(sweep.loaded.facts),
        "facts": sweep.loaded.facts,
        "arrays": sweep.arrays,
    }
    return answer | {"determinism": determinism, "timings": timings}


def layer_task(held, payload):
    """work_engine task: every head of payload["layer"] ablated, as `Sweep.layer` returns it."""
    return hold_sweep(held, payload)[0].layer(payload["layer"])


def hold_sweep(held, payload):
    """(Sweep, record of determinism, timings) of a payload, made where the worker does not hold it yet."""
    from deterministic import set_determinism
    from rolecircuits.capture.instrument import load_model

    args, started = Namespace(**payload["args"]), time.perf_counter()
    prompts = [Prompt(**prompt) for prompt in payload["prompts"]]
    check = partial(tokenize_prompts, prompts, form=PromptFormat.of(args))
    loaded = held.model(model_key(args), lambda: load_model(ModelSpec.of(args), args.seed, check))
    timings = {"load_s": time.perf_counter() - started}

    def make():
        determinism = set_determinism(args.seed)
        tokenized = tokenize_prompts(prompts, loaded.tokenizer, PromptFormat.of(args))
        return Sweep(loaded, tokenized, args.method, args.batch_size), determinism, timings

    return held.state(content_hash(["sweep", payload["args"], payload["prompts"]]), make)


def fingerprint(loaded, prompts, args, method):
    """What an unfinished sweep must share with the one that continues it."""
    return portable(
        {
            "model": {name: loaded.facts[name] for name in FINGERPRINT},
            "prompts": prompt_set_sha256(prompts),
            "format": asdict(PromptFormat.of(args)),
            "method": method,
        }
    )


@contextlib.contextmanager
def work_folder(root, method, key):
    """The folder of finished layers; refuses one that another model, prompt set or format has begun, or that is in use."""
    folder = root / f".sweep_heads_{method}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{folder}: another sweep is running there; wait for it or name another --output_dir"
            ) from error
        begun = folder / "key.json"
        if begun.is_file():
            try:
                old = json.loads(begun.read_text(encoding="utf-8"))
            except (ValueError, UnicodeDecodeError) as error:
                raise UserError(f"{begun}: damaged; remove {folder} and begin again") from error
            changed = (
                [name for name in key if old.get(name) != key[name]]
                if isinstance(old, dict)
                else list(key)
            )
            if changed:
                raise UserError(
                    f"{folder}: holds an unfinished sweep with another {', '.join(changed)}; finish it with its own "
                    "command, remove the folder, or name another --output_dir"
                )
        else:
            for nameless in folder.glob("layer_*.npz"):  # nobody knows what they are layers of
                nameless.unlink()
            write_json(begun, key)
        yield folder


def remove_work(folder):
    """Remove a finished work folder, renamed first: a kill in between must not leave its layers without their key."""
    gone = folder.with_name(temporary_name())
    os.rename(folder, gone)
    shutil.rmtree(gone)


class Sweep:
    """The clean pass of a model and what every layer of the sweep shares with it."""

    def __init__(self, loaded, tokenized, method, batch_size=32, rows=ROWS):
        self.loaded, self.tokenized, self.rows = loaded, tokenized, rows
        self.method, self.factor, self.means = method, FACTORS.get(method), None
        self.base, self.clean = capture_clean(
            loaded, tokenized, range(loaded.n_layers), batch_size, "clean pass"
        )
        if self.base.failed:
            raise RunFailed(
                f"clean pass: prompt {self.base.failed[0][0]}: {self.base.failed[0][1]}"
            )
        self.arrays = self.base.arrays
        self.distribution = effects.BaseDistribution(self.base.logits)
        self.batch_size = batch_size
        self.lengths = {}
        for i, prompt in enumerate(tokenized):
            self.lengths.setdefault(len(prompt.token_ids), []).append(i)

    def batches(self):
        """(heads [row], prompts [row]) of every batch: all heads times all prompts of one length, `rows` at a time."""
        for positions in self.lengths.values():
            pairs = [(head, i) for head in range(self.loaded.n_heads) for i in positions]
            n_batches = -(-len(pairs) // self.rows)
            for part in np.array_split(np.array(pairs), n_batches):
                yield part[:, 0], part[:, 1]

    def check_resuming(self):
        """Stop unless a pass that starts in the middle gives the clean logits: another architecture might not."""
        n_tokens, positions = max(self.lengths.items(), key=lambda item: len(item[1]))
        positions = np.array(positions[:4])
        logits, _ = self._run(self.loaded.n_layers // 2, positions, n_tokens, [])
        gap = float(np.abs(logits - self.base.logits[positions]).max())
        if gap > 1e-3 * max(1.0, float(np.abs(self.base.logits[positions]).max())):
            raise RunFailed(
                f"a pass that starts in the middle differs by {gap:.2g} in the logits; this model cannot be swept"
            )

    def layer(self, layer):
        """Ablate every head of a layer: {metric: [head, prompt], "values": [head, prompt, layer]}.

        values  normalised entropy, mean over heads, of the later layers; NaN up to the ablated one
        """
        n_layers, n_heads, n = self.loaded.n_layers, self.loaded.n_heads, len(self.tokenized)
        site = SITES["head"].format(layer)
        if self.factor is None:
            donor = collect_activations(self.loaded, self.tokenized, [site], self.batch_size)[site]
            self.means = torch.tensor(neutral_means(self.tokenized, donor))
            self.means = torch.cat(
                [self.means, self.means[-1:].expand(donor.shape[1] - len(self.means), -1, -1)]
            )
        out = {metric: np.full((n_heads, n), np.nan) for metric in effects.PROMPT_METRICS}
        out["values"] = np.full((n_heads, n, n_layers), np.nan)
        for heads, prompts in self.batches():
            edit = (site, edit_own_head(heads, self.factor, self.means))
            logits, values = self._run(layer, prompts, self.arrays["n_tokens"][prompts[0]], [edit])
            found = self.distribution.effects(logits, prompts)
            for metric in effects.PROMPT_METRICS:
                out[metric][heads, prompts] = found[metric]
            out["values"][heads, prompts, layer + 1 :] = values
        return out

    def _run(self, layer, prompts, n_tokens, edits):
        """(final logits [row, vocabulary], values [row, later layer]) of one batch that starts at `layer`."""
        entropy = []

        def on_layer(number, pattern):
            if number > layer:
                entropy.append(attention_entropy(pattern))

        hidden = self.clean.residuals[layer]
        hidden = hidden[torch.as_tensor(prompts, device=hidden.device), :n_tokens]
        ids = [self.tokenized[i].token_ids for i in prompts]
        resume = Resume(layer, hidden, self.clean.as_tuple)
        logits = run_layers(self.loaded, ids, on_layer, edits, True, resume).cpu().numpy()
        if not entropy:
            return logits, np.empty((len(prompts), 0))
        run = Namespace(
            entropy=np.stack(entropy, axis=1),
            visible_keys=self.arrays["visible_keys"][layer + 1 :, :n_tokens],
            n_tokens=self.arrays["n_tokens"][prompts],
            span=self.arrays["span"][prompts],
            prompt_format=None,
        )
        return logits, indices.layer_values(run, "normalised")


def sweep_layers(engine, payload, n_layers, n_heads, work):
    """Do the layers that the work folder does not hold: here the cheap ones (late layers) first, so that an early end
    leaves many; on several workers the costly ones first, so that none is waited for at the end.
    """
    from tqdm import tqdm

    order = range(n_layers) if engine.name == "ray" else reversed(range(n_layers))
    missing = [layer for layer in order if not (work / layer_file(layer)).is_file()]
    if len(missing) < n_layers:
        print(f"{n_layers - len(missing)} of {n_layers} layers were done before")
    items = [
        Item(f"layer {layer}", "rolecircuits.edits.sweep:layer_task", payload | {"layer": layer})
        for layer in missing
    ]
    with tqdm(total=len(missing) * n_heads, desc="sweep", unit="head", leave=False) as bar:
        for item, arrays in engine.run(items):
            write_npz(work / layer_file(item.payload["layer"]), arrays)
            bar.update(n_heads)


def layer_file(layer):
    return f"layer_{layer:03d}.npz"


def combine_layers(work, arrays, n_layers, n_heads, seed):
    """head_effects.npz: means [layer, head, category], index changes [layer, head] with intervals, values per prompt.

    arrays  of the clean pass, as in attention.npz
    """
    category, pair_id = arrays["category"], arrays["pair_id"]
    base = indices.layer_values(Namespace(**arrays, prompt_format=None), "normalised")
    counts = (
        bootstrap_counts(category, pair_id, RESAMPLES, seed)
        if has_enough_prompts(category)
        else None
    )
    names = [name for name in CATEGORIES if (category == name).any()]
    out = {
        f"{m}_by_prompt": np.zeros((n_layers, n_heads, len(category)))
        for m in effects.PROMPT_METRICS
    }
    for metric in effects.INDEX_METRICS:
        out |= {
            metric + part: np.full((n_layers, n_heads), np.nan) for part in ("", "_low", "_high")
        }
    for layer in range(n_layers):
        done = read_npz(work / layer_file(layer), LAYER_ARRAYS)
        for metric in effects.PROMPT_METRICS:
            out[f"{metric}_by_prompt"][layer] = done[metric]
        for head in range(n_heads if layer + 1 < n_layers else 0):
            sides = base[:, layer + 1 :], done["values"][head, :, layer + 1 :]
            for metric, value in effects.index_change(*sides, category).items():
                out[metric][layer, head] = value
            draws = {} if counts is None else effects.index_change_draws(*sides, category, counts)
            for metric, drawn in draws.items():
                out[f"{metric}_low"][layer, head], out[f"{metric}_high"][layer, head] = (
                    percentile_interval(drawn)
                )
    for metric in effects.PROMPT_METRICS:
        values = out[f"{metric}_by_prompt"].astype(np.float32)
        out[metric] = np.stack(
            [values[:, :, category == name].mean(axis=-1) for name in names], axis=-1
        )
        out[f"{metric}_by_prompt"] = values
    labels = {
        "category": np.array(names),
        "prompt_category": category,
        "prompt_id": arrays["prompt_id"],
    }
    return {name: a.astype(np.float32) for name, a in out.items()} | labels
