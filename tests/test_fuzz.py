"""Damaged and hostile files: nothing but the project's own error comes out, nothing in them runs,
no output changes.

Every example is a valid file after a mutation (bytes cut, flipped, overwritten; JSON values
replaced, added, removed; arrays of other dtypes, shapes, values and headers), read in-process. Run
folders are read with the manifest as it was and with a manifest made again, so that the checks
behind the checksum are reached. Derandomised: the same examples on every run.
"""

import contextlib
import copy
import io
import json
import os
import pickle
import shutil
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import analyze_results
import cross_model_correlation as cross
import output_manager as om
import prompts
import run_pipeline
import visualize_results
from hostile import CONFIG, effect_row, outcome, publish
from rolecircuits.documents import texts as texts_module
from rolecircuits.drawing import document_figures, edit_figures, style
from rolecircuits.edits import plan
from rolecircuits.edits.controls import draw_controls
from rolecircuits.inputs import categories
from rolecircuits.inputs.arguments import check_model_arguments
from rolecircuits.inputs.errors import UserError
from rolecircuits.models import families
from rolecircuits.runs import document_results, edit_results
from rolecircuits.stats import indices, profiles
from rolecircuits.stats.run_pairs import match_runs
from synthetic import make_run, save_run

EXAMPLES = {
    "prompts": 400,
    "plans": 400,
    "families": 250,
    "csv": 300,
    "csv_drawn": 8,
    "documents": 500,
}
EXAMPLES |= {
    "run_bytes": 250,
    "run_config": 250,
    "run_arrays": 250,
    "run_headers": 150,
    "effects": 150,
    "sweep": 100,
    "documents_run": 150,
}
MINIMUM = 2000

