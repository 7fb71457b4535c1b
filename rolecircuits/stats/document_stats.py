"""RFC and RSI over documents, and how focus changes along a conversation.

    RFC, RSI  as stats.indices defines them, of documents in the place of prompts; as with those,
              the unit is the cluster of documents whose first words are the same
    drift     of one role's turns in one conversation: the mean over its last third of turns
              (at least one) against the mean over its first third

                  entropies   H_first - H_last     > 0: later turns are the more focused
                  sink mass   m_last - m_first     > 0: later turns attend more to the sink

Turns of one role are compared with each other, because speakers differ and take turns. Later turns
see more keys, and the sink's mass falls with them whatever is said: a drift describes, and is no
evidence on what the turns say.

Arrays are those of documents.npz: "whole_*" [document, layer, head], "turn_*" [turn, layer, head],
turn_segment_mass [turn, layer, head, segment], turn_segment_uniform [turn, layer, segment],
turn_document and turn_role [turn], category and frame (the first word) [document].
"""

import numpy as np

from rolecircuits.inputs.arguments import DEFAULT_SEED
from rolecircuits.inputs.categories import REQUIRED
from rolecircuits.stats.contrasts import q_values
from rolecircuits.stats.index_inference import COMPARED, infer_indices, infer_mean_indices
from rolecircuits.stats.indices import word_weights
from rolecircuits.stats.moments import defined_mean
from rolecircuits.stats.resampling import N_RESAMPLES, infer_mean, untestable_reason
from rolecircuits.stats.units import Design, units_of

ENTROPIES = ("normalised", "sinkfree")
VALUES = (*ENTROPIES, "sink_mass")
SHARES = ("system_text", "user_text", "assistant_text")  # segments whose share a turn's table has
MIN_TURNS = 2  # of a role, below which it has no drift


def has_indices(arrays):
    """Whether there are documents of the categories that RFC needs."""
    return all((arrays["category"] == name).any() for name in REQUIRED)


def infer_document_indices(arrays, seed=DEFAULT_SEED, n_resamples=N_RESAMPLES):
    """{(kind, index): {"layers": numbers [layer], "mean": numbers, "reason"}} of RFC and RSI.

    numbers  "estimate", "low", "high", "null" (0: entropies are normalised), "p", and of layers
             "q" and "p_max"    mean  of the index over layers    reason  why there is no test
    """
    category, found, unit = arrays["category"], {}, units_of(design_of_documents(arrays))
    for kind in ENTROPIES:
        values = defined_mean(arrays[f"whole_{kind}"].astype(np.float64))
        layers = infer_indices(values, category, unit, None, n_resamples, seed)
        means = infer_mean_indices(values, category, unit, None, n_resamples, seed)
        for index, own in layers.items():
            reason = _untested_reason(arrays, unit, COMPARED[index])
            numbers, mean = _numbers(own), _numbers(means[index])
            numbers |= {"q": q_values(own.p), "p_max": own.p_max}
            if reason:
                numbers, mean = _without_tests(numbers), _without_tests(mean)
            found[kind, index] = {"layers": numbers, "mean": mean, "reason": reason}
    return found


def design_of_documents(arrays):
    """The stats.units Design of documents: no pairs, no fillers, not crossed."""
    n = len(arrays["category"])
    labels = np.full(n, -1), arrays["frame"], np.full(n, "")
    return Design(arrays["category"], *labels, crossed=False)


def _untested_reason(arrays, unit, names):
    """Why these categories get no interval and no test, or None; the rules of prompts."""
    category = arrays["category"]
    missing = [name for name in names if not (category == name).any()]
    if missing:
        return f"no {missing[0]} documents"
    if not word_weights(category, arrays["frame"], names, 1):
        joined, why = " and ".join(names), "so the design cannot tell who from how"
        return f"not identified: no first word begins documents of {joined}, {why}"
    return untestable_reason(category, unit, names, "documents")


def _numbers(inference):
    numbers = {name: getattr(inference, name) for name in ("estimate", "low", "high")}
    return numbers | {"null": np.zeros(np.shape(inference.estimate)), "p": inference.p}


