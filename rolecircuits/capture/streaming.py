"""Exact entropy of every attention row in memory that grows with the tokens, not with their square.

The pattern is never built. A layer runs its own attention kernel for the output, and a second one that gives, for the keys
other than key 0 (the attention sink), the log-sum-exp L' of the scores s and their mean under the softmax:

    H' = L' - E'[s] = L' - scale * q . (sum_{j>0} p'_j k_j)        the sink-free entropy: one call with keys as values
    d  = L' - s_0       sink mass m = 1 / (1 + e^d)                 rest r = 1 / (1 + e^-d)
    H  = r H' - r ln r - m ln m                                     grouping property of the entropy, exact

A head that puts all but r = 1e-6 on key 0 still gets an accurate sink-free entropy, because nothing is ever subtracted from
1: the usual closed form (H + m ln m) / r + ln r divides the rounding of H by r. A row whose window has moved past key 0 has
m = 0 and H = H'; a row with r = 0 in float32 has no sink-free entropy (NaN), as in role_metrics.sinkfree_entropy.

Ways to L' and H', the same numbers: torch's flash kernel on the CPU (`flash_rest`); on CUDA a Triton kernel that gives the
output as well (triton_attention.py); elsewhere, and for soft-capped scores on the CPU, blocks of rows in public operations
(`chunked_rest`). Scores are float32 in all, whatever dtype the model has. Right padding: a real row never sees padding, so no
mask is needed beside the causal one.

Axes: prompt, head, query, key; head counts in `key` may be smaller (grouped queries).
"""

import contextlib
import sys
from functools import cache, partial

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from rolecircuits.inputs.errors import RunFailed, UserError
from rolecircuits.stats.entropy import final_query_masses, sinkfree_keys, visible_keys

NAME = "role_streaming"
BLOCK = (
    256  # query rows per block where scores are materialised: [prompt, head, BLOCK, key] float32
)
MLP_ROWS = 1024  # tokens that an MLP on the CPU takes at a time
ENTROPY_SLACK = 1e-3  # how far beyond 0 and ln(visible keys) rounding may put an entropy, in nats


def causal_mask(rows, keys, window, device):
    """True where a key is seen: rows and keys are (start, stop) positions. [query, key] bool"""
    query = torch.arange(*rows, device=device)[:, None]
    key = torch.arange(*keys, device=device)
    seen = key <= query
    return seen if window is None else seen & (key > query - window)


def row_blocks(n_query, window, block=None, first=0):
    """((row start, stop), (key start, stop)) of blocks of rows and of the keys that any of their rows sees."""
    block = block or BLOCK
    for start in range(first, n_query, block):
        low = first if window is None else max(first, start - window + 1)
        stop = min(start + block, n_query)
        yield (start, stop), (low, stop)


