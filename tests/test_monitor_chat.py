"""A scripted chat: its files are those of a documents run over the same conversation."""

import csv
import io
import json
import shutil

import numpy as np
import pytest

import activation_analysis
import monitor_chat
import report
from rolecircuits.documents.chat import Answering, Chat
from rolecircuits.inputs.errors import UserError
from rolecircuits.inputs.specs import PromptFormat
from rolecircuits.runs.document_results import read_documents_run
from synthetic import make_run, save_run
from tiny_models import load_checked, save_tiny

LINES = (
    "Who are you?\n\n  What now?  \nAnd a <|im_end|> in it\nSo \x1b[31mred?\n/quit\nnever said\n"
)
SYSTEM = "You keep a lighthouse."
SHARES = 'id="conversations-shares"'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    # windows: what the cache no longer needs, and rows that have left key 0 behind
    return save_tiny("mistral", tmp_path_factory.mktemp("chat"), initializer_range=0.6)


@pytest.fixture(scope="module")
def talk(folder, tmp_path_factory):
    """(output of the script, its folder)."""
    out = tmp_path_factory.mktemp("chats")
    with pytest.MonkeyPatch.context() as patch, io.StringIO() as said:
        patch.setattr("sys.stdin", io.StringIO(LINES))
        patch.setattr("sys.stdout", said)
        code = monitor_chat.main(
            ["--model_id", folder, "--system_prompt", SYSTEM, "--max_tokens", "8"]
            + ["--output_dir", str(out)]
        )
        text = said.getvalue()
    assert code == 0
    (run,) = (path for path in out.iterdir() if path.is_dir() and not path.is_symlink())
    return text, run


def test_a_line_a_turn_until_quit(talk):
    said, run = talk
    (row,) = map(json.loads, (run / "conversation.jsonl").read_text().splitlines())
    roles = [turn["role"] for turn in row["messages"]]
    assert roles == ["system", *["user", "assistant"] * 3]
    users = [turn["content"] for turn in row["messages"] if turn["role"] == "user"]
    assert users == ["Who are you?", "What now?", "So \x1b[31mred?"]
    assert "contains the special token '<|im_end|>'" in said and "never said" not in said
    assert "\x1b" not in said, "what is said cannot move the terminal"
    assert all(f"\n[{n}] " in said for n in (1, 2, 3)) and "\n[4] " not in said
    assert "3 answers" in said and str(run) in said
    assert (run.parent / "latest_chat").resolve() == run.resolve()
    assert not (run.parent / "latest_documents").exists()
    assert (run / "figures" / "documents_by_turn.png").is_file()


@pytest.fixture(scope="module")
def fed(talk, folder, tmp_path_factory):
    """The folder of a documents run over what was said."""
    out = tmp_path_factory.mktemp("fed")
    shutil.copy(talk[1] / "conversation.jsonl", out)
    file = ["--documents", str(out / "conversation.jsonl")]
    assert activation_analysis.main(["--model_id", folder, *file, "--output_dir", str(out)]) == 0
    return (out / "latest_documents").resolve()


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_numbers_are_those_of_a_documents_run(talk, fed):
    _, run = talk
    got, config = read_documents_run(run)
    expected, other = read_documents_run(fed)
    assert list(got) == list(expected) and "turn_segment_mass" in got
    for name, values in expected.items():
        if values.dtype.kind == "f":
            assert np.allclose(got[name], values, atol=1e-5, equal_nan=True), name
        else:
            assert np.array_equal(got[name], values), name
    assert np.allclose(got["turn_segment_mass"].sum(axis=-1), 1, atol=1e-5)
    assert config["documents"]["sha256"] == other["documents"]["sha256"]
    files = {path.name for path in run.rglob("*") if path.is_file()} - {"conversation.jsonl"}
    assert files == {path.name for path in fed.rglob("*") if path.is_file()}
    for name in ("documents.csv", "turns.csv", "drift.csv"):
        ours, theirs = (read_csv(one / name) for one in (run, fed))
        assert len(ours) == len(theirs) and ours[0].keys() == theirs[0].keys()


