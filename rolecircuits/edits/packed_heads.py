"""One head a row edited in the plain model, prompts packed into one row of tokens (packed.Packed).

The same edit as at TransformerLens's hook_z, where a head's output is what its attention gives: the
model's own layers run on each token that differs, its attention is ours, and the layers below the
edited one hand the clean residual on. `packed_heads` proves on the model at hand that logits and
entropies are those of the bridge; where they are not, the bridge is used.

Axes: row (an edited prompt), head, query, key.
"""

import contextlib
import inspect

import numpy as np
import torch
from transformers.masking_utils import eager_mask

from rolecircuits.capture.batches import is_out_of_memory
from rolecircuits.capture.masks import (
    attention_output,
    joined,
    masked_scores,
    why_not_packed,
    with_sinks,
)
from rolecircuits.capture.model_pass import AttentionFunction, decoder_layers, own_attention
from rolecircuits.capture.packed import DOES_NOT_FIT, Packed
from rolecircuits.capture.prefix import other_forwards
from rolecircuits.edits.donors import HOOKS
from rolecircuits.edits.effects import normalised_values
from rolecircuits.edits.hooks import edit_own_head
from rolecircuits.inputs.errors import RunFailed
from rolecircuits.stats.entropy import attention_entropy

NAME = "role_heads"
CHECKED = 2  # prompts of each of two lengths on which both ways are compared
TOLERANCE = 1e-4  # of values and, relative to the largest, of logits


def packed_heads(loaded, tokenized, clean, run_by_bridge):
    """The PackedHeads of a model, or None where they are not what the bridge gives: in short
    dtypes, over several devices, where rotary angles depend on a batch's longest prompt, where
    prompts are not packed at all, and where the comparison with the bridge says so.

    run_by_bridge  HeadBatches.run_batch
    """
    several = len(set(getattr(loaded.model, "hf_device_map", {}).values())) > 1
    turned = loaded.facts.get("rotary") is not None
    if loaded.facts["dtype"] != "float32" or why_not_packed(loaded) or several or turned:
        return None
    packed = PackedHeads(loaded, tokenized, clean)
    try:
        agree = all(_agrees(packed, tokenized, run_by_bridge, edit) for edit in ("zero", "mean"))
    except DOES_NOT_FIT as error:
        if is_out_of_memory(error):
            raise
        return None
    return packed if agree else None


