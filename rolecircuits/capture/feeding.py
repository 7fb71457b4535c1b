"""What a model was really fed, for the run's config: BOS, chat template, date, unknown tokens."""

import hashlib

from rolecircuits.capture.tokens import RAW, ChatTemplate
from rolecircuits.inputs.categories import order_categories
from rolecircuits.inputs.errors import printable


def describe_feeding(tokenized, tokenizer, form=RAW):
    """{"model", "how", "notes"} of TokenizedPrompts of a ModelTokenizer in a PromptFormat.

    model  prepends_bos, bos_token: whether all begin with the BOS, and which
    how    chat_template, template_args, and date if the template printed one; unknown_tokens
    """
    template = None
    if form.prompt_format == "chat":
        closed = any(prompt.turn == "assistant" for prompt in tokenized)
        template = ChatTemplate(tokenizer, form, closed).template
    return feeding_of(tokenized, tokenizer, form, template)


def feeding_of(tokenized, tokenizer, form, template):
    """`describe_feeding` with the Template that rendered the texts, or None."""
    facts, notes = describe_bos(tokenized, tokenizer)
    _, text = tokenizer.bos
    if not facts["prepends_bos"] and template and tokenizer.prepends_bos and text:
        notes.append(
            f"the chat template writes no BOS token; raw prompts get one ({printable(text)}), and "
            "--bos always puts it there"
        )
    how = {} if template is None else describe_template(template)
    unknown, note = describe_unknown(tokenized, tokenizer.hf)
    if unknown:
        how, notes = how | {"unknown_tokens": unknown}, [*notes, note]
    return {"model": facts, "how": how, "notes": notes}


def describe_bos(tokenized, tokenizer):
    """({"prepends_bos", "bos_token"}, notes); prepends_bos is None if only some begin with it."""
    bos, text = tokenizer.bos
    first = [bos is not None and prompt.token_ids[0] == bos for prompt in tokenized]
    if all(first) or not any(first):
        return {"prepends_bos": all(first), "bos_token": text if all(first) else None}, []
    note = f"{sum(first)} of {len(first)} texts begin with the BOS token ({printable(text)})"
    return {"prepends_bos": None, "bos_token": text}, [note]


def describe_template(template):
    """chat_template (its text, if no model has it) and its arguments, and the date if it was asked
    for.
    """
    sha256 = hashlib.sha256(template.text.encode()).hexdigest()
    how = {"chat_template": {"name": template.name, "sha256": sha256}}
    if template.is_file:
        how["chat_template"]["text"] = template.text
    if template.args:
        how["template_args"] = template.args
    if template.used_date:
        how["date"] = template.date.date().isoformat()
    return how


def describe_unknown(tokenized, hf):
    """(share of the prompts' own tokens that the tokenizer does not know, note), or (None, None).

    The share is {"all": share, category: share}; documents may have no category.
    """
    own = [(p.category, p.token_ids[slice(*p.span)]) for p in tokenized]
    if hf.unk_token_id is None or not any(hf.unk_token_id in ids for _, ids in own):
        return None, None

    def share(chosen):
        ids = [id_ for each in chosen for id_ in each]
        return sum(id_ == hf.unk_token_id for id_ in ids) / len(ids)

    names = order_categories(name for name, _ in own if name)
    shares = {"all": share(ids for _, ids in own)}
    shares |= {name: share(ids for category, ids in own if category == name) for name in names}
    parts = ", ".join(f"{printable(name)} {value:.0%}" for name, value in shares.items())
    return shares, (
        f"WARNING: the tokenizer does not know some of the words, {printable(hf.unk_token)} stands "
        f"for them: share of the texts' tokens {parts}"
    )
