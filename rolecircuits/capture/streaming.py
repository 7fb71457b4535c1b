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
beside the causal one.

Axes: prompt, head, query, key; head counts in `key` may be smaller (grouped queries).
"""

import contextlib
import sys
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from rolecircuits.inputs.errors import RunFailed, UserError
from rolecircuits.stats.entropy import sinkfree_keys, visible_keys
from rolecircuits.stats.masses import final_query_masses

NAME = "role_streaming"
BLOCK = 256  # query rows per block where scores are built: [prompt, head, BLOCK, key] float32
MLP_ROWS = 1024  # tokens that an MLP on the CPU takes at a time
ENTROPY_SLACK = 1e-3  # how far beyond 0 and ln(visible keys) rounding may put an entropy, in nats


@dataclass(frozen=True)
class Scoring:
    """How a layer scores: softcap * tanh(scale * q . k / softcap), and how many keys a row sees.

    window  keys that a row sees, itself included; None for all before it    softcap  None for none
    """

    scale: float
    window: int | None = None
    softcap: float | None = None

    def cap(self, scores):
        """Scaled scores with the soft cap, if there is one."""
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)


def causal_mask(rows, keys, window, device):
    """True where a key is seen: rows and keys are (start, stop) positions. [query, key] bool"""
    query = torch.arange(*rows, device=device)[:, None]
    key = torch.arange(*keys, device=device)
    seen = key <= query
    return seen if window is None else seen & (key > query - window)


def row_blocks(n_query, window, block=None, first=0):
    """((row start, stop), (key start, stop)) of blocks of rows and of the keys that they see."""
    block = block or BLOCK
    for start in range(first, n_query, block):
        low = first if window is None else max(first, start - window + 1)
        stop = min(start + block, n_query)
        yield (start, stop), (low, stop)


def flash_cpu(query, key, value, how):
    """(output, log-sum-exp) of causal attention by torch's CPU kernel, which reads grouped keys
    without copying them.
    """
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    n_query = query.shape[2]
    if how.window is None or n_query <= how.window:
        return kernel(query, key, value, 0.0, True, scale=how.scale)
    out = query.new_empty((*query.shape[:3], value.shape[-1]))
    log_sum = torch.empty(query.shape[:3], dtype=torch.float32)
    for (a, b), (low, high) in row_blocks(n_query, how.window):
        seen = causal_mask((a, b), (low, high), how.window, query.device)
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
    n_query, window = query.shape[2], how.window
    attention = partial(
        scaled_dot_product_attention, scale=how.scale, enable_gqa=query.shape[1] != key.shape[1]
    )
    if window is None or n_query <= window:
        return attention(query, key, value, is_causal=True)
    out = query.new_empty((*query.shape[:3], value.shape[-1]))
    for (a, b), (low, high) in row_blocks(n_query, window, max(BLOCK, window // 4)):
        seen = causal_mask((a, b), (low, high), window, query.device)
        part = query[:, :, a:b], key[:, :, low:high], value[:, :, low:high]
        out[:, :, a:b] = attention(*part, attn_mask=seen)
    return out


def flash_rest(query, key, how):
    """(L', H') of rows 1 and later over keys 1 and later, by the CPU kernel with keys as values."""
    query, key = query[:, :, 1:].float(), key[:, :, 1:].float()
    mean_key, log_sum = flash_cpu(query, key, key, how)
    return log_sum, log_sum - torch.einsum("phqd,phqd->phq", query, mean_key) * how.scale


def block_scores(query, key, rows, keys, how):
    """Scores of a block of rows in float32, -inf for unseen keys: [prompt, head, query, key]."""
    (a, b), (low, high) = rows, keys
    n_prompts, n_heads, _, width = query.shape
    part = query[:, :, a:b].float()
    part = part.reshape(n_prompts, key.shape[1], -1, width)  # grouped heads side by side
    scores = (part @ key[:, :, low:high].float().transpose(2, 3)).mul_(how.scale)
    scores = how.cap(scores.view(n_prompts, n_heads, b - a, -1))
    return scores.masked_fill_(~causal_mask(rows, keys, how.window, query.device), float("-inf"))


def chunked_rest(query, key, how):
    """(L', H') as `flash_rest`, from blocks of scores in float32: the reference, and the way for
    soft-capped scores.
    """
    sums = [query.new_empty((*query.shape[:2], 0), dtype=torch.float32)]
    entropies = list(sums)
    for rows, keys in row_blocks(query.shape[2], how.window, first=1):
        scores = block_scores(query, key, rows, keys, how)
        log_sum = torch.logsumexp(scores, dim=-1)
        logs = scores.sub_(log_sum[..., None])
        probability = logs.exp()
        finite = logs.masked_fill_(logs == float("-inf"), 0.0)
        entropies.append(-probability.mul_(finite).sum(dim=-1))
        sums.append(log_sum)
    return torch.cat(sums, dim=-1), torch.cat(entropies, dim=-1)


def chunked_output(query, key, value, how):
    """As `plain_output`, with soft-capped scores."""
    n_prompts, n_heads, n_query, _ = query.shape
    out = query.new_empty((n_prompts, n_heads, n_query, value.shape[-1]))
    for rows, keys in row_blocks(n_query, how.window):
        weights = torch.softmax(block_scores(query, key, rows, keys, how), dim=-1)
        grouped = weights.view(n_prompts, key.shape[1], -1, weights.shape[-1])
        part = grouped @ value[:, :, slice(*keys)].float()
        out[:, :, slice(*rows)] = part.view(n_prompts, n_heads, -1, value.shape[-1]).to(query.dtype)
    return out


def cuda_kernel(query, value):
    """The module of the CUDA kernel where it takes these tensors, else None."""
    kernel = triton_kernel() if query.device.type == "cuda" else None
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
    L', H'  [prompt, head, query - 1] float32
    """
    kernel = cuda_kernel(query, value)
    if kernel is not None:
        return kernel.rest_and_output(query, key, value, how.scale, how.window, how.softcap)
    by_flash = query.device.type == "cpu" and query.shape[2] > 1 and how.softcap is None
    output = plain_output if how.softcap is None else chunked_output
    out = output(query, key, value, how) if want_output else None
    return out, *(flash_rest if by_flash else chunked_rest)(query, key, how)