def _without_tests(numbers):
    kept = ("estimate", "null")
    return {k: v if k in kept else np.full(np.shape(v), np.nan) for k, v in numbers.items()}


def turn_means(arrays, kind):
    """The value of every turn, the mean over layers and heads: [turn]."""
    values = arrays[f"turn_{kind}"].astype(np.float64)
    return defined_mean(values.reshape(len(values), -1))


def segment_share(arrays, name):
    """(attention of every turn's rows on a segment, the same were it uniform), means over layers
    and heads: [turn] each; NaN where it is unknown: of texts, and in runs of before.

    name  of stats.masses.SEGMENTS
    """
    if "turn_segment_mass" not in arrays:
        unknown = np.full(len(arrays["turn_role"]), np.nan)
        return unknown, unknown
    code = arrays["segment"].tolist().index(name)
    mass, uniform = (
        arrays[f"turn_segment_{what}"][..., code].astype(np.float64) for what in ("mass", "uniform")
    )
    return defined_mean(mass.reshape(len(mass), -1)), defined_mean(uniform)


def turn_columns(arrays):
    """{column of turns.csv: [turn]}: what is measured of a turn. A further signal is one more entry
    here, and then in turns.csv, in what a chat says, and in the report's download.
    """
    found = {kind: turn_means(arrays, kind) for kind in VALUES}
    for name in SHARES:
        found[name], found[f"{name}_null"] = segment_share(arrays, name)
    return found


def turn_drifts(arrays):
    """{role: {kind: drift [document]}}; NaN where a document has too few turns of the role."""
    n, drifts = len(arrays["document_id"]), {}
    means = {kind: turn_means(arrays, kind) for kind in VALUES}
    for role in dict.fromkeys(arrays["turn_role"].tolist()):
        drifts[role] = {kind: np.full(n, np.nan) for kind in VALUES}
        for document in range(n):
            own = (arrays["turn_document"] == document) & (arrays["turn_role"] == role)
            turns = np.flatnonzero(own)
            third = max(1, len(turns) // 3)
            if len(turns) < MIN_TURNS:
                continue
            for kind, values in means.items():
                first = defined_mean(values[turns[:third]])
                last = defined_mean(values[turns[-third:]])
                change = last - first if kind == "sink_mass" else first - last
                drifts[role][kind][document] = change
    return {role: by_kind for role, by_kind in drifts.items() if _any_defined(by_kind)}


def _any_defined(by_kind):
    return any(np.isfinite(values).any() for values in by_kind.values())


def infer_drifts(arrays, seed=DEFAULT_SEED, n_resamples=N_RESAMPLES):
    """Mean drifts over conversations, rows: role, kind, n, estimate, low, high, null, p, reason."""
    rows = []
    for role, by_kind in turn_drifts(arrays).items():
        for kind, values in by_kind.items():
            values = values[np.isfinite(values)]
            if not len(values):
                continue
            found = infer_mean(values[:, None], n_resamples=n_resamples, seed=seed)
            names = ("estimate", "low", "high")
            numbers = {name: float(getattr(found, name)[0]) for name in names}
            numbers |= {"null": 0.0, "p": float(found.p[0])}
            reason = untestable_reason(np.full(len(values), role), what="conversations")
            facts = {"role": role, "kind": kind, "n": len(values)}
            rows.append(facts | numbers | {"reason": reason})
    return rows


def index_rows(indices):
    """Rows of indices.csv: RFC and RSI over documents, layer by layer.

    indices  what `infer_document_indices` gives
    """
    rows = []
    for (kind, index), found in indices.items():
        numbers = found["layers"]
        for layer in range(len(numbers["estimate"])):
            values = {name: values[layer] for name, values in numbers.items()}
            rows.append({"layer": layer, "kind": kind, "index": index} | values)
    return rows


def drift_rows(drifts):
    """Rows of drift.csv; drifts: what `infer_drifts` gives."""
    return [{k: v for k, v in row.items() if k != "reason"} for row in drifts]
