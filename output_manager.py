"""Run folders: written aside, renamed when complete, checked when read. Nothing here is ever pickled.

    <output_dir>/run_20260101_120000/    one folder per run, never overwritten
    <output_dir>/latest_run              symlink to the newest complete run, swapped atomically at the very end

A run is complete when its manifest.json exists; the manifest holds the size and SHA-256 of every other file and is
written last. Until then the folder has a hidden name (.tmp_...), which no reader accepts; the next run removes those that
a killed process left behind.
"""

import contextlib
import csv
import fcntl
import io
import json
import lzma
import os
import re
import shutil
import struct
import subprocess
import time
import tokenize
import unicodedata
import uuid
import warnings
import zipfile
import zlib
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np

from rolecircuits.inputs.arguments import MAX_SEED
from rolecircuits.inputs.categories import CATEGORIES
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.files import sha256_of

SCHEMA_VERSION = 1
TEMPORARY = ".tmp_"
UNIQUE = 16
LOCK = ".lock"
PACKAGES = ("torch", "transformer_lens", "transformers", "tokenizers", "numpy", "scipy", "safetensors", "gguf")
MAX_ARRAY_BYTES = 64 * 2**30
MAX_MEMBERS = 1000
MAX_CHARACTER = 0x10FFFF
ARRAYS = {
    "category": ("U", ("prompt",)),
    "prompt_id": ("U", ("prompt",)),
    "pair_id": ("i", ("prompt",)),
    "n_tokens": ("i", ("prompt",)),
    "span": ("i", ("prompt", 2)),
    "entropy": ("f", ("prompt", "layer", "head", "query")),
    "entropy_sinkfree": ("f", ("prompt", "layer", "head", "query")),
    "sink_mass": ("f", ("prompt", "layer", "head", "query")),
    "visible_keys": ("i", ("layer", "query")),
    "first_mass": ("f", ("prompt", "layer", "head")),
    "last_mass": ("f", ("prompt", "layer", "head")),
    "edge_mass": ("f", ("prompt", "layer", "head", 2)),
    "edge_tokens": ("i", ("prompt",)),
}
# What zipfile, its decompressors and numpy's header parser raise for bytes that are no npz; RuntimeError is zipfile's
# answer to an encrypted member, and numpy reads headers with Python's own tokenizer and parser.
NPZ_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError, struct.error, SyntaxError)
NPZ_ERRORS += (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, EOFError, OSError)
JSON_ERRORS = (ValueError, RecursionError)  # ValueError: bad UTF-8, bad JSON, a number of more than 4,300 digits
PROBABILITIES = ("sink_mass", "first_mass", "last_mass", "edge_mass")


@dataclass
class Run:
    """A complete run, loaded: `config` is experiment_config.json, the arrays are those of attention.npz (ARRAYS)."""

    path: Path
    config: dict
    category: np.ndarray
    prompt_id: np.ndarray
    pair_id: np.ndarray
    n_tokens: np.ndarray
    span: np.ndarray
    entropy: np.ndarray
    entropy_sinkfree: np.ndarray
    sink_mass: np.ndarray
    visible_keys: np.ndarray
    first_mass: np.ndarray
    last_mass: np.ndarray
    edge_mass: np.ndarray
    edge_tokens: np.ndarray
    prompts: list = field(default_factory=list)

    @property
    def n_layers(self):
        return self.entropy.shape[1]

    @property
    def n_heads(self):
        return self.entropy.shape[2]

    @property
    def prompt_format(self):
        return self.config["prompts"]["format"]

    @property
    def label(self):
        """Model and format, for titles and tables."""
        return f"{printable(self.config['model']['id'])}, {self.prompt_format} prompts"

    @property
    def counts(self):
        """{category: number of prompts}, in the order of CATEGORIES, categories without prompts left out."""
        return {name: int(n) for name in CATEGORIES if (n := (self.category == name).sum())}


@dataclass
class NewRun:
    """A run being written: `path` is where its files go now, `final` where they are once it is published."""

    path: Path
    final: Path = None


