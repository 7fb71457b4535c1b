"""Which frames of a crossed prompt set are matched under real vocabularies?

A frame is a template with one {slot} and one {filler}. It is kept under a vocabulary if, for each
of its fillers,

    all categories have the same number of tokens, and
    the tokens before the slot are the same in all of them, and so are the tokens after it

"Before" and "after" are the template's own text. Comparing tokens alone (what the categories begin
and end with in common) would keep any frame whose counts agree; here a token that reaches over
the slot's edge breaks it. Beginning-of-sequence tokens are left out: they are the same for all. A
tokenizer with a chat template is checked twice, raw and with the text as the user's turn.

Exit code 1 if a vocabulary keeps less than 90 % of the frames; with --languages, if fewer than 90 %
of the English frames, or 60 % of those of another language, are kept by two vocabularies or more.

    python benchmarks/check_frames.py                    the bundled SmolLM2 tokenizer
    python benchmarks/check_frames.py --list             the frames as a table, nothing checked
    python benchmarks/check_frames.py --prompts FILE     another JSON list of frames
    python benchmarks/check_frames.py --languages        the sets of all languages, one a line
    python benchmarks/check_frames.py --vocabulary NAME=PATH ...    and more vocabularies

PATH is a tokenizer folder for transformers, a sentencepiece model, or a file of tiktoken ranks.
Three vocabularies come in PyPI packages, which are downloaded and unpacked, never installed.
Llama's has its own licence: it is read here and never shipped.

    pip download --no-deps mistral-common dashscope llama-models
    for wheel in *.whl; do python -m zipfile -e $wheel vocabularies; done
    pip install sentencepiece tiktoken                   these read them; the project needs neither
    python benchmarks/check_frames.py \\
        --vocabulary mistral-v1=vocabularies/mistral_common/data/tokenizer.model.v1 \\
        --vocabulary qwen=vocabularies/dashscope/resources/qwen.tiktoken \\
        --vocabulary llama3=vocabularies/llama_models/llama3/tokenizer.model
"""

import argparse
import base64
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rolecircuits.inputs import categories, languages  # noqa: E402
from rolecircuits.inputs.errors import UserError, one_line, printable  # noqa: E402
from rolecircuits.inputs.files import read_strict_json  # noqa: E402
from rolecircuits.inputs.parser import Parser, run_script  # noqa: E402

CROSSED = Path(categories.__file__).with_name("crossed.json")
FIELDS = ("frame", "construction", "template", "slots", "fillers")
ENOUGH, ENOUGH_ELSEWHERE = 90, 60  # percent, of English and of other languages
# How Qwen and Llama 3 cut text before tokens are merged. They differ only in how they group digits,
# so a text with a digit is refused.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Vocabulary:
    """encode(string) -> ids, decode(ids) -> string, render(text) -> the string that is fed."""

    name: str
    encode: Callable
    decode: Callable
    render: Callable = str


def read_frames(path):
    """The frames of a set; its own mistakes (not those of tokens) are refused with one line."""
    file, frames = f"--prompts {path}", read_strict_json(path, "--prompts")
    if not isinstance(frames, list) or not frames:
        raise UserError(f"{file}: a list of frames is needed")
    for i, frame in enumerate(frames):
        if problem := check_form(frame):
            raise UserError(f"{file}: frame {i + 1}: {problem}")
        if set(frame["slots"]) != set(frames[0]["slots"]):
            raise UserError(f"{file}: frame {i + 1}: its categories are not those of the first")
    names = [frame["frame"] for frame in frames]
    texts = ["".join(parts) for f in frames for cell in expand_frame(f).values() for parts in cell]
    for what, values in (("frame", names), ("text", texts)):
        value, times = Counter(values).most_common(1)[0]
        if times > 1:
            raise UserError(f"{file}: the {what} {printable(value)!r} stands there {times} times")
    return frames


