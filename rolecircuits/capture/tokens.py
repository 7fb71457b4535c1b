"""From a prompt to the tokens that a model is fed, and where its parts stand among them. No torch.

    span      the prompt's own text
    slot      in a crossed set: the tokens in which the persons of a cell differ
    segments  of every token: sink, system text, template, user text, assistant text and header

A set with texts in the assistant's turn is fed as closed conversations of equal length,

    turn user       [user TEXT, assistant "Hello.", user "Go on."]
    turn assistant  [user "Hello.", assistant TEXT, user "Go on."]

so that both turns end in the same tokens.
"""

from dataclasses import dataclass

from jinja2.exceptions import TemplateError

from rolecircuits.capture.frames import keep_matched
from rolecircuits.inputs.categories import cells_of, is_crossed, slot_words
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.specs import PromptFormat
from rolecircuits.stats.masses import NOWHERE, SEGMENTS

# A chat template is a program of the model's maker; it may divide by zero or call itself forever.
TEMPLATE_ERRORS = (
    *(TemplateError, ValueError, TypeError, LookupError, AttributeError),
    *(ArithmeticError, RecursionError),
)

RAW = PromptFormat()
GREETING, GO_ON = "Hello.", "Go on."  # fill the turns that do not hold the text
MARKER = "\u2603" * 8
CODE = {name: code for code, name in enumerate(SEGMENTS)}
NO_SLOT = (NOWHERE, NOWHERE)


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as the model sees it.

    span, slot  first and one-past-last token; slot is (-1, -1) where the set is not crossed
    segments    one code a token, its position in stats.masses.SEGMENTS
    frame       as the set gives it, "" without
    """

    id: str
    category: str
    pair_id: int
    text: str
    rendered: str
    token_ids: list
    token_strings: list
    span: tuple
    frame: str = ""
    filler: str = ""
    turn: str = "user"
    slot: tuple = NO_SLOT
    segments: tuple = ()


def tokenize_prompts(prompts, tokenizer, form=RAW):
    """`tokenize_all` without the frames of a crossed set that this tokenizer does not match."""
    return keep_matched(tokenize_all(prompts, tokenizer, form))[0]


def tokenize_all(prompts, tokenizer, form=RAW):
    """TokenizedPrompts of `prompts` for a ModelTokenizer, in a PromptFormat.

    raw   the text alone, after the BOS token if bos says so (auto: as TransformerLens does)
    chat  the model's own chat template with the generation prompt, tokenised once; places from
          the offsets
    """
    hf = tokenizer.hf
    if form.bos == "always" and hf.bos_token_id is None:
        raise UserError("--bos always: this tokenizer has no BOS token")
    with_bos = form.bos == "always" or (
        form.bos == "auto" and tokenizer.prepends_bos and hf.bos_token_id is not None
    )
    check_special_tokens(prompts, hf)
    slots = _slots_of(prompts, hf)
    if form.prompt_format == "chat":
        if not hf.chat_template:
            raise UserError(
                "--prompt_format chat: this model has no chat template; use --prompt_format raw"
            )
        chat = ChatTemplate(hf, form.system_prompt, any(p.turn == "assistant" for p in prompts))
        tokenized = [chat.tokenize(prompt, slots.get(prompt.id)) for prompt in prompts]
    else:
        tokenized = [_tokenize_raw(p, hf, with_bos, slots.get(p.id)) for p in prompts]
    for prompt in tokenized:
        tokenizer.check_ids(prompt.token_ids, f"prompt {prompt.id}")
        if prompt.span[0] == prompt.span[1]:
            raise UserError(
                f"prompt {prompt.id} {printable(prompt.text)!r} has no tokens of its own"
            )
    return tokenized


def check_special_tokens(prompts, hf):
    """Refuse prompts that hold the text of a special token, which would be read as that token."""
    specials = [token for token in hf.all_special_tokens if token.strip()]
    specials += [str(token) for token in hf.added_tokens_decoder.values() if token.special]
    for prompt in prompts:
        for token in specials:
            if token in prompt.text:
                shown = printable(token)
                raise UserError(
                    f"prompt {prompt.id} contains the special token {shown!r}; take it out"
                )


def _slots_of(prompts, hf):
    """{prompt id: (start, stop) of its slot in characters}; empty unless the set is crossed."""
    if not is_crossed(prompts):
        return {}
    if not hf.is_fast:
        raise UserError(
            "a crossed prompt set needs a fast tokenizer: this one does not say which token "
            "stands where"
        )
    slots = {}
    for cell in cells_of(prompts).values():
        slots |= {p.id: place for p, place in zip(cell, slot_words(cell), strict=True)}
    return slots


def _tokenize_raw(prompt, hf, with_bos, slot):
    encoded = hf(prompt.text, add_special_tokens=False, return_offsets_mapping=slot is not None)
    ids, first = list(encoded.input_ids), int(with_bos)
    if slot is not None:
        start, stop = token_span(encoded.offset_mapping, *slot)
        slot = (start + first, stop + first)
    ids = [hf.bos_token_id, *ids] if with_bos else ids
    segments = [CODE["sink"], *[CODE["user_text"]] * (len(ids) - 1)]
    return _tokenized(prompt, prompt.text, ids, hf, ((first, len(ids)), slot, segments))


def token_span(offsets, start, stop):
    """(first, one-past-last) token that overlaps the characters from start to stop."""
    inside = [i for i, (left, right) in enumerate(offsets) if right > start and left < stop]
    return (inside[0], inside[-1] + 1) if inside else (0, 0)


def _tokenized(prompt, rendered, ids, hf, places):
    """places  (span, slot or None, segments)"""
    span, slot, segments = places
    labels = (prompt.id, prompt.category, prompt.pair_id, prompt.text)
    fed = (rendered, ids, hf.convert_ids_to_tokens(ids), span)
    design = (prompt.frame, prompt.filler, prompt.turn)
    return TokenizedPrompt(*labels, *fed, *design, slot or NO_SLOT, tuple(segments))


class ChatTemplate:
    """A model's chat template, and where it puts what.

    system_prompt  a system text, or None: the template's own, if it has one
    closed         feed closed conversations (see the module), not the text alone
    """

    def __init__(self, hf, system_prompt=None, closed=False):
        self.hf, self.system_prompt, self.closed = hf, system_prompt, closed
        marked = self.render(self.turns(MARKER, "user"))
        self.before_system, self.after_system = self._around_system()
        shorter = self.render(self.turns(MARKER, "user"), header=False)
        self.header = marked[len(shorter) :] if marked.startswith(shorter) else ""

    def turns(self, text, turn):
        """[(role, content)] of the conversation in which `turn` holds the text."""
        if not self.closed:
            return [("user", text)]
        pair = (text, GREETING) if turn == "user" else (GREETING, text)
        return [("user", pair[0]), ("assistant", pair[1]), ("user", GO_ON)]

    def render(self, turns, system=None, header=True):
        """The conversation as the template writes it, with the generation prompt if `header`."""
        system = self.system_prompt if system is None else system
        messages = [] if system is None else [{"role": "system", "content": system}]
        messages += [{"role": role, "content": text} for role, text in turns]
        try:
            return self.hf.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=header
            )
        except TEMPLATE_ERRORS as error:
            raise UserError(
                f"the chat template refuses these messages: {printable(error)}"
            ) from error

    def _around_system(self):
        """What stands before a system text, and between it and the first turn's text; (None, None)
        where the template takes no system text."""
        text, system = MARKER, "\u2604" * 8
        try:
            marked = self.render(self.turns(text, "user"), system)
        except UserError:
            return None, None
        start, first = marked.find(system), marked.find(text)
        if not 0 <= start < first:
            return None, None
        return marked[:start], marked[start + len(system) : first]

    def tokenize(self, prompt, slot=None):
        """The TokenizedPrompt; slot: characters of the text that are its slot."""
        turns = self.turns(prompt.text, prompt.turn)
        own = int(prompt.turn == "assistant")
        rendered = self.render(turns)
        places = [self._find_turn(prompt, turns, i, rendered, i == own) for i in range(len(turns))]
        encoded = self.hf(rendered, add_special_tokens=False, return_offsets_mapping=True)
        offsets, (start, stop) = encoded.offset_mapping, places[own]
        if slot is not None:
            stripped = prompt.text.index(rendered[start:stop])
            slot = token_span(offsets, *(start + at - stripped for at in slot))
        roles = [role for role, _ in turns]
        segments = self._segments(rendered, offsets, zip(roles, places, strict=True))
        span, ids = token_span(offsets, start, stop), list(encoded.input_ids)
        return _tokenized(prompt, rendered, ids, self.hf, (span, slot, segments))

    def _find_turn(self, prompt, turns, i, rendered, is_own):
        """(start, stop) of a turn's content in the rendered conversation.

        It is found by rendering a marker in its place: the text itself may also stand in the
        system text. A user's text may be stripped by the template; an assistant's may not.
        """
        role, text = turns[i]
        marked = [turn if j != i else (role, MARKER) for j, turn in enumerate(turns)]
        start = self.render(marked).find(MARKER)
        as_it_is = rendered[start : start + len(text)] == text
        text = text if as_it_is or role == "assistant" else text.strip()
        if start >= 0 and rendered[start : start + len(text)] == text:
            return start, start + len(text)
        if is_own and role == "user":
            raise UserError(
                f"prompt {prompt.id}: the chat template changes the text, so its tokens cannot be "
                "found"
            )
        raise UserError(
            f"prompt {prompt.id}: the chat template changes or trims the text of the {role}'s turn "
            f"{i + 1}, so the two turns cannot be compared"
        )

    def _segments(self, rendered, offsets, texts):
        """The code of every token's segment; texts [(role, (start, stop))] in characters."""
        codes = [CODE["template"]] * len(offsets)

        def mark(name, start, stop):
            first, last = token_span(offsets, start, stop)
            codes[first:last] = [CODE[name]] * (last - first)

        texts = list(texts)
        if self.before_system is not None:
            before = rendered[: texts[0][1][0]]
            left, right = len(self.before_system), len(before) - len(self.after_system)
            around = before.startswith(self.before_system) and before.endswith(self.after_system)
            if around and left < right:
                mark("system_text", left, right)
        if self.header and rendered.endswith(self.header):
            mark("assistant_header", len(rendered) - len(self.header), len(rendered))
        for role, place in texts:
            mark(f"{role}_text", *place)
        codes[0] = CODE["sink"]
        return codes
