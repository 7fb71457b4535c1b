"""RFC and RSI of a run under every choice that an analyst could have made, layer by layer.

    kind      raw (less its length null), normalised, sink-free
    matching  none; rows of equal position; prompts of equal first word (an estimate alone where the
              set is not crossed)
    interval  by unit (frames, clusters; as everywhere else here), or prompts as if independent

A result that holds in one cell and not in its neighbours is a choice, not a finding (Steegen et al.
2016). p_all is max-T over all kinds, matchings, layers and both indices of one interval together.
"""

import numpy as np

from rolecircuits.inputs.arguments import ALPHA, DEFAULT_SEED
from rolecircuits.stats import indices
from rolecircuits.stats.contrasts import q_values
from rolecircuits.stats.index_inference import COMPARED, infer_indices
from rolecircuits.stats.resampling import N_RESAMPLES, is_testable, join_families
from rolecircuits.stats.role_tests import MATCHED

CHOICE_COLUMNS = (
    *("kind", "matching", "interval", "index", "layer"),
    *("distance", "sign", "p", "q", "p_max", "p_all", "significance"),
)
BY_UNIT, AS_INDEPENDENT = "by unit", "prompts as if independent"


def multiverse_rows(run, inferred, seed=DEFAULT_SEED, n_resamples=N_RESAMPLES):
    """Rows of multiverse.csv: one a kind, matching, interval, index and layer.

    inferred  what role_tests.infer_kinds gave
    """
    cells = {(kind, BY_UNIT): of_kind for kind, of_kind in inferred.items()}
    cells |= {
        (kind, AS_INDEPENDENT): _infer_prompts(run, kind, seed, n_resamples)
        for kind in indices.KINDS
    }
    rows = []
    for interval in (BY_UNIT, AS_INDEPENDENT):
        own = {kind: numbers for (kind, how), numbers in cells.items() if how == interval}
        joint = _joint_p(own)
        for kind, of_kind in own.items():
            for index, numbers in of_kind.items():
                if not set(COMPARED[index]) <= set(run.counts):
                    continue
                distance = numbers["estimate"] - numbers["null"]
                columns = {"distance": distance, "sign": np.sign(distance)}
                columns |= {name: numbers[name] for name in ("p", "q", "p_max")}
                columns["p_all"] = joint[kind, index]
                columns["significance"] = grade(numbers["q"], joint[kind, index])
                place = run.facts | {"kind": "normalised" if kind in MATCHED else kind}
                place |= {"matching": kind.removesuffix("_matched") if kind in MATCHED else "none"}
                place |= {"interval": interval, "index": index}
                rows += [
                    place | {"layer": layer} | {name: c[layer] for name, c in columns.items()}
                    for layer in range(run.n_layers)
                ]
    return rows


def grade(q, p_all):
    """ "max-T", "BH", "none" or "" (not tested) of every layer."""
    graded = np.select([p_all < ALPHA, q < ALPHA], ["max-T", "BH"], "none")
    return np.where(np.isnan(q), "", graded)


def _infer_prompts(run, kind, seed, n_resamples):
    """As role_tests.infer_layers, every prompt a unit by itself."""
    values, base = indices.layer_values(run, kind), None
    if kind == "raw":
        base = indices.null_values(run, "raw")
    tests = infer_indices(values, run.category, None, base, n_resamples, seed)
    null = indices.layer_null(run, kind)
    plain = indices.index_values(values, run.category)
    found = {}
    for index, test in tests.items():
        numbers = {"estimate": plain[index], "null": null[index], "p": test.p, "family": test}
        numbers |= {"q": q_values(test.p), "p_max": test.p_max}
        enough = is_testable(run.category, None, COMPARED[index])
        found[index] = numbers | {"reason": None if enough else "too few prompts"}
    return found


def _joint_p(inferred):
    """{(kind, index): max-T p over all of them [layer]}; what has no test is NaN and no member."""
    members = [n for of_kind in inferred.values() for n in of_kind.values() if not n["reason"]]
    joined = iter(join_families([n["family"] for n in members]) if members else [])
    return {
        (kind, index): np.full(len(numbers["p"]), np.nan) if numbers["reason"] else next(joined)
        for kind, of_kind in inferred.items()
        for index, numbers in of_kind.items()
    }
