"""Probes, erasure and directions on activations in which it is known what there is to find."""

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from conftest import PROJECT
from rolecircuits.capture.tokens import TokenizedPrompt
from rolecircuits.inputs.categories import CATEGORIES
from rolecircuits.inputs.errors import RunFailed, UserError
from rolecircuits.tuning.directions import (
    persona_direction,
    persona_shift,
    self_direction,
    self_separation,
)
from rolecircuits.tuning.folds import fold_of, permute_within

WHY = "probes need requirements-tuning.txt"
pytest.importorskip("sklearn", reason=WHY)
pytest.importorskip("concept_erasure", reason=WHY)

from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402

from rolecircuits.tuning import probes, residual_signals  # noqa: E402

UNITS = 40


def crossed(n_frames=18, fillers=1):
    """(labels, frames) [prompt] of a crossed set without texts."""
    cells = [
        (person, f"frame {i}")
        for i in range(n_frames)
        for _ in range(fillers)
        for person in CATEGORIES
    ]
    labels, frames = zip(*cells, strict=True)
    return np.array(labels), np.array(frames)


def activations(labels, frames, strength, seed=0, per_frame=False):
    """[prompt, layer, unit] float32: every frame has its own place, every person, where strength
    [layer] is not 0, its own direction; per_frame: another direction in every frame.
    """
    random = np.random.default_rng(seed)
    names, place = np.unique(frames, return_inverse=True)
    persons, person = np.unique(labels, return_inverse=True)
    shape = (len(strength), UNITS)
    of_frame = random.normal(size=(len(names), *shape)) * 2
    of_person = random.normal(size=(len(names), len(persons), *shape))
    own = of_person[place if per_frame else 0, person]
    noise = random.normal(size=(len(labels), *shape))
    values = of_frame[place] + own * np.array(strength)[:, None] + noise
    return values.astype(np.float32)


def test_a_planted_person_is_found_in_its_layers_only():
    labels, frames = crossed()
    found = probes.probe_layers(activations(labels, frames, [0, 3, 0, 3]), labels, frames)
    assert found.chance == 0.25
    assert (found.accuracy_profile[[1, 3]] > 0.9).all() and (found.nats_profile[[1, 3]] > 0.7).all()
    assert (found.accuracy_profile[[0, 2]] < 0.45).all() and (found.nats_profile[[0, 2]] < 0).all()
    assert (found.nats_profile < np.log(4)).all()


def test_nats_still_move_where_accuracy_is_at_its_ceiling():
    labels, frames = crossed()
    weak, strong = (
        probes.probe_layers(activations(labels, frames, [by]), labels, frames) for by in (4, 8)
    )
    assert weak.accuracy == strong.accuracy == 1
    assert strong.nats_profile[0] > weak.nats_profile[0] + 0.01


def test_without_a_person_accuracy_is_at_chance():
    labels, frames = crossed()
    values = activations(labels, frames, [0] * 20)
    found = probes.probe_layers(values, labels, frames)
    assert abs(found.accuracy - 0.25) < 0.04
    assert not found.above_chance()
    told = activations(labels, frames, [3] * 4)
    shuffled = np.mean(
        [
            probes.probe_layers(told, permute_within(labels, frames, seed), frames).accuracy
            for seed in range(4)
        ]
    )
    assert abs(shuffled - 0.25) < 0.06


def test_what_fillers_of_one_frame_share_does_not_help():
    """The person has another direction in every frame: known only to who has seen the frame."""
    labels, frames = crossed(fillers=3)
    values = activations(labels, frames, [3, 3], per_frame=True)
    cells = np.array([f"{frame}, filler {i // 4 % 3}" for i, frame in enumerate(frames)])
    leaking = probes.probe_layers(values, labels, cells)
    honest = probes.probe_layers(values, labels, frames)
    assert leaking.accuracy > 0.5 and leaking.above_chance()
    assert honest.accuracy < 0.35 and not honest.above_chance()


