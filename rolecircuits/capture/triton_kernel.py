"""Attention output, exact row entropies and the sink's mass in one CUDA kernel (Triton), without a
pattern.

As in streaming.py, key 0 (the attention sink) is kept apart. For every query row the kernel walks
over the keys other than key 0 with the running softmax of FlashAttention (Dao et al. 2022,
arXiv:2205.14135, algorithm 1) and carries one more sum,

    t = sum_{j>0} e^(s_j - m) (s_j - m)       m the running maximum
                                              when m grows by g:  t <- e^-g (t - g l),  l <- e^-g l

so that at the end L' = m + ln l and H' = ln l - t / l; key 0 joins last, by the formulas of
streaming.py. Inside, scores are in units of ln 2: a power of two is what the card computes. Of the
tiles between the first and the diagonal every key is seen, so they take no mask.

Products of queries and keys are accumulated in float32, and so are l, t and the output, whatever
dtype the model has: nothing that enters an entropy is rounded to bfloat16 (a float32 model's dots
are three TF32 products each, Triton's "tf32x3").

`rows_and_output` launches it; there is no backward pass. With TRITON_INTERPRET=1 the kernel runs on
the CPU, which is how the tests hold it against blocks of scores in public operations.
"""

import math
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

SMALLEST_DOT = 16  # the least width that tl.dot takes
LARGEST_WIDTH = 256  # wider heads do not fit the shared memory beside their keys and values
LOG2_E = math.log2(math.e)
HOPPER = 9  # compute capability whose tensor cores want large tiles,
LARGE_SHARED = 160 * 1024  # where a block may have so many bytes of shared memory
# ln 2, a hidden score, and how far below 0 rounding may put an entropy
LN_2, HIDDEN, SLACK = (tl.constexpr(value) for value in (math.log(2), -1e30, 1e-3))


class Tile(NamedTuple):
    """Query rows and keys of a tile, warps of a block, and how many tiles are loaded ahead."""

    rows: int
    keys: int
    warps: int
    stages: int


