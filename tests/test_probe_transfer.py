"""probe_transfer.py: what transfers between two models is told from what is special about each
sentence, and from where a model keeps its activations."""

import csv
import json

import numpy as np
import pytest

WHY = "probes need requirements-tuning.txt"
pytest.importorskip("sklearn", reason=WHY)
pytest.importorskip("concept_erasure", reason=WHY)

import probe_transfer  # noqa: E402
from rolecircuits.inputs.categories import CATEGORIES  # noqa: E402
from rolecircuits.tuning import transfer  # noqa: E402
from tiny_models import save_tiny  # noqa: E402

N_FRAMES, UNITS = 16, 24
LABELS = np.array([person for _ in range(N_FRAMES) for person in CATEGORIES])
FRAMES = np.array([f"frame {i}" for i in range(N_FRAMES) for _ in CATEGORIES])
WITHIN = [("base", "base", False), ("instruct", "instruct", False)]
ACROSS = [("base", "instruct", False), ("instruct", "base", False)]
CENTRED = [("base", "instruct", True), ("instruct", "base", True)]


def directions(seed, per_frame=False):
    """[prompt, unit] a direction of length 5 a person, or one a person and frame."""
    draws = np.random.default_rng(seed).normal(size=(N_FRAMES, len(CATEGORIES), UNITS))
    draws *= 5 / np.linalg.norm(draws, axis=-1, keepdims=True)
    draws -= draws.mean(axis=1, keepdims=True)
    person = np.array([CATEGORIES.index(label) for label in LABELS])
    frame = np.repeat(np.arange(N_FRAMES), len(CATEGORIES))
    return draws[frame if per_frame else 0, person]


def values(own, seed, offset=0.0):
    """[prompt, layer, unit] of one layer."""
    noise = np.random.default_rng(seed).normal(size=(len(LABELS), UNITS))
    return (own + 0.5 * noise + offset)[:, None].astype(np.float32)


def accuracies(base, instruct):
    """{way: accuracy}"""
    return {
        way: p.accuracy for way, p in transfer.probe_pair(base, instruct, LABELS, FRAMES).items()
    }


def test_a_shared_direction_transfers_both_ways():
    own = directions(0)
    found = accuracies(values(own, 1), values(own, 2))
    assert list(found) == list(transfer.WAYS) and min(found.values()) > 0.95


def test_another_direction_is_found_in_each_model_and_does_not_transfer():
    found = accuracies(values(directions(0), 1), values(directions(5), 2))
    assert min(found[way] for way in WITHIN) > 0.95
    assert max(found[way] for way in ACROSS + CENTRED) < 0.7


def test_a_shared_direction_in_another_place_transfers_when_centred():
    """The offset is along one person's direction: as it is, the probe names that one always."""
    own = directions(0)
    offset = 8 * own[0] / np.linalg.norm(own[0])
    found = accuracies(values(own, 1), values(own, 2, offset))
    assert min(found[way] for way in WITHIN) > 0.95
    assert found["base", "instruct", False] < 0.6
    assert min(found[way] for way in CENTRED) > 0.95


def test_what_is_special_about_each_sentence_does_not_transfer():
    """The same prompts asked in the other model would be named by their own words."""
    own = directions(0, per_frame=True)
    base, instruct = values(own, 1), values(own, 2)
    found = accuracies(base, instruct)
    assert max(found.values()) < 0.45
    cells = np.array([f"{i}" for i in range(len(LABELS))])
    own_words = base[:, 0] @ instruct[:, 0].T
    assert (own_words.argmax(axis=1) == np.arange(len(cells))).mean() > 0.95


