"""Attention output and exact row entropies in one CUDA kernel (Triton), without a pattern.

As in streaming.py, key 0 (the attention sink) is kept apart. For every query row the kernel walks
over the keys other than key 0 with the running softmax of FlashAttention (Dao et al. 2022,
arXiv:2205.14135, algorithm 1) and carries one more sum,

    t = sum_{j>0} e^(s_j - m) (s_j - m)       m the running maximum
                                              when m grows by g:  t <- e^-g (t - g l),  l <- e^-g l

so that at the end L' = m + ln l and H' = ln l - t / l. Products of queries and keys are accumulated
in float32, and so are l, t and the output, whatever dtype the model has: nothing that enters an
entropy is rounded to bfloat16 (a float32 model's dots are three TF32 products each, Triton's
"tf32x3"). Key 0 joins the output last, with the weights r = 1 / (1 + e^(s_0 - L')) and 1 - r.

`rest_and_output` launches it; there is no backward pass. With TRITON_INTERPRET=1 the kernel runs on
the CPU, which is how the tests hold it against blocks of scores in public operations.
"""

import torch
import triton
import triton.language as tl

SMALLEST_DOT = 16  # the least width that tl.dot takes
LARGEST_WIDTH = 256  # wider heads do not fit the shared memory beside their keys and values


@triton.jit
def _scores(query, keys, query_at, key_at, low, n_keys, scale, softcap, CAPPED: tl.constexpr):  # noqa: PLR0913  (a kernel takes tensors and numbers, no objects)
    """Float32 scores of a tile, -inf where a key is hidden: [ROWS, KEYS]."""
    scores = tl.dot(query, keys, input_precision="tf32x3") * scale
    if CAPPED:
        scores = softcap * (1.0 - 2.0 / (tl.exp(2.0 * scores / softcap) + 1.0))  # softcap * tanh
    seen = (
        (key_at[None, :] <= query_at[:, None])
        & (key_at[None, :] >= low[:, None])
        & (key_at[None, :] < n_keys)
    )
    return tl.where(seen, scores, float("-inf"))


