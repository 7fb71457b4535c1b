"""How far do two profiles agree because both models were given the same prompts?

Two models that are run on the same prompts share what is odd about these prompts: chance that moves
both profiles the same way counts as agreement. compare_base_instruct.py keeps the rows behind its
profiles (`profile_rows`). For two such folders the same units are drawn in both models, N_RESAMPLES
times, and both profiles are computed again. With cov over layers, a and b the profiles of the
sample, a* and b* those of a resample, and n units a category,

    noise(a, b)      = n / (n - 1) (mean over resamples of cov(a*, b*) - cov(a, b))
    corrected r      = (cov(a, b) - noise(a, b)) / sqrt((cov(a, a) - noise(a, a)) (the same of b))

A resample carries the noise of the sample and as much again, so the excess of its covariance is
the noise of the sample (Efron and Tibshirani 1993, ch. 10: bias by the bootstrap); n / (n - 1)
because a resample spreads by the variance with divisor n. The variances are corrected too, so
noise that the models do not share, which hides agreement, is undone as well.

It undoes moderate noise only. On simulated profiles of 30 layers and 30 prompts, unrelated ones,
nine tenths of whose noise is shared (plain r, then the median corrected one):

    noise of the prompts    20 %       50 %       69 %       80 %    of a profile's variance
    plain                   +0.14      +0.39      +0.58      +0.72
    corrected               -0.03      +0.09      +0.42      +0.62

So r is left out where less than MIN_SIGNAL of the variance of a profile is left, and should be read
where half of it is. No interval is given: percentiles of r over resamples hold the noise twice,
and with 50 % of noise or less the basic bootstrap interval held the truth in 67 to 94 % of the data
sets, that of Fisher's z in 79 to 96 %.
"""

from hashlib import sha256
from itertools import combinations
from typing import NamedTuple

import numpy as np

from rolecircuits.inputs.arguments import DEFAULT_SEED
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.stats.indices import INDEX_CATEGORIES, INDICES, indices_of_means, layer_values
from rolecircuits.stats.moments import divide
from rolecircuits.stats.profile_tests import align_profiles, trend_remover
from rolecircuits.stats.resampling import MIN_UNITS, bootstrap_counts, untestable_reason
from rolecircuits.stats.units import frame_values, labels_of

ROWS_FILE = "profile_rows.npz"
ROW_KINDS = ("normalised", "sinkfree")
SIDES = ("base", "instruct")
LABELS = ("category", "key", "unit")
ARRAYS = (*LABELS, *(f"{side}_{kind}" for kind in ROW_KINDS for side in SIDES))
TYPES = {"f": ("float",), "U": ("str",), "iu": ("int",)}
N_RESAMPLES = 2000
MIN_SIGNAL = 0.25


class JointDraws(NamedTuple):
    """Differences instruct - base of two models on the prompts that both hold.

    observed  {index: ([layer], [layer])}     resampled  {index: ([resample, layer], [...])}
    n_units   units a category, the mean over categories      shared  rows that both hold
              (a draw that holds no unit of a category is NaN)
    """

    observed: dict
    resampled: dict
    n_units: float
    shared: int


def profile_rows(runs):
    """The arrays of profile_rows.npz: what the profiles of two matched runs are means of.

    runs      {"base": Run, "instruct": Run} as run_pairs.match_runs gives them
    returns   category, key [row] str, unit [row] int; <side>_<kind> [row, layer] float32, the
              values of frames of a crossed set, else of prompts. The key is the SHA-256 (half of
              it) of the texts and turns of the frame, or of the prompt: a row of another model with
              the same category and key comes from the same prompts.
    """
    base = runs["base"]
    category, unit = labels_of(base)
    arrays = {"category": np.asarray(category, dtype=str), "key": row_keys(base, unit)}
    arrays["unit"] = np.asarray(unit, dtype=np.int64)
    for kind in ROW_KINDS:
        for side in SIDES:
            values = frame_values(runs[side], layer_values(runs[side], kind))
            arrays[f"{side}_{kind}"] = values.astype(np.float32)
    return arrays


def row_keys(run, unit):
    """What identifies the rows of `frame_values` in another model: [row] str."""
    texts = [f"{row.get('turn', 'user')} {row['text']}" for row in run.prompts]
    if not run.crossed:
        return np.array([hash_of(text) for text in texts])
    of_frame = {name: [] for name in run.frame.tolist()}  # in the order that `units_of` counts
    for name, category, text in zip(run.frame.tolist(), run.category.tolist(), texts, strict=True):
        of_frame[name].append(f"{category} {text}")
    keys = [hash_of("\n".join(sorted(lines))) for lines in of_frame.values()]
    return np.array([keys[place] for place in unit])


def hash_of(text):
    """Half of the SHA-256 of a text, as hex."""
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def check_rows(path, rows, n_layers):
    """Refuse arrays that are not those of `profile_rows` for a profile of so many layers."""
    n = len(rows["category"]) if rows["category"].ndim == 1 else 0
    for name in ARRAYS:
        kinds, shape = ("f", (n, n_layers)) if name not in LABELS else ("U", (n,))
        if name == "unit":
            kinds = "iu"
        if rows[name].dtype.kind not in kinds or rows[name].shape != shape or not n:
            found = f"{rows[name].dtype} {list(rows[name].shape)}"
            expected = f"{' or '.join(TYPES[kinds])} {list(shape)}"
            raise UserError(f"{path}: {name} is {found}; expected {expected}, a row at least")
        if kinds == "f" and np.isinf(rows[name]).any():
            raise UserError(f"{path}: {name} has infinite values")
    if len(set(_identities(rows))) < n:
        raise UserError(f"{path}: two rows have the same category and key")


