"""The residual stream of every layer at the tokens that matter, in one plain pass of the model.

    final   at the final query: the last token that is fed, whose output is the first answered token
    slot    mean over the tokens in which the persons of a crossed set differ, NaN without them

What a decoder layer returns is taken (TransformerLens's `resid_post`), before any final norm.
Axes: prompt, layer, unit.

    found = read_residuals(loaded, tokenized)

    with watch_residuals(loaded, tokenized) as found:      # the same without a pass of its own
        capture_patterns(loaded, tokenized)                # ends before the last layer: NaN there
"""

import contextlib
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from rolecircuits.capture.batches import BATCH_TOKENS, check_all_ran, pad_right, run_batches
from rolecircuits.capture.model_pass import EAGER, decoder_layers, set_attention
from rolecircuits.capture.prefix import shared_prefix
from rolecircuits.inputs.errors import RunFailed
from rolecircuits.models.rotary import batch_side
from rolecircuits.stats.masses import NOWHERE


@dataclass
class Residuals:
    """What was read of TokenizedPrompts; NaN where nothing was.

    final, slot  both [prompt, layer, unit] float32, None before the first pass
    """

    tokenized: list
    final: np.ndarray | None = None
    slot: np.ndarray | None = None

    def store(self, layer, n_layers, rows, values):
        """Keep what a layer gave; rows [row] of prompts, values (final, slot), [row, unit] each."""
        if self.final is None:
            shape = (len(self.tokenized), n_layers, values[0].shape[-1])
            self.final, self.slot = (np.full(shape, np.nan, np.float32) for _ in range(2))
        self.final[rows, layer], self.slot[rows, layer] = values


@dataclass
class _Pass:
    """The prompts among the rows of the pass that runs: positions, batch rows, last tokens, slots.

    weights  [row, query] float32: 1 / n on the n tokens of a slot, NaN in rows without one
    """

    prompts: list = field(default_factory=list)
    rows: list = field(default_factory=list)
    last: list = field(default_factory=list)
    weights: torch.Tensor | None = None


def read_residuals(loaded, tokenized, batch_size=64):
    """The Residuals of TokenizedPrompts, all layers, in a pass of their own.

    raises  UserError where the model's layers are not found, RunFailed where one does not run, or a
            prompt does not fit the memory
    """
    lengths = [len(prompt.token_ids) for prompt in tokenized]
    device = next(loaded.model.parameters()).device

    def run_batch(batch):
        token_ids = [tokenized[i].token_ids for i in batch]
        ids, mask = (part.to(device) for part in pad_right(token_ids))
        model = set_attention(loaded.model, EAGER)
        with torch.inference_mode(), shared_prefix(model, token_ids):
            model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)

    side = batch_side(loaded.facts)
    with watch_residuals(loaded, tokenized) as found:
        failed, _ = run_batches(lengths, run_batch, batch_size, BATCH_TOKENS, side=side)
    check_all_ran(failed, tokenized, "residual stream")
    if np.isnan(found.final[:, -1]).any():
        raise RunFailed("residual stream: the pass ended before the model's last layer")
    return found


@contextlib.contextmanager
def watch_residuals(loaded, tokenized):
    """Inside the block, every pass of the model fills a Residuals with those prompts that it feeds.

    Prompts are known by their tokens, so other texts may be fed too; in packed passes they are not
    found. A capture of attention ends its passes before the last layer has run: NaN there.

    raises  RunFailed at the end where a prompt was not fed, or an activation is not finite
    """
    found, now = Residuals(tokenized), _Pass()
    layers, places = decoder_layers(loaded), {}
    for i, prompt in enumerate(tokenized):
        places.setdefault(tuple(prompt.token_ids), []).append(i)

    def begin(module, args, given):
        nonlocal now
        now = _find_prompts(given, tokenized, places)

    def keep(module, given, output, layer):
        if now.rows:
            output = output[0] if isinstance(output, tuple) else output
            found.store(layer, len(layers), now.prompts, _at_places(output, now))

    handles = [loaded.model.base_model.register_forward_pre_hook(begin, with_kwargs=True)]
    try:
        for layer, part in enumerate(layers):
            handles.append(part.register_forward_hook(partial(keep, layer=layer)))
        yield found
    finally:
        for handle in handles:
            handle.remove()
    _check_read(found)


def _find_prompts(given, tokenized, places):
    """The _Pass of what a model is called with; places {token ids: positions of prompts}."""
    now, ids, mask = _Pass(), given.get("input_ids"), given.get("attention_mask")
    if ids is None or mask is None or mask.shape != ids.shape:
        return now
    for row, (own, real) in enumerate(zip(ids.tolist(), mask.tolist(), strict=True)):
        n = sum(real)
        for i in places.get(tuple(own[:n]), ()):
            now.prompts.append(i)
            now.rows.append(row)
            now.last.append(n - 1)
    now.weights = torch.zeros(len(now.rows), ids.shape[1])
    for weights, i in zip(now.weights, now.prompts, strict=True):
        start, stop = tokenized[i].slot
        if start == NOWHERE or stop <= start:
            weights[:] = torch.nan
        else:
            weights[start:stop] = 1 / (stop - start)
    return now


def _at_places(output, now):
    """(final, slot), both [row, unit] float32 numpy, of a layer's output [batch, query, unit]."""
    output = output[now.rows].float()
    final = output[torch.arange(len(now.rows)), now.last]
    slot = torch.einsum("rq,rqu->ru", now.weights.to(output.device), output)
    return final.cpu().numpy(), slot.cpu().numpy()


def _check_read(found):
    """Refuse what would make means and probes NaN: prompts not fed, activations that overflow."""
    if found.final is None:
        raise RunFailed("residual stream: no prompt was fed")
    for prompt, values in zip(found.tokenized, found.final[:, :-1], strict=True):
        if not np.isfinite(values).all():
            raise RunFailed(
                f"residual stream: prompt {prompt.id} was not fed, or its activations are not "
                "finite (try --dtype float32)"
            )
