"""Which token a model's raw texts begin with: TransformerLens's rule, without TransformerLens.

    whether   by the architecture (its adapters' default_prepend_bos); one that TransformerLens has
              no adapter for is fed as its tokenizer feeds a text
    which     the BOS token; the EOS token where the tokenizer has no BOS; <|endoftext|> where it
              has neither; the token that the tokenizer itself puts first (a [CLS]) where it does

tests/test_bos.py holds both against the installed TransformerLens.
"""

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

FALLBACK = "<|endoftext|>"
PREPENDS = frozenset(
    """
    ASTForAudioClassification AfmoeForCausalLM ApertusForCausalLM ArceeForCausalLM BD3LM
    BaiChuanForCausalLM BaichuanForCausalLM BambaForCausalLM BartForConditionalGeneration
    BertForMaskedLM BertLMHeadModel BitNetForCausalLM BlenderbotForConditionalGeneration
    CodeGenForCausalLM Cohere2ForCausalLM CohereForCausalLM DeepseekV2ForCausalLM
    DeepseekV3ForCausalLM DeepseekV4ForCausalLM DeiTForImageClassification DeiTModel
    Emu3ForConditionalGeneration FalconForCausalLM FalconH1ForCausalLM FalconMambaForCausalLM
    FlexOlmoForCausalLM Florence2ForConditionalGeneration GPT2LMHeadCustomModel GPT2LMHeadModel
    GPTBigCodeForCausalLM GPTJForCausalLM GPTNeoForCausalLM Gemma1ForCausalLM Gemma2ForCausalLM
    Gemma3ForCausalLM Gemma3ForConditionalGeneration Gemma3nForConditionalGeneration
    Gemma4ForCausalLM Gemma4ForConditionalGeneration Gemma4UnifiedForConditionalGeneration
    GemmaForCausalLM GiddForDiffusionLM GptOssForCausalLM HrmTextForCausalLM HubertForCTC
    HubertModel HunYuanDenseV1ForCausalLM HyenaDNAForCausalLM Idefics3ForConditionalGeneration
    InternLM2ForCausalLM Jais2ForCausalLM JambaForCausalLM JetMoEForCausalLM JetMoeForCausalLM
    LEDForConditionalGeneration LLaDA2MoeModelLM LagunaForCausalLM Lfm2ForCausalLM
    Lfm2MoeForCausalLM Llama4ForCausalLM Llama4ForConditionalGeneration LlamaForCausalLM
    LlavaForConditionalGeneration LlavaNextForConditionalGeneration
    LlavaOnevisionForConditionalGeneration LongT5ForConditionalGeneration
    M2M100ForConditionalGeneration MBartForConditionalGeneration MT5ForConditionalGeneration
    Mamba2ForCausalLM MambaForCausalLM MarianMTModel MinGPTForCausalLM Ministral3ForCausalLM
    Mistral3ForConditionalGeneration MistralForCausalLM MixtralForCausalLM
    ModernBertDecoderForCausalLM MuseGlimmerForConditionalGeneration NanoChatForCausalLM
    NanoGPTForCausalLM NeelSoluOldForCausalLM NemotronForCausalLM NemotronHForCausalLM
    NeoForCausalLM OPTForCausalLM Olmo2ForCausalLM Olmo3ForCausalLM OlmoForCausalLM
    OlmoHybridForCausalLM OlmoeForCausalLM OpenAIGPTLMHeadModel OpenELMForCausalLM
    OuroForCausalLM PegasusForConditionalGeneration Phi3ForCausalLM QwenForCausalLM
    RWKV7ForCausalLM RavenForCausalLM RobertaForMaskedLM RwkvForCausalLM StableLmForCausalLM
    SwitchTransformersForConditionalGeneration T5ForConditionalGeneration
    T5Gemma2ForConditionalGeneration T5GemmaForConditionalGeneration T5WithLMHeadModel
    TransformerLensNative TransformerLensPretrain VaultGemmaForCausalLM
    ViTForImageClassification ViTModel Wav2Vec2ForCTC Wav2Vec2ForPreTraining Wav2Vec2Model
    XGLMForCausalLM YoutuForCausalLM Zamba2ForCausalLM
""".split()
)
PREPENDS_NOT = frozenset(
    """
    AudioFlamingo3ForConditionalGeneration BloomForCausalLM BloomModel DreamModel
    Ernie4_5ForCausalLM Ernie4_5_MoeForCausalLM Exaone4ForCausalLM ExaoneForCausalLM
    GPTNeoXForCausalLM Glm4ForCausalLM Glm4MoeForCausalLM Glm4MoeLiteForCausalLM
    Glm4vForConditionalGeneration GlmAsrForConditionalGeneration GlmForCausalLM
    GlmMoeDsaForCausalLM GraniteForCausalLM GraniteMoeForCausalLM GraniteMoeHybridForCausalLM
    LLaDAModelLM MPTForCausalLM MiniMaxM2ForCausalLM MptForCausalLM
    MusicFlamingoForConditionalGeneration NeoXForCausalLM PhiForCausalLM PhiMoEForCausalLM
    Qwen2AudioForConditionalGeneration Qwen2ForCausalLM Qwen2MoeForCausalLM
    Qwen2_5_VLForConditionalGeneration Qwen3ForCausalLM Qwen3MoeForCausalLM Qwen3NextForCausalLM
    Qwen3VLForConditionalGeneration Qwen3VLMoeForConditionalGeneration Qwen3_5ForCausalLM
    Qwen3_5ForConditionalGeneration Qwen3_5MoeForCausalLM Qwen3_5MoeForConditionalGeneration
    RecurrentGemmaForCausalLM SeedOssForCausalLM SmolLM3ForCausalLM Starcoder2ForCausalLM
""".split()
)


def prepends_bos(config, hf):
    """Whether a raw text of the model with this config and tokenizer begins with `bos_of`."""
    names = [*(getattr(config, "architectures", None) or [])]
    names.append(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type))
    for name in names:
        if name in PREPENDS or name in PREPENDS_NOT:
            return name in PREPENDS
    return _first_by_itself(hf) is not None


def bos_of(hf):
    """(id, text) of the token that begins a raw text, or (None, None) where there is none.

    A token that is not one piece of the vocabulary is none: its text would be read as letters.
    """
    first = _first_by_itself(hf)
    if first is not None:
        return first, hf.convert_ids_to_tokens(first)
    text = hf.bos_token or hf.eos_token or FALLBACK
    ids = hf(text, add_special_tokens=False).input_ids
    return (ids[0], text) if len(ids) == 1 else (None, None)


def _first_by_itself(hf):
    """The id of the BOS or CLS token that the tokenizer itself puts before a text, or None."""
    ids = hf("a").input_ids
    known = [id_ for id_ in (hf.bos_token_id, hf.cls_token_id) if id_ is not None]
    return ids[0] if len(ids) > 1 and ids[0] in known else None
