"""The person effect of one model along its layers, language by language: do languages agree, and
does their agreement follow typology?

    rfc     1 - H_self / H_neutral                    "you" against "it"
    rsi     (H_confounder - H_self) / H_neutral       "you" against "I"
    third   (H_third - H_self) / H_neutral            "you" against she or he
    > 0: attention on "you" is the more focused. Normalised kind; the length null is 0

Agreement of two languages is Pearson's r of their profiles over layers. Its interval is
tanh(arctanh(r) -+ 1.96 s), s the standard deviation of arctanh(r*) over draws of the frames, of
each language by itself: it says how far r would move with other frames, not with other layers. In
150 simulated pairs each (24 frames, 30 layers, 1 to 52 % of the variance noise) it held the r that
profiles of so much noise have in 94 to 97 %, and the r without noise in 88 (most noise) to 98 %.
Noise draws r towards 0; the corrected r is that of profile_noise, whose noise covariance is 0 here
up to chance, because no two languages share a frame.

Typology: the distance of two languages is the share of features in which they differ, that of two
profiles 1 - r. Their correlation over all pairs is tested by permuting languages (Mantel 1967),
exactly up to EXACT languages, else by N_PERMUTATIONS random permutations and the identity. p is the
share of permutations that correlate as strongly, one-sided: languages of one kind should be alike.
It takes languages as exchangeable, which relatives are not, and sets of relatives share words
("te", "me", "la"), so two controls stand beside it: one family or not, and the share of the words
of their slots that two sets do not share (slot words). The floor of p is the share of permutations
that leave the distances of the feature as they are: no result can be below it.
"""

from dataclasses import dataclass, field
from itertools import combinations, permutations
from math import factorial

import numpy as np

from rolecircuits.inputs.arguments import DEFAULT_SEED
from rolecircuits.inputs.categories import spoken_words
from rolecircuits.inputs.languages import DROP, FEATURES, PREFIX, read_frames
from rolecircuits.stats.contrasts import q_values
from rolecircuits.stats.index_inference import infer_indices, infer_mean_indices
from rolecircuits.stats.indices import index_values, layer_values, position_matched_values
from rolecircuits.stats.moments import divide
from rolecircuits.stats.profile_noise import (
    N_RESAMPLES,
    JointDraws,
    correct_correlation,
    indices_of_draws,
)
from rolecircuits.stats.profile_tests import correlate_detrended, correlate_rows
from rolecircuits.stats.resampling import bootstrap_counts, nth_seed
from rolecircuits.stats.units import frame_values, labels_of

EFFECTS = ("rfc", "rsi", "third")
EXACT, N_PERMUTATIONS = 7, 9_999
FAMILY, WORDS = "family", "slot words"  # controls
ALL = "all features"
Z_95 = 1.959963984540054


@dataclass
class LanguageProfile:
    """The person effect of a run on one set.

    source     "crossed:de"       facts    of the run, for a CSV    n_frames  that it rests on
    inference  {effect: Inference over layers}     mean  {effect: Inference of its mean over them}
    matched    {effect: [layer], position-matched}
    resampled  {effect: [draw, layer]}, frames drawn with replacement
    An effect whose persons the set lacks is absent (third, of a set without the pronoun).
    """

    source: str
    facts: dict
    n_frames: int
    inference: dict = field(default_factory=dict)
    mean: dict = field(default_factory=dict)
    matched: dict = field(default_factory=dict)
    resampled: dict = field(default_factory=dict)

    @property
    def language(self):
        """Its code, "de"."""
        return self.source.removeprefix(PREFIX).removesuffix(DROP)


def measure_profile(source, run, number, seed=DEFAULT_SEED):
    """The LanguageProfile of a run; its draws are those of the `number`-th language."""
    category, unit = (np.asarray(labels) for labels in labels_of(run))
    values = frame_values(run, layer_values(run))
    facts = run.facts | {"set": source}
    profile = LanguageProfile(source, facts, len(np.unique(unit)))
    prompts, matched = np.asarray(run.category), position_matched_values(run)
    for effects, roles in ((("rfc", "rsi"), {}), (("third",), {"third_person": "confounder"})):
        if roles and "third_person" not in category:
            continue
        names, rows = play_roles(category, roles)
        own, together = values[rows], unit[rows]
        found = infer_indices(own, names[rows], together, seed=seed)
        means = infer_mean_indices(own, names[rows], together, seed=seed)
        counts = bootstrap_counts(names[rows], together, N_RESAMPLES, nth_seed(seed, number))
        drawn = indices_of_draws(own, names[rows], counts)
        of_prompts, used = play_roles(prompts, roles)
        positions = matched
        if roles:  # the estimator weighs the categories of the indices: third is one of them here
            positions = position_matched_values(run.rename({"confounder": "left_out"} | roles))
        positions = index_values(positions[used], of_prompts[used])
        for effect in effects:
            index = "rsi" if roles else effect
            profile.inference[effect], profile.mean[effect] = found[index], means[index]
            profile.resampled[effect] = drawn[index]
            profile.matched[effect] = positions[index]
    return profile


def play_roles(category, roles):
    """(category [row] with these names replaced, rows [row] bool that are not replaced ones)."""
    names = np.array([roles.get(name, name) for name in category.tolist()])
    return names, ~(np.isin(category, list(roles.values())))


def layer_rows(profiles):
    """Rows of language_layers.csv: one a set, effect and layer; q over the layers."""
    rows = []
    for profile in profiles:
        for effect, found in profile.inference.items():
            q = q_values(found.p)
            for layer in range(len(q)):
                row = profile.facts | {"index": effect, "layer": layer, "frames": profile.n_frames}
                numbers = {
                    name: getattr(found, name)[layer] for name in ("estimate", "low", "high")
                }
                row |= numbers | {"null": 0.0, "p": found.p[layer], "q": q[layer]}
                row |= {"p_max": found.p_max[layer]}
                rows.append(row | {"position_matched": profile.matched[effect][layer]})
    return rows


