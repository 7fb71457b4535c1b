"""Hooks that edit a model while it runs: heads, patterns, MLPs, patching and steering. Nothing is trained or saved here.

    z' = factor z                 zero_out (0), half_out (0.5), scale: output of a head at blocks.{l}.attn.hook_z
    z' = mean over neutral        mean: the head's (or MLP's) mean output at the same position of the neutral prompts
    z' = z of another prompt      resample (seeded, same length), patch paired (confounder[i] <-> third_person[i]),
                                  patch other_model (the same prompt in another model of the same shape)
    pattern' = uniform | random   over the keys that a row may see: causal, inside the sliding window, rows sum to 1
    x' = x + alpha v              steer add: v = mean self-referent - mean neutral residual after layer l, own text only
    x' = x - (x.v) v / (v.v)      steer project_out

A hook never writes into the tensor it is given, and changes rows of real tokens only: padding stays as it was. Zeroing
hook_z equals zeroing the head's columns of the output projection.

    prepare = prepare_edit(entry, donors)      edits = prepare(rows)      [(hook name, hook), ...]

Axes: prompt, layer, head, query, key.
"""

import numpy as np
import torch

from rolecircuits.capture.patterns import pattern_hook_name
from rolecircuits.edits.donors import (
    DONOR_SITES,
    SITES,
    neutral_means,
    partners,
    steering_direction,
)
from rolecircuits.inputs.errors import UserError

HIDDEN_SCORE = -1e30


def prepare_edit(entry, donors):
    """A function Rows -> [(hook name, hook)] that performs the entry."""
    if entry.type == "pattern":
        name = pattern_hook_name(entry.layer, donors.facts["dtype"])
        return lambda rows: [(name, replace_pattern(entry, donors, rows))]
    if entry.type in ("head", "layer_heads"):
        site, heads = SITES["head"].format(entry.layer), entry.head_list or slice(None)
    elif entry.type == "patch":
        site = SITES[entry.component].format(entry.layer)
        heads = (entry.head_list or slice(None)) if entry.component == "head" else None
    else:
        site, heads = SITES[DONOR_SITES[entry.type]].format(entry.layer), None
    change = prepare_change(entry, donors, site, heads)
    return lambda rows: [(site, edit_rows(heads, change, rows))]


def prepare_change(entry, donors, site, heads):
    """A function (values [batch, query, ...], rows) -> (new values, [batch, query] bool of rows that may change)."""
    if entry.type == "steer":
        direction = torch.tensor(steering_direction(donors.tokenized, donors.activations[site]))
        if not direction.any():
            raise UserError(
                f"{entry.name}: self-referent and neutral residuals do not differ; there is no direction"
            )
        return steer(direction, entry.alpha) if entry.method == "add" else project_out(direction)
    if entry.method == "mean":
        means = neutral_means(donors.tokenized, donors.activations[site])
        return put_means(torch.tensor(means if heads is None else means[:, heads]))
    if entry.method in ("resample", "paired", "other_model"):
        source = donors.activations if entry.method != "other_model" else donors.other[entry.source]
        values = source[site] if heads is None else source[site][:, :, heads]
        return put_donors(torch.tensor(values), partners(entry, donors.tokenized, donors.seed))
    return scale(getattr(entry, "scale", 0.0))


def edit_rows(heads, change, rows):
    """The hook of a change; heads None for [batch, query, unit], a list or slice for [batch, query, head, d_head]."""

    def hook(values, hook):
        part = values if heads is None else values[:, :, heads]
        new, allowed = change(part, rows)
        allowed = allowed.reshape(allowed.shape + (1,) * (part.ndim - 2))
        edited = torch.where(allowed, new.to(part.dtype), part)
        if heads is None:
            return edited
        values = values.clone()
        values[:, :, heads] = edited
        return values

    return hook


