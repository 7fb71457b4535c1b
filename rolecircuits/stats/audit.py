"""How a prompt set is built, read from a run: what explains its entropies besides the category.

share   of the variance between prompts (normalised entropy, mean over heads) that lies between
        the groups of a factor: category, first word, token count. By chance alone k groups of n
        prompts take (k - 1) / (n - 1).
beyond  what a factor explains beyond the other one, of category and first word: the difference
        of adjusted R^2 with and without it
ICC     correlation of prompts of one category that share their frame (first word); one-way
        analysis of variance for groups of unequal size (Donner and Koval 1980)
design effect 1 + (m - 1) ICC, m = sum n_i^2 / sum n_i (Kish 1965); effective n = n / it
effective frames  (sum n_i)^2 / sum n_i^2, n_i the prompts of a frame: how many equal ones they are
        worth; a category needs resampling.MIN_EFFECTIVE of them for an interval or a test

python prompts.py --audit results_activation_analysis/latest_run
"""

import numpy as np

from rolecircuits.inputs.categories import PAIRED
from rolecircuits.stats.contrasts import categories_of
from rolecircuits.stats.indices import (
    INDICES,
    first_word_matched_values,
    first_word_weights,
    first_words,
    index_values,
    layer_values,
    word_weights,
)
from rolecircuits.stats.moments import defined_mean, divide
from rolecircuits.stats.resampling import untestable_reason
from rolecircuits.stats.units import effective_number, is_clustered, labels_of

FACTORS = ("category", "first word", "token count")
LEAST = 0.05  # a share beyond the other factor that is worth a warning


def audit_design(run):
    """design.json: the shares, the correlation inside frames, matched beside plain indices, and a
    verdict. Everything by layer is a list over layers.
    """
    values, words = layer_values(run, "normalised"), first_words(run)
    groups = dict(zip(FACTORS, (run.category, words, run.n_tokens), strict=True))
    factors = {name: _describe_factor(values, labels) for name, labels in groups.items()}
    for name, other in (("category", "first word"), ("first word", "category")):
        share = beyond(values, groups[name], groups[other])
        factors[name] |= {"beyond_the_other": share, "median_beyond": _median(share)}
    audit = {
        "schema_version": 1,
        "prompts": len(values),
        "categories": run.counts,
        "crossed": run.crossed,
        "frames": len(set(run.frame.tolist())),
        "frames_left_out": run.config["prompts"].get("frames_left_out") or {},
        "variance": factors,
        "clusters": describe_clusters(values, run.category, run.frame),
        "first_word_matched": compare_matched(run, values),
        "pairs_with_other_first_words": list_odd_pairs(run, words),
    }
    cells = set(zip(run.frame.tolist(), run.filler.tolist(), strict=True))
    audit["same_first_word"] = run.crossed and len(cells) == len(
        set(zip(run.frame.tolist(), run.filler.tolist(), words.tolist(), strict=True))
    )
    flagged, verdict = judge(audit, shared_words(run.category, words))
    return audit | {"flagged": flagged, "verdict": verdict}


def list_odd_pairs(run, words):
    """Ids of the prompts of matched pairs whose two texts begin differently; they differ in more
    than the person.
    """
    first, second = PAIRED
    ids, odd = run.prompt_id.tolist(), []
    if run.crossed:
        return odd
    for pair in np.unique(run.pair_id[run.pair_id >= 0]):
        rows = [
            np.flatnonzero((run.pair_id == pair) & (run.category == c)) for c in (first, second)
        ]
        if all(len(own) == 1 for own in rows) and words[rows[0][0]] != words[rows[1][0]]:
            odd += [ids[own[0]] for own in rows]
    return odd


def variance_share(values, labels):
    """Sum of squares between groups / total: values [prompt, layer] -> [layer]; NaN if constant."""
    centred = values - values.mean(axis=0)
    between = sum(
        (labels == label).sum() * centred[labels == label].mean(axis=0) ** 2
        for label in np.unique(labels)
    )
    return divide(between, (centred**2).sum(axis=0))


