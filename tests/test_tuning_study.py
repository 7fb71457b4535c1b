"""tuning_study.py on a tiny random model: stopped and continued, scaled to equal drift, refused."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

import tuning_study
from rolecircuits.inputs.errors import RunFailed
from rolecircuits.runs.load import load_run
from rolecircuits.runs.tuning_results import load_study
from tiny_models import save_tiny

pytest.importorskip("peft")
pytest.importorskip("sklearn")
pytest.importorskip("concept_erasure")
from rolecircuits.tuning import study

FEW = ["--seeds", "2", "--doses", "2,4", "--lr", "0.01", "--sets", "original", "crossed"]
FEW += ["--jobs", "1"]
COMPARED = ("checkpoints.npz", "doses.csv", "layers.csv", "layer_counts.csv", "signals.csv")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny("llama", tmp_path_factory.mktemp("study") / "model", hidden_size=64)


def flags(model, folder, *more):
    return ["--model_id", model, "--output_dir", str(folder), *FEW, *more]


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """The folder of an uninterrupted study."""
    folder = tmp_path_factory.mktemp("whole")
    assert tuning_study.main(flags(model, folder)) == 0
    return folder / "latest_study"


def test_a_study_is_whole_and_is_read_again(finished):
    found = load_study(finished)
    points = found.checkpoints
    assert found.config["status"] == "complete"
    assert found.primary == "rfc_normalised_crossed"
    assert points.names[0] == "base"
    assert len(points.arm) == 1 + 3 * 2 * 3
    assert points.drift[points.base] == pytest.approx(0, abs=1e-6)
    tuned = points.arm != "base"
    assert (points.drift[tuned] > 0).all()
    losses = points.loss[points.rows_of("role", 0)]
    assert losses[1] < losses[0]
    for name in points.names:
        assert load_run(finished / name / "crossed").crossed
    assert {path.name for path in (finished / "base").iterdir()} >= {"raw_original", "raw_crossed"}
    assert all((finished / "figures" / f"tuning_{x}.png").is_file() for x in ("main", "signals"))
    assert not list(finished.resolve().rglob("state.safetensors"))


def test_matched_runs_have_the_drift_of_the_one_that_drifted_least(finished):
    points = load_study(finished).checkpoints
    last = points.drift[(points.dose == 4) & ~points.matched]
    assert points.drift[points.matched] == pytest.approx(last.min(), rel=1.5 * study.MATCH_SHARE)
    assert points.scale[points.matched].max() == 1
    assert (points.scale[points.matched] < 1).sum() == 5


def test_a_checkpoints_signals_are_those_of_its_run_folder(finished):
    from rolecircuits.stats.indices import layer_indices

    points = load_study(finished).checkpoints
    run = load_run(finished / "role_1" / "dose_0004" / "crossed")
    expected = layer_indices(run, "sinkfree")["rsi"]
    row = points.rows_of("role", 1)[-1]
    column = points.profile.tolist().index("rsi_sinkfree_crossed")
    assert points.profile_value[row, column] == pytest.approx(expected, abs=1e-12)
    at = points.signal.tolist().index("rsi_sinkfree_crossed")
    assert points.value[row, at] == pytest.approx(expected.mean(), abs=1e-12)


def test_shuffled_runs_begin_as_role_runs_and_learn_other_answers(finished):
    points = load_study(finished).checkpoints
    role, shuffled = (points.rows_of(arm, 0) for arm in ("role", "shuffled"))
    assert (points.value[role] != points.value[shuffled]).any()
    hashes = {
        json.loads((finished / name / "checkpoint.json").read_text()).get("weights_sha256")
        for name in points.names[1:]
    }
    unscaled = (points.scale[points.matched] == 1).sum()  # the last dose itself
    assert len(hashes) == len(points.names) - 1 - unscaled


@pytest.mark.parametrize("stop_after", [0, 3, 11, 16])
def test_stopped_and_continued_it_is_the_same_to_the_last_bit(
    model, finished, tmp_path, monkeypatch, stop_after
):
    real, done = study.Study._measure, []

    def measure(self, *args):
        if len(done) == stop_after:
            raise KeyboardInterrupt
        done.append(args[-1])
        return real(self, *args)

    monkeypatch.setattr(study.Study, "_measure", measure)
    assert tuning_study.main(flags(model, tmp_path)) == 130
    assert not (tmp_path / "latest_study").exists()
    monkeypatch.setattr(study.Study, "_measure", real)
    assert tuning_study.main(flags(model, tmp_path)) == 0
    again = tmp_path / "latest_study"
    assert again.resolve().name == finished.resolve().name
    for name in COMPARED:
        assert (again / name).read_bytes() == (finished / name).read_bytes(), name
    assert not list(tmp_path.rglob(".tmp_*"))


def test_runs_side_by_side_are_those_of_one_after_the_other(model, finished, tmp_path):
    assert tuning_study.main(flags(model, tmp_path, "--jobs", "2")) == 0
    one, other = (load_study(path).checkpoints for path in (finished, tmp_path / "latest_study"))
    assert one.names == other.names
    assert other.drift == pytest.approx(one.drift, rel=1e-3, abs=1e-6)
    assert np.nanmax(np.abs(other.value - one.value)) < 1e-2


def test_what_is_there_is_not_measured_again(model, finished, monkeypatch, capsys):
    monkeypatch.setattr(study.Study, "_measure", lambda *args: pytest.fail("measured again"))
    assert tuning_study.main(flags(model, finished.parent)) == 0
    assert "6 training runs, 19 checkpoints" in capsys.readouterr().out


def test_full_tuning_keeps_hashes_and_no_weights(model, tmp_path):
    few = ["--tuning", "full", "--arms", "role", "--seeds", "1", "--doses", "2", "--lr", "0.001"]
    assert tuning_study.main([*flags(model, tmp_path), *few, "--sets", "crossed"]) == 0
    place = tmp_path / "latest_study" / "role_0"
    config = load_run(place / "dose_0002" / "crossed").config
    assert config["model"]["weights_sha256"] != config["model"].get("base_sha256")
    assert not list(place.rglob("*.safetensors"))
    table = load_study(tmp_path / "latest_study").signals
    assert all("cannot be decided" in row["verdict"] for row in table)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--prompt_format", "raw"], "needs chat"),
        (["--doses", "20,10"], "ascending order"),
        (["--doses", "0"], "ascending order"),
        (["--primary", "no_such_signal"], "no_such_signal"),
        (["--arms", "other"], "invalid choice"),
        (["--data", "no_such_file.jsonl"], "no_such_file.jsonl"),
        (["--targets", "no_such_layer"], "--targets no_such_layer"),
        (["--device_map", "auto"], "--device_map"),
    ],
)
def test_wrong_requests_are_one_line(model, tmp_path, capsys, more, said):
    try:
        code = tuning_study.main([*flags(model, tmp_path), *more])
    except SystemExit as left:  # argparse
        code = left.code
    err = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert said in err[-1]
    assert not list(tmp_path.glob("*/base"))


def test_find_scale_meets_a_drift_that_grows_like_a_square():
    tried = []

    def drift_at(scale):
        tried.append(scale)
        return 0.8 * scale**2.4

    scale = study.find_scale(drift_at, 0.8, 0.1)
    assert 0.8 * scale**2.4 == pytest.approx(0.1, rel=study.MATCH_SHARE)
    assert len(tried) <= 4
    assert study.find_scale(drift_at, 0.8, 0.8) == 1
    with pytest.raises(RunFailed, match="no scale"):
        study.find_scale(lambda scale: math.nan, 0.8, 0.1)


def test_the_folder_is_named_by_what_its_numbers_depend_on(model, tmp_path):
    facts = {"id": model, "revision": None, "weights_sha256": "w", "tokenizer_sha256": "t"}
    facts |= {"config_sha256": "c", "dtype": "float32"}

    def name(*more):
        args = tuning_study.parse_args(flags(model, tmp_path, *more))
        return study.study_name(
            study.describe_study(study.plan_of(args), facts, "d", args.seed, None)
        )

    assert name() == name("--output_dir", str(Path("elsewhere")), "--date", "2020-01-01")
    others = [
        name("--seed", "1"),
        name("--lr", "0.02"),
        name("--doses", "2"),
        name("--arms", "role"),
    ]
    assert len({name(), *others}) == 5
    assert np.unique([len(x) for x in others]).tolist() == [14]
