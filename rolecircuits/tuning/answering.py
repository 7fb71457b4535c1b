"""Questions of many lengths read once, together; then answered greedily, or given answers scored.

Tuning is measured at a hundred checkpoints, each with some seventy questions. Batches of one length
(capture.generation) would read the model's weights a dozen times a token, so questions are padded
on the left here: what follows them stands in one column. Positions and masks are those of each
question alone, and the answers are the same (tested).

    read = read_questions(loaded, tokenized)
    answers = continue_greedily(loaded, read, [12] * len(tokenized))
    scores = score_answers(loaded, read, [0, 0, 1], answer_ids)      # before the answers: they are
                                                                     # written on the same cache
Axes: row (a question), key (its tokens, left-padded, and what follows).
"""

import inspect
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from rolecircuits.capture.batches import pad_right
from rolecircuits.capture.generation import stop_tokens
from rolecircuits.capture.model_pass import EAGER, set_attention
from rolecircuits.capture.prefix import common_prefix, shared_tokens
from rolecircuits.inputs.errors import UserError

AT_ONCE = 128  # answers scored in one batch


@dataclass(frozen=True)
class ReadQuestions:
    """What a model keeps of questions that it has read.

    mask    [row, key] 1 where a token is real    logits  [row, vocabulary] of the next token
    """

    cache: DynamicCache
    mask: torch.Tensor
    logits: torch.Tensor

    def of_rows(self, rows):
        """A copy that holds these rows, in this order; a row may be there several times."""
        rows, cache = torch.as_tensor(rows, device=self.mask.device), DynamicCache()
        for i, layer in enumerate(self.cache.layers):
            cache.update(layer.keys[rows], layer.values[rows], i)
        return ReadQuestions(cache, self.mask[rows], self.logits[rows])


def read_questions(loaded, *groups):
    """The ReadQuestions of groups of TokenizedPrompts, all their rows in order.

    What a group begins with alike (system text, header) is read once. Of every row the last `block`
    tokens are fed; the keys and values of those before are copied from its group's.
    """
    device = next(set_attention(loaded.model, EAGER).parameters()).device
    texts = [[prompt.token_ids for prompt in group] for group in groups]
    alike = [min(common_prefix(own), min(map(len, own)) - 1) for own in texts]
    rows = [(g, ids) for g, own in enumerate(texts) for ids in own]
    width = max(len(ids) for _, ids in rows)
    block = max(len(ids) - alike[g] for g, ids in rows)
    cache = DynamicCache()
    if width > block:
        places = [_places(own, width, block) for own in texts]
        kept = [
            _read_alike(loaded, own[0][: max(n, 1)]) for own, n in zip(texts, alike, strict=True)
        ]
        for i, layers in enumerate(zip(*kept, strict=True)):
            pairs = [layer[:, :, place] for layer, place in zip(layers, places, strict=True)]
            cache.update(*torch.cat(pairs, dim=2).transpose(1, 2), i)
    ids, mask = (each.flip(1).to(device) for each in pad_right([own[::-1] for _, own in rows]))
    fed, real = ids[:, -block:], mask[:, -block:]
    # What comes before the block is the same for rows of a group that begin it at the same token.
    owners = [g * width + max(len(own) - block, 0) for g, own in rows]
    with shared_tokens(loaded.model, fed.tolist(), owners, real.tolist()):
        logits = _advance(loaded, cache, fed, mask, last=True)
    return ReadQuestions(cache, mask, logits[:, -1])


def _places(texts, width, block):
    """[row, key] which token of a text stands in each column before the last `block`; 0 in padding,
    which is masked.
    """
    first = torch.tensor([width - len(ids) for ids in texts])
    return (torch.arange(width - block)[None] - first[:, None]).clamp(min=0)


def _read_alike(loaded, ids):
    """Keys and values of these tokens: a list of [2, head, key, d], one for every layer."""
    cache, ids = DynamicCache(), torch.tensor([ids], device=next(loaded.model.parameters()).device)
    _advance(loaded, cache, ids, torch.ones_like(ids), last=True)
    return [torch.cat([layer.keys, layer.values]) for layer in cache.layers]


def continue_greedily(loaded, read, limits):
    """Greedy token ids, the stop token included: a list for every row of `read`, which is used up.

    limits  [row] the most tokens of each answer
    """
    stop, answers = stop_tokens(loaded), [[] for _ in limits]
    running, mask, logits = list(range(len(limits))), read.mask, read.logits
    while running:
        new = logits.float().argmax(dim=-1)
        for row, token in zip(running, new.tolist(), strict=True):
            answers[row].append(token)
        going = [i for i, row in enumerate(running) if not _ended(answers[row], limits[row], stop)]
        if len(going) < len(running):
            kept = torch.tensor(going, dtype=torch.int64, device=mask.device)
            running, new, mask = [running[i] for i in going], new[kept], mask[kept]
            read.cache.batch_select_indices(kept)
        if running:
            mask = torch.cat([mask, mask.new_ones(len(running), 1)], dim=1)
            logits = _advance(loaded, read.cache, new[:, None], mask)[:, -1]
    return answers


def _ended(answer, limit, stop):
    return len(answer) >= limit or answer[-1] in stop


def score_answers(loaded, read, rows, answers):
    """Mean ln probability of the tokens of each answer to the question of its row: [answer] floats.

    answers  token ids, without the token that ends them    rows  [answer] rows of `read`
    """
    scores = []
    for start in range(0, len(rows), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        scores += _score(loaded, read.of_rows(rows[some]), rows[some], answers[some])
    return scores


def _score(loaded, read, owners, answers):
    """`score_answers` of one batch: read has a row for every answer; owners  [answer] questions."""
    ids, mask = pad_right([answer[:-1] for answer in answers])  # the last token predicts none
    logits = read.logits[:, None]
    if ids.shape[1]:
        ids, mask = ids.to(read.mask.device), mask.to(read.mask.device)
        with shared_tokens(loaded.model, ids.tolist(), owners, mask.tolist()):
            rest = _advance(loaded, read.cache, ids, torch.cat([read.mask, mask], dim=1))
        logits = torch.cat([logits, rest], dim=1)
    scores = []
    for answer, own in zip(answers, logits, strict=True):
        logs = own[: len(answer)].float().log_softmax(dim=-1)
        chosen = torch.tensor(answer, device=logs.device)
        scores.append(logs.gather(1, chosen[:, None]).double().mean().item())
    return scores


def _advance(loaded, cache, ids, mask, last=False):
    """Logits [row, query, vocabulary] of new tokens ids [row, query] after what the cache holds.

    mask  [row, key] of all tokens so far    last  only the final query's logits
    """
    model = loaded.model
    given = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache}
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model  # peft's wrapper
    taken = inspect.signature(plain.forward).parameters
    if "position_ids" in taken:
        given["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    if last and "logits_to_keep" in taken:
        given["logits_to_keep"] = 1
    with torch.inference_mode():
        logits = model(**given, use_cache=True).logits
    if not cache.get_seq_length():
        kind = loaded.facts["architecture"]
        raise UserError(
            f"{kind} keeps no keys and values, so many questions cannot be read at once"
        )
    return logits
