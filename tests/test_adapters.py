"""Adapters: found, refused, merged, hashed."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import activation_analysis
import interventions
from conftest import PROJECT
from prompts import load_prompts
from rolecircuits.inputs.errors import UserError
from rolecircuits.inputs.specs import ModelSpec
from rolecircuits.models import adapters
from rolecircuits.models.adapters import find_origin
from rolecircuits.models.load import open_model, read_weights
from rolecircuits.runs import identity
from tiny_models import save_tiny

RANK, ALPHA = 2, 6
TARGET = "model.layers.1.self_attn.q_proj"
IDS = torch.arange(10, 30)[None]


def save_adapter(folder, base, **config):
    """A LoRA of one projection with random A and B, as peft saves it; returns the folder."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(1)
    weights = {
        f"base_model.model.{TARGET}.lora_{which}.weight": torch.randn(size, generator=generator)
        for which, size in (("A", (RANK, 32)), ("B", (32, RANK)))
    }
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    said = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base)}
    said |= {"r": RANK, "lora_alpha": ALPHA, "target_modules": [TARGET], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(said | config))
    return folder


@pytest.fixture
def base(tmp_path):
    return Path(save_tiny("llama", tmp_path / "base"))


@pytest.fixture
def adapter(base, tmp_path):
    return save_adapter(tmp_path / "adapter", base)


def read(model_id, **options):
    return read_weights(open_model(ModelSpec(str(model_id), device="cpu", **options)))


def hugging_face(loaded):
    return getattr(loaded, "model", None) or loaded.plain


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_the_adapter_is_merged_with_its_scale(base, adapter):
    pytest.importorskip("peft")
    weights = load_file(adapter / "adapter_model.safetensors")
    a, b = (weights[f"base_model.model.{TARGET}.lora_{which}.weight"] for which in "AB")
    expected = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    plain = logits(expected)
    expected.get_submodule(TARGET).weight.data += ALPHA / RANK * b @ a
    loaded = read(adapter)
    found = logits(hugging_face(loaded))
    assert (found - logits(expected)).abs().max() <= 1e-5
    assert (found - plain).abs().max() > 0.1
    assert loaded.facts["architecture"] == "LlamaForCausalLM"
    assert not [n for n, _ in hugging_face(loaded).named_parameters() if "lora" in n]


def test_the_hash_depends_on_the_base_the_adapter_and_its_scale(base, adapter):
    pytest.importorskip("peft")
    alone, facts = read(base).facts, read(adapter).facts
    said = facts["adapter"]
    assert said["base_sha256"] == alone["weights_sha256"] != facts["weights_sha256"]
    assert (said["id"], said["base"], said["base_revision"]) == (str(adapter), str(base), None)
    files = ("adapter_model.safetensors", "adapter_config.json")
    own = "".join(hashlib.sha256((adapter / name).read_bytes()).hexdigest() for name in files)
    assert said["sha256"] == hashlib.sha256(own.encode()).hexdigest()
    whole = said["base_sha256"] + said["sha256"]
    assert facts["weights_sha256"] == hashlib.sha256(whole.encode()).hexdigest()
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 7}))
    assert read(adapter).facts["weights_sha256"] != facts["weights_sha256"]


def test_the_tokenizer_is_the_adapters_own_where_it_has_one(base, adapter):
    pytest.importorskip("peft")
    assert "adapter" not in open_model(ModelSpec(str(adapter))).tokenizer.hf.name_or_path
    for file in (*base.glob("token*"), *base.glob("*.jinja")):
        shutil.copy(file, adapter)
    settings = json.loads((adapter / "tokenizer_config.json").read_text())
    (adapter / "chat_template.jinja").write_text("{{ messages[0].content }}, the adapter's own")
    (adapter / "tokenizer_config.json").write_text(json.dumps(settings))
    opened = open_model(ModelSpec(str(adapter)))
    assert "the adapter's own" in opened.tokenizer.hf.chat_template


def change_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop_b(folder):
    path = folder / "adapter_model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if "lora_A" in name}
    save_file(kept, path)


def other_layer(folder):
    path = folder / "adapter_model.safetensors"
    kept = {name.replace("layers.1", "layers.9"): t for name, t in load_file(path).items()}
    save_file(load_file(path) | kept, path)


def pickled(folder):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def cut(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:50])


