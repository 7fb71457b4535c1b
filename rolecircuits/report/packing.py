"""The final query's attention of a run, packed small enough for one page.

    step = round(levels sqrt(attention)), one byte a key        attention = (step / levels)^2

What stands at one place of several prompts, counted from the start of the text fed or, behind the
prompt's own text, from there, is alike, above all in prompts of one frame. So the tokens of a row
are put in the order of places, and of frames inside a place (`column_order`), and each step is
written as its difference from the one before, modulo 256.

The square root spends the steps where attention is small, as an eye that compares shades does. An
attention of a comes back within sqrt(a) / levels + 1 / (4 levels^2): with 36 steps 0.028 near 1 and
0.003 near 0.01. The bytes are compressed (gzip) and written as base64.

All runs of a page share one budget. Every head is kept, with as many steps as fit into BUDGET
(LEVELS). Where that is too much even for LARGE, the mean over heads of every layer is kept and the
heads that matter the most (`order_heads`), as many as fit into LARGE.
"""

import base64
import gzip
from dataclasses import dataclass

import numpy as np

from rolecircuits.runs.arrays import Run

LEVELS = (255, 127, 63, 36)
BUDGET = 1_100_000  # bytes of base64, all runs of a page together
LARGE = 3_000_000  # the same where heads would have to go
SAMPLE = 24  # rows whose compressed size tells that of all
FINE = 4_094  # steps of numbers of 16 bits
MARGIN = 1.03  # by which a sample may mislead


@dataclass(frozen=True)
class Packed:
    """Packed attention [row, token], tokens in `column_order`, written as differences.

    levels   steps of the square root
    heads    [(layer, head)], a row each, after a row for the mean over heads of every layer; or
             None: a row for every head of every layer, and no means (the page takes them itself)
    shape    (rows, tokens)    text  base64 of the compressed bytes
    """

    levels: int
    heads: list | None
    shape: tuple
    text: str

    def plain(self):
        """What prompts.js reads."""
        return {"levels": self.levels, "heads": self.heads, "packed": self.text}


def steps_of(attention, levels):
    """Attention in [0, 1] as steps of its square root: [...] -> [...] uint8."""
    root = np.sqrt(np.clip(np.asarray(attention, dtype=np.float32), 0, 1))
    return np.rint(root * levels).astype(np.uint8)


def largest_error(attention, levels):
    """How far an unpacked attention may be from the stored one."""
    return np.sqrt(attention) / levels + 1 / (4 * levels**2)


def unpack(packed: Packed, run: Run):
    """The attention that the page has: [row, token] float, the tokens of one prompt after another.

    run  whose attention was packed
    """
    raw = np.frombuffer(gzip.decompress(base64.b64decode(packed.text)), dtype=np.uint8)
    steps = np.empty(packed.shape, dtype=np.uint8)
    order, starts = column_order(run)
    columns = np.split(raw.reshape(packed.shape), np.flatnonzero(starts)[1:], axis=1)
    sums = [np.cumsum(own, axis=1, dtype=np.uint8) for own in columns]
    steps[:, order] = np.concatenate(sums, axis=1)
    return (steps / packed.levels) ** 2


def frame_ranks(run: Run):
    """Places of the prompts where those of one frame and filler stand together: [prompt] int."""
    return np.argsort(np.lexsort((run.filler, run.frame)), kind="stable")


def column_order(run: Run):
    """(order, starts), both [token]: the tokens of all prompts by place, then by `frame_ranks`.

    order   positions among the tokens of one prompt after another
    starts  bool, where another place begins: differences are from 0 there
    """
    n = run.n_tokens.astype(int)
    prompt = np.repeat(np.arange(len(n)), n)
    index = np.arange(len(prompt)) - np.repeat(np.cumsum(n) - n, n)
    end = run.span[prompt, 1]
    place = np.where(index < end, index, n.max() + index - end)
    order = np.lexsort((frame_ranks(run)[prompt], place))
    return order, np.diff(place[order], prepend=-1) != 0


def differences(steps, order, starts):
    """Steps [row, token] in this order, each less the one before it, modulo 256."""
    ordered = steps[:, order]
    before = np.where(starts, 0, np.roll(ordered, 1, axis=1)).astype(np.uint8)
    return ordered - before


