"""What a run says about its layers and heads, tested: numbers in, rows of tables out.

    infer_kinds(run)                 RFC and RSI of every layer, five ways, with interval, null
                                     and tests
    layer_metrics(run, inferred)     the same as rows, with what was found and what could have been
    contrast_layers(run, contrasts)  differences between categories, layer by layer
    contrast_heads(run, contrasts)   the same of every head, with Hedges g
    rank_heads(tests)                the heads as rows, strongest first

A family for q and max-T is all layers of one kind and index, or all heads of one contrast. The
primary family is both indices of `crossed`, normalised: p_primary is max-T over its layers.
"""

import numpy as np
from scipy.special import ndtri

from rolecircuits.inputs.arguments import ALPHA, DEFAULT_SEED, MARGIN
from rolecircuits.stats import indices
from rolecircuits.stats.audit import contrast_reason, within_words
from rolecircuits.stats.contrasts import (
    coefficients_of,
    compare_categories,
    contrast_sides,
    q_values,
)
from rolecircuits.stats.index_inference import COMPARED, Means, infer_indices
from rolecircuits.stats.moments import defined_mean, defined_moments, divide
from rolecircuits.stats.resampling import N_RESAMPLES, SHARE, infer_mean, join_families
from rolecircuits.stats.units import frame_values, is_clustered, labels_of, strata_of

MATCHED = {
    "position_matched": indices.position_matched_values,
    "first_word_matched": indices.first_word_matched_values,
}
LAYER_KINDS = (*indices.KINDS, *MATCHED)
MEASURES = ("estimate", "low", "high", "g", "g_low", "g_high", "p", "q", "p_max")
LAYER_COLUMNS = (
    *("layer", "kind", "index", "family", "within_words", "sign_disagrees"),
    *("estimate", "low", "high", "null", "p", "q", "p_max", "p_primary", "error"),
    *("prompts", "frames", "design_effect", "effective_n", "mde", "verdict"),
)
TESTS = ("low", "high", "p", "q", "p_max")
POWER = 0.80
MIN_HALF = 3  # units of each half that chooses or measures heads
PRIMARY = "normalised"
VERDICTS = ("differs", "differs, less than the margin", "equivalent", "undecided")


def infer_layers(run, kind="normalised", seed=DEFAULT_SEED, n_resamples=N_RESAMPLES):
    """{index: numbers} of RFC and RSI; p tests index = null.

    numbers  "estimate", "low", "high", "null", "p", "q", "p_max", "p_primary" (of the primary
             family, max-T over the layers of both indices; else NaN), "error", "outer" and "inner"
             (half the 95 % and half the 90 % interval of estimate - null, before a bound cuts it),
             each [layer]; "reason", why there is no interval and no test, or None; "family", the
             Inference
    Raw is tested against the index of uniform attention on the same prompts. What is matched on the
    first word has an estimate alone: it counts the words as fixed, while prompts are drawn word by
    word.
    """
    matched, draws = MATCHED.get(kind), (n_resamples, seed)
    values = matched(run) if matched else indices.layer_values(run, kind)
    values, labels = frame_values(run, values), labels_of(run)
    null = indices.layer_null(run, "normalised" if matched else kind)
    inferred = tests = infer_indices(values, *labels, None, *draws)
    if kind == "raw":
        uniform = frame_values(run, indices.null_values(run, "raw"))
        tests = infer_indices(values, *labels, uniform, *draws)
    layers = {}
    for index, test in tests.items():
        own, reason = inferred[index], contrast_reason(run, COMPARED[index])
        numbers = {"estimate": own.estimate, "low": own.low, "high": own.high}
        numbers |= {"null": null[index], "p": test.p, "q": q_values(test.p), "p_max": test.p_max}
        outer = test.estimate - test.low  # a bound cuts RFC from above only
        numbers |= {"error": test.error, "outer": outer, "inner": test.inner}
        if kind == "first_word_matched" and not run.crossed and reason is None:
            reason = "words count as fixed"
        if reason:
            numbers |= dict.fromkeys(
                (*TESTS, "error", "outer", "inner"), np.full(len(null[index]), np.nan)
            )
        layers[index] = numbers | {"reason": reason, "family": test}
        layers[index]["p_primary"] = np.full(len(null[index]), np.nan)
    tested = [index for index in layers if not layers[index]["reason"]]
    if tested and family_name(run, kind) == "primary":
        for index, p in zip(tested, join_families([tests[i] for i in tested]), strict=True):
            layers[index]["p_primary"] = p
    return layers


