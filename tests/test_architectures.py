"""Which models are refused by their config alone: every model type of the installed transformers
that has a next token, with its default config, before any weight exists."""

import pytest
import transformers
from transformers import CONFIG_MAPPING, AutoConfig

from rolecircuits.inputs.errors import UserError
from rolecircuits.models.architecture import (
    CLASSES,
    auto_class,
    check_architecture,
    context_length,
    dense_tokens,
    is_multimodal,
    model_shape,
)
from rolecircuits.models.load import ModelTokenizer

# What the line says, and the model types that get it. All others are accepted.
REFUSED = {
    "linear_attention layers; softmax attention over tokens": "bailing_hybrid bamba "
    "granitemoehybrid jamba kimi_linear minimax nemotron_h olmo_hybrid qwen3_5 qwen3_5_moe "
    "qwen3_5_moe_text qwen3_5_text qwen3_next qwen4_exp qwen4_exp_text zamba zamba2 "
    "glm5_next minicpm_ocr minicpmv4_6 minicpmv4_7 nemotron_h_omni nemo_speechlm",
    "conv layers": "lfm3 lfm3_vl",
    "heavily_compressed_attention layers": "deepseek_v4",
    "state-space or recurrent": "falcon_mamba mamba mamba2 recurrent_gemma rwkv xlstm",
    "encoder-decoder": "bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus "
    "plbart whisper florence2 pix2struct pp_formulanet t5gemma2 udop vision-encoder-decoder",
    "runs as an encoder": "bert bert-generation big_bird camembert data2vec-text electra ernie "
    "megatron-bert rembert roberta roberta-prelayernorm roc_bert roformer xlm xlm-roberta "
    "xlm-roberta-xl xmod",
    "every token see all others": "cpmant xlnet",
    "several streams": "prophetnet",
    "buckets of hashes": "reformer",
    "patches of bytes": "blt",
    "by diffusion": "diffusion_gemma",
    "several times in one pass": "hrm_text",
    "subtracts two softmaxes": "diffllama",
    "no forward pass of its own": "qwen2_5_omni qwen3_omni_moe",
    "no text": "musicgen musicgen_melody pi0",
    "drafts tokens for another": "gemma4_unified_assistant",
    "attend to an image alone": "mllama",
    "with 64 and 128 heads": "dots3_note dots3_note_text",
    "every pass needs": "blip blip-2 evolla idefics instructblip instructblipvideo kosmos-2 "
    "kyutai_speech_to_text voxtral_realtime",
}
SAID = {kind: words for words, kinds in REFUSED.items() for kind in kinds.split()}
NO_DEFAULT = {"gemma4_assistant"}  # its own config refuses to be made
KINDS = sorted({kind for classes in CLASSES.values() for kind in classes} - NO_DEFAULT)


def default_config(kind, **changes):
    """The default config of a model type, with the name of a class that it is loaded with."""
    config = CONFIG_MAPPING[kind](**changes)
    name = next(classes[kind] for classes in CLASSES.values() if kind in classes)
    config.architectures = [name if isinstance(name, str) else name[0]]
    return config


@pytest.mark.parametrize("kind", KINDS)
def test_every_model_type_is_accepted_or_refused_by_a_true_line(kind):
    config = default_config(kind)
    if kind in SAID:
        with pytest.raises(UserError, match=f"{kind}.* {SAID[kind]}"):
            check_architecture("some/model", config)
        return
    check_architecture("some/model", config)
    shape = model_shape(config)
    assert shape.n_heads >= shape.n_kv_heads >= 1 and shape.n_layers >= 1
    assert context_length(config) or kind == "bloom"


def test_no_expected_refusal_is_of_an_unknown_type():
    assert set(SAID) <= set(KINDS)


DECODERS = [
    ("bart", {"encoder_layers": 3, "decoder_layers": 2, "decoder_attention_heads": 8}),
    ("whisper", {"decoder_layers": 2, "decoder_attention_heads": 8}),
    ("trocr", {"decoder_layers": 2, "decoder_attention_heads": 8}),
]


