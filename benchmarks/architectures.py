"""A tiny random model of every causal architecture that the installed transformers knows.

    rows()                   {row: Architecture}: every key of transformers' mappings, and variants
    save_tiny(row, folder)   config.json, model.safetensors and the bundled model's tokenizer

A tiny config is the architecture's default config with every size replaced by a small one (SIZES),
as many layers as it takes to keep every kind of layer that the default has, and windows and chunks
of 8 tokens. Matrices are normal with deviation 0.2, so that attention is far from uniform; biases
and learned sinks are random too, the weights of norms stay.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from rolecircuits.models.source import bundled_folder

VOCABULARY = 49152
WINDOW = 8
CONTEXT = 600
MAX_PARAMETERS = 40e6
DEVIATION = 0.2
# The number of layers and of heads by their many names, then every other size.
LAYERS = (
    "num_hidden_layers num_layers n_layer n_layers decoder_layers encoder_layers "
    "num_encoder_layers num_decoder_layers depth num_blocks"
).split()
HEADS = (
    "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads "
    "num_encoder_attention_heads num_decoder_attention_heads attention_heads"
).split()
KV_HEADS = "num_key_value_heads num_kv_heads swa_num_key_value_heads kv_n_heads".split()
SIZES = {
    **dict.fromkeys(
        "hidden_size d_model n_embd dim emb_dim embed_dim embedding_size hidden_dim embedding_dim "
        "word_embed_proj_dim input_embedding_size output_embedding_size lru_width "
        "backbone_hidden_size attention_hidden_size".split(),
        32,
    ),
    **dict.fromkeys(
        "head_dim d_head dim_head swa_head_dim attention_head_dim v_head_dim kv_channels "
        "attention_head_size linear_head_dim linear_key_head_dim linear_value_head_dim "
        "mamba_head_dim mamba_d_head index_head_dim global_head_dim swa_v_head_dim".split(),
        8,
    ),
    **dict.fromkeys(
        "intermediate_size moe_intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim n_inner "
        "ffn_hidden_size shared_expert_intermediate_size shared_intermediate_size dff dim_ff "
        "d_inner expert_ffn_hidden_size intermediate_size_mlp dense_intermediate_size mlp_dim "
        "shared_experts_intermediate_size moe_shared_expert_intermediate_size "
        "router_hidden_size feed_forward_size".split(),
        48,
    ),
    **dict.fromkeys(
        "num_experts n_routed_experts num_local_experts moe_num_experts mamba_d_state "
        "mamba_d_conv state_size ssm_state_size conv_kernel linear_num_key_heads "
        "linear_num_value_heads linear_num_heads index_n_heads mamba_n_heads mamba_num_heads "
        "swa_num_attention_heads linear_conv_kernel_dim short_conv_kernel_size "
        "laurel_rank".split(),
        4,
    ),
    **dict.fromkeys(
        "num_experts_per_tok num_experts_per_token moe_topk moe_k top_k_experts "
        "altup_num_inputs".split(),
        2,
    ),
    **dict.fromkeys(
        "n_group num_expert_group topk_group n_shared_experts num_shared_experts".split(), 1
    ),
    **dict.fromkeys(
        "max_position_embeddings n_positions n_ctx max_seq_len model_max_length context_length "
        "max_target_positions max_source_positions seq_length max_sequence_length "
        "original_max_position_embeddings".split(),
        CONTEXT,
    ),
    **dict.fromkeys(
        "sliding_window sliding_window_size window_size attention_window_size local_attention "
        "attention_chunk_size local_attention_window_len chunk_size mamba_chunk_size "
        "index_block_size".split(),
        WINDOW,
    ),
    **dict.fromkeys(
        "qk_nope_head_dim kv_lora_rank q_lora_rank hidden_size_per_layer_input ple_embed_dim "
        "o_lora_rank".split(),
        8,
    ),
    "index_topk": 128,  # all keys of the texts that are fed
    "qk_rope_head_dim": 4,
    "qk_head_dim": 12,
    "rotary_dim": 4,
    "query_pre_attn_scalar": 8,
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "num_codebooks": 2,
    "image_size": 28,
    "patch_size": 14,
    "num_channels": 3,
    "num_kv_shared_layers": 0,
}
FED = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


@dataclass(frozen=True)
class Architecture:
    """One row of the table: a key of transformers' mappings, and what its config changes.

    key, model_class  as transformers names them    changes  of the config, by hand
    """

    key: str
    model_class: str
    changes: dict = field(default_factory=dict)


# Keys whose causal class in the mapping takes their text config only.
WHOLE_MODELS = ("emu3", "llama4", "qwen3_5", "qwen3_5_moe", "qwen4_exp", "dots3_note")


def names():
    """{key: model class} of both mappings of the installed transformers."""
    whole = {
        key: MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[key]
        for key in WHOLE_MODELS
        if key in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    }
    merged = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES | MODEL_FOR_CAUSAL_LM_MAPPING_NAMES | whole
    return {key: value[0] if isinstance(value, tuple) else value for key, value in merged.items()}


def rows():
    """{row: Architecture}, alphabetical: every key, with its variants below it."""
    found = {}
    for key, model_class in sorted(names().items()):
        for variant, changes in {"": {}, **VARIANTS.get(key, {})}.items():
            row = f"{key} ({variant})" if variant else key
            found[row] = Architecture(key, model_class, merge(CHANGES.get(key, {}), changes))
    return found


def merge(first, second):
    """Both dicts, the second one's values where both have one, inner dicts merged."""
    inner = {
        name: merge(first[name], value)
        for name, value in second.items()
        if isinstance(value, dict) and isinstance(first.get(name), dict) and name.endswith("config")
    }
    return {**first, **second, **inner}


