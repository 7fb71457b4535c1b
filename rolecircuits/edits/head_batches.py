"""Heads of one layer edited one at a time, many of them in one forward pass.

    found = HeadBatches(loaded, tokenized, clean, distribution).measure(5, range(9), factor=0.0)
    found["kl"]  [head, prompt]

What makes it cheap: the rows of a batch differ in the head that is edited, the layers below the
edited one are not executed (the clean residual is put in their place), logits are computed for the
final token only, and what the prompts of a head begin with alike is computed once: by the plain
model where packed_heads.py can, else by the bridge, with prompts of one length in a batch. The
sweep and the controls of a plan are measured here.
"""

from functools import cached_property

import numpy as np
import torch

from rolecircuits.capture.batches import BATCH_TOKENS, check_all_ran, equal_lengths, run_batches
from rolecircuits.capture.prefix import shared_tokens
from rolecircuits.edits import effects
from rolecircuits.edits.donors import HOOKS
from rolecircuits.edits.hooks import edit_own_head
from rolecircuits.edits.packed_heads import packed_heads
from rolecircuits.edits.passes import CleanRun, Resume, run_layers, to_entropy
from rolecircuits.models.load import LoadedModel

# {on a card: edited prompts in one batch}; a card waits for its orders where they are few
ROWS = {False: 96, True: 2048}


class HeadBatches:
    """What every layer shares: the model, its prompts and its clean pass.

    rows  edited prompts in one batch (None: by the device); fewer from the first out-of-memory
          error on
    """

    def __init__(self, loaded: LoadedModel, tokenized, clean: CleanRun, distribution, rows=None):
        self.loaded, self.tokenized, self.clean = loaded, tokenized, clean
        self.distribution = distribution
        self.rows = rows or ROWS[str(loaded.facts.get("device")).startswith("cuda")]
        self.lengths = [len(prompt.token_ids) for prompt in tokenized]

    @cached_property
    def packed(self):
        """The PackedHeads of this model, None where the bridge does the work."""
        return packed_heads(self.loaded, self.tokenized, self.clean, self.run_batch)

    def measure(self, layer, heads, factor=None, means=None):
        """Each of these heads multiplied by `factor`, or replaced by `means` if that is None.

        means    [position, head of the model, d_head], as `edit_own_head` takes them
        returns  {metric of PROMPT_METRICS and "logit_change": [head, prompt],
                 "values": [head, prompt, layer]}; values: normalised entropy, mean over heads, of
                 the later layers, NaN up to the edited one
        """
        heads, n_prompts, site = np.asarray(heads), len(self.lengths), HOOKS["head"].format(layer)
        by_prompt = len(heads), n_prompts
        names = (*effects.PROMPT_METRICS, "logit_change")
        out = {name: np.full(by_prompt, np.nan) for name in names}
        out["values"] = np.full((*by_prompt, self.loaded.n_layers), np.nan)
        pairs = np.stack(np.unravel_index(np.arange(out["kl"].size), by_prompt), axis=-1)

        def edit(batch):
            places, prompts = pairs[batch].T
            if self.packed is not None:
                own = heads[places], factor, means
                logits, values = self.packed.run(layer, prompts, *own)
            else:
                change = edit_own_head(heads[places], factor, means)
                logits, values = self.run_batch(layer, prompts, [(site, change)], places)
            measured = self.distribution.effects(logits, prompts)
            for name in names:
                out[name][places, prompts] = measured[name]
            out["values"][places, prompts, layer + 1 :] = values

        lengths, limits = [self.lengths[i] for _, i in pairs], (None, None, equal_lengths)
        if self.packed is not None:  # rows of a head stay together, if no one is twice as long
            lengths, limits = [2 ** (n - 1).bit_length() for n in lengths], (BATCH_TOKENS,)
        failed, self.rows = run_batches(lengths, edit, self.rows, *limits)
        check_all_ran(pairs[failed, 1] if failed else [], self.tokenized, f"heads of layer {layer}")
        return out

    def run_batch(self, layer, prompts, edits, owners):
        """A pass over prompts of one length that starts at `layer`.

        owners   [row]  rows of one owner are edited in the same way
        returns  (final logits [row, vocabulary], values [row, later layer])
        """
        n_tokens, entropy = self.lengths[prompts[0]], []

        def on_layer(number, received):
            if number > layer:
                entropy.append(to_entropy(*received))

        hidden = self.clean.residuals[layer]
        hidden = hidden[torch.as_tensor(prompts, device=hidden.device), :n_tokens]
        token_ids = [self.tokenized[i].token_ids for i in prompts]
        resume = Resume(layer, hidden, self.clean.as_tuple)
        with shared_tokens(self.loaded.bridge.original_model, token_ids, owners):
            logits = run_layers(self.loaded, token_ids, on_layer, edits, resume, _as_received)
        logits = logits.cpu().numpy()
        if not entropy:
            return logits, np.empty((len(prompts), 0))
        arrays = self.clean.arrays
        later = {
            "entropy": np.stack(entropy, axis=1),
            "visible_keys": arrays["visible_keys"][layer + 1 :, :n_tokens],
            "n_tokens": arrays["n_tokens"][prompts],
            "span": arrays["span"][prompts],
        }
        return logits, effects.normalised_values(later)


def _as_received(tensor, dtype):
    return tensor, dtype
