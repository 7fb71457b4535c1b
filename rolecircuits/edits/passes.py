"""Passes through the TransformerBridge: edits act at its hooks, patterns are measured at them.

    capture_clean       the unedited pass, with logits and the residuals that edits start from
    capture_edited      the same pass with edits, from the layer that they begin at

Linear layers compute once what prompts of a batch begin with alike (capture.prefix), unless an edit
tells it apart. For such edits padding alone would be left, and sharing it saves nothing.

In bfloat16 and float16 the model rounds the softmax before hook_pattern, which moves entropies by
up to 0.045 nats, so there the pattern is the float32 softmax of hook_attn_scores. That these are
the rows and logits of the model itself is proved by edits.check.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from rolecircuits.capture.attention import (
    Capture,
    empty_arrays,
    ids_of,
    places_of,
    store_layer,
    without_failed,
)
from rolecircuits.capture.batches import pad_right, run_batches
from rolecircuits.capture.patterns import check_patterns, reduce_pattern
from rolecircuits.capture.prefix import shared_tokens
from rolecircuits.inputs.errors import RunFailed
from rolecircuits.models.load import LoadedModel
from rolecircuits.models.rotary import batch_side, reset_rotary
from rolecircuits.stats.entropy import ROW_SUM_TOLERANCE, attention_entropy


@dataclass
class CleanRun:
    """What an edited pass needs of the unedited one in order to start at the layer that it edits.

    arrays     as in Capture
    residuals  {layer: [prompt, query, unit] on the model's device}
    as_tuple   the blocks of this architecture return a tuple
    """

    arrays: dict
    residuals: dict
    as_tuple: bool


class Resume(NamedTuple):
    """Where a forward pass starts: at block `layer`, with the residual `hidden` that enters it.

    hidden  [batch, query, unit]    as_tuple  the blocks of this architecture return a tuple
    """

    layer: int = 0
    hidden: Any = None
    as_tuple: bool = False


def pattern_hook_name(layer, dtype):
    """Where a layer's pattern is taken: after the softmax in float32, before it in short dtypes."""
    return f"blocks.{layer}.attn.{'hook_pattern' if dtype == 'float32' else 'hook_attn_scores'}"


def to_pattern(tensor, dtype):
    """What the hook received as a float32 numpy pattern [prompt, head, query, key]."""
    return _float_pattern(tensor, dtype).to("cpu").numpy()


def to_entropy(tensor, dtype):
    """The entropy of every row of what the hook received: [prompt, head, query] float64 numpy.

    On a card it is taken there: the pattern is many times as large.
    """
    if tensor.device.type == "cuda":
        pattern = _float_pattern(tensor, dtype).double()
        sums = pattern.sum(dim=-1)
        if ((sums - 1).abs() <= ROW_SUM_TOLERANCE).all() and (pattern >= 0).all():
            return torch.special.entr(pattern).sum(dim=-1).cpu().numpy()
    return attention_entropy(to_pattern(tensor, dtype))  # or it says which row is none


def _float_pattern(tensor, dtype):
    if dtype != "float32":
        tensor = torch.softmax(tensor.float(), dim=-1)
    return tensor.detach().float()


@contextlib.contextmanager
def skipped_blocks(bridge, resume):
    """Inside this context a forward pass starts where `resume` says.

    Blocks below are not executed: each hands the residual on. Everything else (masks, rotary
    angles, final norm, logit soft cap) stays the model's own code, so that nothing is rebuilt here.
    TransformerBridge's start_at_layer gives the same numbers but executes the blocks below.
    """

    def hand_on(*args, **kwargs):
        return (resume.hidden,) if resume.as_tuple else resume.hidden

    below = list(bridge.blocks[: resume.layer])
    own = [vars(block).get("forward") for block in below]  # accelerate keeps a wrapper here
    for block in below:
        # not setattr: a bridge passes attributes on to the module it wraps
        vars(block)["forward"] = hand_on
    try:
        yield
    finally:
        for block, forward in zip(below, own, strict=True):
            vars(block).pop("forward")
            if forward is not None:
                vars(block)["forward"] = forward


def run_layers(loaded, token_ids, on_layer, edits=(), resume=None, read=to_pattern):
    """One forward pass of a right-padded batch; on_layer(layer, pattern) is called once per layer.

    token_ids  list of lists of int
    edits      (hook name, function) pairs that change activations; they are attached before
               anything that measures
    resume     a Resume: `on_layer` is called from its layer on
    read       function (what the hook received, dtype): what `on_layer` gets
    returns    logits of each prompt's final token [prompt, vocabulary] float32; the projection to
               the vocabulary is computed for no other position
    raises     RunFailed if a hook fires more or less than once
    """
    bridge, dtype, resume = loaded.bridge, loaded.facts["dtype"], resume or Resume()
    ids, mask = pad_right(token_ids)
    final = torch.tensor([len(row) - 1 for row in token_ids])
    device = next(bridge.original_model.parameters()).device
    kept, column = kept_logits(bridge.original_model, final, ids.shape[1], device)
    fired = []

    def measure(tensor, hook, layer):
        fired.append(layer)
        on_layer(layer, read(tensor, dtype))

    layers = list(range(resume.layer, loaded.n_layers))
    hooks = [(pattern_hook_name(layer, dtype), partial(measure, layer=layer)) for layer in layers]
    reset_rotary(bridge.original_model)
    with torch.inference_mode(), skipped_blocks(bridge, resume):
        logits = bridge.run_with_hooks(
            ids.to(device),
            attention_mask=mask.to(device),
            fwd_hooks=[*edits, *hooks],
            logits_to_keep=kept,
        )
    if fired != layers:
        wrong = next((layer for layer in layers if fired.count(layer) != 1), -1)
        raise RunFailed(
            f"the attention hook of layer {wrong} fired {fired.count(wrong)} times, not once"
        )
    return logits[torch.arange(len(final)), column.to(logits.device)].float()


def kept_logits(model, final, width, device):
    """(what the model is told to keep, the column of each prompt's final token [prompt] in it).

    One device: the final positions themselves. Several: a number of last positions, which takes a
    few more columns, because an index tensor would have to lie on the device of the last layer.
    """
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        count = width - int(final.min())
        return count, final - (width - count)
    kept, column = torch.unique(final, return_inverse=True)
    return kept.to(device), column


def collect_patterns(loaded, token_ids, edits=()):
    """(patterns, final logits) of one batch: patterns[layer] is [prompt, head, query, key]."""
    patterns = {}
    logits = run_layers(loaded, token_ids, patterns.__setitem__, edits)
    return patterns, logits


def capture_clean(loaded, tokenized, layers=(), batch_size=64, title=None):
    """(Capture with logits, CleanRun with the residual that enters each of `layers`)."""
    residuals, tuples = {}, set()
    arrays = empty_arrays(tokenized, loaded)
    shape = (len(tokenized), max(len(p.token_ids) for p in tokenized))

    def keep(hidden, hook, layer, batch):
        whole = residuals.setdefault(layer, hidden.new_zeros((*shape, hidden.shape[-1])))
        whole[torch.tensor(batch, device=hidden.device), : hidden.shape[1]] = hidden.detach()

    def keep_residuals(batch):
        names = {layer: f"blocks.{layer}.hook_in" for layer in layers}
        return [(name, partial(keep, layer=i, batch=batch)) for i, name in names.items()]

    handle = loaded.bridge.blocks[0].register_forward_hook(
        lambda module, args, out: tuples.add(isinstance(out, tuple))
    )
    try:
        whole = PatternPass(loaded, tokenized, Capture(arrays), keep_residuals, alike=True)
        captured = whole.run(batch_size, title)
    finally:
        handle.remove()
    return captured, CleanRun(captured.arrays, residuals, tuples == {True})


def capture_edited(loaded, tokenized, edits_for, batch_size=64, start=None, alike=False):
    """The Capture, with logits, of a pass with edits.

    edits_for  function of the batch's prompt positions (list of int) -> [(hook name, hook)]
    start      (layer, CleanRun): nothing is edited below that layer, so the layers below it are
               not run again and their values are those of the clean run; None runs everything
    alike      the edits treat alike what prompts begin with alike, so it is computed once, as is
               padding; else every token is computed for itself
    """
    arrays = empty_arrays(tokenized, loaded) if start is None else start[1].arrays
    arrays = {name: array.copy() for name, array in arrays.items()}
    edited = PatternPass(loaded, tokenized, Capture(arrays), edits_for, start, alike)
    return edited.run(batch_size)


@dataclass
class PatternPass:
    """A pass over all prompts through hooks, written into `captured` batch by batch.

    edits_for, start, alike  as `capture_edited` takes them
    """

    loaded: LoadedModel
    tokenized: list
    captured: Capture
    edits_for: Callable
    start: tuple | None = None
    alike: bool = False

    def __post_init__(self):
        self.places = places_of(self.tokenized)

    def run(self, batch_size, title=None):
        lengths = self.captured.arrays["n_tokens"].tolist()
        side = batch_side(self.loaded.facts)
        failed, batch_size = run_batches(lengths, self.run_batch, batch_size, None, title, side)
        return without_failed(self.captured, failed, batch_size)

    def run_batch(self, batch):
        captured, arrays, width = self.captured, self.captured.arrays, self._width(batch)
        n_tokens, places = arrays["n_tokens"][batch], self.places.take(batch)
        ids = ids_of(self.tokenized, batch)

        def on_layer(layer, pattern):
            visible = arrays["visible_keys"][layer, :width]
            check_patterns(pattern, n_tokens, layer, visible, self.loaded.n_heads)
            store_layer(arrays, batch, layer, reduce_pattern(pattern, n_tokens, places, visible))

        edits, resume = self.edits_for(batch), self._resume(batch)
        with self._shared(ids):
            logits = run_layers(self.loaded, ids, on_layer, edits, resume)
        if captured.logits is None:
            shape = (len(self.tokenized), logits.shape[-1])
            captured.logits = np.zeros(shape, np.float32)
        captured.logits[batch] = logits.cpu().numpy()

    def _shared(self, token_ids):
        """Inside the block linear layers compute what these prompts have alike once, if it is."""
        if not self.alike:
            return contextlib.nullcontext()
        ids, mask = pad_right(token_ids)
        model, owners = self.loaded.bridge.original_model, [0] * len(token_ids)
        return shared_tokens(model, ids.tolist(), owners, mask.tolist())

    def _width(self, batch):
        return int(self.captured.arrays["n_tokens"][batch].max())

    def _resume(self, batch):
        if self.start is None:
            return None
        layer, clean = self.start
        hidden = clean.residuals[layer]
        rows = torch.tensor(batch, device=hidden.device)
        return Resume(layer, hidden[rows, : self._width(batch)], clean.as_tuple)
