"""The built-in prompt sets by name, what is done with any set, and when a crossed set is whole.

original    30 texts in each of four categories; no frames (original.json)
crossed     36 frames x 3 fillers x 4 categories; only the person differs (crossed.json)
deixis      the sentences of crossed, once in the user's turn and once in the assistant's
crossed:de  a crossed set in another language (inputs/languages.py)

prompts = built_in_prompts("crossed")
few = cut_prompts(prompts, 36)      # the first filler of every frame
"""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from rolecircuits.inputs.categories import (
    PAIRED,
    TURNS,
    Prompt,
    order_categories,
    slot_words,
    spoken_words,
)
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.files import read_strict_json
from rolecircuits.inputs.languages import PREFIX, is_language_set, read_frames

SETS = ("original", "crossed", "deixis")
PERSONS = {
    "you": "self_referent",
    "i": "confounder",
    "third": "third_person",
    "it": "neutral",
}  # how deixis calls the categories of crossed
HINT = "in a set that is not crossed, frames of different categories must have different names"


def is_built_in(source):
    """Whether a text names a set rather than a file; a language may still be unknown."""
    return source in SETS or is_language_set(source)


def built_in_texts():
    """The set `original`, 30 texts a category: {category: [text, ...]}."""
    return read_strict_json(Path(__file__).with_name("original.json"), "built-in prompts")


def built_in_prompts(name):
    """The prompts of the set that is called `name`: one of SETS, or of a language."""
    if name == "original":
        return select_prompts()
    if name == "deixis":
        frames = read_frames(f"{PREFIX}en")
        return [
            prompt
            for turn in TURNS
            for person, category in PERSONS.items()
            for prompt in _frame_prompts(frames, category, f"{person}_{turn}", turn)
        ]
    if not is_built_in(name):
        raise ValueError(f"{name!r} is none of {', '.join(SETS)}, and no {PREFIX}LANGUAGE")
    frames = read_frames(f"{PREFIX}en" if name == "crossed" else name)
    names = order_categories(frames[0]["slots"])
    return join_pairs([prompt for own in names for prompt in _frame_prompts(frames, own, own)])


def _frame_prompts(frames, person, category, turn="user"):
    """The sentences of one person in these frames as Prompts of `category`.

    The first filler of every frame comes first, then the second of every frame, then the third.
    """
    prompts = []
    for k in range(len(frames[0]["fillers"])):
        for frame in frames:
            name, filler = frame["frame"], frame["fillers"][k]
            text = frame["template"].format(filler=filler, slot=frame["slots"][person])
            prompts.append(Prompt(f"{category}_{name}_{k}", category, -1, text, name, filler, turn))
    return prompts


def select_prompts(texts=None, per_category=None):
    """Prompts of a set without frames as a list of Prompt, in the order of `order_categories`.

    texts         {category: [text, ...]}, the set `original` if None
    per_category  the first N of each category, all if None; pairs stay pairs: both are cut alike
    """
    texts = built_in_texts() if texts is None else texts
    prompts = [
        Prompt(f"{category}_{i:02d}", category, -1, text)
        for category in order_categories(texts)
        for i, text in enumerate(texts[category] or [])
    ]
    return cut_prompts(join_pairs(prompts), per_category)


def join_pairs(prompts):
    """The prompts with confounder[i] and third_person[i] joined by pair_id i.

    Pairs are formed only where both categories have equally many prompts. In a crossed set in its
    usual order i is the number of the cell.
    """
    sizes = Counter(prompt.category for prompt in prompts)
    paired = PAIRED if len({sizes[category] for category in PAIRED}) == 1 else ()
    position, joined = Counter(), []
    for prompt in prompts:
        number = position[prompt.category] if prompt.category in paired else -1
        position[prompt.category] += 1
        joined.append(replace(prompt, pair_id=number))
    return joined


def cut_prompts(prompts, per_category=None):
    """The first N prompts of each category, in their order; all if None."""
    if per_category is None:
        return prompts
    sizes = Counter(prompt.category for prompt in prompts)
    smallest = min(sizes, key=sizes.get)
    n = sizes[smallest]
    if per_category > n:
        asked = f"--prompts_per_category {per_category}"
        raise UserError(f"{asked}: {smallest} has {n} prompts; allowed are 1 to {n}")
    position, chosen = Counter(), []
    for prompt in prompts:
        position[prompt.category] += 1
        if position[prompt.category] <= per_category:
            chosen.append(prompt)
    return chosen


