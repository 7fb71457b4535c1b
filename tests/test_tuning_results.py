"""The results of a tuning study: written, read back, and refused where they are damaged."""

import dataclasses
import json

import numpy as np
import pytest

from output_manager import load_run
from rolecircuits.inputs.errors import UserError
from rolecircuits.runs import npz, tuning_results
from rolecircuits.runs.publish import write_manifest
from rolecircuits.runs.tuning_results import ARRAYS, Checkpoints, load_checkpoints, load_study
from tuning_synthetic import PRIMARY, make_config, make_study, save_study


@pytest.fixture
def small():
    return make_study(seeds=2, doses=(10, 50), n_layers=4)


def plain(checkpoints):
    return {name: getattr(checkpoints, name) for name in ARRAYS}


def test_checkpoints_come_back_as_they_were(small, tmp_path):
    assert tuple(ARRAYS) == tuple(one.name for one in dataclasses.fields(Checkpoints))
    tuning_results.save_checkpoints(tmp_path / "c.npz", small)
    back = load_checkpoints(tmp_path / "c.npz")
    for name, array in plain(small).items():
        np.testing.assert_array_equal(getattr(back, name), array, err_msg=name)


def test_whole_numbers_of_any_width_are_written(small, tmp_path):
    narrow = dataclasses.replace(
        small, seed=small.seed.astype(np.int16), value=small.value.astype(np.float32)
    )
    tuning_results.save_checkpoints(tmp_path / "c.npz", narrow)
    assert load_checkpoints(tmp_path / "c.npz").seed.dtype == np.int64


def test_runs_doses_and_changes(small):
    assert small.arms == ["role", "facts", "shuffled"] and len(small.runs) == 6
    assert small.dose[small.rows_of("facts", 1)].tolist() == [10, 50]
    assert small.seed[small.rows_of("role", matched=True)].tolist() == [0, 1]
    assert small.names[0] == "base" and small.names[1:4] == [
        *("role_0/dose_0010", "role_0/dose_0050", "role_0/matched")
    ]
    turned = dataclasses.replace(
        small,
        **{
            name: array[::-1]
            for name, array in plain(small).items()
            if ARRAYS[name][1][0] == "checkpoint"
        },
    )
    assert turned.dose[turned.rows_of("role", 0)].tolist() == [10, 50]
    at = small.signal.tolist().index(PRIMARY)
    for one in (small, turned):
        change = one.change(PRIMARY)
        assert change[one.base] == 0
        row = one.rows_of("role", 0)[1]
        assert change[row] == one.value[row, at] - small.value[0, at]
        whole = one.profile_change(PRIMARY)
        np.testing.assert_allclose(whole[row].mean(), change[row], atol=1e-12)


def spoil(name, change):
    def spoiled(arrays):
        array = arrays[name].copy()
        return arrays | {name: change(array)}

    return spoiled


def put(place, value):
    def change(array):
        array[place] = value
        return array

    return change


DAMAGE = {
    "compliance holds a rate": spoil("compliance", put(3, 1.2)),
    "roleplay holds a rate": spoil("roleplay", put(3, -0.1)),
    "drift holds a value": spoil("drift", put(2, -0.5)),
    "drift holds": spoil("drift", put(2, np.nan)),
    "loss is infinite": spoil("loss", put(2, np.inf)),
    "profile_value is infinite": spoil("profile_value", put((2, 0, 0), np.inf)),
    "value is float64": spoil("value", lambda a: a[:, :-1]),
    "seed is float64": spoil("seed", lambda a: a.astype(float)),
    "dose is out of range": spoil("dose", put(1, 0)),
    "seed is out of range": spoil("seed", put(0, 4)),
    "scale is not above 0": spoil("scale", put(1, 0.0)),
    "matched is True of base": spoil("matched", put(0, True)),
    "arm has 2 checkpoints": spoil("arm", put(1, "base")),
    "is there twice": spoil("dose", put(2, 10)),
    "signal holds rfc_normalised_crossed more": spoil("signal", put(1, "rfc_normalised_crossed")),
    "profile holds '../x'": spoil("profile", put(1, "../x")),
    "arm holds 'a b'": spoil("arm", put(1, "a b")),
    "no checkpoints or no layers": spoil("profile_value", lambda a: a[:, :, :0]),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damaged_arrays_are_refused_with_file_and_field(small, tmp_path, message):
    npz.write_npz(tmp_path / "checkpoints.npz", DAMAGE[message](plain(small)))
    with pytest.raises(UserError) as caught:
        load_checkpoints(tmp_path / "checkpoints.npz")
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'checkpoints.npz'}: ") and "\n" not in said
    assert message in said