def tiny_config(row):
    """The tiny config of an Architecture."""
    kind = CONFIG_MAPPING[row.key]
    changes = shrink(kind(), row.changes) | FED
    return kind(**merge(changes, row.changes))


def shrink(default, given):
    """{field: small value} of a default config; sub-configs likewise.

    given  what is set by hand: a number of layers among it decides how many are kept
    """
    values, changes = default.to_dict(), {}
    mapped = {target: name for name, target in default.attribute_map.items()}
    n_default = next((values[n] for n in LAYERS if type(values.get(n)) is int), None)
    n_given = next((given[n] for n in LAYERS if n in given), None)
    n_heads = next((values[n] for n in HEADS if type(values.get(n)) is int), None)
    latent = isinstance(values.get("kv_lora_rank"), int)  # its keys have as many heads as queries
    rotary = latent and values.get("head_dim") == values.get("qk_rope_head_dim")
    lists = {
        name: value
        for name, value in values.items()
        if isinstance(value, list) and n_default and len(value) == n_default and name not in given
    }
    lists = {name: value for name, value in lists.items() if value != list(range(n_default))}
    kinds = {name: value for name, value in lists.items() if "heads" not in name}
    kept = kept_layers(kinds, n_default or 0, n_given)
    for name, value in values.items():
        known = mapped.get(name, name)
        if name in lists:
            changes[name] = [4 if "heads" in name else value[i] for i in kept]
        elif name in LAYERS or known in LAYERS:
            changes[name] = len(kept) if value == n_default else min(value or 1, 2)
        elif name in HEADS or known in HEADS:
            changes[name] = 4
        elif name in KV_HEADS:
            many = latent or value in (None, n_heads)
            changes[name] = 4 if many else 1 if value == 1 else 2
        elif name == "head_dim" and rotary:
            changes[name] = SIZES["qk_rope_head_dim"]
        elif name == "is_decoder":
            changes[name] = True
        elif name == "rope_parameters":
            changes[name] = small_rope(value)
        elif name in SIZES or known in SIZES:
            if type(value) in (int, float) or (value is None and known == "head_dim"):
                changes[name] = SIZES.get(name, SIZES.get(known))
        elif isinstance(value, dict) and isinstance(getattr(default, name, None), PretrainedConfig):
            inner = shrink(getattr(default, name), given.get(name, {}))
            model_type = value.get("model_type")
            changes[name] = inner | ({"model_type": model_type} if model_type else {})
        elif name.endswith(("token_id", "token_index")) and type(value) is int:
            changes[name] = min(value, VOCABULARY - 1 - len(changes))
    return changes


