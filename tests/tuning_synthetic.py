"""Tuning studies made of numbers, for tests and for looking at figures: no model, no training.

make_study(seeds=5)                 Checkpoints whose indices follow drift and not compliance, with
                                    numbers like those of the pilot: the shuffled arm drifts most
save_study(checkpoints, folder)     the same as a complete study folder
"""

from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np

from rolecircuits.runs import files, tuning_results
from rolecircuits.runs.tuning_results import Checkpoints
from rolecircuits.stats import signal_table, tuning_profiles, tuning_tests

ARMS = ("role", "facts", "shuffled")
DOSES = (10, 20, 30, 40, 50, 100)
INDICES = [
    f"{index}_{kind}_{name}"
    for name in ("crossed", "original")
    for index in ("rfc", "rsi")
    for kind in ("normalised", "sinkfree", "raw")
]
DEIXIS = [f"deixis_{kind}" for kind in ("normalised", "sinkfree", "raw")]
OTHERS = [
    *("slot_self_crossed", "slot_difference_crossed", "system_text_original"),
    *("user_text_original", "sink_original", "probe_person", "persona_direction"),
    *("probe_person_nats", "persona_cosine", "self_direction"),
]
MOST_DRIFT = {"role": 0.30, "facts": 0.42, "shuffled": 0.95}  # nats, at the last dose
COMPLIANCE = {"role": 0.77, "facts": 0.03, "shuffled": 0.09}
ERASURE = {
    **{"verdict": "erased", "before": 0.81, "after": 0.27, "chance": 0.25, "null_caught": True},
    "null": {
        "nothing": {"verdict": "not erased", "after": 0.81},
        "permuted labels": {"verdict": "not erased", "after": 0.79},
    },
}
PRIMARY, MODEL = "rfc_normalised_crossed", "synthetic/tiny"


def make_study(arms=ARMS, seeds=5, doses=DOSES, n_layers=30, seed=0, size=1.0):
    """Checkpoints of arms x seeds x doses, one matched checkpoint a run, and step 0.

    size  of drift, compliance and all changes, 1 as in the pilot
    """
    rng = np.random.default_rng(seed)
    places = [("base", -1, 0, False)]
    for arm in arms:
        for run in range(seeds):
            places += [(arm, run, dose, False) for dose in doses]
            places.append((arm, run, doses[-1], True))
    arm, run, dose, matched = (np.array(column) for column in zip(*places, strict=True))
    of_run = {place[:2]: None for place in places}
    of_run = {one: rng.normal(size=(3, max(n_layers, 3))) for one in of_run}
    of_arm = {one: rng.normal(size=n_layers) for one in ("base", *arms)}
    share = np.where(matched, 1.0, 1 - np.exp(-dose / 35)) / (1 - np.exp(-doses[-1] / 35))
    numbers = {name: np.full(len(places), np.nan) for name in tuning_results.BEHAVIOUR}
    profiles = [*INDICES, *DEIXIS]
    value = np.zeros((len(places), len(profiles) + len(OTHERS)))
    profile_value = np.zeros((len(places), len(profiles), n_layers))
    start = 0.1 * rng.normal(size=(len(profiles), n_layers))
    for i, (name, own, _, scaled) in enumerate(places):
        luck = of_run[name, own][0]
        base = name == "base"
        reached = 0.0 if base else float(share[i]) * (1 + 0.08 * luck[0])
        drift = 0.0 if base else (0.25 if scaled else MOST_DRIFT[name] * reached)
        drift *= size * (1 if scaled else 1 + 0.05 * luck[1])
        comply = 0.02 if base else size * COMPLIANCE[name] * min(1.0, reached)
        comply = float(np.clip(comply + 0.02 * rng.normal(), 0, 1))
        numbers["scale"][i] = 0.8 if scaled else 1.0
        numbers["drift"][i], numbers["compliance"][i] = drift, comply
        numbers["choice"][i] = np.clip(0.25 + 0.7 * comply + 0.03 * rng.normal(), 0, 1)
        taught = 0.8 * reached if name == "facts" else 0.01
        numbers["facts"][i] = np.clip(taught + 0.02 * rng.normal(), 0, 1)
        numbers["roleplay"][i] = np.clip(0.7 - 0.6 * drift + 0.04 * rng.normal(), 0, 1)
        numbers["refusal"][i] = np.clip(0.4 - 0.3 * drift + 0.04 * rng.normal(), 0, 1)
        numbers["loss"][i] = np.nan if base or scaled else 3.2 * np.exp(-reached) + 0.3
        for p, profile in enumerate(profiles):
            level = 0.045 * drift * (1 if profile.startswith("rfc") else -0.6)
            level *= 20 if "_raw" in profile else 1
            shape = of_arm[name] + 0.35 * of_run[name, own][2][:n_layers]
            moved = level * (1 + 0.9 * (shape - shape.mean())) + 0.002 * size * reached * luck[2]
            profile_value[i, p] = start[p] + moved + 0.0005 * size * rng.normal(size=n_layers)
            value[i, p] = profile_value[i, p].mean()
        for p in range(len(OTHERS)):
            follows_it = 0.3 * comply if OTHERS[p] == "persona_direction" else 0.05 * drift
            value[i, len(profiles) + p] = 0.2 + follows_it + 0.004 * rng.normal()
    return Checkpoints(
        arm=arm,
        seed=run,
        dose=dose,
        matched=matched,
        signal=np.array(profiles + OTHERS),
        value=value,
        profile=np.array(profiles),
        profile_value=profile_value,
        **numbers,
    )


