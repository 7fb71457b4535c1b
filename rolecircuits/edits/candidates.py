"""Which heads to ablate: chosen on one half of the prompts, measured on the other, with controls from the same layers.

Choosing and measuring on the same prompts would overstate the chosen heads: the largest of many noisy g is too large.

    plan = select_candidates(run, top_k=10)      what ablation_candidates.json holds, readable by interventions.py
"""

import numpy as np

from rolecircuits.stats.contrasts import compare_categories, hedges_g
from rolecircuits.stats.indices import prompt_values
from rolecircuits.stats.resampling import MIN_PROMPTS
from rolecircuits.stats.role_tests import SEED, available_contrasts, split_prompts, strongest_heads

CONTROLS_PER_CANDIDATE = 2


def select_candidates(run, top_k, seed=SEED):
    """What ablation_candidates.json holds: the top_k heads by |g| on one half, measured on the other, and controls.

    Where a half has too few prompts, `interventions` is empty and `note` says why.
    """
    name, pair = next(iter(available_contrasts(run.category).items()))
    half = split_prompts(run.category, run.pair_id, seed)
    plan = {
        "schema_version": 1,
        "source": _source(run, name, seed),
        "selection": [],
        "interventions": [],
    }
    for part in (half, ~half):
        smallest = min((run.category[part] == category).sum() for category in pair)
        if smallest < MIN_PROMPTS:
            reason = f"the halves need at least {MIN_PROMPTS} prompts of {pair[0]} and {pair[1]} each, one has {smallest}"
            return plan | {"note": f"no candidates: {reason}"}
    values = prompt_values(run, "normalised")
    chosen = hedges_g(*(values[half & (run.category == category)] for category in pair))
    heads = strongest_heads(chosen, top_k)
    plan["selection"] = _measure_held_out(values, run, ~half, pair, heads, chosen, seed)
    plan["interventions"], notes = _add_controls(heads, run.n_heads, np.random.default_rng(seed))
    return plan | ({"note": "; ".join(notes)} if notes else {})


def _measure_held_out(values, run, held_out, pair, heads, chosen, seed):
    """The `selection` block: g on the half that chose, and g with interval, p and q on the half that did not."""
    layers, columns = (np.array([head[i] for head in heads], dtype=int) for i in (0, 1))
    values = values[held_out][:, layers, columns]
    found = compare_categories(
        values, run.category[held_out], run.pair_id[held_out], *pair, seed=seed
    )
    return [
        {
            "layer": layer,
            "head": head,
            "g_selection": chosen[layer, head],
            "g_held_out": found["g"][i],
        }
        | {f"{key}_held_out": found[key][i] for key in ("g_low", "g_high", "p", "q")}
        for i, (layer, head) in enumerate(heads)
    ]


def _source(run, contrast, seed):
    prompts = run.config["prompts"]
    facts = {
        "model_id": run.config["model"]["id"],
        "run": run.path.name if run.path else None,
        "prompt_set_sha256": prompts.get("sha256"),
    }
    return facts | {
        "prompt_format": run.prompt_format,
        "kind": "normalised",
        "contrast": contrast,
        "seed": seed,
    }


def _add_controls(heads, n_heads, rng):
    """Each candidate followed by random heads of its layer that are neither candidates nor controls of another."""
    taken, entries, notes = set(heads), [], []
    for layer, head in heads:
        entry = {
            "type": "head",
            "layer": layer,
            "head": head,
            "method": "zero_out",
            "role": "candidate",
        }
        entries.append(entry)
        free = [h for h in range(n_heads) if (layer, h) not in taken]
        controls = sorted(rng.permutation(free)[:CONTROLS_PER_CANDIDATE].tolist()) if free else []
        for control in controls:
            taken.add((layer, int(control)))
            tie = {"role": "control", "control_for": f"sh_{layer}_{head}"}
            entries.append(
                {"type": "head", "layer": layer, "head": int(control), "method": "zero_out"} | tie
            )
        if len(controls) < CONTROLS_PER_CANDIDATE:
            notes.append(
                f"layer {layer} has {len(controls)} unused heads left as controls for head {head}"
            )
    return entries, notes
