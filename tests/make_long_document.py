"""Write tests/data/long.jsonl: one text of about 8,000 SmolLM2 tokens and a short conversation, the
same every time.

python tests/make_long_document.py
"""

import json
import random
from pathlib import Path

SUBJECTS = (
    "the miller", "a tall woman from the harbour", "my neighbour", "the old teacher",
    "one of the sailors", "the engineer", "a boy with a red cap", "the night watchman",
    "her sister", "the clockmaker",
)  # fmt: skip
VERBS = (
    "carried",
    "repaired",
    "measured",
    "painted",
    "forgot",
    "described",
    "sold",
    "found",
    "borrowed",
    "drew",
)
OBJECTS = (
    "a copper kettle", "the map of the valley", "two broken lamps", "a letter without a name",
    "the bridge's last plank", "a basket of green apples", "the bell of the school",
    "a book about tides", "seven glass marbles", "an empty boat",
)  # fmt: skip
PLACES = (
    "behind the mill", "near the river", "on the market square", "under the lighthouse",
    "in the long corridor", "at the edge of the forest", "beside the railway", "above the bakery",
    "inside the library", "across the frozen lake",
)  # fmt: skip
ENDS = (
    "while the rain went on.", "and nobody asked why.", "before the first train left.",
    "as if it had always been so.", "which surprised the whole street.",
    "and wrote the date on the wall.", "long after the lamps were out.",
)  # fmt: skip


def long_text(sentences, seed=7):
    rng = random.Random(seed)
    out = []
    for number in range(sentences):
        words = [rng.choice(part) for part in (SUBJECTS, VERBS, OBJECTS, PLACES, ENDS)]
        sentence = " ".join(words)
        out.append(sentence[0].upper() + sentence[1:])
        if number % 12 == 11:
            out.append("\n\n")
    return " ".join(out).replace(" \n\n ", "\n\n").strip()


DIALOGUE = [
    {"role": "system", "content": "You answer in one short sentence."},
    {"role": "user", "content": "Who are you, and who made you?"},
    {"role": "assistant", "content": "I am a language model, trained on a great deal of text."},
    {"role": "user", "content": "How tall is she, the woman in the story about the lighthouse?"},
    {"role": "assistant", "content": "The story does not say how tall she is."},
    {"role": "user", "content": "What causes rain?"},
]


def main():
    rows = [
        {"id": "valley", "category": "neutral", "text": long_text(423)},
        {"id": "talk", "category": "self_referent", "messages": DIALOGUE},
    ]
    path = Path(__file__).parent / "data" / "long.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
