"""Categories of prompts, what a prompt is, when a set is crossed, and the hash of a set.

A set is crossed where a frame (a sentence with one open slot) holds prompts of several categories:
then every frame has every category once for every filler, and only the slot differs.
"""

import hashlib
import json
import re
from dataclasses import dataclass

from rolecircuits.inputs.errors import UserError, printable

CATEGORIES = ("self_referent", "confounder", "neutral", "third_person")
REQUIRED = ("self_referent", "neutral")
PAIRED = ("confounder", "third_person")
MAX_CATEGORIES = 16
TURNS = ("user", "assistant")
CATEGORY_NAME = re.compile(r"[^\W_][\w .]{0,39}")
# Scripts that put no space between words: Thai to Tibetan, Myanmar, Khmer, Kana, Han.
UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+|[^\w\s]")


@dataclass(frozen=True)
class Prompt:
    """One prompt: `id` is unique in its set, `pair_id` joins confounder[i] with third_person[i].

    pair_id  -1 in the other categories, and where both do not pair
    frame    the sentence that it shares with other prompts; "" where the set gives none
    filler   what tells prompts of one frame and category apart; "" where the set gives none
    turn     whose turn holds the text in a chat template: "user", or "assistant" (see `deixis`)
    """

    id: str
    category: str
    pair_id: int
    text: str
    frame: str = ""
    filler: str = ""
    turn: str = "user"


def frame_of(prompt):
    """The frame that a set gives, or else the first word of the text in lower case."""
    return prompt.frame or first_word(prompt.text)


def first_word(text):
    """The first word of a text, in lower case; the first character in scripts without spaces."""
    return text.lstrip()[0] if is_unspaced(text) else text.split()[0].lower()


def is_unspaced(text):
    """Whether a text begins in a script that puts no spaces between words."""
    return bool(re.match(rf"\s*[{UNSPACED}]", text))


def spoken_words(text):
    """The words of a text without its punctuation; characters in scripts without spaces."""
    return [word for word in WORD.findall(text) if re.match(r"\w", word)]


def count_words(text):
    """How many words a text has; characters in scripts without spaces."""
    return len(spoken_words(text) if is_unspaced(text) else text.split())


def is_crossed(prompts):
    """Whether a frame that the set gives holds prompts of more than one category."""
    of_frame = {}
    for prompt in prompts:
        if prompt.frame and of_frame.setdefault(prompt.frame, prompt.category) != prompt.category:
            return True
    return False


def cells_of(prompts):
    """{(frame, filler): [prompts]} of a crossed set, in the order of the prompts."""
    cells = {}
    for prompt in prompts:
        cells.setdefault((prompt.frame, prompt.filler), []).append(prompt)
    return cells


def slot_words(prompts):
    """Where the prompts of one cell differ: [(start, stop)] in characters of each text.

    The slot is what is left between the words that all of them begin with and the words that all
    of them end with; (n, n) of a text without words of its own. Punctuation marks are words, and so
    is every character of a script that puts no spaces between words (Han, Kana, Thai, ...).
    """
    words = [list(WORD.finditer(prompt.text)) for prompt in prompts]
    shortest = min(map(len, words))

    def equal(place):
        return len({own[place].group() for own in words}) == 1

    first = next((i for i in range(shortest) if not equal(i)), shortest)
    last = next((i for i in range(shortest - first) if not equal(-1 - i)), shortest - first)
    slots = []
    for own in words:
        inside = own[first : len(own) - last]
        end = own[first - 1].end() if first else 0
        slots.append((inside[0].start(), inside[-1].end()) if inside else (end, end))
    return slots


def order_categories(names):
    """These names, each once: CATEGORIES in their order, then all others in order of appearance."""
    names = list(dict.fromkeys(names))
    return [c for c in CATEGORIES if c in names] + [c for c in names if c not in CATEGORIES]


def check_category(name, where):
    """Refuse a name that cannot stand in a file name, a table or --contrast a-b."""
    if not isinstance(name, str) or not CATEGORY_NAME.fullmatch(name) or name == "all":
        shown = printable(name)
        shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
        raise UserError(
            f"{where}: category {shown!r}: a name begins with a letter or digit and has at most 40 "
            "letters, digits, spaces, '_' and '.' (and is not 'all')"
        )


def prompt_set_sha256(prompts):
    """SHA-256 of the prompt set: ids, categories, pairs and texts, as canonical JSON.

    Frame, filler and turn enter where a set gives them, so that older sets keep their hash.
    """
    rows = []
    for p in prompts:
        row, design = [p.id, p.category, p.pair_id, p.text], [p.frame, p.filler, p.turn]
        rows.append(row if design == ["", "", "user"] else row + design)
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()
