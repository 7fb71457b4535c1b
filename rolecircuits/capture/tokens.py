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

from rolecircuits.capture.chat_template import (
    MARKER,
    SYSTEM_MARKER,
    Template,
    TurnChangedError,
    check_special_tokens,
    locate_turns,
)
from rolecircuits.capture.frames import keep_matched
from rolecircuits.inputs.categories import cells_of, is_crossed, slot_words
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.specs import PromptFormat
from rolecircuits.stats.masses import NOWHERE, SEGMENTS

RAW = PromptFormat()
GREETING, GO_ON = "Hello.", "Go on."  # fill the turns that do not hold the text
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


def tokenize_prompts(prompts, tokenizer, form=RAW, what="prompt"):
    """`tokenize_all` without the frames of a crossed set that this tokenizer does not match."""
    return keep_matched(tokenize_all(prompts, tokenizer, form, what))[0]


def tokenize_all(prompts, tokenizer, form=RAW, what="prompt"):
    """TokenizedPrompts of `prompts` for a ModelTokenizer, in a PromptFormat.

    raw   the text alone, after the BOS token if bos says so (auto: as TransformerLens does)
    chat  the model's own chat template with the generation prompt, tokenised once; places from
          the offsets; bos=always puts a BOS token there where the template writes none
    """
    hf, bos = tokenizer.hf, bos_to_prepend(tokenizer, form)
    check_special_tokens([(f"{what} {printable(p.id)}", p.text) for p in prompts], hf)
    slots = _slots_of(prompts, hf)
    if form.prompt_format == "chat":
        chat = ChatTemplate(tokenizer, form, any(p.turn == "assistant" for p in prompts))
        tokenized = [chat.tokenize(prompt, bos, slots.get(prompt.id)) for prompt in prompts]
    else:
        tokenized = [_tokenize_raw(prompt, hf, bos, slots.get(prompt.id)) for prompt in prompts]
    for prompt in tokenized:
        which = f"{what} {printable(prompt.id)}"
        tokenizer.check_ids(prompt.token_ids, which)
        check_own_tokens(prompt.token_ids[slice(*prompt.span)], hf, prompt.text, which)
    return tokenized


def bos_to_prepend(tokenizer, form):
    """The id of the token to put before a text that does not begin with it, or None."""
    chat = form.prompt_format == "chat"
    bos, _ = tokenizer.bos
    if form.bos == "always" and bos is None:
        raise UserError("--bos always: this tokenizer has no BOS token, and no EOS token instead")
    wanted = form.bos == "always" or (form.bos == "auto" and tokenizer.prepends_bos and not chat)
    return bos if wanted else None


