"""tuning_study.py on a tiny random model: stopped and continued, scaled to equal drift, refused."""

import csv
import json
import math
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import tuning_study
from rolecircuits.drawing import tuning_figures
from rolecircuits.inputs.errors import RunFailed, UserError
from rolecircuits.inputs.tuning_data import read_examples
from rolecircuits.runs.load import load_run
from rolecircuits.runs.npz import read_npz
from rolecircuits.runs.tuning_results import load_study
from test_columns import pattern_of, read_dictionary
from tiny_models import save_tiny

pytest.importorskip("peft")
pytest.importorskip("sklearn")
pytest.importorskip("concept_erasure")
from rolecircuits.tuning import behaviour, outcome, study, train

FEW = ["--seeds", "2", "--doses", "2,4", "--lr", "0.01", "--prompts_per_category", "10"]
FEW += ["--jobs", "1"]
BASE, PROBED = ("base", -1, 0, False), ["probe_accuracy"]
FACETS, TRAIN, HELD_OUT = 3, 4, 1  # of an arm; questions of a facet
TABLES = {
    *("doses.csv", "layers.csv", "signals.csv", "layer_counts.csv"),
    *("arm_contrasts.csv", "profile_agreement.csv"),
}


@pytest.fixture(scope="module", autouse=True)
def short_answers():
    """Two tokens an answer: what takes the time of a study on a tiny model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(behaviour, "ANSWER_TOKENS", dict.fromkeys(behaviour.ANSWER_TOKENS, 2))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Flags of a tiny model and of some of the bundled examples."""
    folder = tmp_path_factory.mktemp("study")
    taken = {}
    for example in read_examples():
        facets = taken.setdefault(example.arm, {})
        if example.facet in facets or len(facets) < FACETS:
            splits = facets.setdefault(example.facet, {"train": [], "heldout": []})
            splits[example.split].append(example)
    few = [
        json.dumps(asdict(example))
        for facets in taken.values()
        for splits in facets.values()
        for example in [*splits["train"][:TRAIN], *splits["heldout"][:HELD_OUT]]
    ]
    (folder / "few.jsonl").write_text("\n".join(few))
    tiny = save_tiny("llama", folder / "model", hidden_size=64)
    return ["--model_id", tiny, "--data", str(folder / "few.jsonl")]


def flags(model, folder, *more):
    return [*model, "--output_dir", str(folder), *FEW, *more]


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


def test_stopped_and_continued_it_is_the_same_to_the_last_bit(
    model, finished, tmp_path, monkeypatch
):
    """Stopped six times, where a checkpoint is being measured and where a run has just been trained
    from one dose to the next; what was measured before is never measured again.
    """
    measure, train, measured, left = study.Study._measure, study.Tuner.train, [], 0

    def stop_or_measure(self, loaded, aside, facts):
        stop_or_go()
        measure(self, loaded, aside, facts)
        measured.append(tuple(facts[name] for name in ("arm", "seed", "dose", "matched")))

    def train_or_stop(self, batches):
        losses = train(self, batches)
        stop_or_go()
        return losses

    def stop_or_go():
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1

    monkeypatch.setattr(study.Study, "_measure", stop_or_measure)
    monkeypatch.setattr(study.Tuner, "train", train_or_stop)
    monkeypatch.setattr(tuning_figures, "draw_study", lambda *args: None)
    places = (
        (0, []),  # step 0
        (2, [BASE]),  # role 0 is trained to its first dose
        (1, [("role", 0, 2, False)]),  # and to its last, which is lost
        (5, [("role", 0, 4, False), ("facts", 0, 2, False)]),  # facts 0, its last dose
        (3, [("facts", 0, 4, False), ("shuffled", 0, 2, False)]),  # shuffled 0, trained and lost
        (16, None),  # the third run that is matched
    )
    for left, expected in places:  # noqa: B007  (stop_or_go takes it)
        before = len(measured)
        assert tuning_study.main(flags(model, tmp_path)) == 130
        assert expected is None or measured[before:] == expected
        assert not (tmp_path / "latest_study").exists()
    assert measured[-1] == ("facts", 0, 4, True)
    left = 100
    assert tuning_study.main(flags(model, tmp_path)) == 0
    assert len(measured) == len(set(measured)) == 19
    again = tmp_path / "latest_study"
    assert again.resolve().name == finished.resolve().name
    for name in ("checkpoints.npz", "summary.json", *TABLES):
        assert (again / name).read_bytes() == (finished / name).read_bytes(), name
    assert not list(tmp_path.rglob(".tmp_*"))


