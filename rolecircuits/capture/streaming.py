"""Exact entropy of every attention row in memory that grows with the tokens, not their square.

The pattern is never built. An attention kernel over the keys other than key 0 (the attention sink)
gives the log-sum-exp L' of the scores s and, with keys beside the values, their mean under the
softmax:

    H' = L' - E'[s] = L' - scale * q . (sum_{j>0} p'_j k_j)   the sink-free entropy
    o  = r o' + m v_0                                         the layer's output
    d  = L' - s_0       sink mass m = 1 / (1 + e^d)           rest r = 1 / (1 + e^-d)
    H  = r H' - r ln r - m ln m                               grouping of the entropy, exact

A head that puts all but r = 1e-6 on key 0 still gets an accurate sink-free entropy, because nothing
is ever subtracted from 1: the usual closed form (H + m ln m) / r + ln r divides the rounding of H
by r. A row whose window has moved past key 0 has m = 0 and H = H'; a row with r = 0 in float32 has
no sink-free entropy (NaN), as in stats.entropy.sinkfree_entropy.

Ways to L' and H', the same numbers: torch's flash kernel on the CPU (`flash_means`, once a layer);
on CUDA a Triton kernel that gives the output and H as well (triton_kernel.py); elsewhere, and for
soft-capped scores on the CPU, the layer's own kernel and blocks of rows in public operations
(`chunked_rest`). Scores are float32 in all,
whatever dtype the model has. Right padding: a real row never sees padding, so no mask is needed
beside the causal one and the layer's window or chunk, which masks.py takes from the model.

Where heads have learned sinks, the sink takes the place of key 0: L' and H' are over all keys,
s_0 is the sink's score, and the layer's output over the keys is multiplied by r.

Axes: prompt, head, query, key; head counts in `key` may be smaller (grouped queries).
"""

import sys
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from rolecircuits.capture.masks import sink_column
from rolecircuits.capture.rows import join_sink, plain_scores, rest_of_scores

BLOCK = 256  # query rows per block where scores are built: [prompt, head, BLOCK, key] float32
MEASURED_ROWS = ("entropy", "entropy_sinkfree", "sink_mass")


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
    return flash_means(query, key, None, how)[:2]


def flash_means(query, key, value, how):
    """(L', H', o') of rows and keys from `how.first` on, by one call of the CPU kernel.

    value  [prompt, head, key, unit], None where no output is wanted
    The kernel wants queries and keys as wide as what it averages, keys and values side by side, so
    they are padded with zeros: more multiplications than in two calls, but one exponential a score.
    """
    query, key = query[:, :, how.first :].float(), key[:, :, how.first :].float()
    output, averaged, padded, width = None, key, (query, key), query.shape[-1]
    if value is not None:
        averaged = torch.cat([key, value[:, :, how.first :].float()], dim=-1)
        more = value.shape[-1]
        padded = [torch.nn.functional.pad(part, (0, more)) for part in padded]
    mean, log_sum = flash_cpu(*padded, averaged, how)
    if value is not None:
        mean, output = mean[..., :width], mean[..., width:]
    entropy = log_sum - torch.einsum("phqd,phqd->phq", query, mean) * how.scale
    return log_sum, entropy, output


