"""The prompt sets, the pairs or frames in them, and how long the prompts really
are.

    original  30 texts in each of four categories (the default)
                "Who created you?"         self_referent, about the model
                "How tall am I?"           confounder, about who is typing
                "How tall is she?"         third_person, confounder[i] swapped
                "What is photosynthesis?"  neutral, names no person
    crossed   36 sentences with a slot (frames) x 3 fillers; only the person in
              the slot differs: "How old are you?"  "How old am I?"
              "How old is she?"  "How old is it?"
    deixis    the sentences of crossed, in the user's turn and in the
              assistant's; needs --prompt_format chat
    crossed:de  crossed in another language: de, fr, es, it, pt, zh, ja, tr, fi;
              crossed:es-drop (es, it, pt, tr) without the subject pronoun
    FILE      your own: .json, .jsonl or .csv (see
              rolecircuits/inputs/prompt_files.py); --export writes any set as
              such a file

confounder[i] and third_person[i] are a matched pair; they carry the same
pair_id. Categories of the original set differ in length, and raw attention
entropy grows with length, so this script prints the lengths and the length
null: the RFC and RSI that attention spread uniformly over the visible keys
would get from length alone.

    python prompts.py
    python prompts.py --prompts crossed --model_id bundled:smollm2-135m-instruct
    python prompts.py --prompts crossed --export mine.csv
    python prompts.py --audit results_activation_analysis/demo/latest_run
    python prompts.py --languages --model_id bundled:smollm2-135m-instruct

--languages says how many frames of each language this tokenizer matches, and
why it does not match the others. --audit says of a run how its prompts are
built: what category, first word and token count explain.
"""

import difflib
import os
import statistics
import sys
from functools import partial
from pathlib import Path

from output_manager import load_run
from rolecircuits.drawing.table_files import add_table_argument, writes_tables
from rolecircuits.inputs import prompt_lengths
from rolecircuits.inputs.arguments import (
    REVISION_HELP,
    add_format_arguments,
    check_prompt_arguments,
    positive_int,
)
from rolecircuits.inputs.categories import REQUIRED, count_words, is_crossed
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.languages import language_sets
from rolecircuits.inputs.parser import Parser, collector_paused, run_script
from rolecircuits.inputs.prompt_files import read_prompt_file, write_prompt_file
from rolecircuits.inputs.prompt_sets import (
    SETS,
    built_in_prompts,
    built_in_texts,
    check_turns,
    cut_prompts,
    is_built_in,
    select_prompts,
)
from rolecircuits.inputs.specs import PromptFormat

__all__ = ["built_in_texts", "load_prompts", "select_prompts"]


def load_prompts(source=None, per_category=None):
    """(prompts, notes): a set, checked, and what was noticed about it.

    source        name of a set (SETS, crossed:de), or path of a prompt file; None is `original`
    per_category  the first N of each category, all if None
    """
    if source is None or is_built_in(source):
        return cut_prompts(built_in_prompts(source or SETS[0]), per_category), []
    prompts, notes = read_prompt_file(_own_path(source, "--prompts"))
    return cut_prompts(prompts, per_category), notes


def _own_path(text, flag):
    """The Path that the user gave, with ~ replaced; a misspelt name of a set is refused."""
    close = difflib.get_close_matches(str(text), SETS, 1) if flag == "--prompts" else []
    if close and not os.path.lexists(text):
        raise UserError(f"{flag} {text}: no such file or set: did you mean {close[0]}?")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{flag} {text}: {error}") from error


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("--model_id", help="count this model's tokens (default: count words)")
    parser.add_argument("--revision", help=REVISION_HELP)
    parser.add_argument(
        "--prompts",
        metavar="NAME|FILE",
        help=f"{', '.join(SETS)}, crossed:de, or a .json, .jsonl or .csv file (default {SETS[0]})",
    )
    first = "the first N of each category (default: all)"
    parser.add_argument("--prompts_per_category", type=positive_int, help=first)
    add_format_arguments(parser)
    parser.add_argument(
        "--export", metavar="FILE", help="write the set to this new file, and count nothing"
    )
    parser.add_argument(
        "--audit", metavar="RUN", help="say how the prompts of this run are built, and end"
    )
    table = "print how many frames of each language this tokenizer matches, and end"
    parser.add_argument("--languages", action="store_true", help=table)
    add_table_argument(parser)
    return parser.parse_args(argv)


