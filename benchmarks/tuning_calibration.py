"""Does the table of a tuning study say what is true? Simulated studies of planted truth.

A study is shaped like real runs of the bundled model: three arms, five seeds, doses 10 to 100 and
the matched checkpoint. Compliance of the role arm ends at about 0.77, of the others at 0.09 (step
0: 0.05), counted on 40 questions. Drift ends at 0.15 (role), 0.12 (facts) and 0.60 nats (shuffled),
with a tenth of spread between seeds; matched drift is 5 % off between arms and 2 % between runs. A
signal is its truth, an effect of the seed and noise that is autocorrelated over doses. Both
together have a standard deviation of a quarter of the largest effect at the last dose, times 1.0
(role), 0.7 (facts) and 1.3 (shuffled); signals share half of its variance, and it shrinks with the
adapter where that is scaled. Planted truths:

    compliance     follows compliance alone
    both           compliance and sqrt(drift), each as much
    drift, ...     follows drift alone: its root, itself, its logarithm; 0.045 in the shuffled arm
    alike          all arms change alike at every dose
    noise          does not change
    profile_role   projection: arms share a direction over layers whose size follows drift, and each
                   has one of its own that grows with compliance
    profile_arms   that one follows drift, too: it tells arms apart from dose 10 on
    profile_alike  arms share the direction alone; profile_noise: no direction

Printed: how often each is called specific, as the primary signal and as one of 35 candidates, what
it is called else, how often compliance adds to drift (p of the gain below 0.05, twenty studies and
more), and in how many studies any signal of the second part is called specific wrongly.

    python benchmarks/tuning_calibration.py        half a minute
"""

import os
import sys
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402  (the modules lie one folder up)

from rolecircuits.inputs.arguments import positive_int, seed_value  # noqa: E402
from rolecircuits.inputs.parser import Parser, run_script  # noqa: E402
from rolecircuits.stats.signal_table import SPECIFIC, cannot_decide, judge, signal_table  # noqa: E402
from rolecircuits.stats.tuning_profiles import PROJECTION  # noqa: E402
from rolecircuits.stats.tuning_tests import ARMS, gather_runs, smallest_difference, smallest_p  # noqa: E402

DOSES = (10, 20, 30, 40, 50, 100)
STEP_0, QUESTIONS, LAYERS = 0.05, 40, 30
LEARNT = {  # compliance at each dose
    "role": (0.15, 0.38, 0.58, 0.68, 0.74, 0.77),
    "facts": (0.05, 0.06, 0.07, 0.08, 0.09, 0.09),
    "shuffled": (0.05, 0.06, 0.07, 0.08, 0.09, 0.09),
}
LAST_DRIFT = {"role": 0.15, "facts": 0.12, "shuffled": 0.60}
GROWTH = np.array((0.10, 0.25, 0.42, 0.56, 0.68, 1.0))  # of drift over the doses
SPREAD = {"role": 1.0, "facts": 0.7, "shuffled": 1.3}
EFFECT, NOISE, COPIES = 0.045, 0.25, 5
GAIN, LARGEST = 0.72, 0.60  # what the role arm learns; the largest drift
TRUTHS = {  # of what was learnt, of drift, and of the dose's share
    "compliance": lambda learnt, drift, dose: learnt / GAIN,
    "both": lambda learnt, drift, dose: learnt / GAIN + np.sqrt(drift / LARGEST),
    "drift, root": lambda learnt, drift, dose: np.sqrt(drift / LARGEST),
    "drift, itself": lambda learnt, drift, dose: drift / LARGEST,
    "drift, log": lambda learnt, drift, dose: np.log1p(20 * drift) / np.log1p(20 * LARGEST),
    "alike": lambda learnt, drift, dose: np.sqrt(dose),
    "noise": lambda learnt, drift, dose: 0 * drift,
}
PROFILES = ("profile_role", "profile_arms", "profile_alike", "profile_noise")
RIGHT = ("compliance", "both", "profile_role", "profile_arms")  # may be called specific
FEW = 10  # every so many studies the gain is tested by permutation, which takes most of the time


def draw_runs(rng, arm, n_seeds):
    """Compliance and drift [seed, slot] of an arm's checkpoints, the matched one last."""
    wanted = min(LAST_DRIFT.values())
    drift = LAST_DRIFT[arm] * np.exp(rng.normal(0, 0.1, (n_seeds, 1))) * GROWTH
    drift = drift * np.exp(rng.normal(0, 0.05, drift.shape))
    off = np.exp(rng.normal(0, 0.05) + rng.normal(0, 0.02, (n_seeds, 1)))
    learnt = np.maximum(LEARNT[arm] + rng.normal(0, 0.02, (n_seeds, 1)), STEP_0)
    share = np.minimum(wanted / drift[:, -1:], 1)  # a scaled adapter holds less of what was learnt
    scaled = STEP_0 + (learnt[:, -1:] - STEP_0) * share
    return np.hstack([learnt, scaled]), np.hstack([drift, wanted * off])


def draw_noise(rng, size, n, spread):
    """[seed, slot, n]; standard deviation NOISE * EFFECT * spread * size [seed, slot]."""
    noise = rng.standard_normal((*size.shape, n))
    for slot in range(1, size.shape[1]):
        noise[:, slot] = 0.6 * noise[:, slot - 1] + 0.8 * noise[:, slot]
    noise = 0.8 * rng.standard_normal((len(size), 1, n)) + 0.6 * noise
    return NOISE * EFFECT * spread * noise * size[:, :, None]


