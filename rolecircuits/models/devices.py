"""Where a model runs, and whether what is asked for fits there."""

from pathlib import Path

import psutil
import torch

from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.files import read_strict_json

DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def resolve_device(name):
    """The device to run on: auto chooses, and a device that this machine lacks is refused."""
    if name in (None, "auto"):
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            raise UserError(
                f"--device {name}: no CUDA in this machine or torch build; use cpu or auto"
            )
        count = torch.cuda.device_count()
        if int(name.partition(":")[2] or 0) >= count:
            raise UserError(f"--device {name}: there are {count} CUDA devices, numbered from 0")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: this machine has no Metal device; use cpu or auto")
    return name


def read_device_map(device_map):
    """What from_pretrained takes: one of DEVICE_MAPS, or the {module: device} of a JSON file.

    A device is a GPU's number, cpu, or disk (read from the safetensors whenever its turn comes).
    """
    if device_map is None or device_map in DEVICE_MAPS:
        return device_map
    flag = f"--device_map {printable(device_map)}"
    if not device_map.endswith(".json"):
        raise UserError(f"{flag}: is none of {', '.join(DEVICE_MAPS)}, and no JSON file")
    placement = read_strict_json(Path(device_map), "--device_map")
    if not isinstance(placement, dict) or not placement:
        raise UserError(f"{flag}: must be an object {{module: device}}")
    gpus = range(torch.cuda.device_count())
    allowed = "cpu, disk " + (f"and 0 to {gpus[-1]}" if gpus else "(there is no GPU)")
    for module, where in placement.items():
        if where not in ("cpu", "disk") and not (type(where) is int and where in gpus):
            raise UserError(
                f"{flag}: {printable(module)} is {printable(where)}; allowed are {allowed}"
            )
    return placement


def free_bytes(device=None):
    """Bytes that are free on a CUDA device, or in the machine's memory for any other device."""
    if device is not None and device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def check_memory(needed, what, advice, device=None, share=1.0):
    """Refuse what needs more bytes than `share` of those that are free on a device, with numbers.

    what    the subject of the message, "--raw patterns"    advice  what to do instead
    """
    free = free_bytes(device)
    if needed > share * free:
        where = f" of {device}" if device is not None and device.startswith("cuda") else ""
        limit = f", of which {share:.0%} may be used" if share < 1 else ""
        raise UserError(
            f"{what} needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB{where} are free{limit}"
            f"; {advice}"
        )
