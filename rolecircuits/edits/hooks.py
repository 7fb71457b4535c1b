"""Hooks that edit a model while it runs; nothing is trained or saved here.

    z' = factor z                zero_out (0), half_out (0.5), scale: a head's output, attn.hook_z
    z' = mean over neutral       mean: of the head or MLP at the same position of neutral prompts
    z' = z of another prompt     resample (seeded, same length),
                                 paired (confounder[i] <-> third_person[i]),
                                 other_model (the same prompt in another model of the same shape)
    pattern' = uniform, random   over the keys that a row may see; rows sum to 1
    x' = x + alpha v             add: v = mean self-referent - mean neutral residual after layer l,
                                 rows of a prompt's own text only
    x' = x - (x.v) v / (v.v)     project_out

A hook never writes into the tensor it is given, and changes rows of real tokens only: padding
stays as it was. Zeroing hook_z equals zeroing the head's columns of the output projection.

    prepare = prepare_edit(entry, donors)      edits = prepare(rows)      [(hook name, hook), ...]

Axes: prompt, layer, head, query, key.
"""

import numpy as np
import torch

from rolecircuits.capture.batches import Edit, Rows
from rolecircuits.capture.masks import windows_of
from rolecircuits.edits.donors import (
    Donors,
    edited_hook,
    neutral_means,
    partners,
    steering_direction,
)
from rolecircuits.edits.passes import pattern_hook_name
from rolecircuits.edits.plan import ALIKE, FACTORS, FROM_OTHERS, Entry
from rolecircuits.inputs.errors import UserError

HIDDEN_SCORE = -1e30


def prepare_edit(entry: Entry, donors: Donors):
    """The Edit, a function Rows -> [(hook name, hook)], that performs the entry of a plan."""
    alike = entry.method in ALIKE
    if entry.type == "pattern":
        name = pattern_hook_name(entry.layer, donors.facts["dtype"])
        return Edit(lambda rows: [(name, replace_pattern(entry, donors, rows))], alike)
    name = edited_hook(entry)
    heads = (entry.head_list or slice(None)) if entry.component == "head" else None
    change = prepare_change(entry, donors, heads)
    return Edit(lambda rows: [(name, edit_rows(heads, change, rows))], alike)


def prepare_change(entry: Entry, donors: Donors, heads):
    """What the entry's method does to the values of these heads (None: they have no head axis).

    returns  a function (values [batch, query, ...], rows) -> (new values, [batch, query] bool of
             the rows that may change)
    raises   ValueError for a method that nothing here performs
    """

    method, hook = entry.method, edited_hook(entry)
    if method in FACTORS:
        return scale(FACTORS[method])
    if method == "scale":
        return scale(entry.factor)
    if method == "mean":
        means = neutral_means(donors.tokenized, donors.activations[hook])
        return put_means(torch.tensor(means if heads is None else means[:, heads]))
    if method in FROM_OTHERS:
        source = donors.other[entry.source] if method == "other_model" else donors.activations
        values = source[hook] if heads is None else source[hook][:, :, heads]
        return put_donors(torch.tensor(values), partners(entry, donors.tokenized, donors.seed))
    if method in ("add", "project_out"):
        direction = torch.tensor(steering_direction(donors.tokenized, donors.activations[hook]))
        if not direction.any():
            raise UserError(
                f"{entry.name}: self-referent and neutral residuals do not differ; there is no "
                "direction"
            )
        return steer(direction, entry.alpha) if method == "add" else project_out(direction)
    raise ValueError(f"{entry.type} at layer {entry.layer}: no edit is called {method!r}")


def edit_rows(heads, change, rows: Rows):
    """The hook of a change to values [batch, query, unit] (heads None), or to these heads (a list
    or slice) of values [batch, query, head, d_head]."""

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


