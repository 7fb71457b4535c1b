"""Questions and answers as tokens, the same in training and wherever an answer is scored.

chat  [the question in the model's chat template, generation prompt last] answer [end of turn]
raw   [the question as raw text is fed] " " answer [end of text]
"""

from rolecircuits.capture.generation import stop_tokens
from rolecircuits.capture.tokens import tokenize_prompts
from rolecircuits.inputs.categories import Prompt
from rolecircuits.inputs.errors import UserError, printable


def tokenize_questions(loaded, form, questions):
    """TokenizedPrompts of questions (texts) in a PromptFormat, as a capture feeds them."""
    prompts = [Prompt(text, "question", -1, text) for text in questions]
    return tokenize_prompts(prompts, loaded.tokenizer, form, "question")


def tokenize_examples(loaded, form, pairs):
    """[(token ids, how many of them are the question's), ...] of pairs [(question, answer), ...].

    The other ids are the answer's and the token that ends it.
    """
    questions = tokenize_questions(loaded, form, [question for question, _ in pairs])
    answers = tokenize_answers(loaded, form, [answer for _, answer in pairs])
    examples = []
    for question, answer in zip(questions, answers, strict=True):
        ids = [*question.token_ids, *answer]
        loaded.tokenizer.check_ids(ids, f"question {printable(question.text)} with its answer")
        examples.append((ids, len(question.token_ids)))
    return examples


def tokenize_answers(loaded, form, answers):
    """Token ids of answers (texts), each with the token that ends it: [[id, ...], ...]."""
    hf, end = loaded.tokenizer.hf, end_token(loaded)
    before = "" if form.prompt_format == "chat" else " "
    return [[*hf(before + text, add_special_tokens=False).input_ids, end] for text in answers]


def end_token(loaded):
    """The token that ends an answer: of those that stop generation, the tokenizer's own if it is
    one of them.
    """
    stop, own = stop_tokens(loaded), loaded.tokenizer.hf.eos_token_id
    if not stop:
        raise UserError("this model has no token that ends an answer, so it cannot be tuned on any")
    return own if own in stop else min(stop)
