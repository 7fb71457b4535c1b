"""Batches of prompts: similar lengths together, padded right, and which rows of a batch are real tokens."""

from dataclasses import dataclass

import torch

BATCH_TOKENS = 8192  # streaming: tokens in one forward pass; an out-of-memory error halves them


@dataclass
class Rows:
    """Which prompts a batch holds and which tokens its query rows are.

    prompts     position of every batch row on the prompt axis
    n_tokens    tokens of every prompt; query rows from there on are padding, unless `growing`
    start       position of the first query row: 0, or the tokens already in the cache during generation
    growing     generation: prompts of one length, rows beyond the prompt are generated tokens and are edited too
    """

    prompts: list
    n_tokens: list
    start: int = 0
    growing: bool = False

    def positions(self, n_query):
        """Position of every query row in its text: [query] int64."""
        return torch.arange(self.start, self.start + n_query)

    def real(self, n_query, device):
        """Which rows are real tokens: [batch, query] bool."""
        inside = self.positions(n_query)[None, :] < torch.tensor(self.n_tokens)[:, None]
        return (torch.ones_like(inside) if self.growing else inside).to(device)

    def in_prompt(self, n_query, device):
        """Which rows are tokens of the prompt itself: [batch, query] bool."""
        return (self.positions(n_query)[None, :] < torch.tensor(self.n_tokens)[:, None]).to(device)


def equal_length_batches(tokenized, batch_size):
    """Prompt positions in batches of one length."""
    groups = {}
    for i, prompt in enumerate(tokenized):
        groups.setdefault(len(prompt.token_ids), []).append(i)
    return [
        g[k : k + batch_size]
        for _, g in sorted(groups.items())
        for k in range(0, len(g), batch_size)
    ]


def make_batches(lengths, batch_size, batch_tokens=None):
    """Prompt positions in batches of similar length: little is padded, so little is computed for nothing.

    A batch holds at most `batch_size` prompts and, padding counted, `batch_tokens` tokens (None: no limit; a longer prompt
    is a batch of its own).
    """
    batches = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        last = batches[-1] if batches else []
        full = batch_tokens is not None and (len(last) + 1) * lengths[i] > batch_tokens
        if not last or len(last) == batch_size or full:
            batches.append([i])
        else:
            last.append(i)
    return batches


def pad_right(token_ids, pad_id=0):
    """(ids, mask), both [prompt, query] int64: right-padded token ids and 1 where a token is real."""
    width = max(len(ids) for ids in token_ids)
    padded = torch.full((len(token_ids), width), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(padded)
    for row, ids in enumerate(token_ids):
        padded[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
    return padded, mask


def is_out_of_memory(error):
    """True for CUDA's and the CPU allocator's out-of-memory errors, which are both RuntimeErrors."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