def test_frames_stay_together_and_every_fold_is_asked():
    _, frames = crossed(7, fillers=2)
    folds = fold_of(frames)
    assert {len(set(folds[frames == frame])) for frame in frames} == {1}
    assert set(folds) == set(range(6)) and list(fold_of(["a", "b", "a"])) == [0, 1, 0]
    for wrong in (["a", "a"], ["a", "", "b"]):
        with pytest.raises(UserError, match="at least 2 frames"):
            fold_of(wrong)


def test_labels_are_shuffled_within_frames():
    labels, frames = crossed(fillers=2)
    shuffled = permute_within(labels, frames, seed=3)
    assert (shuffled != labels).any()
    for frame in set(frames):
        assert sorted(shuffled[frames == frame]) == sorted(labels[frames == frame])
    assert (shuffled == permute_within(labels, frames, seed=3)).all()


def test_the_probe_is_that_of_all_standardised_units():
    labels, frames = crossed()
    values = activations(labels, frames, [2])
    found, folds = probes.probe_layers(values, labels, frames), fold_of(frames)
    train, test = folds != 2, folds == 2
    scaler = StandardScaler().fit(values[train, 0].astype(float))
    probe = LogisticRegression(C=probes.STRENGTH / UNITS, tol=1e-8, max_iter=5000)
    probe.fit(scaler.transform(values[train, 0]), labels[train])
    logs = probe.predict_log_proba(scaler.transform(values[test, 0]))
    own = logs[np.arange(test.sum()), np.searchsorted(probe.classes_, labels[test])]
    np.testing.assert_allclose(found.nats[test, 0], np.log(4) + own, atol=5e-3)


def test_layers_that_were_not_read_are_left_out():
    labels, frames = crossed()
    values = activations(labels, frames, [3, 3])
    values[:, 1] = np.nan
    found = probes.probe_layers(values, labels, frames)
    assert np.isnan(found.accuracy_profile[1]) and found.accuracy == found.accuracy_profile[0]
    assert found.above_chance()


def test_constant_activations_tell_nothing():
    labels, frames = crossed()
    found = probes.probe_layers(np.ones((len(labels), 1, 5), np.float32), labels, frames)
    assert found.accuracy == 0.25 and abs(found.nats_profile[0]) < 1e-6


def test_a_set_that_is_not_crossed_is_refused():
    labels, frames = crossed(4)
    one = np.where(frames == "frame 0", labels, "neutral")
    with pytest.raises(UserError, match="every category in every frame"):
        probes.probe_layers(np.ones((len(labels), 1, 5)), one, frames)


def test_leace_erases_a_planted_person():
    labels, frames = crossed()
    found = probes.check_erasure(activations(labels, frames, [3, 3, 3]), labels, frames)
    assert found["verdict"] == probes.ERASED and found["before"] > 0.9
    assert abs(found["after"] - 0.25) < 0.02
    assert found["fresh"] < found["fresh_before"] - 0.3


@pytest.mark.parametrize("eraser", [probes.fit_nothing, probes.fit_permuted])
def test_an_erasure_that_erases_nothing_is_caught(eraser):
    labels, frames = crossed()
    values = activations(labels, frames, [3, 3, 3])
    found = probes.check_erasure(values, labels, frames, eraser)
    assert found["verdict"] == probes.NOT_ERASED and found["after"] > 0.7
    assert found["fresh"] > 0.6


@pytest.mark.parametrize(
    ("strength", "verdict", "null", "caught"),
    [(3, probes.ERASED, probes.NOT_ERASED, True), (0, probes.NOTHING, probes.NOTHING, None)],
)
def test_an_erasure_is_kept_beside_those_that_must_fail(strength, verdict, null, caught):
    labels, frames = crossed()
    values = activations(labels, frames, [strength] * 6)
    prompts = [SimpleNamespace(category=c, frame=f) for c, f in zip(labels, frames, strict=True)]
    found = residual_signals.erasure_of(values, prompts)
    assert found["verdict"] == verdict and found["null_caught"] is caught
    assert {own["verdict"] for own in found["null"].values()} == {null}
    assert found["null"]["nothing"]["after"] == found["before"]
    assert found["null"]["permuted labels"]["after"] != found["before"]


