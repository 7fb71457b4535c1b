"""Everything of a run, or of two, that the sections show, computed once with the tables' functions.

RunNumbers   RFC and RSI of every layer and of their mean, contrasts of layers and heads, at
             every kind of entropy; the audit of the design
PairNumbers  the same of instruct - base, on the prompts that both hold
"""

from dataclasses import dataclass

import numpy as np

from rolecircuits.inputs.arguments import DEFAULT_SEED
from rolecircuits.inputs.categories import REQUIRED
from rolecircuits.report.section import KIND_NAMES, SIDES
from rolecircuits.stats import audit, contrasts, indices, role_tests, run_pairs
from rolecircuits.stats.index_inference import infer_mean_indices
from rolecircuits.stats.units import frame_values, labels_of

KINDS = tuple(KIND_NAMES)
MEASURES = ("estimate", "low", "high", "g", "q", "p_max")  # of a head, in the page


@dataclass
class RunNumbers:
    """What one run shows.

    contrasts  {name: (first, second)}           reasons  {contrast or index: why it has no test}
    layers     {kind: {index: numbers of infer_layers}}    means  {kind: {index: (mean, low, high)}}
    rows       rows of layer_metrics.csv of KINDS
    contrast_layers, contrast_heads  {kind: {contrast: measures}}, [layer] and [layer, head]
    values     {kind: [row, layer, head]}, rows being prompts, or the frames of a crossed set
    prompts    {kind: [prompt, layer, head]}
    category, row_name  [row]                    audit    what design.json holds
    """

    contrasts: dict
    reasons: dict
    layers: dict
    means: dict
    rows: list
    contrast_layers: dict
    contrast_heads: dict
    values: dict
    prompts: dict
    category: np.ndarray
    row_name: np.ndarray
    audit: dict


@dataclass
class PairNumbers:
    """What two runs show.

    indices    what run_pairs.estimate_pair gives     contrasts  {kind: {contrast: its estimates}}
    reasons    {index: why it has no interval}        notes      what a reader must know
    size       facts of the prompts that both hold
    """

    indices: dict
    contrasts: dict
    reasons: dict
    notes: list
    size: dict


def run_numbers(run, asked=(), seed=DEFAULT_SEED):
    """The RunNumbers of a run; asked: contrasts "a-b" in place of the usual ones."""
    labels, chosen = labels_of(run), contrasts.available_contrasts(run.category, asked)
    has_indices = set(REQUIRED) <= set(run.counts)
    inferred, means, values, of_prompts = {}, {}, {}, {}
    of_layers, of_heads = {}, {}
    for kind in KINDS:
        of_prompts[kind] = indices.prompt_values(run, kind)
        values[kind] = frame_values(run, of_prompts[kind])
        layers = values[kind].mean(axis=-1)
        of_heads[kind] = role_tests.contrast_values(run, values[kind], chosen, seed)
        of_layers[kind] = role_tests.contrast_values(run, layers, chosen, seed)
        if has_indices:
            inferred[kind] = role_tests.infer_layers(run, kind, seed)
            found = infer_mean_indices(layers, *labels, None, seed=seed)
            means[kind] = {
                index: tuple(float(x) for x in ends[:3])
                if inferred[kind][index]["reason"] is None
                else (float(ends[0]), np.nan, np.nan)
                for index, ends in found.items()
            }
    rows = []
    if has_indices:
        matched = {"first_word_matched": role_tests.infer_layers(run, "first_word_matched", seed)}
        rows = role_tests.layer_metrics(run, inferred | matched)
        rows = [row for row in rows if row["kind"] in KINDS]
    return RunNumbers(
        contrasts=chosen,
        reasons=role_tests.list_reasons(run, chosen),
        layers=inferred,
        means=means,
        rows=rows,
        contrast_layers=of_layers,
        contrast_heads=of_heads,
        values=values,
        prompts=of_prompts,
        category=labels[0],
        row_name=row_names(run),
        audit=audit.audit_design(run),
    )


def row_names(run):
    """What the rows of a run's values are called: the prompt's id, or the frame: [row]."""
    if not run.crossed:
        return run.prompt_id
    frames = list(dict.fromkeys(run.frame.tolist()))
    return np.array([frames[unit] for unit in labels_of(run)[1]])


def pair_numbers(base, instruct, asked=(), seed=DEFAULT_SEED):
    """The PairNumbers of a base and an instruct run, or None where they cannot be compared."""
    runs, notes = run_pairs.match_runs(base, instruct)
    estimates, reasons = run_pairs.estimate_pair(runs, seed)
    chosen = contrasts.available_contrasts(runs["base"].category, asked)
    compared = {kind: run_pairs.estimate_contrasts(runs, chosen, seed, kind) for kind in KINDS}
    shared = runs["base"]
    size = {"n": len(shared.category), "frames": len(set(shared.frame.tolist()))}
    size["pair"] = run_pairs.describe_pair(*(runs[side] for side in SIDES))
    return PairNumbers(estimates, compared, reasons, notes, size)


def estimate_of(measures):
    """The estimate among measures of a test, under the name that the functions give it."""
    return next(measures[name] for name in ("estimate", "value", "difference") if name in measures)
