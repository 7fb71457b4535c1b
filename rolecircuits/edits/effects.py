"""What an edit did to the next token and to later attention.

    KL(l)          = sum_v p(v) ln(p(v) / q(v))   p: next token, unedited; q: edited
    top-1 change   = 1 if argmax p != argmax q
    surprisal      = ln p(a) - ln q(a)            a: the unedited model's greedy answer token;
                                                  > 0: a became less likely
    RFC, RSI       edited - unedited, normalised, mean over the layers after the edited one

All at the final token, in nats. The entropy of an ablated head is no effect: it is what was edited,
so only later layers count; an edit of the last layer has none, and its RFC and RSI changes are
undefined (NaN).

A candidate is compared with its controls, the same edit on the other heads of its layer:

    rank   of its |mean effect| among these and itself, 1 the largest (ranks.py); the ranks of all
           candidates of one edit are tested together: are they a random choice of heads?
    p, q   does the candidate differ from the mean of these controls, on the same prompts? That
           asks about prompts, not heads: nearly every head differs from the mean of the others

Intervals and p are bootstrap-t over the units of the set: frames, clusters of prompts that begin
alike, or prompts; q is Benjamini-Hochberg.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rolecircuits.edits.ranks import merge_pools, rank_sizes, rank_test
from rolecircuits.inputs.categories import order_categories
from rolecircuits.stats.contrasts import q_values
from rolecircuits.stats.index_inference import infer_mean_indices
from rolecircuits.stats.indices import INDICES, index_values, layer_values
from rolecircuits.stats.moments import defined_mean
from rolecircuits.stats.next_token import kl_of_change, log_probabilities
from rolecircuits.stats.resampling import infer_mean, untestable_reason
from rolecircuits.stats.units import design_of, frame_values, labels_of, units_of

# metrics of a prompt, and what their means cannot leave
BOUNDS = {"kl": (0.0, np.inf), "top1_change": (0.0, 1.0), "surprisal_change": (-np.inf, np.inf)}
PROMPT_METRICS = tuple(BOUNDS)
INDEX_METRICS = tuple(f"{index}_change" for index in INDICES)
METRICS = PROMPT_METRICS + INDEX_METRICS
INFERRED = ("", "_low", "_high", "_control", "_p")
NO_EFFECT = 1e-4
ALL = "all"


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
        if len(edited_logits) != len(prompts):
            raise ValueError(f"{len(edited_logits)} rows of logits for {len(prompts)} prompts")
        with ThreadPoolExecutor() as threads:  # numpy lets go of Python while it computes
            rows = list(threads.map(self._row, edited_logits, prompts))
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


@dataclass
class MeasuredRows:
    """What the normalised value of a prompt needs of a run; see stats.indices.prompt_values."""

    entropy: np.ndarray
    visible_keys: np.ndarray
    n_tokens: np.ndarray
    span: np.ndarray
    prompt_format: ClassVar[str] = "raw"  # of no account: normalised values take no other rows


def normalised_values(arrays):
    """Normalised entropy of every prompt and layer, mean over heads: [prompt, layer].

    arrays  entropy, visible_keys, n_tokens and span, as in attention.npz
    """
    names = ("entropy", "visible_keys", "n_tokens", "span")
    return layer_values(MeasuredRows(*(arrays[name] for name in names)), "normalised")


def infer_index_changes(base, edited, design, seed, **draws):
    """Change of the mean RFC and RSI of later layers: {"rfc_change": Inference, "rsi_change": ...}.

    base, edited  [prompt, layer] normalised values of the layers after the edited one
    design        the stats.units.Design of the prompts
    """
    base, edited = (frame_values(design, values) for values in (base, edited))
    changes = infer_mean_indices(edited, *labels_of(design), base, seed=seed, **draws)
    return {f"{index}_change": changes[index] for index in INDICES}


def index_changes(base, edited, design):
    """The same changes without their inference: {"rfc_change": number, "rsi_change": ...}."""
    category = labels_of(design)[0]
    base, edited = (
        index_values(frame_values(design, values), category) for values in (base, edited)
    )
    return {
        f"{index}_change": float(defined_mean(edited[index] - base[index])) for index in INDICES
    }


def effect_rows(measured, base_values, design, seed):
    """One row an intervention and category: value of every metric, and of a candidate its interval,
    mean of the controls, p, q and rank.

    measured     {name: {"effects": {metric: [prompt]}, "values": [prompt, layer], "layer": l,
                 "change": text, "controls": [names], "labels": {column: text}}}; NaN in the effects
                 of prompts that an edit does not touch
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
                rows.append(place | {"pool": np.nan} | cells[name] | shared)
    for metric in METRICS:
        # one test an intervention for an index, although all its rows repeat it
        keys = ["intervention"] if metric in INDEX_METRICS else ["intervention", "category"]
        tests = {tuple(row[key] for key in keys): row[f"{metric}_p"] for row in rows}
        q = dict(zip(tests, q_values(list(tests.values())), strict=True))
        for row in rows:
            row[f"{metric}_q"] = float(q[tuple(row[key] for key in keys)])
    _rank_rows(rows, measured)
    return rows