def _identities(rows):
    return list(zip(rows["category"].tolist(), rows["key"].tolist(), strict=True))


def match_rows(left, right):
    """([shared row] of left, [shared row] of right): the rows of one category and key."""
    places = {identity: row for row, identity in enumerate(_identities(right))}
    pairs = [(i, places[key]) for i, key in enumerate(_identities(left)) if key in places]
    rows = np.array(pairs, dtype=int).reshape(-1, 2)
    return rows[:, 0], rows[:, 1]


def missing_rows_reason(left, right):
    """Why these two models cannot be resampled jointly, or None if they can."""
    rows, others = match_rows(left, right)
    if not len(rows):
        return "have no rows in common"
    category, unit = left["category"][rows], left["unit"][rows]
    for name in INDEX_CATEGORIES:
        if (n := int((category == name).sum())) < MIN_UNITS:
            return f"have {n} {name} rows in common, {MIN_UNITS} are needed"
    if reason := untestable_reason(category, unit, INDEX_CATEGORIES, "rows"):
        return f"have too few units in common: {reason}"
    if not _same_units(left["unit"][rows], right["unit"][others]):
        return "join the rows that they have in common into other units"
    return None


def _units_by_category(category, unit):
    """The units of every category of the indices; a negative unit is alone."""
    own = np.where(unit < 0, -1 - np.arange(len(unit)), unit)
    return [np.unique(own[category == name]) for name in INDEX_CATEGORIES]


def _same_units(left, right):
    """Whether two labellings [row] put the same rows together; a negative unit is alone."""
    groups = []
    for unit in (left, right):
        own = np.where(unit < 0, -1 - np.arange(len(unit)), unit)
        groups.append(np.unique(own, return_inverse=True)[1])
    pairs = len(set(zip(*(group.tolist() for group in groups), strict=True)))
    return all(pairs == len(set(group.tolist())) for group in groups)


def prepare_draws(names, rows, kind):
    """(what profiles.correlate_models draws with, a note for each pair that cannot be drawn).

    names  of all models    rows  {name: arrays of `profile_rows`} of those that have them
    """
    notes, missing = [], [printable(name) for name in names if name not in rows]
    if missing and len(names) > 1:
        where = f"{ROWS_FILE} is missing for {', '.join(missing)}"
        notes.append(f"no joint resampling: {where} (compare_base_instruct.py writes it)")
    pairs = {}
    for pair in combinations(rows, 2):
        reason = missing_rows_reason(*(rows[name] for name in pair))
        if reason:
            notes.append(f"no joint resampling: {' and '.join(map(printable, pair))} {reason}")
        else:
            pairs[pair] = [rows[name] for name in pair]

    def draw(*pair):
        return draw_jointly(*pairs[pair], kind) if pair in pairs else None

    return draw, notes


def draw_jointly(left, right, kind, n_resamples=N_RESAMPLES, seed=DEFAULT_SEED):
    """JointDraws of two models that `missing_rows_reason` finds nothing against.

    left, right  arrays of `profile_rows`    kind  one of ROW_KINDS
    """
    own, other = match_rows(left, right)
    category = left["category"][own]
    counts = bootstrap_counts(category, left["unit"][own], n_resamples, seed)
    counts = np.concatenate([np.ones((1, len(own))), counts])
    drawn = []
    for rows, model in ((own, left), (other, right)):
        base, instruct = (
            indices_of_draws(model[f"{side}_{kind}"][rows].astype(np.float64), category, counts)
            for side in SIDES
        )
        drawn.append({index: instruct[index] - base[index] for index in INDICES})
    per_category = np.mean([len(u) for u in _units_by_category(category, left["unit"][own])])
    return JointDraws(
        observed={index: tuple(model[index][0] for model in drawn) for index in INDICES},
        resampled={index: tuple(model[index][1:] for model in drawn) for index in INDICES},
        n_units=float(per_category),
        shared=len(own),
    )


def indices_of_draws(values, category, counts):
    """RFC and RSI of every draw: values [row, layer], counts [draw, row] -> [draw, layer] each."""

    def means(name):
        of, times = values[category == name], counts[:, category == name]
        return divide(times @ np.nan_to_num(of), times @ ~np.isnan(of))

    return indices_of_means(means)


def correct_correlation(draws, index, degree):
    """Pearson's r of two profiles without the noise of their prompts: (r, signal, signal).

    degree   of the polynomial in relative depth that is removed from both first
    signal   the share of the variance of each profile that is no noise of the prompts
    r        NaN where a signal is below MIN_SIGNAL; it can lie beyond -1 and 1
    """
    observed = [x[None] for x in draws.observed[index]]
    aligned = align_profiles(*observed), align_profiles(*draws.resampled[index])
    remover = trend_remover(aligned[0][0].shape[1], degree)
    corrected, whole = [], []
    for i, j in ((0, 1), (0, 0), (1, 1)):
        once, twice = (np.nanmean(((x[i] @ remover) * x[j]).sum(axis=1)) for x in aligned)
        whole.append(once)
        corrected.append(once - draws.n_units / (draws.n_units - 1) * (twice - once))
    signal = divide(np.array(corrected[1:]), np.array(whole[1:]))
    if not (signal >= MIN_SIGNAL).all():
        return np.nan, *signal.tolist()
    return float(corrected[0] / np.sqrt(corrected[1] * corrected[2])), *signal.tolist()
