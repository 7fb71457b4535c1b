"""The scorer for Inspect: a tiny task with a tiny random model. Skipped where inspect_ai is not
installed (requirements-inspect.txt)."""

import csv
import json
import math
import threading

import numpy as np
import pytest
import torch

inspect_ai = pytest.importorskip(
    "inspect_ai", reason="inspect_ai is not installed: requirements-inspect.txt"
)

from inspect_ai.dataset import Sample  # noqa: E402
from inspect_ai.model import (  # noqa: E402
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    get_model,
)
from inspect_ai.solver import solver  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

import activation_analysis  # noqa: E402
import report  # noqa: E402
from rolecircuits.documents import inspect_scorer  # noqa: E402
from rolecircuits.documents.inspect_scorer import COLUMNS, OwnThreadMonitor, role_scorer  # noqa: E402
from rolecircuits.inputs.errors import UserError  # noqa: E402
from rolecircuits.runs.document_results import read_documents_run  # noqa: E402
from synthetic import make_run, save_run  # noqa: E402
from tiny_models import save_tiny  # noqa: E402

SYSTEM = "You keep a lighthouse."


@pytest.fixture(scope="module", autouse=True)
def no_hub():
    """Inspect asks the hub what a model is; without one that is a minute of retries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny("llama", tmp_path_factory.mktemp("inspect") / "tiny", initializer_range=0.6)


@solver
def answer_or_not():
    """Asks the model, but for the sample whose answer is empty."""

    async def solve(state, generate):
        if state.sample_id == "empty":
            state.messages.append(ChatMessageAssistant(content=""))
            return state
        return await generate(state)

    return solve


def samples():
    talk = [ChatMessageSystem(content=SYSTEM), ChatMessageUser(content="Who are you?")]
    more = [*talk, ChatMessageAssistant(content="A keeper."), ChatMessageUser(content="Where?")]
    return [
        Sample(id="a", input=talk, target="x", metadata={"category": "self_referent"}),
        Sample(id="b", input=more, target="x", metadata={"category": "neutral"}),
        Sample(id="empty", input="Who?", target="x"),
    ]


def run_task(model, dataset, out, logs):
    own = role_scorer(str(out), category_field="category")
    task = inspect_ai.Task(dataset=dataset, solver=answer_or_not(), scorer=own, name="tiny")
    config = GenerateConfig(max_tokens=6)
    (log,) = inspect_ai.eval(
        task, model=model, display="none", log_dir=str(logs), **config.model_dump(exclude_none=True)
    )
    return log


@pytest.fixture(scope="module")
def done(folder, tmp_path_factory):
    """(log of the task, its documents run)."""
    out, logs = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("logs")
    model = get_model("hf/tiny", model_path=folder, device="cpu", do_sample=False, memoize=False)
    log = run_task(model, samples(), out, logs)
    assert log.status == "success", log.error
    return log, (out / "latest_inspect").resolve()


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def score_of(log, name):
    (sample,) = (sample for sample in log.samples if sample.id == name)
    return sample.scores["role_scorer"]


def test_a_score_is_the_last_answers_row_of_turns_csv(done):
    log, run = done
    table = read_csv(run / "turns.csv")
    for name, n_turns in {"a": 3, "b": 5}.items():
        score, own = score_of(log, name), [row for row in table if row["id"] == name]
        turns = score.metadata["turns"]
        assert [turn["role"] for turn in turns] == [row["role"] for row in own]
        assert len(turns) == n_turns and turns[0]["role"] == "system"
        assert set(score.value) == set(COLUMNS)
        for turn, row in zip(turns, own, strict=True):
            for column in COLUMNS:
                value = math.nan if turn[column] is None else turn[column]
                assert np.isclose(value, float(row[column] or "nan"), equal_nan=True), column
        assert score.value == {column: turns[-1][column] for column in COLUMNS}
        assert 0 < score.value["system_text"] < 1 and 0 < score.value["normalised"] < 1


def test_metrics_are_means_over_the_samples_that_have_a_score(done):
    log, _ = done
    found = {each.name: each.metrics["mean"].value for each in log.results.scores}
    assert set(found) == set(COLUMNS)
    for column in COLUMNS:
        values = [score_of(log, name).value[column] for name in ("a", "b")]
        assert math.isclose(found[column], sum(values) / 2), column


def test_numbers_are_those_of_a_documents_run(done, folder, tmp_path):
    """What activation_analysis.py measures, with the eager attention, of what was said."""
    _, run = done
    file = ["--documents", str(run / "conversation.jsonl")]
    out = ["--output_dir", str(tmp_path)]
    assert activation_analysis.main(["--model_id", folder, *file, *out]) == 0
    got, config = read_documents_run(run)
    expected, _ = read_documents_run(tmp_path / "latest_documents")
    assert list(got) == list(expected)
    for name, values in expected.items():
        if values.dtype.kind == "f":
            assert np.allclose(got[name], values, atol=1e-5, equal_nan=True), name
        else:
            assert np.array_equal(got[name], values), name
    assert config["script"] == "inspect: tiny" and config["model"]["weights_sha256"]
    assert set(got["category"]) == {"self_referent", "neutral"} and (run / "indices.csv").is_file()


def test_a_sample_that_cannot_be_measured_has_no_score_and_is_named(done):
    log, run = done
    score = score_of(log, "empty")
    assert all(math.isnan(value) for value in score.value.values())
    assert "must be a text that is not empty" in score.explanation
    config = json.loads((run / "experiment_config.json").read_text())
    assert [lost["id"] for lost in config["documents"]["failed"]] == ["empty"]
    assert (config["status"], config["documents"]["n"]) == ("partial", 2)


def test_the_report_opens_it(done, tmp_path):
    _, documents = done
    run, page = save_run(make_run(3, 4), tmp_path / "run"), tmp_path / "report.html"
    code = report.main([str(run), "--documents", str(documents), "--output", str(page)])
    text = page.read_text(encoding="utf-8")
    assert code == 0 and SYSTEM in text and "A keeper." in text


def test_a_model_that_is_not_here_is_refused_in_one_line(tmp_path):
    own = samples()[2:]  # that the model is not asked
    log = run_task("mockllm/model", own, tmp_path / "out", tmp_path / "logs")
    assert log.status == "error"
    assert "--model hf/..., not mockllm/model, whose attention nobody sees" in log.error.message
    assert not (tmp_path / "out").exists()


def test_passes_of_another_thread_are_not_recorded(folder):
    """Inspect goes on generating for other samples while one is scored."""
    model, hf = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    given, passed = torch.tensor([[1, 2, 3]]), []
    with OwnThreadMonitor(model, hf) as monitor, torch.no_grad():
        other = threading.Thread(target=lambda: passed.append(model(given).logits.shape[1]))
        other.start()
        other.join()
        assert passed == [3] and monitor.texts == []
        model(given[:, :2])
    assert [text.token_ids for text in monitor.texts] == [[1, 2]]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([ChatMessageUser(content="Who?")], "has no answer"),
        ([], "must be a list of turns that is not empty"),
    ],
)
def test_conversations_without_an_answer_are_refused(messages, said):
    with pytest.raises(UserError, match=said):
        inspect_scorer.read_conversation("x", messages)


def test_user_turns_that_follow_each_other_are_one_as_the_model_got_them():
    first, second = ChatMessageUser(content="One."), ChatMessageUser(content="Two.")
    turns = inspect_scorer.read_conversation(
        "x", [first, second, ChatMessageAssistant(content="Yes.")]
    ).turns
    assert turns == (("user", "One.\nTwo."), ("assistant", "Yes."))
