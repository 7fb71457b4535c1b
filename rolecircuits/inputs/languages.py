"""Crossed sets in other languages, by name, and what is said of each language.

crossed:de         the frames of crossed_de.json: 20 or more, four persons, three fillers each
crossed:es-drop    those frames of crossed_es.json whose subject pronoun (or possessor) can be left
                   out, without it: only the ending says the person. She, he and it are then one
                   person, kept as `neutral`; there is no `third_person`
crossed:en         crossed itself

A frame is that of crossed.json; "dropped" holds its slots without the pronoun, where that is
grammatical. Frames of a -drop set are called NAME_drop. typology.json says of every language, in
one coarse value a feature, what kind it is, and which words stand for "you" and "it".
"""

from pathlib import Path

from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.files import read_strict_json

PREFIX, DROP = "crossed:", "-drop"
LANGUAGES = {
    "en": "English",
    "de": "German",
    "fr": "French",
    "es": "Spanish",
    "it": "Italian",
    "pt": "Portuguese",
    "zh": "Mandarin",
    "ja": "Japanese",
    "tr": "Turkish",
    "fi": "Finnish",
}
DROPPING = ("es", "it", "pt", "tr")  # whose pronouns can be left out of a frame
FEATURES = ("pro_drop", "t_v", "third_gender", "verb_agreement", "honorifics")
HERE = Path(__file__).parent


def language_sets():
    """Names of all sets, the languages first: crossed:en, ..., crossed:es-drop, ..."""
    return [f"{PREFIX}{code}" for code in LANGUAGES] + [f"{PREFIX}{c}{DROP}" for c in DROPPING]


def is_language_set(source):
    """Whether a text names a set of this kind, one that is there or not."""
    return str(source).startswith(PREFIX)


def read_frames(source):
    """Frames of a set as crossed.json has them, its slots those of the persons of the set."""
    if source not in language_sets():
        have = ", ".join([*LANGUAGES, *(f"{code}{DROP}" for code in DROPPING)])
        raise UserError(f"--prompts {printable(source)}: no such language; there are {have}")
    code, dropped, _ = source.removeprefix(PREFIX).partition(DROP)
    name = "crossed.json" if code == "en" else f"languages/crossed_{code}.json"
    frames = read_strict_json(HERE / name, "built-in prompts")
    if not dropped:
        return frames
    return [
        frame | {"frame": f"{frame['frame']}_drop", "slots": frame["dropped"]}
        for frame in frames
        if "dropped" in frame
    ]


def read_typology():
    """{language code: {feature: value}} of FEATURES and what else typology.json says."""
    return read_strict_json(HERE / "languages" / "typology.json", "built-in typology")["languages"]
