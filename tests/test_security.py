"""Nothing in the tree can run what a file says: no pickle, no eval, no shell; and hostile files are
refused unread."""

import ast
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from conftest import PROJECT
from rolecircuits.inputs.errors import UserError
from rolecircuits.inputs.specs import ModelSpec
from rolecircuits.models import load
from rolecircuits.models.adapters import Origin
from rolecircuits.runs import npz
from tiny_models import load_checked, save_tiny

MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "jsonpickle",
}
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "torch.load",
    "torch.jit.load",
    "os.system",
    "os.popen",
    "pd.read_pickle",
}
CALLS |= {
    "pandas.read_pickle",
    "yaml.load",
    "yaml.unsafe_load",
    "runpy.run_path",
    "torch.hub.load",
    "load_state_dict_from_url",
}
# Tests may unpickle their own trap to prove that it works.
TRAPS = {"test_fuzz.py", "test_output_manager.py", "test_security.py"}


def dangers(source):
    """(line, what) of everything in a source that could run the content of a file."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.split(".")[0] in MODULES or name in CALLS:
                yield node.lineno, name
        if isinstance(node, ast.Call):
            name, keywords = (
                ast.unparse(node.func),
                {key.arg: ast.unparse(key.value) for key in node.keywords},
            )
            if name in CALLS or keywords.get("allow_pickle") not in (None, "False"):
                yield node.lineno, name
            if name in ("np.load", "numpy.load") and keywords.get("allow_pickle") != "False":
                yield node.lineno, name
            if keywords.get("shell") == "True" or keywords.get("weights_only") == "False":
                yield node.lineno, name
            if keywords.get("use_safetensors", "True") != "True":
                yield node.lineno, name


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import dill as d",
        "from torch import load",
        "eval('1')",
        "exec(x)",
    ]
    + [
        "torch.load(f)",
        "np.load(f)",
        "np.load(f, allow_pickle=True)",
        "np.load(f, allow_pickle=flag)",
        "yaml.load(f)",
    ]
    + [
        "subprocess.run(c, shell=True)",
        "f(weights_only=False)",
        "from_pretrained(x, use_safetensors=False)",
    ],
)
def test_the_search_finds_what_it_looks_for(source):
    assert list(dangers(source))


def test_the_search_lets_safe_calls_pass():
    assert not list(dangers("np.load(f, allow_pickle=False)\nre.compile(x)\nmodel.eval()\nload(f)"))


@pytest.mark.parametrize(
    "path",
    sorted(PROJECT.glob("*.py")) + sorted(PROJECT.glob("benchmarks/**/*.py")),
    ids=lambda p: p.name,
)
def test_no_script_can_run_the_content_of_a_file(path):
    assert not list(dangers(path.read_text(encoding="utf-8")))


def test_no_test_can_but_those_that_set_traps():
    found = {
        path.name
        for path in (PROJECT / "tests").glob("*.py")
        if list(dangers(path.read_text(encoding="utf-8")))
    }
    assert found <= TRAPS


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture
def trap(tmp_path):
    path = tmp_path / "executed"
    pickle.loads(pickle.dumps(Trap(path))).close()  # noqa: S301 (proves that the trap works)
    assert path.exists()
    path.unlink()
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny("llama", tmp_path_factory.mktemp("tiny") / "llama")


def test_pickled_weights_are_refused_unread(tiny, tmp_path, trap):
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    torch.save({"a": Trap(trap)}, folder / "pytorch_model.bin")
    assert (
        load_checked(str(folder), device="cpu").n_layers == 3
    )  # the safetensors beside it are read
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"only pickled weights \(pytorch_model\.bin\), which can run code"
    ):
        load_checked(str(folder), device="cpu")
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors: truncated or corrupt"):
        load_checked(str(folder), device="cpu")
    assert not trap.exists()


def test_a_hub_model_is_asked_for_safetensors_only(monkeypatch):
    asked = {}

    def refuse(source, **options):
        asked.update(options)
        raise OSError("model has no safetensors")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    origin = Origin("someone/model", "a" * 40)
    opened = load.OpenedModel(ModelSpec("someone/model"), origin, LlamaConfig(), None)
    with pytest.raises(UserError, match="no safetensors"):
        load._from_pretrained(opened, placement=None)
    assert (
        asked["use_safetensors"] is True
        and asked["trust_remote_code"] is False
        and asked["revision"] == "a" * 40
    )


@pytest.mark.parametrize("nested", [False, True])
def test_a_pickled_archive_is_refused_unread(tmp_path, trap, nested):
    value = np.array([Trap(trap)], dtype=object)
    if nested:  # an object hidden in a field of a structured array
        value = np.zeros(1, dtype=[("a", "f4"), ("b", object)])
        value["b"][0] = Trap(trap)
    np.savez(tmp_path / "a.npz", a=value)
    with pytest.raises(UserError, match="never unpickled"):
        npz.read_npz(tmp_path / "a.npz", ["a"])
    assert not trap.exists()
