"""Long texts and conversations from a file, checked before a model is loaded. No torch.

    .txt             a line a document
    anything else    JSON: one object a line, or an array of objects, in the shapes of `shapes`

A row that is no document is recorded with its reason and the rest goes on. Ids are those of the
rows (id, prompt_id or --id_field), else the place in the file: line-12, or item-12 of an array.
`category` (or --category_field) is optional; RFC and RSI over documents need the usual names.

    python activation_analysis.py --documents FILE.jsonl --capture streaming
    python activation_analysis.py --documents evals.jsonl --prompt_format chat
"""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from rolecircuits.documents.shapes import (
    CATEGORY,
    READ_AS,
    TEXTS,
    TURNS,
    Document,
    Fields,
    RowReader,
)
from rolecircuits.inputs.categories import MAX_CATEGORIES
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.files import parse_strict_json, read_text

FLAG = "--documents"
FIELD_FLAGS = {
    "text_field": "field that holds a text",
    "messages_field": "field that holds a list of turns",
    "id_field": "field that names a document (default: id or prompt_id, else its line)",
    "category_field": 'field that holds its category (default: category; "" reads none)',
}
SHAPES = (
    f"one object a line, or a JSON array of objects, with {', '.join((*TEXTS[:2], *TURNS))}, or "
    "instruction and output; a .txt file holds a document a line"
)
ANY_ARRAY = re.compile(r"\s*\[")
ARRAY = re.compile(r"\s*\[\s*[\[{\"\]]")  # in a .txt: a line may be "[Ann] Hello"
NAMED = 12  # names of ignored fields in a note


@dataclass(frozen=True)
class Reading:
    """What a file gave.

    documents  [Document]    failed  [(place, reason)] of rows that are no document
    facts      what was read, for the run's config: layout, rows, shapes, ids, ignored, roles, and
               the format: raw, chat, or mixed where some are conversations
    """

    documents: list[Document]
    failed: list
    facts: dict


def add_document_arguments(parser):
    """--documents, and which fields of its rows are read."""
    group = parser.add_argument_group("documents")
    group.add_argument(
        FLAG, metavar="FILE", help="long texts or conversations (JSON lines or array, or .txt)"
    )
    for name, what in FIELD_FLAGS.items():
        group.add_argument(f"--{name}", metavar="FIELD", help=what)


def check_document_arguments(args):
    """Refuse flags that say something of prompts, or ask for what documents do not give."""
    if args.documents is None:
        for name in FIELD_FLAGS:
            if getattr(args, name) is not None:
                raise UserError(f"--{name} needs {FLAG}: it names a field of its rows")
        return
    for name in ("prompts", "prompts_per_category", "system_prompt"):
        if getattr(args, name) is not None:
            raise UserError(f"--{name} with {FLAG}: the documents are the texts; give one of them")
    for name in ("text_field", "messages_field", "id_field"):
        if getattr(args, name) == "":
            raise UserError(f"--{name}: is empty; give the name of a field")
    if args.text_field is not None and args.text_field == args.messages_field:
        raise UserError("--text_field and --messages_field name the same field; give one of them")
    if args.raw != "none":
        raise UserError(f"--raw {args.raw} with {FLAG}: patterns of documents are not saved")


def fields_of(args):
    """The Fields that these parsed arguments name."""
    return Fields(*(getattr(args, name) for name in FIELD_FLAGS))


def read_documents(path, fields=None, prompt_format="raw"):
    """The Reading of a file; a UserError where nothing in it is a document.

    fields  Fields, or None    prompt_format  of what is no conversation, as in `shapes`
    """
    path = Path(path)
    file, reader = f"{FLAG} {path}", RowReader(fields or Fields(), prompt_format)
    layout, rows = split_rows(read_text(path, FLAG), path)
    documents, failed = [], []
    for place, row in rows:
        try:
            value = row if layout != "JSON lines" else _parse_line(row)
            document = reader.read(value, place)
        except UserError as error:
            failed.append((place, str(error)))
        else:
            documents.append(document)
    _check_any(file, documents, failed)
    chats = {document.is_chat for document in documents}
    facts = {
        "format": "mixed" if len(chats) > 1 else "chat" if True in chats else "raw",
        "layout": layout,
        "rows": len(rows),
        "shapes": dict(reader.shapes),
        "ids": dict(reader.ids),
        "ignored": sorted(reader.ignored),
        "roles": reader.roles,
    }
    return Reading(documents, failed, facts | {"tool_calls_as_text": reader.calls})


