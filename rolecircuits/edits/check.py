"""Prove, on a short text and before anything is measured, that edits do what they say.

    bridge      its logits and the rows at its pattern hooks are those of the model
    hook_z      one zeroed head in every layer gives the logits of the model with the columns of
                that head zeroed in front of the layer's output projection
    each site   that a plan edits at: another value there changes the logits

A site where an edit does nothing would be published as an effect of 0: it is refused by name. The
verdict goes into the run's config.
"""

import contextlib

import numpy as np
import torch

from rolecircuits.capture.activations import (
    bridge_logits,
    check_hooks,
    compare_logits,
    logit_tolerance,
    plain_logits,
)
from rolecircuits.capture.check_texts import check_batches
from rolecircuits.capture.instrument import TOLERANCE, summary_of
from rolecircuits.capture.masks import has_sinks
from rolecircuits.capture.patterns import read_patterns
from rolecircuits.edits.donors import HOOKS
from rolecircuits.edits.passes import collect_patterns, pattern_hook_name
from rolecircuits.inputs.errors import RunFailed, UserError

SHORT = 12  # tokens on which edits are tried
WHAT = {
    "hook_pattern": "a pattern",
    "hook_attn_scores": "a pattern",
    "hook_mlp_out": "an MLP's output",
    "hook_resid_post": "the residual after a layer",
}


def edited_sites(entries):
    """{(component, layer): names of the entries of a plan that edit there}."""
    sites = {}
    for entry in entries:
        component = "pattern" if entry.type == "pattern" else entry.component
        sites.setdefault((component, entry.layer), []).append(entry.name)
    return sites


def check_edits(loaded, sites):
    """Refuse edits that this model's bridge does not perform; the verdict, which facts keep.

    sites  {(component, layer): names of what edits there}, as `edited_sites` gives them
    """
    if has_sinks(loaded):
        raise UserError(
            f"{loaded.facts['architecture']} has learned attention sinks, which TransformerLens's "
            "pattern hooks leave out; its heads can be measured, not edited"
        )
    verdict = dict(zip(("bridge_row_gap", "bridge_logit_gap"), check_passes(loaded), strict=True))
    ids = check_batches(loaded)[0][0][:SHORT]
    clean = bridge_logits(loaded, ids, [])
    if any(component == "head" for component, _ in sites):
        verdict["zeroed_heads_gap"] = check_heads(loaded, ids, clean)
    changes = {}
    for (component, layer), names in sites.items():
        if component == "head":  # proved for every layer at once
            continue
        site = site_name(loaded, component, layer)
        check_hooks(loaded, [site])
        change = float((collect_edited(loaded, ids, site) - clean).abs().max())
        if change == 0:
            what = WHAT[site.rpartition(".")[2]]
            raise UserError(
                f"{names[0]}: editing {what} at {site} changes nothing: "
                f"{loaded.facts['architecture']} does not read it there; leave it out of the plan"
            )
        changes[site] = change
    verdict["site_logit_change"] = changes
    loaded.facts["edits"] = verdict
    return verdict


def site_name(loaded, component, layer):
    """The hook at which a component of a layer is edited in the model's dtype."""
    if component == "pattern":
        return pattern_hook_name(layer, loaded.facts["dtype"])
    return HOOKS[component].format(layer)


def check_passes(loaded):
    """(largest difference of the rows at the bridge's hooks from the model's own, that of its final
    logits), on a text of at least 80 tokens and on short ones in a padded batch.
    """
    gaps = np.array([check_pass(loaded, texts) for texts in check_batches(loaded)])
    return gaps.max(axis=0).tolist()


def check_pass(loaded, texts):
    """The two differences of one padded batch of token ids; the logits of its first text."""
    tolerance, expected = TOLERANCE[loaded.facts["dtype"]], {}
    read_patterns(loaded, texts, expected.__setitem__)
    found, logits = collect_patterns(loaded, texts)
    summary, worst = summary_of(loaded.facts["dtype"]), 0.0
    lengths = np.array([len(ids) for ids in texts])
    real = np.arange(lengths.max()) < lengths[:, None]
    for layer, rows in expected.items():
        gap = np.inf
        if found[layer].shape == rows.shape:
            gaps = np.nan_to_num(abs(found[layer] - rows), nan=np.inf).sum(axis=-1) / 2
            gap = float(summary(gaps.transpose(0, 2, 1)[real]))
        if not gap <= tolerance:
            hook = pattern_hook_name(layer, loaded.facts["dtype"])
            raise UserError(
                f"{loaded.facts['architecture']} in {loaded.facts['dtype']}: TransformerLens's "
                f"{hook} is not the model's attention (rows differ by {gap:.2g}), so edited "
                "passes cannot be measured; activation_analysis.py can measure this model"
            )
        worst = max(worst, gap)
    return worst, compare_logits(loaded, logits[:1].cpu(), plain_logits(loaded, texts[0]))


