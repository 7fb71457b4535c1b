"""Exact entropy of every attention row in memory that grows with the tokens, not their square.

The pattern is never built. A layer runs its own attention kernel for the output, and a second one
that gives, for the keys other than key 0 (the attention sink), the log-sum-exp L' of the scores s
and their mean under the softmax:

    H' = L' - E'[s] = L' - scale * q . (sum_{j>0} p'_j k_j)   the sink-free entropy: one call with
                                                              keys in the place of values
    d  = L' - s_0       sink mass m = 1 / (1 + e^d)           rest r = 1 / (1 + e^-d)
    H  = r H' - r ln r - m ln m                               grouping of the entropy, exact

A head that puts all but r = 1e-6 on key 0 still gets an accurate sink-free entropy, because nothing
is ever subtracted from 1: the usual closed form (H + m ln m) / r + ln r divides the rounding of H
by r. A row whose window has moved past key 0 has m = 0 and H = H'; a row with r = 0 in float32 has
no sink-free entropy (NaN), as in stats.entropy.sinkfree_entropy.

Ways to L' and H', the same numbers: torch's flash kernel on the CPU (`flash_rest`); on CUDA a
Triton kernel that gives the output as well (triton_kernel.py); elsewhere, and for soft-capped
scores on the CPU, blocks of rows in public operations (`chunked_rest`). Scores are float32 in all,
whatever dtype the model has. Right padding: a real row never sees padding, so no mask is needed
beside the causal one and the layer's window or chunk, which masks.py takes from the model.

Where heads have learned sinks, the sink takes the place of key 0: L' and H' are over all keys,
s_0 is the sink's score, and the layer's output over the keys is multiplied by r.

Axes: prompt, head, query, key; head counts in `key` may be smaller (grouped queries).
"""

import contextlib
import sys
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from rolecircuits.capture.masks import ROWS, sink_column, why_not_streamed
from rolecircuits.capture.model_pass import AttentionFunction, run_interface
from rolecircuits.capture.rows import ENTROPY_SLACK, join_sink, plain_scores, rest_of_scores
from rolecircuits.inputs.errors import RunFailed, UserError
from rolecircuits.stats.masses import SEGMENTS, masses_beside_sink, segment_keys, turn_masses

BLOCK = 256  # query rows per block where scores are built: [prompt, head, BLOCK, key] float32
MLP_ROWS = 1024  # tokens that an MLP on the CPU takes at a time


