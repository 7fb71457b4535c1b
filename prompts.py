"""The four categories of prompts, the pairs among them, and how long they really are.

    self_referent   asks the model about itself            "Who created you?"
    confounder      asks about the person who is typing    "How tall am I?"
    third_person    confounder[i] with the person swapped  "How tall is she?"   as many tokens
    neutral         names no person                        "What is photosynthesis?"

confounder[i] and third_person[i] are a matched pair; they carry the same pair_id. Categories differ
in length, and raw attention entropy grows with length, so this script prints the lengths and the
length null: the RFC and RSI that attention spread uniformly over the visible keys would get from
length alone. The built-in texts are in rolecircuits/inputs/original.json.

    python prompts.py
    python prompts.py --model_id bundled:smollm2-135m-instruct
"""

import statistics
import sys
from pathlib import Path

from rolecircuits.inputs import categories
from rolecircuits.inputs.arguments import check_prompt_arguments, check_text, positive_int
from rolecircuits.inputs.categories import CATEGORIES, PAIRED, REQUIRED, Prompt
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.files import read_strict_json
from rolecircuits.inputs.parser import Parser, collector_paused, run_script
from rolecircuits.inputs.specs import PromptFormat

BUILT_IN = Path(categories.__file__).with_name("original.json")


def built_in_texts():
    """The built-in set, 30 texts a category: {category: [text, ...]}."""
    return read_strict_json(BUILT_IN, "built-in prompts")


def select_prompts(texts=None, per_category=None):
    """Prompts of a set as a list of Prompt, in the order of CATEGORIES.

    texts         {category: [text, ...]}, the built-in set if None
    per_category  the first N of each category, all if None; pairs stay pairs: both are cut alike

    Pairs are formed only where confounder and third_person are equally long.
    """
    texts = built_in_texts() if texts is None else texts
    present = [category for category in CATEGORIES if texts.get(category)]
    smallest = min(present, key=lambda category: len(texts[category]))
    n = len(texts[smallest])
    if per_category is not None and per_category > n:
        asked = f"--prompts_per_category {per_category}"
        raise UserError(f"{asked}: {smallest} has {n} prompts; allowed are 1 to {n}")
    paired = PAIRED if len({len(texts.get(category) or []) for category in PAIRED}) == 1 else ()
    return [
        Prompt(f"{category}_{i:02d}", category, i if category in paired else -1, text)
        for category in present
        for i, text in enumerate(texts[category][:per_category])
    ]


def load_prompts(path=None, per_category=None):
    """(prompts, notes): the built-in set, or the user's JSON file, checked, and what was noticed.

    A duplicate is counted once: the first stays. A duplicate that belongs to a pair takes its
    partner with it, so that the remaining pairs still match.
    """
    if path is None:
        return select_prompts(None, per_category), []
    texts, notes = _drop_duplicates(_read_prompt_file(Path(path).expanduser()))
    absent = [category for category in CATEGORIES if not texts[category]]
    notes += [f"no {category} prompts; what needs them is left out" for category in absent]
    numbers = {len(texts[category]) for category in PAIRED}
    if 0 not in numbers and len(numbers) > 1:
        notes.append("confounder and third_person differ in number, so they are no pairs")
    return select_prompts(texts, per_category), [f"{printable(path)}: {note}" for note in notes]


def _read_prompt_file(path):
    """The JSON object {category: [text, ...]} of a user's file, checked."""
    root = read_strict_json(path, "--prompts")
    file, allowed = f"--prompts {path}", ", ".join(CATEGORIES)
    if not isinstance(root, dict):
        kind = type(root).__name__
        raise UserError(f"{file}: the root is a {kind}; it must be an object with {allowed}")
    for category, texts in root.items():
        if category not in CATEGORIES:
            unknown = printable(category)
            raise UserError(f"{file}: unknown category {unknown!r}; allowed are {allowed}")
        if not isinstance(texts, list):
            kind = type(texts).__name__
            raise UserError(f"{file}: {category} is a {kind}; it must be a list of texts")
        for i, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise UserError(f"{file}: {category}[{i}] must be a text that is not empty")
            check_text(text, f"{file}: {category}[{i}]")
    for category in REQUIRED:
        if not root.get(category):
            needed = " and ".join(REQUIRED)
            raise UserError(f"{file}: {category} is missing or empty; RFC needs {needed}")
    return root


