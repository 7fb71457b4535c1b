"""What only a tuning study needs, and how it is installed."""

import importlib

from rolecircuits.inputs.errors import UserError

INSTALL = "pip install -r requirements-tuning.txt -c constraints.txt"
PACKAGES = {"peft": "peft", "sklearn": "scikit-learn", "concept_erasure": "concept-erasure"}


def need(module):
    """An optional package, imported; one line that says what to install where it is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"{PACKAGES[module]} is not installed: {INSTALL}") from error


def check_installed(tuning):
    """Refuse a study for which a package is missing, before anything is loaded."""
    for module in PACKAGES:
        if module != "peft" or tuning == "lora":
            need(module)
