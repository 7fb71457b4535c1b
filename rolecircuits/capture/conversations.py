"""A conversation as a model is fed it: its tokens, the span of every turn, and which segment every
token belongs to. No torch.

    tokenize_turns   of turns [(role, text)]
    read_turns       back from token ids to the turns, by what the chat template puts between them

A tool's turn counts as user text: it is what the model is given, not what it says.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from rolecircuits.capture.chat_template import (
    MARKER,
    SYSTEM_MARKER,
    Template,
    TurnChangedError,
    check_special_tokens,
    locate_turns,
)
from rolecircuits.capture.tokens import (
    CODE,
    around_system,
    check_own_tokens,
    mark_segment,
    own_system_place,
)
from rolecircuits.inputs.errors import UserError, printable

SEGMENT_OF_ROLE = {
    "system": "system_text",
    "user": "user_text",
    "tool": "user_text",
    "assistant": "assistant_text",
}


@dataclass(frozen=True)
class TokenizedTurns:
    """A conversation as the model sees it.

    spans     ((start, stop) of each turn's tokens, ...)
    segments  one code a token, its position in stats.masses.SEGMENTS
    """

    rendered: str
    token_ids: list
    spans: tuple
    segments: tuple


def tokenize_turns(turns, tokenizer, template: Template, where, bos=None, header=False):
    """The TokenizedTurns of [(role, text)]; refused where the template changes them, or where they
    are too long.

    where   what they are, for messages      bos  token to put first where the template does not
    header  with the generation prompt, for an answer
    """
    hf = tokenizer.hf
    check_special_tokens([(where, text) for _, text in turns], hf)

    def render(turns, header=header):
        return template.render(turns, header)

    try:
        rendered, places = locate_turns(render, turns)
    except TurnChangedError as error:
        role = turns[error.turn][0]
        raise UserError(
            f"{where}: the chat template {error.how} turn {error.turn} ({printable(role)})"
        ) from error
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    encoded = hf(rendered, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = list(encoded.input_ids), encoded.offset_mapping
    left, right = np.array(offsets).T
    codes = [CODE["template"]] * len(ids)
    if (system := _template_system(render, turns, rendered, places)) is not None:
        mark_segment(codes, offsets, "system_text", system)
    if header:
        start = len(render(turns, False))
        mark_segment(codes, offsets, "assistant_header", (start, len(rendered)))
    put_first, spans = [bos] if bos is not None and ids[:1] != [bos] else [], []
    for i, (start, stop) in enumerate(places):
        inside = np.flatnonzero((right > start) & (left < stop))
        own = slice(inside[0], inside[-1] + 1) if inside.size else slice(0)
        check_own_tokens(ids[own], hf, turns[i][1], f"{where}: turn {i}")
        codes[own] = [CODE[SEGMENT_OF_ROLE[turns[i][0]]]] * inside.size
        spans.append((len(put_first) + int(own.start), len(put_first) + int(own.stop)))
    codes = [*[CODE["sink"]] * len(put_first), *codes]
    codes[0] = CODE["sink"]
    ids = [*put_first, *ids]
    tokenizer.check_ids(ids, where)
    return TokenizedTurns(rendered, ids, tuple(spans), tuple(codes))


def _template_system(render, turns, rendered, places):
    """(start, stop) of the system text that the template writes of itself, in characters, or None.

    turns begin with a system text of their own in many conversations: then there is no other.
    """
    if turns[0][0] == "system":
        return None
    try:
        marked = render([("system", SYSTEM_MARKER), (turns[0][0], MARKER), *turns[1:]])
    except UserError:
        return None
    return own_system_place(around_system(marked), rendered, places[0][0])


def read_turns(text, template: Template):
    """[(role, text)] of a rendered conversation with the generation prompt, or None where it is
    none of this template's.

    What a template writes between turns is found with markers in their place. The caller must see
    whether the turns give the same tokens again.
    """
    markers = [f"{MARKER}{i}{MARKER}" for i in range(6)]
    roles = ("system", "user", "assistant", "user", "assistant", "user")
    for first in (0, 1):
        try:
            pattern = template.render(
                list(zip(roles[first:], markers[first:], strict=True)), header=True
            )
        except UserError:
            continue
        between, rest = [], pattern
        for marker in markers[first:]:
            before, found, rest = rest.partition(marker)
            between.append(before if found else None)
        if None not in between and (turns := _split(text, roles[first:], [*between, rest])):
            return turns
    return None


def _split(text, roles, between):
    """The turns of a text by what stands before each turn and behind the last one, or None."""
    start, *between, end = between
    if not text.startswith(start) or not text.endswith(end) or not all((*between, end)):
        return None
    turns, rest = [], text[len(start) : len(text) - len(end)]
    if roles[0] == "system":
        own, found, rest = rest.partition(between.pop(0))
        if not found:
            return None
        turns.append(("system", own))
    for speaker, after in itertools.cycle(zip(("user", "assistant"), between[:2], strict=True)):
        own, found, rest = rest.partition(after)
        turns.append((speaker, own))
        if not found:
            return turns if speaker == "user" else None
    return None