def test_its_tables_are_those_of_the_dictionary(finished):
    """docs/COLUMNS.md against what a study has really written, in both directions."""
    documented, common = read_dictionary()
    written = {path.name: path for path in finished.glob("*.csv")}
    assert set(written) == TABLES
    for name, path in written.items():
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert {row["model"] for row in rows} == {load_study(finished).facts["model"]}, name
        patterns = [pattern_of(column) for column in documented[name]]
        for column in rows[0]:
            known = column in common or any(re.fullmatch(p, column) for p in patterns)
            assert known, f"{name}: {column} is not documented"
        for pattern in patterns:
            assert any(re.fullmatch(pattern, c) for c in rows[0]), f"{name}: no {pattern}"


def test_the_summary_keeps_the_erasure_and_what_is_printed(finished):
    summary = load_study(finished).summary
    assert summary["said"][0] == "runs: 2 role, 2 facts, 2 shuffled"
    assert "2 against 2 runs" in summary["said"][1]
    erasure, probed = summary["erasure"], read_npz(finished / "base" / "reference.npz", PROBED)
    assert erasure["before_profile"] == pytest.approx(probed["probe_accuracy"].tolist())
    null = erasure["null"]["nothing"]
    assert null["after"] == erasure["before"] == pytest.approx(np.mean(erasure["before_profile"]))
    assert null["verdict"] != "erased" and set(erasure["null"]) == {"nothing", "permuted labels"}


def test_what_is_there_is_not_measured_again(model, finished, monkeypatch, capsys):
    monkeypatch.setattr(study.Study, "_measure", lambda *args: pytest.fail("measured again"))
    assert tuning_study.main(flags(model, finished.parent)) == 0
    out = capsys.readouterr().out
    assert "6 training runs, 19 checkpoints" in out
    assert all(len(line) <= 80 for line in out.splitlines() if "checkpoints" not in line)
    out = " ".join(out.split())  # lines are folded
    assert "No candidate is specific to the role" in out
    assert 'Layers that "differ"' in out and "between two runs of one arm" in out
    assert "Person at the final query of step 0" in out


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
    except SystemExit as stopped:  # of the parser
        code = stopped.code
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
    facts = {"id": "m", "revision": None, "weights_sha256": "w", "tokenizer_sha256": "t"}
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


def test_a_study_says_what_is_not_as_it_was_begun(finished, model):
    """It was run with these flags, on this machine: nothing has changed, then three things have."""
    begun = json.loads((finished / "study_config.json").read_text())
    args = tuning_study.parse_args([*model, *FEW])
    args.jobs = begun["arguments"]["jobs"]
    determinism = begun["determinism"]
    assert outcome.describe_changes(begun, args, determinism) == []
    args.jobs = 7
    begun["packages"]["torch"] = "1.0"
    said = outcome.describe_changes(begun, args, determinism | {"gpu": "a card"})
    assert [line.split(" with ")[1].split()[0] for line in said] == ["torch", "gpu", "jobs"]
    assert said[0].startswith("the study was begun with torch 1.0 and goes on with 2.")


def test_what_stands_in_the_way_of_a_checkpoint_is_named(tmp_path):
    place = tmp_path / "role_0" / "dose_0002"
    place.mkdir(parents=True)
    with (
        pytest.raises(UserError, match=r"dose_0002: is there without its checkpoint\.json"),
        study.new_checkpoint(place),
    ):
        raise AssertionError("nothing is measured")


def test_a_damaged_state_is_named(tmp_path):
    (tmp_path / "state.safetensors").write_bytes(b"nothing of a tensor")
    with pytest.raises(UserError, match=r"state\.safetensors: damaged .*remove it"):
        train.state_step(tmp_path / "state.safetensors")
