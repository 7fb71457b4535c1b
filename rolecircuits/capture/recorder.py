"""One streamed pass: every layer's rows are measured and reduced while the pass goes on.

`streaming.attend_rows` gives a layer's output and what its entropies are made of; here they become
the arrays of a run, checked. A card goes on computing while a thread reduces what it gave, and what
it gave of small layers is reduced together: few tokens take it less time than its orders take.

Axes: prompt, head, query, key.
"""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from rolecircuits.capture.masks import ROWS, sink_column, why_not_streamed
from rolecircuits.capture.model_pass import AttentionFunction, run_interface
from rolecircuits.capture.rows import ENTROPY_SLACK
from rolecircuits.capture.streaming import MEASURED_ROWS, Scoring, attend_rows, join_parts
from rolecircuits.inputs.errors import RunFailed, UserError
from rolecircuits.stats.masses import SEGMENTS, counted_keys, named_masses, turn_masses

MLP_ROWS = 1024  # tokens that an MLP on the CPU takes at a time
# {on a card: bytes of the keys and rows of layers that are reduced together}
HELD_BYTES = {False: 0, True: 2**25}


class Held(NamedTuple):
    """A layer whose rows are measured and not reduced yet.

    how    its Scoring    final_query [prompt, head, d] of final tokens    key  as in Call
    parts  those of `attend_rows`
    """

    layer: int
    how: Scoring
    final_query: torch.Tensor
    key: torch.Tensor
    parts: dict


class Stack:
    """The prompts of a batch, once for each of the layers that are reduced together: their number
    of tokens, Places, FinalTokens and counted keys.
    """

    def __init__(self, n_tokens, places, n_layers):
        self.n_layers, self.n_tokens = n_layers, np.tile(n_tokens, n_layers)
        self.places = places.take(np.tile(np.arange(len(n_tokens)), n_layers))
        self.final_tokens, self.counted, self.kept = FinalTokens(self.n_tokens), {}, {}

    def limits(self, device, visible, window):
        """On a device, which rows are beyond a prompt's tokens [prompt, 1, query] and what no
        entropy is above [query]; visible [query] keys that each row sees, by a window or None.
        """
        name = device, len(visible), window
        if name not in self.kept:
            beyond = (np.arange(len(visible)) >= self.n_tokens[:, None])[:, None, :]
            bound = (np.log(visible) + ENTROPY_SLACK).astype(np.float32)
            self.kept[name] = tuple(torch.from_numpy(part).to(device) for part in (beyond, bound))
        return self.kept[name]

    def counted_keys(self, final):
        """The keys that each mass of the final rows sums over, where and as wide as they are."""
        name = final.device, final.shape[-1]
        if name not in self.counted:
            keys = counted_keys(self.places, final.shape[-1])
            self.counted[name] = torch.from_numpy(keys).to(final)
        return self.counted[name]


class FinalTokens:
    """Where each prompt's final token is and which keys it sees, on the device of a layer: kept,
    because every copy to a card waits for all that it was told to do before.
    """

    def __init__(self, n_tokens):
        self.last, self.kept = np.asarray(n_tokens) - 1, {}

    def on(self, device, n_keys, how):
        """(prompt [prompt], last token [prompt], keys not seen [prompt, 1, key])."""
        name = (device, n_keys, how.window, how.chunk)
        if name not in self.kept:
            key, last = np.arange(n_keys), self.last[:, None]
            low = np.array([how.low(row) for row in self.last.tolist()])[:, None]
            tensors = np.arange(len(last)), self.last, ((key > last) | (key < low))[:, None]
            self.kept[name] = tuple(torch.as_tensor(part).to(device) for part in tensors)
        return self.kept[name]


def final_rows(final_query, key, tokens, how):
    """Attention of each prompt's final token, softmax in float32: [prompt, head, key], 0 beyond
    its tokens. O(tokens) memory. With learned sinks the sink is one more key, the first.

    final_query  [prompt, head, d]    tokens  the FinalTokens of the batch
    """
    n_prompts, n_heads, width = final_query.shape
    prompt, last, hidden = tokens.on(key.device, key.shape[2], how)
    rows = final_query.float().view(n_prompts, key.shape[1], -1, width)
    scores = how.cap((rows @ key.float().transpose(2, 3)).view(n_prompts, n_heads, -1) * how.scale)
    scores = scores.masked_fill(hidden, float("-inf"))
    if how.sinks is not None:
        column = sink_column(how.sinks)[..., 0].float().expand(n_prompts, n_heads, key.shape[2])
        scores = torch.cat([column[prompt, :, last][..., None], scores], dim=-1)
    return torch.softmax(scores, dim=-1)


