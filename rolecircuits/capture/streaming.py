"""Exact entropy of every attention row in memory that grows with the tokens, not their square.

The pattern is never kept. The keys other than key 0 (the attention sink) give the log-sum-exp L' of
their scores s, the mean E' of the scores under their softmax p', and the mean o' of their values:

    H' = L' - E'[s]                                   the sink-free entropy
    o  = r o' + m v_0                                 the layer's output
    d  = L' - s_0       sink mass m = 1 / (1 + e^d)   rest r = 1 / (1 + e^-d)
    H  = r H' - r ln r - m ln m                       grouping of the entropy, exact

A head that puts all but r = 1e-6 on key 0 still gets an accurate sink-free entropy, because nothing
is ever subtracted from 1: the usual closed form (H + m ln m) / r + ln r divides the rounding of H
by r. A row whose window has moved past key 0 has m = 0 and H = H'; a row with r = 0 in float32 has
no sink-free entropy (NaN), as in stats.entropy.sinkfree_entropy.

Ways to L' and H', the same numbers: on the CPU blocks of rows and tiles of keys that stay in its
cache, which give o' too (`block_means`); on CUDA a Triton kernel that gives the output and H as
well (triton_kernel.py); elsewhere the layer's own kernel and blocks of scores of all heads
(`chunked_rest`). Scores are float32 in all, whatever dtype the model has. Right padding: a real row
never sees padding, so no mask is needed beside the causal one and the layer's window or chunk,
which masks.py takes from the model.

Where heads have learned sinks, the sink takes the place of key 0: L' and H' are over all keys,
s_0 is the sink's score, and the layer's output over the keys is multiplied by r.

Axes: prompt, head, query, key; head counts in `key` may be smaller (grouped queries).
"""

import math
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from rolecircuits.capture.masks import sink_column
from rolecircuits.capture.rows import join_sink, plain_scores, rest_of_scores

BLOCK = 256  # query rows per block where scores are built: [prompt, head, BLOCK, key] float32
TILE_ROWS = 384  # on the CPU: rows of a tile of scores, of all heads that share keys
TILE_KEYS = 1024  # and its keys
UNSEEN = -1e30  # a score that no probability is left of; 0 of it is 0, unlike 0 of infinity
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

    def cap_(self, scores):
        """The same in place."""
        if self.softcap is not None:
            scores.div_(self.softcap).tanh_().mul_(self.softcap)

    @property
    def first(self):
        """The first key among the rest: 1, as key 0 is kept apart, or 0 beside a learned sink."""
        return 1 if self.sinks is None else 0

    def sees_all(self, n_query):
        """True where rows of so many tokens see all keys before them."""
        return n_query <= min(self.window or n_query, self.chunk or n_query)

    def low(self, row):
        """The first key that a row sees."""
        low = 0 if self.chunk is None else row // self.chunk * self.chunk
        return low if self.window is None else max(low, row - self.window + 1)

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


def plain_output(query, key, value, how):
    """The layer's attention output [prompt, head, query, d] in the model's dtype."""
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


