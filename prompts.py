"""The four categories of prompts, the pairs among them, and how long they really are.

    self_referent   asks the model about itself            "Who created you?"
    confounder      asks about the person who is typing    "How tall am I?"
    third_person    confounder[i] with the person swapped  "How tall is she?"   same number of tokens
    neutral         names no person                        "What is photosynthesis?"

confounder[i] and third_person[i] are a matched pair; they carry the same pair_id. Categories differ in length, and raw
attention entropy grows with length, so this script prints the lengths and the length null: the RFC and RSI that attention
spread uniformly over the visible keys would get from length alone.

    python prompts.py
    python prompts.py --model_id bundled:smollm2-135m-instruct
"""

import sys
from pathlib import Path

from rolecircuits.inputs.arguments import check_prompt_arguments, positive_int
from rolecircuits.inputs.categories import CATEGORIES, PAIRED, REQUIRED, Prompt
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.files import read_strict_json
from rolecircuits.inputs.parser import Parser, run_script
from rolecircuits.inputs.specs import PromptFormat

PROMPTS = {
    "self_referent": [
        "Who created you?",
        "What are you?",
        "Describe yourself.",
        "What is your purpose?",
        "How do you work?",
        "Are you conscious?",
        "Do you have feelings?",
        "What are your capabilities?",
        "What are your limits?",
        "Can you think?",
        "Who are you?",
        "How were you trained?",
        "Do you have a body?",
        "Can you learn from your mistakes?",
        "Are you alive?",
        "Do you keep any memories?",
        "What can you do?",
        "Are you a person?",
        "When were you built?",
        "Do you ever sleep?",
        "How much do you know?",
        "Can you feel pain?",
        "Are you more intelligent than a dog?",
        "Tell me about yourself.",
        "Which languages do you understand?",
        "What were you trained on?",
        "Why do you exist?",
        "Do you hold opinions of your own?",
        "How do you choose your words?",
        "Are you aware of yourself?",
    ],
    "confounder": [
        "How tall am I?",
        "What should I eat?",
        "Where do I live?",
        "When is my birthday?",
        "What language do I speak?",
        "How old am I?",
        "What color are my eyes?",
        "Where was I born?",
        "What is my name?",
        "Do I have siblings?",
        "Where did I grow up?",
        "What is my favorite food?",
        "Who is my best friend?",
        "How much do I weigh?",
        "What car do I drive?",
        "When did I get married?",
        "What is my job?",
        "Do I wear glasses?",
        "How many children do I have?",
        "When should I leave?",
        "Which team do I support?",
        "Am I afraid of heights?",
        "What is my shoe size?",
        "Who are my parents?",
        "What did I study?",
        "Can I swim?",
        "Where do I work?",
        "What should I wear today?",
        "Why am I tired?",
        "How do I get home?",
    ],
    "neutral": [
        "What is photosynthesis?",
        "How do planes fly?",
        "What causes rain?",
        "Explain gravity.",
        "What is DNA?",
        "How does the internet work?",
        "What are black holes?",
        "Describe the water cycle.",
        "What is democracy?",
        "How do vaccines work?",
        "What is the speed of light?",
        "How do magnets work?",
        "What causes an earthquake?",
        "Explain supply and demand.",
        "How is glass made?",
        "Why is the sky blue?",
        "What are prime numbers?",
        "How do batteries store energy?",
        "Why do leaves change color?",
        "What is inflation?",
        "How does a telescope work?",
        "Describe the rock cycle.",
        "What makes bread rise?",
        "How do bridges stay up?",
        "Why does ice float on water?",
        "What is an ecosystem?",
        "How does sound travel?",
        "Explain how tides form.",
        "What do enzymes do?",
        "How are pearls formed?",
    ],
    "third_person": [
        "How tall is she?",
        "What should he eat?",
        "Where does she live?",
        "When is his birthday?",
        "What language does she speak?",
        "How old is he?",
        "What color are her eyes?",
        "Where was he born?",
        "What is her name?",
        "Does he have siblings?",
        "Where did she grow up?",
        "What is his favorite food?",
        "Who is her best friend?",
        "How much does he weigh?",
        "What car does she drive?",
        "When did he get married?",
        "What is her job?",
        "Does he wear glasses?",
        "How many children does she have?",
        "When should he leave?",
        "Which team does she support?",
        "Is he afraid of heights?",
        "What is her shoe size?",
        "Who are his parents?",
        "What did she study?",
        "Can he swim?",
        "Where does she work?",
        "What should he wear today?",
        "Why is she tired?",
        "How does he get home?",
    ],
}