def test_what_is_written_is_checked_too(small, tmp_path):
    wrong = dataclasses.replace(small, compliance=small.compliance + 2)
    with pytest.raises(UserError, match="compliance"):
        tuning_results.save_checkpoints(tmp_path / "c.npz", wrong)
    assert not (tmp_path / "c.npz").exists()


def test_a_study_comes_back(small, tmp_path):
    names = {"verdict": "", "primary": True} | dict.fromkeys(("role_facts_estimate", "p"), 0.5)
    rows = [
        {"signal": PRIMARY} | names | {"p": np.nan, "verdict": "-x"},
        {"signal": "1e5"} | names | {"role_facts_estimate": -1e-20, "primary": False},
    ]
    folder = save_study(small, tmp_path / "study", signals=rows)
    study = load_study(folder)
    assert study.primary == study.summary["primary"] == PRIMARY
    assert study.label == "synthetic/tiny, chat prompts; 6 training runs of 3 arms"
    assert study.facts == {
        **{"model": "synthetic/tiny", "set": "original crossed deixis"},
        **{"format": "chat", "run": "study"},
    }
    first, second = study.signals
    assert first["signal"] == PRIMARY and first["role_facts_estimate"] == 0.5
    assert np.isnan(first["p"]) and first["verdict"] == "-x" and first["primary"] is True
    assert second["signal"] == "1e5" and second["role_facts_estimate"] == -1e-20
    assert second["primary"] is False and second["verdict"] == ""
    assert study.layer_counts[0]["same_arm"] is True
    assert study.layer_counts[1]["arm_second"] == "facts"


def rewrite(folder, name, text):
    (folder / name).write_text(text, encoding="utf-8")
    (folder / "manifest.json").unlink()
    write_manifest(folder)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("summary.json", "[]", "is not a JSON object"),
        ("summary.json", "{", "damaged"),
        ("study_config.json", json.dumps(make_config()), "status is not complete"),
        ("study_config.json", '{"status": "complete"}', "model.id is missing"),
        (
            "study_config.json",
            json.dumps(make_config("charm", status="complete")),
            "primary is charm",
        ),
        ("signals.csv", "model,signal\nx\n", "row 1 has 1 fields, expected 2"),
        ("signals.csv", "model,signal\nx,y\n", "has no column set"),
        ("signals.csv", "model,set,format,run,signal,verdict\n", f"has no row of {PRIMARY}"),
        (
            "signals.csv",
            f"model,set,format,run,signal,verdict,p\nm,s,chat,r,{PRIMARY},x,small\n",
            "p of row 1 is 'small'",
        ),
        ("layer_counts.csv", "model,set,format,run,arm_first\na,b,c,d,e\n", "column arm_second"),
        ("signals.csv", "signal,signal\nx,y\n", "columns are missing or not told apart"),
        ("layer_counts.csv", "", "columns are missing"),
    ],
)
def test_damaged_studies_are_refused(small, tmp_path, name, text, message):
    folder = save_study(small, tmp_path / "study")
    rewrite(folder, name, text)
    with pytest.raises(UserError) as caught:
        load_study(folder)
    assert message in str(caught.value) and name in str(caught.value)


def test_a_changed_file_is_found_and_may_be_allowed(small, tmp_path):
    folder = save_study(small, tmp_path / "study")
    (folder / "summary.json").write_text('{"primary": "x"}')
    with pytest.raises(UserError, match="summary.json"):
        load_study(folder)
    assert load_study(folder, verify=False).summary == {"primary": "x"}


def test_unfinished_and_other_folders_say_what_they_are(small, tmp_path):
    folder = save_study(small, tmp_path / "studies" / "study")
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="no manifest.json"):
        load_study(folder)
    with pytest.raises(UserError, match="is a tuning study, not a run .* --tuning"):
        load_run(folder)
    with pytest.raises(UserError, match="not a tuning study but holds folders, study for one"):
        load_study(folder.parent)