def candidate_sets(measured):
    """{(type, change): [(candidates, their pool), ...]}, as `ranks.merge_pools` gives them."""
    sets = {}
    for name, item in measured.items():
        if item["labels"]["role"] == "candidate":
            kind = (item["labels"]["type"], item["change"])
            sets.setdefault(kind, {})[name] = item["controls"]
    return {kind: pools for kind, of in sets.items() if (pools := merge_pools(of))}


def _rank_rows(rows, measured):
    """Put "pool" and the ranks of the candidates into the rows, NaN elsewhere."""
    places = {(row["intervention"], row["category"]): row for row in rows}
    for row in rows:
        row |= dict.fromkeys((f"{metric}_rank" for metric in METRICS), np.nan)
    for pools in candidate_sets(measured).values():
        for candidates, pool in pools:
            for group in dict.fromkeys(row["category"] for row in rows):
                heads = [name for name in pool if (name, group) in places]
                for metric in METRICS:
                    ranks = rank_sizes([places[name, group][metric] for name in heads])
                    for name, rank in zip(heads, ranks.tolist(), strict=True):
                        if name in candidates:
                            places[name, group] |= {f"{metric}_rank": rank, "pool": len(heads)}


def set_tests(rows, measured):
    """Are the candidates of one edit a random choice of their layers' heads? One dict a metric.

    rows  what `effect_rows` gives; q is Benjamini-Hochberg over all dicts
    """
    values, tests = {row["intervention"]: row for row in rows if row["category"] == ALL}, []
    for (kind, change), pools in candidate_sets(measured).items():
        for metric in METRICS:
            ranked, layers = [], set()
            for candidates, pool in pools:
                heads = [n for n in pool if n in values and not np.isnan(values[n][metric])]
                chosen = np.array([name in candidates for name in heads], dtype=bool)
                if chosen.any():
                    ranked.append((rank_sizes([values[n][metric] for n in heads]), chosen))
                    layers |= {measured[name]["layer"] for name in candidates}
            if ranked:
                of = {"type": kind, "change": change, "metric": metric}
                of |= rank_test(ranked)._asdict()
                tests.append(of | {"n_layers": len(layers)})
    q = q_values([test["p"] for test in tests])
    return [test | {"q": float(own)} for test, own in zip(tests, q, strict=True)]


