"""Batches of prompts: similar lengths together, padded right, halved when memory runs out.

failed, batch_size = run_batches(lengths, work, batch_size)
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tqdm import tqdm

from rolecircuits.inputs.errors import RunFailed
from rolecircuits.runs.progress import progress

BATCH_TOKENS = 8192  # streaming: tokens in one forward pass; an out-of-memory error halves them
ALONE = "out of memory with a batch of one"
SMALLER = "try a smaller model or --dtype bfloat16"
# CUDA, Metal and cuBLAS; torch's allocator on the CPU. numpy raises MemoryError.
OUT_OF_MEMORY = ("out of memory", "allocate memory", "ALLOC_FAILED")


@dataclass
class Rows:
    """Which prompts a batch holds and which tokens its query rows are.

    prompts     position of every batch row on the prompt axis
    n_tokens    tokens of every prompt; query rows from there on are padding, unless `growing`
    start       position of the first query row: 0, or the tokens that generation has in its cache
    growing     generation: prompts of one length, whose generated tokens are edited too
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
        inside = self.in_prompt(n_query, device)
        return torch.ones_like(inside) if self.growing else inside

    def in_prompt(self, n_query, device):
        """Which rows are tokens of the prompt itself: [batch, query] bool."""
        return (self.positions(n_query)[None, :] < torch.tensor(self.n_tokens)[:, None]).to(device)


@dataclass(frozen=True)
class Edit:
    """What is done to a model in a batch: edit(rows) gives [(hook name, hook)].

    alike   what prompts begin with alike is treated alike, so that it is computed once
    """

    prepare: Callable
    alike: bool = False

    def __call__(self, rows):
        return self.prepare(rows)


def equal_lengths(length):
    """A `side` of `make_batches`: all prompts of a batch have one length."""
    return length


def make_batches(lengths, batch_size, batch_tokens=None, side=None):
    """Prompt positions in batches of similar length: little is padded, little computed for nothing.

    A batch holds at most `batch_size` prompts and, padding counted, `batch_tokens` tokens (None: no
    limit; a longer prompt is a batch of its own).
    side  function of a length: the prompts of a batch are on one side (rotary.batch_side says why)
    """
    batches = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        last = batches[-1] if batches else []
        full = batch_tokens is not None and (len(last) + 1) * lengths[i] > batch_tokens
        other = side and last and side(lengths[last[0]]) != side(lengths[i])
        if not last or len(last) == batch_size or full or other:
            batches.append([i])
        else:
            last.append(i)
    return batches


def run_batches(lengths, work, batch_size, batch_tokens=None, title=None, side=None):
    """Do work(positions) batch after batch: (positions too large for the memory, batch size left).

    lengths     tokens of every prompt; the other limits are those of `make_batches`
    work        function of a list of positions that stores what it finds itself. When it runs out
                of memory, that batch and all later ones are halved for good and done (again), so
                work must only write what a second call overwrites. Other errors pass.
    title       text of the progress bar, None for no bar
    batch size  what a later call may begin with: `batch_size`, or what the last halving left
    """
    failed, queue = [], make_batches(lengths, batch_size, batch_tokens, side)
    with progress(len(lengths), title, "prompt") as bar:
        while queue:
            batch, out_of_memory = queue[0], False
            try:
                work(batch)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                out_of_memory = True
            if out_of_memory and len(batch) > 1:  # outside of except, which keeps tensors alive
                longest = max(lengths[i] for i in batch)
                tqdm.write(f"out of memory with {len(batch)} prompts of {longest} tokens: halved")
                batch_size, batch_tokens = len(batch) // 2, len(batch) * longest // 2
                left = [i for later in queue for i in later]
                halves = make_batches([lengths[i] for i in left], batch_size, batch_tokens, side)
                queue = [[left[i] for i in half] for half in halves]
                continue
            if out_of_memory:
                failed.append(batch[0])
            queue.pop(0)
            bar.update(len(batch))
    return failed, batch_size


def check_all_ran(failed, tokenized, what):
    """Stop where `run_batches` left out a prompt and all are needed; `what` names the pass."""
    if failed:
        raise RunFailed(f"{what}: prompt {tokenized[failed[0]].id}: {ALONE}; {SMALLER}")


@contextlib.contextmanager
def out_of_memory_fails(what):
    """Say in one line that the memory was too small for something that cannot be halved."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunFailed(f"{what}: out of memory; {SMALLER}") from error


def is_out_of_memory(error):
    """True for the out-of-memory errors of CUDA, Metal (MPS), the CPU allocator and numpy."""
    said = any(text in str(error) for text in OUT_OF_MEMORY)
    return said or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def pad_right(token_ids, pad_id=0):
    """(ids, mask), both [prompt, query] int64: right-padded token ids, 1 where a token is real."""
    width = max(len(ids) for ids in token_ids)
    padded = torch.full((len(token_ids), width), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(padded)
    for row, ids in enumerate(token_ids):
        padded[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
    return padded, mask