@contextlib.contextmanager
def create_run(output_dir, latest, prefix="run"):
    """Write a run aside and publish it whole: `with create_run(...) as new: write into new.path`.

    On leaving the block the manifest is written, the folder renamed to <prefix>_<time> and the symlink `latest` swapped
    (None: no link names the run). Any exception, Ctrl-C and SIGTERM included, removes the folder and leaves the previous
    `latest` as it was.
    """
    root = Path(output_dir)
    root.mkdir(parents=True, exist_ok=True)
    link = root / latest if latest else None
    if link and link.exists() and not link.is_symlink():
        raise UserError(f"{link}: is not a symlink; move it away, it is where the newest run is linked")
    new, alive, renamed = NewRun(root / temporary_name()), None, False
    try:
        with _locked(root / LOCK):
            _remove_stale(root)
            new.path.mkdir()
            alive = _open_lock(new.path / LOCK)
        yield new
        write_manifest(new.path)
        with _locked(root / LOCK):
            (new.path / LOCK).unlink()
            new.final = _free_name(root, f"{prefix}_{time.strftime('%Y%m%d_%H%M%S')}")
            os.rename(new.path, new.final)
            renamed = True
            if link:
                swap_link(link, new.final.name)
    except BaseException:
        if renamed and link and not (link.is_symlink() and os.readlink(link) == new.final.name):
            os.rename(new.final, new.path)  # no link names it: nothing was published
        shutil.rmtree(new.path, ignore_errors=True)
        raise
    finally:
        if alive is not None:
            os.close(alive)


def swap_link(link, target):
    """Point the symlink `link` at `target` (a name beside it) in one atomic step."""
    aside = link.with_name(f"{TEMPORARY}{link.name}_{os.getpid()}")
    aside.unlink(missing_ok=True)
    try:
        aside.symlink_to(target)
        os.replace(aside, link)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _open_lock(path):
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


