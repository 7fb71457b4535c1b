"""From a document to the tokens that a model is fed, with the span of every turn."""

from dataclasses import dataclass

import numpy as np

from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.specs import PromptFormat


@dataclass(frozen=True)
class TokenizedDocument:
    """A document as the model sees it: `prompt` is what is captured, `spans` [(start, stop)] a turn."""

    prompt: object
    roles: tuple
    spans: tuple

    @property
    def n_tokens(self):
        return len(self.prompt.token_ids)


def tokenize_document(document, tokenizer, bos="auto"):
    """A TokenizedDocument; longer than the context, or changed by the chat template, is refused."""
    from rolecircuits.capture.tokens import TokenizedPrompt, check_special_tokens, tokenize_prompts
    from rolecircuits.inputs.categories import Prompt

    texts = [Prompt(document.id, document.category, -1, content) for _, content in document.turns]
    if not document.is_chat:
        prompt = tokenize_prompts(texts, tokenizer, PromptFormat(bos=bos))[0]
        return TokenizedDocument(prompt, ("text",), (prompt.span,))
    hf = tokenizer.hf
    if not hf.chat_template:
        raise UserError(
            f"document {printable(document.id)} has messages, and this model has no chat template"
        )
    check_special_tokens(texts, hf)
    rendered, places = render_turns(document, hf)
    encoded = hf(rendered, add_special_tokens=False, return_offsets_mapping=True)
    tokenizer.check_ids(encoded.input_ids, f"document {printable(document.id)}")
    left, right = np.array(encoded.offset_mapping).T
    spans = []
    for start, stop in places:
        inside = np.flatnonzero((right > start) & (left < stop))
        spans.append((int(inside[0]), int(inside[-1]) + 1))
    ids = list(encoded.input_ids)
    whole = (spans[0][0], spans[-1][1])
    strings = hf.convert_ids_to_tokens(ids)
    text = "\n".join(content for _, content in document.turns)
    prompt = TokenizedPrompt(
        document.id, document.category, -1, text, rendered, ids, strings, whole
    )
    return TokenizedDocument(prompt, tuple(role for role, _ in document.turns), tuple(spans))


def render_turns(document, hf):
    """(rendered conversation, [(start, stop) of each turn's content in characters]).

    The template is rendered a second time with markers in the place of the contents; what stands between the markers must
    stand between the contents, or the template changes the text and is refused.
    """
    markers = [f"\u2603\u2603{i}\u2603\u2603" for i in range(len(document.turns))]
    rendered = _render(hf, document, [content for _, content in document.turns])
    pattern = _render(hf, document, markers)
    position, cursor, places = 0, 0, []
    for marker, (_, content) in zip(markers, document.turns, strict=True):
        found = pattern.find(marker, cursor)
        between = pattern[cursor:found]
        start = position + len(between)
        text = content if rendered.startswith(content, start) else content.strip()
        if found < 0 or rendered[position:start] != between or not rendered.startswith(text, start):
            raise UserError(
                f"document {printable(document.id)}: the chat template changes turn {len(places)}"
            )
        position, cursor = start + len(text), found + len(marker)
        places.append((start, position))
    if rendered[position:] != pattern[cursor:]:
        raise UserError(
            f"document {printable(document.id)}: the chat template changes the end of the conversation"
        )
    return rendered, places


def _render(hf, document, contents):
    from rolecircuits.capture.tokens import TEMPLATE_ERRORS

    messages = [
        {"role": role, "content": text}
        for (role, _), text in zip(document.turns, contents, strict=True)
    ]
    try:
        return hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    except TEMPLATE_ERRORS as error:
        raise UserError(
            f"document {printable(document.id)}: the chat template refuses it: {printable(error)}"
        ) from error
