"""A loaded model in a TransformerBridge, where activations can be edited under TransformerLens's
hook names. Only edits and `--raw full` need it; nothing else imports TransformerLens.
"""

import copy

import torch
from transformer_lens.model_bridge import TransformerBridge

from rolecircuits.models.no_installer import no_installer
from rolecircuits.models.source import errors_in_one_line

BRIDGE_REFUSES = "TransformerLens, which edits need, refuses it"


def boot_bridge(loaded):
    """The TransformerBridge of a LoadedModel: the same weights in the same memory, eager attention.

    Booting rewires the modules that it is given and changes the tokenizer: it gets copies. It would
    also install what it misses for images: that is refused.
    raises  UserError where TransformerLens has no adapter for the architecture
    """
    model = plain_copy(loaded.model)
    model.set_attn_implementation("eager")
    dtype = getattr(torch, loaded.facts["dtype"])
    options = {"tokenizer": copy.deepcopy(loaded.tokenizer.hf), "dtype": dtype}
    options["device"] = str(next(model.parameters()).device)  # else it takes any GPU that there is
    name = loaded.facts["id"]
    with errors_in_one_line(name, BRIDGE_REFUSES), no_installer():
        try:
            bridge = TransformerBridge.boot_transformers(name, hf_model=model, **options)
        except AssertionError as error:  # how some of its adapters say that they do not fit
            raise ValueError(str(error)) from error
        except ValueError as error:
            if "Available architectures" not in str(error):  # 160 of them
                raise
            kind = loaded.facts["architecture"]
            raise ValueError(f"it has no adapter for {kind}") from error
    return bridge.eval()


def plain_copy(model):
    """A second tree of modules over the same tensors."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)
