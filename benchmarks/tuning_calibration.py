"""Does the table of a tuning study say what is true? Simulated studies of planted truth.

A study is shaped like real runs of the bundled model: three arms, five seeds, doses 10 to 100 and
the matched checkpoint. Compliance of the role arm ends at 0.73 to 0.80, of the others at 0.07 to
0.11, counted on 40 questions. Drift ends at 0.15 (role), 0.12 (facts) and 0.60 nats (shuffled) with
a tenth of spread between seeds; matched drift is 5 % off between arms and 2 % between runs. A
signal is its truth, an effect of the seed that grows with the dose, and noise autocorrelated over
doses; both together have a standard deviation of a quarter of the largest effect at the last dose,
times 1 (role), 0.6 (facts) and 1.5 (shuffled). Signals share a half of the variance of their noise.

    compliance               follows compliance alone
    both                     compliance, and drift as much
    drift, sqrt | linear | log   follows drift alone, 0.045 in the shuffled arm
    alike                    all arms change alike at every dose
    noise                    does not change
    profile_role             every arm has a direction of its own over the layers
    profile_alike            all arms share one direction, whose size follows drift

The rows give in how many studies each is called specific, as the declared primary signal and as one
of 36 candidates, and the other verdicts.

    python benchmarks/tuning_calibration.py        under a minute
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
from rolecircuits.stats.signal_table import cannot_decide, judge, signal_table  # noqa: E402
from rolecircuits.stats.tuning_tests import ARMS, gather_runs  # noqa: E402

DOSES = (10, 20, 30, 40, 50, 100)
STEP_0, QUESTIONS, LAYERS = 0.05, 40, 30
LEARNT = {  # compliance at each dose
    "role": (0.15, 0.38, 0.58, 0.68, 0.74, 0.77),
    "facts": (0.05, 0.06, 0.07, 0.08, 0.09, 0.09),
    "shuffled": (0.05, 0.06, 0.07, 0.08, 0.09, 0.09),
}
LAST_DRIFT = {"role": 0.15, "facts": 0.12, "shuffled": 0.60}
GROWTH = (0.10, 0.25, 0.42, 0.56, 0.68, 1.0)  # of drift over the doses, a share of the last
SPREAD = {"role": 1.0, "facts": 0.7, "shuffled": 1.3}
EFFECT, NOISE = 0.045, 0.25
TRUTHS = {
    "compliance": lambda c, d: c / 0.72,
    "both": lambda c, d: c / 0.72 + np.sqrt(d / 0.6),
    "drift, sqrt": lambda c, d: np.sqrt(d / 0.6),
    "drift, linear": lambda c, d: d / 0.6,
    "drift, log": lambda c, d: np.log1p(d / 0.05) / np.log1p(0.6 / 0.05),
    "alike": None,
    "noise": lambda c, d: 0 * d,
}
PROFILES = ("profile_role", "profile_arms", "profile_alike", "profile_noise")
COPIES = 5  # of each truth but the planted ones, so that there are 36 candidates in all


def draw_runs(rng, n_seeds):
    """Compliance and drift of every checkpoint, the matched one last: {arm: [seed, slot] twice}."""
    runs, wanted = {}, min(LAST_DRIFT.values())
    for arm in ARMS:
        size = np.exp(rng.normal(0, 0.1, (n_seeds, 1)))
        drift = LAST_DRIFT[arm] * size * np.array(GROWTH)
        drift = drift * np.exp(rng.normal(0, 0.05, drift.shape))
        off = np.exp(rng.normal(0, 0.05) + rng.normal(0, 0.02, (n_seeds, 1)))
        learnt = np.array(LEARNT[arm]) + rng.normal(0, 0.02, (n_seeds, 1))
        learnt = np.maximum(learnt, STEP_0)
        share = np.minimum(wanted / drift[:, -1:], 1)  # scaled: less of what it learnt
        scaled = STEP_0 + (learnt[:, -1:] - STEP_0) * share
        runs[arm] = np.hstack([learnt, scaled]), np.hstack([drift, wanted * off])
    return runs


def draw_noise(rng, shape, spread, scale):
    """[seed, slot, ...] of standard deviation NOISE * EFFECT * spread at the last dose.

    scale  [seed, 1] of the adapter at matched drift: what a seed changes shrinks with the adapter
    """
    more = [1] * (len(shape) - 2)
    noise = rng.standard_normal(shape)
    for slot in range(1, shape[1]):
        noise[:, slot] = 0.6 * noise[:, slot - 1] + 0.8 * noise[:, slot]
    noise = 0.8 * rng.standard_normal((shape[0], 1, *shape[2:])) + 0.6 * noise
    size = np.hstack([np.tile(np.sqrt(GROWTH), (len(scale), 1)), scale])
    return NOISE * EFFECT * spread * noise * size.reshape(*shape[:2], *more)


def draw_study(rng, n_seeds=5, copies=COPIES):
    """Arrays of a study as checkpoints.npz holds them, and {signal: its truth}."""
    names = {f"{t}_{i}": t for t in TRUTHS for i in range(1 if t == "compliance" else copies)}
    names = dict(list(names.items()))
    runs = draw_runs(rng, n_seeds)
    alike = np.append(np.sqrt(GROWTH), 1.0)
    shapes = rng.standard_normal((len(ARMS) + 1, LAYERS))
    columns = {k: [] for k in ("arm", "seed", "dose", "matched", "drift", "compliance")}
    values, profiles = [], []
    for place, arm in enumerate(ARMS):
        learnt, drift = runs[arm]
        shape = (*drift.shape, len(names))
        scale = np.sqrt(np.minimum(drift[:, -1:] / drift[:, -2:-1], 1))
        noise = np.sqrt(0.5) * draw_noise(rng, (*drift.shape, 1), SPREAD[arm], scale)
        noise = noise + np.sqrt(0.5) * draw_noise(rng, shape, SPREAD[arm], scale)
        truth = [
            np.broadcast_to(alike, drift.shape)
            if TRUTHS[kind] is None
            else TRUTHS[kind](learnt - STEP_0, drift)
            for kind in names.values()
        ]
        values.append(EFFECT * np.stack(truth, axis=-1) + noise)
        size = np.sqrt(drift / 0.6)[..., None]
        directions = {
            "profile_role": size * shapes[-1]
            + ((learnt - STEP_0) / 0.72)[..., None] * shapes[place],
            "profile_arms": size * (shapes[-1] + shapes[place]),
            "profile_alike": size * shapes[-1],
            "profile_noise": 0 * size * shapes[-1],
        }
        own = [
            EFFECT * directions[name]
            + 2 * draw_noise(rng, (*drift.shape, LAYERS), SPREAD[arm], scale)
            for name in PROFILES
        ]
        profiles.append(np.stack(own, axis=2))
        n_slots = drift.shape[1]
        columns["arm"] += [arm] * drift.size
        columns["seed"] += np.repeat(np.arange(n_seeds), n_slots).tolist()
        columns["dose"] += [*DOSES, DOSES[-1]] * n_seeds
        columns["matched"] += ([False] * len(DOSES) + [True]) * n_seeds
        columns["drift"] += drift.ravel().tolist()
        columns["compliance"] += (rng.binomial(QUESTIONS, learnt) / QUESTIONS).ravel().tolist()
    base = {"arm": "base", "seed": -1, "dose": 0, "matched": False, "drift": 0.0}
    base["compliance"] = STEP_0
    arrays = {key: np.array([base[key], *column]) for key, column in columns.items()}
    start = rng.standard_normal((1, len(names))), rng.standard_normal((1, len(PROFILES), LAYERS))
    values = np.concatenate([one.reshape(-1, len(names)) for one in values])
    profiles = np.concatenate([one.reshape(-1, len(PROFILES), LAYERS) for one in profiles])
    arrays["signal"], arrays["value"] = (
        np.array(list(names)),
        start[0] + np.vstack([0 * start[0], values]),
    )
    arrays["profile"] = np.array(PROFILES)
    arrays["profile_value"] = start[1] + np.concatenate([0 * start[1], profiles])
    return arrays, names | {f"projection_{name}": name for name in PROFILES}


def judge_study(rng, n_seeds=5, n_permutations=0):
    """[(truth, verdict as the primary signal, verdict as one of many)] of one simulated study."""
    arrays, names = draw_study(rng, n_seeds)
    study = gather_runs(arrays)
    reason = cannot_decide(study)
    return [
        (names[row["signal"]], judge(row | {"primary": True}, reason), row["verdict"], row)
        for row in signal_table(study, "none of them", n_permutations)
    ]


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("--n_studies", type=positive_int, default=200, help="(default 200)")
    parser.add_argument("--n_seeds", type=positive_int, default=5, help="runs an arm (default 5)")
    parser.add_argument("--seed", type=seed_value, default=0)
    return parser.parse_args(argv)


def run(args):
    rng, alone, among = np.random.default_rng(args.seed), {}, {}
    any_wrong = 0
    import pickle

    allrows = []
    for i in range(args.n_studies):
        rows = judge_study(rng, args.n_seeds)
        allrows.append(rows)
        for truth, first, second, _ in rows:
            alone.setdefault(truth, Counter())[first] += 1
            among.setdefault(truth, Counter())[second] += 1
    pickle.dump(allrows, open("/tmp/b17/h2/rows.pkl", "wb"))
    for truth in alone:
        for w, c in (("primary", alone), ("among", among)):
            n = sum(c[truth].values())
            print(
                f"{truth:20s} {w:8s} "
                + ", ".join(f"{k} {100 * v / n:.1f}%" for k, v in c[truth].most_common())
            )


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