def infer_kinds(run, seed=DEFAULT_SEED, n_resamples=N_RESAMPLES):
    """{kind: what `infer_layers` gives} of LAYER_KINDS."""
    return {kind: infer_layers(run, kind, seed, n_resamples) for kind in LAYER_KINDS}


def layer_metrics(run, inferred, margin=MARGIN):
    """Rows of layer_metrics.csv: one a kind, index and layer.

    inferred  what `infer_kinds` gave    margin  an index nearer to its null than this is no effect
    """
    rows, within = [], inferred["first_word_matched"]
    for kind, of_kind in inferred.items():
        sizes = describe_sizes(run, kind)
        for index, numbers in of_kind.items():
            if not set(COMPARED[index]) <= set(run.counts):
                continue
            found = judge_layers(numbers, margin)
            columns = {name: numbers[name] for name in ("estimate", "low", "high", "null")}
            columns |= {name: numbers[name] for name in ("p", "q", "p_max", "p_primary", "error")}
            columns |= sizes[index] | found
            if kind == PRIMARY and not run.crossed:
                columns["within_words"] = within[index]["estimate"]
                columns["sign_disagrees"] = signs_apart(
                    numbers["estimate"], within[index]["estimate"]
                )
            empty = {"within_words": np.nan, "sign_disagrees": ""}
            place = {"kind": kind, "index": index, "family": family_name(run, kind)}
            rows += [
                {"layer": layer}
                | place
                | empty
                | {name: np.broadcast_to(c, run.n_layers)[layer] for name, c in columns.items()}
                for layer in range(run.n_layers)
            ]
    return rows


def family_name(run, kind):
    """primary: RFC and RSI of a crossed set, normalised; everything else is secondary."""
    return "primary" if run.crossed and kind == PRIMARY else "secondary"


def disagrees(plain, within):
    """Whether the estimate within shared first words has the other sign: [layer] bool."""
    return np.sign(plain) * np.sign(within) < 0


def signs_apart(plain, within):
    """The same for a table: [layer] True, False, or "" where either estimate is undefined."""
    undefined = np.isnan(plain) | np.isnan(within)
    return np.where(undefined, "", disagrees(plain, within).astype(object))


def judge_layers(numbers, margin):
    """{"mde", "verdict"}, each [layer], of numbers as `infer_layers` gives them.

    mde      the smallest difference from the null that is found with 80 % power by a test of this
             layer alone: (c + z_0.8) error, c error half the 95 % interval (Bloom 1995)
    verdict  differs: q < 0.05; equivalent: the 90 % interval around estimate - null lies within
             the margin (two one-sided tests, Schuirmann 1987); undecided: neither
    """
    distance = np.abs(numbers["estimate"] - numbers["null"])
    small, differs = distance + numbers["inner"] < margin, numbers["q"] < ALPHA
    verdict = np.select([differs & ~small, differs, small], VERDICTS[:3], VERDICTS[3])
    verdict = np.where(np.isnan(numbers["p"]) & ~small, "", verdict)
    mde = numbers["outer"] + ndtri(POWER) * numbers["error"]
    return {"mde": np.where(np.isnan(numbers["p"]), np.nan, mde), "verdict": verdict}


