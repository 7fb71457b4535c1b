"""docs/first_look.ipynb: its cells run in order on a run folder, and give the project's numbers."""

import ast
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from conftest import PROJECT
from rolecircuits.runs import files
from rolecircuits.stats import indices
from synthetic import make_run, save_run
from test_security import dangers

NOTEBOOK = json.loads((PROJECT / "docs" / "first_look.ipynb").read_text(encoding="utf-8"))
CODE = ["".join(c["source"]) for c in NOTEBOOK["cells"] if c["cell_type"] == "code"]
RUNS = "results_activation_analysis/demo"
SAVED = """
np.savez("found.npz", rfc=rfc, by_head=by_head)
for number in plt.get_fignums():
    plt.figure(number).savefig(f"figure_{number}.png")
"""


def test_it_needs_nothing_of_the_project_and_stores_no_output():
    tree = ast.parse("\n".join(CODE))
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import)
             for alias in node.names]  # fmt: skip
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert set(names) == {"json", "pathlib", "matplotlib.pyplot", "numpy", "pandas"}
    assert not list(dangers("\n".join(CODE)))
    assert all(not cell.get("outputs") and not cell.get("execution_count")
               for cell in NOTEBOOK["cells"])  # fmt: skip
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    assert f'Path("../{RUNS}/latest_base")' in CODE[0]


@pytest.mark.parametrize("prompt_format", ["raw", "chat"])
def test_its_cells_run_in_order_and_give_the_numbers_of_the_project(tmp_path, prompt_format):
    run = make_run(per_category=8, prompt_format=prompt_format)
    folder = save_run(run, tmp_path / RUNS, "latest_base")
    files.write_json(folder / "activations.json", indices.summarize(run))
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "cells.py").write_text("\n\n".join([*CODE, SAVED]), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "cells.py"],
        cwd=docs,
        env=os.environ | {"MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = np.load(docs / "found.npz", allow_pickle=False)
    np.testing.assert_allclose(found["by_head"], indices.prompt_values(run), atol=1e-12)
    np.testing.assert_allclose(found["rfc"], indices.layer_indices(run)["rfc"], atol=1e-12)
    assert "largest difference from the stored RFC: " in done.stdout
    assert float(done.stdout.split()[-1]) < 1e-12
    pictures = sorted(path.name for path in docs.glob("*.png"))
    assert pictures == ["figure_1.png", "figure_2.png"]
