"""What works with which architecture: docs/MODELS.md and docs/models.json.

A tiny random model of every architecture (architectures.py), each in a process of its own, is put
through the functions that the scripts use, and compared with plain Hugging Face, eager attention:

    capture        every row of every head, each text alone: entropies and masses within 1e-5
    streaming      the same arrays without patterns
    head edits     one head a layer zeroed = its columns before the output projection zeroed
    pattern edits  the uniform pattern in one layer = the same put into the model's attention
    generation     8 greedy tokens of generate(do_sample=False)
    bfloat16       entropies against rows that the model itself rounds to this dtype: at most 0.3
    float16        nats, 0.02 on average

    yes: equal    refused: one line says why    WRONG: not equal    CRASH: a traceback
    untested: there is nothing to compare with

    python benchmarks/models_table.py                     all of them, docs/MODELS.md is written
    python benchmarks/models_table.py --only llama gpt2   these again, the others stay
"""

import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT), str(Path(__file__).resolve().parent)]

import rolecircuits  # noqa: E402, F401, I001  (before numpy and torch: it sets how threads wait)

import json  # noqa: E402
import multiprocessing  # noqa: E402
import os  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402
from importlib.metadata import version  # noqa: E402

import architectures  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from model_checks import CHECKS, cell, check_row, forbid_installers  # noqa: E402

import rolecircuits.models.bridge  # noqa: E402, F401  (here, or every child imports it again)
from rolecircuits.inputs.arguments import positive_int  # noqa: E402
from rolecircuits.inputs.errors import UserError  # noqa: E402
from rolecircuits.inputs.parser import Parser, run_script  # noqa: E402

VERDICTS = ("yes", "refused", "WRONG", "CRASH", "untested")
PACKAGES = ("transformers", "torch", "transformer-lens")
TITLES = "capture|streaming|head edits|pattern edits|generation|bfloat16|float16".split("|")
SECONDS = 60
LONGEST = 160
INTRODUCTION = """
# Which models are measured

Written by `make models` with {versions}: {n} tiny random models, one of every key of transformers'
mappings for causal and for image-text models (fed text alone), with variants that matter. They are
run through the functions that the scripts use, and held against plain Hugging Face with eager
attention. `docs/models.json` has the gaps. A model that is not tiny may still take a path that none
of these takes; the instrument check runs on every model that is loaded.

| column | yes means |
| --- | --- |
| capture | entropies, sink masses, final rows of each text alone within 1e-5; visible keys equal |
| streaming | the same without patterns |
| head edits | a zeroed head a layer = zeroed columns before the output projection; logits to 1e-4 |
| pattern edits | a uniform pattern = the same put into its eager attention; logits to 1e-4 |
| generation | 8 greedy tokens of 4 texts are those of `generate(do_sample=False)` |
| bfloat16, float16 | entropies from rows rounded to the dtype: 0.3 nats at most, 0.02 on average |

refused: one line says why. untested: there is nothing to compare with.
"""


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="ROW", help="rows or keys; other rows stay")
    parser.add_argument("--jobs", type=positive_int, default=2, help="processes (default 2)")
    return parser.parse_args(argv)


def work(name, pipe):
    """The child process: quiet, without installers."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    forbid_installers()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    found = check_row(name)
    pipe.send(found)


def run_all(names, jobs, on_row):
    """{row: what check_row says}; a process that dies or takes too long is a CRASH."""
    context, waiting, running, found = multiprocessing.get_context("fork"), list(names), {}, {}
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.pop(0)
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(name, theirs))
            process.start()
            theirs.close()
            running[name] = process, ours, time.monotonic()
        for name, (process, pipe, started) in list(running.items()):
            result, late = None, time.monotonic() - started > SECONDS
            if pipe.poll(0.05):
                try:
                    result = pipe.recv()
                except EOFError:
                    process.join()
                    result = dead(name, f"its process ended with {process.exitcode}")
            elif late:
                process.kill()
                result = dead(name, f"not finished after {SECONDS} s")
            if result is not None:
                process.join()
                del running[name]
                found[name] = result
                on_row(name, result)
    return {name: found[name] for name in names}


def dead(name, why):
    checks = {check: cell("CRASH", why) for check in ("plain", *CHECKS)}
    return {"class": architectures.rows()[name].model_class} | checks


def say(name, found):
    """One line of a row on the terminal."""
    print(f"{name:40} {'  '.join(found[check]['verdict'] for check in CHECKS)}  {reasons(found)}")
    sys.stdout.flush()


def reasons(found):
    """The distinct reasons of a row's cells, each once."""
    grouped = {}
    for check, title in zip(("plain", *CHECKS), ("plain", *TITLES), strict=True):
        item = found[check]
        if item["verdict"] != "yes":
            grouped.setdefault((item["verdict"], item["why"]), []).append(title)
    lines = []
    for (_, why), titles in grouped.items():
        why = shorten(why)
        lines.append(why if len(titles) >= len(CHECKS) else f"{', '.join(titles)}: {why}")
    return "; ".join(lines)