def describe_sizes(run, kind):
    """{index: {"prompts", "frames", "design_effect", "effective_n"}} of its two categories.

    design_effect  (standard error / that of independent prompts)^2 [layer]; effective_n is prompts
                   divided by it
    """
    matched, category = MATCHED.get(kind), run.category
    values = matched(run) if matched else indices.layer_values(run, kind)
    frames, labels = frame_values(run, values), labels_of(run)
    defined = not np.isnan(values[np.isin(category, indices.INDEX_CATEGORIES)]).any()
    sizes = {}
    for index, names in COMPARED.items():
        there = np.isin(category, names)
        n, n_frames = int(there.sum()), len(set(run.frame[there].tolist()))
        effect = np.full(values.shape[1], np.nan)
        if {*names, "neutral"} <= set(run.counts) and defined:
            one = np.ones((len(values), 2), dtype=np.float32)
            alone = Means([values], category, one).index_draws(index)[2][:, 0]
            shared = run.crossed or is_clustered(*labels)
            unit, rows = (labels[1], np.ones((len(frames), 2), dtype=np.float32))
            error = Means([frames], labels[0], rows, unit if shared else None)
            effect = divide(error.index_draws(index)[2][:, 0], alone) ** 2
        sizes[index] = {"prompts": n, "frames": n_frames, "design_effect": effect}
        sizes[index]["effective_n"] = divide(n, effect)
    return sizes


def list_reasons(run, contrasts):
    """{contrast or index: why it has no interval and no test, or None}."""
    there = {index: pair for index, pair in COMPARED.items() if set(pair) <= set(run.counts)}
    return {name: contrast_reason(run, contrast) for name, contrast in (contrasts | there).items()}


def contrast_heads(run, contrasts, seed=DEFAULT_SEED):
    """{contrast: {measure: [layer, head]}} of normalised values; contrasts {name: contrast}."""
    values = frame_values(run, indices.prompt_values(run, "normalised"))
    return contrast_values(run, values, contrasts, seed)


def contrast_values(run, values, contrasts, seed=DEFAULT_SEED):
    """{contrast: {measure: [...]}} of values [row, ...] whose rows are those of `frame_values`."""
    labels = labels_of(run)
    return {
        name: blank_untestable(run, c, compare_categories(values, *labels, c, seed=seed))
        for name, c in contrasts.items()
    }


def blank_untestable(run, contrast, compared):
    """What compare_categories gave, without intervals and tests where the design allows none."""
    if contrast_reason(run, contrast) is None:
        return compared
    blank = {name: np.full_like(compared["p"], np.nan) for name in TESTS}
    return compared | blank | {"g_low": blank["low"], "g_high": blank["high"]}


def contrast_layers(run, contrasts, seed=DEFAULT_SEED):
    """Rows of contrasts.csv: one a contrast and layer, of normalised and of sink-free values.

    estimate is H_second - H_first with its 95 % interval (> 0: the first is the more focused);
    share is the estimate divided by the mean of the second side; within_words is the same
    difference among prompts that begin alike.
    """
    labels, rows = labels_of(run), []
    for name, contrast in contrasts.items():
        for kind in ("normalised", "sinkfree"):
            layers = indices.layer_values(run, kind)
            values = frame_values(run, layers)
            second, first, paired = contrast_sides(values, *labels, contrast)
            tests = compare_categories(values, *labels, contrast, seed=seed)
            tests = blank_untestable(run, contrast, tests)
            columns = {key: tests[key] for key in ("estimate", "low", "high")}
            columns["share"] = divide(tests["estimate"], defined_mean(second, axis=0))
            columns |= {measure: tests[measure] for measure in ("g", "p", "q", "p_max")}
            if not run.crossed:
                within = within_words(run, layers, contrast)
                columns |= {"within_words": within}
                columns["sign_disagrees"] = signs_apart(tests["estimate"], within)
            columns |= describe_contrast(run, layers, contrast, tests["error"])
            labelled = {"contrast": name, "kind": kind, "n": len(first), "paired": paired}
            rows += [
                labelled
                | {"layer": layer}
                | {key: np.broadcast_to(c, run.n_layers)[layer] for key, c in columns.items()}
                for layer in range(run.n_layers)
            ]
    return rows


