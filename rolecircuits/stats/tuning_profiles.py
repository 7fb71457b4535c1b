"""Profiles over layers of a tuning study: which of them tell one recipe from another.

    projection  how a run's profile of changes correlates with the mean one of the role runs at the
                last dose, that run left out; 0 at step 0. It is made from the labels role and not
                role, so that it is made anew for every split of its permutation test
    classified  the arm whose mean profile, the run left out, is the nearest to a run's own
    counted     layers that "differ" between two runs. Two seeds of one arm differ in layers, too:
                a count is read beside theirs only

Layers are no samples: the run is the unit here, as in tuning_tests.py.
"""

from itertools import combinations
from math import factorial, prod

import numpy as np

from rolecircuits.inputs.arguments import ALPHA, DEFAULT_SEED
from rolecircuits.stats.contrasts import q_values
from rolecircuits.stats.index_inference import infer_indices
from rolecircuits.stats.indices import layer_values
from rolecircuits.stats.moments import divide
from rolecircuits.stats.profile_tests import correlate_rows
from rolecircuits.stats.run_pairs import SIDES, match_runs
from rolecircuits.stats.tuning_tests import (
    ARMS,
    CONTRASTS,
    Permutation,
    exact_p,
    list_splits,
    split_correlations,
    within_squares,
)
from rolecircuits.stats.units import frame_values, labels_of

MOST_LABELLINGS = 5000
METRICS = ("correlation", "euclidean")
PROJECTION = "projection_"


def project_runs(study):
    """{projection_<profile>: [run, slot]}, agreement with the other role runs at the last dose."""
    role = study.arm == "role"
    out = {}
    for at, name in enumerate(study.profile):
        profiles = centre(study.profile_change[:, :, at])
        values = [
            agree_with(profiles[:, slot], profiles[:, study.last], role[None])[0]
            for slot in range(len(study.dose))
        ]
        out[PROJECTION + name] = np.stack(values, axis=1)
    return out


def agree_with(profiles, templates, chosen):
    """Correlation of every run's profile with the mean template of the chosen other runs.

    profiles, templates  [run, layer], means over layers removed    chosen  [split, run] bool
    returns              [split, run]; NaN where no other run is chosen
    """
    chosen = chosen.astype(float)
    cross, own = profiles @ templates.T, templates @ templates.T
    product = chosen @ cross.T - chosen * np.diag(cross)
    inside = chosen @ own  # [split, run]: product of each template with the sum of the chosen ones
    length = (inside * chosen).sum(axis=1, keepdims=True)
    length = length - chosen * (2 * inside - np.diag(own))
    return divide(product, np.sqrt(np.maximum(length, 0) * (profiles**2).sum(axis=1)))


def centre(profiles):
    """Profiles less their means over layers."""
    return profiles - profiles.mean(axis=-1, keepdims=True)


def contrast_projections(study, contrast, profiles):
    """Permutation of the projections of one contrast, [profile]; intervals are not defined.

    profiles  [run, profile, layer]: where the contrast is taken
    """
    first, second = (study.runs_of(arm) for arm in contrast)
    runs = np.concatenate([first, second])
    splits = list_splits(len(first), len(second))
    chosen = np.tile(study.arm == "role", (len(splits), 1))
    if contrast[0] == "role":
        chosen[:, runs] = splits
    rest = np.setdiff1d(np.arange(len(study.arm)), runs)
    weights = np.where(splits, 1 / len(first), -1 / len(second))
    r, estimate = [], []
    for at in range(len(study.profile)):
        templates = centre(study.profile_change[:, study.last, at])
        values = agree_with(centre(profiles[:, at]), templates, chosen)
        elsewhere = within_squares(values[:, rest].T, study.arm[rest])[0]
        difference = (values[:, runs] * weights).sum(axis=1)
        found = values[:, runs, None], splits, difference[:, None], elsewhere[:, None]
        r.append(split_correlations(*found)[:, 0])
        estimate.append(difference[0])
    none, r = np.full(len(estimate), np.nan), np.array(r).reshape(-1, len(splits)).T
    return Permutation(np.array(estimate), none, none, exact_p(r), r)


def profile_agreement(study, slot=None):
    """Rows, one a profile: how runs of one arm agree and runs of two, and how well arms are told.

    within, <first>_<second>   mean correlation over layers of the changes of two runs: of one arm,
                               of these two arms
    accuracy_*, p_*            as `classify_runs` by correlation and by Euclidean distance
    chance                     the share that guessing the largest arm would hit
    slot  which checkpoint; None: the last dose
    """
    slot = study.last if slot is None else slot
    rows = []
    for at, name in enumerate(study.profile):
        profiles = study.profile_change[:, slot, at]
        centred = centre(profiles)
        r = correlate_rows(centred[:, None], centred[None])
        row = {"profile": name, "within": _mean_pairs(r, study.arm, ARMS)}
        for contrast in CONTRASTS:
            first, second = (study.runs_of(arm) for arm in contrast)
            key = "_".join(contrast)
            both = r[np.ix_(first, second)]
            row[key] = float(both.mean()) if both.size else np.nan
        row["chance"] = float(np.unique(study.arm, return_counts=True)[1].max() / len(study.arm))
        for metric in METRICS:
            accuracy, p = classify_runs(profiles, study.arm, metric)
            row |= {f"accuracy_{metric}": accuracy, f"p_{metric}": p}
        rows.append(row)
    return rows


