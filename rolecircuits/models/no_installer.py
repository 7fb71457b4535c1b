"""No library may start an installer: an environment is left as it was found.

TransformerLens installs torchvision with uv or pip when it boots a multimodal model and cannot
import it; that replaced torch itself in two environments.

    with no_installer():
        bridge = TransformerBridge.boot_transformers(...)
"""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from rolecircuits.inputs.errors import UserError, printable

INSTALLERS = (
    "pip",
    "uv",
    "uvx",
    "pipx",
    "conda",
    "mamba",
    "micromamba",
    "poetry",
    "pdm",
    "ez_setup",
)
WORDS = ("install", "sync", "add", "download")


@contextlib.contextmanager
def no_installer():
    """Inside, TransformerLens installs nothing, and a process that would install is a UserError.

    TransformerLens catches what its boot raises and goes on without the processor of images, which
    texts do not need. Its own function is answered with False, "not there"; any other installer is
    refused before it starts, and the refusal is raised again at the end where it was swallowed.
    """
    refused = []
    popen, system = subprocess.Popen.__init__, os.system

    def guarded_popen(process, args, *rest, **options):
        _refuse(args, refused)
        return popen(process, args, *rest, **options)

    def guarded_system(command):
        _refuse(command, refused)
        return system(command)

    subprocess.Popen.__init__, os.system = guarded_popen, guarded_system
    try:
        with _without_torchvision_installer():
            yield
    finally:
        subprocess.Popen.__init__, os.system = popen, system
    if refused:
        raise refused[0]


@contextlib.contextmanager
def _without_torchvision_installer():
    """TransformerLens's installing function replaced by one that only says whether it is there."""
    helpers = sys.modules.get("transformer_lens.model_bridge.sources.transformers.helpers")
    name = "_ensure_torchvision"
    real = getattr(helpers, name, None)  # None: another version, where the net above holds
    if real is None:
        yield
        return
    setattr(helpers, name, lambda: False)
    try:
        yield
    finally:
        setattr(helpers, name, real)


def _refuse(args, refused):
    """Raise a UserError for the arguments of a process that would install; keep it in `refused`."""
    words = args.split() if isinstance(args, str) else args
    if isinstance(words, (str, bytes, os.PathLike)):
        words = [words]
    words = [os.fsdecode(word) for word in words]
    if is_installer(words):
        package = next((w for w in reversed(words) if not w.startswith("-") and w not in WORDS), "")
        error = UserError(
            f"a library asked for {printable(package)}, which is not installed, and wanted to run "
            f"'{printable(' '.join(words))}'; no installer is ever started: install it yourself"
        )
        refused.append(error)
        raise error


def is_installer(words):
    """Whether these words of a command line start an installer: pip, uv, python -m pip, ..."""
    words = " ".join(words).split()  # sh -c "pip install x" has them in one word
    names = [Path(word).name.removesuffix(".exe").rstrip("0123456789.") for word in words]
    if "ensurepip" in names:
        return True
    return any(name in INSTALLERS for name in names) and any(word in WORDS for word in words)