def check_form(frame):
    """What is wrong with a frame before any tokenizer sees it, or None."""
    if not isinstance(frame, dict) or set(frame) != set(FIELDS):
        return f"an object with {', '.join(FIELDS)} is needed"
    *strings, slots, fillers = (frame[field] for field in FIELDS)
    if not isinstance(slots, dict) or len(slots) < 2 or not isinstance(fillers, list):
        return "slots must be an object of two categories or more, fillers a list"
    if not fillers or not all(isinstance(s, str) for s in (*strings, *slots.values(), *fillers)):
        return "its fields hold texts, and at least one filler"
    template = frame["template"]
    if template.count("{slot}") != 1 or template.count("{filler}") != 1:
        return "the template needs {slot} once and {filler} once"
    return None


def expand_frame(frame):
    """{filler: [(text before the slot, slot, text after it) of every category]}"""
    cells = {}
    for filler in frame["fillers"]:
        before, after = frame["template"].replace("{filler}", filler).split("{slot}")
        cells[filler] = [(before, slot, after) for slot in frame["slots"].values()]
    return cells


def check_tokens(frame, vocabulary):
    """What breaks a frame under a vocabulary, or None."""
    for filler, cells in expand_frame(frame).items():
        rows = [vocabulary.encode(vocabulary.render("".join(parts))) for parts in cells]
        lengths = [len(row) for row in rows]
        if len(set(lengths)) > 1:
            slots = zip(frame["slots"].values(), lengths, strict=True)
            return f"{filler}: tokens " + ", ".join(f"{slot} {n}" for slot, n in slots)
        before, slot, after = cells[0]
        text = before + slot + after
        whole = vocabulary.render(text)
        start = whole.find(text)
        if start < 0:
            return f"{filler}: the chat template changes the text"
        # A space at the slot's edge may belong to a token of the slot.
        head = whole[: start + len(before)].rstrip(" ")
        tail = whole[start + len(before + slot) :].lstrip(" ")
        first = count_common(rows)
        last = lengths[0] - count_common([row[::-1] for row in rows])
        if not vocabulary.decode(rows[0][:first]).startswith(head):
            return f"{filler}: tokens before the slot differ"
        if not vocabulary.decode(rows[0][last:]).endswith(tail):
            return f"{filler}: tokens after the slot differ"
    return None


def count_common(rows):
    """With how many equal tokens these rows begin."""
    columns = enumerate(zip(*rows, strict=True))
    return next((i for i, column in columns if len(set(column)) > 1), len(rows[0]))


def load_vocabularies(name, path):
    """One Vocabulary, or two (raw and chat) for a folder with a chat template."""
    if path.is_dir():
        return load_folder(name, path)
    try:
        if is_rank_file(path):
            return [load_ranks(name, path)]
        from sentencepiece import SentencePieceProcessor  # the project does not need it

        model = SentencePieceProcessor(model_file=str(path))
    except ImportError as error:
        raise UserError(f"--vocabulary {name}: it needs: pip install {error.name}") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"--vocabulary {name}: cannot be read: {one_line(error)}") from error
    return [Vocabulary(name, model.encode, model.decode)]


def is_rank_file(path):
    """Whether the first line is a token in base64 and its number."""
    with open(path, "rb") as file:
        words = file.readline(200).split()
    return len(words) == 2 and words[1].isdigit()


def load_ranks(name, path):
    import tiktoken  # the project does not need it

    lines = (line.split() for line in path.read_bytes().splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    coding = tiktoken.Encoding(name, pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})

    def encode(text):
        if any(c.isdigit() for c in text):
            raise UserError(f"--vocabulary {name}: {printable(text)!r}: write numbers as words")
        return coding.encode_ordinary(text)

    return Vocabulary(name, encode, coding.decode)


def load_folder(name, path):
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers import AutoTokenizer  # seconds, which --help and --list do without

    try:
        hf = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"--vocabulary {name}: no tokenizer there: {one_line(error)}") from error

    def encode(text):
        return hf(text, add_special_tokens=False).input_ids

    def decode(ids):
        return hf.decode(ids, clean_up_tokenization_spaces=False)

    def render(text):
        turns = [{"role": "user", "content": text}]
        return hf.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    found = [Vocabulary(name, encode, decode)]
    if hf.chat_template:
        found.append(Vocabulary(f"{name} (chat)", encode, decode, render))
    return found