BROKEN = {
    "nested": (lambda f: change_config(f, base_model_name_or_path=str(f)), "an adapter itself"),
    "no base": (lambda f: change_config(f, base_model_name_or_path=None), "does not say of what"),
    "base gone": (
        lambda f: change_config(f, base_model_name_or_path="./nowhere"),
        r"whose base cannot be opened: \./nowhere: no such folder",
    ),
    "prompt tuning": (lambda f: change_config(f, peft_type="PROMPT_TUNING"), "no weights can be"),
    "unknown kind": (lambda f: change_config(f, peft_type="NEW"), "does not fit its base: .*NEW"),
    "no such module": (lambda f: change_config(f, target_modules=["zzz"]), "does not fit.*zzz"),
    "other rank": (lambda f: change_config(f, r=3), "does not fit its base"),
    "damaged": (lambda f: (f / "adapter_config.json").write_text("{"), "damaged"),
    "half": (drop_b, "its weights lack .*lora_B"),
    "too much": (other_layer, r"no place for: .*layers\.9"),
    "pickled": (pickled, r"no adapter_model\.safetensors; pickled"),
    "cut": (cut, "truncated or corrupt"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_adapter_that_cannot_be_merged_is_one_line(adapter, name):
    pytest.importorskip("peft")
    change, said = BROKEN[name]
    change(adapter)
    with pytest.raises(UserError, match=said) as caught:
        read(adapter)
    assert "\n" not in str(caught.value)


def test_without_peft_the_line_says_what_to_install(adapter, monkeypatch):
    monkeypatch.setattr(adapters.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"an adapter \(LORA\) of .*base; .*pip install peft==\d"):
        find_origin(ModelSpec(str(adapter)))


def test_the_version_that_is_named_is_the_one_that_is_tested():
    for name, line in (
        ("requirements-tuning.txt", adapters.PEFT),
        ("constraints.txt", adapters.PEFT),
        ("requirements-dev.txt", "-r requirements-tuning.txt"),
    ):
        assert line in (PROJECT / name).read_text().split("\n"), name


def test_an_adapter_of_the_hub_pins_its_base(base, adapter, tmp_path, monkeypatch):
    """Both in the cache, found by their ids; the base at the commit that the adapter names."""
    pytest.importorskip("peft")
    first, second, own = "a" * 40, "b" * 40, "c" * 40
    change_config(adapter, base_model_name_or_path="someone/base", revision=first)
    for name, commit, folder in (
        ("base", first, base),
        ("base", second, base),
        ("adapter", own, adapter),
    ):
        repo = tmp_path / "hub" / f"models--someone--{name}"
        shutil.copytree(folder, repo / "snapshots" / commit)
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / "main").write_text(commit)
    for where in ("huggingface_hub", "transformers.utils.hub"):
        monkeypatch.setattr(f"{where}.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    facts = read("someone/adapter").facts
    assert (facts["revision"], facts["adapter"]["base_revision"]) == (own, first)
    assert facts["adapter"]["base"] == "someone/base"


def test_a_plan_for_an_adapter_is_checked_against_its_base(adapter, tmp_path, capsys):
    pytest.importorskip("peft")
    plan = tmp_path / "plan.json"
    argv = ["--model_id", str(adapter), "--prompts_per_category", "2", "--config_file", str(plan)]
    argv += ["--output_dir", str(tmp_path / "out"), "--device", "cpu"]
    for layer, code in ((3, 2), (1, 0)):
        entry = {"type": "head", "layer": layer, "head": 0, "method": "zero_out"}
        plan.write_text(json.dumps({"schema_version": 1, "interventions": [entry]}))
        assert interventions.main(argv) == code, capsys.readouterr().err
    done = capsys.readouterr()
    assert "interventions[0].layer is 3" in done.err
    facts = json.loads((tmp_path / "out/latest_intervention/experiment_config.json").read_text())
    assert facts["model"]["adapter"]["id"] == str(adapter)


def test_a_run_of_an_adapter_is_another_once_it_or_its_base_was_trained_on(adapter, base, tmp_path):
    pytest.importorskip("peft")
    flags = ["--model_id", str(adapter), "--prompts_per_category", "2", "--raw", "none"]
    flags += ["--output_dir", str(tmp_path / "out")]
    assert activation_analysis.main(flags) == 0
    args = activation_analysis.parse_args(flags)
    prompts, _ = load_prompts(args.prompts, args.prompts_per_category)
    asked = (tmp_path / "out/latest_run", args, prompts)
    assert identity.why_again(*asked) is None
    changes = {
        adapter / "adapter_model.safetensors": "the model's weights have changed",
        Path(base) / "model.safetensors": "the weights of the adapter's base have changed",
    }
    for file, said in changes.items():
        whole, times = file.read_bytes(), file.stat()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        os.utime(file, (times.st_atime, times.st_mtime))  # as rsync and cp -p leave it
        assert identity.why_again(*asked) == said
        file.write_bytes(whole)
        os.utime(file, (times.st_atime, times.st_mtime))
    assert identity.why_again(*asked) is None
