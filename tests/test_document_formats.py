"""Documents in the shapes that people have: read, said, refused by name, and run.

tests/data/documents holds one small file a shape, of invented content.
"""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import activation_analysis
import output_manager
import visualize_results
from hostile import outcome, publish
from rolecircuits.capture import instrument
from rolecircuits.documents.shapes import READ_AS, Fields
from rolecircuits.documents.texts import describe_reading, read_documents
from rolecircuits.drawing import document_figures
from rolecircuits.inputs.errors import UserError
from rolecircuits.runs import npz
from rolecircuits.runs.document_results import SHAPES
from rolecircuits.stats import document_stats
from rolecircuits.stats.index_inference import infer_indices
from tiny_models import load_checked, save_tiny

FILES = Path(__file__).parent / "data" / "documents"
# file: (roles of every document, its format, ids, ignored fields)
PUBLIC = {
    "openai_chat.jsonl": (
        ["system user assistant tool assistant", "system user assistant"],
        "chat",
        ["line-1", "line-2", "line-3"],
        ["name", "parallel_tool_calls", "tool_call_id", "tools", "weight"],
    ),
    "sharegpt.json": (
        ["system user assistant user assistant", "user assistant tool assistant"],
        "chat",
        ["mill_0", "mill_1", "mill_2"],
        [],
    ),
    "ultrachat.jsonl": (["user assistant user assistant"], "chat", ["0", "1"], []),
    "ultrachat_200k.jsonl": (["user assistant"], "chat", ["a1f0", "b2e9"], ["prompt"]),
    "anthropic_evals.jsonl": (
        ["text"],
        "raw",
        ["line-1", "line-2", "line-3"],
        "answer_matching_behavior answer_not_matching_behavior label_confidence statement".split(),
    ),
    "assistant_axis.jsonl": (["text"], "raw", ["0", "1", "2"], []),
    "alpaca.json": (["text"], "raw", ["item-1", "item-2", "item-3"], ["text"]),
    "lines.txt": (["text"], "raw", ["line-1", "line-3", "line-4"], []),
}
MESSAGE = {"role": "user", "content": "x"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return load_checked(save_tiny("mistral", tmp_path_factory.mktemp("formats")), device="cpu")


@pytest.fixture
def script(tiny, monkeypatch, tmp_path):
    """Runs activation_analysis.py --documents with the tiny model in an empty folder."""
    monkeypatch.setattr(instrument, "load_model", lambda *_: tiny)
    monkeypatch.chdir(tmp_path)

    def run(path, *flags):
        argv = ["--documents", str(path), "--output_dir", "out", "--model_id", "t", *flags]
        return activation_analysis.main(argv)

    return run


def write_lines(path, *rows):
    texts = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def read_one(tmp_path, row, fields=None, prompt_format="raw"):
    """The only Document of a file of one row."""
    path = write_lines(tmp_path / "one.jsonl", row)
    (document,) = read_documents(path, fields, prompt_format).documents
    return document


def table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def roles_of(document):
    return " ".join(role for role, _ in document.turns)


def test_a_file_of_every_shape_is_there():
    assert {path.name for path in FILES.iterdir()} == set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_shape_is_read_and_said(name):
    roles, form, ids, ignored = PUBLIC[name]
    reading = read_documents(FILES / name)
    assert [document.id for document in reading.documents] == ids and reading.failed == []
    assert [roles_of(document) for document in reading.documents[: len(roles)]] == roles
    assert (reading.facts["format"], reading.facts["ignored"]) == (form, ignored)
    (line,) = describe_reading(reading, name)
    assert line.startswith(f"{name}: ") and f"{len(ids)} documents" in line
    assert all(field in line for field in ignored)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *((name, "raw") for name in PUBLIC),
        *((name, "chat") for name, facts in PUBLIC.items() if facts[1] == "raw"),
    ],
)
def test_a_public_shape_is_run(script, name, form, capsys):
    assert script(FILES / name, "--prompt_format", form) == 0
    said = capsys.readouterr().out
    printed = [line for line in said.splitlines()[:-1] if not line.startswith("note: ")]
    assert 0 < max(map(len, printed)) <= 80
    rows = table("out/latest_documents/documents.csv")
    assert [row["id"] for row in rows] == PUBLIC[name][2]
    assert list(rows[0])[:4] == ["model", "set", "format", "run"]
    chat = "chat" if form == "chat" else PUBLIC[name][1]
    assert {(row["set"], row["format"], row["run"]) for row in rows} == {(name, chat, "documents")}
    config = json.loads(Path("out/latest_documents/experiment_config.json").read_text())
    assert config["documents"]["read"]["rows"] == len(rows)