def check_rows(arrays, n_tokens, visible, layers):
    """Stop with layer and head unless every real row has entropies from 0 to ln(visible keys).

    arrays  of all prompts of the first layer, then of the next    n_tokens  of each of these
    """
    real = (np.arange(len(visible)) < np.asarray(n_tokens)[:, None])[:, None, :]
    bound = np.log(visible) + ENTROPY_SLACK
    whole, sinkfree = arrays["entropy"], arrays["entropy_sinkfree"]
    if _all_possible(arrays, bound.astype(np.float32)):  # padding too: nothing to look for
        return
    infinite = ~np.isfinite(whole) | ~np.isfinite(arrays["sink_mass"])
    outside = "is outside 0 to ln(visible keys)"
    for what, values, wrong in (
        ("is NaN or infinite", whole, infinite),
        (outside, whole, (whole < 0) | (whole > bound)),
        (f"{outside} without key 0", sinkfree, (sinkfree < 0) | (sinkfree > bound)),
    ):
        if (wrong & real).any():
            prompt, head, row = np.argwhere(wrong & real)[0]
            layer = layers[prompt * len(layers) // len(real)]
            raise RunFailed(
                f"layer {layer} head {head}: entropy of query row {row} {what} "
                f"({values[prompt, head, row]:.6g}); nothing was saved"
            )


def _all_possible(arrays, bound):
    """True where every row is in its bounds, by few passes over the arrays: NaN is in none."""
    whole, sinkfree, sink = (arrays[name] for name in MEASURED_ROWS)
    wrong = (sinkfree < 0) | (sinkfree > bound)
    return not wrong.any() and ((whole >= 0) & (whole <= bound) & np.isfinite(sink)).all()


class LayerRecorder:
    """Answers each layer of one pass and reduces its rows, without a pattern.

    windows  [layer] (window, chunk) of masks.window_of    n_tokens [prompt]
    places   Places of the prompts
    on_layers(layers, arrays)  is called with consecutive layers, every one once, in order; arrays
                               [layer, prompt, ...] are those of `join_sink` and of
                               stats.masses.masses_beside_sink, NaN beyond a prompt's tokens; with
                               turns turn_mass [layer, prompt, head, turn, segment]
    A card goes on computing while a thread reduces what it gave: that must be waited for by
    `finished`.
    """

    def __init__(self, windows, n_tokens, places, on_layers):
        self.windows, self.on_layers = windows, on_layers
        self.n_tokens, self.places = np.asarray(n_tokens), places
        self.visible, self.stacks, self.held = {}, {}, []
        self.thread, self.waiting = None, []

    @contextlib.contextmanager
    def finished(self):
        """At the end of the block every layer is reduced; raises what one of them raised."""
        try:
            with ThreadPoolExecutor(1) as self.thread:  # one thread: layers stay in order
                yield
                for layers in self.waiting:
                    layers.result()
        finally:
            self.waiting, self.held = [], []

    def attend(self, layer, call):
        """The attention of one layer, a model_pass.Call; None for the last one's output."""
        how, query, key = self.scoring(layer, call), call.query, call.key
        if query.shape[2] != key.shape[2] or call.bias is not None:
            raise RunFailed(
                f"layer {layer}: queries {tuple(query.shape)} do not fit keys {tuple(key.shape)}"
            )
        want_output = layer < len(self.windows) - 1
        inside = self.inside(query) if self.places.turns is not None else None
        out, parts = attend_rows(query, key, call.value, how, want_output, inside)
        prompt, last, _ = self.stack(1).final_tokens.on(query.device, key.shape[2], how)
        self.hold(Held(layer, how, query[prompt, :, last], key, parts))
        return out

    def hold(self, new):
        """Reduce a layer with others of its kind, as soon as they are many or it is the last."""
        if self.held and not self.alike(self.held[0], new):
            self.release()
        self.held.append(new)
        held = sum(_bytes(one) for one in self.held)
        if held >= HELD_BYTES[new.key.device.type == "cuda"] or new.layer == len(self.windows) - 1:
            self.release()

    def alike(self, one, other):
        """Whether two Held layers can be reduced together: learned sinks are each layer's own, and
        some models have layers of other widths.
        """
        if one.how.sinks is not None or other.how.sinks is not None:
            return False
        return _kind(one) == _kind(other)

    def release(self):
        """Reduce the layers that are held."""
        held, self.held = self.held, []
        how, stack = held[0].how, self.stack(len(held))
        parts = {name: _joined([one.parts[name] for one in held]) for name in held[0].parts}
        query, key = (_joined(values) for values in zip(*(one[2:4] for one in held), strict=True))
        final = final_rows(query, key, stack.final_tokens, how)
        if how.sinks is not None:
            parts["final_sink"], final = final[..., 0], final[..., 1:]
        parts["final_sums"] = final @ stack.counted_keys(final)
        parts["final_row"] = final.half()
        layers = [one.layer for one in held]
        if "entropy" in parts:
            parts |= self.checked(parts, stack, how)
        if key.device.type == "cuda":
            host = {name: part.to("cpu", non_blocking=True) for name, part in parts.items()}
            copied = torch.cuda.current_stream(key.device).record_event()
            self.waiting.append(self.thread.submit(self.reduce, layers, host, how, copied))
        else:
            self.reduce(layers, {name: part.cpu() for name, part in parts.items()}, how)

    def checked(self, parts, stack, how):
        """Rows that the CUDA kernel has joined, NaN beyond the tokens of a prompt, and whether all
        of them are possible: on the card, which is quicker than this processor.
        """
        whole, sinkfree, sink = (parts[name] for name in MEASURED_ROWS)
        visible = self.keys_seen(whole.shape[-1], how)
        beyond, bound = stack.limits(whole.device, visible, how.window)
        wrong = (sinkfree < 0) | (sinkfree > bound) | ~torch.isfinite(sink)
        wrong |= ~((whole >= 0) & (whole <= bound))
        nan = float("nan")
        rows = {name: parts[name].masked_fill(beyond, nan) for name in MEASURED_ROWS}
        return rows | {"possible": ~wrong.any()}

    def scoring(self, layer, call):
        """The Scoring of a layer; a window or chunk that holds all tokens is none."""
        window, chunk = (
            None if size is None or size >= call.query.shape[2] else size
            for size in self.windows[layer]
        )
        return Scoring(call.scale, window, call.softcap, chunk, call.sinks)

    def reduce(self, layers, parts, how, copied=None):
        """Hand the arrays of layers to `on_layers`; copied: the event after which they are here.

        parts  those of `attend_rows` and the final rows with their sums, as tensors on the CPU, of
               all prompts of the first layer, then of the next
        """
        if copied is not None:
            copied.synchronize()
        stack, parts = self.stack(len(layers)), {name: part.numpy() for name, part in parts.items()}
        visible = self.keys_seen(parts["final_row"].shape[-1], how)
        arrays = join_parts(parts, visible)
        if not parts.get("possible", False):
            check_rows(arrays, stack.n_tokens, visible, layers)
            beyond = (np.arange(len(visible)) >= stack.n_tokens[:, None])[:, None, :]
            if beyond.any():
                nan = np.float32(np.nan)
                arrays = {name: np.where(beyond, nan, values) for name, values in arrays.items()}
        if stack.places.turns is not None:
            rows = parts["segment_rows"]
            if how.sinks is not None:  # it takes its share, and counts as "sink"
                rows *= 1 - arrays["sink_mass"][..., None]
                rows[..., 0] += arrays["sink_mass"]
            arrays["turn_mass"] = turn_masses(rows, stack.places.turns)
        learned = parts.get("final_sink")
        arrays |= named_masses(parts["final_sums"], stack.places, parts["final_row"], learned)
        shape = len(layers), len(self.n_tokens)
        arrays = {name: a.reshape(*shape, *a.shape[1:]) for name, a in arrays.items()}
        self.on_layers(layers, arrays)

    def stack(self, n_layers):
        """The Stack of so many layers."""
        if n_layers not in self.stacks:
            self.stacks[n_layers] = Stack(self.n_tokens, self.places, n_layers)
        return self.stacks[n_layers]

    def inside(self, query):
        """Which segment each key is in, on the device of the queries: [prompt, key, segment]."""
        like = query.new_empty((len(query), 1, query.shape[2]), dtype=torch.float32)
        return self.stack(1).counted_keys(like)[..., -len(SEGMENTS) :]

    def keys_seen(self, n_query, how):
        """`keys_seen` of a layer, the same in every layer of its kind."""
        kind = n_query, how.window, how.chunk, how.sinks is not None
        if kind not in self.visible:
            self.visible[kind] = keys_seen(n_query, how)
        return self.visible[kind]


def _kind(held):
    """What layers that are reduced together have in common."""
    shapes = {name: part.shape for name, part in held.parts.items()}
    key = held.key
    return held.how, key.device, key.dtype, key.shape, held.final_query.shape, shapes


def _bytes(held):
    """The memory that a Held layer keeps: a key may be a view of more than itself."""
    parts = sum(part.nbytes for part in held.parts.values())
    return held.key.untyped_storage().nbytes() + parts


def _joined(tensors):
    """Tensors one after the other along the prompt axis; a single one as it is."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def keys_seen(n_query, how):
    """Keys that every row sees, a learned sink counted: [query] int."""
    low = np.array([how.low(row) for row in range(n_query)])
    return np.arange(n_query) + 1 - low + int(how.sinks is not None)


def _gated_mlps(model):
    """The dense gated MLPs of a model, which treat every token alone; not those that accelerate
    moves between devices.
    """
    parts = ("gate_proj", "up_proj", "down_proj")
    for module in model.modules():
        linear = all(isinstance(getattr(module, part, None), torch.nn.Linear) for part in parts)
        if linear and not hasattr(module, "_hf_hook"):
            yield module


@contextlib.contextmanager
def mlps_in_blocks(model, rows=MLP_ROWS):
    """Inside the block, MLPs on the CPU take `rows` tokens at a time, which stay in its cache.

    A 4,096-token MLP of the bundled model takes 0.8 of its time that way, and its wide layer is
    never held for all tokens.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    mlps = [(mlp, mlp.forward) for mlp in _gated_mlps(model)] if on_cpu else []
    try:
        for mlp, forward in mlps:
            mlp.forward = partial(_in_blocks, forward, rows)
        yield
    finally:
        for mlp, _ in mlps:
            del mlp.forward  # the class's own again


def _in_blocks(forward, rows, hidden):
    flat = hidden.reshape(-1, hidden.shape[-1])
    if len(flat) < 2 * rows:
        return forward(hidden)
    out = torch.empty_like(flat)
    for start in range(0, len(flat), rows):
        out[start : start + rows] = forward(flat[start : start + rows])
    return out.view(hidden.shape)


def stream_layers(loaded, batch, recorder):
    """One forward pass of a right-padded batch up to the attention of the last layer.

    batch     (ids, mask) [prompt, query] or Packed    recorder  the LayerRecorder of this batch
    raises    UserError where the model's rows cannot be streamed
    """
    if why := why_not_streamed(loaded):
        name = loaded.facts["architecture"]
        raise UserError(f"{name} {why}, so its rows cannot be streamed; use --capture patterns")
    no_masks = NoMasks()

    def attend(layer, call):
        no_masks.check(layer, call.mask)
        return recorder.attend(layer, call)

    function = AttentionFunction(loaded.n_layers, attend)
    with mlps_in_blocks(loaded.model), recorder.finished():
        run_interface(loaded, batch, ROWS, function, no_masks)


class NoMasks:
    """Makes [query, key] masks of one zero that is seen everywhere: they take no memory."""

    def __init__(self):
        self.made = {}

    def __call__(self, batch_size, q_length, kv_length, **options):
        options = {name: options.get(name) for name in ("dtype", "device")}
        zero = torch.zeros((), **options)
        self.made[zero.data_ptr()] = zero
        return zero.expand(batch_size, 1, q_length, kv_length)

    def check(self, layer, mask):
        """Stop where a layer is given another mask than the one that was made for it."""
        if isinstance(mask, torch.Tensor) and mask.data_ptr() not in self.made:
            raise RunFailed(
                f"layer {layer} changes the mask that it is given, so its rows cannot be streamed; "
                "use --capture patterns"
            )
