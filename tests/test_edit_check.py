"""An edit that TransformerLens does not perform is refused by name; it is never an effect of 0."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from transformers import DeepseekV3Config, FalconConfig, OPTConfig

import experiment
import interventions
from conftest import PROJECT
from rolecircuits.capture import activations
from rolecircuits.capture.batches import Rows
from rolecircuits.edits import check
from rolecircuits.edits.hooks import edit_rows
from rolecircuits.inputs.errors import UserError
from test_masks import SMALL, SPREAD, gpt_oss
from tiny_models import SHAPE, load_checked, save_config, save_tiny


def opt():
    shape = {"num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 48}
    shape |= {"max_position_embeddings": 256, "word_embed_proj_dim": 32, "init_std": 0.2}
    return OPTConfig(**SMALL, **shape)


def deepseek():
    ranks = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4}
    experts = {"n_routed_experts": 2, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1}
    experts |= {"moe_intermediate_size": 16, "first_k_dense_replace": 3}
    shape = SHAPE | {"num_key_value_heads": 4}
    return DeepseekV3Config(**shape, **ranks, v_head_dim=8, **experts)


def falcon():
    """The new decoder with one key head for every query head: TransformerLens reads it wrongly."""
    return FalconConfig(
        **SMALL | SPREAD,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_kv_heads=4,
        new_decoder_architecture=True,
        multi_query=False,
    )


def write_plan(folder, **entry):
    path = folder / "plan.json"
    path.write_text(json.dumps({"schema_version": 1, "interventions": [entry]}))
    return str(path)


PATTERN = {"type": "pattern", "layer": 1, "head": [0, 1, 2, 3], "method": "uniform"}
HEAD = {"type": "head", "layer": 1, "head": 2, "method": "zero_out"}


@pytest.mark.parametrize(
    ("make", "entry", "said"),
    [
        (opt, PATTERN, "pattern_1_0-1-2-3_uniform: editing a pattern at blocks.1.attn.hook_pattern "
         "changes nothing"),
        (deepseek, HEAD, "hook_z is .* its heads cannot be edited"),
        (falcon, HEAD, "FalconForCausalLM in float32: .* is not the model's attention"),
        (gpt_oss, HEAD, "GptOssForCausalLM has learned attention sinks"),
    ],
)  # fmt: skip
def test_edits_that_do_nothing_or_something_else_are_refused(make, entry, said, tmp_path, capsys):
    model = save_config(make(), tmp_path / "model")
    plan = write_plan(tmp_path, **entry)
    out = ["--output_dir", str(tmp_path / "out"), "--prompts_per_category", "2"]
    command = ["--model_id", model, "--config_file", plan, *out]
    for main in (interventions.main, experiment.main):
        assert main(command) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and re.search(said, error), error
    assert not (tmp_path / "out").exists() or not os.listdir(tmp_path / "out")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return load_checked(save_tiny("llama", tmp_path_factory.mktemp("llama")), device="cpu")


def test_what_was_proved_is_in_the_facts(llama):
    sites = {("head", 0): ["a"], ("pattern", 1): ["b"], ("mlp", 2): ["c"], ("layer", 0): ["d"]}
    verdict = check.check_edits(llama, sites)
    assert llama.facts["edits"] == verdict
    assert max(verdict[f"{what}_gap"] for what in ("bridge_logit", "bridge_row")) < 1e-4
    assert verdict["zeroed_heads_gap"] < 1e-4
    changed = verdict["site_logit_change"]
    assert set(changed) == {
        "blocks.1.attn.hook_pattern",
        "blocks.2.hook_mlp_out",
        "blocks.0.hook_resid_post",
    }
    assert min(changed.values()) > 1e-3


def test_another_head_zeroed_than_said_is_found(llama, monkeypatch):
    real = check.bridge_logits

    def shifted(loaded, ids, hooks):
        zero = lambda z, rows: (0 * z, rows.real(z.shape[1], z.device))  # noqa: E731
        rows = Rows([0], [len(ids)])
        others = [
            (name, edit_rows([(layer + 1) % loaded.n_heads], zero, rows))
            for layer, (name, _) in enumerate(hooks)
        ]
        for _, hook in hooks:
            hook(torch.zeros(1, len(ids), loaded.n_heads, 8), None)
        return real(loaded, ids, others)

    monkeypatch.setattr(check, "bridge_logits", shifted)
    with pytest.raises(UserError, match="is not zeroing its columns of the output projection"):
        check.check_edits(llama, {("head", 0): ["a"]})


def test_a_bridge_that_is_another_model_is_refused(llama, monkeypatch):
    monkeypatch.setattr(activations, "plain_logits", lambda loaded, ids: torch.ones(1, 49152))
    with pytest.raises(UserError, match="bridge gives other logits than the model"):
        activations.check_bridge(llama)


def test_only_edits_import_transformerlens(tmp_path):
    """It takes a second, and brings wandb and datasets; measuring does without."""
    model = save_tiny("llama", tmp_path / "model")
    talk = tmp_path / "talk.jsonl"
    talk.write_text('{"id": "a", "text": "Rain falls from clouds."}\n')
    common, few = ["--model_id", model, "--output_dir", str(tmp_path)], "--prompts_per_category=1"
    code = (
        "import sys, activation_analysis, experiment\n"
        f"common = {common!r}\n"
        f"assert activation_analysis.main([*common, {few!r}]) == 0\n"
        f"assert activation_analysis.main([*common, '--documents', {str(talk)!r}]) == 0\n"
        f"assert experiment.main([*common, {few!r}, '--max_tokens', '2']) == 0\n"
        "print('brought', sorted({'transformer_lens', 'wandb', 'datasets'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == "brought []", done.stderr
