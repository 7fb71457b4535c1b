"""Long texts and conversations from a file, checked before a model is loaded. No torch.

    {"id": "d1", "category": "neutral", "text": "..."}
    {"id": "c1", "messages": [{"role": "user", "content": "..."}, ...]}

One JSON object a line. A text is fed raw (BOS as --bos says), a conversation in the chat template.
`category` (one of the four) is optional; RFC and RSI over documents need it. Roles that other tools
write (human, gpt) are read as ours; content may be a list of text parts, which are joined.

    python activation_analysis.py --documents FILE.jsonl --capture streaming
"""

from dataclasses import dataclass
from pathlib import Path

from rolecircuits.inputs.arguments import check_text
from rolecircuits.inputs.categories import CATEGORIES
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.files import parse_strict_json, read_text

FIELDS = ("id", "category", "text", "messages")
ROLES = ("system", "user", "assistant", "tool", "developer")
READ_AS = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}


@dataclass(frozen=True)
class Document:
    """One line of the file: turns ((role, content), ...); a text is one turn of role "text"."""

    id: str
    category: str
    turns: tuple

    @property
    def is_chat(self):
        return self.turns[0][0] != "text"


def check_document_arguments(args):
    """Refuse flags that say something of prompts, or ask for what documents do not give."""
    for name in ("prompts", "prompts_per_category", "system_prompt"):
        if getattr(args, name) is not None:
            raise UserError(
                f"--{name} with --documents: the documents are the texts; give one of them"
            )
    if args.prompt_format != "raw":
        raise UserError(
            "--prompt_format chat with --documents: messages take the chat template by themselves, "
            "text does not"
        )
    if args.raw != "none":
        raise UserError(f"--raw {args.raw} with --documents: patterns of documents are not saved")


def read_documents(path):
    """Documents of a JSONL file, checked; a UserError names file, line and field."""
    path, flag = Path(path), "--documents"
    text = read_text(path, flag)
    _refuse_pretty_printed(text, f"{flag} {path}")
    lines = text.split("\n")
    documents, seen, foreign = [], {}, set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{flag} {path}: line {number}"
        document = _read_document(parse_strict_json(line, where, one_line=True), where, foreign)
        if document.id in seen:
            raise UserError(
                f"{where}: id {printable(document.id)!r} is that of line {seen[document.id]}"
            )
        seen[document.id] = number
        documents.append(document)
    if not documents:
        raise UserError(f"{flag} {path}: holds no documents")
    if foreign:
        pairs = ", ".join(f"{role} as {READ_AS[role]}" for role in sorted(foreign))
        print(f"note: roles of other tools are read as ours: {pairs}")
    return documents


def _refuse_pretty_printed(text, where):
    """Say what a file is that holds one JSON value over several lines."""
    if text.strip().split("\n", 1)[0].strip() not in ("[", "{"):
        return
    try:
        value = parse_strict_json(text, where)
    except UserError:
        return
    what = "a JSON array" if isinstance(value, list) else "one JSON object"
    raise UserError(
        f"{where}: is {what} over several lines; write one object a line, without brackets and "
        "commas around them (JSON Lines)"
    )


def _read_document(value, where, foreign):
    if not isinstance(value, dict):
        raise UserError(
            f"{where}: is a {type(value).__name__}; it must be an object with id and text or "
            "messages, one a line"
        )
    for name in value:
        if name not in FIELDS:
            raise UserError(
                f"{where}: unknown field {printable(name)!r}; allowed are {', '.join(FIELDS)}"
            )
    _check_text(value.get("id"), f"{where}: id")
    category = value.get("category")
    category = "" if category is None else category
    if category not in ("", *CATEGORIES) or value.get("category") == "":
        raise UserError(
            f"{where}: category {printable(category)!r}; allowed are {', '.join(CATEGORIES)}, or "
            "none"
        )
    if ("text" in value) == ("messages" in value):
        raise UserError(f"{where}: must have either text or messages")
    if "text" in value:
        _check_text(value["text"], f"{where}: text")
        return Document(value["id"], category, (("text", value["text"]),))
    messages = value["messages"]
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{where}: messages must be a list that is not empty")
    turns = [_read_turn(m, f"{where}: messages[{i}]", foreign) for i, m in enumerate(messages)]
    return Document(value["id"], category, tuple(turns))


def _read_turn(message, where, foreign):
    """(role, text) of a message; roles of other tools are read as ours and added to `foreign`."""
    if not isinstance(message, dict) or set(message) != {"role", "content"}:
        raise UserError(f"{where} must be an object with role and content and nothing else")
    role = message["role"]
    _check_text(role, f"{where}.role")
    if role in READ_AS:
        foreign.add(role)
    elif role not in ROLES:
        raise UserError(
            f"{where}.role: {printable(role)[:60]!r} is none of {', '.join(ROLES)}, nor of "
            f"{', '.join(READ_AS)}, which are read as user and assistant"
        )
    content = message["content"]
    if isinstance(content, list):
        content = "".join(_read_part(p, f"{where}.content[{i}]") for i, p in enumerate(content))
    _check_text(content, f"{where}.content")
    return READ_AS.get(role, role), content


def _read_part(part, where):
    """The text of a part of a message's content; images and sounds are refused by name."""
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind != "text" or not isinstance(part.get("text"), str):
        raise UserError(
            f'{where}: is of type {printable(kind)[:60]!r}; only {{"type": "text", "text": ...}} '
            "can be fed"
        )
    return part["text"]


def _check_text(text, where):
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where} must be a text that is not empty")
    check_text(text, where)