@writes_tables
def run(args):
    if args.audit is not None:
        return audit(args)
    check_prompt_arguments(args)
    if args.model_id is None and (args.prompt_format == "chat" or args.bos != "auto"):
        raise UserError(
            "--prompt_format chat and --bos need --model_id: they depend on the model's tokenizer"
        )
    if args.languages:
        return list_languages(args)
    if args.export is not None and args.model_id is not None:
        raise UserError("--export with --model_id: an export counts no tokens; give one of them")
    prompts, notes = load_prompts(args.prompts, args.prompts_per_category)
    if args.export is None:
        return measure(prompts, notes, args)
    write_prompt_file(_own_path(args.export, "--export"), prompts)
    print_notes(notes)
    print(f"{len(prompts)} prompts written to {printable(args.export)}")
    return 0


def audit(args):
    """Print how the prompts of a run are built."""
    flags = ("model_id", "prompts", "export", "languages")
    given = [flag for flag in flags if getattr(args, flag)]
    if given:
        raise UserError(f"--{given[0]} with --audit: the run says what its prompts are")
    from rolecircuits.drawing.tables import print_audit  # rich and numpy: not for --help

    print_audit(load_run(args.audit))


def print_notes(notes):
    for note in notes:
        print(f"note: {note}")


def measure(prompts, notes, args):
    """Count the words of prompts, or the tokens of a model, and print what follows from them."""
    if args.model_id is not None:
        check_turns(prompts, args.prompt_format, args.prompts)
    print_notes(notes)
    if args.model_id is None:
        print("no --model_id: these are words, not tokens, and nothing is prepended")
        lengths = [count_words(prompt.text) for prompt in prompts]
        spans = [(0, n) for n in lengths]
        unit = "words"
    else:
        tokenize, frames = open_tokenizer(args)
        tokenized = tokenize(prompts)
        if left_out := frames.keep_matched(tokenized)[1]:
            print_notes([frames.describe_left_out(left_out, prompts)])
        lengths, spans = zip(*((len(t.token_ids), t.span) for t in tokenized), strict=True)
        unit = "tokens"
    print_lengths(prompts, lengths, spans, unit, whole_prompt=args.prompt_format == "raw")


def open_tokenizer(args):
    """(prompts -> TokenizedPrompts of the model of these flags, the module capture.frames)."""
    with collector_paused():
        from rolecircuits.capture import frames, tokens  # jinja2: after the arguments are checked
        from rolecircuits.models import load  # torch, which counting words does without

    tokenizer = load.load_tokenizer(args.model_id, revision=args.revision)
    return partial(tokens.tokenize_all, tokenizer=tokenizer, form=PromptFormat.of(args)), frames


def list_languages(args):
    """Print how many frames of each language the tokenizer matches, and why others are lost."""
    for flag in ("prompts", "prompts_per_category", "export"):
        if getattr(args, flag) is not None:
            raise UserError(f"--{flag} with --languages: it takes every language, whole")
    if args.model_id is None:
        raise UserError("--languages needs --model_id: which frames match depends on its tokenizer")
    tokenize, frames = open_tokenizer(args)
    from rolecircuits.drawing import tables  # rich: after the arguments are checked

    rows = []
    for source in language_sets():
        tokenized = tokenize(built_in_prompts(source))
        n, why = len({prompt.frame for prompt in tokenized}), frames.find_left_out(tokenized)
        kept = n - len(why)
        rows.append((source, n, kept, f"{kept / n:.0%}", *frames.count_reasons(why).values()))
    columns = ("frames", "kept", "share", *frames.REASONS)
    title = "crossed sets under this tokenizer: frames kept, and why the others are left out"
    tables.print_table(["set", *map(tables.right, columns)], rows, title, frames.REASONS_NOTE)


def print_lengths(prompts, lengths, spans, unit, whole_prompt):
    """Lengths by category and by pair or frame, and the length null.

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
    absent = [name for name in REQUIRED if name not in category]
    if absent:
        null = f"no length null: RFC and RSI need {' and '.join(absent)} prompts"
    else:
        found = indices.length_null(category, lengths, spans, whole_prompt)
        null = "length null (uniform attention, raw index): "
        null += f"RFC {found['rfc']:+.4f}   RSI {found['rsi']:+.4f}"
    numbers = ("n", f"mean {unit}\nfed", "min", "max", f"mean {unit}\nof the text")
    tables.print_table(["category", *map(tables.right, numbers)], rows, "lengths", null)
    crossed = is_crossed(prompts)
    describe = prompt_lengths.describe_frames if crossed else prompt_lengths.describe_pairs
    title, columns, rows, summary = describe(prompts, lengths, unit)
    numbers = ("pair", "fillers", unit)
    columns = [tables.right(name) if name in numbers else name for name in columns]
    tables.print_table(columns, rows, title, summary)


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