def flash_cpu(query, key, value, scale, window):
    """(output, log-sum-exp) of causal attention by torch's CPU kernel, which reads grouped keys without copying them."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    n_query = query.shape[2]
    if window is None or n_query <= window:
        return kernel(query, key, value, 0.0, True, scale=scale)
    out = torch.empty((*query.shape[:3], value.shape[-1]), dtype=query.dtype)
    log_sum = torch.empty(query.shape[:3], dtype=torch.float32)
    for (a, b), (low, high) in row_blocks(n_query, window):
        seen = causal_mask((a, b), (low, high), window, query.device)
        mask = torch.zeros(seen.shape, dtype=query.dtype).masked_fill_(~seen, float("-inf"))
        part = query[:, :, a:b], key[:, :, low:high], value[:, :, low:high]
        out[:, :, a:b], log_sum[:, :, a:b] = kernel(*part, 0.0, False, attn_mask=mask, scale=scale)
    return out, log_sum


def plain_output(query, key, value, scale, window):
    """The layer's attention output [prompt, head, query, d] in the model's dtype, without entropies."""
    if query.device.type == "cpu" and query.shape[-1] == value.shape[-1]:
        return flash_cpu(query, key, value, scale, window)[0]
    n_query, grouped = query.shape[2], query.shape[1] != key.shape[1]
    if window is None or n_query <= window:
        return scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, enable_gqa=grouped
        )
    out = query.new_empty((*query.shape[:3], value.shape[-1]))
    for (a, b), (low, high) in row_blocks(n_query, window, max(BLOCK, window // 4)):
        seen = causal_mask((a, b), (low, high), window, query.device)
        part = query[:, :, a:b], key[:, :, low:high], value[:, :, low:high]
        out[:, :, a:b] = scaled_dot_product_attention(
            *part, attn_mask=seen, scale=scale, enable_gqa=grouped
        )
    return out


def flash_rest(query, key, scale, window):
    """(L', H') of rows 1 and later over keys 1 and later, by the CPU kernel with keys in the place of values."""
    query, key = query[:, :, 1:].float(), key[:, :, 1:].float()
    mean_key, log_sum = flash_cpu(query, key, key, scale, window)
    mean_score = torch.einsum("phqd,phqd->phq", query, mean_key) * scale
    return log_sum, log_sum - mean_score


def block_scores(query, key, rows, keys, scale, window, softcap):
    """Scores of a block of rows in float32, -inf where a key is not seen: [prompt, head, query, key]."""
    (a, b), (low, high) = rows, keys
    n_prompts, n_heads, _, width = query.shape
    part = (
        query[:, :, a:b].float().reshape(n_prompts, key.shape[1], -1, width)
    )  # grouped heads side by side
    scores = (
        (part @ key[:, :, low:high].float().transpose(2, 3))
        .mul_(scale)
        .view(n_prompts, n_heads, b - a, -1)
    )
    if softcap is not None:
        scores = torch.tanh(scores.div_(softcap)).mul_(softcap)
    return scores.masked_fill_(~causal_mask(rows, keys, window, query.device), float("-inf"))


def chunked_rest(query, key, scale, window, softcap=None):
    """(L', H') as `flash_rest`, from blocks of scores in float32: the reference, and the way for soft-capped scores."""
    sums, entropies = [], []
    for rows, keys in row_blocks(query.shape[2], window, first=1):
        scores = block_scores(query, key, rows, keys, scale, window, softcap)
        log_sum = torch.logsumexp(scores, dim=-1)
        logs = scores.sub_(log_sum[..., None])
        probability = logs.exp()
        entropies.append(
            -probability.mul_(logs.masked_fill_(logs == float("-inf"), 0.0)).sum(dim=-1)
        )
        sums.append(log_sum)
    if not sums:
        empty = query.new_empty((*query.shape[:2], 0), dtype=torch.float32)
        return empty, empty
    return torch.cat(sums, dim=-1), torch.cat(entropies, dim=-1)


def chunked_output(query, key, value, scale, window, softcap):
    """As `plain_output`, with soft-capped scores."""
    n_prompts, n_heads, n_query, _ = query.shape
    out = query.new_empty((n_prompts, n_heads, n_query, value.shape[-1]))
    for rows, keys in row_blocks(n_query, window):
        weights = torch.softmax(
            block_scores(query, key, rows, keys, scale, window, softcap), dim=-1
        )
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
    """The module of the CUDA kernel, or None, said once, where Triton is not installed (it comes with torch on Linux)."""
    try:
        from rolecircuits.capture import triton_kernel
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        print(
            "note: Triton is not installed; entropies are taken from blocks of scores, which is slower",
            file=sys.stderr,
        )
        return None
    return triton_kernel


def attend(query, key, value, scale, window, softcap=None, want_output=True):
    """(output or None, L', H') by the fastest way that is right for this device, dtype and scores.

    output [prompt, head, query, d] in the model's dtype    L', H' [prompt, head, query - 1] float32
    """
    on_cpu = query.device.type == "cpu" and query.shape[2] > 1
    kernel = cuda_kernel(query, value)
    if kernel is not None:
        return kernel.rest_and_output(query, key, value, scale, window, softcap)
    if softcap is not None:
        out = chunked_output(query, key, value, scale, window, softcap) if want_output else None
        return out, *chunked_rest(query, key, scale, window, softcap)
    out = plain_output(query, key, value, scale, window) if want_output else None
    return out, *(flash_rest if on_cpu else chunked_rest)(query, key, scale, window)


def sink_scores(query, key, scale, softcap=None):
    """Score of every row with key 0, in float32: [prompt, head, query]."""
    n_prompts, n_heads, n_query, width = query.shape
    grouped = query.float().reshape(n_prompts, key.shape[1], -1, width)
    scores = torch.einsum("pgqd,pgd->pgq", grouped, key[:, :, 0].float()).mul_(scale)
    scores = scores.view(n_prompts, n_heads, n_query)
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def join_sink(sink_score, log_sum, entropy, visible):
    """Entropies and sink mass of all rows from key 0 and the rest; numpy, float64 inside. See the module's formulas.

    sink_score [..., query]   log_sum, entropy [..., query - 1] (L', H')   visible [query] keys that a row sees
    returns    {"entropy", "entropy_sinkfree", "sink_mass"} [..., query] float32; sink-free is NaN for rows that keep
               fewer than two keys, and where the rest has no mass in float32
    """
    row = np.arange(sink_score.shape[-1])
    rest, odds = np.zeros(sink_score.shape), np.full(sink_score.shape, -np.inf)
    rest[..., 1:] = np.where(entropy > -ENTROPY_SLACK, np.maximum(entropy, 0.0), entropy)
    odds[..., 1:] = log_sum - sink_score[..., 1:].astype(np.float64)
    odds = np.where(
        visible == row + 1, odds, np.inf
    )  # infinite where the window has moved past key 0
    odds = np.clip(
        odds, -700.0, 700.0
    )  # e^-700 is 0 in float32, and 0 times an infinity never arises
    sink, left = 1.0 / (1.0 + np.exp(odds)), 1.0 / (1.0 + np.exp(-odds))
    whole = left * (rest + np.logaddexp(0.0, -odds)) + sink * np.logaddexp(0.0, odds)
    kept = (sinkfree_keys(visible[None])[0] >= 2) & (left.astype(np.float32) > 0)
    return {
        "entropy": whole.astype(np.float32),
        "entropy_sinkfree": np.where(kept, rest, np.nan).astype(np.float32),
        "sink_mass": sink.astype(np.float32),
    }


def final_rows(query, key, n_tokens, scale, window, softcap=None):
    """Attention of each prompt's final token, softmax in float32: [prompt, head, key], 0 beyond its tokens. O(T) memory."""
    n_prompts, n_heads, _, width = query.shape
    last = torch.as_tensor(n_tokens, device=query.device) - 1
    rows = (
        query[torch.arange(n_prompts, device=query.device), :, last]
        .float()
        .view(n_prompts, key.shape[1], -1, width)
    )
    scores = (rows @ key.float().transpose(2, 3)).view(n_prompts, n_heads, -1) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    position = torch.arange(key.shape[2], device=query.device)
    seen = position <= last[:, None]
    if window is not None:
        seen &= position > last[:, None] - window
    return torch.softmax(scores.masked_fill(~seen[:, None], float("-inf")), dim=-1)


