"""From a document to the tokens that a model is fed, with the span of every turn."""

from dataclasses import dataclass, replace

from rolecircuits.capture.chat_template import Template
from rolecircuits.capture.conversations import tokenize_turns
from rolecircuits.capture.feeding import feeding_of
from rolecircuits.capture.tokens import TokenizedPrompt, bos_to_prepend, tokenize_prompts
from rolecircuits.documents.shapes import Document
from rolecircuits.inputs.categories import Prompt, first_word
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

    @property
    def is_chat(self):
        return self.roles[0] != "text"

    @classmethod
    def from_plain(cls, plain):
        """The document of which `plain` is dataclasses.asdict."""
        return cls(**plain | {"prompt": TokenizedPrompt(**plain["prompt"])})


class Documents:
    """Documents as a model is fed them, and those that it cannot be fed.

    fed     TokenizedDocuments         failed  [(id, reason)]
    feeding what capture.feeding says of them
    """

    def __init__(self, documents, tokenizer, form):
        """form  a PromptFormat: its bos, and its chat template for conversations

        raises  UserError where no document can be fed
        """
        self.fed, self.failed, template, bos = [], [], None, None
        if any(document.is_chat for document in documents):
            chat = replace(form, prompt_format="chat")
            bos = bos_to_prepend(tokenizer, chat)
            try:
                template = Template(tokenizer, chat)
            except UserError as error:
                if not tokenizer.hf.chat_template and form.chat_template is None:
                    raise UserError(
                        "the file holds messages, and this model has no chat template; give one "
                        "with --chat_template FILE"
                    ) from error
                raise
        for document in documents:
            try:
                if document.is_chat:
                    tokenized = tokenize_conversation(document, tokenizer, template, bos)
                else:
                    tokenized = tokenize_text(document, tokenizer, form.bos)
            except UserError as error:
                self.failed.append((document.id, str(error)))
            else:
                self.fed.append(tokenized)
        if not self.fed:
            n, reason = len(self.failed), self.failed[0][1]
            all_of_them = f"none of the {n} documents can be fed; the first: "
            raise UserError(reason if n == 1 else all_of_them + reason)
        prompts = [document.prompt for document in self.fed]
        self.feeding = feeding_of(prompts, tokenizer, form, template)


def tokenize_text(document: Document, tokenizer, bos="auto"):
    """The TokenizedDocument of a text."""
    ((_, text),) = document.turns
    text = Prompt(document.id, document.category, -1, text)
    (prompt,) = tokenize_prompts([text], tokenizer, PromptFormat(bos=bos), "document")
    prompt = replace(prompt, frame=beginning(document))
    return TokenizedDocument(prompt, ("text",), (prompt.span,))


def beginning(document: Document):
    """The first word of a document, of its first turn that is no system text: its frame."""
    own = [content for role, content in document.turns if role != "system"]
    return first_word(own[0] if own else document.turns[0][1])


def tokenize_conversation(document: Document, tokenizer, template: Template, bos=None):
    """The TokenizedDocument of a conversation; refused where it is too long, or the template
    changes it.

    bos  the token to put first where the template does not, or None
    """
    where = f"document {printable(document.id)}"
    fed = tokenize_turns(document.turns, tokenizer, template, where, bos)
    prompt = TokenizedPrompt(
        document.id,
        document.category,
        -1,
        "\n".join(content for _, content in document.turns),
        fed.rendered,
        fed.token_ids,
        tokenizer.hf.convert_ids_to_tokens(fed.token_ids),
        (fed.spans[0][0], fed.spans[-1][1]),
        beginning(document),
        segments=fed.segments,
    )
    return TokenizedDocument(prompt, tuple(role for role, _ in document.turns), fed.spans)