def _prompt_cells(measured, labels, group, seed):
    """{intervention: n and cells of PROMPT_METRICS} over the prompts of a category, or of ALL."""
    chosen = np.ones(len(labels[0]), bool) if group == ALL else labels[0] == group
    if not chosen.any():
        return {}
    labels, names = [label[chosen] for label in labels], list(measured)
    effects = {
        name: np.stack([item["effects"][metric][chosen] for metric in PROMPT_METRICS], axis=-1)
        for name, item in measured.items()
    }
    edited = np.stack(list(effects.values()), axis=1)  # [prompt, intervention, metric]
    numbers = np.full((*edited.shape[1:], len(INFERRED)), np.nan)
    numbers[..., 0] = defined_mean(edited, axis=0)
    inferred = [i for i, name in enumerate(names) if is_candidate(measured[name])]
    if inferred:
        own = edited[:, inferred]
        controls = np.full(own.shape, np.nan)
        for i, at in enumerate(inferred):
            if others := measured[names[at]]["controls"]:
                controls[:, i] = np.mean([effects[other] for other in others], axis=0)
        controls[np.isnan(own)] = np.nan
        flat, beyond = own.reshape(len(own), -1), (own - controls).reshape(len(own), -1)
        ends = np.tile(list(BOUNDS.values()), (own.shape[1], 1)).T
        low, high = infer_mean(flat, *labels, ends, seed=seed)[1:3]
        p = infer_mean(beyond, *labels, seed=seed).p
        tests = low, high, defined_mean(controls, axis=0), p
        numbers[inferred, :, 1:] = np.stack([np.reshape(x, own.shape[1:]) for x in tests], axis=-1)
    n = (~np.isnan(edited[..., 0])).sum(axis=0).tolist()
    return {
        name: {"n": n[i]} | _cells(PROMPT_METRICS, numbers[i].tolist())
        for i, name in enumerate(names)
        if n[i]
    }


def is_candidate(item):
    """True for what a plan asks about; of controls only values are given."""
    return item["labels"]["role"] == "candidate"


def _index_cells(item, measured, base_values, design, seed):
    later = slice(item["layer"] + 1, None)
    base, edited = base_values[:, later], item["values"][:, later]
    changes = index_changes(base, edited, design)
    numbers = [[changes[metric]] + [np.nan] * 4 for metric in INDEX_METRICS]
    if is_candidate(item):
        inferred = infer_index_changes(base, edited, design, seed)
        for row, metric in zip(numbers, INDEX_METRICS, strict=True):
            row[1:3] = inferred[metric][1:3]
    if item["controls"]:
        others = np.mean([measured[name]["values"][:, later] for name in item["controls"]], axis=0)
        of_controls = index_changes(base, others, design)
        beyond_controls = infer_index_changes(others, edited, design, seed)
        for row, metric in zip(numbers, INDEX_METRICS, strict=True):
            row[3:] = of_controls[metric], beyond_controls[metric].p
    return _cells(INDEX_METRICS, numbers)


def _cells(metrics, numbers):
    """Value, interval, mean of the controls and p of each metric, as cells of a row."""
    return {
        metric + part: float(number)
        for metric, row in zip(metrics, numbers, strict=True)
        for part, number in zip(INFERRED, row, strict=True)
    }


def list_untested(rows, design):
    """Why some rows of candidates have no interval: one sentence, or none."""
    bare = [
        row["category"]
        for row in rows
        if row["role"] == "candidate" and np.isnan(row["kl_low"]) and row["kl"] > 0
    ]
    reason = untestable_reason(*labels_of(design))
    if not bare or reason is None:
        return []
    return [f"{reason} (effects without interval: {', '.join(dict.fromkeys(bare))})"]


def tabulate_effects(measured, base_values, arrays, notes, seed):
    """(rows of effects.csv, tests of the sets, notes with what has no interval or no effect).

    arrays  of the unedited run
    """
    design = design_of(arrays)
    rows, notes = effect_rows(measured, base_values, design, seed), list(notes)
    notes += list_untested(rows, design)
    for name, item in measured.items():
        largest = np.nanmax(item["effects"]["logit_change"])
        if largest < NO_EFFECT and is_candidate(item):
            unmoved = f"the largest change of a logit is {largest:.2g}"
            notes.append(f"{name}: no measurable effect, {unmoved}")
    return rows, set_tests(rows, measured), notes
