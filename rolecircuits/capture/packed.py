"""A batch of prompts as one row of tokens: padding is left out, and what prompts begin with alike
is there once.

In a causal model what stands at a token depends on the tokens up to it alone. So embeddings, norms,
linear layers and MLPs get one row in which every beginning that occurs is computed once, as the
branches of a tree; a layer's queries, keys and values are laid out by prompt again before its
attention, and its output is gathered from there. Chat prompts share two thirds of their tokens.

This holds only where nothing but attention moves something from one token to another, and where
positions and masks are those that the model is told: `masks.why_not_packed` says so of a model, and
the instrument check compares packed rows with those of the whole pass. Axes: prompt, head, query,
key.
"""

from functools import partial

import numpy as np
import torch

from rolecircuits.inputs.errors import RunFailed, UserError

# What a model raises that is fed packed prompts and needs whole ones.
DOES_NOT_FIT = (
    *(RunFailed, UserError, RuntimeError, TypeError, ValueError),
    *(IndexError, KeyError, AttributeError, AssertionError),
)


class Packed:
    """The tokens of a right-padded batch that are computed, and where each of them stands.

    token_ids  list of lists of int
    owners     [prompt] int: only prompts of one owner share what they begin with; None: all do
    n_tokens [prompt]          of each prompt
    ids, positions [token]     what the model is fed
    copies [prompt x query]    which of them stands at each place of the batch; at padding any
    first [token]              a place at which each of them stands
    """

    def __init__(self, token_ids, owners=None):
        owners = [0] * len(token_ids) if owners is None else owners
        self.n_tokens = np.array([len(ids) for ids in token_ids])
        self.n_prompts, self.width = len(token_ids), int(self.n_tokens.max())
        tokens, known, copies = [], {}, []
        for row, (ids, owner) in enumerate(zip(token_ids, owners, strict=True)):
            before = -1 - int(owner)
            for position, token in enumerate(ids):
                at = known.setdefault((before, token), len(tokens))
                if at == len(tokens):
                    tokens.append((token, position, row * self.width + position))
                copies.append(at)
                before = at
            copies += [0] * (self.width - len(ids))
        self.ids, self.positions, self.first = torch.tensor(tokens).T.contiguous()
        self.copies = torch.tensor(copies)
        self.kept = {}

    def inputs(self):
        """The named tensors that the model is fed, [1, token] each."""
        ids, positions = self.ids[None], self.positions[None]
        return {
            "input_ids": ids,
            "position_ids": positions,
            "attention_mask": torch.ones_like(ids),  # else transformers looks for packed texts
        }

    def on(self, device):
        """(copies, first) on the device: copied once, since a card waits for every copy."""
        if device not in self.kept:
            self.kept[device] = self.copies.to(device), self.first.to(device)
        return self.kept[device]

    def lay_out(self, values):
        """[1, head, token, d] by prompt: [prompt, head, query, d]."""
        copies, _ = self.on(values.device)
        rows = values[0].transpose(0, 1).index_select(0, copies)
        return rows.view(self.n_prompts, self.width, *rows.shape[1:]).transpose(1, 2)

    def gather(self, values):
        """[prompt, query, head, d] at the tokens that are computed: [1, token, head, d]."""
        _, first = self.on(values.device)
        return values.flatten(0, 1).index_select(0, first)[None]

    def mask_of(self, function):
        """The mask function of the batch: what is asked for the row is asked for one prompt.

        function  builds masks, as transformers.masking_utils.eager_mask does
        That of the longest prompt fits all: padding is on the right, where no token sees it.
        """

        def mask(batch_size, q_length, kv_length, attention_mask=None, **options):
            return function(1, self.width, self.width, attention_mask=None, **options)

        return mask

    def attend_by(self, function):
        """The attention function of the packed row by that of the batch."""
        return partial(self._attend, function)

    def _attend(self, function, module, query, key, value, attention_mask=None, **given):
        query, key, value = map(self.lay_out, (query, key, value))
        out, rows = function(module, query, key, value, attention_mask, **given)
        return self.gather(out), rows
