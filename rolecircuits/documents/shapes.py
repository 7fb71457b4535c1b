"""The shapes of rows that people have, each read as one document. Standard library only.

    text                                     a text
    messages, conversation                   turns {"role", "content"}         (OpenAI chat)
    conversations                            turns {"from", "value"}           (ShareGPT)
    data                                     texts, user and assistant in turn (UltraChat)
    question                                 a text, or the user's turn        (evals)
    instruction, input, output               a text, or a user's and an assistant's turn (Alpaca)

A list of turns is fed in the chat template. What is no conversation is fed raw, its parts with an
empty line between, or with --prompt_format chat as turns. Every other field of a row is left out.

    reader = RowReader(Fields(), "raw")
    document = reader.read({"question": "Who are you?"}, "line-1")
"""

import contextlib
import json
from collections import Counter
from dataclasses import dataclass

from rolecircuits.inputs.arguments import check_text
from rolecircuits.inputs.categories import check_category
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.prompt_files import check_spelling

TEXTS = ("text", "question", "instruction")
TURNS = ("messages", "conversation", "conversations", "data")
LISTS_ONLY = ("conversation", "data")  # names that hold other things in other files
IDS = ("id", "prompt_id")
CATEGORY = "category"
ROLES = ("system", "user", "assistant", "tool")
READ_AS = {
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model", "function_call"), "assistant"),
    **dict.fromkeys(("function", "observation"), "tool"),
    "human": "user",
    "developer": "system",
}
PARTS = ("text", "input_text", "output_text")  # types of a message's parts that hold a text
CALLS = ("tool_calls", "function_call")
OF_A_TURN = ("role", "from", "content", "value", *CALLS)
SHOWN = 60  # characters of a user's text in a message


@dataclass(frozen=True)
class Document:
    """One row of the file: turns ((role, content), ...); a text is one turn of role "text"."""

    id: str
    category: str
    turns: tuple

    @property
    def is_chat(self):
        return self.turns[0][0] != "text"


@dataclass(frozen=True)
class Fields:
    """The fields that --text_field, --messages_field, --id_field and --category_field name."""

    text: str | None = None
    messages: str | None = None
    id: str | None = None
    category: str | None = None


class RowReader:
    """Reads rows, and counts what it takes of those that are documents.

    prompt_format  "chat": what is no conversation becomes turns too

    shapes   {field(s): documents}    ids    {field, or "place": documents}
    ignored  {field: documents}       roles  {role of the file: role that it is read as}
    calls    tool calls that became text
    places   {id: place}; an id twice is refused
    """

    def __init__(self, fields: Fields, prompt_format):
        self.fields, self.chat = fields, prompt_format == "chat"
        self.shapes, self.ids, self.ignored = Counter(), Counter(), Counter()
        self.roles, self.calls, self.places = {}, 0, {}

    def read(self, value, place):
        """The Document of a row; a UserError says what is wrong with it.

        place  its id where the row has none
        """
        if not isinstance(value, dict):
            raise UserError(f"is a {type(value).__name__}; it must be an object of fields")
        found = _Found()
        name, id_field = self._content_field(value), self._id_field(value)
        used = [name, id_field]
        if name == self.fields.messages or (name in TURNS and name != self.fields.text):
            turns = _read_turns(value[name], name, found)
        else:
            parts = [name]
            if name == "instruction" and self.fields.text is None:
                parts = ["instruction", *(["input"] if value.get("input") else []), "output"]
                used += ["input", "output"]
            turns = self._turns_of_texts([_read_text(value[part], part) for part in parts])
            name = ", ".join(parts)
        category, category_field = self._category(value)
        document = Document(_read_id(value, id_field, place), category, turns)
        if document.id in self.places:
            shown = printable(document.id)[:SHOWN]
            raise UserError(f"id {shown!r} is that of {self.places[document.id]}")
        self.places[document.id] = place
        self.shapes[name] += 1
        self.ids[id_field or "place"] += 1
        self.roles |= found.roles
        self.calls += found.calls
        self.ignored.update(found.ignored.union(value).difference(used, {category_field}))
        return document

    def _content_field(self, value):
        """The name of the field that holds what is fed: the only one that there is."""
        given = [name for name in (self.fields.text, self.fields.messages) if name is not None]
        there = [name for name in given or (*TEXTS, *TURNS) if value.get(name) is not None]
        if not given:
            there = [n for n in there if n not in LISTS_ONLY or isinstance(value[n], list)]
            if "instruction" in there and value.get("output") is None:
                there.remove("instruction")
            elif "instruction" in there and "text" in there:
                there.remove("text")  # in Alpaca's own file: the same three texts as one
        if len(there) == 1:
            return there[0]
        if there:
            turns = (self.fields.messages,) if given else TURNS
            flags = ", ".join(
                f"--{'messages' if name in turns else 'text'}_field {printable(name)}"
                for name in there
            )
            names = " and ".join(printable(name) for name in there)
            raise UserError(f"has {names}; say which is meant: {flags}")
        names = ", ".join(printable(name)[:SHOWN] for name in list(value)[:12]) or "none"
        if given:
            missing = " or ".join(printable(name)[:SHOWN] for name in given)
            raise UserError(f"has no field {missing}; its fields: {names}")
        raise UserError(
            "has no field that is known to hold a text; say which does with --text_field or "
            f"--messages_field; its fields: {names}"
        )

    def _id_field(self, value):
        """The field that names the row, or None."""
        if self.fields.id is not None:
            return self.fields.id
        return next((name for name in IDS if value.get(name) is not None), None)

    def _category(self, value):
        """(category or "", its field or None)."""
        asked = self.fields.category
        name = CATEGORY if asked is None else asked
        category = value.get(name) if name else None
        if category is None:
            if asked:
                raise UserError(f"has no field {printable(name)[:SHOWN]} for its category")
            return "", name if name in value else None
        try:
            check_category(category, f"field {printable(name)[:SHOWN]}")
            check_spelling(category, f"field {printable(name)[:SHOWN]}")
        except UserError as error:
            raise UserError(f'{error}; --category_field "" reads none') from error
        return category, name

    def _turns_of_texts(self, texts):
        """A text, and perhaps an input and an answer: one raw text, or turns."""
        if not self.chat:
            return (("text", "\n\n".join(texts)),)
        if len(texts) == 1:
            return (("user", texts[0]),)
        return (("user", "\n\n".join(texts[:-1])), ("assistant", texts[-1]))


