"""Plans are checked before anything runs; effects are what a hand computes; runs are whole or
absent."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import interventions
from output_manager import load_run
from prompts import select_prompts
from rolecircuits.capture import tokens
from rolecircuits.edits import bench, effects, head_batches
from rolecircuits.edits import sweep as sweep_module
from rolecircuits.edits.controls import controls_of, draw_controls, find_controls
from rolecircuits.edits.plan import check_against_model, parse_entries, read_plan
from rolecircuits.inputs import arguments as arguments_module
from rolecircuits.inputs.errors import UserError
from rolecircuits.runs.npz import read_npz
from rolecircuits.stats import contrasts
from rolecircuits.stats.units import Design
from tiny_models import load_checked, save_tiny

HERE = Path(interventions.__file__).parent
HEAD = {"type": "head", "layer": 1, "head": 1, "method": "zero_out"}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return save_tiny("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def loaded(folder):
    return load_checked(folder)


def plan_file(path, *entries, **root):
    path.write_text(json.dumps({"schema_version": 1, "interventions": list(entries)} | root))
    return str(path)


def arguments(folder, output, *more):
    return ["--model_id", folder, "--output_dir", str(output), "--prompts_per_category", "4", *more]


@pytest.mark.parametrize(
    "entries, message",
    [
        ([], "empty list"),
        (None, "null or missing; it must be a list"),
        ([[HEAD]], r"\[0\] is the list .*groups cannot be nested"),
        ([HEAD | {"interventions": [HEAD]}], "unknown key 'interventions'"),
        ([HEAD | {"layer": -1}], r"\[0\].layer is -1; it must be a whole number from 0"),
        ([HEAD | {"layer": 1.0}], r"\[0\].layer is 1.0"),
        ([HEAD | {"head": True}], r"\[0\].head is true"),
        ([HEAD | {"head": "1"}], r"\[0\].head is '1'"),
        ([HEAD, HEAD | {"head": None}], r"\[1\].head is null"),
        ([HEAD | {"method": "../x"}], r"\[0\].method is '../x'; allowed are zero_out, half_out"),
        ([HEAD | {"type": "a/b"}], r"\[0\].type is 'a/b'; allowed are head"),
        ([HEAD | {"factr": 1}], "unknown key 'factr'.*type head has layer"),
        ([{"type": "head", "layer": 1, "method": "mean"}], r"\[0\].head is missing"),
        ([HEAD, dict(HEAD)], r"\[1\] and \[0\] are both sh_1_1_zero_out"),
        (
            [
                HEAD | {"method": "scale", "factor": 0.25},
                HEAD | {"method": "scale", "factor": 2.5e-1},
            ],
            "both sh_1_1_scale_0.25",
        ),
        ([HEAD | {"method": "scale"}], "method scale needs factor"),
        ([HEAD | {"factor": 2}], "method zero_out takes no factor"),
        ([HEAD | {"method": "scale", "factor": True}], r"\[0\].factor is true"),
        ([HEAD | {"role": "boss"}], "allowed are candidate, control"),
        (
            [HEAD | {"role": "control", "control_for": "sh_9_9_mean"}],
            "no candidate of this plan has that name and method zero_out",
        ),
        ([HEAD | {"control_for": "x"}], "control_for is only for"),
        (
            [{"type": "layer_heads", "layer": 0, "head": [], "method": "mean"}],
            "head is an empty list",
        ),
        ([{"type": "layer_heads", "layer": 0, "head": [1, 1], "method": "mean"}], "listed twice"),
        (
            [{"type": "patch", "layer": 0, "component": "mlp", "head": 1, "method": "paired"}],
            "takes no head",
        ),
        ([{"type": "patch", "layer": 0, "method": "other_model"}], "needs source"),
        ([{"type": "steer", "layer": 0, "method": "add"}], "needs alpha"),
    ],
)
def test_a_bad_plan_is_one_line_that_names_the_entry(tmp_path, entries, message, capsys):
    path = plan_file(tmp_path / "plan.json", interventions=entries)
    with pytest.raises(UserError, match=message) as caught:
        read_plan(path)
    assert "\n" not in str(caught.value) and "plan.json" in str(caught.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "not JSON"),
        ("[]", "the root is an empty list"),
        ('{"schema_version": 2, "interventions": [1]}', "schema_version is 2"),
        ('{"schema_version": 1, "interventions": [1], "x": 1}', "unknown key 'x'"),
        ('{"schema_version": 1, "schema_version": 1}', "appears twice"),
        ('{"schema_version": NaN}', "NaN"),
    ],
)
def test_a_file_that_is_no_plan(tmp_path, text, message):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_plan(tmp_path / "plan.json")


def test_a_missing_plan_and_contradicting_flags(tmp_path, capsys):
    for flags, message in (
        (["--config_file", str(tmp_path / "none.json")], "no such file"),
        (["--method", "mean"], "--method mean needs --sweep"),
        (["--sweep", "heads", "--config_file", "x"], "give one of them"),
        (["--controls", "-1"], "not a whole number from 0 to 100"),
    ):
        with pytest.raises(SystemExit) if "--controls" in flags else _nothing():
            assert interventions.main([*flags, "--output_dir", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


class _nothing:  # noqa: N801
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False


def test_folder_names():
    items = [
        HEAD,
        {"type": "layer_heads", "layer": 12, "head": None, "method": "mean"},
        {"type": "layer_heads", "layer": 12, "head": [3, 5], "method": "mean"},
        {"type": "mlp", "layer": 3, "method": "zero_out"},
        {"type": "pattern", "layer": 2, "head": 0, "method": "uniform"},
        {"type": "patch", "layer": 2, "component": "layer", "method": "paired"},
        {"type": "steer", "layer": 2, "method": "add", "alpha": -4},
    ]
    names = [entry.name for entry in parse_entries(items, "plan")]
    assert names == [
        "sh_1_1_zero_out",
        "ah_12_mean",
        "ah_12_3-5_mean",
        "mlp_3_zero_out",
        "pattern_2_0_uniform",
        "patch-layer_2_paired",
        "steer_2_add_-4",
    ]


def test_a_control_names_its_candidate_with_or_without_the_method():
    control = {"type": "head", "layer": 1, "method": "zero_out", "role": "control"}
    items = [HEAD, HEAD | {"method": "half_out"}]
    items += [
        control | {"head": 3, "control_for": "sh_1_1"},
        control | {"head": 4, "control_for": "sh_1_1_zero_out"},
    ]
    items += [
        control | {"head": 5},
        control | {"head": 6, "method": "half_out", "control_for": ["sh_1_1"]},
    ]
    plan = parse_entries(items, "plan")
    assert [c.head for c in controls_of(plan[0], plan)] == [3, 4, 5]
    assert [c.head for c in controls_of(plan[1], plan)] == [6]


def test_the_published_plan_is_refused_by_a_model_without_those_heads(folder, tmp_path, capsys):
    assert len(read_plan(interventions.DEFAULT_PLAN)) == 10
    plan = json.loads(interventions.DEFAULT_PLAN.read_text())["interventions"]
    plan = plan_file(tmp_path / "plan.json", *plan)  # without source: it is not known whose it is
    argv = ["--model_id", folder, "--config_file", plan, "--output_dir", str(tmp_path / "out")]
    assert interventions.main(argv) == 2
    error = capsys.readouterr().err
    assert (
        "interventions[0].layer is 29" in error
        and "layers 0 to 2" in error
        and "ablation_candidates.json" in error
    )
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"\[0\].head is 4"):
        check_against_model(parse_entries([HEAD | {"head": 4}], "plan"), 3, 4, "tiny")


def test_controls_are_all_other_heads_of_the_layer_for_every_method():
    plan = parse_entries([HEAD, HEAD | {"method": "half_out"}, HEAD | {"head": 2}], "plan")
    drawn, controls = draw_controls(plan, 6, 31, seed=5)
    assert all(c.layer == 1 and c.role == "control" for c in drawn)
    assert controls == {
        "sh_1_1_zero_out": ["sh_1_2_zero_out", *(f"sh_1_{h}_zero_out" for h in (0, 3, 4, 5))],
        "sh_1_1_half_out": [f"sh_1_{h}_half_out" for h in (0, 2, 3, 4, 5)],
        "sh_1_2_zero_out": ["sh_1_1_zero_out", *(f"sh_1_{h}_zero_out" for h in (0, 3, 4, 5))],
    }, "a candidate is a control of its neighbour, and is not edited twice"
    assert len({c.name for c in drawn}) == len(drawn) == 4 + 5


def test_of_many_heads_some_are_drawn():
    plan = parse_entries([HEAD, HEAD | {"head": 2}, HEAD | {"method": "half_out"}], "plan")
    drawn, controls = draw_controls(plan, 64, 31, seed=5)
    assert [len(names) for names in controls.values()] == [31, 31, 31]
    pools = [{name, *names} for name, names in controls.items()]
    assert pools[0] == pools[1] and len(pools[0]) == 32
    assert [c.name for c in drawn] == [c.name for c in draw_controls(plan, 64, 31, seed=5)[0]]
    assert [c.name for c in drawn] != [c.name for c in draw_controls(plan, 64, 31, seed=6)[0]]
    many = parse_entries([HEAD | {"head": head} for head in range(10)], "plan")
    assert len(draw_controls(many, 64, 2)[0]) == 10, "as many others as candidates at least"
    assert draw_controls(plan, 64, 0) == ([], {entry.name: [] for entry in plan})


def test_sets_of_heads_are_compared_with_sets_and_whole_layers_with_nothing():
    several = {"type": "layer_heads", "layer": 1, "method": "mean"}
    plan = [several | {"head": [0, 3]}, several | {"head": None}]
    plan = parse_entries([*plan, {"type": "mlp", "layer": 1, "method": "mean"}], "plan")
    for n_heads, n in ((4, 5), (200, 31)):  # 6 pairs of four heads, 19900 of two hundred
        drawn, controls = draw_controls(plan, n_heads, 31, seed=1)
        assert [len(names) for names in controls.values()] == [n, 0, 0]
        found = {tuple(c.head) for c in drawn}
        assert len(found) == n and (0, 3) not in found and all(a < b for a, b in found)


def test_a_plan_keeps_the_controls_that_it_brings():
    control = {"type": "head", "layer": 1, "method": "zero_out", "role": "control"}
    plan = parse_entries([HEAD, HEAD | {"head": 2}, control | {"head": 3}], "plan")
    drawn, controls, [note] = find_controls(plan, 9, 31, seed=0)
    assert drawn == [] and "brings its own controls" in note
    assert controls == dict.fromkeys(["sh_1_1_zero_out", "sh_1_2_zero_out"], ["sh_1_3_zero_out"])


def test_kl_surprisal_and_top1_by_hand():
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.2, 0.4, 0.4])
    found = effects.BaseDistribution([np.log(p) + 3]).effects(np.array([np.log(q) - 1]))
    assert found["kl"][0] == pytest.approx((p * np.log(p / q)).sum(), rel=1e-6)
    assert found["surprisal_change"][0] == pytest.approx(np.log(0.5 / 0.2), rel=1e-6)
    assert found["top1_change"][0] == 1
    same = effects.BaseDistribution(np.log([p])).effects(np.log([p]).astype(np.float32))
    assert all(values[0] == 0 for values in same.values())


def plain_design(category):
    """The Design of a set without pairs, every prompt its own frame."""
    alone, frame = np.full(len(category), -1), np.arange(len(category)).astype(str)
    return Design(np.asarray(category), alone, frame, frame, crossed=False)


def test_index_change_by_hand():
    category = np.array(["self_referent", "confounder", "neutral"])
    base, edited = (
        np.array([[0.4, 0.4], [0.6, 0.5], [0.8, 0.5]]),
        np.array([[0.2, 0.4], [0.6, 0.5], [0.8, 0.5]]),
    )
    design = plain_design(category)
    change = effects.infer_index_changes(base, edited, design, seed=1, n_resamples=99)
    assert change["rfc_change"].estimate == pytest.approx(0.25 / 2)
    assert change["rsi_change"].estimate == pytest.approx(0.25 / 2)
    assert np.isnan(change["rfc_change"].low), "one prompt a category has no interval"
    none = effects.infer_index_changes(base[:, :0], edited[:, :0], design, seed=1, n_resamples=99)
    assert np.isnan(none["rfc_change"].estimate)


def measured_edit(kl, values, controls=(), role="candidate"):
    """What an edit of layer 0 gives: the same number for every metric of the next token."""
    metrics = dict.fromkeys((*effects.PROMPT_METRICS, "logit_change"), np.asarray(kl, float))
    return {
        "effects": metrics,
        "values": values,
        "layer": 0,
        "change": "zero_out",
        "controls": controls,
        "labels": {"role": role, "type": "head"},
    }


def test_controls_are_beaten_where_they_are_and_not_where_they_are_not():
    """Two candidates and their control: one with larger effects than the control, one with the
    same."""
    rng = np.random.default_rng(1)
    category = np.repeat(["self_referent", "neutral"], 20)
    base, noise = rng.uniform(0.4, 0.6, (40, 3)), rng.normal(size=40)
    moved = base.copy()
    moved[:20] += 0.2
    measured = {
        "large": measured_edit(noise + 2, moved, ["control"]),
        "same": measured_edit(0.1 * noise, base, ["control"]),
        "control": measured_edit(0.1 * noise, base, role="control"),
    }
    listed = effects.effect_rows(measured, base, plain_design(category), seed=1)
    rows = {(row["intervention"], row["category"]): row for row in listed}
    assert set(rows) == {(name, c) for name in measured for c in (*set(category), "all")}
    large, same, control = (rows[name, "all"] for name in measured)
    assert large["kl_p"] < 1e-3 and large["rfc_change_p"] < 1e-3 and large["n"] == 40
    assert large["kl"] == pytest.approx(np.mean(noise + 2))
    assert large["kl_control"] == pytest.approx(0.1 * noise.mean())
    assert large["kl_low"] < large["kl"] < large["kl_high"]
    assert large["rfc_change_low"] < large["rfc_change"] < large["rfc_change_high"] < 0
    assert np.isnan([same["kl_p"], same["rfc_change_p"], same["kl_q"]]).all(), "nothing differs"
    without = ("kl_low", "kl_p", "kl_control", "rfc_change_control", "kl_rank", "pool")
    assert np.isnan([control[name] for name in without]).all()
    assert control["kl"] == pytest.approx(0.1 * noise.mean())
    assert (large["kl_rank"], same["kl_rank"], large["pool"]) == (1, 2.5, 3), "one pool"
    assert (large["rfc_change_rank"], same["rfc_change_rank"]) == (1, 2.5)
    assert np.isnan(large["rsi_change_rank"])
    tests = {test["metric"]: test for test in effects.set_tests(listed, measured)}
    assert set(tests) == set(effects.METRICS) - {"rsi_change"}
    kl = tests["kl"]  # of the three pairs of ranks 1, 2.5, 2.5 two have this sum
    assert (kl["n_candidates"], kl["n_layers"]) == (2, 1)
    assert (kl["mean_rank"], kl["expected_rank"], kl["p"]) == (1.75, 2, 1)
    assert np.isnan(large["rsi_change"]), "there are no confounders"
    neutral = rows["large", "neutral"]
    assert neutral["n"] == 20 and neutral["kl"] == pytest.approx(np.mean(noise[20:] + 2))


def test_prompts_that_an_edit_does_not_touch_are_left_out():
    category = np.repeat(["self_referent", "neutral"], 10)
    values, kl = np.random.default_rng(0).uniform(0.4, 0.6, (20, 2)), np.arange(20.0)
    kl[[0, *range(10, 20)]] = np.nan
    measured = {"patch": measured_edit(kl, values)}
    rows = effects.effect_rows(measured, values, plain_design(category), seed=1)
    assert [(row["category"], row["n"], row["kl"]) for row in rows] == [
        ("self_referent", 9, 5.0),
        ("all", 9, 5.0),
    ]
    assert rows[0]["kl_low"] == pytest.approx(rows[1]["kl_low"])


def test_q_values_ignore_undefined_tests():
    q = contrasts.q_values([0.01, np.nan, 0.04])
    assert q[0] == pytest.approx(0.02) and np.isnan(q[1]) and q[2] == pytest.approx(0.04)


@pytest.fixture(scope="session")
def finished(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    entries = [
        HEAD,
        HEAD | {"method": "scale", "factor": 1},
        {"type": "mlp", "layer": 2, "method": "zero_out"},
        {"type": "patch", "layer": 0, "component": "layer", "method": "paired"},
    ]
    path = plan_file(out / "plan.json", *entries)
    assert interventions.main(arguments(folder, out, "--config_file", path)) == 0
    return out / arguments_module.LATEST_INTERVENTION


def test_every_sub_folder_is_a_run_and_only_later_layers_change(finished):
    base, edited = (load_run(finished / name) for name in ("baseline", "sh_1_1_zero_out"))
    np.testing.assert_array_equal(base.entropy[:, :2], edited.entropy[:, :2])
    assert np.nanmax(np.abs(base.entropy[:, 2] - edited.entropy[:, 2])) > 1e-4
    same = load_run(finished / "sh_1_1_scale_1")
    np.testing.assert_array_equal(base.entropy, same.entropy)
    assert edited.config["intervention"]["head"] == 1 and base.config["intervention"] is None


def test_effects_table(finished):
    summary = json.loads((finished / "effects.json").read_text())
    rows = {(row["intervention"], row["category"]): row for row in summary["rows"]}
    cut = rows["sh_1_1_zero_out", "all"]
    assert cut["n"] == 16 and cut["kl"] > 0 and cut["kl_low"] is cut["kl_p"] is None
    assert any(note.startswith("no interval and no test below") for note in summary["notes"])
    assert cut["controls"].split() == ["sh_1_0_zero_out", "sh_1_2_zero_out", "sh_1_3_zero_out"]
    sizes = [rows[name, "all"]["kl"] for name in ("sh_1_1_zero_out", *cut["controls"].split())]
    assert cut["kl_rank"] == 1 + sum(size > cut["kl"] for size in sizes) and cut["pool"] == 4
    control = rows["sh_1_0_zero_out", "neutral"]
    assert control["role"] == "control" and control["kl"] > 0 and control["kl_low"] is None
    assert not (finished / "sh_1_0_zero_out").exists(), "a control has no folder"
    assert rows["patch-layer_0_paired", "all"]["kl_rank"] is None
    tests = {(t["change"], t["metric"]): t for t in summary["set_tests"]}
    assert {change for change, _ in tests} == {"zero_out", "scale_1"}
    assert tests["zero_out", "kl"]["mean_rank"] == cut["kl_rank"]
    assert tests["zero_out", "kl"]["smallest_p"] == 0.5 and tests["scale_1", "kl"]["p"] == 1
    assert rows["sh_1_1_scale_1", "all"]["kl"] == 0
    assert any("sh_1_1_scale_1: no measurable effect" in note for note in summary["notes"])
    assert rows["mlp_2_zero_out", "all"]["rfc_change"] is None, (
        "an edit of the last layer has no later layer"
    )
    assert ("patch-layer_0_paired", "neutral") not in rows and rows["patch-layer_0_paired", "all"][
        "n"
    ] == 8
    header = (finished / "effects.csv").read_text().splitlines()[0].split(",")
    assert header[:6] == ["model", "set", "format", "run", "intervention", "role"]
    assert {"kl_estimate", "kl_control", "rsi_change_q"} <= set(header)


def test_batched_sweep_equals_one_ablation_at_a_time(loaded, finished):
    from rolecircuits.capture.tokens import tokenize_prompts
    from rolecircuits.edits.hooks import prepare_edit
    from rolecircuits.edits.passes import capture_edited

    tokenized = tokenize_prompts(select_prompts(per_category=2), loaded.tokenizer)
    for method, layers in (("zero_out", range(3)), ("mean", [1])):
        sweep = sweep_module.Sweep(loaded, tokenized, method, rows=7)
        for layer in layers:
            found = sweep.layer(layer)
            for head in range(4):
                [entry] = parse_entries(
                    [HEAD | {"layer": layer, "head": head, "method": method}], "plan"
                )
                donors = interventions_donors(loaded, tokenized, entry)
                edits = bench.edits_for(prepare_edit(entry, donors), tokenized)
                one = capture_edited(loaded, tokenized, edits, 3)
                expected = sweep.distribution.effects(one.logits)
                for metric in ("kl", "surprisal_change"):
                    np.testing.assert_allclose(found[metric][head], expected[metric], atol=1e-5)
                values = effects.normalised_values(one.arrays)
                np.testing.assert_allclose(
                    found["values"][head][:, layer + 1 :], values[:, layer + 1 :], atol=1e-5
                )


def test_controls_in_shared_batches_equal_controls_one_after_the_other(folder, loaded):
    """Zeroed, scaled and mean-replaced heads share batches; nothing else may."""
    from rolecircuits.inputs.specs import ModelSpec, PromptFormat, Setting

    setting = Setting(ModelSpec(folder), PromptFormat(), 5, 1)
    items = [HEAD | {"layer": 0}, HEAD | {"method": "half_out"}, HEAD | {"method": "mean"}]
    items += [HEAD | {"method": "scale", "factor": -2}, HEAD | {"method": "resample"}]
    items += [{"type": "layer_heads", "layer": 1, "head": [0, 2], "method": "zero_out"}]
    items += [{"type": "layer_heads", "layer": 1, "head": [2], "method": "zero_out"}]
    plan, prompts = parse_entries(items, "plan"), select_prompts(per_category=3)
    made = bench.Bench(loaded, prompts, plan, setting, controls=31)
    assert made.starts_inside
    for title, names in made.batches_of_controls().items():
        found = made.measure_controls(names)
        assert list(found) == names
        for entry in made.drawn:
            if entry.name not in names:
                continue
            expected, one = made.describe(entry, made.capture(entry)), found[entry.name]
            assert one["labels"] == expected["labels"] and one["change"] == entry.change, title
            for metric, values in expected["effects"].items():
                np.testing.assert_allclose(one["effects"][metric], values, atol=2e-5)
            later = slice(entry.layer + 1, None)
            np.testing.assert_allclose(
                one["values"][:, later], expected["values"][:, later], atol=1e-5
            )
    shared = [e.name for e in made.drawn if bench.shares_batches(e)]
    assert len(shared) == 15 and not any("resample" in name or "0-2" in name for name in shared)


def interventions_donors(loaded, tokenized, entry):
    from rolecircuits.edits.donors import collect_donors

    return collect_donors(loaded, tokenized, [entry])


def test_a_sweep_out_of_memory_halves_its_batches(loaded, monkeypatch):
    prompts = select_prompts(per_category=2)
    sweep = sweep_module.Sweep(loaded, tokens.tokenize_prompts(prompts, loaded.tokenizer), "mean")
    sweep.batches.packed = None
    whole, real, sizes = sweep.layer(1), head_batches.run_layers, []

    def scarce(loaded, token_ids, *rest):
        sizes.append(len(token_ids))
        if len(token_ids) > 4:
            raise RuntimeError("MPS backend out of memory")
        return real(loaded, token_ids, *rest)

    monkeypatch.setattr(head_batches, "run_layers", scarce)
    halved = sweep.layer(1)
    assert max(sizes) > 4 and sweep.batches.rows <= 4
    for name, values in whole.items():
        np.testing.assert_allclose(halved[name], values, atol=1e-5)
    n_before = len(sizes)
    sweep.layer(1)
    assert max(sizes[n_before:]) <= 4  # the next layer begins with what was left


def test_a_sweep_continues_where_it_stopped_and_takes_no_layers_of_others(
    folder, tmp_path, monkeypatch, capsys
):
    command = arguments(folder, tmp_path, "--sweep", "heads")
    whole = sweep_module.Sweep.layer
    done = []

    def interrupted(self, layer):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(layer)
        return whole(self, layer)

    monkeypatch.setattr(sweep_module.Sweep, "layer", interrupted)
    assert interventions.main(command) == 130
    assert not (tmp_path / "latest_sweep").exists() and done == [2, 1]
    again = []
    monkeypatch.setattr(
        sweep_module.Sweep, "layer", lambda self, layer: again.append(layer) or whole(self, layer)
    )
    pieces = sorted((tmp_path / sweep_module.FOLDER).iterdir())
    assert len(pieces) == 2
    for change in (["--prompts_per_category", "3"], ["--method", "half_out"], ["--bos", "never"]):
        assert interventions.main([*command, *change]) == 0
        assert again == [2, 1, 0], change
        assert "were done before" not in capsys.readouterr().out
        again.clear()
    assert sorted((tmp_path / sweep_module.FOLDER).iterdir()) == pieces
    pieces[0].write_bytes(b"PK damaged")
    assert interventions.main(command) == 0 and len(again) == 2 and again[-1] == 0
    out = capsys.readouterr().out
    assert f"{pieces[0].name}: damaged" in out and "done again" in out
    assert "1 of 3 layers were done before" in out
    arrays = read_npz(
        tmp_path / "latest_sweep" / "head_effects.npz", ["kl", "rfc_change", "category"]
    )
    assert arrays["kl"].shape == (3, 4, 4) and (arrays["kl"] > 0).all()
    assert np.isnan(arrays["rfc_change"][2]).all() and np.isfinite(arrays["rfc_change"][:2]).all()
    assert not (tmp_path / sweep_module.FOLDER).exists()


def test_a_killed_run_leaves_the_latest_one_and_nothing_that_reads_as_a_run(folder, tmp_path):
    out = tmp_path / "out"
    small = plan_file(tmp_path / "small.json", HEAD)
    assert (
        interventions.main(arguments(folder, out, "--config_file", small, "--controls", "0")) == 0
    )
    before = (out / arguments_module.LATEST_INTERVENTION).resolve()
    many = [
        HEAD | {"head": h, "layer": layer, "method": m}
        for h in range(4)
        for layer in range(3)
        for m in ("zero_out", "half_out", "mean", "resample")
    ]
    command = arguments(folder, out, "--config_file", plan_file(tmp_path / "many.json", *many))
    child = subprocess.Popen(
        [sys.executable, str(HERE / "interventions.py"), *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while (
        not list(out.glob(".tmp_*/*/sh_*")) and child.poll() is None and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert (out / arguments_module.LATEST_INTERVENTION).resolve() == before
    assert load_run(out / arguments_module.LATEST_INTERVENTION / "baseline").n_layers == 3
    with pytest.raises(UserError, match="not a complete run"):
        load_run(next(out.glob(".tmp_*/intervention")))
    assert (
        interventions.main(arguments(folder, out, "--config_file", small, "--controls", "0")) == 0
    )
    assert (
        not list(out.glob(".tmp_*"))
        and (out / arguments_module.LATEST_INTERVENTION).resolve() != before
    )


def test_help_is_fast_and_imports_no_torch():
    code = "import sys, interventions, experiment; "
    code += "assert not {'torch', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=HERE)


def test_a_hub_model_that_is_not_cached_is_named_as_such(monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert interventions.main(["--model_id", "someone/never-downloaded", "--sweep", "heads"]) == 2
    assert "not cached" in capsys.readouterr().err