def draw_study(rng, n_seeds=5, copies=COPIES):
    """(arrays of a study as checkpoints.npz holds them, {candidate: its truth})."""
    names = {f"{t}_{i}": t for t in TRUTHS for i in range(1 if t == "compliance" else copies)}
    common, *own = rng.standard_normal((1 + len(ARMS), LAYERS))
    rows = {key: [] for key in ("arm", "seed", "dose", "matched", "drift", "compliance")}
    values, profiles = [np.zeros((1, len(names)))], [np.zeros((1, len(PROFILES), LAYERS))]
    for arm, direction in zip(ARMS, own, strict=True):
        learnt, drift = draw_runs(rng, arm, n_seeds)
        scale = np.sqrt(np.minimum(drift[:, -1] / drift[:, -2], 1))
        dose = np.column_stack([np.tile(GROWTH, (n_seeds, 1)), scale**2])
        size, gained = np.sqrt(dose), learnt - STEP_0
        noise = draw_noise(rng, size, 1, SPREAD[arm]) + draw_noise(
            rng, size, len(names), SPREAD[arm]
        )
        truth = [TRUTHS[kind](gained, drift, dose) for kind in names.values()]
        values.append(
            (EFFECT * np.stack(truth, axis=-1) + noise / np.sqrt(2)).reshape(-1, len(names))
        )
        far, near = (x[:, :, None] for x in (np.sqrt(drift / LARGEST), gained / GAIN))
        shapes = (
            *(far * common + near * direction, far * (common + direction)),
            *(far * common, 0 * far * common),
        )
        noisy = [EFFECT * x + 2 * draw_noise(rng, size, LAYERS, SPREAD[arm]) for x in shapes]
        profiles.append(np.stack(noisy, axis=2).reshape(-1, len(PROFILES), LAYERS))
        rows["arm"] += [arm] * drift.size
        rows["seed"] += np.repeat(np.arange(n_seeds), drift.shape[1]).tolist()
        rows["dose"] += [*DOSES, DOSES[-1]] * n_seeds
        rows["matched"] += ([False] * len(DOSES) + [True]) * n_seeds
        rows["drift"] += drift.ravel().tolist()
        rows["compliance"] += (rng.binomial(QUESTIONS, learnt) / QUESTIONS).ravel().tolist()
    base = {"arm": "base", "seed": -1, "dose": 0, "matched": False, "drift": 0.0}
    base["compliance"] = STEP_0
    arrays = {key: np.array([base[key], *column]) for key, column in rows.items()}
    for key, found in (("value", values), ("profile_value", profiles)):
        found = np.concatenate(found)
        arrays[key] = found + rng.standard_normal((1, *found.shape[1:]))  # step 0 is not at 0
    arrays |= {"signal": np.array(list(names)), "profile": np.array(PROFILES)}
    return arrays, names | {PROJECTION + name: name for name in PROFILES}


def judge_study(rng, n_seeds=5, n_permutations=0):
    """Rows (truth, verdict as the primary signal, verdict as one of many, p of the gain)."""
    arrays, names = draw_study(rng, n_seeds)
    study = gather_runs(arrays)
    reason = cannot_decide(study)
    return [
        (
            *(names[row["signal"]], judge(row | {"primary": True}, reason), row["verdict"]),
            row["gain_p"] if n_permutations else np.nan,
        )
        for row in signal_table(study, None, n_permutations)
    ]


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("--n_studies", type=positive_int, default=300, help="(default 300)")
    parser.add_argument("--n_seeds", type=positive_int, default=5, help="runs an arm (default 5)")
    parser.add_argument("--seed", type=seed_value, default=0)
    return parser.parse_args(argv)


def run(args):
    n, rng = args.n_seeds, np.random.default_rng(args.seed)
    alone, among, gains, wrong = {}, {}, {}, 0
    for number in range(args.n_studies):
        rows = judge_study(rng, n, 199 if number % FEW == 0 else 0)
        for truth, first, second, gain_p in rows:
            alone.setdefault(truth, Counter())[first] += 1
            among.setdefault(truth, Counter())[second] += 1
            gains.setdefault(truth, []).append(gain_p)
        wrong += any(r[2] == SPECIFIC for r in rows if r[0] not in RIGHT)
    print(
        f"{n} against {n} runs: smallest p {smallest_p(n, n):.4f}; 80 % power for a difference of"
    )
    one, both = smallest_difference((n, n)), smallest_difference((n, n, n))
    print(f"{one:.2f} standard deviations between runs, {both:.2f} against both controls")
    print(f"{'specific, % of studies':24s} primary  among  gain p < 0.05  else, as one of many")
    for truth, counts in among.items():
        total = sum(counts.values())
        shares = (100 * c[SPECIFIC] / total for c in (alone[truth], counts))
        tested = [p < 0.05 for p in gains[truth] if p == p]
        gain = f"{100 * np.mean(tested):.1f}" if tested else "-"
        rest = [f"{k} {100 * v / total:.0f}" for k, v in counts.most_common() if k != SPECIFIC]
        print("{:24s} {:7.1f} {:6.1f} {:>14s}  {}".format(truth, *shares, gain, ", ".join(rest)))
    print(f"any wrongly called specific among many: {100 * wrong / args.n_studies:.1f} %")


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
