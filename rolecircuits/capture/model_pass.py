"""One forward pass of the Hugging Face model in which every layer's attention is ours to read.

    interface   the model calls the function that is registered with transformers'
                AttentionInterface: it is given queries, keys, values and the mask that the model
                built, and answers with the output
    eager       a model that does not follow the interface runs its own eager attention, and every
                softmax over [.., query, key] is read on the way: its input are the model's scores

Both end with the attention of the last layer: nothing behind it is needed.
Axes: prompt, head, query, key.
"""

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from rolecircuits.capture.packed import Packed
from rolecircuits.inputs.errors import RunFailed, UserError
from rolecircuits.models.rotary import reset_rotary

INTERFACE, EAGER = "interface", "eager"
ACTIVE = {}  # name: (attention function, mask function) of the pass that runs, empty between passes
SOFTMAXES = (torch.softmax, torch.nn.functional.softmax, torch.Tensor.softmax)


@dataclass
class Call:
    """What a layer hands to its attention function.

    query, key, value [prompt, head, query or key, d]; keys and values may have fewer heads
    mask      as the model passes it on    scale, softcap  of the scores, softcap None for none
    sinks     learned sink scores, [head] or [prompt, head, query, 1], None for none
    bias      what is added to the scores besides the mask, None for nothing
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: Any
    scale: float
    softcap: float | None = None
    sinks: torch.Tensor | None = None
    bias: torch.Tensor | None = None


def call_of(query, key, value, mask, given):
    """The Call of what a layer hands over; given: the named arguments."""
    scale = given.get("scaling")
    return Call(
        query,
        key,
        value,
        mask,
        query.shape[-1] ** -0.5 if scale is None else float(scale),
        given.get("softcap"),
        given.get("s_aux", given.get("sinks")),
        given.get("position_bias"),
    )


class LastLayerDone(Exception):
    """Ends a forward pass once the last layer's attention is read."""


class AttentionFunction:
    """The attention function of one pass: `attend(layer, call)` gives each layer's output.

    attend    returns the output [prompt, head, query, d], or None in the last layer
    to_end    run the pass to its end, to see whether attention runs where no layer is left
    start     the first layer whose attention runs
    """

    def __init__(self, n_layers, attend, to_end=False, start=0):
        self.n_layers, self.attend, self.to_end, self.fired = n_layers, attend, to_end, start

    def __call__(self, module, query, key, value, attention_mask=None, **given):
        layer, self.fired = self.fired, self.fired + 1
        named = getattr(module, "layer_idx", None)
        if layer >= self.n_layers or named not in (layer, None):
            raise RunFailed(
                f"attention number {layer} of the pass is that of layer {named}; attention must "
                f"run once in each of {self.n_layers} layers, in order"
            )
        call = call_of(query, key, value, attention_mask, given)
        out = self.attend(layer, call)
        if layer == self.n_layers - 1 and not self.to_end:
            raise LastLayerDone
        return out.transpose(1, 2).contiguous(), None


class SoftmaxReader(TorchFunctionMode):
    """Hands the scores of every attention softmax to read(layer, scores).

    shape  (prompts, heads, queries, keys): a softmax over as many numbers in rows of `keys` is one
           of attention; routers and others are not
    """

    def __init__(self, n_layers, shape, read, to_end=False):
        super().__init__()
        self.n_layers, self.shape, self.read = n_layers, shape, read
        self.to_end, self.fired = to_end, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        scores = args[0] if args else kwargs.get("input")
        if func in SOFTMAXES and self._is_attention(scores):
            layer, self.fired = self.fired, self.fired + 1
            if layer >= self.n_layers:
                raise RunFailed(f"attention runs more often than in its {self.n_layers} layers")
            self.read(layer, scores.reshape(self.shape))
            if layer == self.n_layers - 1 and not self.to_end:
                raise LastLayerDone
        return func(*args, **kwargs)

    def _is_attention(self, scores):
        n_prompts, n_heads, n_query, n_key = self.shape
        size = n_prompts * n_heads * n_query * n_key
        return scores.ndim >= 3 and scores.shape[-2:] == (n_query, n_key) and scores.numel() == size


def run_interface(loaded, batch, name, function, mask_function):
    """A pass with `function`, an AttentionFunction, under a name and with the masks of that name.

    batch          (ids, mask) [prompt, query], right-padded, or Packed
    mask_function  what builds masks, as transformers.masking_utils.eager_mask does
    """
    attend = function
    if isinstance(batch, Packed):
        attend, mask_function = batch.attend_by(function), batch.mask_of(mask_function)
    with own_attention(loaded.model, name, attend, mask_function):
        _run(loaded.model, batch)
    _check_all_fired(function)


@contextlib.contextmanager
def own_attention(model, name, attend, mask_function):
    """Inside the block the model's attention is `attend`, as AttentionInterface calls it, under a
    name and with the masks of `mask_function`.
    """
    # What is registered stays for good, so it must not hold a model.
    AttentionInterface.register(name, lambda *args, **kwargs: ACTIVE[name][0](*args, **kwargs))
    AttentionMaskInterface.register(name, lambda *args, **kwargs: ACTIVE[name][1](*args, **kwargs))
    ACTIVE[name] = attend, mask_function
    try:
        set_attention(model, name)
        yield
    finally:
        del ACTIVE[name]


def run_eager(loaded, batch, read, to_end=False):
    """A pass of the model's own eager attention; read(layer, scores) is called in every layer.

    scores  [prompt, head, query, key], what goes into the softmax, masked
    to_end  as in AttentionFunction
    """
    n_prompts, width = batch[0].shape
    shape = (n_prompts, loaded.n_heads, width, width)
    reader = SoftmaxReader(loaded.n_layers, shape, read, to_end)
    with reader:
        _run(set_attention(loaded.model, EAGER), batch)
    _check_all_fired(reader)


def set_attention(model, name):
    """The model, whose next pass uses the attention of this name and short texts' rotary angles."""
    if model.config.get_text_config()._attn_implementation != name:
        model.set_attn_implementation(name)
    reset_rotary(model)
    return model


def _run(model, batch):
    if isinstance(batch, Packed):
        fed = batch.inputs()
    else:
        fed = dict(zip(("input_ids", "attention_mask"), batch, strict=True))
    device = next(model.parameters()).device
    fed = {name: tensor.to(device) for name, tensor in fed.items()}
    with torch.inference_mode(), contextlib.suppress(LastLayerDone):
        model.base_model(**fed, use_cache=False)


def decoder_layers(loaded):
    """The model's decoder layers in order: the largest list of as many modules as it has layers.

    A multimodal model is searched on its text side.
    """
    model, n = loaded.model, loaded.n_layers
    for root in (model.get_decoder(), model.base_model, model):
        lists = [part for part in root.modules() if isinstance(part, torch.nn.ModuleList)]
        lists = [part for part in lists if len(part) == n]
        if lists:
            return list(max(lists, key=_n_parameters))
    raise UserError(
        f"{loaded.facts['architecture']}: no list of {n} layers is found in it, so its residual "
        "stream cannot be read"
    )


def _n_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def _check_all_fired(reader):
    if reader.fired != reader.n_layers:
        raise RunFailed(f"attention ran {reader.fired} times, not once in {reader.n_layers} layers")
