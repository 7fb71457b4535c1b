"""What a config says of the attention: causal softmax in every layer or not, context."""

from rolecircuits.inputs.errors import UserError, printable

STATE_SPACE = ("mamba", "rwkv", "recurrent_gemma", "xlstm")
WITHOUT_ATTENTION = ("linear_attention", "mamba", "recurrent", "conv", "chunked_attention")


def check_architecture(model_id, config):
    """Refuse, before weights are read, what has no causal softmax attention in every layer."""
    names, layer_types = (
        _texts(config, field, model_id) for field in ("architectures", "layer_types")
    )
    kinds = [kind for kind in layer_types if any(word in kind for word in WITHOUT_ATTENTION)]
    name = f"--model_id {printable(model_id)}: {printable(config.model_type)}"
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"{name} is an encoder-decoder (seq2seq) model; a causal decoder is needed")
    if any(word in config.model_type for word in STATE_SPACE):
        raise UserError(f"{name} is a state-space or recurrent model without attention patterns")
    if kinds:
        raise UserError(
            f"{name} has {printable(kinds[0])} layers; softmax attention in every layer is needed"
        )
    if not any(
        n.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for n in names
    ):
        shown = ", ".join(map(printable, names)) or "nothing"
        raise UserError(
            f"{name} ({shown}) is not a causal language model; encoders and bare bases have no "
            "next token"
        )

    text = config.get_text_config()
    for field in ("num_hidden_layers", "num_attention_heads", "vocab_size"):
        value = getattr(text, field, None)
        if type(value) is not int or value < 1:
            raise UserError(
                f"{name} has {field} {printable(value)}; a whole number of at least 1 is needed"
            )


def _texts(config, field, model_id):
    """A list of texts of a config, empty where there is none."""
    values = getattr(config, field, None) or []
    if not isinstance(values, (list, tuple)) or not all(isinstance(value, str) for value in values):
        raise UserError(
            f"--model_id {printable(model_id)}: {field} in its config.json is not a list of texts"
        )
    return values


def context_length(config):
    """The most tokens the model was built for."""
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"):
        if isinstance(getattr(text, name, None), int) and getattr(text, name) > 0:
            return getattr(text, name)
    raise UserError(f"{printable(config.model_type)}: its config states no context length")