def edit_own_head(heads, factor=None, means=None):
    """Hook for a batch whose rows differ in the head they lose: hook_z [row, query, head, d_head].

    heads   [row]  which head of each row is multiplied by `factor`, or replaced where that is None
    means   [position, head, d_head]  what replaces it; beyond the last position, by its mean
    What it does in padding is of no account.
    """
    heads = torch.as_tensor(heads)

    def hook(z, hook):
        row, own = torch.arange(len(heads), device=z.device), heads.to(z.device)
        if factor is None:
            position = torch.arange(z.shape[1]).clamp(max=len(means) - 1)
            new = means[position][:, heads].transpose(0, 1).to(z)
        else:
            new = z[row, :, own] * factor
        z = z.clone()
        z[row, :, own] = new
        return z

    return hook


def scale(factor):
    """Multiply by a factor; 1 gives back bit-identical values."""
    return lambda values, rows: (values * factor, rows.real(values.shape[1], values.device))


def put_means(means):
    """Replace by the mean at the same position, [position, ...]; beyond the last, by its mean."""

    def change(values, rows):
        position = rows.positions(values.shape[1]).clamp(max=len(means) - 1)
        new = means[position].to(values.device)[None].expand_as(values)
        return new, rows.real(values.shape[1], values.device)

    return change


def put_donors(values, partner):
    """Replace by the partner's values [prompt, query, ...] at the same position of the prompt."""

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


def replace_pattern(entry: Entry, donors: Donors, rows: Rows):
    """Hook for the patterns of some heads, uniform or random over the visible keys.

    In the short dtypes the pattern is measured from the scores before the softmax, so there the
    logarithm of the new pattern replaces the scores: softmax(ln p) = p.
    """
    if entry.method not in ("uniform", "random"):
        raise ValueError(f"pattern at layer {entry.layer}: no edit is called {entry.method!r}")
    window, chunk = windows_of(donors.facts)[entry.layer]
    as_scores = donors.facts["dtype"] != "float32"
    heads = entry.head_list or slice(None)

    def hook(values, hook):  # [batch, head, query, key]
        n_heads, n_query, n_key = values.shape[1:]
        query = rows.positions(n_query)
        key = torch.arange(n_key) + rows.start + n_query - n_key
        shape = (len(rows.prompts), n_heads, n_query, n_key)
        weights = visible_weights(query, key, window, chunk).expand(shape)
        if entry.method == "random":
            weights = weights * random_weights(rows, query, key, n_heads, donors.seed, entry.layer)
        new = (weights / weights.sum(dim=-1, keepdim=True)).to(values)
        if as_scores:
            new = torch.where(new > 0, new.log(), HIDDEN_SCORE)
        allowed = rows.real(n_query, values.device)[:, None, :, None]
        edited = torch.where(allowed, new[:, heads], values[:, heads])
        values = values.clone()
        values[:, heads] = edited
        return values

    return hook


def visible_weights(query, key, window, chunk=None):
    """1 where a query row may see a key, else 0: [query, key] float64.

    Keys at negative positions do not exist.
    """
    seen = (key[None, :] <= query[:, None]) & (key >= 0)[None, :]
    if window is not None:
        seen &= key[None, :] > query[:, None] - window
    if chunk is not None:
        seen &= key[None, :] >= (query // chunk * chunk)[:, None]
    return seen.double()


def random_weights(rows, query, key, n_heads, seed, layer):
    """Weights [batch, head, query, key] that depend on prompt and position, never on the batch.

    Exponential: normalised, they are uniform on the simplex (a flat Dirichlet).
    """
    key = key.numpy()
    out = np.zeros((len(rows.prompts), len(query), len(key), n_heads))
    for b, prompt in enumerate(rows.prompts):
        for q, position in enumerate(query.tolist()):
            seen = (key >= 0) & (key <= position)
            rng = np.random.default_rng([seed, layer, prompt, position])
            out[b, q, seen] = rng.exponential(size=(position + 1, n_heads))[key[seen]]
    return torch.tensor(out).permute(0, 3, 1, 2)