def _drop_duplicates(texts):
    """({category: texts without duplicates}, notes).

    A pair stays or goes as one; what was dropped blocks nothing later.
    """
    paired = len(texts.get("confounder", [])) == len(texts.get("third_person", []))
    groups = [("self_referent",), PAIRED, ("neutral",)] if paired else zip(CATEGORIES)
    seen, notes, kept = {}, [], {category: [] for category in CATEGORIES}
    for group in groups:
        for i, unit in enumerate(zip(*(texts.get(name, []) for name in group), strict=True)):
            places = dict(zip(unit, (f"{name}[{i}]" for name in group), strict=True))
            twice = next((text for text in unit if text in seen or unit.count(text) > 1), None)
            if twice is None:
                seen |= places
                for name, text in zip(group, unit, strict=True):
                    kept[name].append(text)
                continue
            first = seen.get(twice, f"{group[0]}[{i}]")
            where = places[twice] + (", dropped with its partner" if len(group) > 1 else "")
            notes.append(
                f"duplicate prompt {printable(twice)!r} in {where}; {first} has it: counted once"
            )
    for category in REQUIRED:
        if not kept[category]:
            lost = f"every {category} prompt is a duplicate of another"
            raise UserError(f"--prompts: {lost}; none is left")
    return kept, notes


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("--model_id", help="count this model's tokens (default: count words)")
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
    if args.model_id is None and (args.prompt_format == "chat" or args.bos != "auto"):
        raise UserError(
            "--prompt_format chat and --bos need --model_id: they depend on the model's tokenizer"
        )
    prompts, notes = load_prompts(args.prompts, args.prompts_per_category)
    for note in notes:
        print(f"note: {note}")
    if args.model_id is None:
        print("no --model_id: these are words, not tokens, and nothing is prepended")
        lengths = [len(prompt.text.split()) for prompt in prompts]
        spans = [(0, n) for n in lengths]
        unit = "words"
    else:  # torch, which counting words does without
        with collector_paused():
            from rolecircuits.capture import tokens  # jinja2
            from rolecircuits.models import load  # torch

        tokenizer = load.load_tokenizer(args.model_id, revision=args.revision)
        tokenized = tokens.tokenize_prompts(prompts, tokenizer, PromptFormat.of(args))
        lengths, spans = zip(*((len(t.token_ids), t.span) for t in tokenized), strict=True)
        unit = "tokens"
    print_lengths(prompts, lengths, spans, unit, whole_prompt=args.prompt_format == "raw")


def print_lengths(prompts, lengths, spans, unit, whole_prompt):
    """Lengths by category and pair, and the length null.

    lengths  [prompt] fed    spans  [prompt, 2] the prompt's own text    unit  "words" or "tokens"
    """
    from rolecircuits.drawing import tables  # rich and numpy: after the arguments are checked
    from rolecircuits.stats import indices  # numpy

    category, rows = [prompt.category for prompt in prompts], []
    for name in dict.fromkeys(category):
        chosen = [i for i, own in enumerate(category) if own == name]
        fed, text = [lengths[i] for i in chosen], [spans[i][1] - spans[i][0] for i in chosen]
        means = [f"{statistics.fmean(values):.2f}" for values in (fed, text)]
        rows.append((name, len(fed), means[0], min(fed), max(fed), means[1]))
    columns = ("category", "n", f"mean {unit} fed", "min", "max", f"mean {unit} of the text")
    tables.print_table(columns, rows, "lengths", **tables.BOXED)
    partners = {p.pair_id: i for i, p in enumerate(prompts) if p.category == "third_person"}
    pairs = [
        (i, partners[p.pair_id])
        for i, p in enumerate(prompts)
        if p.category == "confounder" and p.pair_id in partners and p.pair_id >= 0
    ]
    columns = ("pair", "confounder", unit, "third_person", unit)
    rows = [
        (prompts[i].pair_id, prompts[i].text, lengths[i], prompts[j].text, lengths[j])
        for i, j in pairs
    ]
    tables.print_table(columns, rows, "pairs", **tables.BOXED)
    unequal = sum(lengths[i] != lengths[j] for i, j in pairs)
    print(f"{len(pairs)} pairs, {unequal} of unequal length")
    null = indices.length_null(category, lengths, spans, whole_prompt)
    print(
        "length null (uniform attention, raw index): "
        f"RFC {null['rfc']:+.4f}   RSI {null['rsi']:+.4f}"
    )


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
