"""What an edit did: formulas for the effect of an intervention on the next token and on later attention. No torch.

    KL(l)          = sum_v p(v) ln(p(v) / q(v))     p: next-token distribution of the unedited model, q: of the edited one
    top-1 change   = 1 if argmax p != argmax q
    surprisal      = ln p(a) - ln q(a)              a: the unedited model's greedy answer token; > 0: a became less likely
    RFC, RSI       edited - unedited, normalised, mean over the layers after the edited one

All at the final token, in nats. The entropy of an ablated head is no effect: it is what was edited, so only later layers
count; an edit of the last layer has none, and its RFC and RSI changes are undefined (NaN).

Intervals are 95 % bootstrap intervals over prompts. "Differs from controls" is a paired sign-flip test over prompts: the
candidate's value minus the mean of the same edit on random other heads of the same layer. q-values are Benjamini-Hochberg.
"""

import numpy as np

from rolecircuits.inputs.categories import CATEGORIES
from rolecircuits.stats.contrasts import q_values
from rolecircuits.stats.indices import INDICES, indices_of_means
from rolecircuits.stats.moments import category_mean, later_mean, mean_draws
from rolecircuits.stats.resampling import percentile_interval, resampled_indices

PROMPT_METRICS = ("kl", "top1_change", "surprisal_change")
INDEX_METRICS = ("rfc_change", "rsi_change")
METRICS = PROMPT_METRICS + INDEX_METRICS
N_FLIPS = 10_000
MIN_FLIPPED = 2
NO_EFFECT = 1e-4
ALL = "all"


