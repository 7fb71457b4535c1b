"""Tokens that prompts of a batch begin with alike are computed once.

Chat prompts share their system text and user header: two thirds of all tokens of the crossed set.
In a causal model with right padding, what stands at those positions depends on those tokens alone,
so every linear layer gives the same there for each prompt. Inside `shared_prefix` it is computed
for the first prompt and copied; attention, norms and everything else run as ever. `shared_tokens`
does the same for what any prompts of a batch share, also where they are edited alike.
"""

import contextlib
from functools import partial

import torch

# {on a card: share of the tokens below which copying costs less than computing them}
WORTHWHILE = {False: 1.0, True: 0.75}


def common_prefix(token_ids):
    """How many tokens all of these prompts (lists of ids) begin with, padding not counted."""
    columns = enumerate(zip(*token_ids, strict=False))  # as far as the shortest one goes
    shortest = min(map(len, token_ids))
    return next((i for i, column in columns if len(set(column)) > 1), shortest)


def shared_prefix(model, token_ids):
    """Inside the block, linear layers of `model` compute the common prefix of a batch once.

    token_ids  of the prompts, which are fed right-padded; of one prompt nothing is shared. Only for
               passes without edits, which may treat prompts differently
    """
    n, width = common_prefix(token_ids), max(map(len, token_ids))
    place = torch.arange(len(token_ids) * width).view(len(token_ids), width)
    place[:, :n] = place[:1, :n].clone()
    return _shared(model, place)


def shared_tokens(model, token_ids, owners, mask=None):
    """The same for prompts of one length: what rows of one owner begin with alike is computed once.

    owners  [row]  rows of one owner are edited in the same way at every position
    mask    [row][query], 0 for padding, left or right, None for none: what layers give there is of
            no account, so it is computed once for all of it
    """
    width, seen = len(token_ids[0]), {}
    place = torch.empty((len(token_ids), width), dtype=torch.int64)
    for row, (ids, owner) in enumerate(zip(token_ids, owners, strict=True)):
        before = -1 - int(owner)  # what stands before a token: the first place of its prefix
        for position, token in enumerate(ids):
            here = row * width + position
            if mask is None or mask[row][position]:
                before = place[row, position] = seen.setdefault((before, token), here)
            else:
                place[row, position] = seen.setdefault("padding", here)
    return _shared(model, place)


@contextlib.contextmanager
def _shared(model, place):
    """Linear layers compute a token once: place [row, query], where its like stands first.

    Layers that accelerate moves between devices are left alone.
    """
    first, copies = torch.unique(place, return_inverse=True)
    shares = len(first) < place.numel() * WORTHWHILE[next(model.parameters()).device.type == "cuda"]
    linears = [part for part in model.modules() if type(part) is torch.nn.Linear] if shares else []
    places = Copies(first, copies)
    linears = [part for part in linears if not hasattr(part, "_hf_hook")]
    with other_forwards(linears, lambda forward: partial(_compute_once, forward, places)):
        yield


@contextlib.contextmanager
def other_forwards(parts, make):
    """Inside the block the forward of each of these modules is make(its own forward)."""
    own = [vars(part).get("forward") for part in parts]
    try:
        for part in parts:
            part.forward = make(part.forward)
        yield
    finally:
        for part, forward in zip(parts, own, strict=True):
            vars(part).pop("forward", None)  # the class's own again
            if forward is not None:
                part.forward = forward


class Copies:
    """Which tokens are computed, and which of them each token is, on the device that asks.

    first  [token] places in rows x queries    copies  [row, query]
    A card waits for what it has been told before a tensor is copied to it: once is enough.
    """

    def __init__(self, first, copies):
        self.shape, self.tensors = copies.shape, (first, copies.flatten())
        self.kept = {}

    def on(self, device):
        if device not in self.kept:
            self.kept[device] = tuple(part.to(device) for part in self.tensors)
        return self.kept[device]


def _compute_once(forward, places, values):
    """forward(values [row, query, unit]): the tokens that are computed, copied for the others."""
    if values.shape[:-1] != places.shape:
        return forward(values)
    first, copies = places.on(values.device)
    out = forward(values.flatten(0, 1).index_select(0, first)).index_select(0, copies)
    return out.view(*places.shape, out.shape[-1])
