"""Activations at named hooks of all prompts, and the files that a capture is saved in."""

import warnings
from dataclasses import asdict
from functools import partial

import numpy as np
import torch

from rolecircuits.capture.attention import pattern_bytes
from rolecircuits.capture.batches import check_all_ran, pad_right, run_batches
from rolecircuits.capture.check_texts import check_batches
from rolecircuits.capture.model_pass import EAGER, set_attention
from rolecircuits.capture.prefix import shared_tokens
from rolecircuits.inputs.errors import RunFailed, UserError
from rolecircuits.models.devices import check_memory
from rolecircuits.models.rotary import batch_side, reset_rotary
from rolecircuits.runs.arrays import Run
from rolecircuits.runs.files import write_json, write_prompts
from rolecircuits.runs.npz import write_npz
from rolecircuits.stats.audit import audit_design
from rolecircuits.stats.indices import summarize


def collect_activations(loaded, tokenized, names, batch_size=64):
    """Activations at named hooks: {name: [prompt, query, ...] float32}, 0 beyond a prompt's tokens.

    raises  UserError for a name that the model has no hook for, RunFailed for a hook that does not
            fire once a batch, or a prompt that does not fit the memory
    """
    check_hooks(loaded, names)
    lengths, side = [len(p.token_ids) for p in tokenized], batch_side(loaded.facts)
    device = next(loaded.model.parameters()).device
    out = {}

    def run_batch(batch):
        ids, mask = pad_right([tokenized[i].token_ids for i in batch])
        fired = []

        def store(tensor, hook, name):
            fired.append(name)
            values = tensor.detach().to("cpu", torch.float32).numpy()
            values = values * mask.numpy().reshape(mask.shape + (1,) * (values.ndim - 2))
            shape = (len(tokenized), max(lengths), *values.shape[2:])
            whole = out.setdefault(name, np.zeros(shape, np.float32))
            whole[batch, : values.shape[1]] = values

        hooks = [(name, partial(store, name=name)) for name in names]
        model, owners = loaded.bridge.original_model, [0] * len(batch)
        reset_rotary(model)
        shared = shared_tokens(model, ids.tolist(), owners, mask.tolist())
        with torch.inference_mode(), shared:
            loaded.bridge.run_with_hooks(
                ids.to(device), attention_mask=mask.to(device), fwd_hooks=hooks, logits_to_keep=1
            )
        if sorted(fired) != sorted(names):
            wrong = next(name for name in names if fired.count(name) != 1)
            raise RunFailed(f"hook {wrong} fired {fired.count(wrong)} times, not once")

    failed, _ = run_batches(lengths, run_batch, batch_size, side=side)
    check_all_ran(failed, tokenized, "activations")
    return out


def plain_logits(loaded, ids):
    """Final logits [1, vocabulary] float32 of the model, by its eager attention."""
    model = set_attention(loaded.model, EAGER)
    batch = torch.tensor([ids], device=next(model.parameters()).device)
    with torch.inference_mode():
        out = model(input_ids=batch, use_cache=False, logits_to_keep=1)
    return out.logits[:, -1].float().cpu()


def bridge_logits(loaded, ids, hooks):
    """Final logits [1, vocabulary] float32 of the bridge under hooks."""
    batch = torch.tensor([ids], device=next(loaded.model.parameters()).device)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it warns of is what is found out here
        out = loaded.bridge.run_with_hooks(batch, fwd_hooks=hooks, logits_to_keep=1)
    return out[:, -1].float().cpu()


def logit_tolerance(loaded, logits, share):
    """How far logits may differ: a share of the largest, more where the dtype rounds more."""
    share = {"float32": share}.get(loaded.facts["dtype"], 5e-2)
    return share * max(1.0, float(logits.abs().max()))


def check_bridge(loaded):
    """The largest difference between the bridge's final logits and the model's, on the long text.

    raises  UserError where TransformerLens refuses the model, or gives other logits
    """
    ids = check_batches(loaded)[0][0]
    return compare_logits(loaded, bridge_logits(loaded, ids, []), plain_logits(loaded, ids))


def compare_logits(loaded, found, expected):
    """The largest difference of the bridge's logits from the model's, refused if too large."""
    gap = float((found - expected).abs().max())
    if not gap <= logit_tolerance(loaded, expected, 1e-3):
        raise UserError(
            f"{loaded.facts['architecture']}: TransformerLens's bridge gives other logits than the "
            f"model (by {gap:.2g}); it cannot be edited, and --raw full cannot be saved"
        )
    return gap


def check_hooks(loaded, names):
    """Refuse names that the model has no hook for."""
    missing = [name for name in names if name not in loaded.bridge.hook_dict]
    if missing:
        raise UserError(
            f"{loaded.facts['architecture']}: TransformerLens has no hook {missing[0]} in it; "
            "nothing can be edited or saved there"
        )


def raw_files(n_layers):
    """What --raw full saves beside the patterns: {hook name: file name}."""
    files = {f"blocks.{i}.mlp.hook_post": f"raw_blocks_{i}_mlp_post" for i in range(n_layers)}
    return files | {"hook_embed": "raw_embed", "ln_final.hook_normalized": "raw_ln_final"}


def check_raw(loaded, tokenized, raw):
    """Refuse, before anything is run, a --raw whose arrays exceed half of the free memory."""
    if raw == "none":
        return
    longest = max(len(p.token_ids) for p in tokenized)
    needed, less = pattern_bytes(loaded.facts, len(tokenized), longest), "none"
    if raw == "full":
        check_bridge(loaded)
        check_hooks(loaded, raw_files(loaded.n_layers))
        cfg = loaded.bridge.cfg
        units = loaded.n_layers * cfg.d_mlp + 2 * cfg.d_model
        needed, less = needed + len(tokenized) * longest * units * 4, "patterns or --raw none"
    what = f"--raw {raw} of {len(tokenized)} prompts of up to {longest} tokens"
    check_memory(needed, what, f"use --raw {less}", share=0.5)


def save_raw(loaded, tokenized, batch_size, folder):
    """The files of `raw_files`: values [prompt, query, unit], zero-padded, and n_tokens."""
    files, n_tokens = raw_files(loaded.n_layers), [len(p.token_ids) for p in tokenized]
    for name, values in collect_activations(loaded, tokenized, list(files), batch_size).items():
        write_npz(folder / f"{files[name]}.npz", {"values": values, "n_tokens": n_tokens})


def save_capture(folder, loaded, tokenized, captured, config):
    """The files of a run that hold what was measured: prompts, arrays, raw files, summary, design.

    config   of the run; config["capture"]["raw"] says which raw files there are
    returns  the audit of design.json
    """
    lost = dict(captured.failed)
    kept = [prompt for prompt in tokenized if prompt.id not in lost]
    write_prompts(folder / "prompts.jsonl", [asdict(prompt) for prompt in kept])
    write_npz(folder / "attention.npz", captured.arrays)
    n_tokens = captured.arrays["n_tokens"]
    for layer, patterns in captured.patterns.items():
        path = folder / f"raw_blocks_{layer}_attn_pattern.npz"
        write_npz(path, {"patterns": patterns, "n_tokens": n_tokens})
    if config["capture"]["raw"] == "full":
        save_raw(loaded, kept, captured.batch_size, folder)
    run = Run(None, config, **captured.arrays, prompts=[{"text": p.text} for p in kept])
    write_json(folder / "activations.json", summarize(run))
    audit = audit_design(run)
    write_json(folder / "design.json", audit)
    return audit