def table_row(name, frames, broken):
    """A line of the table; `broken` are the names of the frames that are left out."""
    kept = [frame for frame in frames if frame["frame"] not in broken]
    cells = [parts for frame in kept for cell in expand_frame(frame).values() for parts in cell]
    first = {categories.first_word("".join(parts)) for parts in cells}
    constructions = {frame["construction"] for frame in kept}
    share = f"{len(kept) / len(frames):.0%}"
    return f"| {name} | {len(kept)} | {share} | {len(first)} | {len(constructions)} |"


def check_languages(vocabularies):
    """(lines of a Markdown table: frames kept by set and vocabulary, whether they are enough).

    The last column counts the frames that two vocabularies or more keep. Text alone: the chat
    templates of folders are left out. Sets without the pronoun have no share to reach.
    """
    names = " | ".join(vocabulary.name for vocabulary in vocabularies)
    lines, enough = [f"| set | frames | {names} | two or more |"], True
    lines.append("|---" * (3 + len(vocabularies)) + "|")
    for source in languages.language_sets():
        frames = languages.read_frames(source)
        kept = [[check_tokens(frame, v) is None for frame in frames] for v in vocabularies]
        twice = sum(sum(own) > 1 for own in zip(*kept, strict=True))
        counts = " | ".join(str(sum(of_vocabulary)) for of_vocabulary in kept)
        share = f"{twice / len(frames):.0%}"
        lines.append(f"| `{source}` | {len(frames)} | {counts} | {twice} ({share}) |")
        least = ENOUGH if source == f"{languages.PREFIX}en" else ENOUGH_ELSEWHERE
        if not source.endswith(languages.DROP):
            enough &= 100 * twice >= least * len(frames)
    return lines, enough


def list_frames(frames):
    """The frames as a Markdown table."""
    lines = [f"| frame | construction | template | {' / '.join(frames[0]['slots'])} | fillers |"]
    lines.append("|---|---|---|---|---|")
    for frame in frames:
        slots, fillers = " / ".join(frame["slots"].values()), ", ".join(frame["fillers"])
        row = (frame["frame"], frame["construction"], frame["template"], slots, fillers)
        lines.append(printable(f"| {' | '.join(row)} |"))
    return "\n".join(lines)


def name_path(text):
    name, _, path = text.partition("=")
    if not name or not path or not Path(path).expanduser().exists():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH of something that exists")
    return name, Path(path).expanduser()


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--prompts", type=Path, default=CROSSED, help="JSON list of frames (default: crossed)"
    )
    parser.add_argument(
        "--vocabulary",
        type=name_path,
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="one more vocabulary beside the bundled one; may be given several times",
    )
    every = "print how many frames of each language each vocabulary keeps, and stop"
    parser.add_argument("--languages", action="store_true", help=every)
    parser.add_argument("--list", action="store_true", help="print the frames and stop")
    return parser.parse_args(argv)


def run(args):
    frames = read_frames(args.prompts)
    if args.list:
        print(list_frames(frames))
        return 0
    from rolecircuits.models.source import bundled_folder  # torch, which --list does without

    named = [("smollm2", bundled_folder()), *args.vocabulary]
    if args.languages:
        lines, enough = check_languages([load_vocabularies(*own)[0] for own in named])
        print("\n".join(lines))
        return 0 if enough else 1
    broken, rows, enough = {}, [], True
    for vocabulary in [v for name, path in named for v in load_vocabularies(name, path)]:
        reasons = {frame["frame"]: check_tokens(frame, vocabulary) for frame in frames}
        broken[vocabulary.name] = {name: why for name, why in reasons.items() if why}
        rows.append(table_row(vocabulary.name, frames, broken[vocabulary.name]))
        kept = len(frames) - len(broken[vocabulary.name])
        enough &= 100 * kept >= ENOUGH * len(frames)
    anywhere = {name for names in broken.values() for name in names}
    print(f"| vocabulary | frames kept of {len(frames)} | share | first words | constructions |")
    print("\n".join(["|---|---|---|---|---|", *rows, table_row("all of them", frames, anywhere)]))
    for vocabulary, reasons in broken.items():
        for name, why in reasons.items():
            print(printable(f"left out under {vocabulary}: {name}: {why}"))
    return 0 if enough else 1


if __name__ == "__main__":
    raise SystemExit(run_script(parse_args, run))