def make_config(primary=PRIMARY, **more):
    """What study_config.json says before the end."""
    return {
        "schema_version": 2,
        "status": "running",
        "model": {"id": MODEL},
        "prompts": {"format": "chat"},
        "arguments": {"sets": ["original", "crossed", "deixis"]},
        "primary": primary,
    } | more


def layer_rows(checkpoints, facts):
    """Rows of layers.csv of one profile."""
    at = checkpoints.profile.tolist().index(PRIMARY)
    return [
        facts
        | {"set": "crossed", "run": name}
        | {key: getattr(checkpoints, key)[i] for key in ("arm", "seed", "dose", "matched")}
        | {"index": "rfc", "kind": "normalised", "layer": layer, "estimate": value, "null": 0.0}
        for i, name in enumerate(checkpoints.names)
        for layer, value in enumerate(checkpoints.profile_value[i, at])
    ]


def make_count(first, second):
    """A row of layer_counts.csv: as many layers differ between seeds of one arm as between two."""
    n = 12 + len(first) - len(second)
    return {
        **{"arm_first": first, "seed_first": 0, "arm_second": second, "seed_second": 1},
        **{"same_arm": first == second, "index": "rfc", "kind": "normalised", "layers": 30},
        **{"mean_difference": 0.01, "layers_q_below_alpha": n},
    }


def save_study(checkpoints, folder, config=None, signals=None, summary=None):
    """Write a complete study folder; returns its path."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    facts = {"model": MODEL, "set": "original crossed deixis", "format": "chat"}
    named, config = facts | {"run": folder.name}, config or make_config()
    tuning_results.save_checkpoints(folder / "checkpoints.npz", checkpoints)
    files.write_csv(folder / tuning_results.DOSES, tuning_results.dose_rows(checkpoints, facts))
    files.write_csv(folder / tuning_results.LAYERS, layer_rows(checkpoints, facts))
    study = tuning_tests.gather_runs(vars(checkpoints))
    rows = signal_table.contrast_rows(study, [config["primary"]])
    files.write_csv(folder / tuning_results.CONTRASTS, rows, facts=named)
    rows = tuning_profiles.profile_agreement(study)
    files.write_csv(folder / tuning_results.AGREEMENT, rows, facts=named)
    if signals is None:
        signals = signal_table.signal_table(study, config["primary"], n_permutations=19)
    files.write_csv(folder / "signals.csv", signals, facts=named)
    counts = [make_count(*p) for p in combinations_with_replacement(checkpoints.arms, 2)]
    files.write_csv(folder / "layer_counts.csv", counts, facts=named)
    said = {"said": signal_table.describe_power(study), "erasure": ERASURE}
    files.write_json(folder / "summary.json", summary or {"primary": config["primary"]} | said)
    tuning_results.finish_study(folder, config)
    return folder
