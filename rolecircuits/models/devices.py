"""Where a model runs, and whether it fits there."""

from pathlib import Path

import torch

from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.files import read_strict_json

DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def resolve_device(name):
    """The device to run on; refuses CUDA where there is none and cuda:N beyond the last one."""
    if name in (None, "auto"):
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            raise UserError(
                f"--device {name}: this machine or this torch build has no CUDA; use cpu or auto"
            )
        index = int(name.partition(":")[2] or 0)
        if index >= torch.cuda.device_count():
            raise UserError(
                f"--device {name}: there are {torch.cuda.device_count()} CUDA devices, numbered from 0"
            )
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
        raise UserError(
            f"--device_map {printable(device_map)}: is none of {names}, and no JSON file"
        )
    placement = read_strict_json(Path(device_map), "--device_map")
    if not isinstance(placement, dict) or not placement:
        raise UserError(
            f"--device_map {printable(device_map)}: must be an object {{module: device}}"
        )
    gpus = torch.cuda.device_count()
    for module, where in placement.items():
        known = (
            where in ("cpu", "disk")
            if isinstance(where, str)
            else type(where) is int and 0 <= where < gpus
        )
        if not known:
            raise UserError(
                f"--device_map {printable(device_map)}: {printable(module)} is {printable(where)}; allowed are cpu, disk "
                + (f"and 0 to {gpus - 1}" if gpus else "(there is no GPU)")
            )
    return placement


def check_memory(model_id, needed, device):
    """Refuse a model whose weights alone do not fit, with the numbers."""
    import psutil

    if device is None:
        return
    free = (
        torch.cuda.mem_get_info(device)[0]
        if device.startswith("cuda")
        else psutil.virtual_memory().available
    )
    if needed > free:
        where = device if device.startswith("cuda") else "memory"
        raise UserError(
            f"--model_id {printable(model_id)}: weights need {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB of {where} "
            "are free; try --dtype bfloat16 or --device_map auto"
        )
