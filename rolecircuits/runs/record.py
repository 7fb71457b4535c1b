"""experiment_config.json: everything that is needed to say what was run, and to run it again."""

import os
import re
import subprocess
import time
from dataclasses import asdict
from pathlib import Path

from deterministic import ROUNDING_TOLERANCE
from rolecircuits.inputs.categories import is_crossed, prompt_set_sha256
from rolecircuits.inputs.errors import printable
from rolecircuits.inputs.files import sha256_of

SCHEMA_VERSION, READABLE = 2, (1, 2)
CONFIG = "experiment_config.json"  # the file of this module in a run folder
PACKAGES = (
    *("torch", "transformer_lens", "transformers", "tokenizers"),
    *("numpy", "scipy", "safetensors", "gguf"),
)
# The flags whose value may be a path. All others are stored as they were given.
PATH_FLAGS = (
    *("model_id", "device_map", "prompts", "documents", "config_file", "families_file"),
    *("output_dir", "repeat", "chat_template", "table"),
)
FED = ("format", "system_prompt", "bos")  # how prompts become tokens, in "prompts" of a config


def describe_run(script, args, facts, fed, determinism, timings):
    """experiment_config.json of a run.

    facts  what the loaded model says of itself
    fed    {"prompts": ..., "model": ...} of `describe_prompts`, or "documents" of
           `describe_documents`; its "model" replaces what the model is fed by default
    """
    fed = dict(fed)
    facts = facts | fed.pop("model")
    (inputs,) = fed.values()
    return {
        "schema_version": SCHEMA_VERSION,
        "script": script,
        "status": "partial" if inputs["failed"] else "complete",
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "arguments": portable_arguments(args),
        "model": portable(facts),
        **fed,
        "seed": args.seed,
        "rounding_tolerance": ROUNDING_TOLERANCE[facts["dtype"]],
        "determinism": determinism,
        "packages": package_versions(),
        "git": git_state(),
        "timings": dict(timings),
    }


def describe_prompts(args, prompts, feeding, failed=(), left_out=None):
    """{"prompts": how they were fed, their SHA-256, those that failed: [(id, reason)], "model"}.

    prompts.jsonl lacks the failed ones, so their place in the set and their texts are kept here.
    feeding   what capture.feeding.describe_feeding says of them
    left_out  {frame: why the tokenizer does not match it}; its prompts are not among `prompts`
    """
    places = {p.id: {"index": index, **asdict(p)} for index, p in enumerate(prompts)}
    lost = [places[prompt_id] | {"reason": portable(reason)} for prompt_id, reason in failed]
    how = {"format": args.prompt_format, "system_prompt": args.system_prompt, "bos": args.bos}
    how |= feeding["how"]
    set_facts = {"n": len(prompts) - len(lost), "sha256": prompt_set_sha256(prompts)}
    set_facts |= {"crossed": is_crossed(prompts), "frames_left_out": left_out or {}}
    return {"prompts": how | set_facts | {"failed": lost}, "model": feeding["model"]}


def describe_fed(args, prompts, feeding, fed_ids):
    """`describe_prompts` of what was fed; frames that the tokenizer does not match are said."""
    fed_ids, left_out = set(fed_ids), {}
    for prompt in prompts:
        if prompt.id not in fed_ids:
            left_out[prompt.frame] = "not matched under this tokenizer"
    if left_out:
        print(f"note: frames not matched under this tokenizer: {printable(', '.join(left_out))}")
    prompts = [prompt for prompt in prompts if prompt.frame not in left_out]
    return describe_prompts(args, prompts, feeding, left_out=left_out)


def describe_documents(args, n, feeding, failed, read):
    """{"documents": their file's SHA-256, what was read in it, how many were captured and how they
    were fed, those that failed, "model": what they were fed first}.

    read  facts of documents.texts.Reading
    """
    lost = [{"id": document_id, "reason": portable(reason)} for document_id, reason in failed]
    file = {"sha256": sha256_of(args.documents), "format": read["format"]}
    read = {name: value for name, value in read.items() if name != "format"}
    known = file | {"n": n, "read": read, "bos": args.bos} | feeding["how"]
    return {"documents": known | {"failed": lost}, "model": feeding["model"]}


def prompt_set_of(config):
    """What the prompt set of an experiment_config was called, a file without its folder."""
    given = (config.get("arguments") or {}).get("prompts") or "original"
    return printable(str(given).replace("\\", "/").rsplit("/", 1)[-1])


def portable_arguments(args):
    """{flag: value} with the home folder as ~ in paths; texts (a system prompt) stay as given.

    The text of a template's file is in prompts.chat_template.
    """
    return {
        flag: portable(value) if flag in PATH_FLAGS else value
        for flag, value in vars(args).items()
        if flag != "template_text"
    }


def portable(value):
    """`value` with the home folder written as ~, so that a shared run names no person's machine.

    For paths and messages, alone or inside dicts and lists; never for texts that a model is fed or
    gives, which would come back as other texts.
    """
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
    """{package: version} of what computes the numbers; None where it is not installed."""
    from importlib import metadata  # brings email and zipfile; scripts import this for --help

    versions = dict.fromkeys(PACKAGES)
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def git_state():
    """{"commit": ..., "dirty": ...} of this code, None where it is not a git checkout."""
    here = Path(__file__).resolve().parents[2]

    def git(*command):
        done = subprocess.run(
            ["git", "-C", here, *command], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except FileNotFoundError:
        return {"commit": None, "dirty": None}
