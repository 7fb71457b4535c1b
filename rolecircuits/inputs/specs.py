"""What travels together: which model and where it runs, how prompts become tokens, and what makes
two models the same."""

import datetime
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path

from rolecircuits.inputs.files import read_text

IDENTITY = ("revision", "weights_sha256", "tokenizer_sha256", "config_sha256", "dtype")


class _FromArguments:
    """A group of flags: its fields are the names under which argparse keeps them."""

    @classmethod
    def of(cls, args):
        """The group as these parsed arguments give it."""
        return cls(**{field.name: getattr(args, field.name) for field in fields(cls)})


@dataclass(frozen=True)
class ModelSpec(_FromArguments):
    """A model to load: a hub id, local folder or bundled:..., and where and how it runs."""

    model_id: str
    revision: str | None = None
    dtype: str = "float32"
    device: str | None = None
    device_map: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class PromptFormat(_FromArguments):
    """How a prompt becomes tokens: as raw text, after a BOS or not, or in the model's chat
    template.

    chat_template  name or file of the template, None for the model's only or default one
    template_text  what that file holds            template_arg  ("KEY=VALUE", ...)
    date           that a template prints, YYYY-MM-DD; None: that of this run
    """

    prompt_format: str = "raw"
    system_prompt: str | None = None
    bos: str = "auto"
    chat_template: str | None = None
    template_arg: tuple = ()
    date: str | None = None
    template_text: str | None = None

    @classmethod
    def of(cls, args):
        """The format as these parsed arguments give it: the file is read, the date is set.

        A run that is repeated has the text of its file in args.template_text.
        """
        names = [field.name for field in fields(cls) if field.name != "template_text"]
        form = cls(**{name: getattr(args, name) for name in names})
        text = getattr(args, "template_text", None)
        text = read_template(form.chat_template) if text is None else text
        words = tuple(form.template_arg)
        form = replace(form, template_arg=words, template_text=text)
        return replace(form, date=form.date or run_date())


def read_template(name):
    """What the file of --chat_template holds; None for a name, which has no dot or slash."""
    if name is None or not ({".", "/"} & set(name)):
        return None
    return read_text(Path(name), "--chat_template")


@cache
def run_date():
    """Today, YYYY-MM-DD; that of the start in a process that works over midnight."""
    return datetime.date.today().isoformat()


@dataclass(frozen=True)
class Setting:
    """What every pass over texts needs: the model, how texts become tokens, batch size and seed."""

    model: ModelSpec
    form: PromptFormat
    batch_size: int = 64
    seed: int = 123

    @classmethod
    def of(cls, args):
        """The setting that these parsed arguments name."""
        return cls(ModelSpec.of(args), PromptFormat.of(args), args.batch_size, args.seed)

    @classmethod
    def from_plain(cls, plain):
        """The setting of which `plain` is dataclasses.asdict."""
        parts = {"model": ModelSpec(**plain["model"]), "form": PromptFormat(**plain["form"])}
        return cls(**plain | parts)


def model_identity(facts):
    """What must be equal wherever a model of these facts (model in experiment_config.json) is
    loaded."""
    return {name: facts[name] for name in IDENTITY}


def same_weights(facts, others):
    """True for the same hash, or where one is unknown for the same id and revision."""
    hashes = [model.get("weights_sha256") for model in (facts, others)]
    if all(hashes):
        return hashes[0] == hashes[1]
    return (facts["id"], facts.get("revision")) == (others["id"], others.get("revision"))
