"""The rule of the first token is that of the installed TransformerLens, and the config says what
was fed."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformers import AutoModelForCausalLM, AutoTokenizer

from rolecircuits.capture.tokens import tokenize_prompts
from rolecircuits.inputs.prompt_sets import select_prompts
from rolecircuits.models import bos
from rolecircuits.models.load import load_tokenizer
from tiny_models import save_tiny

SHAPE = {"d_model": 32, "d_head": 8, "n_heads": 4, "n_layers": 2, "n_ctx": 64, "d_vocab": 100}


def test_the_table_is_that_of_every_adapter(monkeypatch):
    monkeypatch.setattr(ArchitectureAdapter, "_check_required_libraries", lambda self: None)
    rules = {}
    for name, adapter in SUPPORTED_ARCHITECTURES.items():
        if hasattr(adapter, "_validate_config"):
            monkeypatch.setattr(adapter, "_validate_config", lambda self: None)
        config = TransformerBridgeConfig(**SHAPE, architecture=name)
        config.n_key_value_heads = 2
        rules[name] = adapter(config).cfg.default_prepend_bos
    assert {name for name, rule in rules.items() if rule} == bos.PREPENDS
    assert {name for name, rule in rules.items() if not rule} == bos.PREPENDS_NOT


def change_tokenizer(folder, change):
    """Edit tokenizer_config.json of a model's folder."""
    path = Path(folder, "tokenizer_config.json")
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    return folder


def without_bos(config):
    config.pop("bos_token")


def without_both(config):
    config.pop("bos_token"), config.pop("eos_token")


def with_cls(config):
    config.pop("bos_token")
    config["cls_token"] = "<reponame>"


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("change", [dict, without_bos, without_both, with_cls])
def test_what_is_fed_is_what_transformer_lens_feeds(tmp_path, kind, change):
    folder = change_tokenizer(save_tiny(kind, tmp_path / "m"), change)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    bridge = TransformerBridge.boot_transformers(
        folder, hf_model=model, tokenizer=AutoTokenizer.from_pretrained(folder)
    )
    prompt = select_prompts(per_category=1)[0]
    fed = tokenize_prompts([prompt], load_tokenizer(folder))[0]
    assert fed.token_ids == bridge.to_tokens(prompt.text)[0].tolist()


def test_an_unknown_architecture_is_fed_as_its_tokenizer_feeds_a_text():
    def tokenizer(ids):
        return type(
            "T", (), {"bos_token_id": 7, "cls_token_id": None, "__call__": lambda *_: ids}
        )()

    config = SimpleNamespace(architectures=["NewForCausalLM"], model_type="new")
    assert bos.prepends_bos(config, tokenizer(SimpleNamespace(input_ids=[7, 3])))
    assert not bos.prepends_bos(config, tokenizer(SimpleNamespace(input_ids=[3, 7])))
    known = SimpleNamespace(architectures=None, model_type="mistral")
    assert bos.prepends_bos(known, tokenizer(SimpleNamespace(input_ids=[3])))
