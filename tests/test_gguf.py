"""GGUF files: a tiny one written here is read as the model that it was made from."""

import json
import re
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import activation_analysis
from rolecircuits.inputs.errors import UserError
from rolecircuits.inputs.files import sha256_of
from rolecircuits.inputs.specs import ModelSpec
from rolecircuits.models import devices, source
from rolecircuits.models.load import open_model, read_weights
from rolecircuits.models.source import locate_model

HEADS, KV_HEADS, LAYERS, WIDTH, INNER = 4, 2, 2, 32, 64
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def byte_letters():
    """The 256 characters that stand for bytes in a byte-level vocabulary."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(256 + i) for i in range(len(hidden))]


def gguf_name(name):
    """llama.cpp's name of a Hugging Face parameter, and the heads by which it is interleaved."""
    stem = name.removesuffix(".weight")
    if stem in OUTSIDE:
        return f"{OUTSIDE[stem]}.weight", None
    layer, inner = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", stem).groups()
    heads = {"self_attn.q_proj": HEADS, "self_attn.k_proj": KV_HEADS}.get(inner)
    return f"blk.{layer}.{NAMES[inner]}.weight", heads


def save_gguf(path, quantised=(), without=(), change=lambda writer: None):
    """Write a random Llama as GGUF; returns the model, with what quantisation made of it.

    without  words in the names of parameters that are left out    change  of the writer
    """
    tokens = [*SPECIAL, *byte_letters(), "ab"]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=128,
        initializer_range=0.2,
        rope_theta=10000.0,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * 257)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
    change(writer)
    for name, tensor in model.state_dict().items():
        if any(word in name for word in without):
            continue
        other, heads = gguf_name(name)
        values = tensor.numpy().copy()
        if any(word in name for word in quantised):
            kind = gguf.GGMLQuantizationType.Q8_0
            packed = gguf.quants.quantize(values, kind)
            tensor.copy_(torch.from_numpy(gguf.quants.dequantize(packed, kind).copy()))
            writer.add_tensor(other, packed, raw_dtype=kind)
            continue
        if heads:  # llama.cpp pairs the two halves of a rotary dimension
            halves = values.reshape(heads, 2, -1, values.shape[1])
            values = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))
        writer.add_tensor(other, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "role-conditioning"


def read(path, **options):
    loaded = read_weights(open_model(ModelSpec(str(path), device="cpu", **options)))
    return loaded, getattr(loaded, "model", None) or loaded.plain


def test_a_gguf_file_and_its_folder_are_the_model_that_was_written(tmp_path, cache, capsys):
    folder = tmp_path / "some model"
    folder.mkdir()
    expected = save_gguf(folder / "tiny Q8_0.gguf", quantised=("mlp.down_proj", "v_proj"))
    loaded, model = read(folder)
    ids = torch.arange(5, 40)[None]
    with torch.no_grad():
        gap = (model(input_ids=ids).logits - expected(input_ids=ids).logits).abs().max()
    assert gap <= 1e-5
    said = {"file": "tiny Q8_0.gguf", "sha256": sha256_of(folder / "tiny Q8_0.gguf")}
    assert loaded.facts["gguf"] == said
    assert loaded.tokenizer.hf.decode(loaded.tokenizer.hf("Hello you")["input_ids"]) == "Hello you"
    assert loaded.tokenizer.hf.chat_template.startswith("{% for m in messages %}")
    assert "converting tiny Q8_0.gguf once" in capsys.readouterr().err
    half, model = read(folder / "tiny Q8_0.gguf", dtype="bfloat16")
    assert model.dtype == torch.bfloat16 and half.facts["gguf"] == said
    assert half.facts["weights_sha256"] == loaded.facts["weights_sha256"]
    assert "converting" not in capsys.readouterr().err, "it is converted once"
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [
        f"tiny_Q8_0-{said['sha256'][:16]}"
    ]


def test_several_ggufs_in_a_folder_are_named(tmp_path):
    for name in ("a.Q4_K_M.gguf", "b.Q8_0.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"2 GGUF files \(a\.Q4_K_M\.gguf, b\.Q8_0\.gguf\); name"):
        locate_model(str(tmp_path))


def truncated(path):
    save_gguf(path)
    path.write_bytes(path.read_bytes()[:5000])


def unknown(path):
    """A whole GGUF of an architecture that transformers does not know."""
    writer = gguf.GGUFWriter(path, "mystery")
    writer.add_tensor("x", np.zeros((32, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


BAD = {
    "unknown": ("m.gguf", unknown, "transformers cannot read this GGUF: GGUF model with arch"),
    "empty": ("m.gguf", lambda p: p.write_bytes(b""), "is no GGUF"),
    "magic alone": ("m.gguf", lambda p: p.write_bytes(b"GGUF"), "truncated or damaged"),
    "other file": ("m.gguf", lambda p: p.write_bytes(b"PK\3\4 zip"), "is no GGUF"),
    "truncated": ("m.gguf", truncated, "truncated or damaged"),
    "part": ("m-00001-of-00003.gguf", lambda p: p.write_bytes(b"GGUF"), "one of 3 parts; join"),
    "a file": ("m.txt", lambda p: p.write_bytes(b"x"), "is a file and no .gguf"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_gguf_that_cannot_be_read_is_one_line(name, tmp_path, capsys, cache):
    file, write, said = BAD[name]
    write(tmp_path / file)
    argv = ["--model_id", str(tmp_path / file), "--output_dir", str(tmp_path / "out")]
    assert activation_analysis.main(argv) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "converting" not in line]
    assert len(lines) == 1 and said in lines[0]
    assert not cache.exists() or not [path for path in cache.iterdir() if path.is_dir()]


def test_a_gguf_that_does_not_fit_is_refused_before_it_is_read(tmp_path, monkeypatch):
    save_gguf(tmp_path / "m.gguf")
    n = sum(int(tensor.n_elements) for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors)
    read_anyway = []
    monkeypatch.setattr(
        source.AutoModelForCausalLM, "from_pretrained", lambda *a, **k: read_anyway.append(a)
    )
    monkeypatch.setattr(devices, "free_bytes", lambda device: 8 * n - 1)
    with pytest.raises(UserError, match="dequantising it needs .* name the model that it was made"):
        locate_model(str(tmp_path / "m.gguf"))
    monkeypatch.setattr(devices, "free_bytes", lambda device: 8 * n)
    usage = source.shutil.disk_usage(tmp_path)._replace(free=4 * n - 1)
    monkeypatch.setattr(source.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match="dequantising it writes .* set XDG_CACHE_HOME"):
        locate_model(str(tmp_path / "m.gguf"))
    assert not read_anyway


def test_the_facts_of_a_folder_that_was_never_a_gguf(tmp_path):
    assert source.gguf_facts(tmp_path) is None
    Path(tmp_path, source.GGUF_FACTS).write_text(json.dumps({"file": "a", "sha256": "b"}))
    assert source.gguf_facts(tmp_path) == {"file": "a", "sha256": "b"}


def test_a_gguf_that_lacks_a_tensor_is_refused_and_not_kept(tmp_path, cache):
    """transformers would fill it with random numbers."""
    path = tmp_path / "tiny.gguf"
    save_gguf(path, without=["layers.1.mlp.up_proj"])
    with pytest.raises(UserError, match="lack 1 parameters .*up_proj"):
        read(path)
    assert not [folder for folder in cache.iterdir() if folder.is_dir()]


@pytest.mark.parametrize(
    "change",
    [
        lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.YARN),
        lambda writer: writer.add_tensor("rope_freqs.weight", np.ones(4, np.float32)),
    ],
    ids=["yarn", "factors"],
)
def test_rotary_scaling_that_transformers_drops_is_refused(tmp_path, change):
    path = tmp_path / "tiny.gguf"
    save_gguf(path, change=change)
    with pytest.raises(UserError, match="rotary angles are scaled"):
        read(path)