def sink_scores(query, key, how):
    """Score of every row with key 0, in float32: [prompt, head, query]."""
    n_prompts, n_heads, n_query, width = query.shape
    grouped = query.float().reshape(n_prompts, key.shape[1], -1, width)
    scores = torch.einsum("pgqd,pgd->pgq", grouped, key[:, :, 0].float()).mul_(how.scale)
    return how.cap(scores.view(n_prompts, n_heads, n_query))


def join_sink(sink_score, log_sum, entropy, visible):
    """Entropies and sink mass of all rows from key 0 and the rest, by the module's formulas.

    sink_score  [..., query]    log_sum, entropy  [..., query - 1] (L', H')
    visible     [query] keys that a row sees
    returns     {"entropy", "entropy_sinkfree", "sink_mass"} [..., query] float32; sink-free is NaN
                for rows that keep fewer than two keys, or whose rest has no mass in float32
    """
    row = np.arange(sink_score.shape[-1])
    rest, odds = np.zeros(sink_score.shape), np.full(sink_score.shape, -np.inf)
    rest[..., 1:] = np.where(entropy > -ENTROPY_SLACK, np.maximum(entropy, 0.0), entropy)
    odds[..., 1:] = log_sum - sink_score[..., 1:].astype(np.float64)
    odds = np.where(visible == row + 1, odds, np.inf)  # the window has moved past key 0
    odds = np.clip(odds, -700.0, 700.0)  # e^-700 is 0 in float32, and no infinity times 0 arises
    sink, left = 1.0 / (1.0 + np.exp(odds)), 1.0 / (1.0 + np.exp(-odds))
    whole = left * (rest + np.logaddexp(0.0, -odds)) + sink * np.logaddexp(0.0, odds)
    kept = (sinkfree_keys(visible[None])[0] >= 2) & (left.astype(np.float32) > 0)
    return {
        "entropy": whole.astype(np.float32),
        "entropy_sinkfree": np.where(kept, rest, np.nan).astype(np.float32),
        "sink_mass": sink.astype(np.float32),
    }


def final_rows(query, key, n_tokens, how):
    """Attention of each prompt's final token, softmax in float32: [prompt, head, key], 0 beyond
    its tokens. O(tokens) memory.
    """
    n_prompts, n_heads, _, width = query.shape
    last = torch.as_tensor(n_tokens, device=query.device) - 1
    rows = query[torch.arange(n_prompts, device=query.device), :, last].float()
    rows = rows.view(n_prompts, key.shape[1], -1, width)
    scores = how.cap((rows @ key.float().transpose(2, 3)).view(n_prompts, n_heads, -1) * how.scale)
    position = torch.arange(key.shape[2], device=query.device)
    seen = position <= last[:, None]
    if how.window is not None:
        seen &= position > last[:, None] - how.window
    return torch.softmax(scores.masked_fill(~seen[:, None], float("-inf")), dim=-1)


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


