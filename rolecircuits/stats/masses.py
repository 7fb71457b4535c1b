"""What tokens attend to: parts of the text, the slot, and segments of the template.

    mass     = sum of a query's attention over the keys of a part
    uniform  = keys of the part that the query sees / keys that it sees

Of prompts the final query's masses are kept, of conversations the means over each turn's queries.

Axes everywhere, in this order: prompt, layer, head, query, key.
"""

from typing import NamedTuple

import numpy as np

from rolecircuits.stats.entropy import has_sink_key

EDGE_TOKENS = 3
# every key fed belongs to one segment; key 0 is the sink, whatever token it is
SEGMENTS = ("sink", "system_text", "template", "user_text", "assistant_text", "assistant_header")
NOWHERE = -1


class Places(NamedTuple):
    """Where things stand among the tokens of every prompt.

    span     [prompt, 2]    first and one-past-last token of the prompt's own text
    slot     [prompt, 2]    the same of the tokens that differ between the persons of a crossed set;
                            -1 where a set has none
    segment  [prompt, key]  position in SEGMENTS of the key's segment, -1 beyond the prompt
    turns    [prompt, turn, 2]  first and one-past-last token of every turn, -1 beyond the last one
    Without slot and segment (None) only the masses of the text's ends are computed, without turns
    none of turns.
    """

    span: np.ndarray
    slot: np.ndarray | None = None
    segment: np.ndarray | None = None
    turns: np.ndarray | None = None

    def take(self, rows):
        """The same for the prompts at these positions."""
        return Places(*(None if part is None else part[rows] for part in self))


def final_query_masses(final_row, places):
    """What the last token attends to.

    final_row  [prompt, head, key]   attention of every prompt's final query, 0 beyond its tokens
    places     Places of the same prompts; the BOS is in no span
    returns    first_mass, last_mass [prompt, head]   on the first / last three tokens of the text
               edge_mass [prompt, head, 2]            on the first / last k, which never overlap:
               edge_tokens [prompt] int               k = min(3, length // 2)
               slot_mass [prompt, head]               on the slot, NaN without one
               segment_mass [prompt, head, segment]   on every segment; they sum to 1
               final_row [prompt, head, key] float16  the row itself, rounded last
    """
    return masses_beside_sink(final_row, places, learned_sink=False)


def counted_keys(places, n_keys):
    """The keys that each mass sums over: [prompt, key, sum] bool, in the order of `named_masses`:
    first and last three, the two edges, the slot, the segments.
    """
    key = np.arange(n_keys)
    start, stop = places.span[:, :1], places.span[:, 1:]
    edge = edge_tokens(places)[:, None]
    inside = (key >= start) & (key < stop)
    three = inside & (key < start + EDGE_TOKENS), inside & (key >= stop - EDGE_TOKENS)
    edges = inside & (key < start + edge), inside & (key >= stop - edge)
    counted = np.stack([*three, *edges], axis=-1)
    if places.segment is None:
        return counted
    slot, segments = _slot_keys(places, n_keys), segment_keys(places.segment, n_keys)
    return np.concatenate([counted, slot[..., None], segments], axis=-1)