def check_rows(arrays, n_tokens, visible, layer):
    """Stop with layer and head unless every real row has a finite entropy between 0 and ln(visible keys)."""
    query = np.arange(len(visible))
    real = (query < np.asarray(n_tokens)[:, None])[:, None, :]
    bound = np.log(visible) + ENTROPY_SLACK
    for what, wrong in (
        ("is NaN or infinite", ~np.isfinite(arrays["entropy"]) | ~np.isfinite(arrays["sink_mass"])),
        ("is outside 0 to ln(visible keys)", (arrays["entropy"] < 0) | (arrays["entropy"] > bound)),
        (
            "is outside 0 to ln(visible keys) without key 0",
            ~_in_range(arrays["entropy_sinkfree"], bound),
        ),
    ):
        if (wrong & real).any():
            prompt, head, row = np.argwhere(wrong & real)[0]
            value = arrays["entropy_sinkfree" if "without" in what else "entropy"][
                prompt, head, row
            ]
            raise RunFailed(
                f"layer {layer} head {head}: entropy of query row {row} {what} ({value:.6g}); nothing was saved"
            )


def _in_range(values, bound):
    return np.isnan(values) | ((values >= 0) & (values <= bound))


class LastLayerDone(Exception):
    """Ends a forward pass once the last layer's attention is measured; `stream_layers` catches it."""


