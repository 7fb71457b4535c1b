"""From a prompt to the tokens that a model is fed, and the span of its own tokens. No torch."""

from dataclasses import dataclass

from jinja2.exceptions import TemplateError

from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.specs import PromptFormat

# A chat template is a program of the model's maker; it may divide by zero or call itself forever.
TEMPLATE_ERRORS = (
    *(TemplateError, ValueError, TypeError, LookupError, AttributeError),
    *(ArithmeticError, RecursionError),
)

RAW = PromptFormat()


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as the model sees it; `span` is the first and one-past-last token of its text."""

    id: str
    category: str
    pair_id: int
    text: str
    rendered: str
    token_ids: list
    token_strings: list
    span: tuple


def tokenize_prompts(prompts, tokenizer, form=RAW):
    """TokenizedPrompts of `prompts` for a ModelTokenizer, in a PromptFormat.

    raw   the text alone, after the BOS token if bos says so (auto: as TransformerLens does)
    chat  the model's own chat template with the generation prompt, tokenised once; the span from
          the offsets
    """
    hf = tokenizer.hf
    if form.bos == "always" and hf.bos_token_id is None:
        raise UserError("--bos always: this tokenizer has no BOS token")
    with_bos = form.bos == "always" or (
        form.bos == "auto" and tokenizer.prepends_bos and hf.bos_token_id is not None
    )
    check_special_tokens(prompts, hf)
    if form.prompt_format == "chat":
        if not hf.chat_template:
            raise UserError(
                "--prompt_format chat: this model has no chat template; use --prompt_format raw"
            )
        tokenized = [_tokenize_chat(prompt, hf, form.system_prompt) for prompt in prompts]
    else:
        tokenized = [_tokenize_raw(prompt, hf, with_bos) for prompt in prompts]
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


def _tokenize_raw(prompt, hf, with_bos):
    ids = hf(prompt.text, add_special_tokens=False).input_ids
    ids = [hf.bos_token_id, *ids] if with_bos else list(ids)
    return _tokenized(prompt, prompt.text, ids, hf, (int(with_bos), len(ids)))


def _tokenized(prompt, rendered, ids, hf, span):
    labels = (prompt.id, prompt.category, prompt.pair_id, prompt.text)
    return TokenizedPrompt(*labels, rendered, ids, hf.convert_ids_to_tokens(ids), span)


def render_chat(hf, text, system_prompt=None):
    """`text` as the user's turn in the model's chat template, with the generation prompt."""
    messages = [{"role": "user", "content": text}]
    if system_prompt is not None:
        messages.insert(0, {"role": "system", "content": system_prompt})
    try:
        return hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TEMPLATE_ERRORS as error:
        raise UserError(f"the chat template refuses these messages: {printable(error)}") from error


def _tokenize_chat(prompt, hf, system_prompt):
    """The span is found by rendering a marker in the text's place: the text itself may also stand
    in the system text.
    """
    rendered = render_chat(hf, prompt.text, system_prompt)
    marker = "\u2603" * 8
    start = render_chat(hf, marker, system_prompt).find(marker)
    as_it_is = rendered[start : start + len(prompt.text)] == prompt.text
    text = prompt.text if as_it_is else prompt.text.strip()
    stop = start + len(text)
    if start < 0 or rendered[start:stop] != text:
        raise UserError(
            f"prompt {prompt.id}: the chat template changes the text, so its tokens cannot be found"
        )
    encoded = hf(rendered, add_special_tokens=False, return_offsets_mapping=True)
    offsets = enumerate(encoded.offset_mapping)
    inside = [i for i, (left, right) in offsets if right > start and left < stop]
    span = (inside[0], inside[-1] + 1) if inside else (0, 0)
    return _tokenized(prompt, rendered, list(encoded.input_ids), hf, span)