def test_a_check_that_calls_everything_erased_is_not_trusted(monkeypatch):
    labels, frames = crossed(12)
    monkeypatch.setattr(residual_signals, "fit_nothing", probes.fit_leace)
    prompts = [SimpleNamespace(category=c, frame=f) for c, f in zip(labels, frames, strict=True)]
    found = residual_signals.erasure_of(activations(labels, frames, [3]), prompts)
    assert found["verdict"] == probes.ERASED and found["null_caught"] is False


def test_both_sides_are_erased_and_only_training_frames_are_fitted_on():
    labels, frames = crossed(12)
    seen = []

    def eraser(features, codes, own):
        seen.append((len(features), len(codes), len(set(own))))
        return lambda values: seen.append(len(values)) or values * 0

    found = probes.probe_layers(activations(labels, frames, [3]), labels, frames, eraser)
    assert seen == [(40, 40, 10), 40, 8] * 6
    assert found.accuracy == 0.25


def test_nothing_to_erase_is_no_success():
    labels, frames = crossed()
    values = activations(labels, frames, [0] * 6)
    assert probes.check_erasure(values, labels, frames)["verdict"] == probes.NOTHING


def test_few_of_many_empty_sets_are_called_above_chance():
    labels, frames = crossed(12)
    above = sum(
        probes.probe_layers(activations(labels, frames, [0], seed), labels, frames).above_chance()
        for seed in range(60)
    )
    assert above <= 3  # 0.6 expected


def texts_of(n=8, seed=0):
    """(under personas, under other texts, default) [prompt, layer, unit]; axis 0 is the persona's,
    axis 1 is what every text does.
    """
    random = np.random.default_rng(seed)
    default = random.normal(size=(n, 2, 6))
    step = np.zeros((2, 2, 6))
    step[0, :, :2], step[1, :, 1] = (3, 2), 5
    return default + step[0], default + step[1], default


def test_the_persona_direction_is_what_other_texts_do_not_do():
    personas, others, default = texts_of()
    found = persona_direction(personas, others, default)
    np.testing.assert_allclose(found.unit, np.eye(6)[[0, 0]], atol=1e-12)
    np.testing.assert_allclose(found.reach * found.spread, 3)
    np.testing.assert_allclose(found.spread, default[:, :, 0].std(axis=0, ddof=1))
    np.testing.assert_allclose(persona_shift(others, found), 0, atol=1e-12)


def test_shift_and_cosine_by_hand():
    personas, others, default = texts_of()
    found = persona_direction(personas, others, default)
    moved = default + np.array([6.0, 0, 8, 0, 0, 0])
    shift, cosine = persona_shift(moved, found)
    np.testing.assert_allclose(shift, 6 / found.spread)
    np.testing.assert_allclose(cosine, 0.6)
    twice, same = persona_shift(default + 2 * (moved - default), found)
    np.testing.assert_allclose(twice, 2 * shift)
    np.testing.assert_allclose(same, cosine)
    np.testing.assert_array_equal(persona_shift(default, found), 0)


def test_self_direction_follows_a_planted_change():
    labels, frames = crossed()
    values = activations(labels, frames, [2, 2])
    found = self_direction(values, labels, frames)
    np.testing.assert_array_equal(self_separation(values, labels, frames, found), 0)
    difference = values[labels == "self_referent"].mean(0) - values[labels == "third_person"].mean(
        0
    )
    own, other = labels == "self_referent", labels == "third_person"
    for by in (0.5, -0.5):
        moved = values.astype(float)
        moved[own] += by / 2 * difference
        moved[other] -= by / 2 * difference
        change = self_separation(moved, labels, frames, found) * found.spread
        np.testing.assert_allclose(change, by * found.separation, rtol=0.2)


