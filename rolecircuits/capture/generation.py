"""Greedy generation in batches without padding, with a KV cache, and measures of the answers.

Prompts of one length share a batch, so every token stands where it would stand alone: no padding
side, no position ids to mend, and edits see the same positions as in a plain forward pass. Each
step is the argmax of the logits, as `generate(do_sample=False)` does without logit processors (a
repetition penalty in a model's generation_config, say, is not applied: it would be one more
intervention).
"""

import contextlib
import re

import torch
from transformers import DynamicCache

from rolecircuits.capture.batches import Rows, check_all_ran, equal_lengths, run_batches
from rolecircuits.capture.model_pass import EAGER, set_attention
from rolecircuits.capture.prefix import shared_tokens
from rolecircuits.inputs.errors import UserError
from rolecircuits.models.rotary import batch_side

FIRST_PERSON = frozenset(["i", "me", "my", "mine", "myself", "i'm", "i've", "i'd", "i'll"])
SELF_NAMES = re.compile(
    r"\b(?:AI|A\.I\.|artificial intelligence|(?:language|AI) model|LLM|chat ?bot|"
    r"(?:virtual |AI )?assistant|SmolLM\w*|Mistral|Qwen|Llama|Gemma|ChatGPT|GPT-?\d*)\b",
    re.IGNORECASE,
)
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def stop_tokens(loaded):
    """The token ids that end an answer, by the model's generation config or its tokenizer."""
    named = getattr(loaded.model.generation_config, "eos_token_id", None)
    named = [] if named is None else [named] if isinstance(named, int) else list(named)
    own = loaded.tokenizer.hf.eos_token_id
    return set(named) or ({own} if own is not None else set())


def check_room(tokenized, max_tokens, facts):
    """Refuse answers that could run out of the model's context, or into other rotary angles than
    the prompt's; nothing is truncated.
    """
    context, side = facts["context"], batch_side(facts)
    for prompt in tokenized:
        length = len(prompt.token_ids)
        if side(length) != side(length + max_tokens):
            raise UserError(
                f"--max_tokens {max_tokens}: the answer to prompt {prompt.id} ({length} tokens) "
                f"could pass {facts['rotary']['original']} tokens, where the model's rotary "
                "angles change for what it has read before; ask for fewer"
            )
    if context is None:
        return
    longest = max(tokenized, key=lambda p: len(p.token_ids))
    if len(longest.token_ids) + max_tokens > context:
        raise UserError(
            f"--max_tokens {max_tokens}: prompt {longest.id} has {len(longest.token_ids)} tokens, "
            f"the context holds {context}; at most {context - len(longest.token_ids)} are left"
        )


def generate_greedily(loaded, tokenized, max_tokens, batch_size=64, prepare=None, title=None):
    """Generated token ids of every prompt, the stop token included: list of lists, in prompt order.

    prepare  None, or a batches.Edit, which acts at every step
    """
    answers, lengths = {}, [len(p.token_ids) for p in tokenized]

    def run_batch(batch):
        ids = torch.tensor([tokenized[i].token_ids for i in batch])
        rows = Rows(batch, [ids.shape[1]] * len(batch), growing=True)
        alike, edits = (True, []) if prepare is None else (prepare.alike, prepare(rows))
        owners = [0] * len(batch) if alike else range(len(batch))
        texts = _continue_batch(loaded, ids, max_tokens, rows, edits, owners)
        answers.update(zip(batch, texts, strict=True))

    failed, _ = run_batches(lengths, run_batch, batch_size, title=title, side=equal_lengths)
    check_all_ran(failed, tokenized, title or "generation")
    return [answers[i] for i in range(len(tokenized))]


def _continue_batch(loaded, ids, max_tokens, rows, edits, owners):
    """One batch [row, query] of equal length; a row that has stopped runs along until all have.

    owners  [row] as `shared_tokens` takes them, for the first step: later ones read one token
    """
    stop, edited = stop_tokens(loaded), contextlib.nullcontext()
    model = loaded.model
    if edits:
        model, edited = loaded.bridge.original_model, loaded.bridge.hooks(fwd_hooks=edits)
    set_attention(model, EAGER)
    shared = shared_tokens(model, ids.tolist(), owners)
    ids = ids.to(next(model.parameters()).device)
    config = model.config.get_text_config(decoder=True)
    own = config.num_hidden_layers == loaded.n_layers  # not where it counts an encoder's layers
    cache = DynamicCache(config=config) if own else DynamicCache()
    answers, running = [[] for _ in ids], set(range(len(ids)))
    with torch.inference_mode(), edited:
        for _ in range(max_tokens):
            fed = {"input_ids": ids, "past_key_values": cache}
            with shared:
                output = model(**fed, use_cache=True, logits_to_keep=1)
            shared = contextlib.nullcontext()
            new = output.logits[:, -1].float().argmax(dim=-1, keepdim=True)
            if cache.get_seq_length():
                rows.start, ids = rows.start + ids.shape[1], new
            else:  # a model that keeps nothing (GPT-1) is fed the whole text each time
                ids = torch.cat([ids, new], dim=1)
            for row, token in enumerate(new[:, 0].tolist()):
                if row in running:
                    answers[row].append(token)
                    if token in stop:
                        running.discard(row)
            if not running:
                break
    return answers


def measure_answer(token_ids, text, stopped):
    """Simple measures of one answer.

    n_tokens      generated tokens, the stop token not counted
    stopped       the model ended the answer itself
    first_person  share of words that are I, me, my, mine, ...
    self_naming   1 if it names itself an AI, a model, ...
    repetition    share of token trigrams that occurred before; 0 for fewer than three tokens
    """
    ids = token_ids[:-1] if stopped else token_ids
    words = [w.lower().replace("’", "'") for w in WORD.findall(text)]
    trigrams = list(zip(ids, ids[1:], ids[2:], strict=False))
    return {
        "n_tokens": len(ids),
        "stopped": stopped,
        "first_person": sum(w in FIRST_PERSON for w in words) / len(words) if words else 0.0,
        "self_naming": float(bool(SELF_NAMES.search(text))),
        "repetition": 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0,
    }


def first_difference(a, b):
    """Position of the first token in which two answers differ, None if they are the same."""
    if a == b:
        return None
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