def log_probabilities(logits):
    """ln softmax over the last axis, float64: [..., vocabulary]."""
    logits = np.asarray(logits, dtype=np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def kl_divergence(base_logits, edited_logits):
    """KL(base || edited) in nats: two [vocabulary] -> float >= 0.

    With d the change of the logits and c = sum p d, KL = ln sum p exp(d - c). The textbook sum of p (ln p - ln q)
    cancels; this form keeps its relative precision for the smallest effects and is exactly 0 where no logit changes.
    """
    p, change = (
        np.exp(log_probabilities(base_logits)),
        np.asarray(edited_logits, np.float64) - base_logits,
    )
    return kl_of_change(p, change)[0]


def kl_of_change(p, change):
    """(KL, c) from the base probabilities p and the change of the logits, both [vocabulary]."""
    mean = float(
        np.einsum("v,v->", p, change)
    )  # einsum, not @: waking BLAS threads costs more than one row does
    return max(float(np.log1p(np.einsum("v,v->", p, np.expm1(change - mean)))), 0.0), mean


class BaseDistribution:
    """The unedited next-token distributions, kept so that many edits are compared with them: logits [prompt, vocabulary]."""

    def __init__(self, logits):
        self.logits = np.asarray(logits, dtype=np.float32)
        self.answer = np.argmax(self.logits, axis=-1)  # [prompt] greedy token
        self.p = np.exp(log_probabilities(self.logits))  # [prompt, vocabulary] float64

    def effects(self, edited_logits, prompts=None):
        """Effects of one edit on these prompts (all if None), in the order of edited_logits [row, vocabulary].

        returns  {metric of PROMPT_METRICS: [row] float64, "logit_change": [row] the largest |change|}
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


def index_change(base, edited, category):
    """Change of the mean RFC and RSI of later layers: {"rfc_change": float, "rsi_change": float}.

    base, edited  [prompt, layer] normalised values of the layers after the edited one
    """
    sides = [
        indices_of_means(lambda name, side=side: category_mean(side, category, name))
        for side in (base, edited)
    ]
    return {
        f"{name}_change": float(later_mean(sides[1][name]) - later_mean(sides[0][name]))
        for name in INDICES
    }


def index_change_draws(base, edited, category, counts):
    """The same in every resample: {"rfc_change": [resample], ...}; both sides share the resamples."""
    sides = [resampled_indices(side, category, counts) for side in (base, edited)]
    return {
        f"{name}_change": later_mean(sides[1][name]) - later_mean(sides[0][name])
        for name in INDICES
    }


def random_signs(n_prompts, seed=0, n_flips=N_FLIPS):
    """Signs of the sign-flip test: [flip, prompt] of -1 and 1."""
    return np.random.default_rng(seed).integers(0, 2, (n_flips, n_prompts)) * 2.0 - 1.0


def sign_flip_p(difference, signs):
    """Two-sided p of mean(difference) = 0 if the sign of every prompt's difference is arbitrary; NaN below two prompts.

    difference  [prompt] candidate - mean of its controls; NaN is left out    signs  [flip, prompt]
    """
    defined = ~np.isnan(difference)
    if defined.sum() < MIN_FLIPPED:
        return np.nan
    return _share_beyond(signs[:, defined] @ difference[defined], difference[defined].sum())


def _share_beyond(null, observed):
    """(1 + how many of the null are as far from 0 as observed) / (1 + size), ties within rounding counted."""
    slack = 1e-12 * max(1e-300, abs(observed))
    return float((1 + (np.abs(null) >= abs(observed) - slack).sum()) / (1 + len(null)))


def index_flip_p(candidate, control, category, signs):
    """The sign-flip test of RFC and RSI: {"rfc_change": p, "rsi_change": p}.

    candidate, control  [prompt, layer] values of later layers; a flip swaps the two sides of a prompt
    """
    middle, half = (candidate + control) / 2, (candidate - control) / 2
    observed = index_change(control, candidate, category)

    def draws(direction):
        def means(name):
            chosen = np.asarray(category) == name
            if not chosen.any():
                return np.full((len(signs), candidate.shape[1]), np.nan)
            part, move = middle[chosen], half[chosen]
            weight = direction * signs[:, chosen]
            defined = ~np.isnan(part)
            total = np.where(defined, part, 0.0).sum(axis=0) + weight @ np.where(defined, move, 0.0)
            return total / np.maximum(defined.sum(axis=0), 1)

        return indices_of_means(means)

    up, down = draws(1.0), draws(-1.0)
    out = {}
    for name in INDICES:
        value = observed[f"{name}_change"]
        null = later_mean(up[name]) - later_mean(down[name])
        out[f"{name}_change"] = np.nan if np.isnan(value) else _share_beyond(null, value)
    return out


def effect_rows(measured, base_values, category, counts, signs):
    """One row an intervention and category: value, interval, mean of the controls, p and q of every metric.

    measured     {name: {"effects": {metric: [prompt]}, "values": [prompt, layer], "layer": l, "controls": [names],
                 "labels": {column: text}}}; prompts that an edit does not touch are NaN in its effects
    base_values  [prompt, layer] normalised values of the unedited run    category  [prompt]
    counts       bootstrap_counts, or None to leave intervals out         signs  random_signs
    """
    rows = []
    for name, item in measured.items():
        shared = _index_cells(item, measured, base_values, np.asarray(category), counts, signs)
        for group in (*CATEGORIES, ALL):
            chosen = np.asarray(category) == group if group != ALL else np.ones(len(category), bool)
            n = int((chosen & ~np.isnan(item["effects"]["kl"])).sum())
            if n:
                cells = {"intervention": name} | item["labels"] | {"category": group, "n": n}
                rows.append(cells | _prompt_cells(item, measured, chosen, counts, signs) | shared)
    for metric in METRICS:
        first = {}  # an index is one test an intervention, although its rows repeat it
        for row in rows:
            key = (
                row["intervention"]
                if metric in INDEX_METRICS
                else (row["intervention"], row["category"])
            )
            first.setdefault(key, row[f"{metric}_p"])
        q = dict(zip(first, q_values(list(first.values())), strict=True))
        for row in rows:
            key = (
                row["intervention"]
                if metric in INDEX_METRICS
                else (row["intervention"], row["category"])
            )
            row[f"{metric}_q"] = float(q[key])
    return rows


def row_columns(labels):
    """Columns of effects.csv in order."""
    parts = ("", "_low", "_high", "_control", "_p", "_q")
    return [
        "intervention",
        *labels,
        "category",
        "n",
        *(metric + part for metric in METRICS for part in parts),
    ]


def _prompt_cells(item, measured, chosen, counts, signs):
    cells = {}
    for metric in PROMPT_METRICS:
        values = np.where(chosen, item["effects"][metric], np.nan)
        draws = (
            None
            if counts is None or np.sum(~np.isnan(values)) < MIN_FLIPPED
            else mean_draws(values, counts)
        )
        control, p = np.nan, np.nan
        if item["controls"]:
            others = np.mean([measured[c]["effects"][metric] for c in item["controls"]], axis=0)
            control = float(np.nanmean(np.where(~np.isnan(values), others, np.nan)))
            p = sign_flip_p(values - others, signs)
        cells |= _cells(metric, float(np.nanmean(values)), draws, control, p)
    return cells


def _index_cells(item, measured, base_values, category, counts, signs):
    later = slice(item["layer"] + 1, None)
    base, edited = base_values[:, later], item["values"][:, later]
    value = index_change(base, edited, category)
    draws = None if counts is None else index_change_draws(base, edited, category, counts)
    control, p = dict.fromkeys(INDEX_METRICS, np.nan), dict.fromkeys(INDEX_METRICS, np.nan)
    if item["controls"]:
        others = np.mean([measured[c]["values"][:, later] for c in item["controls"]], axis=0)
        control, p = (
            index_change(base, others, category),
            index_flip_p(edited, others, category, signs),
        )
    cells = {}
    for metric in INDEX_METRICS:
        drawn = None if draws is None else draws[metric]
        cells |= _cells(metric, value[metric], drawn, control[metric], p[metric])
    return cells


def _cells(metric, value, draws, control, p):
    low, high = (
        (np.nan, np.nan) if draws is None or np.isnan(draws).any() else percentile_interval(draws)
    )
    parts = {"": value, "_low": low, "_high": high, "_control": control, "_p": p}
    return {metric + part: float(number) for part, number in parts.items()}


def tabulate_effects(measured, base_values, prompts, notes, seed):
    """(rows of effects.csv, notes with what has no interval or no effect)."""
    import numpy as np

    from rolecircuits.stats.resampling import bootstrap_counts, has_enough_prompts

    category = np.array([p["category"] for p in prompts])
    enough = has_enough_prompts(category)
    counts = (
        bootstrap_counts(category, np.array([p["pair_id"] for p in prompts]), seed=seed)
        if enough
        else None
    )
    notes = list(notes)
    if not enough:
        notes.append("a category has one prompt: no intervals")
    rows = effect_rows(measured, base_values, category, counts, random_signs(len(category), seed))
    for name, item in measured.items():
        largest = np.nanmax(item["effects"]["logit_change"])
        if largest < NO_EFFECT:
            notes.append(
                f"{name}: no measurable effect, the largest change of a logit is {largest:.2g}"
            )
    return rows, notes
