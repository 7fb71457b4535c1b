"""Stream long texts and conversations through a model: entropies of each document and of each of its turns.

    {"id": "d1", "category": "neutral", "text": "..."}                                  a text, fed raw (BOS as --bos says)
    {"id": "c1", "messages": [{"role": "user", "content": "..."}, ...]}                 a conversation, in the chat template

One JSON object a line; `category` (one of the four) is optional, and RFC and RSI over documents need it. The rows of a turn are
those of its own content; the rows of a document are those of all of its turns. Values are means over rows, then over heads:

    normalised  H / ln(visible keys)     sinkfree  the same without key 0     sink_mass  attention on key 0

Every finished document is a shard, <output_dir>/document_shards/<hash>.npz, named by what determines its numbers: model,
dtype, capture, tokens and turns. The same command continues where it was stopped; a changed model or text has another name.

    python activation_analysis.py --documents FILE.jsonl --capture streaming
"""

from dataclasses import dataclass
from pathlib import Path

from rolecircuits.inputs.categories import CATEGORIES
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.files import parse_strict_json

FIELDS = ("id", "category", "text", "messages")


@dataclass(frozen=True)
class Document:
    """One line of the file: `turns` is ((role, content), ...); a text is one turn with the role "text"."""

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
    try:
        if not path.is_file():
            why = (
                "is a folder"
                if path.is_dir()
                else "is not a regular file"
                if path.exists()
                else "no such file"
            )
            raise UserError(f"{flag} {path}: {why}")
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(f"{flag} {str(path)[:200]}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{flag} {path}: not UTF-8 at byte {error.start}") from error
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
            f"{where}: is a {type(value).__name__}; it must be an object with id and text or messages"
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
            f"{where}: category {printable(category)!r}; allowed are {', '.join(CATEGORIES)}, or none"
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
    if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        raise UserError(f"{where} holds half a surrogate pair, which is not a character")