def _agrees(packed, tokenized, run_by_bridge, edit):
    """Whether an edit gives the bridge's logits and values, in one batch of prompts of two lengths
    and two heads, each with several prompts; a mean is drawn at random.
    """
    layers, lengths = (
        sorted(packed.clean.residuals),
        np.array([len(p.token_ids) for p in tokenized]),
    )
    layer, common = layers[len(layers) // 2], np.unique(lengths, return_counts=True)
    kinds = common[0][np.argsort(-common[1], kind="stable")][:2]
    groups = [np.flatnonzero(lengths == kind)[:CHECKED] for kind in kinds]
    prompts = np.concatenate([group for group in groups for _ in range(2)])
    last = packed.loaded.n_heads - 1
    heads = np.concatenate([np.full(len(group), head) for group in groups for head in (0, last)])
    how = {"factor": 0.0}
    if edit == "mean":  # the width of heads is known since the first comparison
        drawn = np.random.default_rng(0).normal(size=(lengths.max(), last + 1, packed.head_width))
        how = {"means": torch.tensor(drawn, dtype=torch.float32)}
    found, start = packed.run(layer, prompts, heads, **how), 0
    for group in groups:
        rows = slice(start, start + 2 * len(group))
        start = rows.stop
        site = [(HOOKS["head"].format(layer), edit_own_head(heads[rows], **how))]
        expected = run_by_bridge(layer, prompts[rows], site, heads[rows])
        for own, other in zip(found, expected, strict=True):
            scale = max(1.0, float(np.nan_to_num(np.abs(other)).max(initial=0.0)))
            if not np.allclose(own[rows], other, rtol=0, atol=TOLERANCE * scale, equal_nan=True):
                return False
    return True


class PackedHeads:
    """A model whose heads are edited, its prompts, and its clean pass (passes.CleanRun).

    head_width  units of a head's output, known after the first pass
    """

    def __init__(self, loaded, tokenized, clean):
        self.loaded, self.clean, self.head_width = loaded, clean, None
        self.token_ids = [prompt.token_ids for prompt in tokenized]

    def run(self, layer, prompts, heads, factor=None, means=None):
        """A pass over these prompts, in each of which one head of `layer` is edited.

        prompts, heads [row]; factor and means as edit_own_head takes them
        returns  (final logits [row, vocabulary] float32, values [row, later layer] as
                 head_batches.HeadBatches.run_batch gives them)
        """
        packed = Packed([self.token_ids[i] for i in prompts], heads)
        edit, entropy = edit_own_head(heads, factor, means), []

        def attend(number, call):
            rows = with_sinks(masked_scores(call), call.sinks)
            out = attention_output(call, rows)
            if number == layer:
                self.head_width = out.shape[-1]
                return edit(out.transpose(1, 2), None).transpose(1, 2)
            entropy.append(self._entropy(packed, joined(rows)))
            return out

        model = self.loaded.model
        function = AttentionFunction(self.loaded.n_layers, attend, to_end=True, start=layer)
        fed = {name: part.to(model.device) for name, part in packed.inputs().items()}
        masks = packed.mask_of(eager_mask)
        with (
            torch.inference_mode(),
            self._starting(layer, packed, prompts),
            own_attention(model, NAME, packed.attend_by(function), masks),
        ):
            logits = self._final_logits(model, packed, fed)
        if function.fired != self.loaded.n_layers:
            raise RunFailed(f"attention ran up to layer {function.fired - 1} only")
        if not entropy:
            return logits, np.empty((len(prompts), 0))
        return logits, self._values(layer, prompts, packed, np.stack(entropy, axis=1))

    def _entropy(self, packed, pattern):
        """[row, head, query] float32, NaN beyond a prompt's tokens; equal rows are taken once."""
        row, query = np.divmod(packed.first.numpy(), packed.width)
        rows = pattern[row, :, query].cpu().numpy()
        entropy = attention_entropy(rows).astype(np.float32)[packed.copies.numpy()]
        entropy = entropy.reshape(packed.n_prompts, packed.width, -1)
        entropy[np.arange(packed.width) >= packed.n_tokens[:, None]] = np.nan
        return entropy.transpose(0, 2, 1)

    def _values(self, layer, prompts, packed, entropy):
        arrays = self.clean.arrays
        return normalised_values(
            {
                "entropy": entropy,
                "visible_keys": arrays["visible_keys"][layer + 1 :, : packed.width],
                "n_tokens": arrays["n_tokens"][prompts],
                "span": arrays["span"][prompts],
            }
        )

    @contextlib.contextmanager
    def _starting(self, layer, packed, prompts):
        """Inside the block the layers below `layer` hand the clean residual on."""
        row, query = np.divmod(packed.first.numpy(), packed.width)
        clean = self.clean.residuals[layer]
        places = torch.as_tensor(np.asarray(prompts)[row]), torch.as_tensor(query)
        hidden = clean[tuple(place.to(clean.device) for place in places)][None]

        def hand_on(*args, **kwargs):
            return (hidden,) if self.clean.as_tuple else hidden

        below = decoder_layers(self.loaded)[:layer]
        with other_forwards(below, lambda forward: hand_on):
            yield

    def _final_logits(self, model, packed, fed):
        """Logits of each row's final token, and of no other where the model can leave them out."""
        rows = np.arange(packed.n_prompts) * packed.width + packed.n_tokens - 1
        last, kept = packed.copies[torch.as_tensor(rows)], {}
        if "logits_to_keep" in inspect.signature(model.forward).parameters:
            some, last = torch.unique(last, return_inverse=True)
            kept["logits_to_keep"] = some.to(model.device)
        logits = model(**fed, **kept, use_cache=False).logits[0]
        return logits[last.to(logits.device)].float().cpu().numpy()
