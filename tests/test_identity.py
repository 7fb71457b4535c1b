"""What makes a finished run the one that is asked for, and a plan one for this model."""

import datetime
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import activation_analysis
import analyze_results
import experiment
import interventions
from output_manager import load_run
from prompts import load_prompts
from rolecircuits.edits import plan_source
from rolecircuits.inputs.errors import UserError
from rolecircuits.inputs.files import follow_links
from rolecircuits.runs import files, identity
from tiny_models import save_tiny

HERE = Path(interventions.__file__).parent
FED = ["--prompts", "crossed", "--prompts_per_category", "12"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a model, a run of it on the crossed set, and a plan made from that run."""
    root = tmp_path_factory.mktemp("identity")
    model = save_tiny("llama", root / "model")
    argv = ["--model_id", model, *FED, "--output_dir", str(root / "runs")]
    assert activation_analysis.main([*argv, "--raw", "none"]) == 0
    run = load_run(root / "runs/latest_run")
    analyze_results.analyze(run, root / "analysis", 1)
    return root


def reason(made, *flags, prompts=None, link="runs/latest_run"):
    argv = ["--model_id", str(made / "model"), *FED, "--raw", "none", *flags]
    args = activation_analysis.parse_args(argv)
    prompts = (
        load_prompts(args.prompts, args.prompts_per_category)[0] if prompts is None else prompts
    )
    return identity.why_again(made / link, args, prompts)


def test_the_same_flags_find_the_run(made):
    assert reason(made) is None
    assert reason(made, "--batch_size", "3", "--device", "cpu", "--seed", "5") is None


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--dtype", "bfloat16"], "--dtype was float32, is bfloat16"),
        (["--model_id", "bundled:smollm2-135m-instruct"], "--model_id was"),
        (["--prompt_format", "chat"], "--prompt_format was raw, is chat"),
        (["--bos", "always"], "--bos was auto, is always"),
        (["--prompts_per_category", "11"], "the prompts have changed"),
        (["--raw", "patterns"], "--raw was none, is patterns"),
    ],
)
def test_other_flags_make_another_run(made, flags, said):
    assert reason(made, *flags).startswith(said)


def test_a_template_that_was_told_another_day_makes_another_run(made):
    """Where a chat template asked for the date, the run's config records what it was told."""
    argv = ["--model_id", str(made / "model"), *FED, "--raw", "none"]
    args = activation_analysis.parse_args(argv)
    config = files.read_json(follow_links(made / "runs/latest_run") / "experiment_config.json")
    prompts = load_prompts(args.prompts, args.prompts_per_category)[0]
    today = datetime.date.today().isoformat()
    for told, said in ((today, None), ("2020-01-01", "told 2020-01-01 as today's date")):
        config["prompts"]["date"] = told
        found = identity._difference(config, args, prompts, None)
        assert found is None if said is None else said in found


def test_a_run_that_is_not_there_or_not_whole(made):
    assert reason(made, link="runs/nothing") == "it is not there"
    config = made / "runs/latest_run/experiment_config.json"
    whole = config.read_text()
    try:
        for change, said in (
            ({"status": "partial"}, "some prompts failed"),
            ({"arguments": None}, "of another version"),
            ({"prompts": {}}, "of another version"),
        ):
            config.write_text(json.dumps(json.loads(whole) | change))
            assert said in reason(made)
        config.write_text("{")
        assert "damaged" in reason(made)
    finally:
        config.write_text(whole)


def test_a_model_that_was_trained_on_in_its_folder_is_another(made):
    model = made / "model"
    (weights,) = model.glob("*.safetensors")
    whole, times = weights.read_bytes(), weights.stat()
    try:
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        os.utime(weights, (times.st_atime, times.st_mtime))
        assert reason(made) == "the model's weights have changed"
    finally:
        weights.write_bytes(whole)
        os.utime(weights, (times.st_atime, times.st_mtime))
    assert reason(made) is None
    tokenizer = model / "tokenizer_config.json"
    before = tokenizer.stat()
    try:
        os.utime(tokenizer, (before.st_atime + 9999, before.st_mtime + 9999))
        assert reason(made) == "tokenizer_config.json in the model's folder is newer"
    finally:
        os.utime(tokenizer, (before.st_atime, before.st_mtime))


def test_edits_are_the_same_for_the_same_plan_alone(made):
    plan = json.loads((made / "analysis/ablation_candidates.json").read_text())
    model = ["--model_id", str(made / "model"), *FED, "--output_dir", str(made / "runs")]
    argv = [*model, "--config_file", str(made / "analysis/ablation_candidates.json"), "--held_out"]
    assert interventions.main(argv) == 0
    prompts = load_prompts("crossed", 12)[0]

    def why(plan, *flags):
        args = interventions.parse_args([*model, *flags])
        return identity.why_again(made / "runs/latest_intervention", args, prompts, plan)

    assert why(plan) is None
    assert why(plan, "--controls", "1") == "--controls was 31, is 1"
    assert why(plan, "--seed", "1") == "--seed was 123, is 1"
    (entry,) = plan["interventions"]
    other = {"interventions": [entry | {"method": "half_out"}]}
    assert why(plan | other) == "the plan has changed"
    assert why(plan | {"held_out": plan["held_out"][1:]}) == "the prompts have changed"


def planned(made, tmp_path, **source):
    """The plan with a changed source, as a file."""
    content = json.loads((made / "analysis/ablation_candidates.json").read_text())
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(content | {"source": content["source"] | source}))
    return str(path)