@contextlib.contextmanager
def _locked(path):
    """Wait for, hold and release an advisory lock; the kernel releases it when the process dies."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_stale(root):
    """Remove the temporary files, folders and links in a folder of runs whose process is gone (nobody holds their lock)."""
    _remove_stale_files(root)
    for path in root.glob(f"{TEMPORARY}*"):
        if path.is_symlink():
            path.unlink(missing_ok=True)
        elif path.is_dir():
            with contextlib.suppress(OSError):
                os.close(_open_lock(path / LOCK))
                shutil.rmtree(path)


def _remove_stale_files(folder):
    """Remove the temporary files in a folder that a killed process left there: whoever still writes one holds its lock."""
    for path in folder.glob(f"{TEMPORARY}{'?' * UNIQUE}"):
        if path.is_file() and not path.is_symlink():
            with contextlib.suppress(OSError):
                lock = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink(missing_ok=True)
                finally:
                    os.close(lock)


def temporary_name():
    """A hidden name that no other process uses. It is known before the file is made, so an interrupt leaves none behind."""
    return TEMPORARY + uuid.uuid4().hex[:UNIQUE]


def _open_aside(aside):
    """Descriptor of the new file `aside`, locked for as long as it is open.

    A process that looks for stale files may have met it before it was locked, and removed it: then it is made again.
    """
    while True:
        descriptor = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)


def _free_name(root, name):
    """`name` in `root`, with _2, _3 ... appended while it is taken."""
    candidate, n = root / name, 2
    while candidate.exists() or candidate.is_symlink():
        candidate, n = root / f"{name}_{n}", n + 1
    return candidate


def write_manifest(folder):
    """manifest.json: size and SHA-256 of every other file in the folder. Written last: it makes the run complete."""
    files = sorted(p for p in Path(folder).rglob("*") if p.is_file() and p.name not in ("manifest.json", LOCK))
    entries = {p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in files}
    write_json(Path(folder) / "manifest.json", {"schema_version": SCHEMA_VERSION, "files": entries})


@contextlib.contextmanager
def replaced_file(path, mode="w"):
    """A file object whose content appears under `path` only when the block ends without an error.

    Until then it is in a hidden file beside it; those that killed processes left in the same folder are removed first.
    """
    path = Path(path)
    _remove_stale_files(path.parent)
    aside = path.with_name(temporary_name())
    try:
        # Half a surrogate pair (a file name that is not UTF-8) becomes \udcff, which is the same text in JSON.
        text = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
        with open(_open_aside(aside), mode, **({} if "b" in mode else text)) as file:
            yield file
            file.flush()
            os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_json(path, value):
    """Strict JSON (no NaN: None stands for an undefined number), indented, written aside and renamed.

    The home folder is written as ~ wherever it is named, as `portable` says.
    """
    with replaced_file(path) as file:
        json.dump(portable(_plain(value)), file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def _plain(value):
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def write_csv(path, rows, columns=None):
    """Rows (list of dicts with the same keys) as CSV. Text that a spreadsheet would run as a formula gets a quote mark,
    and control characters (ANSI escapes among them) are written as escapes.

    Undefined numbers (NaN) are written as empty fields; numbers carry 10 significant digits.
    """
    columns = columns or list(rows[0])
    with replaced_file(path) as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([[_csv_cell(row[column]) for column in columns] for row in rows])


def _csv_cell(value):
    if isinstance(value, str):
        value = f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else value
        return "".join(c if c in "\t\r\n" or unicodedata.category(c) != "Cc" else printable(c) for c in value)
    if isinstance(value, (float, np.floating)):
        return "" if np.isnan(value) else f"{value:.10g}"
    return value


def write_npz(path, arrays):
    """Arrays of plain dtypes as a compressed npz; an object array is refused, because it would be pickled."""
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise TypeError(f"{name} is an object array; only plain dtypes are written")
    with replaced_file(path, "wb") as file:
        np.savez_compressed(file, **arrays)


def write_prompts(path, rows):
    """prompts.jsonl: one JSON object a prompt, in the order of the prompt axis."""
    with replaced_file(path) as file:
        for row in rows:
            file.write(json.dumps(_plain(row), ensure_ascii=False, allow_nan=False) + "\n")


def resolve_run(path):
    """The folder that a run path or `latest_*` symlink names, refused with the reason where there is no complete run."""
    path = Path(path)
    if not path.exists():
        why = "points at a folder that is gone" if path.is_symlink() else "no such folder"
        raise UserError(f"{path}: {why}; run activation_analysis.py first, or name another run")
    if not path.is_dir():
        raise UserError(f"{path}: is a file; a run is a folder")
    folder = path.resolve()
    unpublished = any(part.name.startswith(TEMPORARY) for part in (folder, folder.parent))
    if unpublished or not (folder / "manifest.json").is_file():
        raise UserError(f"{path}: not a complete run (no manifest.json); it was interrupted or is still being written")
    return folder


def check_files(path, names, verify=True):
    """The folder of a complete run whose manifest agrees with these files: size, and SHA-256 unless verify is False."""
    folder = resolve_run(path)
    manifest = read_json(folder / "manifest.json")
    if not isinstance(manifest, dict) or manifest.get("schema_version") != SCHEMA_VERSION:
        found = printable(manifest.get("schema_version")) if isinstance(manifest, dict) else "none"
        raise UserError(
            f"{folder}: schema version {found}; this version reads {SCHEMA_VERSION}, run the analysis again"
        )
    for name in names:
        _check_file(folder, manifest, name, verify)
    return folder


def load_run(path, verify=True):
    """A complete run as a Run, checked: manifest, schema, names, shapes and ranges; UserError names what is wrong.

    verify  False leaves out the SHA-256 of the files; everything else is still checked
    """
    folder = check_files(path, ("experiment_config.json", "prompts.jsonl", "attention.npz"), verify)
    config = read_config(folder)
    arrays = read_npz(folder / "attention.npz", list(ARRAYS))
    _check_arrays(folder / "attention.npz", arrays)
    return Run(folder, config, prompts=_read_prompts(folder / "prompts.jsonl", arrays), **arrays)


def read_config(folder):
    """experiment_config.json of a run, with the fields that readers use checked."""
    config = read_json(folder / "experiment_config.json")
    _check_config(folder, config)
    return config


def read_json(path):
    """The JSON value of a file of a run, or a UserError that says what is wrong with it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except JSON_ERRORS as error:
        raise UserError(f"{path}: damaged: {error}") from error
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; the run is damaged") from error


def _read_prompts(path, arrays):
    try:
        # not splitlines(): U+2028 and U+0085 are characters of a prompt, not ends of a line
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").removesuffix("\n").split("\n")]
    except JSON_ERRORS as error:
        raise UserError(f"{path}: damaged: {error}") from error
    if [r.get("id") if isinstance(r, dict) else None for r in rows] != arrays["prompt_id"].tolist():
        raise UserError(f"{path}: its prompts are not those of attention.npz; the run is damaged")
    for row, category in zip(rows, arrays["category"].tolist(), strict=True):
        if row.get("category") != category or not isinstance(row.get("text"), str):
            raise UserError(
                f"{path}: category or text of {printable(row['id'])} is wrong or missing; the run is damaged"
            )
    return rows