def shorten(why):
    """At most LONGEST characters of a reason; docs/models.json has it whole."""
    return why if len(why) <= LONGEST else why[:LONGEST].rsplit(" ", 1)[0] + " ..."


def run(args):
    names = list(architectures.rows())
    if args.only:
        names = [n for n in names if n in args.only or n.split(" (")[0] in args.only]
        if not names:
            raise UserError("--only: no such row")
    torch.set_num_threads(1)
    rows = stored_rows() if args.only else {}

    def keep(name, found):
        rows[name] = found
        say(name, found)
        write(rows)

    found = run_all(names, args.jobs, keep)
    counts = count_verdicts(found).values()
    print(", ".join(f"{sum(count[v] for count in counts)} {v}" for v in VERDICTS))


def stored_rows():
    """The rows of docs/models.json, {} where they are of other versions."""
    path = PROJECT / "docs" / "models.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"versions": None}
    return stored["rows"] if stored["versions"] == versions() else {}


def versions():
    return {name: version(name) for name in PACKAGES}


def write(rows):
    """docs/models.json, one row a line, and docs/MODELS.md; rows in their order."""
    rows = {name: rows[name] for name in architectures.rows() if name in rows}
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    text = f'{{"versions": {json.dumps(versions())},\n"rows": {{\n{lines}\n}}}}\n'
    (PROJECT / "docs" / "models.json").write_text(text, encoding="utf-8")
    (PROJECT / "docs" / "MODELS.md").write_text(render(json.loads(text)), encoding="utf-8")


def render(data):
    """The text of docs/MODELS.md from what docs/models.json holds."""
    rows, counts = data["rows"], count_verdicts(data["rows"])
    refused = {name: row for name, row in rows.items() if all_are(row, "refused")}
    untried = {name: row for name, row in rows.items() if all_are(row, "untested")}
    shown = {name: row for name, row in rows.items() if name not in refused | untried}
    packages = ", ".join(f"{name} {number}" for name, number in data["versions"].items())
    runs = [name for name in refused if rows[name]["plain"]["verdict"] == "yes"]
    parts = [INTRODUCTION.format(versions=packages, n=len(rows)).strip(), table_of_counts(counts)]
    head = ["architecture", *TITLES, "why"]
    body = [
        [name, *(row[c]["verdict"] for c in CHECKS), reasons(row)] for name, row in shown.items()
    ]
    parts += [f"## Measured: {len(shown)}", table(head, body)]
    parts += [
        f"## Refused whole: {len(refused)}",
        f"{len(runs)} of them give causal rows in plain Hugging Face (third column).",
        table(
            ["architecture", "the line", "plain"],
            [
                [name, shorten(row["capture"]["why"]), plain_word(row)]
                for name, row in refused.items()
            ],
        ),
        f"## Not tried: {len(untried)}",
        "No tiny model of them could be made here, or plain Hugging Face does not run them.",
        table(
            ["architecture", "why"],
            [[n, shorten(row["capture"]["why"])] for n, row in untried.items()],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def count_verdicts(rows):
    """{check: {verdict: rows}}."""
    verdicts = {c: [row[c]["verdict"] for row in rows.values()] for c in CHECKS}
    return {c: {v: found.count(v) for v in VERDICTS} for c, found in verdicts.items()}


def all_are(row, verdict):
    return all(row[check]["verdict"] == verdict for check in CHECKS)


def plain_word(row):
    plain = row["plain"]
    return "runs" if plain["verdict"] == "yes" else plain["why"]


def table_of_counts(counts):
    body = [[v, *(str(counts[c][v]) for c in CHECKS)] for v in VERDICTS]
    return table(["verdict", *TITLES], body)


def table(head, body):
    """A Markdown table of texts."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(
        "| " + " | ".join(t.replace("|", "\\|") for t in line) + " |" for line in lines
    )


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