def collect_edited(loaded, ids, site):
    """Final logits of the text with other values at a site: zeros, or uniform rows."""

    def change(values, hook):
        if site.endswith("hook_attn_scores"):
            return torch.where(values > values.amax() - 1e4, torch.zeros_like(values), values)
        if site.endswith("hook_pattern"):
            seen = (values > 0).to(values)
            return seen / seen.sum(dim=-1, keepdim=True)
        return torch.zeros_like(values)

    return bridge_logits(loaded, ids, [(site, change)])


def check_heads(loaded, ids, clean):
    """The largest difference in the logits between one zeroed head a layer at hook_z, and the
    model with that head's columns zeroed in front of the output projection.

    clean  the bridge's unedited logits
    """
    n_heads, name = loaded.n_heads, loaded.facts["architecture"]
    check_hooks(loaded, [HOOKS["head"].format(layer) for layer in range(loaded.n_layers)])
    shapes = []

    def zero(z, hook, head):
        shapes.append(tuple(z.shape))
        if z.ndim == 4 and z.shape[2] == n_heads:
            z = z.clone()
            z[:, :, head] = 0
        return z

    hooks = [
        (HOOKS["head"].format(layer), lambda z, hook, head=layer % n_heads: zero(z, hook, head))
        for layer in range(loaded.n_layers)
    ]
    edited = bridge_logits(loaded, ids, hooks)
    wrong = [shape for shape in shapes if len(shape) != 4 or shape[2] != n_heads]
    if wrong or len(shapes) != loaded.n_layers:
        shown = f"{wrong[0]}, not (1, {len(ids)}, {n_heads}, d)" if wrong else "missing in a layer"
        raise UserError(f"{name}: TransformerLens's hook_z is {shown}; its heads cannot be edited")
    with zeroed_columns(loaded):
        expected = plain_logits(loaded, ids)
    gap = float((edited - expected).abs().max())
    if not gap <= logit_tolerance(loaded, expected, 1e-4):
        raise UserError(
            f"{name}: zeroing a head at TransformerLens's hook_z is not zeroing its columns of the "
            f"output projection (logits differ by {gap:.2g}); its heads cannot be edited"
        )
    if torch.equal(edited, clean):
        raise RunFailed(f"{name}: zeroing one head in every layer changes nothing")
    return gap


@contextlib.contextmanager
def zeroed_columns(loaded):
    """Inside the block, the model's output projections get zeros for head layer % n_heads."""
    handles = []
    try:
        for layer, projection in enumerate(output_projections(loaded)):

            def zero(module, inputs, head=layer % loaded.n_heads):
                z = inputs[0]
                width = z.shape[-1] // loaded.n_heads
                z = z.clone()
                z[..., head * width : (head + 1) * width] = 0
                return (z, *inputs[1:])

            handles.append(projection.register_forward_pre_hook(zero))
        yield
    finally:
        for handle in handles:
            handle.remove()


def output_projections(loaded):
    """The module behind each layer's heads, in the plain model: found by the weight it shares with
    the one that TransformerLens calls `o`.
    """
    by_weight = {
        part.weight.data_ptr(): part
        for part in loaded.model.modules()
        if isinstance(getattr(part, "weight", None), torch.Tensor)
    }
    found = []
    for layer, block in enumerate(loaded.bridge.blocks):
        component = getattr(getattr(block, "attn", None), "o", None)
        weight = getattr(getattr(component, "original_component", None), "weight", None)
        part = None if weight is None else by_weight.get(weight.data_ptr())
        if part is None:
            raise UserError(
                f"{loaded.facts['architecture']}: TransformerLens names no output projection in "
                f"layer {layer}; its heads cannot be edited"
            )
        found.append(part)
    return found
