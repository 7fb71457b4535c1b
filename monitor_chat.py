"""Talk to a model on the terminal, and see after every answer what it attended to.

    one line you type (or a line of a pipe) is one turn of the user
    -> results_activation_analysis/chat_<time>/: what activation_analysis.py
       --documents writes of the same conversation (documents.npz, turns.csv,
       figures), and conversation.jsonl, what was said

    python monitor_chat.py --system_prompt "You keep a lighthouse."
    python monitor_chat.py --max_tokens 60 --temperature 0.7 --seed 7

/quit, or the end of the input, ends it. The line after an answer is of its
tokens, means over layers and heads: H normalised/sink-free entropy (0 one-hot,
1 uniform), attention on the sink, and on the system's text, the user's text and
the model's own: share/what it would be if all visible tokens got alike.

Answers are greedy unless --temperature is given. The folder is written after
every turn, figures at the end, and linked as latest_chat (latest_documents
stays the newest file that was fed). report.py RUN --documents FOLDER draws it.
"""

import argparse
import re
import shutil
import sys

from output_manager import create_run, say_limits
from rolecircuits.inputs.arguments import (
    CONVERSATION,
    LATEST_CHAT,
    add_device_arguments,
    add_model_choice,
    add_output_argument,
    add_seed_argument,
    add_template_arguments,
    check_model_arguments,
    check_output_dir,
    positive_int,
)
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.parser import Parser, collector_paused, leave, run_script, say_notes
from rolecircuits.inputs.specs import ModelSpec, PromptFormat

QUIT = "/quit"
MAX_TEMPERATURE = 10.0
PARTS = {"system": "system_text", "user": "user_text", "own": "assistant_text"}


def temperature(text):
    """A temperature above 0."""
    value = float(text) if re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,9})?", text) else 0.0
    if not 0 < value <= MAX_TEMPERATURE:
        shown = printable(text)[:40]
        raise argparse.ArgumentTypeError(f"{shown!r} is not a number above 0 and at most 10")
    return value


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    add_model_choice(parser)
    add_template_arguments(parser.add_argument_group("conversation"))
    how = parser.add_argument_group("how to run")
    how.add_argument(
        "--max_tokens",
        type=positive_int,
        default=200,
        help="tokens an answer at most (default 200)",
    )
    how.add_argument("--temperature", type=temperature, help="draw tokens (default: greedy)")
    add_device_arguments(how)
    add_seed_argument(how)
    add_output_argument(parser)
    parser.set_defaults(prompt_format="chat", documents=CONVERSATION)
    return parser.parse_args(argv)


def run(args):
    """Talk until the input ends; what can be refused is refused before the weights are read."""
    check_model_arguments(args)
    check_output_dir(args.output_dir, link=LATEST_CHAT)
    with collector_paused():
        from rolecircuits.documents import chat as chats  # torch: after the arguments are checked
    say_limits(args.output_dir)
    how = chats.Answering(args.max_tokens, args.temperature, args.seed)
    chat, folder = chats.open_chat(ModelSpec.of(args), PromptFormat.of(args), how), None
    print(f"{printable(args.model_id)}: {QUIT} ends it; after every answer, of its tokens:")
    print("  H normalised/sink-free, sink; attention on system, user, own text: share/uniform")
    for line in user_lines():
        try:
            chat.say(line)
        except UserError as error:
            say_notes([f"{printable(error)}; the turn is left out"])
            continue
        print(f"\n{printable_lines(chat.turns[-1][1])}\n{status_line(chat)}\n", flush=True)
        folder, _ = publish(chat, args, folder, draw=False)
    if folder is None:
        print("nothing was said, so nothing is written")
        return
    folder, saved = publish(chat, args, folder, draw=True)
    chats.print_run(*saved)
    n = sum(role == "assistant" for role, _ in chat.turns)
    print(f"{n} answers, {chat.document.n_tokens} tokens -> {printable(folder)}")


def user_lines():
    """What the user says, line by line, until /quit or the end of the input; empty ones are not
    said. Lines of a pipe are shown.
    """
    shown = not (sys.stdin and sys.stdin.isatty())
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        if shown:
            print(printable(line))
        if line == QUIT:
            return
        if line:
            yield line


def printable_lines(text):
    """`printable` text, its line breaks kept."""
    return "\n".join(printable(line) for line in text.strip().splitlines())


def status_line(chat):
    """One line on the tokens of the last answer, as the module says."""
    found, (start, stop) = chat.measures(), chat.document.spans[-1]
    parts = "  ".join(
        f"{shown} {_short(found[name])}/{_short(found[f'{name}_null'])}"
        for shown, name in PARTS.items()
    )
    n = sum(role == "assistant" for role, _ in chat.turns)
    return (
        f"[{n}] {stop - start} tokens  H {_short(found['normalised'])}/{_short(found['sinkfree'])}"
        f"  sink {_short(found['sink_mass'])}  {parts}"
    )


def _short(value):
    """A share from 0 to 1 with two digits and without its leading zero; - where undefined."""
    return "-" if value != value else f"{value:.2f}".removeprefix("0")


def publish(chat, args, before, draw):
    """Publish the conversation so far in place of the folder `before`: (folder, what to print)."""
    with create_run(args.output_dir, LATEST_CHAT, "chat") as new:
        saved = chat.save(new.path, args, draw)
    if before is not None:
        shutil.rmtree(before)
    return new.final, saved


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    leave(main())
