"""What a config says of a model: causal softmax attention in every layer or not, its class, sizes.

A composite config (image or audio and text) is read on its text side, config.get_text_config().
"""

from dataclasses import dataclass

import transformers
from transformers.models.auto import modeling_auto as auto

from rolecircuits.inputs.errors import UserError, printable

# The classes that give the next token of a text: {model_type: class}, in the order of preference.
CLASSES = {
    transformers.AutoModelForCausalLM: auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    transformers.AutoModelForImageTextToText: auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    transformers.AutoModelForMultimodalLM: auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
}
ENDINGS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
STATE_SPACE = ("mamba", "rwkv", "recurrent_gemma", "xlstm")
# layer_types with softmax attention over tokens; hybrid layers have a convolution or a state beside
# it, indexed and sparse ones choose their keys where a text is long (`dense_tokens`).
SOFTMAX = (
    *("full_attention", "sliding_attention", "chunked_attention", "hybrid", "hybrid_sliding"),
    *("indexed_attention", "minimax_m3_sparse", "reference_sliding_attention"),
)
SEVERAL_MODELS = "has no forward pass of its own: its thinker and its talker are separate models"
# What has a next token and no row of softmax attention to the tokens before it.
REASONS = {
    "blt": "works on patches of bytes in three towers; no row of attention is that of a token",
    "cpmant": "lets every token see all others; a causal model is needed",
    "diffusion_gemma": "fills blocks by diffusion, where tokens see those after them; a causal "
    "model is needed",
    "diffllama": "subtracts two softmaxes in every layer; a layer has no single pattern",
    "hrm_text": "runs its blocks several times in one pass; a layer has no single pattern",
    "musicgen": "writes codes of audio, no text",
    "musicgen_melody": "writes codes of audio, no text",
    "pi0": "writes actions of a robot, no text",
    "prophetnet": "predicts several tokens at once from several streams; a causal model is needed",
    "qwen2_5_omni": SEVERAL_MODELS,
    "qwen3_omni_moe": SEVERAL_MODELS,
    "reformer": "attends inside buckets of hashes; softmax attention in every layer is needed",
    "xlnet": "is trained on permuted texts and lets every token see all others; a causal model is "
    "needed",
}
# Multimodal models whose forward pass refuses text alone, and what it asks for.
NEEDS_MORE = {
    "blip": "an image",
    "blip-2": "an image",
    "evolla": "a protein",
    "idefics": "an image",
    "instructblip": "an image",
    "instructblipvideo": "a video",
    "kosmos-2": "an image",
    "kyutai_speech_to_text": "audio",
    "voxtral_realtime": "audio",
}
ENCODERS = {*auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, "bert-generation"}
# Fields that state the heads of layers of one type, where they are not those of the others.
OTHER_HEADS = {
    "sliding_attention": "num_sliding_attention_heads",
    "hybrid_sliding": "swa_num_attention_heads",
}
# A decoder taken out of an encoder-decoder: its standard names are those of the encoder.
DECODER_FIELDS = {
    "num_hidden_layers": "decoder_layers",
    "num_attention_heads": "decoder_attention_heads",
}
CONTEXT_FIELDS = (
    *("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "max_seq_len"),
    *("max_seq_length", "seq_length", "max_target_positions"),
)


@dataclass(frozen=True)
class ModelShape:
    """Layers, query heads and key-value heads (those of the first layer) of the text side."""

    n_layers: int
    n_heads: int
    n_kv_heads: int


def check_architecture(model_id, config):
    """Refuse, before weights are read, what has no causal softmax attention in every layer."""
    names = _texts(config, "architectures", model_id)
    name = f"--model_id {printable(model_id)}: {printable(config.model_type)}"
    why = _why_no_causal_attention(config)
    if why:
        raise UserError(f"{name} {why}")
    text = text_config(config)
    kinds = [kind for kind in _texts(text, "layer_types", model_id) if kind not in SOFTMAX]
    if kinds:
        raise UserError(
            f"{name} has {printable(kinds[0])} layers; softmax attention over tokens in every "
            "layer is needed"
        )
    known = {one for classes in CLASSES.values() for one in _flat(classes.values())}
    if not any(one.endswith(ENDINGS) or one in known for one in names):
        shown = ", ".join(map(printable, names)) or "nothing"
        raise UserError(
            f"{name} ({shown}) is not a causal language model; encoders and bare bases have no "
            "next token"
        )
    for field in ("num_hidden_layers", "num_attention_heads", "vocab_size"):
        for value in set(_per_layer(text, field)):
            if type(value) is not int or value < 1:
                raise UserError(
                    f"{name} has {field} {printable(value)}; a whole number of at least 1 is needed"
                )
    heads = sorted(set(_per_layer(text, "num_attention_heads")))
    if len(heads) > 1:
        shown = " and ".join(map(str, heads))
        raise UserError(
            f"{name} has layers with {shown} heads; the same number in every layer is needed"
        )


def _why_no_causal_attention(config):
    """What a line says of a config without causal softmax attention; None where it has it."""
    kind = config.model_type
    if kind in REASONS:  # before its text side is asked for, which some of them have twice
        return REASONS[kind]
    if kind in NEEDS_MORE:
        return f"cannot be fed text alone: every pass needs {NEEDS_MORE[kind]} too"
    if kind.endswith("_assistant"):
        return "drafts tokens for another model, whose states it needs; name that model"
    text = text_config(config)
    if config.is_encoder_decoder or text.is_encoder_decoder:
        return "is an encoder-decoder (seq2seq) model; a causal decoder is needed"
    if any(word in kind for word in STATE_SPACE):
        return "is a state-space or recurrent model without attention patterns"
    if kind in ENCODERS and not _is_decoder(config):
        return (
            "is not a causal language model: it runs as an encoder (is_decoder is not set in its "
            "config.json), where tokens see those after them"
        )
    if kind == "big_bird" and config.attention_type != "original_full":
        found = printable(config.attention_type)
        return f"has {found} attention; its config.json must say attention_type original_full"
    if getattr(text, "cross_attention_layers", None):
        return (
            "has layers that attend to an image alone (cross_attention_layers); softmax attention "
            "over tokens in every layer is needed"
        )
    return None


def _is_decoder(config):
    """Whether a model that can be an encoder runs as a causal decoder."""
    return getattr(config, "causal" if hasattr(config, "causal") else "is_decoder", False)


def text_config(config):
    """The config of the text side: of the model itself where it has only that."""
    return config.get_text_config(decoder=True)


def auto_class(config):
    """The auto class that loads what the config names: a causal model, or an image-text one.

    Checkpoints of one model_type may hold the whole multimodal model or its text side alone.
    """
    kind, names = config.model_type, config.architectures or []
    fitting = [auto_model for auto_model, classes in CLASSES.items() if kind in classes]
    for auto_model in fitting:
        if set(_flat([CLASSES[auto_model][kind]])) & set(names):
            return auto_model
    return (*fitting, transformers.AutoModelForCausalLM)[0]  # the last one: a model's own code


def is_multimodal(config, architecture):
    """True where `architecture`, the name of the loaded class, also takes images or audio."""
    _, *others = CLASSES.values()
    named = any(architecture in _flat(classes.values()) for classes in others)
    return named and bool(config.sub_configs)


def _flat(names):
    """Class names, of which one model_type may have a tuple."""
    return [one for name in names for one in (name if isinstance(name, (tuple, list)) else (name,))]


def model_shape(config):
    """The ModelShape of a checked config."""
    text = text_config(config)
    n_layers = _per_layer(text, "num_hidden_layers")[0]
    n_heads = _per_layer(text, "num_attention_heads")[0]
    kv_heads = [value for value in _per_layer(text, "num_key_value_heads")[:1] if value]
    if config.model_type == "falcon":
        multi = text.multi_query and not text.new_decoder_architecture
        kv_heads = [1 if multi else text.num_kv_heads]
    return ModelShape(n_layers, n_heads, (*kv_heads, n_heads)[0])


def _per_layer(text, field):
    """The value of a field in every layer, as a list; of one number for all layers, that alone."""
    if getattr(text, "is_heterogeneous", False) and field != "num_hidden_layers":
        return [getattr(layer, field, None) for layer in text.per_layer_config]
    decoder = DECODER_FIELDS.get(field, field)
    values = [getattr(text, decoder, getattr(text, field, None))]
    if field == "num_attention_heads":
        values += getattr(text, "num_attention_heads_per_layer", None) or []
        kinds = set(getattr(text, "layer_types", None) or [])
        others = (getattr(text, name, None) for kind, name in OTHER_HEADS.items() if kind in kinds)
        values += [value for value in others if value is not None]
    return values


def _texts(config, field, model_id):
    """A list of texts of a config, empty where there is none."""
    values = getattr(config, field, None) or []
    if not isinstance(values, (list, tuple)) or not all(isinstance(value, str) for value in values):
        raise UserError(
            f"--model_id {printable(model_id)}: {field} in its config.json is not a list of texts"
        )
    return values


def context_length(config):
    """The most tokens the model was built for; None where its config states none (ALiBi)."""
    text = text_config(config)
    for name in CONTEXT_FIELDS:
        value = getattr(text, name, None)
        if type(value) is int and value > 0:
            return value
    return None


def dense_tokens(config):
    """Tokens up to which every key is seen; None where that is so for texts of any length.

    Indexed attention chooses index_topk keys a row, that of MiniMax-M3 blocks of keys: which keys
    a row of a longer text can see depends on the text.
    """
    text = text_config(config)
    kinds = set(getattr(text, "layer_types", None) or [])
    if "indexed_attention" in kinds:
        return text.index_topk
    if "minimax_m3_sparse" in kinds:
        return text.index_topk_blocks * text.index_block_size
    return None
