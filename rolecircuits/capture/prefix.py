"""Tokens that all prompts of a batch begin with are computed once.

Chat prompts share their system text and user header: two thirds of all tokens of the crossed set.
In a causal model with right padding, what stands at those positions depends on those tokens alone,
so every linear layer gives the same there for each prompt. Inside `shared_prefix` it is computed
for the first prompt and copied; attention, norms and everything else run as ever.
"""

import contextlib
from functools import partial

import torch


def common_prefix(token_ids):
    """How many tokens all of these prompts (lists of ids) begin with, padding not counted."""
    columns = enumerate(zip(*token_ids, strict=False))  # as far as the shortest one goes
    shortest = min(map(len, token_ids))
    return next((i for i, column in columns if len(set(column)) > 1), shortest)


@contextlib.contextmanager
def shared_prefix(model, token_ids):
    """Inside the block, linear layers of `model` compute the common prefix of a batch once.

    token_ids  of the prompts, which are fed right-padded; of one prompt nothing is shared. Only for
               passes without edits, which may treat prompts differently

    Layers that accelerate moves between devices are left alone.
    """
    n, shape = common_prefix(token_ids), (len(token_ids), max(map(len, token_ids)))
    shares = len(token_ids) > 1 and n > 0
    linears = [part for part in model.modules() if type(part) is torch.nn.Linear] if shares else []
    linears = [part for part in linears if not hasattr(part, "_hf_hook")]
    own = [vars(part).get("forward") for part in linears]
    try:
        for part in linears:
            part.forward = partial(_compute_once, part.forward, shape, n)
        yield
    finally:
        for part, forward in zip(linears, own, strict=True):
            vars(part).pop("forward", None)  # the class's own again
            if forward is not None:
                part.forward = forward


def _compute_once(forward, shape, n, values):
    """forward(values [prompt, query, unit]), the first n queries taken from the first prompt."""
    if values.shape[:-1] != shape:
        return forward(values)
    rest = values[:, n:]
    out = forward(torch.cat([values[0, :n], rest.flatten(0, 1)]))
    whole = out.new_empty((*shape, out.shape[-1]))
    whole[:, :n] = out[:n]
    whole[:, n:] = out[n:].view(shape[0], shape[1] - n, out.shape[-1])
    return whole