def beyond(values, labels, others):
    """Adjusted R^2 of both factors together less that of `others` alone: [layer]."""
    return adjusted_share(values, labels, others) - adjusted_share(values, others)


def adjusted_share(values, *factors):
    """Adjusted R^2 of the layer's values on additive groups: 1 - (1 - R^2) (n - 1) / (n - rank).

    NaN where nothing varies, or no degree of freedom is left.
    """
    columns = [labels[:, None] == np.unique(labels) for labels in factors]
    basis, singular, _ = np.linalg.svd(np.concatenate(columns, axis=1), full_matrices=False)
    basis = basis[:, singular > 1e-9 * singular[0]]
    centred, n, rank = values - values.mean(axis=0), len(values), basis.shape[1]
    left = ((centred - basis @ (basis.T @ centred)) ** 2).sum(axis=0)
    return 1 - divide(left * (n - 1), (centred**2).sum(axis=0) * max(n - rank, 0))


def describe_clusters(values, category, frame):
    """ICC [layer], its median, and for every category prompts, frames, design effect, effective n.

    Clusters are the prompts of one category and frame; the median design effect counts.
    """
    sizes, within, means, owners = [], 0.0, [], []
    for name in dict.fromkeys(category.tolist()):
        for label in dict.fromkeys(frame[category == name].tolist()):
            rows = values[(category == name) & (frame == label)]
            within = within + ((rows - rows.mean(axis=0)) ** 2).sum(axis=0)
            sizes.append(len(rows))
            means.append(rows.mean(axis=0))
            owners.append(name)
    sizes, means, owners = np.array(sizes), np.stack(means), np.array(owners)
    between, adjusted, of_category = 0.0, 0.0, {}
    for name in dict.fromkeys(owners.tolist()):
        n, mean = sizes[owners == name], values[category == name].mean(axis=0)
        between = between + (n[:, None] * (means[owners == name] - mean) ** 2).sum(axis=0)
        adjusted += n.sum() - (n**2).sum() / n.sum()
        of_category[name] = {"prompts": int(n.sum()), "frames": len(n)}
        of_category[name]["mean_cluster"] = float((n**2).sum() / n.sum())
        of_category[name]["effective_frames"] = effective_number(n)
    freedom = len(sizes) - len(of_category), len(values) - len(sizes)
    if min(freedom) < 1:
        icc = np.full(values.shape[1], np.nan)
    else:
        size = adjusted / freedom[0]  # of a cluster, corrected for unequal sizes
        between, within = between / freedom[0], within / freedom[1]
        icc = divide(between - within, between + (size - 1) * within)
    median = _median(icc)
    for item in of_category.values():
        effect = 1 + (item["mean_cluster"] - 1) * max(median, 0.0)  # NaN stays NaN
        item |= {"design_effect": effect, "effective_n": item["prompts"] / effect}
    return {"icc": icc, "median_icc": median, "categories": of_category}


def compare_matched(run, values):
    """RFC and RSI by layer, plain and matched on the first word, and the words that are shared."""
    matched = index_values(first_word_matched_values(run), run.category)
    plain = index_values(values, run.category)
    words = sorted(first_word_weights(run))
    mean = {f"mean_{name}": float(np.mean(plain[name])) for name in INDICES}
    mean |= {f"mean_{name}_matched": float(np.mean(matched[name])) for name in INDICES}
    return {"words": words, **mean, **{f"{name}_matched": matched[name] for name in INDICES}}


def shared_words(category, words):
    """How many first words begin prompts of more than one category."""
    return sum(len(set(category[words == word].tolist())) > 1 for word in np.unique(words))