@triton.jit
def _walk(  # noqa: PLR0913  (a kernel takes pointers, strides and numbers, no objects)
    query, best, total, weighted, out, key_ptr, value_ptr, key_row, value_row,
    rows, low, start, stop, n_rows, scale, softcap,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    PADDED: tl.constexpr, VALUE_PADDED: tl.constexpr,
    KEYS: tl.constexpr, CAPPED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The running sums after the tiles of keys from `start` to `stop`.

    MASKED  some row does not see some key of them; a row that has seen none yet sums up zeros of
            exponent HIDDEN, which the first key that it sees multiplies by 0
    """
    width, value_width = tl.arange(0, PADDED), tl.arange(0, VALUE_PADDED)
    column = tl.arange(0, KEYS)
    for first in tl.range(start, stop, KEYS):
        at = first + column
        key_at = key_ptr + tl.cast(first, tl.int64) * key_row
        value_at = value_ptr + tl.cast(first, tl.int64) * value_row
        key_at += column[None, :] * key_row + width[:, None]
        value_at += column[:, None] * value_row + value_width[None, :]
        real = at < n_rows
        if MASKED:
            keys = tl.load(key_at, mask=real[None, :] & (width < WIDTH)[:, None], other=0.0)
        elif PADDED > WIDTH:
            keys = tl.load(key_at, mask=(width < WIDTH)[:, None], other=0.0)
        else:
            keys = tl.load(key_at)
        scores = tl.dot(query, keys, input_precision="tf32x3")
        if CAPPED:
            scores = softcap * (1.0 - 2.0 / (tl.exp2(scores * scale) + 1.0))  # softcap * tanh
        elif MASKED:
            scores = scores * scale
        if MASKED:
            seen = (at[None, :] <= rows[:, None]) & (at[None, :] >= low[:, None])
            scores = tl.where(seen & real[None, :], scores, HIDDEN)
        if CAPPED or MASKED:
            higher = tl.maximum(best, tl.max(scores, 1))
            above = scores - higher[:, None]
        else:
            higher = tl.maximum(best, tl.max(scores, 1) * scale)
            above = scores * scale - higher[:, None]
        weights = tl.exp2(above)
        growth = higher - best
        shrink = tl.exp2(-growth)
        weighted = shrink * (weighted - growth * total) + tl.sum(weights * above, 1)
        total = shrink * total + tl.sum(weights, 1)
        best = higher
        if MASKED:
            inside = real[:, None] & (value_width < VALUE_WIDTH)[None, :]
            values = tl.load(value_at, mask=inside, other=0.0)
        elif VALUE_PADDED > VALUE_WIDTH:
            values = tl.load(value_at, mask=(value_width < VALUE_WIDTH)[None, :], other=0.0)
        else:
            values = tl.load(value_at)
        out = out * shrink[:, None]
        out = tl.dot(weights.to(values.dtype), values, out, input_precision="tf32x3")
    return best, total, weighted, out


# compiled once for texts of any length
@triton.jit(do_not_specialize=["n_rows", "n_heads", "group", "window"])
def _attention(  # noqa: PLR0913  (a kernel takes pointers, strides and numbers, no objects)
    query_ptr, key_ptr, value_ptr, out_ptr, entropy_ptr, sinkfree_ptr, sink_ptr,
    query_prompt, query_head, query_row, key_prompt, key_head, key_row,
    value_prompt, value_head, value_row, out_prompt, out_head, out_row,
    n_rows, n_heads, group, scale, softcap, window,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    PADDED: tl.constexpr, VALUE_PADDED: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """One block of rows of one head of one prompt; grid (row blocks, prompts * heads).

    scale, softcap  such that scores are in units of ln 2, as `_factors` gives them
    window          keys that a row sees, itself included; n_rows where attention is full
    Strides are in elements, that of the last axis is 1.
    """
    block = tl.num_programs(0) - 1 - tl.program_id(0)  # the blocks with the most keys first
    prompt = tl.cast(tl.program_id(1) // n_heads, tl.int64)
    head = tl.cast(tl.program_id(1) % n_heads, tl.int64)
    query_ptr += prompt * query_prompt + head * query_head
    key_ptr += prompt * key_prompt + (head // group) * key_head
    value_ptr += prompt * value_prompt + (head // group) * value_head
    out_ptr += prompt * out_prompt + head * out_head
    begin = block * ROWS
    rows = begin + tl.arange(0, ROWS)
    row = tl.cast(rows, tl.int64)[:, None]
    width, value_width = tl.arange(0, PADDED), tl.arange(0, VALUE_PADDED)
    inside = (rows < n_rows)[:, None] & (width < WIDTH)[None, :]
    query = tl.load(query_ptr + row * query_row + width[None, :], mask=inside, other=0.0)

    low = tl.maximum(rows - window + 1, 1)  # key 0 is kept apart
    end = tl.minimum(begin + ROWS, n_rows)
    start = tl.maximum(begin - window + 1, 0) // KEYS * KEYS
    diagonal = begin // KEYS * KEYS
    # every row of the block sees all keys of the tiles from `edge` to `diagonal`
    edge = tl.cdiv(tl.maximum(begin + ROWS - window, 1), KEYS) * KEYS
    edge = tl.minimum(edge, diagonal)
    best = tl.full([ROWS], HIDDEN, tl.float32)
    total, weighted = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, VALUE_PADDED], tl.float32)
    best, total, weighted, out = _walk(
        query, best, total, weighted, out, key_ptr, value_ptr, key_row, value_row,
        rows, low, start, edge, n_rows, scale, softcap,
        WIDTH, VALUE_WIDTH, PADDED, VALUE_PADDED, KEYS, CAPPED, True,
    )  # fmt: skip
    best, total, weighted, out = _walk(
        query, best, total, weighted, out, key_ptr, value_ptr, key_row, value_row,
        rows, low, edge, diagonal, n_rows, scale, softcap,
        WIDTH, VALUE_WIDTH, PADDED, VALUE_PADDED, KEYS, CAPPED, False,
    )  # fmt: skip
    best, total, weighted, out = _walk(
        query, best, total, weighted, out, key_ptr, value_ptr, key_row, value_row,
        rows, low, tl.maximum(diagonal, start), end, n_rows, scale, softcap,
        WIDTH, VALUE_WIDTH, PADDED, VALUE_PADDED, KEYS, CAPPED, True,
    )  # fmt: skip

    first_key = tl.load(key_ptr + width, mask=width < WIDTH, other=0.0).to(tl.float32)
    first_score = tl.sum(query.to(tl.float32) * first_key[None, :], 1) * scale
    if CAPPED:
        first_score = softcap * (1.0 - 2.0 / (tl.exp2(first_score) + 1.0))
    log_total = tl.log2(total)
    rest = LN_2 * (log_total - weighted / total)
    rest = tl.where((rest < 0) & (rest > -SLACK), 0.0, rest)
    odds = LN_2 * (best + log_total - first_score)
    small = tl.exp(-tl.abs(odds))
    sink = tl.where(odds > 0, small, 1.0) / (1.0 + small)
    left = tl.where(odds > 0, 1.0, small) / (1.0 + small)
    soft = tl.log(1.0 + small)
    # -ln left and -ln sink; a mass of 0 is multiplied by a finite number
    no_rest = tl.where(odds > 0, soft, soft - odds)
    no_sink = tl.where(odds > 0, soft + odds, soft)
    whole = left * (rest + no_rest) + sink * no_sink
    # row 0 sees nothing but key 0, and a window moves past it
    alone, gone = rows == 0, rows >= window
    whole = tl.where(alone, 0.0, tl.where(gone, rest, whole))
    sink = tl.where(alone, 1.0, tl.where(gone, 0.0, sink))
    left = tl.where(alone, 0.0, tl.where(gone, 1.0, left))
    n_rest = tl.minimum(rows + 1, window) - tl.where(gone, 0, 1)
    sinkfree = tl.where((n_rest >= 2) & ((left > 0) | (left != left)), rest, float("nan"))

    first_value = tl.load(value_ptr + value_width, mask=value_width < VALUE_WIDTH, other=0.0)
    out = out * (left / tl.where(alone, 1.0, total))[:, None]
    out += sink[:, None] * first_value.to(tl.float32)[None, :]
    line = tl.cast(tl.program_id(1), tl.int64) * n_rows + rows
    written = rows < n_rows
    tl.store(entropy_ptr + line, whole, mask=written)
    tl.store(sinkfree_ptr + line, sinkfree, mask=written)
    tl.store(sink_ptr + line, sink, mask=written)
    tl.store(
        out_ptr + row * out_row + value_width[None, :],
        out.to(out_ptr.dtype.element_ty),
        mask=written[:, None] & (value_width < VALUE_WIDTH)[None, :],
    )


def fits(query, value):
    """Whether the kernel takes heads of these widths, [prompt, head, query, d]."""
    return max(query.shape[-1], value.shape[-1]) <= LARGEST_WIDTH


def rows_and_output(query, key, value, scale, window=None, softcap=None):
    """(output [prompt, head, query, d] in the model's dtype, rows [3, prompt, head, query]).

    query [prompt, head, query, d]   key, value [prompt, kv head, key, d], as many keys as queries
    rows  float32: entropy, sink-free entropy (NaN where it is undefined) and mass on key 0, as
          streaming.join_sink gives them
    """
    query, key, value = (
        part if part.stride(-1) == 1 else part.contiguous() for part in (query, key, value)
    )
    n_prompts, n_heads, n_rows, width = query.shape
    value_width = value.shape[-1]
    # laid out as the output projection takes it: [prompt, query, head, d]
    out = query.new_empty((n_prompts, n_rows, n_heads, value_width)).transpose(1, 2)
    rows = torch.empty((3, *query.shape[:3]), dtype=torch.float32, device=query.device)
    tile = choose_tile(max(width, value_width), query, n_rows)
    scale, softcap = _factors(scale, softcap)
    with torch.cuda.device_of(query):  # a model may be spread over several devices
        _attention[(triton.cdiv(n_rows, tile.rows), n_prompts * n_heads)](
            query, key, value, out, *rows,
            *query.stride()[:3], *key.stride()[:3], *value.stride()[:3], *out.stride()[:3],
            n_rows, n_heads, n_heads // key.shape[1],
            scale, softcap, min(window or n_rows, n_rows),
            WIDTH=width, VALUE_WIDTH=value_width,
            PADDED=_padded(width), VALUE_PADDED=_padded(value_width),
            ROWS=tile.rows, KEYS=tile.keys, CAPPED=softcap > 0,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return out, rows


def _factors(scale, softcap):
    """(scale, softcap) for scores in units of ln 2; with a soft cap c the kernel computes

    c / ln 2 * tanh(scale q k / c) = softcap * (1 - 2 / (2^(scale q k) + 1))
    """
    if softcap is None:
        return float(scale) * LOG2_E, 0.0
    return 2 * LOG2_E * float(scale) / float(softcap), float(softcap) * LOG2_E


def choose_tile(width, query, n_rows):
    """The Tile for queries of a width."""
    large = query.device.type == "cuda" and takes_large_tiles(query.device)
    return tile_of(width, query.element_size(), large, n_rows)


@cache
def takes_large_tiles(device):
    """True for a card with Hopper's tensor cores and shared memory."""
    card = torch.cuda.get_device_properties(device)
    return card.major >= HOPPER and card.shared_memory_per_block_optin >= LARGE_SHARED


def tile_of(width, item_size, large, n_rows):
    """The Tile for heads of a width and texts of so many tokens, large where the card takes it.

    Of the tiles tried on an H100 (bfloat16, widths 128 and 256) these were the fastest.
    """
    large = large and n_rows > 128
    if item_size == 2 and width <= 128:
        if n_rows <= 64:
            return Tile(16, 16, 1, 2)
        return Tile(128, 128, 8, 2) if large else Tile(64, 64, 4, 2)
    if item_size == 2 and large:
        return Tile(128, 64, 8, 2)
    return Tile(32, 32, 8 if item_size == 4 and width > 64 else 4, 2)


def _padded(width):
    return max(SMALLEST_DOT, triton.next_power_of_2(width))