@triton.jit
def _attention(  # noqa: PLR0913  (a kernel takes pointers, strides and numbers, no objects)
    query_ptr, key_ptr, value_ptr, out_ptr, log_sum_ptr, entropy_ptr,
    query_prompt, query_head, query_row, key_prompt, key_head, key_row,
    value_prompt, value_head, value_row,
    n_rows, n_heads, group, scale, softcap, window,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    PADDED: tl.constexpr, VALUE_PADDED: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """One block of rows of one head of one prompt; grid (row blocks, prompts * heads).

    window  keys that a row sees, itself included; n_rows where attention is full
    Strides are in elements, that of the last axis is 1.
    """
    block, prompt, head = tl.program_id(0), tl.program_id(1) // n_heads, tl.program_id(1) % n_heads
    prompt = prompt.to(tl.int64)
    query_ptr += prompt * query_prompt + head * query_head
    key_ptr += prompt * key_prompt + (head // group) * key_head
    value_ptr += prompt * value_prompt + (head // group) * value_head
    rows = block * ROWS + tl.arange(0, ROWS)
    width, value_width = tl.arange(0, PADDED), tl.arange(0, VALUE_PADDED)
    inside = (rows < n_rows)[:, None] & (width < WIDTH)[None, :]
    query = tl.load(query_ptr + rows[:, None] * query_row + width[None, :], mask=inside, other=0.0)

    low = tl.maximum(rows - window + 1, 1)  # key 0 is kept apart
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total, weighted = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, VALUE_PADDED], tl.float32)
    first = tl.maximum(block * ROWS - window + 1, 0) // KEYS * KEYS
    for start in range(first, tl.minimum((block + 1) * ROWS, n_rows), KEYS):
        at = start + tl.arange(0, KEYS)
        real = at < n_rows
        keys = tl.load(
            key_ptr + at[None, :] * key_row + width[:, None],
            mask=real[None, :] & (width < WIDTH)[:, None],
            other=0.0,
        )
        scores = _scores(query, keys, rows, at, low, n_rows, scale, softcap, CAPPED)
        higher = tl.maximum(best, tl.max(scores, 1))
        # rows that have seen no key yet stay at 0
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        growth = tl.where(best == float("-inf"), 0.0, safe - best)
        shrink = tl.exp(-growth)
        above = tl.where(scores == float("-inf"), 0.0, scores - safe[:, None])
        weights = tl.where(scores == float("-inf"), 0.0, tl.exp(above))
        weighted = shrink * (weighted - growth * total) + tl.sum(weights * above, 1)
        total = shrink * total + tl.sum(weights, 1)
        values = tl.load(
            value_ptr + at[:, None] * value_row + value_width[None, :],
            mask=real[:, None] & (value_width < VALUE_WIDTH)[None, :],
            other=0.0,
        )
        out = out * shrink[:, None] + tl.dot(
            weights.to(values.dtype), values, input_precision="tf32x3"
        )
        best = higher

    some = total > 0
    divisor = tl.where(some, total, 1.0)
    log_sum = tl.where(some, best + tl.log(divisor), float("-inf"))
    entropy = tl.where(some, tl.log(divisor) - weighted / divisor, 0.0)

    first_key = tl.load(key_ptr + width, mask=width < WIDTH, other=0.0).to(tl.float32)
    sink = tl.sum(query.to(tl.float32) * first_key[None, :], 1) * scale
    if CAPPED:
        sink = softcap * (1.0 - 2.0 / (tl.exp(2.0 * sink / softcap) + 1.0))
    # 1 / (1 + e^d) overflows nowhere: an infinite e^d gives 0, and without other keys d is -inf
    sink_mass = tl.where(rows < window, 1.0 / (1.0 + tl.exp(log_sum - sink)), 0.0)
    first_value = tl.load(value_ptr + value_width, mask=value_width < VALUE_WIDTH, other=0.0).to(
        tl.float32
    )
    out = (
        out / divisor[:, None] * (1.0 - sink_mass)[:, None]
        + sink_mass[:, None] * first_value[None, :]
    )

    line = tl.program_id(1).to(tl.int64) * n_rows
    written = rows < n_rows
    tl.store(log_sum_ptr + line + rows, log_sum, mask=written)
    tl.store(entropy_ptr + line + rows, entropy, mask=written)
    tl.store(
        out_ptr + (line + rows)[:, None] * VALUE_WIDTH + value_width[None, :],
        out.to(out_ptr.dtype.element_ty),
        mask=written[:, None] & (value_width < VALUE_WIDTH)[None, :],
    )


def fits(query, value):
    """Whether the kernel takes heads of these widths, [prompt, head, query, d]."""
    return max(query.shape[-1], value.shape[-1]) <= LARGEST_WIDTH


def rest_and_output(query, key, value, scale, window=None, softcap=None):
    """(output [prompt, head, query, d] in the model's dtype; float32 L', H' of rows 1 and later).

    query [prompt, head, query, d]   key, value [prompt, kv head, key, d], as many keys as queries
    """
    query, key, value = (
        part if part.stride(-1) == 1 else part.contiguous() for part in (query, key, value)
    )
    n_prompts, n_heads, n_rows, width = query.shape
    value_width = value.shape[-1]
    out = query.new_empty((n_prompts, n_heads, n_rows, value_width))
    log_sum, entropy = (
        torch.empty(query.shape[:3], dtype=torch.float32, device=query.device) for _ in range(2)
    )
    tile, warps = _tile(max(width, value_width), query.element_size())
    with torch.cuda.device_of(query):  # a model may be spread over several devices
        _attention[(triton.cdiv(n_rows, tile), n_prompts * n_heads)](
            query, key, value, out, log_sum, entropy,
            *query.stride()[:3], *key.stride()[:3], *value.stride()[:3],
            n_rows, n_heads, n_heads // key.shape[1],
            float(scale), float(softcap or 0.0), min(window or n_rows, n_rows),
            WIDTH=width, VALUE_WIDTH=value_width,
            PADDED=_padded(width), VALUE_PADDED=_padded(value_width),
            ROWS=tile, KEYS=tile, CAPPED=softcap is not None, num_warps=warps, num_stages=2,
        )  # fmt: skip
    return out, log_sum[..., 1:], entropy[..., 1:]


def _tile(width, item_size):
    """(rows and keys of a tile, warps): what compiles for compute capability 8.0 and 9.0 without
    spilling the accumulators.
    """
    if item_size == 2 and width <= 128:
        return 64, 4
    return 32, 8 if item_size == 4 and width > 64 else 4


def _padded(width):
    return max(SMALLEST_DOT, triton.next_power_of_2(width))