def pack_numbers(values, bits=16):
    """Numbers [...] as steps between the smallest and the largest; NaN is the highest number.

    bits     8 (254 steps) or 16 (4,094 steps: gzip makes the other four bits short)
    returns  {"shape", "low", "step", "bits", "packed"}: value = low + step n, within step / 2
    """
    values = np.asarray(values, dtype=np.float64)
    undefined, top = np.isnan(values), 2**bits - 1
    known = values[~undefined]
    low, high = (known.min(), known.max()) if known.size else (0.0, 0.0)
    step = (high - low) / min(top - 1, FINE)
    steps = np.full(values.shape, top, dtype=f"<u{bits // 8}")
    steps[~undefined] = np.rint((known - low) / step) if step else 0
    text = _text_of(steps)
    return {"shape": values.shape, "low": low, "step": step, "bits": bits, "packed": text}


def unpack_numbers(plain):
    """What the page gets from `pack_numbers`: [...] float, NaN where undefined."""
    raw = gzip.decompress(base64.b64decode(plain["packed"]))
    steps = np.frombuffer(raw, dtype=f"<u{plain['bits'] // 8}").reshape(plain["shape"])
    values = plain["low"] + plain["step"] * steps
    return np.where(steps == 2 ** plain["bits"] - 1, np.nan, values)


def pack_runs(runs, strengths, budget=BUDGET, large=LARGE):
    """{name: Packed} of the runs whose rows are stored, in `budget` characters or `large`.

    runs       {name: Run}
    strengths  {name: |g| of every head [layer, head], or None}
    """
    runs = {name: run for name, run in runs.items() if run.final_row is not None}
    sizes = {name: _estimate_sizes(run) for name, run in runs.items()}
    for levels in LEVELS:
        total = sum(size[levels] for size in sizes.values())
        if total <= (large if levels == LEVELS[-1] else budget):
            return {name: pack_all(run, levels) for name, run in runs.items()}
    packed = {}
    for name, run in runs.items():
        of_all = sizes[name][LEVELS[-1]]
        share = large * of_all / total
        means = _tokens_in_a_row(run, run.final_row.mean(axis=2, dtype=np.float32))
        left = share - len(_text_of(steps_of(means, LEVELS[-1])))
        n_heads = int(left / of_all * run.n_layers * run.n_heads)
        heads = sorted(order_heads(run, strengths.get(name))[: max(n_heads, 1)])
        rows = np.concatenate([means, _head_rows(run, *np.array(heads, dtype=int).T)])
        packed[name] = _pack(run, rows, heads, LEVELS[-1])
    return packed


def _estimate_sizes(run: Run):
    """{levels: characters that all heads of a run would take}, from some of its heads."""
    n_all = run.n_layers * run.n_heads
    chosen = np.unique(np.linspace(0, n_all - 1, SAMPLE).astype(int))
    rows = _head_rows(run, *np.unravel_index(chosen, (run.n_layers, run.n_heads)))
    scale = MARGIN * n_all / len(chosen)
    columns = column_order(run)
    return {n: len(_text_of(differences(steps_of(rows, n), *columns))) * scale for n in LEVELS}


def pack_all(run: Run, levels):
    """The Packed rows of every head."""
    layer, head = np.divmod(np.arange(run.n_layers * run.n_heads), run.n_heads)
    return _pack(run, _head_rows(run, layer, head), None, levels)


def _pack(run, rows, heads, levels):
    steps = differences(steps_of(rows, levels), *column_order(run))
    return Packed(levels, heads, rows.shape, _text_of(steps))


def _text_of(steps):
    """Whole numbers as base64 of their compressed bytes."""
    packed = gzip.compress(np.ascontiguousarray(steps).tobytes(), 6, mtime=0)
    return base64.b64encode(packed).decode("ascii")


def _head_rows(run, layer, head):
    """Rows of these heads: [head, token]."""
    return _tokens_in_a_row(run, run.final_row[:, layer, head])


def _tokens_in_a_row(run, rows):
    """[prompt, row, key] without the keys beyond a prompt's tokens: [row, token]."""
    real = np.arange(rows.shape[-1]) < run.n_tokens[:, None]
    return rows.transpose(1, 0, 2)[:, real]


def order_heads(run: Run, strength=None):
    """[(layer, head)] of all heads: the largest |g| and the most attention on the slot in turn.

    strength  |g| [layer, head], or None
    """
    orders = []
    if strength is not None:
        orders.append(np.argsort(-np.nan_to_num(strength), axis=None, kind="stable"))
    if run.has_slots:
        beyond = (run.slot_mass - run.slot_uniform[..., None]).mean(axis=0)
        orders.append(np.argsort(-beyond, axis=None, kind="stable"))
    if not orders:
        orders = [np.arange(run.n_layers * run.n_heads)]
    mixed = dict.fromkeys(np.stack(orders, axis=1).ravel().tolist())
    return [divmod(place, run.n_heads) for place in mixed]