def test_shares_fall_to_what_is_there(talk):
    """Uniform shares are counts: of keys of the system text among the keys that rows see."""
    arrays, _ = read_documents_run(talk[1])
    code = arrays["segment"].tolist().index("system_text")
    uniform = arrays["turn_segment_uniform"][:, 0, code]
    (system, *_), (start, stop) = arrays["turn_span"], arrays["turn_span"][1]
    window = 3  # of every layer: the first user's turn no longer sees the system text
    assert start - system[1] >= window - 1 and uniform[1] == 0.0
    rows = np.arange(*system)
    expected = np.mean([min(row - system[0] + 1, window) / window for row in rows])
    assert abs(uniform[0] - expected) < 1e-6 and stop > start


def test_the_report_draws_it_as_a_documents_run(talk, tmp_path):
    run = save_run(make_run(3, 4), tmp_path / "run")
    page = tmp_path / "report.html"
    code = report.main([str(run), "--documents", str(talk[1]), "--output", str(page)])
    text = page.read_text(encoding="utf-8")
    assert code == 0 and "What now?" in text and SHARES in text


def test_documents_of_before_are_still_read(fed, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(fed, old)
    with np.load(fed / "documents.npz", allow_pickle=False) as archive:
        kept = {name: a for name, a in archive.items() if "segment" not in name}
    np.savez(old / "documents.npz", **kept)
    arrays, _ = read_documents_run(old)
    assert "turn_segment_mass" not in arrays and len(arrays["turn_role"]) == 7
    run = save_run(make_run(3, 4), tmp_path / "run")
    page = tmp_path / "report.html"
    how = ["--no_verify", "--output", str(page)]
    assert report.main([str(run), "--documents", str(old), *how]) == 0
    assert SHARES not in page.read_text(encoding="utf-8")


def test_nothing_said_writes_nothing(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    out = ["--output_dir", str(tmp_path / "out")]
    assert monitor_chat.main(["--model_id", folder, *out]) == 0
    assert "nothing was said" in capsys.readouterr().out
    assert not list(tmp_path.glob("out/chat*"))


@pytest.fixture
def loaded(folder):
    return load_checked(folder)


def test_a_killed_chat_leaves_what_was_said_so_far(folder, tmp_path, monkeypatch):
    own = Chat.say

    def stop_at_the_third(self, text):
        if len(self.turns) == 4:
            raise KeyboardInterrupt
        own(self, text)

    monkeypatch.setattr(Chat, "say", stop_at_the_third)
    monkeypatch.setattr("sys.stdin", io.StringIO("One?\nTwo?\nThree?\n"))
    where = ["--output_dir", str(tmp_path), "--max_tokens", "3"]
    assert monitor_chat.main(["--model_id", folder, *where]) == 130
    (run,) = (path for path in tmp_path.iterdir() if path.is_dir() and not path.is_symlink())
    assert len(read_documents_run(run)[0]["turn_role"]) == 4


def test_answers_are_those_without_a_cache(loaded):
    """Greedy, token by token over the whole conversation, with the special tokens kept."""
    import torch

    chat = Chat(loaded, PromptFormat("chat", SYSTEM), Answering(5))
    chat.say("Who are you?")
    chat.say("Why?")
    fed = chat._tokenize(chat.turns[:-1], header=True)
    ids = list(fed.token_ids)
    with torch.no_grad():
        for _ in range(5):
            logits = loaded.model(input_ids=torch.tensor([ids]), use_cache=False).logits
            ids.append(int(logits[0, -1].argmax()))
    said = loaded.tokenizer.hf.decode(ids[len(fed.token_ids) :], skip_special_tokens=True)
    assert chat.turns[-1] == ("assistant", said)


def test_drawn_answers_come_back_with_their_seed(loaded):
    def talk(seed, temperature=1.5):
        chat = Chat(loaded, PromptFormat("chat"), Answering(6, temperature, seed))
        chat.say("Who are you?")
        return chat.turns[-1]

    assert talk(1) == talk(1) != talk(2)
    assert talk(1) != talk(1, None)


def test_a_conversation_ends_where_the_context_does(loaded):
    chat = Chat(loaded, PromptFormat("chat"), Answering(4))
    chat.say("Who are you?")
    before = list(chat.turns)
    with pytest.raises(UserError, match="no room is left|context holds 256"):
        chat.say("word " * 240)
    assert chat.turns == before
    chat.say("And now?")
    assert len(chat.turns) == 4


@pytest.mark.parametrize("wrong", ["0", "-1", "11", "nan", "1e1"])
def test_wrong_temperatures_are_refused(wrong):
    with pytest.raises(SystemExit):
        monitor_chat.parse_args(["--temperature", wrong])