@pytest.mark.parametrize(("kind", "sizes"), DECODERS)
def test_a_decoder_taken_out_of_a_seq2seq_model_has_its_own_sizes(kind, sizes):
    config = default_config(kind, **sizes, is_encoder_decoder=False, is_decoder=True)
    check_architecture("some/model", config)
    assert (model_shape(config).n_layers, model_shape(config).n_heads) == (2, 8)


def test_an_encoder_that_runs_as_a_decoder():
    check_architecture("some/model", default_config("bert", is_decoder=True))
    sparse = default_config("big_bird", is_decoder=True)
    with pytest.raises(UserError, match="block_sparse attention; .* original_full"):
        check_architecture("some/model", sparse)
    sparse.attention_type = "original_full"
    check_architecture("some/model", sparse)


HEADS = [
    ("laguna", {"num_hidden_layers": 2, "num_attention_heads_per_layer": [48, 64]}, "48 and 64"),
    ("inkling_text", {"swa_num_attention_heads": 32}, "32 and 64"),
]


@pytest.mark.parametrize(("kind", "changes", "said"), HEADS)
def test_layers_with_different_numbers_of_heads(kind, changes, said):
    with pytest.raises(UserError, match=f"layers with {said} heads"):
        check_architecture("some/model", default_config(kind, **changes))


def test_convolution_layers_that_a_config_names_itself():
    config = default_config("lfm2", num_hidden_layers=2, layer_types=["conv", "full_attention"])
    with pytest.raises(UserError, match="lfm2 has conv layers"):
        check_architecture("some/model", config)


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("mpt", {"max_seq_len": 77}, 77),
        ("dbrx", {"max_seq_len": 77}, 77),
        ("gpt2", {"n_positions": 77}, 77),
        ("whisper", {"max_target_positions": 77}, 77),
        ("bloom", {}, None),
        ("bloom", {"seq_length": 77}, 77),
    ],
)
def test_context_length_under_each_of_its_names(kind, changes, expected):
    assert context_length(default_config(kind, **changes)) == expected


def test_tokens_up_to_which_a_sparse_model_sees_every_key():
    assert dense_tokens(default_config("deepseek_v32", index_topk=64)) == 64
    blocks = {"index_topk_blocks": 3, "index_block_size": 16}
    kinds = ["full_attention", "minimax_m3_sparse"]
    sparse = default_config("minimax_m3_vl_text", num_hidden_layers=2, layer_types=kinds, **blocks)
    assert dense_tokens(sparse) == 48
    assert dense_tokens(default_config("llama")) is None


@pytest.mark.parametrize(
    ("kind", "name", "loads", "multimodal"),
    [
        ("llama4", "Llama4ForConditionalGeneration", "ImageTextToText", True),
        ("llama4", "Llama4ForCausalLM", "CausalLM", False),
        ("gemma3", "Gemma3ForConditionalGeneration", "CausalLM", True),
        ("gemma3_text", "Gemma3ForCausalLM", "CausalLM", False),
        ("mistral3", "Mistral3ForConditionalGeneration", "ImageTextToText", True),
        ("mistral4", "Mistral4ForCausalLM", "ImageTextToText", False),
        ("qwen2_audio", "Qwen2AudioForConditionalGeneration", "MultimodalLM", True),
        ("internlm3", "InternLM3ForCausalLM", "CausalLM", False),
        ("phi4_multimodal", "Phi4MultimodalForCausalLM", "CausalLM", True),
    ],
)
def test_the_class_that_a_config_names(kind, name, loads, multimodal):
    config = CONFIG_MAPPING[kind](architectures=[name])
    assert auto_class(config) is getattr(transformers, f"AutoModelFor{loads}")
    assert is_multimodal(config, name) is multimodal


def test_a_model_with_its_own_code_is_left_to_it():
    config = AutoConfig.for_model("llama")
    config.model_type = "mine"
    assert auto_class(config) is transformers.AutoModelForCausalLM


def test_texts_of_a_model_without_a_context_and_of_a_sparse_one():
    free = ModelTokenizer(None, True, None, 10)
    free.check_ids([1] * 100_000, "prompt p")
    sparse = ModelTokenizer(None, True, 100, 10, dense=8)
    sparse.check_ids([1] * 8, "prompt p")
    with pytest.raises(UserError, match="prompt p has 9 tokens; beyond 8 .* sparse attention"):
        sparse.check_ids([1] * 9, "prompt p")
