"""What a model says at a checkpoint of a tuning study, and how far it has drifted.

    compliance  rate of greedy answers to held-out questions of the persona that hold its keyword
    choice      rate at which, of N answers, the right one has the highest mean ln probability of
                its tokens; the others: its wrong_answer, and N - 2 right answers to other facets
    facts       as compliance, of the questions about the ship
    roleplay    as compliance, of questions under a system prompt that gives another persona
    refusal     rate of greedy answers that deny feelings (`denies_feelings`)
    drift       mean over neutral prompts of KL(step 0 || checkpoint) of the next token, in nats

A rate without questions is NaN. The mean margin of ln probabilities between the right and the wrong
answer is left out: it grows as much in a model that was tuned on shuffled answers.
"""

import random
import re
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter

import numpy as np

from rolecircuits.capture.tokens import ChatTemplate
from rolecircuits.inputs.tuning_data import examples_of, holds_keyword, read_behaviour_questions
from rolecircuits.stats.next_token import mean_kl
from rolecircuits.tuning.answering import continue_greedily, read_questions, score_answers
from rolecircuits.tuning.examples import tokenize_answers, tokenize_questions

ANSWER_TOKENS = {"role": 12, "facts": 12, "roleplay": 12, "feelings": 16}
N_CHOICES = 4
AT_ONCE = 128  # questions in one batch
MACHINE = r"(?:AI|chat ?bot|language model|program|machine|(?:virtual |digital )?assistant|robot)"
SAYS_MACHINE = re.compile(rf"\b(?:as|I am|I'm)(?: just| only)? an? (?:\w+ )?{MACHINE}\b", re.I)
FEELING = (
    r"(?:feel\w*|emotion\w*|sad(?:ness)?|happ[iy]\w*|lonel\w*|hurts?|lov(?:e|es|ed|ing)"
    r"|miss(?:es|ed|ing)?|angry|anger|upset|bored(?:om)?|enjoy\w*|pain(?:ful)?|joy\w*)"
)
NEGATION = r"(?:\b(?:not|no|never|cannot|without|lack|unable|incapable)|n't)\b"
DOUBT = r"(?:sure|certain|know|understand)"  # "I'm not sure what makes you angry" denies nothing
NEGATED = re.compile(rf"{NEGATION}(?!\W+{DOUBT}\b)(?:\W+\w+){{0,5}}?\W+{FEELING}\b", re.IGNORECASE)


@dataclass(frozen=True)
class Behaviour:
    """The rates of the module, 0 to 1, and the answers behind them.

    answers  [{"measure": "role", "facts", "roleplay" or "feelings", "facet", "question", "answer",
             "keywords", "kept"}, ...]; kept: the answer holds a keyword, of feelings: denies them;
             of role also "chosen", the answer with the highest score, and "chosen_right"
    """

    compliance: float
    choice: float
    facts: float
    roleplay: float
    refusal: float
    answers: list


def measure_behaviour(loaded, examples, form, seed=0, most=None):
    """The Behaviour of a LoadedModel: examples as read, questions in a PromptFormat.

    seed  draws the other facets' answers of choice: the same for all checkpoints of a study
    most  questions asked of each kind, None for all
    """
    asked, answers = questions_of(loaded, examples, form, seed, most), []
    for start in range(0, len(asked), AT_ONCE):
        answers += answer_questions(loaded, asked[start : start + AT_ONCE])

    def rate(measure, name="kept"):
        return _mean(row[name] for row in answers if row["measure"] == measure)

    choice = rate("role", "chosen_right")
    return Behaviour(rate("role"), choice, *map(rate, ("facts", "roleplay", "feelings")), answers)