class LastLayerDone(Exception):
    """Ends a forward pass once the last layer's attention is measured."""


class LayerRecorder:
    """The attention function of one forward pass: it answers each layer and reduces its rows.

    n_tokens [prompt]    places  Places of the prompts
    on_layer(layer, arrays)  is called once a layer, in order; arrays are those of `join_sink` and
                             of stats.masses.final_query_masses, NaN beyond a prompt's tokens
    """

    def __init__(self, facts, n_tokens, places, on_layer):
        self.facts, self.on_layer, self.fired = facts, on_layer, []
        self.n_tokens, self.places = np.asarray(n_tokens), places

    def __call__(self, module, query, key, value, attention_mask, **given):
        layer, scale = module.layer_idx, given.get("scaling")
        refuse_variant(layer, given | {"mask": attention_mask})
        self.fired.append(layer)
        scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
        how = Scoring(scale, self.facts["sliding_windows"][layer], given.get("softcap"))
        fits = query.shape[1] == self.facts["n_heads"] and query.shape[2] == key.shape[2]
        if not fits or given.get("dropout"):
            raise RunFailed(
                f"layer {layer}: queries {tuple(query.shape)} do not fit keys {tuple(key.shape)}"
            )
        last = layer == self.facts["n_layers"] - 1
        out, *rest = attend(query, key, value, how, want_output=not last)
        self.on_layer(layer, self.measure(query, key, rest, layer, how))
        if last:
            raise LastLayerDone  # its output, its MLP and the final norm are not needed
        return out.transpose(1, 2).contiguous(), None

    def measure(self, query, key, rest, layer, how):
        """The arrays of one layer of one batch, checked; `rest` is (L', H')."""
        visible = visible_keys(query.shape[2], [how.window])[0]
        parts = (sink_scores(query, key, how), *rest)
        arrays = join_sink(*(part.cpu().numpy() for part in parts), visible)
        check_rows(arrays, self.n_tokens, visible, layer)
        beyond = (np.arange(len(visible)) >= self.n_tokens[:, None])[:, None, :]
        nan = np.float32(np.nan)
        arrays = {name: np.where(beyond, nan, values) for name, values in arrays.items()}
        final = final_rows(query, key, self.n_tokens, how)
        return arrays | final_query_masses(final.cpu().numpy(), self.places)


def refuse_variant(layer, kwargs):
    """Refuse scores or rows that the formulas do not describe, with the reason."""
    for name, what in (
        ("position_bias", "adds a position bias to its scores"),
        ("alibi", "adds ALiBi to its scores"),
        ("s_aux", "has learned attention sinks, so its rows over keys do not sum to 1"),
        ("head_mask", "masks heads"),
        ("mask", "brings an attention mask of its own"),
    ):
        if kwargs.get(name) is not None:
            raise UserError(
                f"layer {layer} {what}; streaming capture does not measure that, use --capture "
                "patterns"
            )


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


def stream_layers(model, ids, mask, recorder):
    """One forward pass of a right-padded batch up to the attention of the last layer.

    model  a Hugging Face model that follows AttentionInterface and is not wrapped by a bridge
    ids, mask [prompt, query]    recorder  the LayerRecorder of this batch
    """
    # the name has no entry among masks, so no [query, key] mask is built
    AttentionInterface.register(NAME, recorder)
    if model.config.get_text_config()._attn_implementation != NAME:
        if not model._can_set_attn_implementation():
            raise UserError(
                f"{type(model).__name__} does not take another attention function; use --capture "
                "patterns"
            )
        model.set_attn_implementation(NAME)
    device, n_layers = next(model.parameters()).device, recorder.facts["n_layers"]
    with torch.inference_mode(), mlps_in_blocks(model), contextlib.suppress(LastLayerDone):
        model.base_model(ids.to(device), attention_mask=mask.to(device), use_cache=False)
    if recorder.fired != list(range(n_layers)):
        raise RunFailed(
            f"attention ran in layers {recorder.fired}, not once in each of {n_layers} in order"
        )