def test_what_is_no_conversation_becomes_turns_in_chat_format():
    first, second, _ = read_documents(FILES / "alpaca.json", None, "chat").documents
    assert [role for role, _ in first.turns] == ["user", "assistant"]
    assert second.turns[0][1].startswith("Shorten the sentence.\n\nThe mill that")
    assert second.turns[1] == ("assistant", "The river mill is old.")
    raw = read_documents(FILES / "alpaca.json").documents[1].turns
    assert raw == (("text", "\n\n".join(text for _, text in second.turns)),)
    (turn,) = read_documents(FILES / "anthropic_evals.jsonl", None, "chat").documents[0].turns
    assert turn[0] == "user" and turn[1].startswith("Is the following statement")


def test_roles_of_other_tools_are_mapped_and_it_is_said(tmp_path):
    messages = [{"role": role, "content": role} for role in READ_AS]
    path = write_lines(tmp_path / "d.jsonl", {"messages": messages})
    reading = read_documents(path)
    assert dict(zip(READ_AS, reading.documents[0].turns, strict=True)) == {
        role: (own, role) for role, own in READ_AS.items()
    }
    assert reading.facts["roles"] == READ_AS
    assert "human as user" in describe_reading(reading, path)[0]


def test_tool_calls_are_text_and_null_content_needs_one(tmp_path):
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    said = {"role": "assistant", "content": None, "tool_calls": [call, call]}
    document = read_one(tmp_path, {"messages": [MESSAGE, said]})
    line = '{"name": "f", "arguments": {"a": 1}}'
    assert document.turns[1] == ("assistant", f"{line}\n{line}")
    said["content"] = "Wait."
    said["tool_calls"] = [call]
    assert read_one(tmp_path, {"messages": [said]}).turns[0][1] == f"Wait.\n{line}"


def test_ids_are_the_rows_own_or_their_places(tmp_path):
    rows = [{"text": "a"}, "", {"id": 7, "text": "b"}, {"prompt_id": "p", "text": "c"}]
    path = write_lines(tmp_path / "d.jsonl", *rows)
    assert [d.id for d in read_documents(path).documents] == ["line-1", "7", "p"]
    path = write_lines(tmp_path / "d.jsonl", {"name": "x", "id": "y", "text": "a"})
    assert read_documents(path, Fields(id="name")).documents[0].id == "x"


def test_the_name_of_the_file_changes_nothing(tmp_path):
    for name in ("openai_chat.jsonl", "sharegpt.json"):
        found = [read_documents(FILES / name)]
        for other in ("x.json", "y.jsonl", "z", "w.txt"):
            found.append(read_documents(shutil.copy(FILES / name, tmp_path / other)))
        assert all(own == found[0] for own in found[1:])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (Fields(text="text"), (("text", "the text"),)),
        (Fields(messages="talk"), (("user", "x"),)),
        (Fields(text="extra"), (("text", "the extra"),)),
        (Fields(text="missing", messages="messages"), (("user", "x"),)),
    ],
)
def test_flags_say_which_field_is_meant(tmp_path, fields, expected):
    row = {"text": "the text", "extra": "the extra", "messages": [MESSAGE], "talk": [MESSAGE]}
    assert read_one(tmp_path, row, fields).turns == expected