def _check_file(folder, manifest, name, verify):
    path, files = folder / name, manifest.get("files")
    entry = files.get(name) if isinstance(files, dict) else None
    if not isinstance(entry, dict) or not path.is_file() or path.is_symlink():
        raise UserError(f"{path}: missing; the run is damaged, run the analysis again")
    if path.stat().st_size != entry.get("bytes"):
        size = path.stat().st_size
        raise UserError(f"{path}: has {size} bytes, its manifest says {printable(entry.get('bytes'))}; it is damaged")
    if verify and sha256_of(path) != entry.get("sha256"):
        raise UserError(f"{path}: its SHA-256 is not the manifest's; it was changed after the run")


def _check_config(folder, config):
    try:
        known = isinstance(config["model"]["id"], str) and config["prompts"]["format"] in ("raw", "chat")
    except (KeyError, TypeError):
        known = False
    path = folder / "experiment_config.json"
    if not known:
        raise UserError(f"{path}: model.id or prompts.format is missing; it is damaged")
    for name in ("revision", "weights_sha256", "tokenizer_sha256"):
        if not isinstance(config["model"].get(name), str | None):
            raise UserError(f"{path}: model.{name} is {printable(config['model'][name])[:60]}; it must be a text")
    seed = config.get("seed", 0)
    if type(seed) is not int or not 0 <= seed <= MAX_SEED:
        raise UserError(f"{path}: seed is {printable(seed)[:60]}; it must be a whole number from 0 to {MAX_SEED}")


def read_npz(path, names):
    """{name: array} of an npz, without unpickling and without trusting its declared sizes."""
    try:
        with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > MAX_MEMBERS:
                raise UserError(f"{path}: has {len(members)} members; an archive of a run has at most {MAX_MEMBERS}")
            for info in members:
                _check_declared_size(path, archive, info)
            _check_memory(path, sum(info.file_size for info in members if info.filename[:-4] in names))
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in names if name not in archive.files]
            if missing:
                raise UserError(f"{path}: array {missing[0]} is missing; expected {', '.join(names)}")
            arrays = {name: archive[name] for name in names}
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except NPZ_ERRORS as error:
        reason = "object arrays are never unpickled" if "allow_pickle" in str(error) else f"damaged: {error}"
        raise UserError(f"{path}: {reason}") from error
    except MemoryError as error:
        raise UserError(f"{path}: its arrays do not fit into memory") from error
    for name, array in arrays.items():
        _check_text(path, name, array)
    return arrays


def _check_memory(path, needed):
    """Refuse arrays that are larger than the free memory, with the numbers: a bomb, or a run for another machine."""
    import psutil

    free = psutil.virtual_memory().available
    if needed > free:
        raise UserError(f"{path}: its arrays take {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB of memory are free")


def _check_text(path, name, array):
    """numpy reads any 4 bytes as a character; Python cannot hold those beyond the last one."""
    if array.dtype.kind == "U" and array.size and array.dtype.itemsize:
        characters = np.frombuffer(array.tobytes(), dtype=f"{array.dtype.str[0]}u4")
        if characters.max() > MAX_CHARACTER:
            raise UserError(f"{path}: {name} holds {int(characters.max())}, which is not a character")


def _check_declared_size(path, archive, info):
    """Refuse a member whose array header asks for more than its own bytes hold (a zip bomb, a forged header)."""
    if not info.filename.endswith(".npy") or info.file_size > MAX_ARRAY_BYTES:
        raise UserError(f"{path}: member {printable(info.filename)} ({info.file_size} bytes) is not an array of a run")
    with archive.open(info) as member:
        head = io.BytesIO(member.read(4096))
    version = np.lib.format.read_magic(head)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(head)
    if dtype.hasobject:
        raise UserError(f"{path}: {printable(info.filename)} is an object array; those are never unpickled")
    declared = int(np.prod([int(n) for n in shape], dtype=object)) * dtype.itemsize
    if declared + head.tell() != info.file_size:
        raise UserError(f"{path}: {printable(info.filename)} declares {declared} bytes and holds {info.file_size}")