def edit_own_head(heads, factor, means=None):
    """Hook for a batch whose rows differ in the head they lose: hook_z [row, query, head, d_head], heads [row].

    Row r's head heads[r] is multiplied by `factor`, or replaced by means [position, head, d_head] where factor is None.
    The rows hold no padding.
    """
    heads = torch.as_tensor(heads)

    def hook(z, hook):
        row, own = torch.arange(len(heads), device=z.device), heads.to(z.device)
        new = (
            means[: z.shape[1], heads].transpose(0, 1).to(z)
            if factor is None
            else z[row, :, own] * factor
        )
        z = z.clone()
        z[row, :, own] = new
        return z

    return hook


def scale(factor):
    """Multiply by a factor; 1 gives back bit-identical values."""
    return lambda values, rows: (values * factor, rows.real(values.shape[1], values.device))


def put_means(means):
    """Replace by the mean at the same position, [position, ...]; beyond the last known position, by its mean."""

    def change(values, rows):
        position = rows.positions(values.shape[1]).clamp(max=len(means) - 1)
        new = means[position].to(values.device)[None].expand_as(values)
        return new, rows.real(values.shape[1], values.device)

    return change


def put_donors(values, partner):
    """Replace by the partner's values [prompt, query, ...] at the same position, inside the prompt only."""

    def change(old, rows):
        who = torch.tensor(partner[rows.prompts])
        position = rows.positions(old.shape[1]).clamp(max=values.shape[1] - 1)
        new = values[who.clamp(min=0)][:, position].to(old.device)
        return new, rows.in_prompt(old.shape[1], old.device) & (who >= 0)[:, None].to(old.device)

    return change


def steer(direction, alpha):
    """Add alpha times the direction [unit] to every real row."""

    def change(values, rows):
        return values + (alpha * direction).to(values), rows.real(values.shape[1], values.device)

    return change


def project_out(direction):
    """Remove the component along the direction [unit] from every real row."""
    unit = direction / direction.norm()

    def change(values, rows):
        along = unit.to(values)
        new = values - (values @ along)[..., None] * along
        return new, rows.real(values.shape[1], values.device)

    return change


def replace_pattern(entry, donors, rows):
    """Hook for the patterns of some heads, uniform or random over the visible keys.

    In the short dtypes the pattern is measured from the scores before the softmax, so there the logarithm of the new
    pattern replaces the scores: softmax(ln p) = p.
    """
    window = donors.facts["sliding_windows"][entry.layer]
    as_scores = donors.facts["dtype"] != "float32"

    def hook(values, hook):  # [batch, head, query, key]
        n_heads, n_query, n_key = values.shape[1:]
        query = rows.positions(n_query)
        key = torch.arange(n_key) + rows.start + n_query - n_key
        weights = visible_weights(query, key, window).expand(
            len(rows.prompts), n_heads, n_query, n_key
        )
        if entry.method == "random":
            weights = weights * random_weights(rows, query, key, n_heads, donors.seed, entry.layer)
        new = (weights / weights.sum(dim=-1, keepdim=True)).to(values)
        if as_scores:
            new = torch.where(new > 0, new.log(), HIDDEN_SCORE)
        heads = entry.head_list or slice(None)
        allowed = rows.real(n_query, values.device)[:, None, :, None]
        edited = torch.where(allowed, new[:, heads], values[:, heads])
        values = values.clone()
        values[:, heads] = edited
        return values

    return hook


def visible_weights(query, key, window):
    """1 where a query row may see a key, else 0: [query, key] float64; keys at negative positions do not exist."""
    seen = (key[None, :] <= query[:, None]) & (key >= 0)[None, :]
    if window is not None:
        seen &= key[None, :] > query[:, None] - window
    return seen.double()


def random_weights(rows, query, key, n_heads, seed, layer):
    """Exponential weights [batch, head, query, key] that depend on prompt and position, never on the batch.

    Normalised exponentials are uniform on the simplex (a flat Dirichlet).
    """
    key = key.numpy()
    out = np.zeros((len(rows.prompts), len(query), len(key), n_heads))
    for b, prompt in enumerate(rows.prompts):
        for q, position in enumerate(query.tolist()):
            seen = (key >= 0) & (key <= position)
            drawn = np.random.default_rng([seed, layer, prompt, position]).exponential(
                size=(position + 1, n_heads)
            )
            out[b, q, seen] = drawn[key[seen]]
    return torch.tensor(out).permute(0, 3, 1, 2)