class _Found:
    """What one row's turns held besides texts."""

    def __init__(self):
        self.roles, self.ignored, self.calls = {}, set(), 0


def _read_id(value, field, place):
    """The id of a row; its place where it has none."""
    if field is None:
        return place
    own, shown = value.get(field), printable(field)[:SHOWN]
    if type(own) is int:
        own = str(own)
    return _read_text(own, shown)


def _read_text(text, name):
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"field {printable(name)[:SHOWN]} must be a text that is not empty")
    check_text(text, f"field {printable(name)[:SHOWN]}")
    return text


def _read_turns(items, name, found):
    """Turns of a list of messages, or of texts that user and assistant say in turn."""
    shown = printable(name)[:SHOWN]
    if not isinstance(items, list) or not items:
        raise UserError(f"field {shown} must be a list of turns that is not empty")
    if all(isinstance(item, str) for item in items):
        speakers = ("user", "assistant")
        return tuple(
            (speakers[i % 2], _read_text(item, f"{shown}[{i}]")) for i, item in enumerate(items)
        )
    return tuple(_read_turn(item, f"{shown}[{i}]", found) for i, item in enumerate(items))


def _read_turn(message, where, found):
    """(role, text) of a message, whose role and text may go by several names."""
    if not isinstance(message, dict):
        raise UserError(f"field {where} is a {type(message).__name__}; it must be an object")
    role = message.get("role", message.get("from"))
    if not isinstance(role, str):
        raise UserError(f"field {where} has no role (or from) that is a text")
    if role in READ_AS:
        found.roles[role] = READ_AS[role]
    elif role not in ROLES:
        raise UserError(
            f"field {where}: role {printable(role)[:SHOWN]!r} is none of {', '.join(ROLES)}, nor "
            f"of {', '.join(READ_AS)}, which are read as these"
        )
    content = message.get("content", message.get("value"))
    if isinstance(content, list):
        parts = [_read_part(part, f"{where}[{i}]") for i, part in enumerate(content)]
        content = "".join(parts)
    calls = [
        line for name in CALLS if message.get(name) for line in _write_calls(message[name], where)
    ]
    if calls:
        found.calls += len(calls)
        own = [] if content in (None, "") else [_read_text(content, where)]
        content = "\n".join(own + calls)
    if content is None:
        raise UserError(f"field {where} has neither a content nor a tool call")
    found.ignored.update(name for name in message if name not in OF_A_TURN)
    return READ_AS.get(role, role), _read_text(content, where)


def _read_part(part, where):
    """The text of a part of a message's content; images and sounds are refused by name."""
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind not in PARTS or not isinstance(part.get("text"), str):
        raise UserError(
            f"field {where} is a part of type {printable(kind)[:SHOWN]!r}; only "
            f"{', '.join(PARTS)} can be fed"
        )
    return part["text"]


def _write_calls(calls, where):
    """Tool calls as texts, a JSON object each: {"name": ..., "arguments": ...}."""
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise UserError(f"field {where} holds a tool call without a function's name")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):  # JSON in a text, as the API writes it
            with contextlib.suppress(ValueError, RecursionError):
                arguments = json.loads(arguments)
        written = {"name": function["name"], "arguments": arguments}
        try:
            yield json.dumps(written, ensure_ascii=False)
        except RecursionError as error:
            raise UserError(f"field {where} holds a tool call nested too deeply") from error
