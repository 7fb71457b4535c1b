"""A model's chat template as a run uses it, and where it puts the texts that it is given. No torch.

which     --chat_template: one of those that the model has, by name, or a file
told what --template_arg KEY=VALUE, variables that the template reads
when      a template may print today's date: it is told the date of the run
"""

import datetime
import inspect
import json
import re
from pathlib import Path

from jinja2 import Environment, meta
from jinja2.exceptions import TemplateError

from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.specs import run_date

# A chat template is a program of the model's maker; it may divide by zero or call itself forever.
TEMPLATE_ERRORS = (
    *(TemplateError, ValueError, TypeError, LookupError, AttributeError),
    *(ArithmeticError, RecursionError),
)
MARKER = "\u2603" * 8
SYSTEM_MARKER = "\u2604" * 8
DEFAULT = "default"
GIVEN = ("messages",)  # what a template is told besides its arguments


class TurnChangedError(UserError):
    """The template drops or changes what a turn says: which turn, and which of the two."""

    def __init__(self, turn, how):
        super().__init__(f"the chat template {how} turn {turn}")
        self.turn, self.how = turn, how


class Template:
    """The chat template of a ModelTokenizer in a PromptFormat; `now` answers its strftime_now.

    name, text  which template, and its source    args   {variable: value}
    used_date   whether it asked for the date so far
    """

    def __init__(self, tokenizer, form):
        self.tokenizer, hf = tokenizer, tokenizer.hf
        self.name, self.text = choose_template(hf.chat_template, form)
        self.is_file = form.template_text is not None
        self.args = read_template_args(form.template_arg, hf, self.text)
        self.date = datetime.datetime.fromisoformat(form.date or run_date())
        self.used_date = False

    def render(self, turns, header):
        """[(role, text)] as the template writes them, with the generation prompt if `header`."""
        messages = [{"role": role, "content": text} for role, text in turns]
        options = {"add_generation_prompt": header, "chat_template": self.text} | self.args
        try:
            return self.tokenizer.render(messages, self, **options)
        except TEMPLATE_ERRORS as error:
            raise UserError(
                f"the chat template refuses these messages: {printable(error)}"
            ) from error

    def now(self):
        """The date of the run, noted as used."""
        self.used_date = True
        return self.date


def choose_template(templates, form):
    """(name, source) of the template that the form asks for.

    templates  of a tokenizer: a text, {name: text}, or None
    """
    if form.template_text is not None:
        return Path(form.chat_template).name, form.template_text
    if not templates:
        raise UserError(
            "--prompt_format chat: this model has no chat template; use --prompt_format raw, or "
            "give one with --chat_template FILE"
        )
    named = templates if isinstance(templates, dict) else {DEFAULT: templates}
    wanted = form.chat_template or (next(iter(named)) if len(named) == 1 else DEFAULT)
    if wanted not in named:
        names = ", ".join(printable(name) for name in sorted(named))
        if form.chat_template is None:
            raise UserError(
                "this model has several chat templates and none is the default: name one with "
                f"--chat_template; it has {names}"
            )
        raise UserError(
            f"--chat_template {printable(wanted)}: this model has {names}; a file's name has a dot"
        )
    return wanted, named[wanted]


def read_template_args(words, hf, source):
    """{variable: value} of ["KEY=VALUE", ...]: JSON values, and texts where they are not JSON.

    A variable that the template does not read, or that it is told anyway, is refused.
    """
    told = {*inspect.signature(hf.apply_chat_template).parameters, *hf.special_tokens_map, *GIVEN}
    args, read = {}, variables_of(source) if words else ()
    for word in words:
        key, _, value = word.partition("=")
        shown = printable(key)
        if key in told:
            raise UserError(f"--template_arg {shown}: is set by this program")
        if key in args:
            raise UserError(f"--template_arg {shown}: is given twice")
        if key not in read:
            raise UserError(f"--template_arg {shown}: the chat template reads no such variable")
        check_special_tokens([(f"--template_arg {shown}", value)], hf)
        args[key] = _json_or_text(value)
    return args


def variables_of(source):
    """The names that a chat template reads and does not set itself."""
    source = re.sub(r"{%[-+]?\s*(end)?generation\s*[-+]?%}", "", source)  # a tag of transformers
    environment = Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True)
    try:
        return meta.find_undeclared_variables(environment.parse(source))
    except TemplateError as error:
        raise UserError(f"the chat template cannot be read: {printable(error)}") from error


def _json_or_text(value):
    def refuse(name):
        raise ValueError(name)

    try:
        return json.loads(value, parse_constant=refuse)
    except (ValueError, RecursionError):
        return value


def check_special_tokens(texts, hf):
    """Refuse [(what it is, text)] with the text of a special token, which would be read as it."""
    specials = [token for token in hf.all_special_tokens if token.strip()]
    specials += [str(token) for token in hf.added_tokens_decoder.values() if token.special]
    for what, text in texts:
        for token in specials:
            if token in text:
                raise UserError(
                    f"{what} contains the special token {printable(token)!r}; take it out"
                )


def locate_turns(render, turns):
    """(rendered conversation, [(start, stop) of each turn's text in characters]).

    render  function of [(role, text)]

    The conversation is rendered a second time with markers in place of the texts. What stands
    between the markers must stand between the texts; white space at a text's ends may be gone.
    Raises TurnChangedError.
    """
    markers = [f"{MARKER}{i}{MARKER}" for i in range(len(turns))]
    rendered = render(turns)
    pattern = render([(role, marker) for (role, _), marker in zip(turns, markers, strict=True)])
    between, cursor = [], 0
    for i, marker in enumerate(markers):
        at = pattern.find(marker, cursor)
        if at < 0:
            raise TurnChangedError(i, "drops")
        between.append(pattern[cursor:at])
        cursor = at + len(marker)
    between.append(pattern[cursor:])
    if not rendered.startswith(between[0]):
        raise TurnChangedError(0, "changes")
    places, start = [], len(between[0])
    for i, ((_, text), after) in enumerate(zip(turns, between[1:], strict=True)):
        rest = rendered[start:]
        is_last = i == len(turns) - 1
        for own in (text, text.rstrip(), text.lstrip(), text.strip()):
            if (rest == own + after) if is_last else rest.startswith(own + after):
                break
        else:
            raise TurnChangedError(i, "changes")
        places.append((start, start + len(own)))
        start += len(own) + len(after)
    return rendered, places