def _check_arrays(path, arrays):
    """Shapes agree with one another, dtypes are plain, values are inside their range."""
    if arrays["entropy"].ndim != 4:
        raise UserError(f"{path}: entropy has {arrays['entropy'].ndim} axes, expected 4 (prompt, layer, head, query)")
    sizes = dict(zip(("prompt", "layer", "head", "query"), arrays["entropy"].shape, strict=True))
    for name, (kind, axes) in ARRAYS.items():
        expected = tuple(sizes.get(axis, axis) for axis in axes)
        if arrays[name].shape != expected or arrays[name].dtype.kind != kind:
            found = f"{arrays[name].dtype} {arrays[name].shape}"
            raise UserError(
                f"{path}: {name} is {found}, expected {'/'.join(map(str, axes))} = {expected} of kind {kind}"
            )
    if 0 in sizes.values():
        raise UserError(f"{path}: holds no prompts, layers, heads or rows")
    unknown = set(arrays["category"].tolist()) - set(CATEGORIES)
    if unknown:
        raise UserError(
            f"{path}: unknown category {printable(sorted(unknown)[0])!r}; allowed are {', '.join(CATEGORIES)}"
        )
    _check_values(path, arrays, sizes["query"])


def _check_values(path, arrays, n_query):
    n_tokens, span = arrays["n_tokens"], arrays["span"]
    ordered = (span[:, 0] >= 0) & (span[:, 0] < span[:, 1]) & (span[:, 1] <= n_tokens) & (n_tokens <= n_query)
    if not ordered.all():
        raise UserError(f"{path}: span or n_tokens of prompt {int(np.argmin(ordered))} is out of range")
    edge = arrays["edge_tokens"]
    if ((edge < 0) | (edge > (span[:, 1] - span[:, 0]) // 2)).any():
        raise UserError(f"{path}: edge_tokens is outside 0 to half of the prompt's own tokens")
    visible = arrays["visible_keys"]
    if (visible < 1).any() or (visible > np.arange(1, n_query + 1)).any():
        raise UserError(f"{path}: visible_keys is outside 1 to query + 1")
    real = np.arange(n_query) < n_tokens[:, None]
    inside = {name: arrays[name].transpose(0, 3, 1, 2)[real] for name in ("entropy", "sink_mass")}
    inside |= {name: arrays[name] for name in ("first_mass", "last_mass", "edge_mass")}
    for name, values in inside.items():
        if not np.isfinite(values).all():
            raise UserError(f"{path}: {name} is NaN or infinite inside a prompt")
    for name in PROBABILITIES:
        values = arrays[name][~np.isnan(arrays[name])]
        if ((values < -1e-3) | (values > 1 + 1e-3)).any():
            raise UserError(f"{path}: {name} holds a probability outside [0, 1]")
    bound = np.log(visible)[None, :, None, :] + 1e-2
    for name in ("entropy", "entropy_sinkfree"):
        if ((arrays[name] < 0) | (arrays[name] > bound)).any():
            raise UserError(f"{path}: {name} is outside 0 to ln(visible keys)")


def portable(value):
    """`value` with the home folder written as ~ in every text, so that a shared run names no person's machine."""
    if isinstance(value, dict):
        return {portable(key): portable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(item) for item in value]
    if not isinstance(value, (str, Path)):
        return value
    text = str(value)
    try:
        homes = {str(Path.home()), os.path.realpath(Path.home())}
    except RuntimeError:  # a container's user without a home: nothing to hide
        homes = set()
    for home in homes:
        if len(Path(home).parts) > 1 and home in text:
            text = re.sub(rf"(?:(?<![\w./~-])|(?<=://)){re.escape(home)}(?![\w.-])", "~", text)
    return text


def package_versions():
    """{package: version} of what computes the numbers."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def git_state():
    """{"commit": ..., "dirty": ...} of this code, or None values where it is not a git checkout."""
    here = Path(__file__).resolve().parent

    def git(*command):
        done = subprocess.run(["git", "-C", here, *command], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except FileNotFoundError:
        return {"commit": None, "dirty": None}


def prepare_folder(path):
    """Make an output folder for figures or tables, with its data/ inside; returns it as a Path."""
    path = Path(path)
    try:
        (path / "data").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir {path}: {error.strerror}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"--output_dir {path}: cannot be written to")
    return path