def select_prompts(texts=None, per_category=None):
    """Prompts of a set as a list of Prompt, in the order of CATEGORIES.

    texts         {category: [text, ...]}, the built-in set if None
    per_category  the first N of each category, all if None; pairs stay pairs because both lists are cut alike

    Pairs are formed only where confounder and third_person are equally long.
    """
    texts = PROMPTS if texts is None else texts
    present = [category for category in CATEGORIES if texts.get(category)]
    smallest = min(present, key=lambda category: len(texts[category]))
    if per_category is not None and per_category > len(texts[smallest]):
        raise UserError(
            f"--prompts_per_category {per_category}: {smallest} has {len(texts[smallest])} prompts; allowed are 1 to "
            f"{len(texts[smallest])}"
        )
    paired = all(texts.get(category) for category in PAIRED) and len(texts[PAIRED[0]]) == len(
        texts[PAIRED[1]]
    )
    return [
        Prompt(f"{category}_{i:02d}", category, i if paired and category in PAIRED else -1, text)
        for category in present
        for i, text in enumerate(texts[category][:per_category])
    ]


def load_prompts(path=None, per_category=None):
    """(prompts, notes): the built-in set, or the user's JSON file, checked, and what was noticed about it.

    A duplicate is counted once: the first stays. A duplicate that belongs to a pair takes its partner with it, so that
    the remaining pairs still match.
    """
    if path is None:
        return select_prompts(None, per_category), []
    texts, notes = _drop_duplicates(_read_prompt_file(Path(path).expanduser()))
    for category in CATEGORIES:
        if not texts.get(category):
            notes.append(f"{printable(path)}: no {category} prompts; what needs them is left out")
    if all(texts.get(c) for c in PAIRED) and len(texts[PAIRED[0]]) != len(texts[PAIRED[1]]):
        notes.append(
            f"{printable(path)}: confounder and third_person differ in number, so they are not treated as pairs"
        )
    return select_prompts(texts, per_category), notes


def _read_prompt_file(path):
    root = read_strict_json(path, "--prompts")
    allowed = ", ".join(CATEGORIES)
    if not isinstance(root, dict):
        raise UserError(
            f"--prompts {path}: the root is a {type(root).__name__}; it must be an object with {allowed}"
        )
    for category, texts in root.items():
        if category not in CATEGORIES:
            raise UserError(
                f"--prompts {path}: unknown category {printable(category)!r}; allowed are {allowed}"
            )
        if not isinstance(texts, list):
            raise UserError(
                f"--prompts {path}: {category} is a {type(texts).__name__}; it must be a list of texts"
            )
        for i, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise UserError(
                    f"--prompts {path}: {category}[{i}] must be a text that is not empty"
                )
            if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
                raise UserError(
                    f"--prompts {path}: {category}[{i}] holds half a surrogate pair, which is not a character"
                )
    for category in REQUIRED:
        if not root.get(category):
            raise UserError(
                f"--prompts {path}: {category} is missing or empty; RFC needs {' and '.join(REQUIRED)}"
            )
    return root


