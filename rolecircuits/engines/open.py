"""The flags that say where work is done, and the engine that they name."""

import contextlib
import importlib.util
import re
import socket

from rolecircuits.engines.work import LocalEngine
from rolecircuits.inputs.arguments import positive_int
from rolecircuits.inputs.errors import UserError, printable

RAY_FLAGS = ("ray_address", "num_workers", "worker_threads", "gpus_per_worker")
INSTALL = "pip install -r requirements-distributed.txt -c constraints.txt"


def add_engine_arguments(parser):
    """The flags that say where the work is done."""
    engine = parser.add_argument_group("where the work is done")
    engine.add_argument(
        "--engine", choices=["local", "ray"], default="local", help="this process, or Ray"
    )
    engine.add_argument(
        "--ray_address",
        help="HOST:PORT of a running Ray cluster, or auto (default: start one here)",
    )
    engine.add_argument(
        "--num_workers",
        type=positive_int,
        help="Ray workers, each holds one model "
        "(default: one a GPU; without GPUs one a machine, at least 2)",
    )
    engine.add_argument(
        "--worker_threads",
        type=positive_int,
        help="CPU threads a worker (default: cores / workers)",
    )
    engine.add_argument(
        "--gpus_per_worker",
        type=positive_int,
        help="GPUs a worker, more than 1 for --device_map auto (default 1)",
    )


def check_engine_arguments(args):
    """Refuse engine flags that contradict each other or need what is not installed."""
    if args.engine == "local":
        given = next((flag for flag in RAY_FLAGS if getattr(args, flag) is not None), None)
        if given:
            raise UserError(f"--{given} needs --engine ray")
        return
    if importlib.util.find_spec("ray") is None:
        raise UserError(f"--engine ray: Ray is not installed: {INSTALL}")
    device = getattr(args, "device", None) or ""
    if device.startswith("cuda:"):
        raise UserError(
            f"--device {device} with --engine ray: every worker gets GPUs of its own; "
            "use --device cuda"
        )
    if args.gpus_per_worker and device in ("cpu", "mps"):
        raise UserError(
            f"--gpus_per_worker {args.gpus_per_worker} with --device {device}: give one of them"
        )
    if args.ray_address and args.ray_address != "auto":
        check_address(args.ray_address)


def check_address(address):
    """Refuse an address that has the wrong form or where nothing answers."""
    match = re.fullmatch(r"(?P<host>[\w.-]+|\[[0-9a-fA-F:]+\]):(?P<port>[0-9]{1,5})", address)
    if not match:
        raise UserError(
            f"--ray_address {printable(address)}: must be HOST:PORT of the head's GCS, or auto"
        )
    try:
        place = match["host"].strip("[]"), int(match["port"])
        socket.create_connection(place, timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--ray_address {address}: nothing answers there ({error})") from error


@contextlib.contextmanager
def open_engine(args):
    """The engine that the flags name; it ends with the block."""
    if args.engine == "local":
        yield LocalEngine()
        return
    from rolecircuits.engines.ray_engine import RayEngine  # reads versions of numpy, ray, ...

    engine = RayEngine(args)
    try:
        engine.start()
        yield engine
    finally:
        engine.close()
