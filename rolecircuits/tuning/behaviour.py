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
MACHINE = r"(?:AI|chat ?bot|language model|program|machine|(?:virtual |digital )?assistant|robot)"
SAYS_MACHINE = re.compile(rf"\b(?:as|I am|I'm)(?: just| only)? an? (?:\w+ )?{MACHINE}\b", re.I)
FEELING = (
    r"(?:feel\w*|emotion\w*|sad\w*|happ[iy]\w*|lonel\w*|hurt\w*|lov\w+|miss\w*|ang[re]\w+|upset\w*"
    r"|bor(?:ed|edom)|enjoy\w*|pain\w*|joy\w*|mind)"
)
NEGATED = re.compile(
    rf"(?:\b(?:not|no|never|cannot|without|lack|unable|incapable)|n't)\b(?:\W+\w+){{0,5}}?\W+{FEELING}"
    r"\b",
    re.I,
)


@dataclass(frozen=True)
class Behaviour:
    """The rates of the module, 0 to 1, and the answers behind them.

    answers  [{"measure": "role", "facts", "roleplay" or "feelings", "facet", "question", "answer",
             "keywords", "kept"}, ...]; kept: the answer holds a keyword, of feelings: denies them;
             of role also "chosen", the answer with the highest score
    """

    compliance: float
    choice: float
    facts: float
    roleplay: float
    refusal: float
    answers: list


def measure_behaviour(loaded, examples, form, seed=0):
    """The Behaviour of a LoadedModel: examples as read, questions in a PromptFormat.

    seed  draws the other facets' answers of choice: the same for all checkpoints of a study
    """
    asked = questions_of(loaded, examples, form)
    groups = [
        tokenize_questions(loaded, own, [question["question"] for question in rows])
        for own, rows in groupby(asked, key=itemgetter("form"))
    ]
    read = read_questions(loaded, *groups)
    role = examples_of(examples, "role", "heldout")  # the first rows
    chosen = choose_answers(loaded, read, role, form, seed)
    limits = [ANSWER_TOKENS[question["measure"]] for question in asked]
    ids = continue_greedily(loaded, read, limits)
    answers = [_judge(question, loaded, own) for question, own in zip(asked, ids, strict=True)]
    for row, answer in zip(answers, chosen, strict=False):
        row["chosen"] = answer
    right = [answer == example.answer for answer, example in zip(chosen, role, strict=True)]

    def rate(measure):
        return _mean(row["kept"] for row in answers if row["measure"] == measure)

    rates = [rate(measure) for measure in ("facts", "roleplay", "feelings")]
    return Behaviour(rate("role"), _mean(right), *rates, answers)


def questions_of(loaded, examples, form):
    """[{"measure", "facet", "question", "keywords", "form"}, ...] of all that is asked, role first.

    Another persona is given only where the chat template takes a system prompt.
    """
    asked = [
        {"measure": arm, "facet": e.facet, "question": e.question, "keywords": list(e.keywords)}
        for arm in ("role", "facts")
        for e in examples_of(examples, arm, "heldout")
    ]
    roleplay, feelings = read_behaviour_questions()
    asked += [
        {"measure": "feelings", "facet": "", "question": text, "keywords": []} for text in feelings
    ]
    asked = [question | {"form": form} for question in asked]
    if _takes_system_prompt(loaded.tokenizer, form):
        other = replace(form, system_prompt=roleplay.system_prompt)
        asked += [
            {"measure": "roleplay", "facet": "", "question": text, "keywords": list(keywords)}
            | {"form": other}
            for text, keywords in roleplay.questions
        ]
    return asked


def _takes_system_prompt(tokenizer, form):
    if form.prompt_format != "chat":
        return False
    return ChatTemplate(tokenizer, replace(form, system_prompt=None)).before_system is not None


def choose_answers(loaded, read, examples, form, seed):
    """The answer with the highest score to each example's question, the first rows of `read`."""
    choices = [choices_of(examples, i, seed) for i in range(len(examples))]
    rows = [row for row, own in enumerate(choices) for _ in own]
    texts = [text for own in choices for text in own]
    if not texts:
        return []
    ids = [own[:-1] for own in tokenize_answers(loaded, form, texts)]
    scores = iter(score_answers(loaded, read, rows, ids))
    return [max(zip(own, scores, strict=False), key=itemgetter(1))[0] for own in choices]


def choices_of(examples, i, seed, n=N_CHOICES):
    """Answers to examples[i]: its own, its wrong one, and n - 2 of other facets, all different."""
    own = examples[i]
    others = {e.facet: e.answer for e in examples if e.facet != own.facet}
    pool = [text for text in others.values() if text not in (own.answer, own.wrong_answer)]
    drawn = random.Random(f"{seed} {own.question}").sample(pool, min(n - 2, len(pool)))
    return [own.answer, own.wrong_answer, *drawn]


def _judge(question, loaded, ids):
    """The row of an answer."""
    text = loaded.tokenizer.hf.decode(ids, skip_special_tokens=True)
    keywords = question["keywords"]
    kept = holds_keyword(text, keywords) if keywords else denies_feelings(text)
    return {name: question[name] for name in ("measure", "facet", "question")} | {
        "answer": text,
        "keywords": keywords,
        "kept": kept,
    }


def denies_feelings(text):
    """Whether an answer denies feelings, by two rules of words.

    A negation (not, n't, no, never, cannot, without, lack, unable, incapable) stands at most five
    words before a word of feeling; or the speaker says that it is, or speaks as, an AI, a program,
    a machine, a chatbot, a robot, an assistant or a language model.
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
