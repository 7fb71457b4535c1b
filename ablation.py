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

from dataclasses import dataclass, field

import numpy as np
import torch

from rolecircuits.capture.activations import collect_activations
from rolecircuits.capture.patterns import pattern_hook_name
from rolecircuits.inputs.categories import PAIRED, REQUIRED
from rolecircuits.inputs.errors import UserError

SITES = {"head": "blocks.{}.attn.hook_z", "mlp": "blocks.{}.hook_mlp_out", "layer": "blocks.{}.hook_resid_post"}
DONOR_SITES = {"head": "head", "layer_heads": "head", "mlp": "mlp", "steer": "layer"}
HIDDEN_SCORE = -1e30


@dataclass
class Donors:
    """What edits are made of: activations of the unedited model, and who gives to whom.

    tokenized    the prompts, in the order of the prompt axis     facts  of the model (dtype, sliding_windows, n_heads)
    activations  {hook name: [prompt, query, ...] float32}        other  the same of other models, {source: activations}
    """

    tokenized: list
    facts: dict
    seed: int
    activations: dict = field(default_factory=dict)
    other: dict = field(default_factory=dict)


def donor_site(entry):
    """The hook whose clean activations this entry needs, or None."""
    if entry.type == "patch":
        return SITES[entry.component].format(entry.layer)
    if entry.type == "steer" or getattr(entry, "method", None) in ("mean", "resample"):
        return SITES[DONOR_SITES[entry.type]].format(entry.layer)
    return None


def collect_donors(loaded, tokenized, entries, seed=0, batch_size=32, load_other=None):
    """Donors for these entries: one pass over the prompts for this model and one for each other model.

    load_other  function source -> LoadedModel, called once a source; its memory is freed before the next
    """
    donors = Donors(tokenized, loaded.facts, seed)
    own = sorted({donor_site(e) for e in entries if not getattr(e, "source", None)} - {None})
    if own:
        donors.activations = collect_activations(loaded, tokenized, own, batch_size)
    for source in dict.fromkeys(e.source for e in entries if getattr(e, "source", None)):
        names = sorted({donor_site(e) for e in entries if getattr(e, "source", None) == source})
        other = load_other(source)
        check_same_shape(loaded, other, tokenized, source)
        donors.other[source] = collect_activations(other, tokenized, names, batch_size)
        del other
    return donors


def check_same_shape(loaded, other, tokenized, source):
    """Refuse to patch from a model with other layers, heads, widths or tokens."""
    for key in ("n_layers", "n_heads", "tokenizer_sha256"):
        if loaded.facts[key] != other.facts[key]:
            raise UserError(f"source {source}: its {key} is {other.facts[key]}, this model's is {loaded.facts[key]}")
    widths = [(m.bridge.cfg.d_model, m.bridge.cfg.d_head) for m in (loaded, other)]
    if widths[0] != widths[1]:
        raise UserError(f"source {source}: its width and head width are {widths[1]}, this model's are {widths[0]}")


def partners(entry, tokenized, seed):
    """Who gives to whom: [prompt] int, -1 for a prompt that has no partner and therefore stays unedited.

    paired    the other half of the pair, if both have the same number of tokens
    resample  another prompt with the same number of tokens, drawn with the seed
    """
    lengths = [len(p.token_ids) for p in tokenized]
    if entry.method == "other_model":
        return np.arange(len(tokenized))
    out = np.full(len(tokenized), -1)
    if entry.method == "paired":
        place = {(p.category, p.pair_id): i for i, p in enumerate(tokenized) if p.pair_id >= 0}
        for i, p in enumerate(tokenized):
            if p.category in PAIRED:
                j = place.get((PAIRED[1 - PAIRED.index(p.category)], p.pair_id), -1)
                out[i] = j if j >= 0 and lengths[i] == lengths[j] else -1
        return out
    rng = np.random.default_rng([seed, entry.layer])
    for i, length in enumerate(lengths):
        others = [j for j, n in enumerate(lengths) if n == length and j != i]
        out[i] = rng.choice(others) if others else -1
    return out


def edited_prompts(entry, tokenized, seed):
    """Which prompts the entry changes at all: [prompt] bool."""
    if entry.method in ("paired", "resample", "other_model"):
        return partners(entry, tokenized, seed) >= 0
    return np.ones(len(tokenized), dtype=bool)


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
            raise UserError(f"{entry.name}: self-referent and neutral residuals do not differ; there is no direction")
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
        new = means[: z.shape[1], heads].transpose(0, 1).to(z) if factor is None else z[row, :, own] * factor
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


def neutral_means(tokenized, values):
    """Mean over the neutral prompts that reach a position: values [prompt, query, ...] -> [query, ...]."""
    rows = [i for i, p in enumerate(tokenized) if p.category == REQUIRED[1]]
    if not rows:
        raise UserError("method mean needs neutral prompts; this prompt set has none")
    lengths = np.array([len(tokenized[i].token_ids) for i in rows])
    used = np.arange(lengths.max()) < lengths[:, None]
    totals = np.einsum("pq,pq...->q...", used.astype(values.dtype), values[rows][:, : lengths.max()])
    return totals / used.sum(axis=0).reshape((-1,) + (1,) * (values.ndim - 2))


def steering_direction(tokenized, residual):
    """mean(self_referent) - mean(neutral) of the residual: every prompt the mean of its own text's rows. [unit]."""
    means = {name: [] for name in REQUIRED}
    for p, values in zip(tokenized, residual, strict=True):
        if p.category in means:
            means[p.category].append(values[p.span[0] : p.span[1]].mean(axis=0))
    if not all(means.values()):
        raise UserError("steering needs self_referent and neutral prompts; this prompt set lacks one of them")
    return np.mean(means[REQUIRED[0]], axis=0) - np.mean(means[REQUIRED[1]], axis=0)


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
        weights = visible_weights(query, key, window).expand(len(rows.prompts), n_heads, n_query, n_key)
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
            drawn = np.random.default_rng([seed, layer, prompt, position]).exponential(size=(position + 1, n_heads))
            out[b, q, seen] = drawn[key[seen]]
    return torch.tensor(out).permute(0, 3, 1, 2)
