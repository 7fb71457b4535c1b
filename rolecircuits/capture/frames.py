"""Which frames of a crossed set the tokenizer at hand matches. No torch.

A frame is matched where, for every filler, all persons have as many tokens, the slot at the same
place, and the same tokens outside it; where the set has both turns, a sentence has the same slot
tokens in both. What is not matched is left out whole, and said.
"""

from collections import Counter

from rolecircuits.inputs.categories import cells_of, is_crossed
from rolecircuits.inputs.errors import UserError, printable

PLACE = "the slot is not at the same tokens"
OUTSIDE = "tokens outside the slot differ"
OTHER_TURN = "the slot has other tokens in the other turn"
LENGTHS = "lengths"
WHYS = {PLACE: "place", OUTSIDE: "outside", OTHER_TURN: "turn"}
REASONS = (LENGTHS, "place", "outside")  # of the sets of one turn, as headings of a table
REASONS_NOTE = (
    "left out because the persons have other numbers of tokens (lengths), the slot stands at "
    "other tokens (place), or tokens beside it differ (outside)"
)


def keep_matched(tokenized):
    """(TokenizedPrompts of matched frames, {frame: why it is left out}).

    A set that is not crossed is kept as it is.
    """
    if not is_crossed(tokenized):
        return tokenized, {}
    left_out = find_left_out(tokenized)
    if len(left_out) == len({prompt.frame for prompt in tokenized}):
        frame, why = next(iter(left_out.items()))
        raise UserError(
            f"no frame of this set is matched under this tokenizer; {printable(frame)}: "
            f"{printable(why)}"
        )
    return [prompt for prompt in tokenized if prompt.frame not in left_out], left_out


def find_left_out(tokenized):
    """{frame that is not matched: the first filler and why} of a crossed set."""
    left_out = {}
    for (frame, filler), cell in cells_of(tokenized).items():
        why = find_mismatch(cell)
        if why and frame not in left_out:
            left_out[frame] = f"{filler}: {why}" if filler else why
    return left_out


def count_reasons(left_out):
    """{heading in REASONS: how many frames of `find_left_out` have this reason first}."""
    counts = Counter(
        next((short for why, short in WHYS.items() if said.endswith(why)), LENGTHS)
        for said in left_out.values()
    )
    return {short: counts[short] for short in REASONS}


def find_mismatch(cell):
    """Why the TokenizedPrompts of one frame and filler are not matched, or None."""
    lengths = sorted({len(prompt.token_ids) for prompt in cell})
    if len(lengths) > 1:
        return f"{' or '.join(map(str, lengths))} tokens"
    for turn in dict.fromkeys(prompt.turn for prompt in cell):
        persons = [prompt for prompt in cell if prompt.turn == turn]
        if len({prompt.slot for prompt in persons}) > 1:
            return PLACE
        start, stop = persons[0].slot
        outside = {(*p.token_ids[:start], None, *p.token_ids[stop:]) for p in persons}
        if len(outside) > 1:
            return OUTSIDE
    slots = {}
    for prompt in cell:
        tokens = tuple(prompt.token_ids[slice(*prompt.slot)])
        if slots.setdefault(prompt.text, tokens) != tokens:
            return OTHER_TURN
    return None


def describe_left_out(left_out, prompts):
    """One line on the frames of `prompts` that were left out."""
    named = [f"{printable(frame)} ({printable(why)})" for frame, why in left_out.items()]
    return (
        f"{len(left_out)} of {len({p.frame for p in prompts})} frames are not matched under this "
        f"tokenizer and left out: {', '.join(named)}"
    )