@dataclass(frozen=True)
class Scoring:
    """How a layer scores: softcap * tanh(scale * q . k / softcap), and how many keys a row sees.

    window   keys that a row sees, itself included; None for all before it
    softcap  None for none
    chunk    rows see the keys of their own chunk of this size; None for no chunks
    sinks    learned sink scores [head] or [prompt, head, query, 1], None for none
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    chunk: int | None = None
    sinks: Any = None

    def cap(self, scores):
        """Scaled scores with the soft cap, if there is one."""
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)

    @property
    def first(self):
        """The first key among the rest: 1, as key 0 is kept apart, or 0 beside a learned sink."""
        return 1 if self.sinks is None else 0

    def sees_all(self, n_query):
        """True where rows of so many tokens see all keys before them."""
        return n_query <= min(self.window or n_query, self.chunk or n_query)

    def low(self, row):
        """The first key that a row sees."""
        if self.chunk is not None:
            return row // self.chunk * self.chunk
        return 0 if self.window is None else max(0, row - self.window + 1)

    def seen(self, rows, keys, device):
        """True where a key is seen: rows and keys are (start, stop). [query, key] bool"""
        query = torch.arange(*rows, device=device)[:, None]
        key = torch.arange(*keys, device=device)
        seen = key <= query
        if self.chunk is not None:
            seen &= key >= query // self.chunk * self.chunk
        return seen if self.window is None else seen & (key > query - self.window)

    def blocks(self, n_query, block=None, first=0):
        """((row start, stop), (key start, stop)) of blocks of rows and of the keys that they see.

        first  keys and rows before it are left out
        """
        block = block or BLOCK
        for start in range(first, n_query, block):
            stop = min(start + block, n_query)
            yield (start, stop), (max(first, self.low(start)), stop)


def flash_cpu(query, key, value, how):
    """(output, log-sum-exp) of causal attention by torch's CPU kernel, which reads grouped keys
    without copying them.
    """
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    n_query = query.shape[2]
    if how.sees_all(n_query):
        return kernel(query, key, value, 0.0, True, scale=how.scale)
    out = query.new_empty((*query.shape[:3], value.shape[-1]))
    log_sum = torch.empty(query.shape[:3], dtype=torch.float32)
    for (a, b), (low, high) in how.blocks(n_query):
        seen = how.seen((a, b), (low, high), query.device)
        mask = torch.zeros(seen.shape, dtype=query.dtype).masked_fill_(~seen, float("-inf"))
        part = query[:, :, a:b], key[:, :, low:high], value[:, :, low:high]
        out[:, :, a:b], log_sum[:, :, a:b] = kernel(
            *part, 0.0, False, attn_mask=mask, scale=how.scale
        )
    return out, log_sum


def plain_output(query, key, value, how):
    """The layer's attention output [prompt, head, query, d] in the model's dtype."""
    if query.device.type == "cpu" and query.shape[-1] == value.shape[-1]:
        return flash_cpu(query, key, value, how)[0]
    n_query, window = query.shape[2], how.window or how.chunk
    attention = partial(
        scaled_dot_product_attention, scale=how.scale, enable_gqa=query.shape[1] != key.shape[1]
    )
    if how.sees_all(n_query):
        return attention(query, key, value, is_causal=True)
    out = query.new_empty((*query.shape[:3], value.shape[-1]))
    for (a, b), (low, high) in how.blocks(n_query, max(BLOCK, window // 4)):
        seen = how.seen((a, b), (low, high), query.device)
        part = query[:, :, a:b], key[:, :, low:high], value[:, :, low:high]
        out[:, :, a:b] = attention(*part, attn_mask=seen)
    return out


def flash_rest(query, key, how):
    """(L', H') of rows and keys from `how.first` on, by the CPU kernel with keys as values."""
    query, key = query[:, :, how.first :].float(), key[:, :, how.first :].float()
    mean_key, log_sum = flash_cpu(query, key, key, how)
    return log_sum, log_sum - torch.einsum("phqd,phqd->phq", query, mean_key) * how.scale


def block_scores(query, key, rows, keys, how):
    """Scores of a block of rows in float32, -inf for unseen keys: [prompt, head, query, key]."""
    scores = plain_scores(query[:, :, slice(*rows)], key[:, :, slice(*keys)], how.scale)
    scores = how.cap(scores)
    return scores.masked_fill_(~how.seen(rows, keys, query.device), float("-inf"))


def chunked_rest(query, key, how):
    """(L', H') as `flash_rest`, from blocks of scores in float32: the reference, and the way for
    soft-capped scores.
    """
    sums = [query.new_empty((*query.shape[:2], 0), dtype=torch.float32)]
    entropies = list(sums)
    for rows, keys in how.blocks(query.shape[2], first=how.first):
        log_sum, entropy, _ = rest_of_scores(block_scores(query, key, rows, keys, how))
        entropies.append(entropy)
        sums.append(log_sum)
    return torch.cat(sums, dim=-1), torch.cat(entropies, dim=-1)


def chunked_output(query, key, value, how):
    """As `plain_output`, with soft-capped scores."""
    n_prompts, n_heads, n_query, _ = query.shape
    out = query.new_empty((n_prompts, n_heads, n_query, value.shape[-1]))
    for rows, keys in how.blocks(n_query):
        weights = torch.softmax(block_scores(query, key, rows, keys, how), dim=-1)
        grouped = weights.view(n_prompts, key.shape[1], -1, weights.shape[-1])
        part = grouped @ value[:, :, slice(*keys)].float()
        out[:, :, slice(*rows)] = part.view(n_prompts, n_heads, -1, value.shape[-1]).to(query.dtype)
    return out


def cuda_kernel(query, value, how):
    """The module of the CUDA kernel where it takes these tensors and rows, else None."""
    described = how.chunk is None and how.sinks is None
    kernel = triton_kernel() if query.device.type == "cuda" and described else None
    return kernel if kernel is not None and kernel.fits(query, value) else None


@cache
def triton_kernel():
    """The module of the CUDA kernel, or None, said once, where Triton is not installed."""
    try:
        from rolecircuits.capture import triton_kernel  # Triton has wheels for Linux only
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        print(
            "note: Triton is not installed; entropies are taken from blocks of scores, which is "
            "slower",
            file=sys.stderr,
        )
        return None
    return triton_kernel


def attend(query, key, value, how, want_output=True):
    """(output or None, L', H') by the fastest way that is right for this device, dtype and scores.

    output  [prompt, head, query, d] in the model's dtype
    L', H'  [prompt, head, query - 1] float32, of all rows beside a learned sink
    """
    kernel = cuda_kernel(query, value, how)
    if kernel is not None:
        return kernel.rest_and_output(query, key, value, how.scale, how.window, how.softcap)
    by_flash = (
        query.device.type == "cpu"
        and query.shape[2] > how.first
        and how.softcap is None
        and how.chunk is None  # without key 0 the chunks begin elsewhere
    )
    output = plain_output if how.softcap is None else chunked_output
    out = output(query, key, value, how) if want_output else None
    rest = (flash_rest if by_flash else chunked_rest)(query, key, how)
    if out is not None and how.sinks is not None:
        left = torch.sigmoid(rest[0] - sink_scores(query, key, how))
        out = out * left[..., None].to(out.dtype)
    return out, *rest


def sink_scores(query, key, how):
    """Score of every row with key 0, or with its head's learned sink, in float32: [prompt, head,
    query].
    """
    n_prompts, n_heads, n_query, width = query.shape
    if how.sinks is not None:
        return sink_column(how.sinks)[..., 0].float().expand(n_prompts, n_heads, n_query)
    grouped = query.float().reshape(n_prompts, key.shape[1], -1, width)
    scores = torch.einsum("pgqd,pgd->pgq", grouped, key[:, :, 0].float()).mul_(how.scale)
    return how.cap(scores.view(n_prompts, n_heads, n_query))


def final_rows(query, key, n_tokens, how):
    """Attention of each prompt's final token, softmax in float32: [prompt, head, key], 0 beyond
    its tokens. O(tokens) memory. With learned sinks the sink is one more key, the first.
    """
    n_prompts, n_heads, _, width = query.shape
    last = torch.as_tensor(n_tokens, device=query.device) - 1
    rows = query[torch.arange(n_prompts, device=query.device), :, last].float()
    rows = rows.view(n_prompts, key.shape[1], -1, width)
    scores = how.cap((rows @ key.float().transpose(2, 3)).view(n_prompts, n_heads, -1) * how.scale)
    position = torch.arange(key.shape[2], device=query.device)
    low = torch.tensor([how.low(int(row)) for row in last], device=query.device)
    seen = (position <= last[:, None]) & (position >= low[:, None])
    scores = scores.masked_fill(~seen[:, None], float("-inf"))
    if how.sinks is not None:
        column = sink_scores(query, key, how)[torch.arange(n_prompts, device=query.device), :, last]
        scores = torch.cat([column[..., None], scores], dim=-1)
    return torch.softmax(scores, dim=-1)


def segment_masses(query, key, segment, how, sink_mass):
    """Attention of every row on the segments: [prompt, head, query, segment] float32 numpy.

    The layer's attention, with which segment a key is in (1 or 0) in the place of values.
    segment  [prompt, key] codes    sink_mass  [prompt, head, query], what a learned sink takes
    """
    n_segments, n_key = len(SEGMENTS), key.shape[2]
    inside = torch.as_tensor(segment_keys(segment, n_key), device=key.device).float()
    width = max(query.shape[-1], n_segments)  # the CPU's kernel wants values as wide as keys
    inside = torch.nn.functional.pad(inside, (0, width - n_segments))[:, None]
    value = inside.expand(-1, key.shape[1], -1, -1).contiguous()
    output = plain_output if how.softcap is None else chunked_output
    rows = output(query.float(), key.float(), value, how)[..., :n_segments].cpu().numpy()
    if how.sinks is not None:
        rows *= 1 - sink_mass[..., None]
        rows[..., 0] += sink_mass
    return rows


def check_rows(arrays, n_tokens, visible, layer):
    """Stop with layer and head unless every real row has entropies from 0 to ln(visible keys)."""
    real = (np.arange(len(visible)) < np.asarray(n_tokens)[:, None])[:, None, :]
    bound = np.log(visible) + ENTROPY_SLACK
    whole, sinkfree = arrays["entropy"], arrays["entropy_sinkfree"]
    infinite = ~np.isfinite(whole) | ~np.isfinite(arrays["sink_mass"])
    outside = "is outside 0 to ln(visible keys)"
    for what, values, wrong in (
        ("is NaN or infinite", whole, infinite),
        (outside, whole, (whole < 0) | (whole > bound)),
        (f"{outside} without key 0", sinkfree, (sinkfree < 0) | (sinkfree > bound)),
    ):
        if (wrong & real).any():
            prompt, head, row = np.argwhere(wrong & real)[0]
            raise RunFailed(
                f"layer {layer} head {head}: entropy of query row {row} {what} "
                f"({values[prompt, head, row]:.6g}); nothing was saved"
            )


class LayerRecorder:
    """Answers each layer of one pass and reduces its rows, without a pattern.

    windows  [layer] (window, chunk) of masks.window_of    n_tokens [prompt]
    places   Places of the prompts
    on_layer(layer, arrays)  is called once a layer, in order; arrays are those of `join_sink` and
                             of stats.masses.masses_beside_sink, NaN beyond a prompt's tokens
    """

    def __init__(self, windows, n_tokens, places, on_layer):
        self.windows, self.on_layer = windows, on_layer
        self.n_tokens, self.places = np.asarray(n_tokens), places

    def attend(self, layer, call):
        """The attention of one layer, a model_pass.Call; None for the last one's output."""
        window, chunk = self.windows[layer]
        how = Scoring(call.scale, window, call.softcap, chunk, call.sinks)
        query, key = call.query, call.key
        if query.shape[2] != key.shape[2] or call.bias is not None:
            raise RunFailed(
                f"layer {layer}: queries {tuple(query.shape)} do not fit keys {tuple(key.shape)}"
            )
        want_output = layer < len(self.windows) - 1
        out, *rest = attend(query, key, call.value, how, want_output)
        self.on_layer(layer, self.measure(query, key, rest, layer, how))
        return out

    def measure(self, query, key, rest, layer, how):
        """The arrays of one layer of one batch, checked; `rest` is (L', H')."""
        visible = keys_seen(query.shape[2], how)
        parts = (sink_scores(query, key, how), *rest)
        arrays = join_sink(*(part.cpu().numpy() for part in parts), visible)
        check_rows(arrays, self.n_tokens, visible, layer)
        beyond = (np.arange(len(visible)) >= self.n_tokens[:, None])[:, None, :]
        nan = np.float32(np.nan)
        arrays = {name: np.where(beyond, nan, values) for name, values in arrays.items()}
        if self.places.turns is not None:
            segments = segment_masses(query, key, self.places.segment, how, arrays["sink_mass"])
            arrays["turn_mass"] = turn_masses(segments, self.places.turns)
        final = final_rows(query, key, self.n_tokens, how).cpu().numpy()
        return arrays | masses_beside_sink(final, self.places, how.sinks is not None)


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

    batch     (ids, mask) [prompt, query]    recorder  the LayerRecorder of this batch
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
    with mlps_in_blocks(loaded.model):
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
