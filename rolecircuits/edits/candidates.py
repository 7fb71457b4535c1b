"""Which heads to ablate: chosen on one half of the prompts, measured on the other.

In a crossed set the halves are halves of the frames, and differences are taken inside frames.

Choosing and measuring on the same prompts would overstate the chosen heads: the largest of many
noisy g is too large. And the half that chooses is itself a draw, so the choice is made on many
random halves of it: a head is taken for how often it is among the strongest (stability selection;
Meinshausen and Buehlmann 2010).

    plan = select_candidates(run, top_k=10)      ablation_candidates.json, for interventions.py
"""

import numpy as np

from rolecircuits.inputs.arguments import DEFAULT_SEED
from rolecircuits.stats.audit import unidentified_reason
from rolecircuits.stats.contrasts import (
    available_contrasts,
    categories_of,
    compare_categories,
    contrast_sides,
    hedges_g,
)
from rolecircuits.stats.indices import prompt_values
from rolecircuits.stats.role_tests import MIN_HALF, split_units, strongest_heads
from rolecircuits.stats.units import frame_values, labels_of, units_of

SUBSAMPLES, MIN_UNITS = 200, 6  # of fewer units there are no halves that g is defined in


def select_candidates(run, top_k, seed=DEFAULT_SEED, contrasts=None):
    """ablation_candidates.json: the top_k heads of one half of the prompts, measured on the other.

    The heads that are most often among the top_k by |g| in random halves of that half; by |g| on
    all of it where it has fewer than MIN_UNITS prompts (frames) of a category.
    contrasts  {name: contrast}, the first one chooses; those of available_contrasts if None
    `held_out` are the ids of the prompts that did not choose. Where a half has too few of them,
    `interventions` is empty and `note` says why.
    """
    contrasts = contrasts or available_contrasts(run.category)
    name, contrast = next(iter(contrasts.items()))
    labels, pair = labels_of(run), categories_of(contrast)
    half, what = split_units(*labels, seed), "frames" if run.crossed else "prompts"
    plan = {"schema_version": 1, "source": _source(run, name, seed)}
    plan |= {"selection": [], "interventions": [], "held_out": _held_out_ids(run, labels, half)}
    if reason := unidentified_reason(run, pair):
        return plan | {"note": f"no candidates: {reason}"}
    sizes = [(labels[0][part] == name).sum() for part in (half, ~half) for name in pair]
    if min(sizes) < MIN_HALF:
        named = " and ".join(pair)
        needs = f"the halves need at least {MIN_HALF} {what} of {named} each"
        smallest = next(n for n in map(min, (sizes[:2], sizes[2:])) if n < MIN_HALF)
        return plan | {"note": f"no candidates: {needs}, one has {smallest}"}
    values = frame_values(run, prompt_values(run, "normalised"))
    parts = [(values[part], *(label[part] for label in labels)) for part in (half, ~half)]
    g, frequency = hedges_g(*contrast_sides(*parts[0], contrast)), np.full(values.shape[1:], np.nan)
    heads = strongest_heads(g, top_k)
    if min(sizes[: len(pair)]) >= MIN_UNITS:
        frequency, size = select_often(parts[0], contrast, top_k, seed)
        order = np.lexsort((-np.nan_to_num(size, nan=-1.0).ravel(), -frequency.ravel()))
        heads = [divmod(int(i), run.n_heads) for i in order[: len(heads)]]
    rows = _measure_held_out(parts[1], contrast, heads, seed)
    chosen = [{"g_selection": g[head], "selection_frequency": frequency[head]} for head in heads]
    places = [{"layer": layer, "head": head} for layer, head in heads]
    plan["selection"] = [a | b | c for a, b, c in zip(places, chosen, rows, strict=True)]
    ablation = {"type": "head", "method": "zero_out", "role": "candidate"}
    plan["interventions"] = [ablation | place for place in places]
    return plan


def select_often(half, contrast, top_k, seed, n_subsamples=SUBSAMPLES):
    """Choose in random halves of the units of a half of the prompts: two arrays [layer, head].

    half     (values [row, layer, head], category, unit); units stay whole
    returns  the share of these halves in which a head is among the top_k by |g|, and its mean |g|
    """
    values, *labels = half
    of_value = values.reshape(len(values), -1)
    times, size = np.zeros(of_value.shape[1], dtype=int), np.zeros(of_value.shape[1])
    for draw in range(n_subsamples):
        rows = split_units(*labels, [seed, draw])
        drawn = of_value[rows], *(label[rows] for label in labels)
        strength = np.abs(hedges_g(*contrast_sides(*drawn, contrast)))
        order = np.argsort(-np.nan_to_num(strength, nan=-1.0), kind="stable")[:top_k]
        times[order[~np.isnan(strength[order])]] += 1
        size += strength / n_subsamples
    return tuple(x.reshape(values.shape[1:]) for x in (times / n_subsamples, size))


def _held_out_ids(run, labels, half):
    """Ids of the prompts of the rows that are not in `half`: [row] bool."""
    if not run.crossed:
        return run.prompt_id[~half].tolist()
    return run.prompt_id[np.isin(units_of(run), labels[1][~half])].tolist()


def _measure_held_out(held_out, contrast, heads, seed):
    """One dict a head: g, its interval, p and q on the prompts that did not choose it.

    held_out  (values [row, layer, head], category, unit) of these prompts
    """
    layers, columns = (np.array([head[i] for head in heads], dtype=int) for i in (0, 1))
    values, *labels = held_out
    tests = compare_categories(values[:, layers, columns], *labels, contrast, seed=seed)
    measures = ("g", "g_low", "g_high", "p", "q")
    return [{f"{key}_held_out": tests[key][i] for key in measures} for i in range(len(heads))]


def _source(run, contrast, seed):
    facts, prompts = run.config["model"], run.config["prompts"]
    return {
        "model_id": facts["id"],
        "revision": facts.get("revision"),
        "weights_sha256": facts.get("weights_sha256"),
        "run": run.path.name if run.path else None,
        "prompts": run.prompt_set,
        "prompt_set_sha256": prompts.get("sha256"),
        "frames_left_out": list(prompts.get("frames_left_out") or {}),
        "prompt_format": run.prompt_format,
        "kind": "normalised",
        "contrast": contrast,
        "roles": run.config.get("roles") or {},
        "seed": seed,
    }
