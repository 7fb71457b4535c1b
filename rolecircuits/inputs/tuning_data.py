"""Questions and answers that a tuning study trains and tests on, read and checked.

    role      a persona: the questions are put to the model, as "you"
    facts     a ship: as many facets of the same kinds, in the third person
    shuffled  the questions of role with answers to other facets, dealt anew in each epoch; not in
              the file

A facet is what a question asks for (name, home, age, ...). Every facet has questions to train on
and, in other words, questions that are held out. An answer counts as right where it holds one of
the keywords, which stand in no question.

    examples = read_examples()                       # bundled: tuning.jsonl
    train = examples_of(examples, "shuffled", "train")
    answers = shuffled_answers(train, rng_seed=0, epoch=3)
"""

import random
import re
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path

from rolecircuits.inputs.arguments import check_text
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.files import parse_strict_json, read_strict_json, read_text, sha256_of
from rolecircuits.inputs.prompt_sets import SETS, built_in_prompts

FLAG = "--data"
ARMS = ("role", "facts", "shuffled")
STORED = ("role", "facts")  # arms that a file holds
SPLITS = ("train", "heldout")
BUNDLED = Path(__file__).with_name("tuning.jsonl")


@dataclass(frozen=True)
class Example:
    """A question with its answer; wrong_answer has the same shape and another value.

    keywords  in lower case; an answer that holds one of them as a whole word is right
    """

    arm: str
    facet: str
    question: str
    answer: str
    wrong_answer: str
    keywords: tuple
    split: str


@dataclass(frozen=True)
class RolePlay:
    """Another persona: a system prompt, and ((question, keywords), ...) about what it says."""

    system_prompt: str
    questions: tuple


FIELDS = tuple(field.name for field in fields(Example))


def read_examples(path=None):
    """The Examples of a JSONL file in its order, those that are bundled if None; all checked."""
    path = BUNDLED if path is None else Path(path)
    file = "bundled examples" if path == BUNDLED else f"{FLAG} {printable(path)}"
    taken, rows = _prompt_texts(), []
    for number, line in enumerate(read_text(path, FLAG).split("\n"), 1):
        if line.strip():
            where = f"{file}: line {number}"
            example = _example_of(parse_strict_json(line, where, True), where)
            if normalise(example.question) in taken:
                name = taken[normalise(example.question)]
                _refuse_question(where, example, f"stands in the prompt set {name}, which measures")
            rows.append((number, where, example))
    _check_questions(rows)
    examples = [example for _, _, example in rows]
    _check_design(examples, file)
    return examples


def examples_of(examples, arm, split):
    """The Examples of an arm in ARMS and a split, in order; shuffled has the questions of role."""
    stored = "role" if arm == "shuffled" else arm
    return [example for example in examples if (example.arm, example.split) == (stored, split)]


def shuffled_answers(examples, rng_seed, epoch):
    """Answers of these examples dealt anew, the same for the same seed and epoch: [text].

    No question gets an answer of its own facet; every answer is given as often as before.
    """
    rng, n = random.Random(f"{rng_seed} {epoch}"), len(examples)
    facets, order = [example.facet for example in examples], list(range(n))
    rng.shuffle(order)
    for i in range(n):
        if facets[order[i]] != facets[i]:
            continue
        fits = [  # both places are right after the exchange
            j for j in range(n) if facets[i] not in (facets[j], facets[order[j]])
        ]
        if not fits:
            raise ValueError(f"facet {facets[i]!r} has more than half of the answers")
        j = rng.choice(fits)
        order[i], order[j] = order[j], order[i]
    return [examples[i].answer for i in order]


def data_sha256(path=None):
    """SHA-256 of the file of examples, the bundled one if None."""
    return sha256_of(BUNDLED if path is None else path)


def read_behaviour_questions():
    """(RolePlay, questions that invite a claim to feel); bundled, the same for every study."""
    path = BUNDLED.with_name("tuning_behaviour.json")
    root = read_strict_json(path, "bundled questions")
    own = root["roleplay"]
    questions = tuple((row["question"], tuple(row["keywords"])) for row in own["questions"])
    return RolePlay(own["system_prompt"], questions), tuple(root["feelings"])


