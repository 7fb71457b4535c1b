"""Rotary embeddings whose angles depend on the longest text of a batch (LongRoPE, dynamic NTK).

    LongRoPE     other factors once the longest text exceeds the length of the original training
    dynamic NTK  the base grows with the longest text beyond that length, and stays grown

(transformers.modeling_rope_utils.dynamic_rope_update). A text must have the angles it has alone:
batches never mix texts on both sides of that length, dynamic NTK takes one length a batch beyond
it, and what stays grown is reset before every pass.
"""

LONGROPE, DYNAMIC = "longrope", "dynamic"


def rotary_modules(model):
    """The modules that hold rotary angles themselves (a bridge wraps them in others)."""
    holds = [part for part in model.modules() if any("inv_freq" in name for name in part._buffers)]
    return [part for part in holds if getattr(part, "rope_type", None) is not None]


def _types(part):
    """{layer type or None: rope type} of a rotary module."""
    return part.rope_type if isinstance(part.rope_type, dict) else {None: part.rope_type}


def rotary_facts(model):
    """{"type", "original"}: of the angles that depend on the batch's longest text, None without.

    original  the most tokens that the first kind of angles holds for
    """
    for part in rotary_modules(model):
        parameters = getattr(part.config, "rope_parameters", None) or {}
        for layer_type, kind in _types(part).items():
            own = parameters if layer_type is None else parameters.get(layer_type, {})
            if kind == LONGROPE:
                return {"type": LONGROPE, "original": int(own["original_max_position_embeddings"])}
            if DYNAMIC in kind:
                return {"type": DYNAMIC, "original": int(part.original_max_seq_len)}
    return None


def batch_side(facts):
    """A function length -> key: texts of different keys must not share a batch.

    facts  of the model, as in experiment_config.json
    """
    rotary = facts.get("rotary")
    if rotary is None:
        return lambda length: 0
    original = rotary["original"]
    if rotary["type"] == LONGROPE:
        return lambda length: int(length > original)
    return lambda length: length if length > original else 0


def reset_rotary(model):
    """Let dynamic NTK begin with the angles of short texts, whatever was fed before."""
    for part in rotary_modules(model):
        for layer_type, kind in _types(part).items():
            if DYNAMIC not in kind:
                continue
            prefix = "" if layer_type is None else f"{layer_type}_"
            original = getattr(part, f"{prefix}original_inv_freq")
            part.register_buffer(
                f"{prefix}inv_freq", original.to(getattr(part, f"{prefix}inv_freq").device), False
            )
            setattr(part, f"{prefix}max_seq_len_cached", part.original_max_seq_len)