def _mean_pairs(r, arm, names):
    """Mean of r over the pairs of runs that share an arm; NaN without any."""
    pairs = [r[i, j] for i, j in combinations(range(len(arm)), 2) if arm[i] == arm[j] in names]
    return float(np.mean(pairs)) if pairs else np.nan


def classify_runs(profiles, arm, metric, seed=DEFAULT_SEED):
    """(share of runs whose arm's mean profile, the run left out, is the nearest, p).

    profiles  [run, layer]    metric  of METRICS
    p is the share of labellings of the same runs with the same sizes, the observed one among them,
    that do as well: all of them up to MOST_LABELLINGS, else as many drawn ones. NaN with an arm of
    one run or a value that is undefined.
    """
    names, label = np.unique(arm, return_inverse=True)
    sizes = np.bincount(label)
    if len(names) < 2 or sizes.min() < 2 or np.isnan(profiles).any():
        return np.nan, np.nan
    labels = labellings(label, seed)
    member = labels[:, None] == np.arange(len(names))[:, None]  # [labelling, arm, run]
    if metric == "correlation":
        profiles = centre(profiles)
    gram = profiles @ profiles.T
    own = np.diag(gram)
    member = member.astype(float)
    product = member @ gram  # [labelling, arm, run]: sum of the arm's profiles, times the run
    length = (product * member).sum(axis=2, keepdims=True)
    n = sizes[:, None] - member
    inner = (product - member * own) / n
    length = (length - member * (2 * product - own)) / n**2
    near = divide(inner, np.sqrt(length)) if metric == "correlation" else 2 * inner - length
    hit = (near.argmax(axis=1) == labels).mean(axis=1)
    return float(hit[0]), float((hit >= hit[0] - 1e-9).mean())


def labellings(label, seed=DEFAULT_SEED):
    """[labelling, run]: label itself, then every other order of its entries, or drawn ones."""
    sizes = np.bincount(label)
    if factorial(len(label)) // prod(map(factorial, sizes.tolist())) > MOST_LABELLINGS:
        rng = np.random.default_rng(seed)
        drawn = rng.permuted(np.tile(label, (MOST_LABELLINGS, 1)), axis=1)
        return np.concatenate([label[None], drawn[1:]])
    found = _orders(len(label), tuple(sizes.tolist()))
    return np.array([label.tolist(), *(one for one in found if one != label.tolist())])


def _orders(n, sizes):
    """Every sequence of n labels with these counts, as lists."""
    if not n:
        return [[]]
    found = []
    for label, count in enumerate(sizes):
        if count:
            left = tuple(k - (at == label) for at, k in enumerate(sizes))
            found += [[label, *rest] for rest in _orders(n - 1, left)]
    return found


def choose_pairs(study):
    """Pairs of runs whose layers are counted: [((arm, seed), (arm, seed))], same arms first.

    In every arm each seed goes with the next, in a circle, and so do the seeds of two arms: five
    pairs each for five seeds. Runs of a pair never share a seed, which would make runs of two arms
    alike by the first weights of their adapters.
    """
    places = {arm: study.runs_of(arm) for arm in ARMS}
    pairs = []
    for first, second in [(arm, arm) for arm in ARMS] + list(CONTRASTS):
        a, b = places[first], np.roll(places[second], -1)
        found = [(i, j) for i, j in zip(a, b, strict=False) if study.seed[i] != study.seed[j]]
        if first == second:
            found = list({frozenset(pair): pair for pair in found}.values())
        pairs += found
    return [tuple((str(study.arm[i]), int(study.seed[i])) for i in pair) for pair in pairs]


def layer_counts(pairs, load, index="rfc", kind="normalised"):
    """Rows of layer_counts.csv: in how many layers two runs differ, q < ALPHA over the layers.

    pairs    as `choose_pairs`
    load     function (arm, seed) -> the Run of the last dose, of one prompt set
    The difference is second - first. Its test is over the units of the prompt set (run_pairs): it
    says whether two checkpoints differ, not whether two recipes do. NaN: the set has too few units.
    """
    rows = []
    for pair in pairs:
        runs = dict(zip(SIDES, (load(*one) for one in pair), strict=True))
        runs, _ = match_runs(runs["base"], runs["instruct"])
        values = [frame_values(run, layer_values(run, kind)) for run in runs.values()]
        found = infer_indices(values[1], *labels_of(runs["base"]), values[0])[index]
        passed = (q_values(found.p) < ALPHA).sum() if np.isfinite(found.p).any() else np.nan
        (first, one), (second, other) = pair
        rows.append(
            {"arm_first": first, "seed_first": one, "arm_second": second, "seed_second": other}
            | {"same_arm": first == second, "index": index, "kind": kind}
            | {"layers": len(found.p), "mean_difference": float(np.nanmean(found.estimate))}
            | {"layers_q_below_alpha": float(passed)}
        )
    return rows


def summarise_counts(rows):
    """Rows (pair of arms, number of pairs, mean, fewest and most layers), same arms first."""
    found = {}
    for row in sorted(rows, key=lambda row: not row["same_arm"]):
        name = f"{row['arm_first']}-{row['arm_second']}"
        found.setdefault(name, []).append(row["layers_q_below_alpha"])
    return [
        {"pair": name, "same_arm": name.split("-")[0] == name.split("-")[1], "pairs": len(n)}
        | {"mean_layers": float(np.mean(n)), "fewest": min(n), "most": max(n)}
        for name, n in found.items()
    ]