def block_means(query, key, value, how):
    """(L', H', o') of rows and keys from `how.first` on, on the CPU: [prompt, head, query, ...].

    value  [prompt, head, key, unit], None where no output is wanted: o' is None
    """
    n_prompts, n_heads, n_query, _ = query.shape
    first, groups = how.first, n_prompts * key.shape[1]
    value = key[..., :0] if value is None else value
    query = (query.float() * how.scale).reshape(groups, -1, n_query, query.shape[-1])
    key, value = (part.float().flatten(0, 1).contiguous() for part in (key, value))
    alike, n_rest = query.shape[1], n_query - first  # heads that share keys
    means = [query.new_empty((groups, alike, n_rest)) for _ in range(2)]
    means.append(query.new_empty((groups, alike, n_rest, value.shape[-1])))
    n_rows, n_keys = min(n_query, max(1, TILE_ROWS // alike)), min(n_query, TILE_KEYS)
    together = min(groups, max(1, TILE_ROWS * TILE_KEYS // (alike * n_rows * n_keys)))

    def work(tasks):
        kept = torch.empty((2, together * alike * n_rows * n_keys), dtype=torch.float32)
        for some, rows, (low, high) in tasks:
            block = query[some, :, slice(*rows)].flatten(1, 2)
            tiles = []
            for start in range(low, high, n_keys):
                keys = slice(start, min(start + n_keys, high))
                place = rows, (keys.start, keys.stop)
                tile = key[some, keys], value[some, keys]
                tiles.append(tile_means(block, *tile, place, how, kept))
            for whole, part in zip(means, join_tiles(tiles), strict=True):
                place = whole[some, :, rows[0] - first : rows[1] - first]
                place.copy_(part.view(place.shape))

    starts = range(0, groups, together)
    blocks = sorted(how.blocks(n_query, n_rows, first), key=lambda block: block[1][0] - block[1][1])
    run_in_threads(work, [(slice(a, a + together), *block) for block in blocks for a in starts])
    log_sum, entropy, output = (part.view(n_prompts, n_heads, *part.shape[2:]) for part in means)
    return log_sum, entropy, output if output.shape[-1] else None


def run_in_threads(work, tasks):
    """Call work(tasks) in as many threads as torch has here, each with one of its own.

    Every thread takes its next task from what is left of all. Operations as small as those of a
    tile take longer when torch's threads share each one of them and wait for one another. Not to be
    called from two threads at once: the number of torch's threads belongs to the process.
    """
    n_threads, left = torch.get_num_threads(), iter(tasks)

    def work_unrecorded():
        try:
            with torch.inference_mode():  # a thread begins without the mode of its maker
                work(left)
        except BaseException:
            for _ in left:  # the others end with the task that they are at
                pass
            raise

    try:
        torch.set_num_threads(1)  # here, and in threads that begin now
        with ThreadPoolExecutor(n_threads) as pool:
            others = [pool.submit(work_unrecorded) for _ in range(min(n_threads, len(tasks)) - 1)]
            work_unrecorded()
            for other in others:
                other.result()
    finally:
        torch.set_num_threads(n_threads)


def tile_means(query, key, value, place, how, kept):
    """(L', H', o') of a block of rows over one tile of keys: [group, head * query, ...].

    query  [group, head * query, d], scaled    key, value  [group, key, ...]
    place  ((row start, stop), (key start, stop))    kept  [2, scores] float32, overwritten
    L' is the largest score less the logarithm of its probability, H' = L' - E'[s] with E' from the
    same probabilities: one softmax for all three.
    """
    (row, row_stop), (low, high) = place
    shape = (*query.shape[:2], high - low)
    scores, weights = (part[: math.prod(shape)].view(shape) for part in kept)
    torch.bmm(query, key.transpose(1, 2), out=scores)
    how.cap_(scores)
    by_row = scores.view(len(query), -1, row_stop - row, high - low)
    # keys that not all of the rows see: before the last row's first, behind the first row
    for start, stop in ((low, min(high, how.low(row_stop - 1))), (max(low, row + 1), high)):
        if start < stop:
            hidden = ~how.seen((row, row_stop), (start, stop), scores.device)
            by_row[..., start - low : stop - low].masked_fill_(hidden, UNSEEN)
    best = scores.amax(dim=-1)
    torch.softmax(scores.sub_(best[..., None]), dim=-1, out=weights)
    output = weights @ value
    log_sum = weights.amax(dim=-1).log_().neg_()
    entropy = log_sum - scores.mul_(weights).sum(dim=-1)
    return log_sum.add_(best), entropy, output


def join_tiles(tiles):
    """(L', H', o') over all keys from those of tiles: grouping of the entropy.

    Of the probability r_t = exp(L_t - L) is on tile t: H = sum r_t (H_t - ln r_t).
    """
    if len(tiles) == 1:
        return tiles[0]
    log_sums, entropies, outputs = (torch.stack(parts) for parts in zip(*tiles, strict=True))
    log_sum = torch.logsumexp(log_sums, dim=0)
    less = log_sum - log_sums
    share = torch.exp(-less)
    output = outputs.mul_(share[..., None]).sum(dim=0)
    return log_sum, entropies.add_(less).mul_(share).sum(dim=0), output


def join_output(output, log_sum, value, sink_score, how):
    """What all keys give from what those other than key 0 give: [prompt, head, query, unit].

    output, log_sum  o' and L' of `block_means`    sink_score  [prompt, head, query]
    """
    n_heads, first = sink_score.shape[1], value[:, :, :1].float()
    first = first.repeat_interleave(n_heads // value.shape[1], dim=1)
    joined = torch.empty((*sink_score.shape, value.shape[-1]), dtype=torch.float32)
    joined[:, :, :1] = first
    on_sink = torch.sigmoid(sink_score[..., 1:] - log_sum)
    for size in (how.window, how.chunk):
        if size is not None:
            on_sink[..., size - 1 :] = 0  # the window or chunk has moved past key 0
    torch.lerp(output, first, on_sink[..., None], out=joined[:, :, 1:])
    return joined


def block_scores(query, key, rows, keys, how):
    """Scores of a block of rows in float32, -inf for unseen keys: [prompt, head, query, key]."""
    scores = plain_scores(query[:, :, slice(*rows)], key[:, :, slice(*keys)], how.scale)
    scores = how.cap(scores)
    return scores.masked_fill_(~how.seen(rows, keys, query.device), float("-inf"))


def chunked_rest(query, key, how):
    """(L', H') as `block_means`, from blocks of scores of all heads."""
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
    L', H'  [prompt, head, query - 1] float32: rows from 1 on, all rows where heads have sinks
    """
    value, sink_score = value if want_output else None, sink_scores(query, key, how)
    if query.device.type == "cpu":
        log_sum, entropy, out = block_means(query, key, value, how)
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
        if inside is not None and query.device.type == "cpu" and how.sinks is None:
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
    query, key = query.float(), key.float()
    value = inside[:, None].expand(-1, key.shape[1], -1, -1)
    kernel = cuda_kernel(query, value, how)
    if kernel is not None:
        return kernel.rows_and_output(query, key, value, how.scale, how.window, how.softcap)[0]
    if query.device.type == "cpu" and how.sinks is not None:
        return block_means(query, key, value, how)[2]
    return chunked_output(query, key, value, how)


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