def notes(path, *flags):
    args = interventions.parse_args(["--config_file", path, *flags])
    return plan_source.check_source(
        path, args, load_prompts(args.prompts, args.prompts_per_category)[0]
    )


def test_a_plan_is_for_its_model_format_and_prompts(made, tmp_path):
    model, path = ["--model_id", str(made / "model")], planned(made, tmp_path)
    assert notes(path, *model, *FED) == []
    (said,) = notes(path, *model, *FED, "--prompt_format", "chat")
    assert said == "the plan's heads were chosen on raw prompts; these are chat prompts"
    (said,) = notes(path, *model)
    assert said == "the plan's heads were chosen on other prompts than these (crossed)"
    with pytest.raises(UserError, match="its heads are those of .*/model, not of bundled:"):
        notes(path, *FED)
    content = json.loads(Path(path).read_text())
    del content["source"]  # written by hand
    Path(path).write_text(json.dumps(content))
    assert notes(path, *FED) == []
    for odd in ([], 3, {"model_id": 3, "prompt_format": [], "frames_left_out": 1}):
        Path(path).write_text(json.dumps(content | {"source": odd}))
        assert notes(path, *FED) == []


def test_the_same_weights_elsewhere_are_the_same_model(made, tmp_path):
    path = planned(made, tmp_path)
    copy = shutil.copytree(made / "model", tmp_path / "copy")
    assert notes(path, *FED, "--model_id", str(copy)) == []
    (weights,) = copy.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="its heads are those of"):
        notes(path, *FED, "--model_id", str(copy))


def test_another_model_is_refused_before_torch_is_imported(made, tmp_path):
    code = "import sys, {0}\ncode = {0}.main(sys.argv[1:])\nassert 'torch' not in sys.modules\n"
    for script in (interventions, experiment):
        command = [sys.executable, "-c", code.format(script.__name__) + "sys.exit(code)"]
        done = subprocess.run(
            [*command, "--config_file", planned(made, tmp_path), "--output_dir", tmp_path / "out"],
            cwd=HERE,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
        assert "not of bundled:smollm2-135m-instruct" in done.stderr
    assert not (tmp_path / "out").exists()


def test_without_a_plan_it_is_said_what_to_give(capsys):
    assert interventions.main([]) == 2
    done = capsys.readouterr()
    for said in ("give a plan", "analyze_results.py", "--sweep heads", "mistralai/Mistral-7B-v0.1"):
        assert said in done.err
    assert not done.out and all(len(line) <= 80 for line in done.err.splitlines())