def join_output(output, log_sum, value, sink_score, how):
    """What all keys give from what those other than key 0 give: [prompt, head, query, unit].

    output, log_sum  o' and L' of `flash_means`    sink_score  [prompt, head, query]
    """
    n_heads, first = sink_score.shape[1], value[:, :, :1].float()
    first = first.repeat_interleave(n_heads // value.shape[1], dim=1)
    joined = torch.empty((*sink_score.shape, value.shape[-1]), dtype=torch.float32)
    joined[:, :, :1] = first
    on_sink = torch.sigmoid(sink_score[..., 1:] - log_sum)
    if how.window is not None:
        on_sink[..., how.window - 1 :] = 0  # the window has moved past key 0
    torch.lerp(output, first, on_sink[..., None], out=joined[:, :, 1:])
    return joined


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


def by_flash(query, how):
    """Whether torch's CPU kernel can give the rows."""
    return (
        query.device.type == "cpu"
        and query.shape[2] > how.first
        and how.softcap is None
        and how.chunk is None  # without key 0 the chunks begin elsewhere
    )


def attend(query, key, value, how, want_output=True):
    """(output or None, L', H') by the fastest way that is right for this device, dtype and scores.

    output  [prompt, head, query, d] in the model's dtype
    L', H'  [prompt, head, query - 1] float32: rows from 1 on, all rows where heads have sinks
    """
    value, sink_score = value if want_output else None, sink_scores(query, key, how)
    if by_flash(query, how):
        log_sum, entropy, out = flash_means(query, key, value, how)
        if out is not None and how.sinks is None:
            out = join_output(out, log_sum, value, sink_score, how)
    else:
        output = plain_output if how.softcap is None else chunked_output
        out = None if value is None else output(query, key, value, how)
        log_sum, entropy = chunked_rest(query, key, how)
    if out is not None:
        if how.sinks is not None:
            out = out * torch.sigmoid(log_sum - sink_score)[..., None].to(out.dtype)
        out = out.to(query.dtype)
    return out, log_sum, entropy


def attend_rows(query, key, value, how, want_output=True, inside=None):
    """(output or None, parts): the parts are tensors on the device that `join_parts` takes.

    inside  [prompt, key, segment] float32, 1 where a key is in a segment: parts have "segment_rows"
            [prompt, head, query, segment], attention on the segments beside a learned sink
    """
    kernel = cuda_kernel(query, value, how)
    if kernel is not None:
        out, rows = kernel.rows_and_output(query, key, value, how.scale, how.window, how.softcap)
        parts = dict(zip(MEASURED_ROWS, rows, strict=True))
    else:
        parts = {"sink_score": sink_scores(query, key, how)}
        if inside is not None and by_flash(query, how) and how.sinks is None:
            # one call for all: which segment a key is in is a value like others
            segments = inside[:, None].expand(-1, key.shape[1], -1, -1)
            whole = segments if not want_output else torch.cat([value.float(), segments], dim=-1)
            joined, *rest = attend(query.float(), key.float(), whole, how)
            width = joined.shape[-1] - inside.shape[-1]
            out = joined[..., :width].to(query.dtype) if want_output else None
            parts["segment_rows"] = joined[..., width:]
        else:
            out, *rest = attend(query, key, value, how, want_output)
        parts |= dict(zip(("log_sum", "rest_entropy"), rest, strict=True))
    if inside is not None and "segment_rows" not in parts:
        parts["segment_rows"] = segment_output(query, key, inside, how)
    return out, parts


def join_parts(parts, visible):
    """The arrays of `join_sink` from the parts of `attend_rows`, as numpy arrays."""
    if "entropy" in parts:  # the CUDA kernel has joined them
        return {name: parts[name] for name in MEASURED_ROWS}
    return join_sink(parts["sink_score"], parts["log_sum"], parts["rest_entropy"], visible)


def segment_output(query, key, inside, how):
    """Attention of every row on the segments, beside a learned sink: [prompt, head, query, segment]
    float32.

    The layer's attention, with which segment a key is in (1 or 0) in the place of values.
    inside  [prompt, key, segment] float32
    """
    query, key, n_segments = query.float(), key.float(), inside.shape[-1]
    value = inside[:, None].expand(-1, key.shape[1], -1, -1)
    kernel = cuda_kernel(query, value, how)
    if kernel is not None:
        return kernel.rows_and_output(query, key, value, how.scale, how.window, how.softcap)[0]
    if query.device.type != "cpu" or how.softcap is not None:
        return chunked_output(query, key, value, how)
    more = max(query.shape[-1] - n_segments, 0)  # this kernel wants values as wide as keys
    value = torch.nn.functional.pad(value, (0, more)).contiguous()
    return plain_output(query, key, value, how)[..., :n_segments]


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
