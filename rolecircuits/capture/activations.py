"""Activations at named hooks of all prompts."""

from functools import partial

import numpy as np
import torch

from rolecircuits.capture.batches import make_batches, pad_right
from rolecircuits.inputs.errors import RunFailed, UserError


def collect_activations(loaded, tokenized, names, batch_size=64):
    """Activations at named hooks: {name: [prompt, query, ...] float32}, zero beyond a prompt's tokens.

    raises  UserError for a name that the model has no hook for, RunFailed for one that does not fire once a batch
    """
    missing = [name for name in names if name not in loaded.bridge.hook_dict]
    if missing:
        raise UserError(f"this model has no hook {missing[0]}; use --raw patterns")
    lengths = [len(p.token_ids) for p in tokenized]
    out = {}
    for batch in make_batches(lengths, batch_size):
        ids, mask = pad_right([tokenized[i].token_ids for i in batch])
        device = next(loaded.bridge.original_model.parameters()).device
        seen = []

        def store(tensor, hook, name, batch=batch, mask=mask, seen=seen):
            seen.append(name)
            values = tensor.detach().to("cpu", torch.float32).numpy()
            values = values * mask.numpy().reshape(mask.shape + (1,) * (values.ndim - 2))
            whole = out.setdefault(
                name, np.zeros((len(tokenized), max(lengths), *values.shape[2:]), np.float32)
            )
            whole[batch, : values.shape[1]] = values

        hooks = [(name, partial(store, name=name)) for name in names]
        with torch.inference_mode():
            loaded.bridge.run_with_hooks(
                ids.to(device), attention_mask=mask.to(device), fwd_hooks=hooks, logits_to_keep=1
            )
        if sorted(seen) != sorted(names):
            wrong = next(name for name in names if seen.count(name) != 1)
            raise RunFailed(f"hook {wrong} fired {seen.count(wrong)} times, not once")
    return out