def test_a_category_is_any_name_and_its_field_can_be_chosen(tmp_path):
    row = {"text": "a", "category": "Open QA", "kind": "neutral"}
    assert read_one(tmp_path, row).category == "Open QA"
    assert read_one(tmp_path, row, Fields(category="kind")).category == "neutral"
    assert read_one(tmp_path, row, Fields(category="")).category == ""


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "this line: not JSON at column"),
        ("[]", "is a list; it must be an object"),
        ('{"text": "t", "text": "u"}', "the key 'text' appears twice"),
        ('{"x": NaN, "text": "t"}', "NaN"),
        ({"id": 3.5, "text": "t"}, "field id must be a text"),
        ({"id": True, "text": "t"}, "field id must be a text"),
        ({"text": " "}, "field text must be a text that is not empty"),
        ({"x": "t", "y": "u"}, "say which does with --text_field or --messages_field; its fields"),
        ({"text": "t", "messages": [MESSAGE]}, "--text_field text, --messages_field messages"),
        ({"question": "t", "text": "u"}, "has text and question; say which"),
        ({"text": "t", "category": "nuetral"}, "did you mean neutral.*--category_field"),
        ({"text": "t", "category": ["neutral"]}, "category.*--category_field"),
        ({"text": "t", "category": ""}, "category ''"),
        (
            {"messages": [{"role": "narrator", "content": "x"}]},
            r"field messages\[0\]: role 'narrator' is none of system, user",
        ),
        ({"conversations": [{"from": "God", "value": "x"}]}, "role 'God' is none of"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            r"field messages\[0\]\[0\] is a part of type 'image_url'; only text",
        ),
        ({"messages": [{"role": "user", "content": []}]}, r"field messages\[0\] must be a text"),
        ({"messages": []}, "field messages must be a list of turns that is not empty"),
        ({"messages": "hello"}, "field messages must be a list"),
        ({"messages": [MESSAGE, {"role": "user"}]}, "has neither a content nor a tool call"),
        ({"messages": [{"role": "user", "content": None}]}, "has neither a content nor a tool"),
        ({"messages": [MESSAGE, "x"]}, r"field messages\[1\] is a str"),
        ({"messages": [{"content": "x"}]}, r"field messages\[0\] has no role"),
        ({"messages": [MESSAGE | {"tool_calls": [{}]}]}, "a tool call without a function's name"),
        ({"data": ["a", " "]}, r"field data\[1\] must be a text"),
        ({"instruction": "t"}, "has no field that is known"),
        ({"instruction": "t", "output": ""}, "field output must be a text"),
        ('{"text": "\\ud800"}', "field text: holds .*half a surrogate pair"),
        ({"id": "line-1", "text": "t"}, "id 'line-1' is that of line-1"),
    ],
)
def test_a_bad_row_is_recorded_and_the_rest_goes_on(tmp_path, line, named):
    path = write_lines(tmp_path / "d.jsonl", {"text": "good"}, line, {"text": "also good"})
    reading = read_documents(path)
    assert [document.id for document in reading.documents] == ["line-1", "line-3"]
    ((place, reason),) = reading.failed
    assert place == "line-2"
    with pytest.raises(UserError, match=named):
        raise UserError(reason)
    assert "1 of 3 rows are no documents, line-2 first" in describe_reading(reading, path)[1]
    if not isinstance(line, str):
        array = tmp_path / "d.json"
        array.write_text(json.dumps([{"text": "good", "id": "line-1"}, line]))
        ((place, other),) = read_documents(array).failed
        assert (place, other.replace("item-1", "line-1")) == ("item-2", reason)


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("d.jsonl", None, "no such file"),
        ("d.jsonl", b"\n \n", "holds no documents; read are one object a line"),
        ("d.txt", b"\n \n", "holds no documents"),
        ("d.json", b"[]", "holds no documents"),
        ("d.json", b'[{"text": "a"},]', "not JSON at line 1"),
        ("d.jsonl", b"\xff", "not UTF-8"),
        ("d.jsonl", b'{\n "id": "a",\n "text": "b"\n}', "is one JSON object over several lines"),
        ("d.md", b"A text.\nAnother.\n", "none of its 2 rows is a document: line-1: .*not JSON"),
        ("d.jsonl", b'{"x": 1}', "its only row is no document: line-1"),
        ("d.jsonl", b'{"x": 1}\n{"x": 1}', "none of its 2 rows.*conversations.*a .txt file holds"),
    ],
)
def test_a_file_without_documents_is_refused(tmp_path, name, content, named):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=named):
        read_documents(tmp_path / name)