def test_noise_is_not_taken_for_separation():
    """Along its own direction a frame would be far apart by chance, and less so ever after."""
    labels, frames = crossed()
    found = self_direction(activations(labels, frames, [0] * 60), labels, frames)
    assert abs((found.separation / found.spread).mean()) < 0.25


def fake_prompts(labels, frames):
    return [
        TokenizedPrompt(f"p{i}", label, -1, "", "", [i], [], (0, 1), frame)
        for i, (label, frame) in enumerate(zip(labels, frames, strict=True))
    ]


def study(tmp_path):
    """(values, default, crossed prompts, neutral prompts, reference as it is read again)."""
    labels, frames = crossed()
    values = activations(labels, frames, [2, 2])
    personas, others, default = (np.tile(part, (1, 1, 7))[..., :UNITS] for part in texts_of())
    prompts = fake_prompts(labels, frames)
    neutral = fake_prompts(["neutral"] * len(default), [""] * len(default))
    made = residual_signals.reference_of(values, default, (personas, others), prompts, neutral)
    residual_signals.write_reference(tmp_path / "reference.npz", made)
    read = residual_signals.read_reference(tmp_path / "reference.npz")
    for name in residual_signals.REFERENCE:
        np.testing.assert_array_equal(read[name], made[name])
    return values, default, prompts, neutral, read


def test_step_0_is_at_0_and_repeats_exactly(tmp_path):
    values, default, prompts, neutral, reference = study(tmp_path)
    found = residual_signals.signals_of(values, default, prompts, neutral, reference)
    again = residual_signals.signals_of(values, default, prompts, neutral, reference)
    assert tuple(found["signals"]) == residual_signals.SIGNALS == tuple(found["profiles"])
    assert found["signals"] == again["signals"]
    for name in ("persona_direction", "persona_cosine", "self_direction"):
        np.testing.assert_array_equal(found["profiles"][name], 0)
    np.testing.assert_array_equal(found["profiles"]["probe_person"], reference["probe_accuracy"])
    assert found["signals"]["probe_person"] == found["profiles"]["probe_person"].mean()


def test_a_checkpoint_moves_its_signals(tmp_path):
    values, default, prompts, neutral, reference = study(tmp_path)
    moved = default + 4 * reference["persona_unit"] * reference["persona_spread"][:, None]
    values[:, 1] = np.nan  # not read: left out of the mean
    found = residual_signals.signals_of(values, moved, prompts, neutral, reference)
    np.testing.assert_allclose(found["profiles"]["persona_direction"], 4)
    np.testing.assert_allclose(found["profiles"]["persona_cosine"], 1)
    assert found["signals"]["self_direction"] == 0
    assert np.isnan(found["profiles"]["self_direction"][1])


def test_a_reference_of_something_else_is_refused(tmp_path):
    values, default, prompts, neutral, reference = study(tmp_path)
    others = [replace(prompts[0], id="other"), *prompts[1:]]
    with pytest.raises(RunFailed, match="other crossed prompts"):
        residual_signals.signals_of(values, default, others, neutral, reference)
    with pytest.raises(RunFailed, match="other neutral prompts"):
        residual_signals.signals_of(values, default, prompts, neutral[1:], reference)
    with pytest.raises(RunFailed, match="layers and units"):
        residual_signals.signals_of(values[:, :1], default, prompts, neutral, reference)


def test_a_missing_package_is_one_line():
    code = (
        "import sys\n"
        "from rolecircuits.inputs.errors import UserError\n"
        "for missing in ('sklearn', 'concept_erasure'):\n"
        "    sys.modules[missing] = None\n"
        "    try:\n        import rolecircuits.tuning.probes\n"
        "    except UserError as error:\n        print(error)\n"
        "    del sys.modules[missing]"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    for line, missing in zip(lines, ("sklearn", "concept_erasure"), strict=True):
        assert missing in line
        assert "pip install -r requirements-tuning.txt -c constraints.txt" in line