texts = st.text(st.characters(exclude_categories=()), max_size=8) | st.sampled_from(
    [
        "",
        " ",
        "\x1b[31m",
        "..",
        "a/b",
        "=1",
        "$x$",
        "[/INST]",
        "self_referent",
        "raw",
        "head",
        "\ud83d",
        "\x00",
        "nan",
        "x" * 300,
    ]
)
numbers = (
    st.integers()
    | st.floats()
    | st.sampled_from([0, -1, 1, 2**31, 2**63, 10**30, 1e308, -1e-320, True])
)
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def run_examples(name, strategy, check, least=3):
    """`check` every example of a strategy; fails if fewer than planned were tried, or if fewer than
    `least` were accepted.

    check(example)  returns True where the example was accepted and used
    """
    tried, accepted = [], []

    @settings(
        max_examples=EXAMPLES[name],
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def every(example):
        tried.append(None)
        if check(example):
            accepted.append(None)

    every()
    assert len(tried) >= EXAMPLES[name]
    assert len(accepted) >= least, (
        f"{len(accepted)} of {len(tried)} examples reached what lies behind the checks"
    )


def test_enough_examples_are_planned():
    assert sum(EXAMPLES.values()) >= MINIMUM


def places(value):
    """Every (container, key) of a JSON value."""
    keys = (
        value.keys()
        if isinstance(value, dict)
        else range(len(value))
        if isinstance(value, list)
        else ()
    )
    for key in list(keys):
        yield value, key
        yield from places(value[key])


@st.composite
def damaged_json(draw, documents):
    """One of the JSON documents with one to three values replaced, removed or added."""
    root = [copy.deepcopy(draw(st.sampled_from(documents)))]
    for _ in range(draw(st.integers(1, 3))):
        container, key = draw(st.sampled_from(list(places(root))))
        action = draw(st.sampled_from(["replace", "remove", "add", "scalar"]))
        if action == "remove" and container is not root:
            del container[key]
        elif action == "add" and isinstance(container, dict):
            container[draw(texts)] = draw(values)
        else:
            container[key] = draw(scalars if action == "scalar" else values)
    return json.dumps(root[0]).encode()


def as_lines(content):
    """A JSON list as JSON lines."""
    rows = json.loads(content)
    return "\n".join(
        json.dumps(row) for row in (rows if isinstance(rows, list) else [rows])
    ).encode()


@st.composite
def damaged_bytes(draw, content):
    """Bytes cut short, flipped, overwritten or repeated; `content`: bytes or a strategy of them."""
    data = bytearray(content if isinstance(content, bytes) else draw(content))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        action = draw(st.sampled_from(["cut", "flip", "write", "repeat", "drop"]))
        if action == "cut":
            del data[at:]
        elif action == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif action == "write":
            new = draw(st.binary(max_size=8))
            data[at : at + len(new)] = new
        elif action == "repeat":
            data[at:at] = data[at : at + draw(st.integers(1, 2000))]
        else:
            del data[at : at + draw(st.integers(1, 40))]
    return bytes(data)


@pytest.fixture
def box(tmp_path, monkeypatch):
    """A folder to work in, with results that no reader may touch."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "kept").write_text("kept")
    yield tmp_path
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["kept"]
    assert (tmp_path / "results" / "kept").read_text() == "kept"


PROMPT_FILES = [
    {c: [f"{c} one?", f"{c} two?"] for c in categories.CATEGORIES},
    {"self_referent": ["Who are you?"], "neutral": ["What is rain?", "What is rain?"]},
]


def test_prompt_files(box):
    def check(content):
        Path("p.json").write_bytes(content)
        if outcome(prompts.main, ["--prompts", "p.json"]) == 0:
            chosen, _ = prompts.load_prompts("p.json")
            assert len({p.id for p in chosen}) == len(chosen) and all(
                p.text.strip().encode() for p in chosen
            )
            return len(categories.prompt_set_sha256(chosen)) == 64
        return False

    sound = damaged_json(PROMPT_FILES)
    run_examples(
        "prompts",
        sound | damaged_bytes(sound) | values.map(lambda v: json.dumps(v).encode()),
        check,
    )
    assert set(os.listdir(box)) == {"results", "p.json"}


HEAD = {"type": "head", "layer": 1, "head": 1, "method": "zero_out", "role": "candidate"}
PLAN = {
    "schema_version": 1,
    "source": {"model": "m"},
    "interventions": [
        HEAD,
        HEAD | {"head": 2, "role": "control", "control_for": "sh_1_1"},
        {"type": "layer_heads", "layer": 0, "head": [0, 2], "method": "scale", "factor": 0.5},
        {"type": "pattern", "layer": 2, "head": None, "method": "random"},
        {"type": "patch", "layer": 2, "component": "mlp", "method": "other_model", "source": "./m"},
        {"type": "steer", "layer": 2, "method": "add", "alpha": -4, "note": "n"},
        {"type": "mlp", "layer": 2, "method": "mean"},
    ],
}


def test_intervention_plans(box):
    def check(content):
        Path("plan.json").write_bytes(content)
        try:
            entries = plan.read_plan("plan.json")
            plan.check_against_model(entries, 3, 4, "m")
        except UserError:
            return False
        for entry in entries + draw_controls(entries, 4, 31)[0]:
            name = entry.name
            assert (
                Path(name).name == name
                and name.isascii()
                and name.isprintable()
                and len(name) <= 200
                and ".." not in name
            )
        return True

    singles = [
        PLAN | {"interventions": [entry]}
        for entry in PLAN["interventions"]
        if "control_for" not in entry
    ]
    sound = damaged_json([PLAN, *singles])
    run_examples("plans", sound | damaged_bytes(sound), check)


DOCUMENTS = [
    {"id": "a", "category": "neutral", "text": "Rain falls."},
    {
        "id": "b",
        "messages": [
            {"role": "user", "content": "Who are you?"},
            {"role": "assistant", "content": "Nobody."},
        ],
    },
    {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "I."}]},
    {"prompt_id": "p", "data": ["Why?", "So."], "question_id": 3},
    {
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}],
            },
        ]
    },
    {"question": "Would you say this?", "statement": "this"},
    {"instruction": "Shorten.", "input": "A long text.", "output": "A text."},
]


def test_documents(box):
    def check(example):
        content, form = example
        Path("d.jsonl").write_bytes(content)
        try:
            reading = texts_module.read_documents("d.jsonl", None, form)
        except UserError as error:
            assert "d.jsonl" in str(error)
            return False
        found, places = reading.documents, [place for place, _ in reading.failed]
        assert len({document.id for document in found}) == len(found) > 0
        assert all(text.strip().encode() for document in found for _, text in document.turns)
        assert len(found) + len(set(places)) == reading.facts["rows"]
        said = texts_module.describe_reading(reading, "d.jsonl")
        assert all(line.isprintable() for line in said)
        return True

    whole = damaged_json([DOCUMENTS])
    odd = st.builds(
        lambda name, text: json.dumps({"id": name, "text": text}).encode(), texts, texts
    )
    sound = whole.map(as_lines)
    contents = sound | whole | damaged_bytes(sound) | damaged_bytes(whole) | odd
    run_examples("documents", st.tuples(contents, st.sampled_from(["raw", "chat"])), check, 60)


FAMILY = {
    "x": {
        "base": {"model_id": "m"},
        "instruct": {"model_id": "n", "prompt_format": "chat", "system_prompt": ""},
        "note": "n",
    }
}


def test_family_files(box):
    args = run_pipeline.parse_args(["--family", "x"])

    def check(content):
        Path("f.json").write_bytes(content)
        try:
            family = families.load_family("f.json", "x")
            for side in families.SIDES:
                flags = families.stage_flags(side, family, args, "x")
                each = run_pipeline.parse_stages({side: flags})[side]
                assert (
                    each.model_id == family[side]["model_id"]
                    and each.output_dir == "results_activation_analysis/x"
                )
                check_model_arguments(each)
        except UserError:
            return False
        return True

    sound = damaged_json([FAMILY])
    run_examples("families", sound | damaged_bytes(sound), check)


def comparison_csv(rows=6, **columns):
    names = [
        "layer",
        "rfc_mean_base",
        "rfc_diff",
        "rsi_diff",
        "rfc_diff_ci_low",
        "rfc_diff_ci_high",
    ]
    lines = [",".join(names)]
    for i in range(rows):
        cells = {
            name: str(i) if name == "layer" else f"{np.sin(i + len(name)):.6g}" for name in names
        }
        cells |= {name: column[i] for name, column in columns.items()}
        lines.append(",".join(cells[name] for name in names))
    return "\r\n".join(lines).encode()


cells = st.sampled_from(
    [
        "",
        "nan",
        "inf",
        "1e999",
        "1_0",
        "\u0661",
        "=1+1",
        "-0",
        "1e-320",
        "1e99",
        "0x1",
        "'1",
        '"',
        "1\x00",
    ]
) | (st.floats().map(repr) | texts.map(lambda t: t.encode("utf-8", "replace").decode()))
columns = st.fixed_dictionaries(
    {"rfc_diff": st.lists(cells, min_size=6, max_size=6)},
    optional={
        "layer": st.permutations("012345"),
        "rfc_diff_ci_low": st.lists(cells, min_size=6, max_size=6),
    },
)


def test_comparison_csvs(box):
    (box / "c").mkdir()
    other = np.sin(np.arange(6.0))

    def check(content):
        (box / "c" / profiles.FILE).write_bytes(content)
        try:
            profile = profiles.read_profiles({"c": box / "c"})[0]["c"]
        except UserError:
            return False
        assert np.isfinite([profile["rfc_diff"], profile["rsi_diff"]]).all()
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            row = profiles.summarise_profile("m", "rfc_diff", profile, "original")
            pair = profiles.align_profiles(profile["rfc_diff"], other)
            found = [profiles.correlate_detrended(*pair, degree) for degree in (0, 1, 2)]
        assert all(np.isfinite(row[name]) for name in ("mean", "sd", "median"))
        for r, _, p, shift_p in found:
            undefined = np.isnan([r, p, shift_p])
            assert undefined.all() or (abs(r) <= 1 and 0 <= p <= 1 and 0 < shift_p <= 1)
        return True

    run_examples(
        "csv", damaged_bytes(comparison_csv()) | columns.map(lambda c: comparison_csv(**c)), check
    )


def test_comparisons_that_are_accepted_can_be_drawn(box):
    numbers = st.floats(-1e100, 1e100) | st.sampled_from([0.0, 1e100, -1e100, 1e-320])

    def check(column):
        (box / "c").mkdir(exist_ok=True)
        (box / "c" / profiles.FILE).write_bytes(comparison_csv(rfc_diff=[repr(x) for x in column]))
        assert (
            outcome(cross.main, ["--comparison", "\x1b=c", "$x$=c", "--output_dir", "drawn"]) == 0
        )
        return True

    run_examples("csv_drawn", st.lists(numbers, min_size=6, max_size=6), check)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_run(
        make_run(n_layers=2, n_heads=1, per_category=2), tmp_path_factory.mktemp("saved")
    )


class Reader:
    """A copy of a run in which one file at a time is replaced and then read."""

    def __init__(self, saved, box):
        self.folder, self.saved, self.box = Path(shutil.copytree(saved, box / "run")), saved, box

    def read(self, name, content, again):
        """Replace file `name`, read the run, put the file back; `again`: make the manifest agree
        with it."""
        (self.folder / name).write_bytes(content)
        if again and name != "manifest.json":
            om.write_manifest(self.folder)
        used = False
        try:
            self._use(om.load_run(self.folder))
            used = True
        except UserError as error:
            assert str(self.folder) in str(error)
            for main in (analyze_results.main, visualize_results.main):
                assert (
                    outcome(main, ["--input_dir", str(self.folder), "--output_dir", "figures"]) == 2
                )
            assert not (self.box / "figures").exists()
        finally:
            for kept in (name, "manifest.json"):
                shutil.copy(self.saved / kept, self.folder / kept)
        assert not (self.box / "trap").exists()
        return used

    def _use(self, run):
        """What the readers do first with a run that was accepted."""
        assert run.label.isprintable() and sum(run.counts.values()) == len(run.category)
        for kind in indices.KINDS:
            indices.layer_indices(run, kind)
            indices.layer_null(run, kind)
        indices.position_matched_values(run)
        np.random.default_rng(run.config.get("seed", 0))
        with contextlib.suppress(UserError):
            match_runs(run, run)


@pytest.fixture
def reader(saved, box):
    return Reader(saved, box)


def test_run_folders_with_damaged_bytes(reader, saved):
    files = {path.name: path.read_bytes() for path in saved.iterdir()}
    damaged = st.sampled_from(sorted(files)).flatmap(
        lambda name: st.tuples(st.just(name), damaged_bytes(files[name]), st.booleans())
    )
    run_examples("run_bytes", damaged, lambda example: reader.read(*example))


def test_run_folders_with_other_json(reader, saved):
    documents = {
        name: json.loads((saved / name).read_text())
        for name in ("experiment_config.json", "manifest.json")
    }
    documents["experiment_config.json"]["seed"] = 3
    lines = [json.loads(line) for line in (saved / "prompts.jsonl").read_text().splitlines()]

    changed = [
        st.tuples(st.just(name), damaged_json([d]), st.just(True)) for name, d in documents.items()
    ]
    changed += changed[:1]
    changed.append(
        st.tuples(st.just("prompts.jsonl"), damaged_json([lines]).map(as_lines), st.just(True))
    )
    run_examples("run_config", st.one_of(changed), lambda example: reader.read(*example))


class Trap:
    def __reduce__(self):
        return open, ("trap", "w")


def change_array(array, draw):
    """The array with another dtype, shape or value."""
    action = draw(st.sampled_from(["dtype", "value", "cut", "axis", "object", "swap", "bytes"]))
    if action == "dtype":
        kind = draw(
            st.sampled_from(
                ["f2", "f8", ">f4", "c8", "i1", ">i8", "u8", "U3", "S3", "?", "M8[s]", "V4"]
            )
        )
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return array.astype(kind)
            except (ValueError, TypeError):
                return np.zeros(array.shape, kind)
    if action == "value" and array.dtype.kind in "fi":
        array = array.copy()
        bad = (
            [np.nan, np.inf, -np.inf, 1e30, -1.0, 2.0]
            if array.dtype.kind == "f"
            else [-1, 0, 99, 2**62, -(2**62)]
        )
        array.flat[draw(st.integers(0, array.size - 1))] = draw(st.sampled_from(bad))
        return array
    if action == "cut":
        return array[: draw(st.integers(0, len(array)))]
    if action == "axis":
        return draw(st.sampled_from([array[..., None], array[0], array.ravel(), array[None]]))
    if action == "object":
        return np.full(array.shape, Trap(), dtype=object)
    if action == "swap":
        return np.asfortranarray(array[::-1])
    if array.dtype.kind == "U":
        characters = np.frombuffer(array.tobytes(), np.uint32).copy()
        characters[draw(st.integers(0, len(characters) - 1))] = draw(
            st.sampled_from([0, 27, 0xD83D, 0x110000, 2**31 - 1, 2**32 - 1])
        )
        return characters.view(array.dtype).reshape(array.shape)
    raw = np.frombuffer(draw(st.binary(min_size=array.nbytes, max_size=array.nbytes)), np.uint8)
    return raw.view(array.dtype).reshape(array.shape)


@st.composite
def other_arrays(draw, arrays):
    arrays = dict(arrays)
    for name in draw(
        st.lists(st.sampled_from(sorted(arrays)), min_size=1, max_size=2, unique=True)
    ):
        if draw(st.integers(0, 9)) == 0:
            del arrays[name]
        else:
            arrays[name] = change_array(arrays[name], draw)
    if draw(st.integers(0, 9)) == 0:
        arrays["extra"] = np.array([Trap()], dtype=object)
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def test_the_trap_works(box):
    pickle.loads(pickle.dumps(Trap())).close()  # noqa: S301 (so it would be seen)
    assert (box / "trap").exists()


def test_run_folders_with_other_arrays(reader, saved):
    with np.load(saved / "attention.npz", allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    run_examples(
        "run_arrays",
        other_arrays(arrays),
        lambda content: reader.read("attention.npz", content, True),
    )


shapes = st.lists(
    st.sampled_from([0, 1, 2, 8, -1, True, 2**31, 2**40, 2**62, 2**63, 1.5, "8"]), max_size=5
)
dtypes = st.sampled_from(
    [
        "<f4",
        "<f8",
        "|O",
        "<U5",
        "<U0",
        "|V0",
        "|S0",
        "<U999999999",
        "x",
        "<M8",
        7,
        None,
        [("a", "<f4")],
    ]
)
dtypes |= st.just([("a", "<f4", (2**40,))]) | st.just(("<f4", (2**31, 2**31)))
headers = st.one_of(
    st.builds(
        lambda descr, shape, order: repr(
            {"descr": descr, "fortran_order": order, "shape": tuple(shape)}
        ),
        dtypes,
        shapes,
        st.sampled_from([True, False, 0, None]),
    ),
    st.sampled_from(
        [
            "{",
            "{[]: 1}",
            "1" * 5000,
            "(" * 300,
            "{'shape': (1L,)}",
            "__import__('os')",
            "'",
            "\\",
            "\x00",
            "{}",
        ]
    ),
    texts,
)


@st.composite
def forged_archives(draw, whole):
    """An npz in which one member has a forged header, method or flag."""
    names = zipfile.ZipFile(io.BytesIO(whole)).namelist()
    chosen, content = draw(st.sampled_from(names)), io.BytesIO()
    header = draw(headers).encode("utf-8", "replace")
    version = draw(st.sampled_from([(1, 0), (2, 0), (3, 0), (9, 9)]))
    size = struct.pack("<H" if version == (1, 0) else "<I", len(header))
    body = b"\x93NUMPY" + bytes(version) + size + header + draw(st.binary(max_size=64))
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(content, "w") as new:
        for name in names:
            method = draw(
                st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
            )
            new.writestr(
                name, body if name == chosen else old.read(name), method if name == chosen else None
            )
    data = bytearray(content.getvalue())
    if draw(st.booleans()):
        at = data.find(b"PK\x01\x02", 4)
        data[at + draw(st.sampled_from([8, 9, 10, 11, 24, 28, 42]))] ^= draw(
            st.sampled_from([1, 2, 8, 64])
        )
    return bytes(data)


def test_run_folders_with_forged_headers(reader, saved):
    whole = (saved / "attention.npz").read_bytes()
    run_examples(
        "run_headers",
        forged_archives(whole),
        lambda each: reader.read("attention.npz", each, True),
        least=0,
    )


def test_effects_of_intervention_runs(box):
    rows = [effect_row(category) for category in ("all", *categories.CATEGORIES)]
    folder = publish(box / "run", {"effects.json": json.dumps({"rows": rows}).encode()}, CONFIG)
    drawn = []

    def check(content):
        (folder / "effects.json").write_bytes(content)
        om.write_manifest(folder)
        try:
            rows = edit_results.read_effects(folder)
        except UserError:
            return False
        if len(drawn) < 3:
            figure, _ = edit_figures.draw_effects(rows, "label")
            figure.canvas.draw()
            style.save_figure(figure, box / "effects.png")
            drawn.append(None)
        return True

    sound = damaged_json([{"rows": rows}])
    run_examples("effects", sound | damaged_bytes(sound), check)
    assert drawn


def test_sweeps(box):
    rng = np.random.default_rng(0)
    arrays = {
        "kl": rng.random((2, 3, 4)),
        "kl_by_prompt": rng.random((2, 3, 8)),
        "category": np.array(categories.CATEGORIES),
    }
    arrays |= {name: rng.normal(size=(2, 3)) for name in ("rfc_change", "rsi_change")}
    folder = publish(box / "run", {"head_effects.npz": b""}, CONFIG)
    drawn = []

    def check(content):
        (folder / "head_effects.npz").write_bytes(content)
        om.write_manifest(folder)
        try:
            found = edit_results.read_sweep(folder, om.read_config(folder))
        except UserError:
            return False
        if len(drawn) < 3:
            figure, _ = edit_figures.draw_sweep(*found)
            style.save_figure(figure, box / "sweep.png")
            drawn.append(None)
        return True

    run_examples("sweep", other_arrays(arrays), check)
    assert drawn and not (box / "trap").exists()


def test_documents_runs(box):
    rng = np.random.default_rng(0)
    arrays = {
        "document_id": np.array(["a", "b"]),
        "category": np.array(["neutral", ""]),
        "n_tokens": np.array([9, 5]),
        "turn_document": np.array([0, 0, 1]),
        "turn_role": np.array(["user", "assistant", "text"]),
        "turn_span": np.array([[1, 4], [5, 8], [1, 4]]),
    }
    for kind in ("normalised", "sinkfree", "sink_mass"):
        arrays[f"whole_{kind}"] = rng.random((2, 3, 2)).astype(np.float32)
        arrays[f"turn_{kind}"] = rng.random((3, 3, 2)).astype(np.float32)
    known = {"documents": {"format": "mixed"}, "arguments": {"documents": "d.jsonl"}}
    folder = publish(box / "run", {"documents.npz": b""}, CONFIG | known)
    drawn = []

    def check(content):
        (folder / "documents.npz").write_bytes(content)
        try:
            found = document_results.read_documents_run(folder)
        except UserError:
            return False
        drawn.append(None)
        if len(drawn) < 6 or len(drawn) % 10 == 0:
            for figure, rows in document_figures.draw_documents(*found).values():
                style.save_figure(figure, box / "documents.png")
                assert rows
        return True

    run_examples("documents_run", other_arrays(arrays), check)
    assert drawn and not (box / "trap").exists()
