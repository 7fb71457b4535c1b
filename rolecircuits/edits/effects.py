"""What an edit did to the next token and to later attention.

    KL(l)          = sum_v p(v) ln(p(v) / q(v))   p: next token, unedited; q: edited
    top-1 change   = 1 if argmax p != argmax q
    surprisal      = ln p(a) - ln q(a)            a: the unedited model's greedy answer token;
                                                  > 0: a became less likely
    RFC, RSI       edited - unedited, normalised, mean over the layers after the edited one

All at the final token, in nats. The entropy of an ablated head is no effect: it is what was edited,
so only later layers count; an edit of the last layer has none, and its RFC and RSI changes are
undefined (NaN).

Intervals are 95 % bootstrap-t intervals over prompts. p tests the candidate against the mean of the
same edit on random other heads of the layer, on the same prompts: by sign flips for the next token,
by the bootstrap-t of the difference for RFC and RSI. q-values are Benjamini-Hochberg.
"""

import numpy as np

from rolecircuits.inputs.categories import order_categories
from rolecircuits.stats.contrasts import q_values
from rolecircuits.stats.index_inference import infer_mean_indices
from rolecircuits.stats.indices import INDICES
from rolecircuits.stats.moments import defined_mean
from rolecircuits.stats.resampling import infer_mean, untestable_reason
from rolecircuits.stats.units import design_of, frame_values, labels_of, units_of

PROMPT_METRICS = ("kl", "top1_change", "surprisal_change")
INDEX_METRICS = tuple(f"{index}_change" for index in INDICES)
METRICS = PROMPT_METRICS + INDEX_METRICS
PARTS = ("", "_low", "_high", "_control", "_p", "_q")
NO_EFFECT = 1e-4
ALL = "all"