def edge_tokens(places):
    """Tokens of the two edges of each text, which never overlap: [prompt] int64."""
    start, stop = places.span.T
    return np.minimum(EDGE_TOKENS, (stop - start) // 2).astype(np.int64)


def named_masses(sums, places, final_row, on_sink=None):
    """The masses of `final_query_masses` from sums [prompt, head, sum] of the row over
    `counted_keys`.

    on_sink  [prompt, head] what a learned sink takes: it is counted in the segment "sink", beside
             key 0, so that segments sum to 1
    """
    masses = {"first_mass": sums[..., 0], "last_mass": sums[..., 1], "edge_mass": sums[..., 2:4]}
    masses["edge_tokens"] = edge_tokens(places)
    if places.segment is None:
        return masses
    masses["slot_mass"] = np.where(places.slot[:, :1] >= 0, sums[..., 4], np.nan)
    masses["segment_mass"] = sums[..., 5:]
    if on_sink is not None:
        masses["segment_mass"][..., 0] += on_sink
    return masses | {"final_row": final_row.astype(np.float16)}


def masses_beside_sink(final_row, places, learned_sink):
    """`final_query_masses` of rows whose first key is a learned sink, or that have none."""
    on_sink = final_row[..., 0] if learned_sink else None
    final_row = final_row[..., 1:] if learned_sink else final_row
    sums = final_row @ counted_keys(places, final_row.shape[-1]).astype(final_row.dtype)
    return named_masses(sums, places, final_row, on_sink)


def uniform_masses(places, n_tokens, visible):
    """The same masses for a final query that attends to all keys it sees alike.

    n_tokens  [prompt]    visible  [layer, query] keys that a row sees
    returns   slot_uniform [prompt, layer], NaN without a slot; segment_uniform [prompt, layer,
              segment]
    """
    n_keys, visible = places.segment.shape[1], np.asarray(visible)
    uniform = uniform_rows(n_tokens, visible, n_keys)
    on_slot = np.einsum("plk,pk->pl", uniform, _slot_keys(places, n_keys).astype(float))
    by_segment = np.einsum(
        "plk,pks->pls", uniform, segment_keys(places.segment, n_keys).astype(float)
    )
    by_segment[..., 0] += learned_sink_share(n_tokens, visible)
    return {
        "slot_uniform": np.where(places.slot[:, :1] >= 0, on_slot, np.nan),
        "segment_uniform": by_segment,
    }


def uniform_rows(n_tokens, visible, n_keys):
    """Uniform attention of the final query: [prompt, layer, key], 0 on keys that it does not see.

    n_tokens  [prompt]    visible  [layer, query] keys that a row sees
    """
    last, visible = np.asarray(n_tokens)[:, None] - 1, np.asarray(visible)
    n_seen = visible[:, last[:, 0]].T[..., None]  # [prompt, layer, 1]
    n_tokens_seen, key = n_seen - has_sink_key(visible), np.arange(n_keys)
    seen = (key <= last[..., None]) & (key > last[..., None] - n_tokens_seen)
    return seen / n_seen


def learned_sink_share(n_tokens, visible):
    """What it puts on the learned sink that heads have beside their tokens: [prompt, layer]."""
    visible = np.asarray(visible)
    return (has_sink_key(visible) / visible[:, np.asarray(n_tokens) - 1]).T


def end_keys(span, k, n_keys):
    """Which keys are the first and which the last k of a text: [2, prompt, key] bool.

    span  [prompt, 2]    k  a number, or one a prompt
    """
    key, (start, stop) = np.arange(n_keys), span.T[..., None]
    inside, k = (key >= start) & (key < stop), np.broadcast_to(k, len(span))[:, None]
    return np.stack([inside & (key < start + k), inside & (key >= stop - k)])


def _slot_keys(places, n_keys):
    """Which keys are in the slot: [prompt, key] bool."""
    key = np.arange(n_keys)
    return (key >= places.slot[:, :1]) & (key < places.slot[:, 1:])


def segment_keys(segment, n_keys):
    """Which keys are in which segment: [..., key, segment] bool of codes [..., key]."""
    return segment[..., :n_keys, None] == np.arange(len(SEGMENTS))


def segment_rows(pattern, segment):
    """Attention of every row on the segments: [prompt, head, query, segment].

    pattern  [prompt, head, query, key], a learned sink ahead of the keys counts as "sink"
    segment  [prompt, key]
    """
    n_keys = pattern.shape[2]
    keys = segment_keys(segment, n_keys).astype(pattern.dtype)
    rows = np.einsum("phqk,pks->phqs", pattern[..., -n_keys:], keys)
    if pattern.shape[3] > n_keys:
        rows[..., 0] += pattern[..., 0]
    return rows


def uniform_segment_rows(segment, visible):
    """What a query that attends to all keys it sees alike has on each segment, of one text.

    segment  [key]    visible  [layer, query] keys that a row sees, the last ones up to its own
    returns  [layer, query, segment]
    """
    visible = np.asarray(visible)
    sinks, after = has_sink_key(visible), np.arange(1, visible.shape[-1] + 1)
    keys = segment_keys(np.asarray(segment), len(after))
    before = np.concatenate([np.zeros((1, len(SEGMENTS)), int), keys.cumsum(axis=0)])
    seen = before[after] - before[after - (visible - sinks)]  # [layer, query, segment]
    seen[..., 0] += sinks
    return seen / visible[..., None]


def turn_means(rows, turns):
    """Means over the rows of every turn: [..., turn, segment] of rows [..., query, segment].

    turns  [turn, 2]; NaN for those that are not there (-1)
    """
    means = np.full((*rows.shape[:-2], len(turns), rows.shape[-1]), np.nan, dtype=np.float32)
    for turn, (start, stop) in enumerate(turns):
        if stop > start >= 0:
            means[..., turn, :] = rows[..., start:stop, :].mean(axis=-2, dtype=np.float64)
    return means


def turn_masses(rows, turns):
    """`turn_means` of the prompts of a batch: [prompt, head, turn, segment].

    rows  [prompt, head, query, segment]    turns  [prompt, turn, 2]
    """
    return np.stack([turn_means(own, spans) for own, spans in zip(rows, turns, strict=True)])