def test_too_many_categories_are_refused(tmp_path):
    rows = [{"text": "a", "category": f"c{i}"} for i in range(17)]
    with pytest.raises(UserError, match="has 17 categories.*--category_field"):
        read_documents(write_lines(tmp_path / "d.jsonl", *rows))


def test_a_misspelt_category_field_is_said(tmp_path):
    path = write_lines(tmp_path / "d.jsonl", {"text": "a", "categroy": "neutral"})
    assert (
        "ignored: categroy; did you mean category?"
        in describe_reading(read_documents(path), path)[0]
    )


def test_bad_rows_end_with_exit_code_3_and_are_in_the_record(script, tmp_path, capsys):
    path = write_lines(tmp_path / "d.jsonl", {"text": "Rain falls."}, "{", {"id": 1})
    assert script(path) == 3
    said = capsys.readouterr().out
    assert "2 of 3 rows are no documents" in said and "failed: line-2: this line: not J" in said
    assert "1 documents done, 2 failed" in said
    config = json.loads(Path("out/latest_documents/experiment_config.json").read_text())
    assert config["status"] == "partial"
    assert [lost["id"] for lost in config["documents"]["failed"]] == ["line-2", "line-3"]


def test_a_file_is_checked_before_the_model_is_loaded(tmp_path, monkeypatch, capsys):
    def load_model(*request):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(instrument, "load_model", load_model)
    path = write_lines(tmp_path / "d.jsonl", {"x": 1})
    assert activation_analysis.main(["--documents", str(path)]) == 2
    assert "say which does with --text_field" in capsys.readouterr().err
    assert activation_analysis.main(["--text_field", "x"]) == 2
    assert "--text_field needs --documents" in capsys.readouterr().err


def make_arrays(turns, seed=0, n_layers=3, n_heads=2, categories=None):
    """Arrays as in documents.npz: `turns` is [[role, ...] of a document, ...]."""
    rng = np.random.default_rng(seed)
    count = [len(roles) for roles in turns]
    arrays = {
        "document_id": np.array([f"d{i}" for i in range(len(turns))]),
        "category": np.array(categories or [""] * len(turns)),
        "n_tokens": np.full(len(turns), 9),
        "turn_document": np.repeat(np.arange(len(turns)), count),
        "turn_role": np.array([role for roles in turns for role in roles]),
        "turn_span": np.tile([0, 4], (sum(count), 1)),
    }
    for kind in document_stats.VALUES:
        shape = (n_layers, n_heads)
        arrays[f"turn_{kind}"] = rng.uniform(0.2, 0.8, (sum(count), *shape)).astype(np.float32)
        arrays[f"whole_{kind}"] = rng.uniform(0.2, 0.8, (len(turns), *shape)).astype(np.float32)
    assert arrays.keys() == SHAPES.keys()
    return arrays | {"frame": np.array([f"word{i // 3 % 9}" for i in range(len(turns))])}


def test_a_drift_is_last_third_against_first_third_of_one_role():
    arrays = make_arrays([["user", "assistant"] * 4, ["user", "assistant"]])
    for kind in document_stats.VALUES:
        number = np.array([0.1, 9, 0.3, 9, 0.3, 9, 0.7, 9, 5, 5]) / 10  # user: .01 .03 .03 .07
        arrays[f"turn_{kind}"][:] = number[:, None, None]
    drifts = document_stats.turn_drifts(arrays)
    assert list(drifts) == ["user", "assistant"]
    focus, sink = (drifts["user"][kind] for kind in ("normalised", "sink_mass"))
    np.testing.assert_allclose(focus, [-0.06, np.nan], atol=1e-6)  # entropy rose: less focused
    np.testing.assert_allclose(sink, [0.06, np.nan], atol=1e-6)
    np.testing.assert_allclose(drifts["assistant"]["sinkfree"], [0, np.nan], atol=1e-6)
    rows = document_stats.infer_drifts(arrays)
    assert {row["n"] for row in rows} == {1} and "below 8 conversations" in rows[0]["reason"]


