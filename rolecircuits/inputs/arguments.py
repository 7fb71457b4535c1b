"""Flags that several scripts share, the types of their values, and what is refused before anything
is loaded."""

import argparse
import datetime
import os
import re
from pathlib import Path

from rolecircuits.inputs.categories import CATEGORIES, check_category
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.files import linked_name
from rolecircuits.inputs.specs import PromptFormat

DEFAULT_MODEL = "bundled:smollm2-135m-instruct"
DEFAULT_RESULTS, DEFAULT_TUNING = "results_activation_analysis", "tuning_results"
DEFAULT_SEED, MAX_SEED = 123, 2**32 - 1
ALPHA = 0.05  # below which a p or q is said to pass
MARGIN = 0.05  # an index nearer to its null than this is called equivalent to it
MAX_COUNT = 10**9
FREE_IN_REPETITION = (  # with --repeat: where and how it is run, not what
    *("model_id", "device", "device_map", "batch_size", "output_dir", "raw"),
    *("trust_remote_code", "no_verify", "verbose"),
)
RAW = ("none", "patterns", "full")  # what --raw saves beside the entropies
SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|API_KEY)$", re.IGNORECASE)
HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
RUN_TYPES = ("base", "instruct", "intervention")  # of --output_type; a model run is one of two
OLD_RUN_TYPES = {"latest": "instruct", "latest_base": "base", "normal": "instruct"}
LATEST_RUNS = {"base": "latest_base", "instruct": "latest_run"}  # the link of the newest, by type
LATEST_INTERVENTION, LATEST_SWEEP = "latest_intervention", "latest_sweep"
LATEST_DOCUMENTS, LATEST_GENERATION = "latest_documents", "latest_generation"
LATEST_CHAT = "latest_chat"  # a conversation of monitor_chat.py, the same files as of documents
LATEST_INSPECT = "latest_inspect"  # a task of Inspect, the same files
CONVERSATION = "conversation.jsonl"  # in a chat's folder: what was said, as --documents reads it
LATEST_BASE_GENERATION = "latest_base_generation"  # answers of a family's base model
LATEST_STUDY = "latest_study"


def positive_int(text):
    """A count: an integer of at least 1 (and at most MAX_COUNT)."""
    return _whole_number(text, 1, MAX_COUNT, f"of at least 1 and at most {MAX_COUNT}")


def seed_value(text):
    """A seed that numpy and torch both take: 0 to 2**32 - 1."""
    return _whole_number(text, 0, MAX_SEED, f"from 0 to {MAX_SEED}")


def positive_number(text):
    """A number above 0 and at most 1, without exponents or names such as nan."""
    try:
        value = float(text) if re.fullmatch(r"[0-9]*\.?[0-9]+", text) else 0.0
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        shown = printable(text)[:60]
        raise argparse.ArgumentTypeError(f"{shown}: must be a number above 0 and at most 1")
    return value


def controls_number(text):
    """Controls a candidate: 0 to 100."""
    return _whole_number(text, 0, 100, "from 0 to 100")


def keep_number(text):
    """Runs of each kind that stay: from 0."""
    return _whole_number(text, 0, MAX_COUNT, f"from 0 to {MAX_COUNT}")


def _whole_number(text, least, most, allowed):
    if not re.fullmatch(r"[0-9]{1,100}", text) or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(
            f"{printable(text[:40])!r} is not a whole number {allowed}"
        )
    return int(text)


def run_type(text):
    """The word of RUN_TYPES that is meant: words of earlier versions are still read."""
    return OLD_RUN_TYPES.get(text, text)


def device_name(text):
    """auto, cpu, mps, cuda or cuda:N; that the machine has it is checked later, before loading."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,4})?", text):
        raise argparse.ArgumentTypeError(
            f"{printable(text[:40])!r} is none of auto, cpu, cuda, cuda:N, mps"
        )
    return text


def template_word(text):
    """KEY=VALUE as it is; KEY is the name of a variable."""
    key, equals, _ = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
        raise argparse.ArgumentTypeError(
            f"{printable(text[:40])!r} is not KEY=VALUE with the name of a variable"
        )
    return text


def date_value(text):
    """A date, YYYY-MM-DD."""
    try:
        if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
            return datetime.date.fromisoformat(text).isoformat()
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{printable(text[:40])!r} is not a date such as 2026-01-31")


def add_model_arguments(parser):
    """What a model stage needs: the flags that name a model and its prompts, and how to run."""
    add_model_choice(parser)
    text = parser.add_argument_group("prompts")
    text.add_argument("--prompts", metavar="NAME|FILE", help=PROMPTS_HELP)
    add_format_arguments(text)
    add_run_arguments(parser)


def add_model_choice(parser):
    """Which model."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model_id",
        default=DEFAULT_MODEL,
        help=f"hub id, local folder or {DEFAULT_MODEL} (the default)",
    )
    model.add_argument("--revision", help=REVISION_HELP)
    model.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="run the model's own code; needs a 40-digit --revision",
    )


