"""Tiny random models in hub format, so that every architecture's path through the loader and the
hooks is tested.

save_tiny("mistral", folder)   config.json, model.safetensors and the bundled model's tokenizer
"""

import shutil

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from rolecircuits.capture.instrument import load_model
from rolecircuits.inputs.specs import ModelSpec
from rolecircuits.models.source import bundled_folder

WINDOW = 3
SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "initializer_range": 0.2,
}
CONFIGS = {
    "llama": (LlamaConfig, {}),
    "mistral": (MistralConfig, {"sliding_window": WINDOW}),
    "qwen2": (
        Qwen2Config,
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": (Qwen3Config, {"head_dim": 16}),
    "gemma2": (Gemma2Config, {"sliding_window": WINDOW, "head_dim": 8, "query_pre_attn_scalar": 8}),
}
WINDOWS = {
    "llama": [None, None, None],
    "mistral": [WINDOW, WINDOW, WINDOW],
    "qwen2": [None, WINDOW, WINDOW],
    "qwen3": [None, None, None],
    "gemma2": [WINDOW, None, WINDOW],
}


def save_tiny(name, folder, **changes):
    """Save a random model of one architecture with the bundled tokenizer; returns the folder as
    text."""
    kind, extra = CONFIGS[name]
    return save_config(kind(**(SHAPE | extra | changes)), folder)


def save_config(config, folder):
    """Save a random model of a config with the bundled tokenizer; returns the folder as text."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for file in bundled_folder().iterdir():
        if "token" in file.name or file.suffix == ".jinja":
            shutil.copy(file, folder)
    return str(folder)


def load_checked(model_id, **options):
    """A checked LoadedModel; options are the fields of ModelSpec."""
    return load_model(ModelSpec(str(model_id), **options))


def two_turns(tokenized):
    """The spans of two turns a prompt, its first and its second half."""
    lengths = [len(prompt.token_ids) for prompt in tokenized]
    return [((0, n // 2), (n // 2, n)) for n in lengths]