def test_rows_have_null_interval_and_corrected_tests():
    own = directions(0)
    base, instruct = (
        np.concatenate([values(own, seed), values(0 * own, seed + 9)], axis=1) for seed in (1, 2)
    )
    probed = transfer.probe_pair(base, instruct, LABELS, FRAMES)
    rows, summary = transfer.list_transfer(probed)
    assert len(rows) == 2 * len(transfer.WAYS) and len(summary) == len(transfer.WAYS)
    for row in rows:
        assert row["null"] == 0.25 and row["frames"] == N_FRAMES
        if not np.isnan(row["low"]):
            assert 0 <= row["low"] <= row["estimate"] <= row["high"] <= 1
        if row["layer"] == 0:
            assert not row["low"] <= 0.25 and row["p_max"] < 0.05 and row["nats"] > 0.5
        else:
            assert row["p_max"] > 0.005 and row["nats"] < 0.2 and row["estimate"] < 0.45
    for row in summary:
        assert (row["above"], row["layers"], row["best_layer"]) == (1, 2, 0)
        both = [r["estimate"] for r in rows if all(r[k] == row[k] for k in WAY)]
        assert row["estimate"] == pytest.approx(np.mean(both))


WAY = ("trained", "asked", "centred")


def test_layers_without_any_spread_are_tested_by_their_signs():
    """16 frames, every prompt named: p = 2 / 2^16. At the null everywhere: p = 1."""
    rng = np.random.default_rng(0)
    some = 0.25 + 0.25 * rng.integers(-1, 2, size=N_FRAMES)
    correct = np.stack([np.ones(N_FRAMES), np.full(N_FRAMES, 0.25), some], axis=1)
    found = transfer.infer_accuracy(correct, 0.25, 1)
    np.testing.assert_allclose(found["p"][:2], [2.0**-15, 1])
    np.testing.assert_allclose(found["p_max"][:2], [2 * 3 * 2.0**-15, 1])
    assert found["estimate"][0] == 1 and np.isnan([found["low"][0], found["high"][0]]).all()
    alone = transfer.infer_accuracy(correct[:, 2:], 0.25, 1)
    for name in ("estimate", "low", "high", "p"):
        assert found[name][2] == alone[name][0], name
    assert found["p_max"][2] == min(1, 2 * alone["p_max"][0])  # two families
    few = transfer.infer_accuracy(correct[:4], 0.25, 1)
    assert np.isnan(few["p"]).all() and np.isnan(few["p_max"]).all()


def test_two_models_are_probed_and_written(tmp_path, capsys):
    pair = [save_tiny("llama", tmp_path / name) for name in ("base", "instruct")]
    out = tmp_path / "out"
    arguments = ["--base_id", pair[0], "--instruct_id", pair[1], "--prompts_per_category", "12"]
    assert probe_transfer.main([*arguments, "--output_dir", str(out)]) == 0
    with open(out / "probe_transfer.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 * 3 and {row["set"] for row in rows} == {"crossed"}
    first = {tuple(row[k] for k in WAY): row["estimate"] for row in rows if row["layer"] == "2"}
    assert len(set(first.values())) == 1  # the same model twice: every way is one
    described = json.loads((out / "probe_transfer.json").read_text(encoding="utf-8"))
    assert described["frames"] == 12 and len(described["summary"]) == 6
    said = capsys.readouterr().out
    assert max(len(line) for line in said.splitlines() if "->" not in line) <= 80
    assert "12 frames, each held out once" in " ".join(said.split())


def test_models_of_other_sizes_and_sets_without_frames_are_refused(tmp_path, capsys):
    base = save_tiny("llama", tmp_path / "base")
    other = save_tiny("llama", tmp_path / "other", num_hidden_layers=2)
    few = ["--prompts_per_category", "3", "--output_dir", str(tmp_path / "out")]
    assert probe_transfer.main(["--base_id", base, "--instruct_id", other, *few]) == 2
    assert "has 2 layers of 32 units, base has 3" in capsys.readouterr().err
    original = ["--base_id", "x", "--instruct_id", "y", "--prompts", "original"]
    assert probe_transfer.main([*original, *few]) == 2
    assert "they need a crossed set" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