def correlate_languages(profiles):
    """Rows of language_correlations.csv: one a pair of sets and effect."""
    rows = []
    for left, right in combinations(profiles, 2):
        for effect in EFFECTS:
            if effect in left.inference and effect in right.inference:
                other = {f"{name}_other": right.facts[name] for name in ("set", "run")}
                row = left.facts | other | {"index": effect}
                rows.append(row | correlate_pair(left, right, effect))
    return rows


def correlate_pair(left, right, effect):
    """Columns of r of two profiles; NaN where one of them does not vary."""
    a, b = (profile.inference[effect].estimate for profile in (left, right))
    plain, quadratic = (correlate_detrended(a, b, degree) for degree in (0, 2))
    drawn = [profile.resampled[effect] for profile in (left, right)]
    low, high = interval_of(plain.r, *drawn)
    frames = (left.n_frames + right.n_frames) / 2
    joint = JointDraws({effect: (a, b)}, {effect: tuple(drawn)}, frames, 0)
    corrected, *signals = correct_correlation(joint, effect, 0)
    row = {"frames": left.n_frames, "frames_other": right.n_frames}
    row |= {"estimate": plain.r, "low": low, "high": high, "null": 0.0, "p": plain.p}
    row |= {"quadratic_r": quadratic.r, "quadratic_p": quadratic.p}
    names = ("corrected_r", "signal", "signal_other")
    return row | dict(zip(names, (corrected, *signals), strict=True))


def interval_of(r, left, right):
    """(low, high) of r from the draws [draw, layer] of both profiles, on Fisher's scale."""
    centred = [x - x.mean(axis=1, keepdims=True) for x in (left, right)]
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.nanstd(np.arctanh(correlate_rows(*centred)), ddof=1)
        ends = np.tanh(np.arctanh(r) + np.array([-1, 1]) * Z_95 * spread)
    return float(ends[0]), float(ends[1])


def correlation_matrix(profiles, rows, effect):
    """[set, set] r of the profiles, 1 on the diagonal, from rows of `correlate_languages`."""
    places = {profile.source: i for i, profile in enumerate(profiles)}
    matrix = np.where(np.eye(len(places)) > 0, 1.0, np.nan)
    for row in rows:
        if row["index"] == effect and {row["set"], row["set_other"]} <= places.keys():
            i, j = places[row["set"]], places[row["set_other"]]
            matrix[i, j] = matrix[j, i] = row["estimate"]
    return matrix


def typology_rows(profiles, rows, typology, seed=DEFAULT_SEED):
    """Rows of language_typology.csv: one an effect and feature, of the sets with the pronoun.

    typology  {language: {feature: value, "family": ...}}    returns  [] for fewer than 4 languages
    """
    chosen = [profile for profile in profiles if not profile.source.endswith(DROP)]
    languages = [typology[profile.language] for profile in chosen]
    if len(chosen) < 4:
        return []
    differ = {name: distances(languages, (name,)) for name in (*FEATURES, FAMILY)}
    tested = {ALL: distances(languages, FEATURES)} | differ
    tested[WORDS] = word_distances([profile.source for profile in chosen])
    out = []
    for effect in EFFECTS:
        profile_distance = 1 - correlation_matrix(chosen, rows, effect)
        for name, distance in tested.items():
            found = permute_languages(profile_distance, distance, seed)
            out.append({"index": effect, "feature": name, "languages": len(chosen)} | found)
    for row, q in zip(out, q_values([row["p"] for row in out]), strict=True):
        row["q"] = q
    return out


def distances(languages, features):
    """[language, language]: the share of these features in which two languages differ."""
    values = np.array([[facts[name] for name in features] for facts in languages])
    return (values[:, None] != values[None]).mean(axis=-1)


def word_distances(sources):
    """[set, set]: 1 - shared / all of the words (Jaccard 1912) that the slots of two sets hold."""
    slots = [" ".join(" ".join(f["slots"].values()) for f in read_frames(s)) for s in sources]
    words = [set(spoken_words(text.lower())) for text in slots]
    return np.array([[1 - len(a & b) / len(a | b) for b in words] for a in words])


def permute_languages(profile_distance, distance, seed=DEFAULT_SEED):
    """{"estimate": r of the two distances over pairs, "p", "floor", "permutations"}; see above."""
    n = len(distance)
    if factorial(n) <= factorial(EXACT):
        orders = np.array(list(permutations(range(n))))
    else:
        rng = np.random.default_rng(seed)
        drawn = rng.permuted(np.tile(np.arange(n), (N_PERMUTATIONS, 1)), axis=1)
        orders = np.concatenate([np.arange(n)[None], drawn])
    pairs = np.triu_indices(n, 1)
    moved = distance[orders[:, :, None], orders[:, None, :]][:, pairs[0], pairs[1]]
    observed = profile_distance[pairs]
    centred = [x - x.mean(axis=-1, keepdims=True) for x in (observed, moved)]
    sizes = [np.sqrt((x * x).sum(axis=-1)) for x in centred]
    r = divide((centred[0] * centred[1]).sum(axis=-1), sizes[0] * sizes[1])
    same = np.isclose(moved, moved[0]).all(axis=1).mean()
    p = np.nan if np.isnan(r[0]) else float((r >= r[0] - 1e-12).mean())
    return {"estimate": float(r[0]), "p": p, "floor": float(same), "permutations": len(orders)}
