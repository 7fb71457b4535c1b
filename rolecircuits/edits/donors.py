"""Whose activations an edit takes: another prompt's, another model's, or a mean over prompts."""

from dataclasses import dataclass, field

import numpy as np

from rolecircuits.capture.activations import check_bridge, collect_activations
from rolecircuits.capture.tokens import TokenizedPrompt
from rolecircuits.edits.plan import FROM_OTHERS, Entry
from rolecircuits.inputs.categories import PAIRED
from rolecircuits.inputs.errors import UserError
from rolecircuits.models.load import LoadedModel

HOOKS = {
    "head": "blocks.{}.attn.hook_z",
    "mlp": "blocks.{}.hook_mlp_out",
    "layer": "blocks.{}.hook_resid_post",
}
NEEDS_ACTIVATIONS = ("mean", *FROM_OTHERS, "add", "project_out")


@dataclass
class Donors:
    """What edits are made of: activations of the unedited model, and who gives to whom.

    tokenized    the prompts, in the order of the prompt axis
    facts        of the model (dtype, windows of the masks, n_heads)
    activations  {hook name: [prompt, query, ...] float32}
    other        the same of other models, {source: activations}
    """

    tokenized: list[TokenizedPrompt]
    facts: dict
    seed: int
    activations: dict = field(default_factory=dict)
    other: dict = field(default_factory=dict)


def edited_hook(entry: Entry):
    """The hook at which an entry edits; a pattern's has another name in each dtype."""
    return HOOKS[entry.component].format(entry.layer)


def collect_donors(loaded: LoadedModel, tokenized, entries, seed=0, batch_size=32, load_other=None):
    """Donors for these entries: one pass over the prompts for this model and each other model.

    load_other  function source -> LoadedModel, called once a source; its memory is freed before
                the next
    """
    donors, hooks = Donors(tokenized, loaded.facts, seed), {}
    for entry in entries:
        if entry.method in NEEDS_ACTIVATIONS:
            hooks.setdefault(getattr(entry, "source", None), set()).add(edited_hook(entry))
    for source, names in hooks.items():
        if source is None:
            donors.activations = collect_activations(loaded, tokenized, sorted(names), batch_size)
            continue
        other = load_other(source)
        check_bridge(other)
        check_same_shape(loaded, other, source)
        donors.other[source] = collect_activations(other, tokenized, sorted(names), batch_size)
        del other
    return donors


def check_same_shape(loaded: LoadedModel, other: LoadedModel, source):
    """Refuse to patch from a model with other layers, heads, widths or tokens."""
    for key in ("n_layers", "n_heads", "tokenizer_sha256"):
        if loaded.facts[key] != other.facts[key]:
            raise UserError(
                f"source {source}: its {key} is {other.facts[key]}, this model's is "
                f"{loaded.facts[key]}"
            )
    widths = [(m.bridge.cfg.d_model, m.bridge.cfg.d_head) for m in (loaded, other)]
    if widths[0] != widths[1]:
        raise UserError(
            f"source {source}: its width and head width are {widths[1]}, this model's are "
            f"{widths[0]}"
        )


def partners(entry: Entry, tokenized: list[TokenizedPrompt], seed):
    """Who gives to whom: [prompt] int, -1 for a prompt without a partner, which stays unedited.

    paired       the other half of the pair, if both have the same number of tokens
    resample     another prompt with the same number of tokens, drawn with the seed
    other_model  the prompt itself
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


def edited_prompts(entry: Entry, tokenized: list[TokenizedPrompt], seed):
    """Which prompts the entry changes at all: [prompt] bool."""
    if entry.method in FROM_OTHERS:
        return partners(entry, tokenized, seed) >= 0
    return np.ones(len(tokenized), dtype=bool)


def neutral_means(tokenized, values):
    """Mean over the neutral prompts that reach a position: [prompt, query, ...] -> [query, ...]."""
    rows = [i for i, p in enumerate(tokenized) if p.category == "neutral"]
    if not rows:
        raise UserError("method mean needs neutral prompts; this prompt set has none")
    lengths = np.array([len(tokenized[i].token_ids) for i in rows])
    used = np.arange(lengths.max()) < lengths[:, None]
    neutral = values[rows][:, : lengths.max()]
    totals = np.einsum("pq,pq...->q...", used.astype(values.dtype), neutral)
    return totals / used.sum(axis=0).reshape((-1,) + (1,) * (values.ndim - 2))


def steering_direction(tokenized, residual):
    """mean(self_referent) - mean(neutral) of the residual [prompt, query, unit]: [unit].

    A prompt counts with the mean of its own text's rows.
    """
    means = {"self_referent": [], "neutral": []}
    for p, values in zip(tokenized, residual, strict=True):
        if p.category in means:
            means[p.category].append(values[p.span[0] : p.span[1]].mean(axis=0))
    if not all(means.values()):
        raise UserError(
            "steering needs self_referent and neutral prompts; this prompt set lacks one of them"
        )
    return np.mean(means["self_referent"], axis=0) - np.mean(means["neutral"], axis=0)
