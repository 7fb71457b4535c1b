"""Which heads does tuning change in how they treat the model's own role? Two rankings of one pair.

Ours: the contrast self_referent - neutral of instruct - base, taken frame by frame (prompt by
prompt) first, of normalised entropy; heads ranked by |g|, tested by max-T over all heads.

The later version of the public study: prompt pairs (s, n), the i-th self-referent and the i-th
neutral prompt of the set (in a crossed set those are the same sentence), H the mean over the rows
of a prompt of entropy in nats, e = 0.05 median of H_base(s):

    did            median over pairs of (change of H(n) - change of H(s)), change = instruct - base
    did_log_ratio  the same of changes of log(H + e)
    consistency    share of the pairs with the more frequent sign of did
    composite      z(|did_log_ratio|) + z(consistency) + z(-median H_base(s)), z over all heads

> 0: self-referent gains focus. The study writes both differences with the other sign. Its entropies
have an epsilon in the logarithm (1e-8), which moves only heads with next to no entropy.

What the composite does: nothing is tested or held out; raw entropy grows with length, and so do its
changes; its last summand prefers heads that hardly spread their attention, where a ratio is large
for little; a head whose sign is a coin's can come first by size.
"""

import numpy as np

from rolecircuits.inputs.arguments import DEFAULT_SEED
from rolecircuits.inputs.errors import UserError
from rolecircuits.stats.contrasts import CONTRASTS
from rolecircuits.stats.indices import prompt_values
from rolecircuits.stats.moments import divide
from rolecircuits.stats.profile_tests import average_ranks, pearson_r
from rolecircuits.stats.role_tests import contrast_values
from rolecircuits.stats.run_pairs import match_runs
from rolecircuits.stats.units import frame_values

CONTRAST = "self_neutral"
OURS = ("estimate", "low", "high", "g", "g_low", "g_high", "p", "q", "p_max")
STUDY = ("did", "did_log_ratio", "consistency", "base_entropy", "composite")
EPSILON = 0.05  # of the median entropy of a head, as the study adds it


def match_pair(base, instruct):
    """({"base": Run, "instruct": Run} on their common prompts, notes) of --input_dir, --compare."""
    runs, notes = match_runs(base, instruct, ("--input_dir", "--compare"))
    missing = [name for name in CONTRASTS[CONTRAST] if name not in runs["base"].counts]
    if missing:
        raise UserError(
            f"--compare {instruct.path}: heads are compared by {' and '.join(CONTRASTS[CONTRAST])} "
            f"prompts; there is no {missing[0]} prompt (--roles names them)"
        )
    return runs, notes


def list_head_changes(runs, seed=DEFAULT_SEED):
    """Rows of head_changes.csv, one a head, the largest |g| first; runs as `match_pair` gives."""
    ours, study = change_tests(runs, seed), study_scores(runs)
    ranks = {"rank": rank_heads(np.abs(ours["g"])), "study_rank": rank_heads(study["composite"])}
    rows = [
        {name: int(rank[place]) for name, rank in ranks.items()}
        | {"layer": place[0], "head": place[1]}
        | {name: float(ours[name][place]) for name in OURS}
        | {name: float(study[name][place]) for name in STUDY}
        for place in np.ndindex(ours["g"].shape)
    ]
    return sorted(rows, key=lambda row: row["rank"])


def change_tests(runs, seed=DEFAULT_SEED):
    """{measure: [layer, head]} of the contrast of instruct - base, normalised entropy."""
    values = [frame_values(run, prompt_values(run, "normalised")) for run in runs.values()]
    chosen = {CONTRAST: CONTRASTS[CONTRAST]}
    return contrast_values(runs["base"], values[1] - values[0], chosen, seed)[CONTRAST]


def study_scores(runs):
    """{column of STUDY: [layer, head]} as the study's later version ranks heads, see above."""
    category = np.asarray(runs["base"].category)
    rows = [np.flatnonzero(category == name) for name in CONTRASTS[CONTRAST]]
    n_pairs = min(map(len, rows))
    entropy = {side: prompt_values(run, "raw") for side, run in runs.items()}
    base_entropy = np.median(entropy["base"][rows[0]], axis=0)

    def difference(transform):
        """[pair, layer, head]: change of neutral - change of self."""
        own, other = (
            transform(entropy["instruct"][chosen[:n_pairs]])
            - transform(entropy["base"][chosen[:n_pairs]])
            for chosen in rows
        )
        return other - own

    did = difference(lambda values: values)
    with np.errstate(divide="ignore", invalid="ignore"):  # a head without any entropy: undefined
        logs = difference(lambda values: np.log(values + EPSILON * base_entropy))
    found = {"did": np.median(did, axis=0), "did_log_ratio": np.median(logs, axis=0)}
    found["consistency"] = np.maximum((did > 0).mean(axis=0), (did < 0).mean(axis=0))
    parts = (np.abs(found["did_log_ratio"]), found["consistency"], -base_entropy)
    composite = sum(z_scores(part) for part in parts)
    return found | {"base_entropy": base_entropy, "composite": composite}


def z_scores(values):
    """Distance from the mean over all defined heads in standard deviations (ddof 1)."""
    values = np.where(np.isfinite(values), values, np.nan)
    if np.isnan(values).all():
        return values
    return divide(values - np.nanmean(values), np.nanstd(values, ddof=1))


def rank_heads(size):
    """Rank of every head, 1 the largest; undefined heads last: [layer, head] int."""
    order = np.argsort(-np.nan_to_num(size, nan=-np.inf).ravel(), kind="stable")
    ranks = np.empty(size.size, dtype=int)
    ranks[order] = np.arange(1, size.size + 1)
    return ranks.reshape(size.shape)


def compare_rankings(rows, n):
    """(Spearman's r of |g| and composite over the heads that have both, heads first in both)."""
    pairs = np.array([(abs(row["g"]), row["composite"]) for row in rows])
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    both = sum(row["rank"] <= n and row["study_rank"] <= n for row in rows)
    if len(pairs) < 3:
        return float("nan"), both
    return pearson_r(*map(average_ranks, pairs.T)), both
