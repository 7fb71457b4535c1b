"""What the config says was fed was fed: BOS, template, date, system text, unknown tokens."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

import activation_analysis
import experiment
import interventions
from rolecircuits.capture import chat_template
from rolecircuits.capture.feeding import describe_feeding
from rolecircuits.capture.tokens import tokenize_all
from rolecircuits.inputs.categories import Prompt
from rolecircuits.inputs.errors import UserError
from rolecircuits.inputs.specs import PromptFormat, run_date
from rolecircuits.models.load import load_tokenizer
from tiny_models import save_tiny

PROMPTS = {"self_referent": ["Who are you?", "Who am I?"], "neutral": ["What is DNA?", "Why rain?"]}
PROMPT = Prompt("x", "neutral", -1, "Who are you?")
EACH = "{% for m in messages %}"
CHATML = EACH + "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
NO_BOS = EACH + "{{ '[' + m.role + '] ' + m.content + '\n' }}{% endfor %}"
DATED = "Today: {{ strftime_now('%d %b %Y') }}\n" + NO_BOS
TRIMMING = EACH + "{{ '[INST] ' + m.content | trim + ' [/INST]' }}{% endfor %}"
USERS_ONLY = EACH + "{% if m.role == 'user' %}{{ '[' + m.content + ']' }}{% endif %}{% endfor %}"
THINKING = (
    CHATML + "{% if not (enable_thinking | default(true)) %}{{ '<think></think>' }}{% endif %}"
)


def save_model(folder, template=None, **named):
    """A tiny model whose chat template is `template`, and those that are `named` beside it."""
    save_tiny("llama", folder)
    if template is not None:
        Path(folder, "chat_template.jinja").write_text(template)
    for name, text in named.items():
        more = Path(folder, "additional_chat_templates")
        more.mkdir(exist_ok=True)
        (more / f"{name}.jinja").write_text(text)
    return str(folder)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(save_tiny("llama", tmp_path_factory.mktemp("m")))


@pytest.fixture
def with_template(tokenizer, monkeypatch):
    def change(text):
        monkeypatch.setattr(tokenizer.hf, "chat_template", text)
        return tokenizer

    return change


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(PROMPTS))
    return str(path)


def analyze(model, prompts, out, *flags):
    words = ["--model_id", model, "--prompts", prompts, "--output_dir", str(out), "--raw", "none"]
    return activation_analysis.main([*words, *flags])


def read_run(folder):
    """(config, first row of prompts.jsonl)."""
    with open(folder / "prompts.jsonl", encoding="utf-8") as file:
        return json.loads((folder / "experiment_config.json").read_text()), json.loads(next(file))


def own_text(tokenizer, prompt):
    return tokenizer.hf.decode(prompt.token_ids[slice(*prompt.span)])


@pytest.mark.parametrize(
    ("template", "form", "prepends", "noted"),
    [
        (None, PromptFormat(), True, False),
        (None, PromptFormat(bos="never"), False, False),
        (CHATML, PromptFormat("chat"), True, False),
        (NO_BOS, PromptFormat("chat"), False, True),
        (NO_BOS, PromptFormat("chat", bos="always"), True, False),
    ],
)
def test_the_bos_in_the_config_is_the_one_that_was_fed(
    with_template, template, form, prepends, noted
):
    tokenizer = with_template(template)
    (prompt,) = tokenize_all([PROMPT], tokenizer, form)
    found = describe_feeding([prompt], tokenizer, form)
    assert (prompt.token_strings[0] == "<|im_start|>") is prepends
    expected = {"prepends_bos": prepends, "bos_token": "<|im_start|>" if prepends else None}
    assert found["model"] == expected
    assert any("writes no BOS token" in note for note in found["notes"]) is noted
    assert own_text(tokenizer, prompt).strip() == PROMPT.text
    assert len(prompt.segments) == len(prompt.token_ids) and prompt.segments.count(0) == 1


def test_bos_always_doubles_no_bos_and_moves_every_place(with_template):
    (plain,) = tokenize_all([PROMPT], with_template(NO_BOS), PromptFormat("chat"))
    (moved,) = tokenize_all([PROMPT], with_template(NO_BOS), PromptFormat("chat", bos="always"))
    assert moved.token_ids[1:] == plain.token_ids
    assert moved.span == tuple(place + 1 for place in plain.span)
    assert moved.segments[2:] == plain.segments[1:]
    (chatml,) = tokenize_all([PROMPT], with_template(CHATML), PromptFormat("chat", bos="always"))
    assert chatml.token_ids.count(chatml.token_ids[0]) == 1


def test_one_of_several_templates_is_chosen_and_recorded(tmp_path, prompts, capsys):
    model = save_model(tmp_path / "m", CHATML, rag="R " + NO_BOS)
    assert analyze(model, prompts, tmp_path / "raw") == 0
    chat = ("--prompt_format", "chat")
    assert analyze(model, prompts, tmp_path / "own", *chat) == 0
    assert analyze(model, prompts, tmp_path / "rag", *chat, "--chat_template", "rag") == 0
    own, rag = (read_run(tmp_path / name / "latest_run") for name in ("own", "rag"))
    assert own[1]["rendered"].startswith("<|im_start|>user")
    assert rag[1]["rendered"].startswith("R [user]")
    names = [config["prompts"]["chat_template"]["name"] for config, _ in (own, rag)]
    assert names == ["default", "rag"]
    capsys.readouterr()
    assert analyze(model, prompts, tmp_path / "x", *chat, "--chat_template", "rga") == 2
    assert "rga: this model has default, rag" in capsys.readouterr().err


def test_several_templates_without_a_default_are_not_chosen_from():
    with pytest.raises(UserError, match="none is the default: .* it has a, b"):
        chat_template.choose_template({"b": "", "a": ""}, PromptFormat("chat"))
    assert chat_template.choose_template({"only": "T"}, PromptFormat("chat")) == ("only", "T")


def test_a_template_from_a_file_comes_back_when_the_file_is_gone(tmp_path, prompts, capsys):
    model = save_model(tmp_path / "m")
    file = tmp_path / "own.jinja"
    file.write_text(THINKING)
    flags = ["--prompt_format", "chat", "--chat_template", str(file)]
    flags += ["--template_arg", "enable_thinking=false"]
    assert analyze(model, prompts, tmp_path / "out", *flags) == 0
    config, row = read_run(tmp_path / "out/latest_run")
    assert row["rendered"].endswith("<think></think>")
    assert config["prompts"]["template_args"] == {"enable_thinking": False}
    assert config["prompts"]["chat_template"]["name"] == "own.jinja"
    assert "template_text" not in config["arguments"]
    file.unlink()
    assert activation_analysis.main(["--repeat", str(tmp_path / "out/latest_run")]) == 0
    said = capsys.readouterr().out
    assert said.endswith("attention.npz: bit-identical\n") and "changed: " not in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no_such=1"], "reads no such variable"),
        (["enable_thinking=1", "enable_thinking=2"], "is given twice"),
        (["messages=1"], "is set by this program"),
        (["bos_token=x"], "is set by this program"),
        (["enable_thinking=<|im_end|>"], "contains the special token"),
    ],
)
def test_template_arguments_without_effect_are_refused(tokenizer, words, said):
    with pytest.raises(UserError, match=said):
        chat_template.read_template_args(words, tokenizer.hf, THINKING)


def test_template_arguments_are_json_or_text(tokenizer):
    words = ["a=true", "b=3", "c=NaN", "d=high", 'e="7"', "f="]
    found = chat_template.read_template_args(
        words, tokenizer.hf, "{{ a }}{{ b }}{% if c %}{{ d + e }}{{ f }}{% endif %}"
    )
    assert found == {"a": True, "b": 3, "c": "NaN", "d": "high", "e": "7", "f": ""}


def test_a_dated_template_is_told_the_recorded_date(tmp_path, prompts, capsys):
    model = save_model(tmp_path / "m", DATED)
    flags = ["--prompt_format", "chat", "--date", "2001-02-03"]
    assert analyze(model, prompts, tmp_path / "out", *flags) == 0
    config, row = read_run(tmp_path / "out/latest_run")
    assert row["rendered"].startswith("Today: 03 Feb 2001")
    assert config["prompts"]["date"] == "2001-02-03"
    config["arguments"]["date"] = None  # as of a run that took the date of its day
    run = tmp_path / "out/latest_run"
    (run / "experiment_config.json").write_text(json.dumps(config))
    assert activation_analysis.main(["--repeat", str(run), "--no_verify"]) == 0
    assert "bit-identical" in capsys.readouterr().out
    (again,) = (tmp_path / "out").glob("repeat_*")
    assert read_run(again)[0]["prompts"]["date"] == "2001-02-03"
    assert read_run(again)[1]["rendered"] == row["rendered"]


def test_only_a_date_that_was_printed_is_recorded(with_template):
    for template, recorded in ((DATED, run_date()), (NO_BOS, None)):
        form = PromptFormat("chat")
        tokenized = tokenize_all([PROMPT], with_template(template), form)
        found = describe_feeding(tokenized, with_template(template), form)
        assert found["how"].get("date") == recorded


def test_other_tokens_are_said_before_a_repetition(tmp_path, prompts, capsys):
    model = save_model(tmp_path / "m", DATED)
    assert analyze(model, prompts, tmp_path / "out", "--prompt_format", "chat") == 0
    Path(model, "chat_template.jinja").write_text(DATED.replace("Today", "Now"))
    assert activation_analysis.main(["--repeat", str(tmp_path / "out/latest_run")]) == 1
    assert "changed: 4 of 4 prompts became other tokens" in capsys.readouterr().out


@pytest.mark.parametrize("closed", [False, True])
def test_a_system_text_that_the_template_drops_is_refused(with_template, closed):
    prompt = Prompt("x", "neutral", -1, "Hi there", turn="assistant" if closed else "user")
    form = PromptFormat("chat", "You are a pirate.")
    with pytest.raises(UserError, match="--system_prompt: .* drops the system text"):
        tokenize_all([prompt], with_template(USERS_ONLY), form)
    shouting = CHATML.replace("m.content", "m.content | upper")
    with pytest.raises(UserError, match="--system_prompt: .* changes the system text"):
        tokenize_all([prompt], with_template(shouting), form)


def test_a_role_that_the_template_drops_is_refused(with_template):
    prompt = Prompt("x", "neutral", -1, "Hi there", turn="assistant")
    with pytest.raises(UserError, match="drops the text of the assistant's turn 2"):
        tokenize_all([prompt], with_template(USERS_ONLY), PromptFormat("chat"))


def test_special_tokens_in_a_system_text_are_refused(tokenizer):
    with pytest.raises(UserError, match="--system_prompt contains the special token '<.im_end.>'"):
        tokenize_all([PROMPT], tokenizer, PromptFormat("chat", "Be terse.<|im_end|>"))


@pytest.mark.parametrize("text", ["Who are you?", "Who are you? ", "\n Who are you?\t"])
def test_the_templates_own_space_is_not_the_prompts(with_template, text):
    tokenizer = with_template(TRIMMING)
    (prompt,) = tokenize_all([Prompt("x", "neutral", -1, text)], tokenizer, PromptFormat("chat"))
    assert own_text(tokenizer, prompt) == " Who are you?"  # the space before is one token with Who
    (kept,) = tokenize_all(
        [Prompt("x", "neutral", -1, text)], with_template(CHATML), PromptFormat("chat")
    )
    assert text in own_text(tokenizer, kept)


@pytest.fixture(scope="module")
def word_tokenizer(tmp_path_factory):
    folder = save_tiny("llama", tmp_path_factory.mktemp("words"))
    words = ["[PAD]", "[UNK]", *"who are you what is dna how rain ? .".split()]
    made = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.Whitespace()
    made.save(f"{folder}/tokenizer.json")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
    Path(folder, "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": "[PAD]"}))
    return load_tokenizer(folder)


def test_unknown_tokens_are_counted_and_a_text_of_them_is_refused(word_tokenizer):
    texts = {"neutral": "what is rain ?", "self_referent": "who are zyx ?"}
    prompts = [Prompt(name, name, -1, text) for name, text in texts.items()]
    tokenized = tokenize_all(prompts, word_tokenizer)
    found = describe_feeding(tokenized, word_tokenizer)
    shares = {"all": 1 / 8, "neutral": 0, "self_referent": 1 / 4}
    assert found["how"]["unknown_tokens"] == shares
    (note,) = found["notes"]
    assert "WARNING" in note and "all 12%" in note and "self_referent 25%" in note
    assert found["model"] == {"prepends_bos": False, "bos_token": None}
    with pytest.raises(UserError, match="knows none of its words, all are read as .UNK."):
        tokenize_all([Prompt("x", "neutral", -1, "zyx yxz ?")], word_tokenizer)
    assert "unknown_tokens" not in describe_feeding(tokenized[:1], word_tokenizer)["how"]


def test_edits_and_answers_record_what_was_fed(tmp_path, prompts, capsys):
    model = save_model(tmp_path / "m", DATED, rag=NO_BOS)
    (tmp_path / "plan.json").write_text(
        '{"schema_version": 1, "interventions": '
        '[{"type": "head", "layer": 1, "head": 0, "method": "zero_out"}]}'
    )
    chat = ["--model_id", model, "--prompts", prompts, "--prompt_format", "chat"]
    chat += ["--output_dir", str(tmp_path / "out"), "--date", "2001-02-03"]
    plan = ["--config_file", str(tmp_path / "plan.json"), "--controls", "0"]
    assert interventions.main([*chat, *plan]) == 0
    assert experiment.main([*chat, "--max_tokens", "2"]) == 0
    assert interventions.main([*chat, "--sweep", "heads", "--chat_template", "rag"]) == 0
    assert capsys.readouterr().out.count("writes no BOS token") == 3
    for link, name, date in (
        ("latest_intervention", "default", "2001-02-03"),
        ("latest_generation", "default", "2001-02-03"),
        ("latest_sweep", "rag", None),
    ):
        config = json.loads((tmp_path / "out" / link / "experiment_config.json").read_text())
        assert config["prompts"]["chat_template"]["name"] == name
        assert config["prompts"].get("date") == date
        assert config["model"]["prepends_bos"] is False


def test_what_a_template_sets_or_quotes_it_does_not_read():
    source = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}{% endfor %}"
    )
    source += "{% generation %}{% if thinking %}{% break %}{% endif %}{% endgeneration %}"
    assert chat_template.variables_of(source) == {"messages", "thinking"}
