"""Adapters (LoRA and its kin): the base is loaded as any other model, the adapter merged into it.

    W' = W + (alpha / r) B A        Hu et al. 2021, arXiv 2106.09685

An adapter is a folder or hub repository with adapter_config.json, which names the base. Merging
needs peft, which is not installed with this project; without it the line says what to install.
"""

import contextlib
import hashlib
import importlib.util
import json
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from rolecircuits.inputs.errors import UserError, one_line, printable
from rolecircuits.inputs.files import sha256_of
from rolecircuits.models.source import (
    ADAPTER_CONFIG,
    errors_in_one_line,
    hub_errors_in_one_line,
    locate_model,
    pin_revision,
)

PEFT = "peft==0.21.2"
WEIGHTS = "adapter_model.safetensors"
TOKENIZER = "tokenizer_config.json"
# They add virtual tokens or choose between adapters at every token: no weights are equal to them.
NOT_MERGED = (
    *("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT"),
    *("ADAPTION_PROMPT", "CARTRIDGE", "XLORA", "POLY"),
)


@dataclass(frozen=True)
class Adapter:
    """An adapter's files, and the base that it names.

    source, revision            of the adapter: a folder or hub id, and its commit
    config, weights, tokenizer  files; weights None until downloaded, tokenizer None for the base's
    base, base_revision         as named in adapter_config.json
    """

    source: str
    revision: str | None
    config: Path
    base: str
    base_revision: str | None
    weights: Path | None = None
    tokenizer: Path | None = None


@dataclass(frozen=True)
class Origin:
    """Where a model's weights are: what from_pretrained takes and its commit, and the adapter that
    is merged into them, None for a whole model.
    """

    source: str
    revision: str | None
    adapter: Adapter | None = None


def find_origin(spec):
    """The Origin of a ModelSpec; nothing of the size of weights is read."""
    source = locate_model(spec.model_id)
    revision = pin_revision(source, spec.revision)
    adapter = find_adapter(spec.model_id, source, revision)
    if adapter is None:
        return Origin(source, revision)
    try:
        base = locate_model(adapter.base)
        base_revision = pin_revision(base, adapter.base_revision)
        nested = _file(base, base_revision, ADAPTER_CONFIG)
    except UserError as error:
        raise UserError(
            f"--model_id {printable(spec.model_id)}: an adapter whose base cannot be opened: "
            f"{one_line(error).removeprefix('--model_id ')}"
        ) from error
    if nested is not None:
        raise UserError(
            f"--model_id {printable(spec.model_id)}: an adapter whose base, "
            f"{printable(adapter.base)}, is an adapter itself; merge that one first"
        )
    return Origin(base, base_revision, adapter)


def find_adapter(model_id, source, revision):
    """The Adapter at a folder or hub commit, None where a whole model is."""
    path = _file(source, revision, ADAPTER_CONFIG)
    if path is None:
        return None
    shown = f"--model_id {printable(model_id)}"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{shown}: its {ADAPTER_CONFIG} is damaged: {one_line(error)}") from error
    config = config if isinstance(config, dict) else {}
    kind, base = config.get("peft_type"), config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base.strip() or not isinstance(kind, str):
        raise UserError(
            f"{shown}: its {ADAPTER_CONFIG} does not say of what kind it is (peft_type) "
            "and of which model (base_model_name_or_path); it cannot be merged"
        )
    what = f"{shown}: an adapter ({printable(kind)}) of {printable(base)}"
    if kind in NOT_MERGED:
        raise UserError(f"{what}, which no weights can be merged into; a LoRA can be")
    if importlib.util.find_spec("peft") is None:
        raise UserError(f"{what}; to have it merged: pip install {PEFT}")
    base_revision = config.get("revision")
    if base_revision is not None and not isinstance(base_revision, str):
        raise UserError(f"{shown}: revision in its {ADAPTER_CONFIG} is no text")
    if Path(base).expanduser().is_dir() or base.startswith("bundled:"):
        base_revision = None  # peft writes the revision that was asked for, folder or not
    tokenizer = _file(source, revision, TOKENIZER)
    adapter = Adapter(source, revision, path, base, base_revision, tokenizer=tokenizer)
    return _with_weights(adapter) if Path(source).is_dir() else adapter


def _file(source, revision, name):
    """A file of a folder or hub commit, downloaded; None where it has none."""
    if Path(source).is_dir():
        path = Path(source, name)
        return path if path.is_file() else None
    with hub_errors_in_one_line(source, revision):
        try:
            path = Path(huggingface_hub.hf_hub_download(source, name, revision=revision))
        except (errors.EntryNotFoundError, errors.LocalEntryNotFoundError):
            return None
    return path if path.is_file() else None


def _with_weights(adapter):
    """The adapter with its weights there and readable; pickled ones are refused."""
    weights = _file(adapter.source, adapter.revision, WEIGHTS)
    shown = f"--model_id {printable(adapter.source)}"
    if weights is None:
        raise UserError(f"{shown}: the adapter has no {WEIGHTS}; pickled weights can run code")
    try:
        with safe_open(weights, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(f"{weights}: truncated or corrupt: {one_line(error)}") from error
    return replace(adapter, weights=weights)


def merge_adapter(model, adapter, model_id):
    """The model with the adapter merged into its weights, refused where they do not fit together.

    model  the base as it was loaded; its modules are changed
    """
    import peft  # optional, and only adapters need it

    adapter = adapter if adapter.weights else _with_weights(adapter)
    with errors_in_one_line(model_id, "the adapter does not fit its base"), _quietly():
        config = peft.PeftConfig.from_pretrained(str(adapter.config.parent))
        config.inference_mode = True
        wrapped = peft.get_peft_model(model, config)
        report = peft.set_peft_model_state_dict(wrapped, load_file(adapter.weights))
        own = {name for name, parameter in wrapped.named_parameters() if ".default" in name}
        missing = sorted(own & set(report.missing_keys))
        strange = missing or sorted(report.unexpected_keys)
        if strange:
            lacking = "lack" if missing else "have what the base has no place for:"
            raise ValueError(f"its weights {lacking} {strange[0]}")
        merged = wrapped.merge_and_unload(safe_merge=True)
    return merged.eval()


@contextlib.contextmanager
def _quietly():
    """peft's advice to its developers is not for users."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def adapter_facts(origin, base_sha256):
    """What an adapter changes in the model's facts: revision, hash, and where both come from.

    weights_sha256 depends on the base, the adapter's weights and its config, which holds the scale.
    """
    adapter = origin.adapter
    weights = adapter.weights or _with_weights(adapter).weights
    own = _hash(sha256_of(weights), sha256_of(adapter.config))
    said = {
        "id": adapter.source,
        "revision": adapter.revision,
        "sha256": own,
        "base": adapter.base,
        "base_revision": origin.revision,
        "base_sha256": base_sha256,
    }
    return {
        "revision": adapter.revision,
        "weights_sha256": _hash(base_sha256, own),
        "adapter": said,
    }


def _hash(*hashes):
    return hashlib.sha256("".join(hashes).encode()).hexdigest()