def test_intervals_are_there_where_the_documents_are_enough():
    names = ["self_referent", "confounder", "neutral"]
    arrays = make_arrays([["user"] * 3] * 36, categories=names * 12)
    arrays["whole_normalised"][::3] *= 0.8  # self-referent documents are the more focused
    found = document_stats.infer_document_indices(arrays, n_resamples=500)
    assert list(found) == [(k, i) for k in ("normalised", "sinkfree") for i in ("rfc", "rsi")]
    mean = found["normalised", "rfc"]["mean"]
    assert 0.1 < mean["estimate"] < 0.3 and mean["low"] < mean["estimate"] < mean["high"]
    assert found["normalised", "rfc"]["reason"] is None and mean["p"] < 0.05
    assert all(row["low"] < row["high"] for row in document_stats.infer_drifts(arrays))
    few = {name: values[:12] for name, values in arrays.items() if values.shape[0] == 36}
    assert "below 8 documents" in reason_of(few)
    few["frame"] = np.full(12, "who")
    assert "begin in 1 ways" in reason_of(few)
    few["frame"] = few["category"]
    assert "not identified: no first word begins documents of confounder and self_" in reason_of(
        few
    )


def reason_of(arrays):
    """Why these documents have no test of RSI, which is then undefined."""
    found = document_stats.infer_document_indices(arrays, n_resamples=50)["sinkfree", "rsi"]
    assert np.isfinite(found["mean"]["estimate"]) and np.isfinite(found["layers"]["estimate"]).all()
    assert all(np.isnan(found["layers"][name]).all() for name in ("low", "p", "q", "p_max"))
    assert np.isnan(found["mean"]["high"])
    return found["reason"]