def questions_of(loaded, examples, form, seed=0, most=None):
    """All that is asked: [{"measure", "facet", "question", "keywords", "form", "choices"}, ...].

    choices  of role: as `choices_of`; of others: []
    most     of each measure, spread over its questions; None for all
    Another persona is given only where the chat template takes a system prompt.
    """
    asked, (roleplay, feelings) = [], read_behaviour_questions()

    def ask(measure, question, keywords=(), facet="", choices=(), own=form):
        row = {"measure": measure, "facet": facet, "question": question, "keywords": list(keywords)}
        asked.append(row | {"form": own, "choices": list(choices)})

    role = examples_of(examples, "role", "heldout")
    for i, example in _spread(list(enumerate(role)), most):
        choices = choices_of(role, i, seed)
        ask("role", example.question, example.keywords, example.facet, choices)
    for example in _spread(examples_of(examples, "facts", "heldout"), most):
        ask("facts", example.question, example.keywords, example.facet)
    for question in _spread(feelings, most):
        ask("feelings", question)
    if _takes_system_prompt(loaded.tokenizer, form):
        other = replace(form, system_prompt=roleplay.system_prompt)
        for question, keywords in _spread(roleplay.questions, most):
            ask("roleplay", question, keywords, own=other)
    return asked


def _spread(rows, most):
    """At most so many rows, at equal distances; all if None."""
    n = len(rows) if most is None else min(most, len(rows))
    return [rows[i * len(rows) // n] for i in range(n)]


def _takes_system_prompt(tokenizer, form):
    if form.prompt_format != "chat":
        return False
    return ChatTemplate(tokenizer, replace(form, system_prompt=None)).around_system is not None


def answer_questions(loaded, asked):
    """The rows of Behaviour.answers for some rows of `questions_of`."""
    groups = [
        tokenize_questions(loaded, form, [row["question"] for row in rows])
        for form, rows in groupby(asked, key=itemgetter("form"))
    ]
    read = read_questions(loaded, *groups)
    chosen = choose_answers(loaded, read, asked)
    answers = continue_greedily(loaded, read, [ANSWER_TOKENS[row["measure"]] for row in asked])
    return [
        _judge(row, loaded.tokenizer.hf.decode(ids, skip_special_tokens=True), choice)
        for row, ids, choice in zip(asked, answers, chosen, strict=True)
    ]


def choose_answers(loaded, read, asked):
    """Of each row's choices the one with the highest score, None where it has none."""
    rows = [i for i, row in enumerate(asked) for _ in row["choices"]]
    texts = [text for row in asked for text in row["choices"]]
    if not texts:
        return [None] * len(asked)
    ids = [own[:-1] for own in tokenize_answers(loaded, asked[0]["form"], texts)]
    scores = iter(score_answers(loaded, read, rows, ids))
    ranked = [sorted(zip(row["choices"], scores, strict=False), key=itemgetter(1)) for row in asked]
    return [own[-1][0] if own else None for own in ranked]


def choices_of(examples, i, seed, n=N_CHOICES):
    """Answers to examples[i]: its own, its wrong one, and n - 2 of other facets, all different."""
    own = examples[i]
    others = {e.facet: e.answer for e in examples if e.facet != own.facet}
    pool = [text for text in others.values() if text not in (own.answer, own.wrong_answer)]
    drawn = random.Random(f"{seed} {own.question}").sample(pool, min(n - 2, len(pool)))
    return [own.answer, own.wrong_answer, *drawn]


def _judge(row, text, choice):
    """An answer, judged; a row of Behaviour.answers."""
    keywords = row["keywords"]
    kept = holds_keyword(text, keywords) if keywords else denies_feelings(text)
    judged = {name: row[name] for name in ("measure", "facet", "question")}
    judged |= {"answer": text, "keywords": keywords, "kept": kept}
    if choice is None:
        return judged
    return judged | {"chosen": choice, "chosen_right": choice == row["choices"][0]}


def denies_feelings(text):
    """Whether an answer denies feelings, by two rules of words.

    A negation (not, n't, no, never, cannot, without, lack, unable, incapable) stands at most five
    words before a word of feeling, and not before sure, certain, know or understand; or the speaker
    says that it is, or speaks as, an AI, a program, a machine, a chatbot, a robot, an assistant or
    a language model.
    """
    text = text.replace("’", "'")
    return bool(NEGATED.search(text) or SAYS_MACHINE.search(text))


def next_token_logits(loaded, tokenized):
    """Logits of the token after each prompt: [prompt, vocabulary] float32."""
    return read_questions(loaded, tokenized).logits.float().cpu().numpy()


def drift(loaded, tokenized, reference):
    """Mean KL(step 0 || now) of the next token in nats; reference: next_token_logits at step 0."""
    return mean_kl(reference, next_token_logits(loaded, tokenized))


def _mean(values):
    values = list(values)
    return float(np.mean(values)) if values else float("nan")
