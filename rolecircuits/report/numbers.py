"""Everything of a run, or of two, that the sections show, computed once with the tables' functions.

RunNumbers   RFC and RSI of every layer and of their mean, contrasts of layers and heads, at
             every kind of entropy; the audit of the design
PairNumbers  the same of instruct - base, on the prompts that both hold
"""

from dataclasses import dataclass

import numpy as np

from rolecircuits.inputs.arguments import DEFAULT_SEED, MARGIN
from rolecircuits.inputs.categories import REQUIRED
from rolecircuits.report.section import SIDES
from rolecircuits.stats import audit, contrasts, indices, role_tests, run_pairs
from rolecircuits.stats.index_inference import infer_mean_indices
from rolecircuits.stats.units import frame_values, labels_of

KINDS = indices.KINDS
PRIMARY = role_tests.PRIMARY
WITHIN = "first_word_matched"


@dataclass
class RunNumbers:
    """What one run shows.

    contrasts  {name: (first, second)}           reasons  {contrast or index: why it has no test}
    layers     {kind: {index: what infer_layers gives, and "verdict"}}
    means      {kind: {index: (mean over layers, low, high)}}
    primary    rows of layer_metrics.csv of the normalised kind
    contrast_layers, contrast_heads  {kind: {contrast: measures}}, [layer] and [layer, head]
    values     {kind: [row, layer, head]}, rows being prompts, or the frames of a crossed set
    prompt_layers  {kind: [prompt, layer]}, means over heads
    category, row_name  [row]                    audit    what design.json holds
    """

    contrasts: dict
    reasons: dict
    layers: dict
    means: dict
    primary: list
    contrast_layers: dict
    contrast_heads: dict
    values: dict
    prompt_layers: dict
    category: np.ndarray
    row_name: np.ndarray
    audit: dict


@dataclass
class PairNumbers:
    """What two runs show.

    indices    what run_pairs.estimate_pair gives     contrasts  {kind: {contrast: its estimates}}
    reasons    {index: why it has no interval}        notes      what a reader must know
    n, frames  of the prompts that both hold          pair       what differs, in words
    """

    indices: dict
    contrasts: dict
    reasons: dict
    notes: list
    n: int
    frames: int
    pair: str


def run_numbers(run, asked=(), seed=DEFAULT_SEED):
    """The RunNumbers of a run; asked: contrasts "a-b" in place of the usual ones."""
    chosen = contrasts.available_contrasts(run.category, asked)
    of_prompts = {kind: indices.prompt_values(run, kind) for kind in KINDS}
    values = {kind: frame_values(run, of_kind) for kind, of_kind in of_prompts.items()}
    layers = {kind: of_kind.mean(axis=-1) for kind, of_kind in values.items()}
    inferred, means, primary = {}, {}, []
    if set(REQUIRED) <= set(run.counts):
        inferred = {kind: role_tests.infer_layers(run, kind, seed) for kind in KINDS}
        means = {kind: mean_indices(run, layers[kind], inferred[kind], seed) for kind in KINDS}
        within = role_tests.infer_layers(run, WITHIN, seed)
        primary = role_tests.layer_metrics(run, {PRIMARY: inferred[PRIMARY], WITHIN: within})
        primary = [row for row in primary if row["kind"] == PRIMARY]
        for of_kind in inferred.values():
            for numbers in of_kind.values():
                numbers["verdict"] = role_tests.judge_layers(numbers, MARGIN)["verdict"]
                del numbers["family"]  # all draws of all layers: too much to send back
    return RunNumbers(
        contrasts=chosen,
        reasons=role_tests.list_reasons(run, chosen),
        layers=inferred,
        means=means,
        primary=primary,
        contrast_layers=contrast_kinds(run, layers, chosen, seed),
        contrast_heads=contrast_kinds(run, values, chosen, seed),
        values=values,
        prompt_layers={kind: of_kind.mean(axis=-1) for kind, of_kind in of_prompts.items()},
        category=labels_of(run)[0],
        row_name=row_names(run),
        audit=audit.audit_design(run),
    )


def mean_indices(run, layers, inferred, seed=DEFAULT_SEED):
    """{index: (mean over layers, low, high)}; layers [row, layer], inferred as infer_layers."""
    found = infer_mean_indices(layers, *labels_of(run), None, seed=seed)
    out = {}
    for index, ends in found.items():
        out[index] = tuple(float(x) for x in ends[:3])
        if inferred[index]["reason"]:
            out[index] = (out[index][0], np.nan, np.nan)
    return out


def contrast_kinds(run, values, chosen, seed=DEFAULT_SEED):
    """{kind: {contrast: measures}} of {kind: [row, ...]}."""
    return {
        kind: role_tests.contrast_values(run, of_kind, chosen, seed)
        for kind, of_kind in values.items()
    }


def row_names(run):
    """What the rows of a run's values are called: the prompt's id, or the frame: [row]."""
    if not run.crossed:
        return run.prompt_id
    frames = list(dict.fromkeys(run.frame.tolist()))
    return np.array([frames[unit] for unit in labels_of(run)[1]])


def pair_numbers(whole, found, asked=(), seed=DEFAULT_SEED):
    """The PairNumbers of a base and an instruct run of one set.

    whole, found  {side: Run}, {side: its RunNumbers}
    """
    runs, notes = run_pairs.match_runs(*(whole[side] for side in SIDES))
    shared, estimates, reasons = runs["base"], {}, {}
    chosen = contrasts.available_contrasts(shared.category, asked)
    for side, run in runs.items():
        if not np.array_equal(run.prompt_id, whole[side].prompt_id):  # cut to what both hold
            found = found | {side: run_numbers(run, asked, seed)}
    if set(REQUIRED) <= set(shared.counts):
        tests = {side: found[side].layers for side in SIDES}
        estimates, reasons = run_pairs.estimate_pair(runs, seed, tests)
    compared = {}
    for kind in KINDS:
        differences = run_pairs.estimate_contrasts(runs, chosen, seed, kind, ("diff",))
        sides = {side: found[side].contrast_layers[kind] for side in SIDES}
        compared[kind] = {
            name: {side: sides[side][name] for side in SIDES} | differences[name] for name in chosen
        }
    return PairNumbers(
        indices=estimates,
        contrasts=compared,
        reasons=reasons,
        notes=notes,
        n=len(shared.category),
        frames=len(set(shared.frame.tolist())),
        pair=run_pairs.describe_pair(*(whole[side] for side in SIDES)),
    )