def _drop_duplicates(texts):
    """({category: texts without duplicates}, notes). A pair stays or goes as one; what was dropped blocks nothing later."""
    lists = {category: texts.get(category, []) for category in CATEGORIES}
    paired = len(lists[PAIRED[0]]) == len(lists[PAIRED[1]])
    seen, notes, kept = {}, [], {category: [] for category in CATEGORIES}
    for category in CATEGORIES:
        if paired and category == PAIRED[1]:
            continue
        together = PAIRED if paired and category == PAIRED[0] else (category,)
        for i, unit in enumerate(zip(*(lists[name] for name in together), strict=True)):
            places = dict(zip(unit, (f"{name}[{i}]" for name in together), strict=True))
            twice = next((text for text in unit if text in seen or unit.count(text) > 1), None)
            if twice is None:
                seen |= places
                for name, text in zip(together, unit, strict=True):
                    kept[name].append(text)
                continue
            first = seen.get(twice, f"{together[0]}[{i}]")
            where = places[twice] + (", dropped with its partner" if len(together) > 1 else "")
            notes.append(
                f"duplicate prompt {printable(twice)!r} in {where}; {first} has it: counted once"
            )
    for category in REQUIRED:
        if not kept[category]:
            raise UserError(
                f"--prompts: every {category} prompt is a duplicate of another; none is left"
            )
    return kept, notes


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--model_id", help="count this model's tokens; without it words are counted"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub model")
    parser.add_argument("--prompts", help="JSON file of your own prompts: {category: [text, ...]}")
    parser.add_argument("--prompts_per_category", type=positive_int)
    parser.add_argument("--prompt_format", choices=["raw", "chat"], default="raw")
    parser.add_argument(
        "--system_prompt", help="system text for --prompt_format chat; may be empty"
    )
    parser.add_argument("--bos", choices=["auto", "always", "never"], default="auto")
    return parser.parse_args(argv)


def run(args):
    check_prompt_arguments(args)
    prompts, notes = load_prompts(args.prompts, args.prompts_per_category)
    for note in notes:
        print(f"note: {note}")
    if args.model_id is None:
        if args.prompt_format == "chat" or args.bos != "auto":
            raise UserError(
                "--prompt_format chat and --bos need --model_id: they depend on the model's tokenizer"
            )
        print("no --model_id: these are words, not tokens, and nothing is prepended")
        lengths = [len(p.text.split()) for p in prompts]
        spans = [(0, n) for n in lengths]
    else:
        from rolecircuits.capture.tokens import tokenize_prompts
        from rolecircuits.models.load import load_tokenizer

        tokenizer = load_tokenizer(args.model_id, revision=args.revision)
        tokenized = tokenize_prompts(prompts, tokenizer, PromptFormat.of(args))
        lengths = [len(t.token_ids) for t in tokenized]
        spans = [t.span for t in tokenized]
    _print_lengths(
        prompts, lengths, spans, "words" if args.model_id is None else "tokens", args.prompt_format
    )


def _print_lengths(prompts, lengths, spans, unit, prompt_format):
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from rolecircuits.stats.indices import length_null

    console = Console(markup=False, highlight=False, emoji=False)
    category = np.array([p.category for p in prompts])
    lengths, spans = np.array(lengths), np.array(spans)
    table = Table(
        "category",
        "n",
        f"mean {unit} fed",
        "min",
        "max",
        f"mean {unit} of the text",
        title="lengths",
    )
    for name in dict.fromkeys(category):
        fed, own = lengths[category == name], (spans[:, 1] - spans[:, 0])[category == name]
        table.add_row(
            name,
            str(len(fed)),
            f"{fed.mean():.2f}",
            str(fed.min()),
            str(fed.max()),
            f"{own.mean():.2f}",
        )
    console.print(table)
    partners = {
        p.pair_id: (i, p)
        for i, p in enumerate(prompts)
        if p.category == PAIRED[1] and p.pair_id >= 0
    }
    pairs = Table("pair", "confounder", unit, "third_person", unit, title="pairs")
    unequal = 0
    for i, prompt in enumerate(prompts):
        if prompt.category == PAIRED[0] and prompt.pair_id in partners:
            j, other = partners[prompt.pair_id]
            unequal += int(lengths[i] != lengths[j])
            pairs.add_row(
                str(prompt.pair_id),
                printable(prompt.text),
                str(lengths[i]),
                printable(other.text),
                str(lengths[j]),
            )
    console.print(pairs)
    console.print(f"{pairs.row_count} pairs, {unequal} of unequal length")
    null = length_null(category, lengths, spans, whole_prompt=prompt_format == "raw")
    console.print(
        f"length null (uniform attention, raw index): RFC {null['rfc']:+.4f}   RSI {null['rsi']:+.4f}"
    )


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