def judge(audit, n_shared):
    """(whether a reader is warned, one sentence)."""
    if audit["crossed"]:
        word = "with the same first word and" if audit["same_first_word"] else "with"
        return False, (
            f"crossed: every frame holds every category, {word} as many tokens; differences are "
            "taken inside frames"
        )
    factors = audit["variance"]
    own, word = (factors[name]["median_beyond"] for name in ("category", "first word"))
    shares = [f"{factors[name]['median']:.2f}" for name in ("first word", "category")]
    says = f"the first word explains {shares[0]} of the variance between prompts, the category "
    says += f"{shares[1]} (medians over layers; beyond the other {word:.2f} and {own:.2f})"
    if not n_shared:
        nothing = "no first word is shared by two categories, so the two cannot be told apart"
        return True, f"{nothing}: {says}"
    if word > max(own, LEAST):
        return True, f"the category explains less than the first word: {says}"
    return False, f"no warning: {says}"


def audit_rows(audit):
    """Cells of the table of factors."""
    rows = []
    for name, factor in audit["variance"].items():
        share, median = np.asarray(factor["share"]), factor["median"]
        if np.isnan(share).all():
            rows.append([name, factor["groups"], "-", "-", "-", "-", "-"])
            continue
        ends = [f"{share[at]:.2f} @{at}" for at in (np.nanargmin(share), np.nanargmax(share))]
        more = f"{factor['median_beyond']:+.2f}" if "median_beyond" in factor else "-"
        rows.append(
            [name, factor["groups"], f"{median:.2f}", *ends, f"{factor['chance']:.2f}", more]
        )
    return rows


def cluster_rows(audit):
    """Cells of the table of categories: prompts, frames, design effect, effective n."""
    return [
        [
            *(name, item["prompts"], item["frames"]),
            *("-" if np.isnan(item[key]) else f"{item[key]:.1f}" for key in EFFECTS),
        ]
        for name, item in audit["clusters"]["categories"].items()
    ]


EFFECTS = ("effective_frames", "design_effect", "effective_n")


def name_units(run):
    """What intervals of a run are over: frames, frames (first words), or prompts."""
    if run.crossed:
        return "frames"
    if not is_clustered(*labels_of(run)):
        return "prompts"
    return "frames (first words)" if (run.frame == first_words(run)).all() else "frames"


def contrast_reason(run, contrast):
    """Why these two sides of a run get no interval and no test, or None.

    contrast  (first, second) of stats.contrasts
    """
    names = categories_of(contrast)
    if not set(names) <= set(run.counts):
        return None
    if reason := unidentified_reason(run, names):
        return reason
    category, unit = labels_of(run)
    return untestable_reason(category, unit, names, "frames" if run.crossed else "prompts")


def unidentified_reason(run, names):
    """Why the design cannot tell these categories apart by whom they are about, or None.

    In a set that is not crossed, two categories of which no prompts begin alike differ in how they
    begin as well as in whom they are about, and no test can tell the two apart.
    """
    if run.crossed or word_weights(run.category, first_words(run), names, 1):
        return None
    joined = " and ".join(names)
    why = "so the design cannot tell who from how"
    return f"not identified: no first word begins prompts of {joined}, {why}"


def within_words(run, values, contrast):
    """H_second - H_first among prompts that begin alike: values [prompt, ...] -> [...], or NaN.

    sum_w w(word) (m_second(word) - m_first(word)), w as in indices.word_weights
    """
    words, category = first_words(run), run.category
    if not all(isinstance(side, str) for side in contrast):
        return np.full(values.shape[1:], np.nan)
    weights = word_weights(category, words, contrast, 1)
    total = 0.0
    for word, weight in weights.items():
        first, second = (
            defined_mean(values[(category == name) & (words == word)], axis=0) for name in contrast
        )
        total = total + weight * (second - first)
    return total if weights else np.full(values.shape[1:], np.nan)


def _describe_factor(values, labels):
    share, groups = variance_share(values, labels), len(np.unique(labels))
    chance = (groups - 1) / max(len(values) - 1, 1)
    return {"groups": groups, "share": share, "median": _median(share), "chance": chance}


def _median(values):
    defined = values[~np.isnan(values)]
    return float(np.median(defined)) if len(defined) else float("nan")
