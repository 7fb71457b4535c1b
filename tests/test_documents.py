"""Documents: strict reading, spans of turns, shards that survive a kill, and values that follow
from the prompts' own path."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import activation_analysis
from rolecircuits.capture import instrument
from rolecircuits.capture.attention import capture_patterns
from rolecircuits.documents import shards as shard_files
from rolecircuits.documents.shapes import Document
from rolecircuits.documents.texts import read_documents
from rolecircuits.documents.tokens import Documents
from rolecircuits.inputs import arguments
from rolecircuits.inputs.errors import UserError
from rolecircuits.inputs.specs import PromptFormat
from rolecircuits.models.load import ModelTokenizer
from rolecircuits.runs import arrays as arrays_module
from rolecircuits.runs import finished, npz
from rolecircuits.stats import indices
from tiny_models import load_checked, save_tiny

TEXT = {"id": "a", "category": "neutral", "text": "Rain falls from clouds when drops grow heavy."}
TALK = {
    "id": "b",
    "category": "self_referent",
    "messages": [
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "Who are you? I am a model."},
        {"role": "user", "content": "  user =1 "},
    ],
}


def tokenize_document(document, tokenizer, **form):
    """The TokenizedDocument of a Document."""
    (tokenized,) = Documents([document], tokenizer, PromptFormat(**form)).fed
    return tokenized


def write_lines(path, *rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows),
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return load_checked(save_tiny("mistral", tmp_path_factory.mktemp("documents")), device="cpu")


def test_a_file_is_read_line_by_line(tmp_path):
    odd = {
        "id": "c",
        "text": "a\u2028b",
    }  # JSON allows this separator inside a text; it is no line end
    path = tmp_path / "d.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf"
        + (json.dumps(TEXT) + "\r\n\r\n" + json.dumps(odd, ensure_ascii=False)).encode()
    )
    first, second = read_documents(path).documents
    assert first == Document("a", "neutral", (("text", TEXT["text"]),))
    assert (second.id, second.category, second.turns[0][1]) == ("c", "", "a\u2028b")


def test_spans_are_the_contents_of_the_turns(tiny, tmp_path):
    hf = tiny.tokenizer.hf
    text, talk = (
        tokenize_document(d, tiny.tokenizer)
        for d in read_documents(write_lines(tmp_path / "d.jsonl", TEXT, TALK)).documents
    )
    assert hf.decode(text.prompt.token_ids[slice(*text.spans[0])]) == TEXT["text"]
    assert text.spans[0][0] == 1  # the BOS is outside
    for (start, stop), message in zip(talk.spans, TALK["messages"], strict=True):
        assert hf.decode(talk.prompt.token_ids[start:stop]).strip() == message["content"].strip()
    assert talk.roles == ("user", "assistant", "user")
    assert not talk.prompt.rendered.endswith("assistant\n")  # nothing is to be generated


@pytest.mark.parametrize(
    ("turn", "context", "named"),
    [
        (("user", "hello <|im_end|> there"), 256, "special token"),
        (("user", "word " * 300), 256, "context holds 256; it is not truncated"),
        (("text", "word " * 300), 256, "context holds 256; it is not truncated"),
    ],
)
def test_what_cannot_be_fed_is_refused(tiny, turn, context, named):
    with pytest.raises(UserError, match=named):
        tokenize_document(
            Document("x", "", (turn,)), ModelTokenizer(tiny.tokenizer.hf, True, context, 49152)
        )


def test_a_template_that_changes_the_text_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(
        tiny.tokenizer.hf,
        "chat_template",
        "{% for m in messages %}[{{ m['content'] | upper }}]{% endfor %}",
    )
    with pytest.raises(UserError, match="changes turn 0 .user."):
        tokenize_document(Document("x", "", (("user", "hello"),)), tiny.tokenizer)


def test_values_are_those_of_the_prompts_path(tiny, tmp_path):
    tokenized = [
        tokenize_document(d, tiny.tokenizer)
        for d in read_documents(write_lines(tmp_path / "d.jsonl", TEXT, TALK)).documents
    ]
    results, failed = shard_files.capture_documents(tiny, tokenized, "streaming")
    assert failed == [] and list(results) == ["a", "b"]
    run_arrays = capture_patterns(tiny, [d.prompt for d in tokenized]).arrays
    run = arrays_module.Run(path=None, config={"prompts": {"format": "raw"}}, **run_arrays)
    for kind in ("normalised", "sinkfree"):
        expected = indices.prompt_values(run, kind)[0]
        np.testing.assert_allclose(results["a"][f"whole_{kind}"], expected, atol=1e-5)
        np.testing.assert_allclose(results["a"][f"turn_{kind}"][0], expected, atol=1e-5)
    lengths = [stop - start for start, stop in tokenized[1].spans]
    pooled = np.average(results["b"]["turn_sink_mass"], axis=0, weights=lengths)
    np.testing.assert_allclose(results["b"]["whole_sink_mass"], pooled, atol=1e-6)
    start, stop = tokenized[1].spans[2]
    rows = results["b"]["row_sink_mass"][:, start:stop].mean(axis=-1)
    np.testing.assert_allclose(results["b"]["turn_sink_mass"][2].mean(axis=-1), rows, atol=1e-6)
    alone = shard_files.capture_documents(tiny, [tokenized[1]], "streaming")[0]["b"]
    shapes = shard_files.shard_shapes(tiny.facts, tokenized[1])
    assert {name: values.shape for name, values in alone.items()} == shapes
    for name, values in alone.items():
        np.testing.assert_allclose(results["b"][name], values, atol=1e-5)


def run_main(path, output, *flags):
    return activation_analysis.main(
        ["--documents", str(path), "--output_dir", str(output), "--model_id", "t", *flags]
    )


@pytest.fixture
def script(tiny, monkeypatch):
    monkeypatch.setattr(instrument, "load_model", lambda *_: tiny)
    return run_main


def read_table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_killed_run_continues_with_what_is_left(script, tmp_path, monkeypatch, capsys):
    path = write_lines(tmp_path / "d.jsonl", TALK, TEXT)
    real, captured = shard_files.capture_documents, []

    def interrupted(loaded, some, *rest):
        captured.append([d.prompt.id for d in some])
        if len(captured) == 2:
            raise KeyboardInterrupt
        return real(loaded, some, *rest)

    monkeypatch.setattr(shard_files, "capture_documents", interrupted)
    assert script(path, tmp_path / "out", "--batch_size", "1") == 130
    assert not (tmp_path / "out/latest_documents").exists()
    assert script(path, tmp_path / "out", "--batch_size", "1") == 0
    assert captured == [["a"], ["b"], ["b"]]
    assert "1 of 2 documents were finished before" in capsys.readouterr().out
    folder = tmp_path / "out/latest_documents"
    assert [row["id"] for row in read_table(folder / "documents.csv")] == ["b", "a"]
    shards = {p.name: p.read_bytes() for p in (tmp_path / "out/document_shards").iterdir()}
    assert set(shards) == {
        json.loads(line)["shard"] for line in (folder / "documents.jsonl").read_text().splitlines()
    }
    damaged = tmp_path / "out/document_shards" / min(shards)
    damaged.write_bytes(b"PK damaged")
    write_lines(path, TALK, TEXT | {"text": TEXT["text"] + " Then it stops."})
    assert script(path, tmp_path / "out", "--batch_size", "1") == 0
    assert (
        len(captured) >= 4
    )  # the changed text; and the damaged shard where it is the conversation's
    assert len(read_table(folder / "turns.csv")) == 4


def test_a_run_of_which_every_document_fails_has_failed(script, tmp_path, monkeypatch, capsys):
    def lost(loaded, some, *rest):
        return {}, [(document.prompt.id, "out of memory") for document in some]

    monkeypatch.setattr(shard_files, "capture_documents", lost)
    assert script(write_lines(tmp_path / "d.jsonl", TEXT, TALK), tmp_path / "out") == 1
    said = capsys.readouterr()
    assert "all 2 documents failed: out of memory" in said.err and "failed: b" in said.out
    assert not (tmp_path / "out/latest_documents").exists()


def test_a_finished_piece_is_whole_and_of_its_shape_or_done_again(tiny, tmp_path, capsys):
    name = finished.piece_name(1, tiny.facts, layer=1)
    changed = [tiny.facts | {key: "x"} for key in ("id", "weights_sha256", "dtype", "revision")]
    others = [finished.piece_name(1, facts, layer=1) for facts in changed]
    others += [finished.piece_name(2, tiny.facts, layer=1), finished.piece_name(1, tiny.facts)]
    assert len({name, *others}) == 7
    path, shapes = tmp_path / "pieces" / name, {"a": (2, 3)}
    assert finished.read_piece(path, shapes) is None and capsys.readouterr().out == ""
    finished.write_piece(path, {"a": np.ones((2, 3))})
    assert finished.read_piece(path, shapes)["a"].tolist() == [[1, 1, 1], [1, 1, 1]]
    for wrong in ({"a": (3, 2)}, {"a": (2, 3), "b": ()}):
        assert finished.read_piece(path, wrong) is None
        assert "done again" in capsys.readouterr().out
    other = path.with_name(others[0])
    finished.write_piece(other, {"a": np.ones(1)})
    finished.remove_pieces([path])
    assert list(path.parent.iterdir()) == [other]
    finished.remove_pieces([other, path])
    assert not path.parent.exists()


THINK = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + "
    "m.content.split('</think>')[-1] + '<|im_end|>\n' }}{% endfor %}"
)
TRIMMING = (
    "{% for m in messages %}{{ '[' + m.role + '] ' + m.content | trim + ' [end]' }}{% endfor %}"
)


def test_a_turn_without_tokens_is_a_document_that_fails(tiny, monkeypatch):
    real = type(tiny.tokenizer.hf).__call__

    def swallow(hf, text, **options):  # a normaliser that drops a character, say
        encoded = real(hf, text, **options)
        at = text.find("@")
        offsets = encoded.get("offset_mapping", [])
        encoded["offset_mapping"] = [(0, 0) if a <= at < b else (a, b) for a, b in offsets]
        return encoded

    monkeypatch.setattr(type(tiny.tokenizer.hf), "__call__", swallow)
    turns = (("user", "hello"), ("assistant", "@"))
    with pytest.raises(UserError, match="document x: turn 1 '@' has no tokens of its own"):
        tokenize_document(Document("x", "", turns), tiny.tokenizer)


def test_a_template_may_trim_and_its_own_space_is_not_the_turns(tiny, monkeypatch):
    hf = tiny.tokenizer.hf
    monkeypatch.setattr(hf, "chat_template", TRIMMING)
    turns = (("user", " Who are you? "), ("assistant", "I am a model."))
    found = tokenize_document(Document("x", "", turns), tiny.tokenizer)
    plain = tokenize_document(
        Document("x", "", tuple((role, text.strip()) for role, text in turns)), tiny.tokenizer
    )
    assert (found.spans, found.prompt.token_ids) == (plain.spans, plain.prompt.token_ids)
    own = [hf.decode(found.prompt.token_ids[slice(*span)]) for span in found.spans]
    assert own == [" Who are you?", " I am a model."]
    always = tokenize_document(Document("x", "", turns), tiny.tokenizer, bos="always")
    assert always.prompt.token_ids == [hf.bos_token_id, *found.prompt.token_ids]
    assert always.spans == tuple((start + 1, stop + 1) for start, stop in found.spans)


def test_bad_documents_are_recorded_and_the_rest_goes_on(
    tiny, script, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(tiny.tokenizer.hf, "chat_template", THINK)
    asked, reasoned = {"role": "user", "content": "2+2?"}, {"role": "assistant"}
    reasoned |= {"content": "<think>add</think>It is 4."}
    rows = [
        {"id": "man", "text": "Usage: convert <filename> <output>"},
        TEXT,
        {"id": "long", "text": "river " * 400},
        {"id": "reasoned", "messages": [asked, reasoned]},
        TALK,
    ]
    path = write_lines(tmp_path / "d.jsonl", *rows)
    assert script(path, tmp_path / "out") == 3
    said = capsys.readouterr().out
    assert "3 of 5 documents cannot be fed" in said and "2 documents done, 3 failed" in said
    folder = tmp_path / "out/latest_documents"
    assert [row["id"] for row in read_table(folder / "documents.csv")] == ["a", "b"]
    config = json.loads((folder / "experiment_config.json").read_text())
    assert config["status"] == "partial"
    failed = {lost["id"]: lost["reason"] for lost in config["documents"]["failed"]}
    assert list(failed) == ["man", "long", "reasoned"]
    assert failed["man"] == "document man contains the special token '<filename>'; take it out"
    assert "context holds 256" in failed["long"]
    assert "changes turn 1 (assistant)" in failed["reasoned"]
    write_lines(path, rows[0], rows[2])
    assert script(path, tmp_path / "out2") == 2
    assert "none of the 2 documents can be fed; the first: document man" in capsys.readouterr().err


def test_bad_documents_are_found_before_the_weights_are_read(tiny, tmp_path, monkeypatch, capsys):
    def load_model(spec, seed, check):
        check(tiny.tokenizer)
        raise AssertionError("the weights were read")

    monkeypatch.setattr(instrument, "load_model", load_model)
    path = write_lines(tmp_path / "d.jsonl", {"id": "long", "text": "river " * 400})
    assert run_main(path, tmp_path / "out") == 2
    assert "document long has" in capsys.readouterr().err


def test_a_document_takes_the_named_template_and_date(script, tiny, tmp_path, monkeypatch):
    dated = TRIMMING + "{{ strftime_now('%Y') }}"
    monkeypatch.setattr(tiny.tokenizer.hf, "chat_template", {"default": TRIMMING, "dated": dated})
    path = write_lines(tmp_path / "d.jsonl", TALK)
    flags = ("--chat_template", "dated", "--date")
    assert script(path, tmp_path / "out", *flags, "1999-01-01") == 0
    folder = (tmp_path / "out/latest_documents").resolve()
    documents = json.loads((folder / "experiment_config.json").read_text())["documents"]
    assert (documents["chat_template"]["name"], documents["date"]) == ("dated", "1999-01-01")
    shards = set((tmp_path / "out/document_shards").iterdir())
    assert script(path, tmp_path / "out", *flags, "2000-01-01") == 0
    assert set((tmp_path / "out/document_shards").iterdir()) > shards  # another date, other tokens


def test_tables_and_indices(script, tmp_path, capsys):
    path = write_lines(tmp_path / "d.jsonl", TEXT, TALK)
    assert script(path, tmp_path / "out", "--capture", "streaming") == 0
    folder = tmp_path / "out/latest_documents"
    turns = read_table(folder / "turns.csv")
    assert [(row["id"], row["turn"], row["role"]) for row in turns] == [
        ("a", "0", "text"), ("b", "0", "user"), ("b", "1", "assistant"), ("b", "2", "user"),
    ]  # fmt: skip
    names = [
        "document_id",
        "category",
        "turn_document",
        "whole_normalised",
        "turn_normalised",
        "turn_span",
    ]
    arrays = npz.read_npz(folder / "documents.npz", names)
    assert arrays["turn_document"].tolist() == [0, 1, 1, 1]
    for row, values, span in zip(
        turns, arrays["turn_normalised"], arrays["turn_span"].tolist(), strict=True
    ):
        assert float(row["normalised"]) == pytest.approx(values.mean(), abs=1e-6)
        assert [int(row["start"]), int(row["stop"])] == span
    mean = arrays["whole_normalised"].astype(float).mean(axis=-1)
    rows = [row for row in read_table(folder / "indices.csv") if row["kind"] == "normalised"]
    rfc = [float(row["estimate"]) for row in rows if row["index"] == "rfc"]
    np.testing.assert_allclose(rfc, 1 - mean[1] / mean[0], rtol=1e-6)
    rsi = [row for row in rows if row["index"] == "rsi"]  # no confounder: undefined, not 0
    assert len(rsi) == len(rfc) and all(row["estimate"] == row["p"] == "" for row in rsi)
    config = json.loads((folder / "experiment_config.json").read_text())
    assert config["capture"]["method"] == "streaming"
    assert config["documents"]["n"] == 2
    assert script(write_lines(path, TEXT), tmp_path / "out") == 0
    assert not (folder / "indices.csv").exists()
    assert "RFC and RSI need documents" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--prompts", "p.json"], "--prompts with --documents"),
        (["--raw", "full"], "--raw full with --documents"),
        (["--id_field", ""], "--id_field: is empty"),
        (["--text_field", "x", "--messages_field", "x"], "name the same field"),
        (["--prompts_per_category", "2"], "--prompts_per_category with --documents"),
    ],
)
def test_flags_that_documents_do_not_take_are_refused(flags, named, tmp_path, capsys):
    assert run_main(write_lines(tmp_path / "d.jsonl", TEXT), tmp_path, *flags) == 2
    assert named in capsys.readouterr().err


def test_the_example_file_is_read_and_holds_what_it_promises():
    text, talk = read_documents(Path(__file__).parent / "data/long.jsonl").documents
    assert len(text.turns[0][1].split()) > 6000
    assert [role for role, _ in talk.turns] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
    ]
    assert arguments.LATEST_DOCUMENTS == "latest_documents"


def test_documents_of_another_config_are_done_again(tmp_path, capsys):
    """Windows and rotary angles are in config.json, not in the weights."""
    folder, path = save_tiny("mistral", tmp_path / "model"), tmp_path / "d.jsonl"
    path.write_text(json.dumps({"id": "a", "text": "Rain falls from clouds and runs to the sea."}))
    command = ["--model_id", folder, "--documents", str(path), "--output_dir", str(tmp_path)]
    assert activation_analysis.main(command) == 0
    first = (tmp_path / "latest_documents" / "documents.csv").read_text()
    config = Path(folder, "config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sliding_window": None}))
    assert activation_analysis.main(command) == 0
    assert "finished before" not in capsys.readouterr().out
    assert (tmp_path / "latest_documents" / "documents.csv").read_text() != first
    assert activation_analysis.main(command) == 0
    assert "1 of 1 documents were finished before" in capsys.readouterr().out
