"""The stages of run_pipeline.py that need a model, as work_engine tasks: whole run folders come back as their files.

The worker writes a run into a temporary folder of its own machine; the driver writes the files again, with its own
arguments, git state and engine in experiment_config.json, and publishes them as `output_manager.create_run` does.
"""

import contextlib
import io
import json
import tempfile
import time
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

import activation_analysis
import interventions
from intervention_plan import parse_entries
from prompts import load_prompts
from rolecircuits.inputs.categories import Prompt
from work_engine import Item, LocalEngine, model_key, work_arguments


def analysis_item(family, stage_args):
    """The item that analyses both models of a family: stage_args {run name: flags of activation_analysis.py}."""
    stages = {name: stage_payload(args) for name, args in stage_args.items()}
    return Item(family, "family_tasks:analysis_task", {"stages": stages}, near=family)


def intervention_item(family, plan, args):
    """The item that runs a plan on a family's base model, best on the worker that has just analysed it."""
    payload = stage_payload(args) | {"plan": [entry.model_dump() for entry in plan]}
    return Item(family, "family_tasks:intervention_task", payload, near=family)


def stage_payload(args):
    prompts, _ = load_prompts(args.prompts, args.prompts_per_category)
    return {"args": work_arguments(args), "prompts": [asdict(p) for p in prompts]}


def analysis_task(held, payload):
    """{run name: {"files", "failed"}} of both models; a model that both use is loaded once."""
    found = {}
    for name, stage in payload["stages"].items():
        args, started = Namespace(**stage["args"]), time.perf_counter()
        loaded = held.model(model_key(args), lambda args=args: activation_analysis.load_from_args(args))
        timings = {"load_s": time.perf_counter() - started}
        prompts = [Prompt(**prompt) for prompt in stage["prompts"]]
        with folder_aside() as args.output_dir:
            folder, failed = activation_analysis.analyze_model(loaded, prompts, args, timings)
            found[name] = {"files": pack_folder(folder), "failed": failed}
    return found


def intervention_task(held, payload):
    """The files of an intervention run."""
    args, prompts = Namespace(**payload["args"]), [Prompt(**prompt) for prompt in payload["prompts"]]
    with folder_aside() as args.output_dir:
        plan = parse_entries(payload["plan"], "plan")
        folder, _ = interventions.run_interventions(LocalEngine(held=held), prompts, plan, args)
        return pack_folder(folder)


@contextlib.contextmanager
def folder_aside():
    """A temporary folder; lines printed inside the block that name it are left out, because it will be gone."""
    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as aside:
        try:
            with contextlib.redirect_stdout(printed):
                yield aside
        finally:
            for line in printed.getvalue().splitlines():
                if aside not in line:
                    print(line)


def pack_folder(folder):
    """{path inside the folder: bytes} of a run, without the manifest of its top."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    named = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    named.pop("manifest.json")
    return named


def publish_files(files, args, latest, engine, prefix="run"):
    """Write the files of a worker's run into args.output_dir and publish them under `latest`."""

    from output_manager import create_run, git_state, portable, write_json, write_manifest

    ours = portable({"arguments": vars(args), "git": git_state(), "engine": engine.facts()})
    with create_run(args.output_dir, latest, prefix) as new:
        for name, content in files.items():
            path = new.path / name
            path.parent.mkdir(exist_ok=True)
            if path.name == "experiment_config.json":
                write_json(path, json.loads(content) | ours)
            else:
                path.write_bytes(content)
        for name in files:
            if name.endswith("/manifest.json"):  # a folder inside the run: its config is another now
                write_manifest((new.path / name).parent)
    return new.final