class LayerRecorder:
    """The attention function of one forward pass: it answers the layer and reduces its rows on the way.

    on_layer(layer, arrays)   is called once a layer, in order; arrays as `join_sink` gives them, and those of
                              role_metrics.final_query_masses; rows beyond a prompt's tokens are NaN
    """

    def __init__(self, facts, n_tokens, span, on_layer):
        self.facts, self.n_tokens, self.span, self.on_layer = (
            facts,
            np.asarray(n_tokens),
            np.asarray(span),
            on_layer,
        )
        self.fired = []

    def __call__(
        self,
        module,
        query,
        key,
        value,
        attention_mask,
        scaling=None,
        softcap=None,
        dropout=0.0,
        **kwargs,
    ):
        layer = module.layer_idx
        refuse_variant(layer, kwargs | {"mask": attention_mask})
        self.fired.append(layer)
        window = self.facts["sliding_windows"][layer]
        scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
        if query.shape[1] != self.facts["n_heads"] or query.shape[2] != key.shape[2] or dropout:
            raise RunFailed(
                f"layer {layer}: queries {tuple(query.shape)} do not fit keys {tuple(key.shape)}"
            )
        last = layer == self.facts["n_layers"] - 1
        out, *rest = attend(query, key, value, scale, window, softcap, want_output=not last)
        self.on_layer(layer, self.measure(query, key, rest, layer, scale, window, softcap))
        if last:
            raise LastLayerDone  # what comes after is not needed: its output, its MLP, the final norm
        return out.transpose(1, 2).contiguous(), None

    def measure(self, query, key, rest, layer, scale, window, softcap):
        """The arrays of one layer of one batch, checked; `rest` is (L', H')."""
        visible = visible_keys(query.shape[2], [window])[0]
        parts = (sink_scores(query, key, scale, softcap), *rest)
        arrays = join_sink(*(part.cpu().numpy() for part in parts), visible)
        check_rows(arrays, self.n_tokens, visible, layer)
        beyond = (np.arange(len(visible)) >= self.n_tokens[:, None])[:, None, :]
        arrays = {
            name: np.where(beyond, np.float32(np.nan), values) for name, values in arrays.items()
        }
        final = final_rows(query, key, self.n_tokens, scale, window, softcap)
        return arrays | final_query_masses(final.cpu().numpy(), self.span)


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
                f"layer {layer} {what}; streaming capture does not measure that, use --capture patterns"
            )


def _gated_mlps(model):
    """The dense gated MLPs of a model, which treat every token alone; not those that accelerate moves between devices."""
    parts = ("gate_proj", "up_proj", "down_proj")
    for module in model.modules():
        linear = all(isinstance(getattr(module, part, None), torch.nn.Linear) for part in parts)
        if linear and not hasattr(module, "_hf_hook"):
            yield module


@contextlib.contextmanager
def mlps_in_blocks(model, rows=MLP_ROWS):
    """Inside the block, MLPs on the CPU take `rows` tokens at a time: what they multiply stays in the processor's cache.

    A 4,096-token MLP of the bundled model takes 0.8 of its time that way, and its wide layer is never held for all tokens.
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


def stream_layers(model, ids, mask, n_tokens, span, facts, on_layer, kind=LayerRecorder):
    """One forward pass of a right-padded batch up to the attention of the last layer, rows reduced layer by layer.

    model  a Hugging Face model that follows AttentionInterface and is not wrapped by a bridge
    ids, mask [prompt, query]   n_tokens [prompt]   span [prompt, 2]   on_layer as in LayerRecorder
    kind   the recorder; a subclass may look at queries and keys as well
    """
    recorder = kind(facts, n_tokens, span, on_layer)
    AttentionInterface.register(
        NAME, recorder
    )  # the name has no entry among masks, so no [query, key] mask is built
    if model.config.get_text_config()._attn_implementation != NAME:
        if not model._can_set_attn_implementation():
            raise UserError(
                f"{type(model).__name__} does not take another attention function; use --capture patterns"
            )
        model.set_attn_implementation(NAME)
    device = next(model.parameters()).device
    with torch.inference_mode(), mlps_in_blocks(model), contextlib.suppress(LastLayerDone):
        model.base_model(ids.to(device), attention_mask=mask.to(device), use_cache=False)
    if recorder.fired != list(range(facts["n_layers"])):
        raise RunFailed(
            f"attention ran in layers {recorder.fired}, not once in each of {facts['n_layers']} layers in order"
        )
