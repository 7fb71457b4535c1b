"""Find, check and load run folders. Nothing is unpickled, and nothing is believed unchecked."""

from pathlib import Path

from rolecircuits.inputs.arguments import MAX_SEED
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.files import TEMPORARY, follow_links, sha256_of
from rolecircuits.inputs.folders import KINDS, RUN, check_kind
from rolecircuits.runs.files import read_json, read_prompts
from rolecircuits.runs.record import CONFIG, READABLE

PROMPTS, ATTENTION = "prompts.jsonl", RUN.marker


def resolve_run(path, wanted=None):
    """The folder of a complete run that a path or a latest_* link names, or why there is none.

    wanted  the Kind that it must be; None: any that has a manifest
    """
    path = Path(path)
    target = follow_links(path)
    if not target.exists():
        is_link = path.is_symlink() or target != path
        why = "points at a folder that is gone" if is_link else "no such folder"
        raise UserError(f"{path}: {why}; run activation_analysis.py first, or name another run")
    if not target.is_dir():
        raise UserError(f"{path}: is a file; a run is a folder")
    folder = target.resolve()
    unpublished = any(part.startswith(TEMPORARY) for part in folder.parts[-3:])
    if wanted is not None and not unpublished:
        check_kind(target, wanted)
    if unpublished or not (folder / "manifest.json").is_file():
        raise UserError(
            f"{path}: not a complete run (no manifest.json); it was interrupted or is still being "
            "written"
        )
    return folder


def check_files(path, names, verify=True):
    """The folder of a complete run in which these files are as its manifest says.

    verify  False only asks that they are there: git or a mail client may change line ends
    """
    wanted = next((kind for kind in KINDS if kind.marker in names), None)
    folder = resolve_run(path, wanted)
    manifest = read_json(folder / "manifest.json")
    version = manifest.get("schema_version") if isinstance(manifest, dict) else "none"
    if type(version) is not int or version not in READABLE:
        shown, readable = printable(version), " and ".join(map(str, READABLE))
        raise UserError(
            f"{folder}: schema version {shown}; this version reads {readable}, run it again"
        )
    files = manifest.get("files")
    for name in names:
        entry = files.get(name) if isinstance(files, dict) else None
        _check_file(folder / name, entry, verify)
    return folder


def _check_file(path, entry, verify):
    """Refuse a file that is not as its entry in the manifest says."""
    if not isinstance(entry, dict) or not path.is_file() or path.is_symlink():
        raise UserError(f"{path}: missing; the run is damaged, run the analysis again")
    size = path.stat().st_size
    if verify and size != entry.get("bytes"):
        stated = printable(entry.get("bytes"))
        raise UserError(f"{path}: has {size} bytes, its manifest says {stated}; it is damaged")
    if verify and sha256_of(path) != entry.get("sha256"):
        raise UserError(f"{path}: its SHA-256 is not the manifest's; it was changed after the run")


def load_run(path, verify=True):
    """A complete run as a Run, checked: manifest, schema, names, shapes and ranges.

    verify  False does not compare its files with the manifest; what is in them is still checked
    """
    from rolecircuits.runs import arrays as run_arrays  # numpy; scripts import this for --help

    folder = check_files(path, (CONFIG, PROMPTS, ATTENTION), verify)
    config = read_config(folder)
    schema = read_json(folder / "manifest.json")["schema_version"]
    arrays = run_arrays.read_arrays(folder / ATTENTION, schema)
    prompts = read_prompts(folder / PROMPTS)
    _check_prompts(folder / PROMPTS, prompts, arrays)
    return run_arrays.assemble_run(folder, config, prompts, arrays)


def _check_prompts(path, rows, arrays):
    """Refuse prompts that are not those of the arrays."""
    ids = [row.get("id") if isinstance(row, dict) else None for row in rows]
    if ids != arrays["prompt_id"].tolist():
        raise UserError(f"{path}: its prompts are not those of attention.npz; the run is damaged")
    for row, category in zip(rows, arrays["category"].tolist(), strict=True):
        text = row.get("text")
        if row.get("category") != category or not (isinstance(text, str) and text.strip()):
            which = f"category or text of {printable(row['id'])}"
            raise UserError(f"{path}: {which} is wrong or missing; the run is damaged")


def read_config(folder):
    """experiment_config.json of a run, with the fields that readers use checked."""
    path = folder / CONFIG
    config = read_json(path)
    try:
        is_text = isinstance(config["model"]["id"], str)
        known = is_text and config["prompts"]["format"] in ("raw", "chat")
    except (KeyError, TypeError):
        known = False
    if not known:
        raise UserError(f"{path}: model.id or prompts.format is missing; it is damaged")
    for name in ("revision", "weights_sha256", "tokenizer_sha256"):
        value = config["model"].get(name)
        if not isinstance(value, str | None):
            raise UserError(f"{path}: model.{name} is {printable(value)[:60]}; it must be a text")
    seed = config.get("seed", 0)
    if type(seed) is not int or not 0 <= seed <= MAX_SEED:
        shown = printable(seed)[:60]
        raise UserError(f"{path}: seed is {shown}; it must be a whole number from 0 to {MAX_SEED}")
    return config
