"""From a document to the tokens that a model is fed, with the span of every turn."""

from dataclasses import dataclass

import numpy as np

from rolecircuits.capture.tokens import (
    TEMPLATE_ERRORS,
    TokenizedPrompt,
    check_special_tokens,
    tokenize_prompts,
)
from rolecircuits.documents.texts import Document
from rolecircuits.inputs.categories import Prompt
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.specs import PromptFormat


@dataclass(frozen=True)
class TokenizedDocument:
    """A document as the model sees it: roles and spans [(start, stop)] have one item a turn."""

    prompt: TokenizedPrompt
    roles: tuple
    spans: tuple

    @property
    def n_tokens(self):
        return len(self.prompt.token_ids)

    @classmethod
    def from_plain(cls, plain):
        """The document of which `plain` is dataclasses.asdict."""
        return cls(**plain | {"prompt": TokenizedPrompt(**plain["prompt"])})


def tokenize_document(document: Document, tokenizer, bos="auto"):
    """A TokenizedDocument; refused where it is too long or the chat template changes it."""
    texts = [Prompt(document.id, document.category, -1, content) for _, content in document.turns]
    if not document.is_chat:
        prompt = tokenize_prompts(texts, tokenizer, PromptFormat(bos=bos))[0]
        return TokenizedDocument(prompt, ("text",), (prompt.span,))
    hf, where = tokenizer.hf, f"document {printable(document.id)}"
    if not hf.chat_template:
        raise UserError(f"{where} has messages, and this model has no chat template")
    check_special_tokens(texts, hf)
    rendered, places = render_turns(document, hf)
    encoded = hf(rendered, add_special_tokens=False, return_offsets_mapping=True)
    ids = list(encoded.input_ids)
    tokenizer.check_ids(ids, where)
    left, right = np.array(encoded.offset_mapping).T
    spans = []
    for start, stop in places:
        inside = np.flatnonzero((right > start) & (left < stop))
        spans.append((int(inside[0]), int(inside[-1]) + 1))
    prompt = TokenizedPrompt(
        document.id,
        document.category,
        -1,
        "\n".join(content for _, content in document.turns),
        rendered,
        ids,
        hf.convert_ids_to_tokens(ids),
        (spans[0][0], spans[-1][1]),
    )
    return TokenizedDocument(prompt, tuple(role for role, _ in document.turns), tuple(spans))


def render_turns(document, hf):
    """(rendered conversation, [(start, stop) of each turn's content in characters]).

    The template is rendered a second time with markers in the place of the contents; what stands
    between the markers must stand between the contents, or the template changes the text and is
    refused.
    """
    refused = f"document {printable(document.id)}: the chat template changes"
    markers = [f"\u2603\u2603{i}\u2603\u2603" for i in range(len(document.turns))]
    rendered = _render(hf, document, [content for _, content in document.turns])
    pattern = _render(hf, document, markers)
    position, cursor, places = 0, 0, []
    for marker, (_, content) in zip(markers, document.turns, strict=True):
        at = pattern.find(marker, cursor)
        between = pattern[cursor:at]
        start = position + len(between)
        text = content if rendered.startswith(content, start) else content.strip()
        if at < 0 or rendered[position:start] != between or not rendered.startswith(text, start):
            raise UserError(f"{refused} turn {len(places)}")
        position, cursor = start + len(text), at + len(marker)
        places.append((start, position))
    if rendered[position:] != pattern[cursor:]:
        raise UserError(f"{refused} the end of the conversation")
    return rendered, places


def _render(hf, document, contents):
    roles = [role for role, _ in document.turns]
    messages = [{"role": r, "content": text} for r, text in zip(roles, contents, strict=True)]
    try:
        return hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    except TEMPLATE_ERRORS as error:
        raise UserError(
            f"document {printable(document.id)}: the chat template refuses it: {printable(error)}"
        ) from error
