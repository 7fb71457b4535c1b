"""Tiny random multimodal models in hub format: a text side with the bundled model's tokenizer and
a tower for images that texts never reach.

save_multimodal("gemma3", folder)    the whole model, as its checkpoints are
"""

import shutil

import torch
import transformers
from transformers import CONFIG_MAPPING

from rolecircuits.models.source import bundled_folder

TEXT = {
    "vocab_size": 49152,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 600,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
QWEN = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7}
# model type: (class, text changes, vision config, other changes)
KINDS = {
    "gemma3": (
        "Gemma3ForConditionalGeneration",
        {"num_hidden_layers": 6, "sliding_window": 8},
        VISION,
        {"mm_tokens_per_image": 4},
    ),
    "mistral3": (
        "Mistral3ForConditionalGeneration",
        {"model_type": "mistral"},
        VISION | {"model_type": "pixtral"},
        {},
    ),
    "llava": (
        "LlavaForConditionalGeneration",
        {"model_type": "llama"},
        VISION | {"model_type": "clip_vision_model", "projection_dim": 16},
        {},
    ),
    "idefics3": ("Idefics3ForConditionalGeneration", {"model_type": "llama"}, VISION, {}),
    "qwen2_5_vl": (
        "Qwen2_5_VLForConditionalGeneration",
        {"rope_parameters": SECTIONS},
        {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16}
        | {"out_hidden_size": 32, "fullatt_block_indexes": [0]},
        QWEN,
    ),
    "qwen3_vl": (
        "Qwen3VLForConditionalGeneration",
        {"rope_parameters": SECTIONS},
        {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16}
        | {"out_hidden_size": 32, "deepstack_visual_indexes": [0]},
        QWEN,
    ),
    "llama4": (
        "Llama4ForConditionalGeneration",
        {"num_hidden_layers": 4, "intermediate_size_mlp": 48, "num_local_experts": 2}
        | {"attention_chunk_size": 16},
        VISION | {"projector_input_dim": 16, "projector_output_dim": 16, "vision_output_dim": 16},
        {},
    ),
}


def save_multimodal(kind, folder):
    """Save a random multimodal model with the bundled tokenizer; returns the folder as text."""
    name, text, vision, changes = KINDS[kind]
    config = CONFIG_MAPPING[kind](text_config=TEXT | text, vision_config=vision, **changes)
    torch.manual_seed(0)
    getattr(transformers, name)(config).save_pretrained(folder)
    for file in bundled_folder().iterdir():
        if "token" in file.name or file.suffix == ".jinja":
            shutil.copy(file, folder)
    return str(folder)
