"""Long texts and conversations from a file, checked before a model is loaded. No torch.

    {"id": "d1", "category": "neutral", "text": "..."}
    {"id": "c1", "messages": [{"role": "user", "content": "..."}, ...]}

One JSON object a line. A text is fed raw (BOS as --bos says), a conversation in the chat template.
`category` (one of the four) is optional; RFC and RSI over documents need it.

    python activation_analysis.py --documents FILE.jsonl --capture streaming
"""

from dataclasses import dataclass
from pathlib import Path

from rolecircuits.inputs.arguments import check_text
from rolecircuits.inputs.categories import CATEGORIES
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.files import parse_strict_json, read_text

FIELDS = ("id", "category", "text", "messages")


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
    if args.raw not in (None, "none"):
        raise UserError(f"--raw {args.raw} with --documents: patterns of documents are not saved")


def read_documents(path):
    """Documents of a JSONL file, checked; a UserError names file, line and field."""
    path, flag = Path(path), "--documents"
    lines = read_text(path, flag).split("\n")
    documents, seen = [], {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{flag} {path}: line {number}"
        document = _read_document(parse_strict_json(line, where, one_line=True), where)
        if document.id in seen:
            raise UserError(
                f"{where}: id {printable(document.id)!r} is that of line {seen[document.id]}"
            )
        seen[document.id] = number
        documents.append(document)
    if not documents:
        raise UserError(f"{flag} {path}: holds no documents")
    return documents


def _read_document(value, where):
    if not isinstance(value, dict):
        raise UserError(
            f"{where}: is a {type(value).__name__}; it must be an object with id and text or "
            "messages"
        )
    for name in value:
        if name not in FIELDS:
            raise UserError(
                f"{where}: unknown field {printable(name)!r}; allowed are {', '.join(FIELDS)}"
            )
    _check_text(value.get("id"), f"{where}: id")
    category = value.get("category", "")
    if "category" in value and category not in CATEGORIES:
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
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise UserError(
                f"{where}: messages[{i}] must be an object with role and content and nothing else"
            )
        for name in ("role", "content"):
            _check_text(message[name], f"{where}: messages[{i}].{name}")
        if message["role"] == "text":
            raise UserError(f"{where}: messages[{i}].role: 'text' is no role")
    return Document(value["id"], category, tuple((m["role"], m["content"]) for m in messages))


def _check_text(text, where):
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where} must be a text that is not empty")
    check_text(text, where)
