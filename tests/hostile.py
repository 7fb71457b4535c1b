"""What the tests of bad inputs share: a script's outcome, and run folders made by hand."""

import contextlib
import io

import output_manager as om
from rolecircuits.drawing import edit_figures
from rolecircuits.runs import files as run_files


def outcome(main, argv):
    """Exit code of a script; what it printed is safe for a terminal, and a refusal is one line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(argv)
        except SystemExit as stop:
            code = stop.code
    unsafe = [c for c in out.getvalue() + err.getvalue() if not c.isprintable() and c != "\n"]
    assert not unsafe, unsafe
    assert code == 0 or (code == 2 and err.getvalue().count("\n") == 1), (code, err.getvalue())
    return code


def effect_row(category):
    row = {"intervention": "sh_1_1_zero_out", "role": "candidate", "category": category, "n": 3}
    row |= {"controls": "sh_1_2_zero_out", "pool": 2}
    parts = {"": 0.1, "_low": 0.05, "_high": 0.2, "_control": None, "_p": None, "_q": 0.5}
    parts |= {"_rank": 1.5}
    return row | {m + part: value for m in edit_figures.PANELS for part, value in parts.items()}


def publish(root, files, config):
    """A run folder of these {name: bytes}."""
    root.mkdir()
    run_files.write_json(root / "experiment_config.json", config)
    for name, content in files.items():
        (root / name).write_bytes(content)
    om.write_manifest(root)
    return root


CONFIG = {
    "model": {"id": "m"},
    "prompts": {"format": "raw", "n": 8},
    "sweep": {"of": "heads", "method": "zero_out"},
}