def check_turns(prompts, prompt_format, source=None):
    """Refuse texts of the assistant's turn where there are no turns; source as in --prompts."""
    n = sum(prompt.turn == "assistant" for prompt in prompts)
    if not n or prompt_format == "chat":
        return
    what = f"--prompts {printable(source)}" if source else "this prompt set"
    part = "half" if 2 * n == len(prompts) else str(n)
    many = "stands" if n == 1 else "stand"
    raise UserError(
        f"{what} needs --prompt_format chat: {part} of its sentences {many} in the assistant's turn"
    )


@dataclass(frozen=True)
class Row:
    """A prompt as a file gives it: without pair_id, and with id "" where it has none.

    where  begins an error: flag, file and place; place  names the row a second time
    """

    where: str
    place: str
    prompt: Prompt

    @property
    def content(self):
        """What makes two rows duplicates: the model would be fed the same."""
        return self.prompt.text, self.prompt.turn

    @property
    def cell(self):
        """Frame, filler and category, for an error."""
        frame, filler = printable(self.prompt.frame), printable(self.prompt.filler)
        return f"frame {frame!r}, filler {filler!r}, category {self.prompt.category}"


def check_crossed(rows):
    """Refuse a crossed set that is not whole.

    Every prompt has a frame; every frame has one prompt of every category for every filler; no text
    is there twice; the prompts of a cell (frame, filler) differ in one slot only, which holds the
    same words for every filler of the frame.
    """
    names = order_categories(row.prompt.category for row in rows)
    frames = {}  # frame -> filler -> category -> Row
    for row in rows:
        if not row.prompt.frame:
            what = f"frame is missing (category {row.prompt.category})"
            raise UserError(f"{row.where}: {what}; in a crossed set every prompt has one; {HINT}")
        cell = frames.setdefault(row.prompt.frame, {}).setdefault(row.prompt.filler, {})
        first = cell.setdefault(row.prompt.category, row)
        if first is not row:
            _refuse(row, f"{first.place} is the prompt of this frame, filler and category")
    for fillers in frames.values():
        for cell in fillers.values():
            for name in names:
                if name not in cell:
                    have = (
                        f"this cell has no {name} prompt, and every cell must have every category"
                    )
                    _refuse(next(iter(cell.values())), have)
    _refuse_doubles(rows)
    for fillers in frames.values():
        ordered = {filler: {name: cell[name] for name in names} for filler, cell in fillers.items()}
        _check_slots(ordered)


def _refuse(row, what):
    raise UserError(f"{row.where}: {row.cell}: {what}; {HINT}")


def _refuse_doubles(rows):
    seen = {}
    for row in rows:
        first = seen.setdefault(row.content, row)
        if first is not row:
            _refuse(row, f"text: {first.place} has the same")


def _check_slots(fillers):
    """Refuse what differs outside the slot; fillers: {filler: {category: Row}} of one frame."""
    slots = {filler: _slots(cell) for filler, cell in fillers.items()}
    [(usual, _)] = Counter(tuple(own.items()) for own in slots.values()).most_common(1)
    example = next(filler for filler, own in slots.items() if tuple(own.items()) == usual)
    for filler, own in slots.items():
        if own != slots[example]:
            row = _blame(fillers[filler], fillers[example])
            here, there = (printable(s[row.prompt.category]) for s in (own, slots[example]))
            _refuse(
                row,
                f"text: differs from the others of its cell in {here!r}, but with filler "
                f"{printable(example)!r} in {there!r}",
            )
    for cell in fillers.values():
        words = [spoken_words(row.prompt.text) for row in cell.values()]
        ends = [{tuple(own[part]) for own in words} for part in (slice(1), slice(-1, None))]
        if all(len(end) > 1 or () in end for end in ends):
            _refuse(next(iter(cell.values())), "text: its cell shares no first and no last word")


def _slots(cell, without=None):
    """{category: the words in which its prompt differs from the others of the cell}."""
    prompts = [row.prompt for name, row in cell.items() if name != without]
    places = slot_words(prompts)
    return {p.category: p.text[slice(*place)] for p, place in zip(prompts, places, strict=True)}


def _blame(cell, usual):
    """The row without which this cell has the slots of a usual one; else the first that differs."""
    if len(cell) > 2:
        for name, row in cell.items():
            if _slots(cell, name) == _slots(usual, name):
                return row
    here, there = _slots(cell), _slots(usual)
    return next(row for name, row in cell.items() if here[name] != there[name])


def order_cells(rows):
    """Rows of a crossed set by category, number of the filler in its frame, and frame."""
    fillers = {}
    for row in rows:
        own = fillers.setdefault(row.prompt.frame, {})
        own.setdefault(row.prompt.filler, len(own))
    frames = {frame: i for i, frame in enumerate(fillers)}
    names = order_categories(row.prompt.category for row in rows)

    def place(row):
        own = row.prompt
        return names.index(own.category), fillers[own.frame][own.filler], frames[own.frame]

    return sorted(rows, key=place)