def add_format_arguments(parser, usual="raw"):
    """How a prompt becomes tokens; `usual` is the default format."""
    parser.add_argument(
        "--prompt_format",
        choices=["raw", "chat"],
        default=usual,
        help=f"feed the text alone, or inside the model's chat template (default {usual})",
    )
    add_template_arguments(parser)


def add_template_arguments(parser):
    """How a chat template is used."""
    parser.add_argument(
        "--system_prompt",
        help="system text for --prompt_format chat, may be empty (default: the template's own)",
    )
    parser.add_argument(
        "--bos",
        choices=["auto", "always", "never"],
        default="auto",
        help="auto: as TransformerLens does for the model, or the chat template as it is",
    )
    parser.add_argument(
        "--chat_template",
        metavar="NAME|FILE",
        help="one of the model's chat templates, or a file (its name has a dot); default: its own",
    )
    parser.add_argument(
        "--template_arg",
        action="append",
        default=[],
        type=template_word,
        metavar="KEY=VALUE",
        help="a variable of the chat template, enable_thinking=false say; JSON, or else a text",
    )
    parser.add_argument(
        "--date",
        type=date_value,
        metavar="YYYY-MM-DD",
        help="what a chat template is told that today is (default: today)",
    )


def add_run_arguments(parser, per_category="all"):
    """How much is run and where; the pipeline takes these flags for both of its models.

    per_category  what the script takes by default, for --help
    """
    how = parser.add_argument_group("how to run")
    how.add_argument(
        "--prompts_per_category",
        type=positive_int,
        help=f"the first N of each category (default: {per_category})",
    )
    add_device_arguments(how)
    how.add_argument(
        "--batch_size", type=positive_int, default=64, help="prompts per forward pass (default 64)"
    )
    add_seed_argument(how)


def add_seed_argument(parser):
    """--seed."""
    parser.add_argument(
        "--seed", type=seed_value, default=DEFAULT_SEED, help="of everything that is drawn"
    )


def add_device_arguments(how):
    """Where and in which dtype a model runs."""
    how.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        default="float32",
        help="of the weights and the pass; softmax is in float32",
    )
    how.add_argument("--device", type=device_name, help="auto (default), cpu, cuda, cuda:N, mps")
    how.add_argument(
        "--device_map",
        help="auto, balanced, balanced_low_0 or sequential (accelerate), or a JSON file "
        "{module: device}; excludes --device",
    )


def add_raw_argument(parser):
    """--raw, for the scripts that capture prompts; nothing that reads runs needs what it saves."""
    parser.add_argument(
        "--raw",
        choices=RAW,
        default="none",
        help="also save patterns, or MLPs, embeddings and final norm too",
    )


def add_output_argument(parser):
    """--output_dir, for the scripts that write run folders."""
    parser.add_argument(
        "--output_dir", default=DEFAULT_RESULTS, help="where the run's folder is made"
    )


REVISION_HELP = "branch, tag or commit of a hub model (default: its main branch)"
PROMPTS_HELP = (
    "original (the default), crossed, crossed:de (or another language), deixis, or your own .json, "
    ".jsonl or .csv file"
)


def add_contrast_arguments(parser):
    """--contrast and --roles, for every script that compares categories."""
    parser.add_argument(
        "--contrast",
        nargs="+",
        action="extend",
        default=[],
        metavar="A-B",
        help="categories to compare, first - second; several may be given (default: usual ones)",
    )
    parser.add_argument(
        "--roles",
        type=roles_value,
        metavar="ROLE=NAME,...",
        help="which of your categories are self_referent, confounder, neutral, third_person",
    )


def roles_value(text):
    """{category of the run: role} from "self_referent=robot,neutral=stone"."""
    roles = {}
    for part in text.split(","):
        role, equals, name = part.partition("=")
        if role not in CATEGORIES or not equals:
            shown, allowed = printable(part[:60]), ", ".join(CATEGORIES)
            raise argparse.ArgumentTypeError(f"{shown!r} is not ROLE=NAME with a role of {allowed}")
        try:
            check_category(name, role)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        if name in roles or role in roles.values():
            raise argparse.ArgumentTypeError(f"{printable(part)!r}: a role or name is given twice")
        roles[name] = role
    return roles


