"""What the final token fed attends to: parts of the text, the slot, and segments of the template.

    mass     = sum of the final query's attention over the keys of a part
    uniform  = keys of the part that the final query sees / keys that it sees

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
    Without slot and segment (None) only the masses of the text's ends are computed.
    """

    span: np.ndarray
    slot: np.ndarray | None = None
    segment: np.ndarray | None = None

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
    sums = final_row @ counted_keys(places, final_row.shape[-1]).astype(final_row.dtype)
    masses = named_masses(sums, places)
    if places.segment is not None:
        masses["final_row"] = final_row.astype(np.float16)
    return masses


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
    slot, segments = _slot_keys(places, n_keys), _segment_keys(places, n_keys)
    return np.concatenate([counted, slot[..., None], segments], axis=-1)


def edge_tokens(places):
    """Tokens of the two edges of each text, which never overlap: [prompt] int64."""
    start, stop = places.span.T
    return np.minimum(EDGE_TOKENS, (stop - start) // 2).astype(np.int64)


def named_masses(sums, places):
    """The masses of `final_query_masses`, without the row, from sums [prompt, head, sum] of the row
    over `counted_keys`.
    """
    masses = {"first_mass": sums[..., 0], "last_mass": sums[..., 1], "edge_mass": sums[..., 2:4]}
    masses["edge_tokens"] = edge_tokens(places)
    if places.segment is None:
        return masses
    masses["slot_mass"] = np.where(places.slot[:, :1] >= 0, sums[..., 4], np.nan)
    return masses | {"segment_mass": sums[..., 5:]}


def masses_beside_sink(final_row, places, learned_sink):
    """`final_query_masses` of rows whose first key is a learned sink, or that have none.

    What the sink takes is counted in the segment "sink", beside key 0, so that segments sum to 1.
    """
    if not learned_sink:
        return final_query_masses(final_row, places)
    masses = final_query_masses(final_row[..., 1:], places)
    if "segment_mass" in masses:
        masses["segment_mass"][..., 0] += final_row[..., 0]
    return masses


def uniform_masses(places, n_tokens, visible):
    """The same masses for a final query that attends to all keys it sees alike.

    n_tokens  [prompt]    visible  [layer, query] keys that a row sees
    returns   slot_uniform [prompt, layer], NaN without a slot; segment_uniform [prompt, layer,
              segment]
    """
    n_keys, visible = places.segment.shape[1], np.asarray(visible)
    uniform = uniform_rows(n_tokens, visible, n_keys)
    on_slot = np.einsum("plk,pk->pl", uniform, _slot_keys(places, n_keys).astype(float))
    by_segment = np.einsum("plk,pks->pls", uniform, _segment_keys(places, n_keys).astype(float))
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


def _segment_keys(places, n_keys):
    """Which keys are in which segment: [prompt, key, segment] bool."""
    return places.segment[:, :n_keys, None] == np.arange(len(SEGMENTS))