def log_probabilities(logits):
    """ln softmax over the last axis, float64: [..., vocabulary]."""
    logits = np.asarray(logits, dtype=np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def kl_of_change(p, change):
    """(KL of base from edited, c) in nats, from base probabilities p and the logits' change.

    With d the change of the logits and c = sum p d, KL = ln sum p exp(d - c). The textbook sum of
    p (ln p - ln q) cancels; this form keeps its relative precision for the smallest effects and is
    exactly 0 where no logit changes. p, change  [vocabulary]
    """
    # einsum, not @: waking BLAS threads costs more than one row does
    mean = float(np.einsum("v,v->", p, change))
    return max(float(np.log1p(np.einsum("v,v->", p, np.expm1(change - mean)))), 0.0), mean


class BaseDistribution:
    """The unedited next-token distributions, to compare edits with: logits [prompt, vocabulary]."""

    def __init__(self, logits):
        self.logits = np.asarray(logits, dtype=np.float32)
        self.answer = np.argmax(self.logits, axis=-1)  # [prompt] greedy token
        self.p = np.exp(log_probabilities(self.logits))  # [prompt, vocabulary] float64

    def effects(self, edited_logits, prompts=None):
        """Effects of one edit on these prompts (all if None): edited_logits [row, vocabulary].

        returns  {metric of PROMPT_METRICS: [row] float64, "logit_change": [row] largest |change|}
        """
        prompts = range(len(self.answer)) if prompts is None else prompts
        rows = [self._row(edited, i) for edited, i in zip(edited_logits, prompts, strict=True)]
        return {
            name: np.array([row[name] for row in rows])
            for name in (*PROMPT_METRICS, "logit_change")
        }

    def _row(self, edited, i):
        """One prompt at a time: a row of the vocabulary stays in the processor's cache."""
        answer, change = self.answer[i], edited.astype(np.float64) - self.logits[i]
        kl, mean = kl_of_change(self.p[i], change)
        return {
            "kl": kl,
            "top1_change": float(np.argmax(edited) != answer),
            "surprisal_change": kl + mean - float(change[answer]),  # ln sum p exp(d) - d(a)
            "logit_change": float(np.abs(change).max()),
        }


def infer_index_changes(base, edited, design, seed, **draws):
    """Change of the mean RFC and RSI of later layers: {"rfc_change": Inference, "rsi_change": ...}.

    base, edited  [prompt, layer] normalised values of the layers after the edited one
    design        the stats.units.Design of the prompts
    """
    base, edited = (frame_values(design, values) for values in (base, edited))
    changes = infer_mean_indices(edited, *labels_of(design), base, seed=seed, **draws)
    return {f"{index}_change": changes[index] for index in INDICES}


def effect_rows(measured, base_values, design, seed):
    """One row an intervention and category: value, interval, controls, p and q of every metric.

    measured     {name: {"effects": {metric: [prompt]}, "values": [prompt, layer], "layer": l,
                 "controls": [names], "labels": {column: text}}}; NaN in the effects of prompts
                 that an edit does not touch
    base_values  [prompt, layer] of the unedited run    design  the Design of the prompts
    """
    labels, groups = (design.category, units_of(design)), order_categories(design.category.tolist())
    of_prompts = {group: _prompt_cells(measured, labels, group, seed) for group in (*groups, ALL)}
    rows = []
    for name, item in measured.items():
        shared = _index_cells(item, measured, base_values, design, seed)
        for group, cells in of_prompts.items():
            if name in cells:
                place = {"intervention": name} | item["labels"] | {"category": group}
                rows.append(place | cells[name] | shared)
    for metric in METRICS:
        # one test an intervention for an index, although all its rows repeat it
        keys = ["intervention"] if metric in INDEX_METRICS else ["intervention", "category"]
        tests = {tuple(row[key] for key in keys): row[f"{metric}_p"] for row in rows}
        q = dict(zip(tests, q_values(list(tests.values())), strict=True))
        for row in rows:
            row[f"{metric}_q"] = float(q[tuple(row[key] for key in keys)])
    return rows


def row_columns(labels):
    """Columns of effects.csv in order."""
    numbers = [metric + part for metric in METRICS for part in PARTS]
    return ["intervention", *labels, "category", "n", *numbers]


def _prompt_cells(measured, labels, group, seed):
    """{intervention: n and cells of PROMPT_METRICS} over the prompts of a category, or of ALL."""
    chosen = np.ones(len(labels[0]), bool) if group == ALL else labels[0] == group
    if not chosen.any():
        return {}
    labels = [label[chosen] for label in labels]
    effects = {
        name: np.stack([item["effects"][metric][chosen] for metric in PROMPT_METRICS], axis=-1)
        for name, item in measured.items()
    }
    edited = np.stack(list(effects.values()), axis=1)  # [prompt, intervention, metric]
    controls = np.full(edited.shape, np.nan)
    for i, item in enumerate(measured.values()):
        if item["controls"]:
            controls[:, i] = np.mean([effects[name] for name in item["controls"]], axis=0)
    controls[np.isnan(edited)] = np.nan
    shape = edited.shape[1:]
    flat, difference = edited.reshape(len(edited), -1), (edited - controls).reshape(len(edited), -1)
    low, high = infer_mean(flat, *labels, seed=seed)[1:3]
    p = infer_mean(difference, *labels, seed=seed).p
    numbers = [defined_mean(edited, axis=0), low, high, defined_mean(controls, axis=0), p]
    numbers = np.stack([np.reshape(x, shape) for x in numbers], axis=-1).tolist()
    n = (~np.isnan(edited[..., 0])).sum(axis=0).tolist()
    return {
        name: {"n": n[i]} | _cells(PROMPT_METRICS, numbers[i])
        for i, name in enumerate(measured)
        if n[i]
    }


def _index_cells(item, measured, base_values, design, seed):
    later = slice(item["layer"] + 1, None)
    base, edited = base_values[:, later], item["values"][:, later]
    changes = infer_index_changes(base, edited, design, seed)
    numbers = [[*changes[metric][:3], np.nan, np.nan] for metric in INDEX_METRICS]
    if item["controls"]:
        others = np.mean([measured[name]["values"][:, later] for name in item["controls"]], axis=0)
        of_controls = infer_index_changes(base, others, design, seed)
        beyond_controls = infer_index_changes(others, edited, design, seed)
        for row, metric in zip(numbers, INDEX_METRICS, strict=True):
            row[3:] = of_controls[metric].estimate, beyond_controls[metric].p
    return _cells(INDEX_METRICS, numbers)


def _cells(metrics, numbers):
    """Value, interval, mean of the controls and p of each metric, as cells of a row."""
    return {
        metric + part: float(number)
        for metric, row in zip(metrics, numbers, strict=True)
        for part, number in zip(PARTS[:-1], row, strict=True)
    }


def tabulate_effects(measured, base_values, arrays, notes, seed):
    """(rows of effects.csv, notes with what has no interval or no effect).

    arrays  of the unedited run
    """
    design = design_of(arrays)
    notes, reason = list(notes), untestable_reason(*labels_of(design))
    if reason:
        notes.append(f"no intervals: {reason}")
    rows = effect_rows(measured, base_values, design, seed)
    for name, item in measured.items():
        largest = np.nanmax(item["effects"]["logit_change"])
        if largest < NO_EFFECT:
            unmoved = f"the largest change of a logit is {largest:.2g}"
            notes.append(f"{name}: no measurable effect, {unmoved}")
    return rows, notes