def add_verify_argument(parser):
    """--no_verify, for every script that reads run folders."""
    parser.add_argument(
        "--no_verify",
        action="store_true",
        help="read runs without comparing their files' sizes and SHA-256 with manifest.json",
    )


def say_unverified(args):
    """One line if --no_verify was given: nobody shall take unchecked numbers for checked ones."""
    if args.no_verify:
        print("note: --no_verify: the run's files are not compared with its manifest")


def check_model_arguments(args):
    """Refuse model flags that contradict each other, before anything is imported or loaded."""
    refuse_secrets(args)
    if args.device and args.device_map:
        raise UserError(
            f"--device {args.device} with --device_map {printable(args.device_map)}: give one of "
            "them"
        )
    check_prompt_arguments(args)
    if args.trust_remote_code and not re.fullmatch(r"[0-9a-f]{40}", args.revision or ""):
        raise UserError(
            "--trust_remote_code runs code from the model: pin it with --revision and the 40-digit "
            "commit"
        )


def check_prompt_arguments(args):
    """The part of `check_model_arguments` that is about how prompts are fed."""
    if args.prompt_format != "chat":
        if args.system_prompt is not None:
            raise UserError(
                "--system_prompt needs --prompt_format chat; raw prompts have no system text"
            )
        for flag in ("chat_template", "template_arg", "date"):
            if getattr(args, flag) and getattr(args, "documents", None) is None:
                raise UserError(
                    f"--{flag} needs --prompt_format chat; raw prompts take no chat template"
                )
    elif args.bos == "never":
        raise UserError(
            "--bos never with --prompt_format chat: what the chat template writes is fed as it is; "
            "name another template with --chat_template"
        )
    check_text(args.system_prompt, "--system_prompt")
    for word in args.template_arg:
        check_text(word, "--template_arg")
    PromptFormat.of(args)  # reads the file of --chat_template


def check_text(text, where):
    """Refuse text that no tokenizer takes: bytes that are not UTF-8, half a surrogate pair."""
    if any(0xD800 <= ord(character) <= 0xDFFF for character in text or ""):
        raise UserError(
            f"{where}: holds bytes that are not UTF-8, or half a surrogate pair; neither is a "
            "character"
        )


def refuse_secrets(args):
    """Refuse arguments that hold an access token: arguments are stored beside a run's results.

    A token is the value of an environment variable named ..._TOKEN, ..._SECRET, ..._PASSWORD or
    ..._API_KEY, or looks like one of the hub. The message names the flag, never the token.
    """
    secrets = [
        value for name, value in os.environ.items() if SECRET_NAME.search(name) and len(value) >= 8
    ]
    for flag, value in vars(args).items():
        text = str(value)
        if any(secret in text for secret in secrets) or HUB_TOKEN.search(text):
            raise UserError(
                f"--{flag}: holds an access token, and arguments are stored with the run; take it "
                "out"
            )


def check_output_dir(path, flag="--output_dir", link=None):
    """The output folder as a Path, refused now (not after the work) where it cannot be written.

    link  the name of the link that will point at the new run; what lies there must be such a link
    """
    path = Path(path)
    existing = path
    try:
        while not existing.exists():
            if existing.is_symlink():
                raise UserError(f"{flag} {path}: {existing} is a symlink to nowhere")
            existing = existing.parent
        if link and (path / link).exists() and linked_name(path / link) is None:
            raise UserError(
                f"{flag} {path}: {link} in it is not a symlink; move it away, the newest run is "
                "linked there"
            )
        inside_run = (path / "manifest.json").is_file()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{flag} {str(path)[:200]}: {reason}") from error
    if inside_run:
        raise UserError(
            f"{flag} {path}: is a run folder, which is never written to; name another folder"
        )
    if not existing.is_dir():
        raise UserError(f"{flag} {path}: {existing} is a file, not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {path}: {existing} cannot be written to")
    return path


def check_given_with_repeat(parser, argv):
    """{flag: value} of what stands beside --repeat; a flag that makes it another run is refused."""
    nothing = object()  # tells a flag that was not given from one with its default's value
    empty = {action.dest: nothing for action in parser._actions}
    blank = argparse.Namespace(**empty)  # noqa: TID251  (what argparse fills)
    parsed = vars(parser.parse_args(argv, blank))
    given = {flag: value for flag, value in parsed.items() if value is not nothing}
    given.pop("repeat")
    wrong = [flag for flag in given if flag not in FREE_IN_REPETITION]
    if wrong:
        allowed = ", ".join(f"--{flag}" for flag in FREE_IN_REPETITION)
        parser.error(
            f"--{wrong[0]} with --repeat: the run says what it was; beside it are allowed {allowed}"
        )
    return given
