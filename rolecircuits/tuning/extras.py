"""What only a tuning study needs, and how it is installed. Imports none of it."""

import importlib.util

from rolecircuits.inputs.errors import UserError

INSTALL = "pip install -r requirements-tuning.txt -c constraints.txt"
PACKAGES = {"peft": "peft", "sklearn": "scikit-learn", "concept_erasure": "concept-erasure"}


def check_installed(what="a tuning study", modules=tuple(PACKAGES)):
    """Refuse a study for which a package is missing, before anything is loaded.

    what  that needs them, for the message    modules  of PACKAGES
    """
    missing = [PACKAGES[module] for module in modules if not importlib.util.find_spec(module)]
    if missing:
        raise UserError(f"{what} needs {', '.join(missing)}: {INSTALL}")