def small_rope(parameters):
    """Rotary parameters whose sections fit heads of 8."""
    if not isinstance(parameters, dict):
        return parameters
    small = {name: small_rope(value) for name, value in parameters.items()}
    if "mrope_section" in small:
        small["mrope_section"] = [2, 1, 1]
    return small


def kept_layers(lists, n_default, n_given=None):
    """Positions of the default layers that are kept: the last one and each kind of layer once.

    lists  {field: [layer]} whose values together are a layer's kind
    """
    if n_given is not None:
        return list(range(n_default - n_given, n_default)) if lists else [0] * n_given
    if not lists:
        return [0] * 3
    kinds = [tuple(map(str, values)) for values in zip(*lists.values(), strict=True)]
    first = {}
    for i, kind in enumerate(kinds):
        first.setdefault(kind, i)
    first.pop(kinds[-1])
    kept = sorted([*first.values(), n_default - 1])
    more = (i for i in range(n_default) if i not in kept)
    while len(kept) < min(3, n_default):
        kept = sorted([*kept, next(more)])
    return kept


def tiny_model(row, seed=0):
    """The random model of an Architecture in float32 and eval mode.

    raises  ValueError where its config did not become small
    """
    config, kind = tiny_config(row), getattr(transformers, row.model_class)
    with torch.device("meta"):
        sizes = {name: p.numel() for name, p in kind(config).named_parameters()}
    if sum(sizes.values()) > MAX_PARAMETERS:
        largest = sorted(sizes, key=sizes.get)[-3:]
        raise ValueError(f"too large: {', '.join(f'{name} {sizes[name]}' for name in largest)}")
    torch.manual_seed(seed)
    model = kind(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 or name.endswith("bias") or "sink" in name:
                parameter.normal_(std=DEVIATION)
    return model


def save_tiny(row, folder):
    """Save the tiny model of an Architecture with the bundled tokenizer; returns the folder."""
    tiny_model(row).save_pretrained(folder)
    for file in bundled_folder().iterdir():
        if "token" in file.name or file.suffix == ".jinja":
            shutil.copy(file, folder)
    return Path(folder)


# What the defaults of a config lack or contradict when they are made small.
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
MROPE = ROPE | {"mrope_section": [2, 1, 1]}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8}
CHANGES = {
    "bamba": MAMBA,
    "big_bird": {"attention_type": "original_full"},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "blenderbot": {"encoder_layers": 3, "decoder_layers": 3},
    "bloom": {"n_layer": 3},
    "chameleon": {"vocabulary_map": {"<image>": 49000}},
    "cohere_compass": {
        "text_config": {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}}
    },
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}},
    "deepseek_v2": {"num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dots1": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "sliding_window": 8,
    },
    "dbrx": {
        "rope_theta": 10000.0,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {
            "ffn_hidden_size": 48,
            "hidden_size": 32,
            "moe_num_experts": 4,
            "moe_top_k": 2,
        },
    },
    "falcon_h1": MAMBA | {"mamba_d_ssm": 64},
    "granitemoehybrid": MAMBA,
    "deepseek_ocr2": {
        "text_config": {
            "mlp_layer_types": ["dense", "sparse", "sparse"],
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
        }
    },
    "emu3": {"vocabulary_map": {"<image>": 49000}},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [20, 30]},
    "dots3_note_text": {"per_layer_config": {}},
    "ernie4_5_vl_moe": {"text_config": {"moe_num_experts": 4}},
    "gemma4": {"text_config": {"global_head_dim": 8}},
    "gemma4_text": {"global_head_dim": 8},
    "gemma4_unified": {"text_config": {"global_head_dim": 8}},
    "gemma4_unified_text": {"global_head_dim": 8},
    "glm46v": {"text_config": {"rope_parameters": MROPE}},
    "glm4v": {"text_config": {"rope_parameters": MROPE}},
    "glm5_next": {"text_config": {"index_kpool": 4}},
    "glm_ocr": {"text_config": {"rope_parameters": MROPE}},
    "glmga": {"text_config": {"rope_parameters": MROPE}},
    "granite_docling": {"vision_config": {"out_hidden_size": 32}},
    "hunyuan_vl": {"text_config": {"head_dim": 8}},
    "inkling2": {"vision_config": {"text_hidden_size": 32}},
    "lfm2": {"layer_types": ["conv", "full_attention", "full_attention"], "num_hidden_layers": 3},
    "lfm2_vl": {
        "text_config": {
            "layer_types": ["conv", "full_attention", "full_attention"],
            "num_hidden_layers": 3,
        }
    },
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "muse_glimmer": {"out_hidden_size": 32, "projector_hidden_size": 32},
    "muse_spark": {"audio_config": {"out_hidden_size": 32}},
    "paddleocr_vl": {"text_config": {"rope_parameters": MROPE}},
    "qwen2_5_omni_thinker": {"text_config": {"rope_parameters": MROPE}},
    "qwen2_5_vl": {"text_config": {"rope_parameters": MROPE}},
    "qwen2_vl": {"text_config": {"rope_parameters": MROPE}},
    "xmod": {"default_language": "en_XX"},
    "step3p7": {"text_config": {"sliding_window": 8}},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3},
    "mamba2": {"num_heads": 8},
    "mistral_large4": {"text_config": {"kv_source_layers": [0, 1, 2]}},
    "nemotron_h": {"mamba_num_heads": 8, "n_groups": 1},
    "glm4v_moe": {
        "text_config": {"head_dim": 16, "rope_parameters": MROPE | {"partial_rotary_factor": 0.5}}
    },
}
VARIANTS = {
    "blenderbot": {"encoder of fewer layers": {"encoder_layers": 2, "decoder_layers": 3}},
    "falcon": {
        "multi-head": {"multi_query": False},
        "alibi": {"alibi": True},
        "new decoder": {"new_decoder_architecture": True, "num_kv_heads": 2},
        "new decoder, not multi-query": {
            "new_decoder_architecture": True,
            "multi_query": False,
            "num_kv_heads": 2,
        },
        "multi-head, alibi": {"multi_query": False, "alibi": True},
    },
    "gemma3_text": {
        "long rope": {
            "rope_parameters": {
                "full_attention": ROPE | {"rope_type": "linear", "factor": 8.0},
                "sliding_attention": ROPE,
            }
        }
    },
    "deepseek_v32": {"8 keys a row": {"index_topk": 8}},
    "gemma4_text": {"keys are values": {"attention_k_eq_v": True}},
    "gpt_bigcode": {"multi-head": {"multi_query": False}},
    "llama": {
        "sliding_window that its code ignores": {"sliding_window": 8},
        "llama3 rope": {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
        "dynamic rope": {
            "max_position_embeddings": 120,
            "rope_parameters": ROPE | {"rope_type": "dynamic", "factor": 4.0},
        },
        "yarn": {
            "rope_parameters": ROPE
            | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
        },
        "attention bias, 1 kv head": {"attention_bias": True, "num_key_value_heads": 1},
    },
    "mistral": {"no window": {"sliding_window": None}},
    "phi": {"qk_layernorm": {"qk_layernorm": True}},
    "phi3": {
        "longrope": {
            "max_position_embeddings": 256,
            "original_max_position_embeddings": 48,
            "rope_parameters": ROPE
            | {
                "rope_type": "longrope",
                "long_factor": [8.0, 16.0, 32.0, 64.0],
                "short_factor": [1.0] * 4,
                "original_max_position_embeddings": 48,
            },
        },
        "window": {"sliding_window": 8},
    },
    "qwen2": {
        "use_sliding_window": {
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 1,
            "layer_types": None,
        }
    },
    "stablelm": {"qk_layernorm": {"qk_layernorm": True}},
    "xmod": {"no default language": {"default_language": None}},
    "starcoder2": {"window": {"sliding_window": 8}},
}