def check_own_tokens(ids, hf, text, what):
    """Refuse a text that has no tokens, or of whose words the tokenizer knows none."""
    shown = printable(text if len(text) <= 60 else f"{text[:60]}...")
    if not ids:
        raise UserError(f"{what} {shown!r} has no tokens of its own")
    if hf.unk_token_id not in ids:
        return
    known = [id_ for id_ in ids if id_ != hf.unk_token_id]
    if not any(character.isalnum() for character in hf.decode(known)):
        raise UserError(
            f"{what} {shown!r}: the tokenizer knows none of its words, all are read as "
            f"{printable(hf.unk_token)}"
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


def _tokenize_raw(prompt, hf, bos, slot):
    encoded = hf(prompt.text, add_special_tokens=False, return_offsets_mapping=slot is not None)
    ids = list(encoded.input_ids)
    if slot is not None:
        slot = token_span(encoded.offset_mapping, *slot)
    places = (0, len(ids)), slot, [CODE["user_text"]] * len(ids)
    return _tokenized(prompt, prompt.text, ids, hf, shift_places(places, bos is not None), bos)


def shift_places(places, by):
    """(span, slot or None, segments) where `by` tokens (0 or 1) are put first; the first token is
    the sink.
    """
    (start, stop), slot, segments = places
    slot = None if slot is None else (slot[0] + by, slot[1] + by)
    return (start + by, stop + by), slot, [CODE["sink"], *segments[1 - by :]]


def token_span(offsets, start, stop):
    """(first, one-past-last) token that overlaps the characters from start to stop."""
    inside = [i for i, (left, right) in enumerate(offsets) if right > start and left < stop]
    return (inside[0], inside[-1] + 1) if inside else (0, 0)


def mark_segment(codes, offsets, name, place):
    """Write the code of a segment where place (start, stop), in characters, has tokens."""
    first, last = token_span(offsets, *place)
    codes[first:last] = [CODE[name]] * (last - first)


def around_system(marked):
    """(what stands before a system text, what between it and the first turn's text), or None where
    the template takes no system text.

    marked  a conversation with SYSTEM_MARKER as system text and MARKER as the first turn
    """
    start, first = marked.find(SYSTEM_MARKER), marked.find(MARKER)
    if not 0 <= start < first:
        return None
    return marked[:start], marked[start + len(SYSTEM_MARKER) : first]


def own_system_place(around, rendered, first):
    """(start, stop) in characters of the system text, the template's own one too, or None.

    around  what `around_system` gives    first  where the text of the first turn begins
    """
    if around is None:
        return None
    before = rendered[:first]
    left, right = len(around[0]), first - len(around[1])
    fits = before.startswith(around[0]) and before.endswith(around[1]) and left < right
    return (left, right) if fits else None


def _tokenized(prompt, rendered, ids, hf, places, bos):
    """places  (span, slot or None, segments), with the token `bos` (or None) in front"""
    span, slot, segments = places
    ids = ids if bos is None else [bos, *ids]
    labels = (prompt.id, prompt.category, prompt.pair_id, prompt.text)
    fed = (rendered, ids, hf.convert_ids_to_tokens(ids), span)
    design = (prompt.frame, prompt.filler, prompt.turn)
    return TokenizedPrompt(*labels, *fed, *design, slot or NO_SLOT, tuple(segments))


class ChatTemplate:
    """A model's chat template in a PromptFormat, and where it puts what.

    closed  feed closed conversations (see the module), not the text alone
    """

    def __init__(self, tokenizer, form, closed=False):
        self.hf, self.closed, self.system_prompt = tokenizer.hf, closed, form.system_prompt
        self.template = Template(tokenizer, form)
        check_special_tokens([("--system_prompt", form.system_prompt or "")], self.hf)
        marked = self.render(self.turns(MARKER, "user"))
        self.around_system = self._around_system(marked)
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
        first = [] if system is None else [("system", system)]
        return self.template.render([*first, *turns], header)

    def _around_system(self, rendered):
        """`around_system` of this template; a system text that it drops or changes is refused.

        rendered  a conversation with the system text
        """
        try:
            marked = self.render(self.turns(MARKER, "user"), SYSTEM_MARKER)
        except UserError:
            marked = ""
        text = (self.system_prompt or "").strip()
        if text and (SYSTEM_MARKER not in marked or text not in rendered):
            how = "changes" if SYSTEM_MARKER in marked else "drops"
            raise UserError(
                f"--system_prompt: this model's chat template {how} the system text, so the model "
                "would not read it; leave it out, or put it into the prompts"
            )
        return around_system(marked)

    def tokenize(self, prompt, bos=None, slot=None):
        """The TokenizedPrompt.

        bos   token to put first where the template does not    slot  characters of the text
        """
        turns = self.turns(prompt.text, prompt.turn)
        rendered, places = self._locate(prompt, turns)
        encoded = self.hf(rendered, add_special_tokens=False, return_offsets_mapping=True)
        offsets, ids = encoded.offset_mapping, list(encoded.input_ids)
        start, stop = places[int(prompt.turn == "assistant")]
        if slot is not None:
            stripped = prompt.text.index(rendered[start:stop])
            slot = token_span(offsets, *(start + at - stripped for at in slot))
        roles = [role for role, _ in turns]
        segments = self._segments(rendered, offsets, zip(roles, places, strict=True))
        places = token_span(offsets, start, stop), slot, segments
        bos = None if bos in ids[:1] else bos
        return _tokenized(
            prompt, rendered, ids, self.hf, shift_places(places, bos is not None), bos
        )

    def _locate(self, prompt, turns):
        """`locate_turns` of a prompt's conversation.

        A user's text may be stripped by the template; an assistant's may not, because the two
        turns of a sentence would differ.
        """
        own = int(prompt.turn == "assistant")
        try:
            rendered, places = locate_turns(self.render, turns)
            for i, ((role, text), (start, stop)) in enumerate(zip(turns, places, strict=True)):
                if role == "assistant" and stop - start < len(text):
                    raise TurnChangedError(i, "trims")
        except TurnChangedError as error:
            if error.turn == own == 0 or len(turns) == 1:
                raise UserError(
                    f"prompt {prompt.id}: the chat template {error.how} the text, so its tokens "
                    "cannot be found"
                ) from error
            raise UserError(
                f"prompt {prompt.id}: the chat template {error.how} the text of the "
                f"{turns[error.turn][0]}'s turn {error.turn + 1}, so the two turns cannot be "
                "compared"
            ) from error
        return rendered, places

    def _segments(self, rendered, offsets, texts):
        """The code of every token's segment; texts [(role, (start, stop))] in characters."""
        codes, texts = [CODE["template"]] * len(offsets), list(texts)
        system = own_system_place(self.around_system, rendered, texts[0][1][0])
        if system is not None:
            mark_segment(codes, offsets, "system_text", system)
        if self.header and rendered.endswith(self.header):
            header = len(rendered) - len(self.header), len(rendered)
            mark_segment(codes, offsets, "assistant_header", header)
        for role, place in texts:
            mark_segment(codes, offsets, f"{role}_text", place)
        return codes
