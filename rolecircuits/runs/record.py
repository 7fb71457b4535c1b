"""experiment_config.json: everything that is needed to say what was run, and to run it again."""

import os
import re
import subprocess
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from deterministic import TOLERANCE
from rolecircuits.inputs.categories import prompt_set_sha256
from rolecircuits.inputs.files import sha256_of

SCHEMA_VERSION = 1
PACKAGES = (
    "torch",
    "transformer_lens",
    "transformers",
    "tokenizers",
    "numpy",
    "scipy",
    "safetensors",
    "gguf",
)


def describe_run(loaded, prompts, captured, args, timings, determinism):
    """experiment_config.json: everything that is needed to say what was run, and to run it again."""

    return portable(
        {
            "schema_version": SCHEMA_VERSION,
            "script": "activation_analysis.py",
            "status": "partial" if captured.failed else "complete",
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "arguments": vars(args),
            "model": loaded.facts,
            "prompts": {
                "format": args.prompt_format,
                "system_prompt": args.system_prompt,
                "bos": args.bos,
                "n": len(captured.arrays["category"]),
                "sha256": prompt_set_sha256(prompts),
                "failed": describe_failed(prompts, captured.failed),
            },
            "seed": args.seed,
            "rounding_tolerance": TOLERANCE[loaded.facts["dtype"]],
            "determinism": determinism,
            "packages": package_versions(),
            "git": git_state(),
            "timings": timings,
        }
    )


def describe_failed(prompts, failed):
    """What is needed to feed the prompts again that prompts.jsonl lacks: their place in the set, their texts, the reason."""
    places = {p.id: (index, asdict(p)) for index, p in enumerate(prompts)}
    return [
        {"index": places[name][0], **places[name][1], "reason": reason} for name, reason in failed
    ]


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


def describe(args, facts, how, determinism, failed, seconds, n):
    """experiment_config.json of a documents run."""
    return portable(
        {
            "schema_version": SCHEMA_VERSION,
            "script": "activation_analysis.py --documents",
            "status": "partial" if failed else "complete",
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "arguments": vars(args),
            "model": facts,
            "documents": {
                "sha256": sha256_of(args.documents),
                "n": n,
                "failed": [{"id": document_id, "reason": reason} for document_id, reason in failed],
            },
            "capture": how,
            "seed": args.seed,
            "determinism": determinism,
            "packages": package_versions(),
            "git": git_state(),
            "timings": {"capture_s": seconds},
        }
    )