def _check_any(file, documents, failed):
    """Refuse a file without documents, or with more categories than can be told apart."""
    if not documents and not failed:
        raise UserError(f"{file}: holds no documents; read are {SHAPES}")
    if not documents:
        (place, reason), n = failed[0], len(failed)
        which = "its only row is no" if n == 1 else f"none of its {n} rows is a"
        raise UserError(f"{file}: {which} document: {place}: {reason}; read are {SHAPES}")
    n = len({document.category for document in documents} - {""})
    if n > MAX_CATEGORIES:
        raise UserError(
            f"{file}: has {n} categories; at most {MAX_CATEGORIES} can be compared; "
            '--category_field names another field, "" reads none'
        )


def split_rows(text, path):
    """(layout, [(place, row)]): an array's items, lines of JSON or of text, empty ones left out."""
    is_text = path.suffix.lower() == ".txt"
    if (ARRAY if is_text else ANY_ARRAY).match(text):
        return "JSON array", _array_items(text, f"{FLAG} {path}")
    lines = [(f"line-{n}", line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if is_text and not _is_json_line(lines):
        return "text lines", [(place, {"text": line.strip()}) for place, line in lines]
    _refuse_pretty_printed(text, f"{FLAG} {path}")
    return "JSON lines", lines


def _array_items(text, where):
    """The items of a JSON array."""
    items = parse_strict_json(text, where)
    return [(f"item-{n}", item) for n, item in enumerate(items, 1)]


def _is_json_line(lines):
    """Whether the first line is an object: JSON lines under the name of a text file."""
    if not lines or not lines[0][1].startswith("{"):
        return False
    try:
        return isinstance(_parse_line(lines[0][1]), dict)
    except UserError:
        return False


def _parse_line(line):
    return parse_strict_json(line, "this line", one_line=True)


def _refuse_pretty_printed(text, where):
    """Say what a file is that holds one JSON object over several lines."""
    if text.strip().split("\n", 1)[0].strip() != "{":
        return
    try:
        parse_strict_json(text, where)
    except UserError:
        return
    raise UserError(
        f"{where}: is one JSON object over several lines; write one object a line (JSON Lines), or "
        "an array of objects"
    )


def describe_reading(reading: Reading, path):
    """Lines on what was taken of a file and what was not."""
    facts, n = reading.facts, len(reading.documents)
    taken = ", ".join(f"{count} of {printable(name)}" for name, count in facts["shapes"].items())
    parts = [f"{printable(path)}: {facts['layout']}, {n} documents: {taken}"]
    chats = sum(document.is_chat for document in reading.documents)
    fed = {"in the chat template": chats, "as raw text": n - chats}
    parts.append(", ".join(f"{count} {how}" for how, count in fed.items() if count))
    if facts["ids"].get("place"):
        parts.append(f"{facts['ids']['place']} named by their place")
    if facts["roles"]:
        pairs = ", ".join(f"{role} as {READ_AS[role]}" for role in sorted(facts["roles"]))
        parts.append(f"roles read as ours: {pairs}")
    if facts["tool_calls_as_text"]:
        parts.append(f"{facts['tool_calls_as_text']} tool calls written as JSON text")
    names, more = facts["ignored"][:NAMED], len(facts["ignored"]) - NAMED
    if names:
        listed = ", ".join(printable(name)[:60] for name in names)
        parts.append(f"ignored: {listed}" + (f" and {more} more" if more > 0 else ""))
    if difflib.get_close_matches(CATEGORY, facts["ignored"], 1, 0.85):
        parts.append(f"did you mean {CATEGORY}?")
    lines = ["; ".join(parts)]
    if reading.failed:
        rows = f"{len(reading.failed)} of {facts['rows']} rows"
        lines.append(f"{rows} are no documents, {reading.failed[0][0]} first; the rest goes on")
    return lines