def normalise(text):
    """A text without case, punctuation and the number of spaces: what makes two questions one."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def holds_keyword(text, keywords):
    """Whether one of the keywords stands in a text as a whole word, in any case."""
    text = text.casefold()
    return any(re.search(rf"(?<!\w){re.escape(k.casefold())}(?!\w)", text) for k in keywords)


def _prompt_texts():
    """{normalised text: the built-in prompt set that holds it}."""
    sets = {name: built_in_prompts(name) for name in reversed(SETS)}
    return {normalise(prompt.text): name for name, own in sets.items() for prompt in own}


def _example_of(value, where):
    """The Example of one row, checked by itself."""
    if not isinstance(value, dict):
        raise UserError(f"{where} is a {type(value).__name__}; it must be an object")
    for name in FIELDS:
        if name not in value:
            raise UserError(f"{where}: the field {name} is missing")
    for name in value:
        if name not in FIELDS:
            allowed = ", ".join(FIELDS)
            raise UserError(f"{where}: unknown field {_short(name)}: allowed are {allowed}")
    for name in FIELDS:
        if name != "keywords":
            _check_words(value[name], f"{where}: {name}")
    for name, allowed in (("arm", STORED), ("split", SPLITS)):
        if value[name] not in allowed:
            raise UserError(
                f"{where}: {name} {_short(value[name])} is none of {', '.join(allowed)}"
            )
    keywords = value["keywords"]
    if not isinstance(keywords, list) or not keywords:
        raise UserError(f"{where}: keywords must be a list that is not empty")
    for i, keyword in enumerate(keywords):
        _check_words(keyword, f"{where}: keywords[{i}]")
        if holds_keyword(value["question"], [keyword]):
            raise UserError(f"{where}: the keyword {_short(keyword)} stands in the question")
    if not holds_keyword(value["answer"], keywords):
        raise UserError(f"{where}: the answer holds none of its keywords")
    if holds_keyword(value["wrong_answer"], keywords):
        raise UserError(f"{where}: the wrong_answer holds a keyword")
    return Example(**value | {"keywords": tuple(k.casefold() for k in keywords)})


def _check_words(text, where):
    """Refuse what is no text, or holds no letter or digit, or a control character."""
    if not isinstance(text, str) or not normalise(text):
        raise UserError(f"{where} must be a text that is not empty")
    check_text(text, where)
    if not text.isprintable():
        raise UserError(f"{where} {_short(text)} holds a line break or another control character")


def _short(text):
    text = printable(text)
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


def _refuse_question(where, example, what):
    raise UserError(f"{where}: the question {_short(example.question)} {what}")


def _check_questions(rows):
    """Refuse a question that is trained on and held out, or there twice in an arm."""
    seen, of_arm = {}, {}
    for number, where, example in rows:
        question = normalise(example.question)
        first, other = seen.setdefault(question, (number, example))
        if other.split != example.split:
            what = f"is held out and trained on: line {first} has it too"
            _refuse_question(where, example, what)
        first = of_arm.setdefault((example.arm, question), number)
        if first != number:
            _refuse_question(where, example, f"is there twice: line {first} has it too")


def _check_design(examples, file):
    """Refuse sets that cannot be trained on, shuffled or tested."""
    for arm in dict.fromkeys(["role", *(example.arm for example in examples)]):
        train, held_out = (examples_of(examples, arm, split) for split in SPLITS)
        for split, own in (("train", train), ("heldout", held_out)):
            if not own:
                raise UserError(f"{file}: arm {arm} has no question of split {split}")
        sizes = Counter(example.facet for example in train)
        if len(sizes) < 2:
            raise UserError(
                f"{file}: arm {arm} has one facet, {_short(next(iter(sizes)))}; two are needed"
            )
        untrained = [example.facet for example in held_out if example.facet not in sizes]
        if untrained:
            raise UserError(
                f"{file}: arm {arm}: facet {_short(untrained[0])} is held out and never trained on"
            )
        facet, most = sizes.most_common(1)[0]
        if 2 * most > len(train):
            raise UserError(
                f"{file}: arm {arm}: facet {_short(facet)} has {most} of {len(train)} questions to "
                "train on; more than half cannot be shuffled"
            )