def describe_contrast(run, values, contrast, error):
    """As `describe_sizes` for one contrast; values [prompt, layer], error [layer]."""
    there, variance = np.zeros(len(values), dtype=bool), 0.0
    for name, coefficient in coefficients_of(contrast).items():
        chosen = run.category == name
        there |= chosen
        n, _, spread = defined_moments(values[chosen])
        variance = variance + coefficient**2 * divide(spread, n)
    effect = divide(error**2, variance)
    sizes = {"prompts": int(there.sum()), "frames": len(set(run.frame[there].tolist()))}
    return sizes | {"design_effect": effect, "effective_n": divide(there.sum(), effect)}


def split_units(category, unit, seed=DEFAULT_SEED):
    """True for the rows that choose heads: a random half of the units, each whole.

    Clusters are of unequal size: in random order, each goes to the half that has fewer rows.
    """
    rng, chosen = np.random.default_rng(seed), np.zeros(len(category), dtype=bool)
    clustered = is_clustered(category, unit)
    for stratum in strata_of(category, unit):
        order, sizes = rng.permutation(len(stratum)), [0, 0]
        for place, i in enumerate(order):
            into = place < len(stratum) // 2
            if clustered:
                into = sizes[1] < sizes[0]
                sizes[int(into)] += len(stratum[i])
            chosen[stratum[i]] = into
    return chosen


def strongest_heads(size, n):
    """The n (layer, head) with the largest defined |size| [layer, head], largest first."""
    order = np.argsort(-np.nan_to_num(np.abs(size), nan=-1.0), axis=None, kind="stable")[:n]
    heads = [divmod(int(i), size.shape[1]) for i in order]
    return [head for head in heads if not np.isnan(size[head])]


def rank_heads(contrasts, run):
    """Rows of head_ranking.csv, the strongest |g| of the first contrast first.

    By |estimate| where no g is defined. A run with slots has the mean attention of the final
    query on them, by category, beside that of uniform attention.
    """
    masses = slot_masses(run) if run.has_slots else {}
    first = next(iter(contrasts.values()))
    strength = np.abs(first["g"] if np.isfinite(first["g"]).any() else first["estimate"])
    order = np.argsort(-np.nan_to_num(strength, nan=-1.0), axis=None, kind="stable")
    rows = []
    for rank, i in enumerate(order, 1):
        layer, head = divmod(int(i), strength.shape[1])
        row = {"rank": rank, "layer": layer, "head": head}
        for name, measures in contrasts.items():
            row |= {f"{name}_{measure}": measures[measure][layer, head] for measure in MEASURES}
        rows.append(row | {name: mass[layer, head] for name, mass in masses.items()})
    return rows


def slot_masses(run):
    """{"slot_mass_<category>" and "slot_uniform": [layer, head]}, means over prompts."""
    masses = {
        f"slot_mass_{name}": run.slot_mass[run.category == name].mean(axis=0, dtype=np.float64)
        for name in run.counts
    }
    uniform = run.slot_uniform.mean(axis=0, dtype=np.float64)[:, None]
    return masses | {"slot_uniform": np.repeat(uniform, run.n_heads, axis=1)}


def summarise_categories(run, seed=DEFAULT_SEED):
    """Rows of category_summary.csv, one a kind and category: means over layers and heads."""
    rows, (category, unit) = [], labels_of(run)
    for kind in indices.KINDS:
        values = frame_values(run, indices.layer_values(run, kind).mean(axis=1))
        bounds = (0.0, np.inf) if kind == "raw" else SHARE
        for name, n in run.counts.items():
            chosen, own = run.category == name, values[category == name]
            row = {"category": name, "kind": kind, "n_prompts": n}
            row["n_frames"] = len(set(run.frame[chosen].tolist()))
            row["mean_tokens"] = run.n_tokens[chosen].mean()
            row["mean_own_tokens"] = np.diff(run.span[chosen]).mean()
            found = infer_mean(own, None, unit[category == name], bounds, seed=seed)
            interval = (float(x) for x in found[:3])
            row |= dict(zip(("estimate", "low", "high"), interval, strict=True))
            rows.append(row | {"sink_mass": np.nanmean(run.sink_mass[chosen])})
    return rows
