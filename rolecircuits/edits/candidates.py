"""Which heads to ablate: chosen on one half of the prompts, measured on the other, and controls.

In a crossed set the halves are halves of the frames, and differences are taken inside frames.

Choosing and measuring on the same prompts would overstate the chosen heads: the largest of many
noisy g is too large.

    plan = select_candidates(run, top_k=10)      ablation_candidates.json, for interventions.py
"""

import numpy as np

from rolecircuits.inputs.arguments import DEFAULT_SEED
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

CONTROLS_PER_CANDIDATE = 2


def select_candidates(run, top_k, seed=DEFAULT_SEED, contrasts=None):
    """ablation_candidates.json: the top_k heads by |g| of one half, measured on the other.

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
    sizes = [(labels[0][part] == name).sum() for part in (half, ~half) for name in pair]
    if min(sizes) < MIN_HALF:
        named = " and ".join(pair)
        needs = f"the halves need at least {MIN_HALF} {what} of {named} each"
        smallest = next(n for n in map(min, (sizes[:2], sizes[2:])) if n < MIN_HALF)
        return plan | {"note": f"no candidates: {needs}, one has {smallest}"}
    values = frame_values(run, prompt_values(run, "normalised"))
    parts = [(values[part], *(label[part] for label in labels)) for part in (half, ~half)]
    g = hedges_g(*contrast_sides(*parts[0], contrast))
    heads = strongest_heads(g, top_k)
    plan["selection"] = _measure_held_out(parts[1], contrast, heads, g, seed)
    plan["interventions"], notes = _plan_ablations(heads, run.n_heads, seed)
    return plan | ({"note": "; ".join(notes)} if notes else {})


def _held_out_ids(run, labels, half):
    """Ids of the prompts of the rows that are not in `half`: [row] bool."""
    if not run.crossed:
        return run.prompt_id[~half].tolist()
    return run.prompt_id[np.isin(units_of(run), labels[1][~half])].tolist()


def _measure_held_out(held_out, contrast, heads, g, seed):
    """Rows of `selection`: g [layer, head] of the half that chose beside the other half's tests.

    held_out  (values [row, layer, head], category, unit) of the other half
    """
    layers, columns = (np.array([head[i] for head in heads], dtype=int) for i in (0, 1))
    values, *labels = held_out
    tests = compare_categories(values[:, layers, columns], *labels, contrast, seed=seed)
    rows = []
    for i, (layer, head) in enumerate(heads):
        row = {"layer": layer, "head": head, "g_selection": g[layer, head]}
        measured = {f"{key}_held_out": tests[key][i] for key in ("g", "g_low", "g_high", "p", "q")}
        rows.append(row | measured)
    return rows


def _source(run, contrast, seed):
    return {
        "model_id": run.config["model"]["id"],
        "run": run.path.name if run.path else None,
        "prompt_set_sha256": run.config["prompts"].get("sha256"),
        "prompt_format": run.prompt_format,
        "kind": "normalised",
        "contrast": contrast,
        "roles": run.config.get("roles") or {},
        "seed": seed,
    }


def _plan_ablations(heads, n_heads, seed):
    """(candidates, each followed by its controls, as entries of a plan; notes on missing ones)."""
    sites = [(layer, (head,)) for layer, head in heads]
    drawn = draw_control_heads(sites, n_heads, CONTROLS_PER_CANDIDATE, seed, shared=False)
    entries, notes = [], []
    for layer, head in heads:
        controls = drawn[layer, (head,)]
        ablation = {"type": "head", "layer": layer, "head": head, "method": "zero_out"}
        entries.append(ablation | {"role": "candidate"})
        tie = {"role": "control", "control_for": f"sh_{layer}_{head}"}
        entries += [ablation | {"head": control} | tie for (control,) in controls]
        if len(controls) < CONTROLS_PER_CANDIDATE:
            left = f"layer {layer} has {len(controls)} unused heads left"
            notes.append(f"{left} as controls for head {head}")
    return entries, notes


def draw_control_heads(sites, n_heads, per_site, seed, shared=True):
    """Random other heads of the same layer for every edited site: {site: [heads of a control]}.

    sites   [(layer, (head, ...)), ...], each once; a control has as many heads as its site
    shared  whether a head may be a control of several sites; no head of a site is ever drawn

    Controls of one site are different heads while there are enough; sites without heads have none.
    """
    rng = np.random.default_rng(seed)
    taken = {(layer, head) for layer, heads in sites for head in heads}
    drawn = {}
    for layer, heads in sites:
        free = [head for head in range(n_heads) if (layer, head) not in taken]
        size, order, controls = len(heads), rng.permutation(free).astype(int).tolist(), []
        for _ in range(per_site if size else 0):
            if 1 < size <= len(free) and len(order) < size:
                order = rng.permutation(free).tolist()
            if len(order) < size:
                break
            controls.append(tuple(sorted(order[:size])))
            order = order[size:]
        drawn[layer, heads] = sorted(controls)
        if not shared:
            taken |= {(layer, head) for control in controls for head in control}
    return drawn