def test_documents_are_clustered_by_their_first_words_as_prompts_are(script):
    rows = [(f"q{i}", c) for i, c in enumerate(["self_referent", "neutral", "confounder"] * 20)]
    words = ["What", "How", "When", "Who", "why", "Where", "Which", "Is", "Do", "Can"]
    rows = [
        {"id": name, "category": category, "text": f"{words[i // 6]} {category} of the river {i}?"}
        for i, (name, category) in enumerate(rows)
    ]
    talk = [{"role": "system", "content": "You"}, {"role": "user", "content": "Who are you?"}]
    rows.append({"id": "talk", "messages": talk})
    write_lines(Path("d.jsonl"), *rows)
    assert script("d.jsonl") == 0
    folder = Path("out/latest_documents")
    lines = [json.loads(line) for line in (folder / "documents.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines[::6]] == [*(w.lower() for w in words), "who"]
    names = ["category", "frame", "whole_normalised"]
    arrays = npz.read_npz(folder / "documents.npz", names)
    values = arrays["whole_normalised"].astype(float).mean(axis=-1)
    unit = np.unique(arrays["frame"], return_inverse=True)[1]
    expected = infer_indices(values, arrays["category"], unit)["rfc"]
    found = [row for row in table(folder / "indices.csv") if row["kind"] == "normalised"]
    found = [float(row["low"]) for row in found if row["index"] == "rfc"]
    np.testing.assert_allclose(found, expected.low, rtol=1e-6)


CONFIG = {
    "model": {"id": "m"},
    "documents": {"format": "chat"},
    "arguments": {"documents": "a/b.jsonl"},
}


def test_the_figures_hold_what_they_draw():
    arrays = make_arrays([["system", "user", "assistant"], ["user", "assistant"], ["text"]])
    drawings = document_figures.draw_documents(arrays, CONFIG)
    assert list(drawings) == ["documents_by_turn", "documents_by_layer"]
    figure, rows = drawings["documents_by_turn"]
    lines = [row for row in rows if row["layer"] == "all"]
    assert [(row["document"], row["turn"]) for row in lines] == [
        *[("d0", 0), ("d0", 1), ("d0", 2)],
        *[("d1", 0), ("d1", 1)],
    ]  # a text is no conversation
    means = document_stats.turn_means(arrays, "sink_mass")
    np.testing.assert_allclose([row["sink_mass"] for row in lines], means[:5])
    cell = next(row for row in rows if (row["turn"], row["layer"]) == (1, 2))
    assert cell["normalised"] == pytest.approx(arrays["turn_normalised"][[1, 4], 2].mean())
    assert len(figure.axes[0].lines) == 2 + 3 and figure.axes[3].images[0].get_array().shape == (
        3,
        3,
    )
    _, rows = drawings["documents_by_layer"]
    assert len(rows) == 9 and rows[0]["set"] == "b.jsonl"
    alone = make_arrays([["text"], ["text"]], categories=["neutral", "odd name"])
    assert list(document_figures.draw_documents(alone, CONFIG)) == ["documents_by_layer"]


def test_a_documents_run_is_drawn_again(script, tmp_path, capsys):
    assert script(FILES / "openai_chat.jsonl") == 0
    folder = Path("out/latest_documents")
    own = {path.relative_to(folder / "figures") for path in folder.rglob("figures/**/*.*")}
    assert {path.name for path in own} == {
        f"documents_by_{axis}.{end}" for axis in ("turn", "layer") for end in ("png", "csv")
    }
    assert visualize_results.main(["--input_dir", str(folder)]) == 0
    for path in own:
        assert (
            Path("figures/documents", path).read_bytes() == (folder / "figures" / path).read_bytes()
        )
    for flag in (["--contrast", "a-b"], ["--roles", "neutral=x"]):
        assert visualize_results.main(["--input_dir", str(folder), *flag]) == 2
    assert "not for documents" in capsys.readouterr().err


def test_a_damaged_documents_run_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sound = make_arrays([["user", "assistant"], ["text"]])
    damages = {
        "turn_document": np.array([0, 1, 0]),
        "turn_role": np.array([1, 2, 3]),
        "whole_normalised": sound["whole_normalised"] + 1,
        "turn_sinkfree": sound["turn_sinkfree"][:2],
        "category": np.array(["a/b", ""]),
        "n_tokens": np.zeros((2, 0), int),
    }
    for i, (name, array) in enumerate([("", None), *damages.items()]):
        npz.write_npz("documents.npz", sound | ({name: array} if name else {}))
        content = Path("documents.npz").read_bytes()
        publish(tmp_path / f"run{i}", {"documents.npz": content}, CONFIG)
        argv = ["--input_dir", f"run{i}", "--output_dir", f"drawn{i}"]
        assert outcome(visualize_results.main, argv) == (2 if name else 0), name
    for key in CONFIG:
        broken = publish(tmp_path / key, {"documents.npz": content}, CONFIG | {key: None})
        assert outcome(visualize_results.main, ["--input_dir", str(broken)]) == 2
    assert output_manager.resolve_run(broken) == broken


def test_lines_of_a_text_file_may_begin_with_a_bracket(tmp_path):
    (tmp_path / "d.txt").write_text("[Ann] Hello Bob.\n[Bob] Hello Ann.\n")
    assert [d.turns[0][1][:5] for d in read_documents(tmp_path / "d.txt").documents] == [
        "[Ann]",
        "[Bob]",
    ]
    (tmp_path / "d.txt").write_text('[\n {"text": "good"}\n]')
    assert read_documents(tmp_path / "d.txt").facts["layout"] == "JSON array"
    (tmp_path / "d.txt").write_text('[{"text": "good"},]')
    with pytest.raises(UserError, match="not JSON at line 1"):
        read_documents(tmp_path / "d.txt")


def test_a_row_whose_id_was_there_is_not_counted_as_read(tmp_path):
    rows = [{"id": "a", "text": "one"}, {"id": "a", "text": "two", "x": 1}]
    reading = read_documents(write_lines(tmp_path / "d.jsonl", *rows))
    assert reading.facts["shapes"] == {"text": 1} and reading.facts["ignored"] == []


def test_two_fields_that_were_named_and_are_both_there_are_named_by_their_flags(tmp_path):
    path = write_lines(tmp_path / "d.jsonl", {"body": "a", "talk": []})
    with pytest.raises(UserError, match="--text_field body, --messages_field talk"):
        read_documents(path, Fields(text="body", messages="talk"))
