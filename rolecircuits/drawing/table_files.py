"""The tables that a script printed, once more in a file: --table md FILE or --table latex FILE.

    add_table_argument(parser)          the flag
    @writes_tables                      around `run(args)` of a script
    def run(args): ...

Every table has its caption, and below it the line that says how it is read. LaTeX is plain
`tabular` with \\hline and needs no package; letters that pdflatex does not know (Chinese in a
prompt, say) need XeLaTeX or LuaLaTeX. Nothing heavy is imported here, for scripts' --help.
"""

import contextlib
import functools
import re
from dataclasses import dataclass
from pathlib import Path

from rolecircuits.inputs.arguments import check_output_dir
from rolecircuits.inputs.errors import UserError, printable, visible
from rolecircuits.runs.files import replaced_file

FORMS = ("md", "latex")
IN_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}
_open_lists = []  # of the blocks of `recorded_tables` that are entered, the innermost last


@dataclass(frozen=True)
class PrintedTable:
    """A table as it was printed: texts, before anything is escaped.

    numeric  [column] True where cells are aligned right    rows  [row][column]
    """

    headings: list
    numeric: list
    rows: list
    title: str
    note: str


@contextlib.contextmanager
def recorded_tables():
    """A list to which every table is added that is printed inside the block.

    Of blocks inside each other the innermost has it; `record` hands it on.
    """
    tables = []
    _open_lists.append(tables)
    try:
        yield tables
    finally:
        _open_lists.pop()


def record(*tables):
    """Add printed tables to the list of the innermost block, if there is one."""
    if _open_lists:
        _open_lists[-1].extend(tables)


def add_table_argument(parser):
    """--table, for every script that prints tables."""
    parser.add_argument(
        "--table",
        nargs=2,
        metavar=("md|latex", "FILE"),
        help="also write the printed tables to FILE, as Markdown or LaTeX (default: no file)",
    )


def writes_tables(run):
    """`run` of a script, which then writes the tables that it printed to the file of --table."""

    @functools.wraps(run)
    def run_and_write(args):
        if args.table is None:
            return run(args)
        form, path = check_table(*args.table)
        with recorded_tables() as tables:
            code = run(args)
        if not tables:
            print(f"note: no table was printed, {printable(path)} is not written")
            return code
        path.parent.mkdir(parents=True, exist_ok=True)
        write = markdown_table if form == "md" else latex_table
        with replaced_file(path) as file:
            file.write("\n".join(map(write, tables)))
        print(f"{len(tables)} tables written to {printable(path)}")
        return code

    return run_and_write


def check_table(form, name):
    """(form, Path) of --table, refused before the work where the file cannot be written."""
    if form not in FORMS:
        raise UserError(f"--table {printable(form)[:40]}: must be {' or '.join(FORMS)}, then FILE")
    path = Path(name)
    check_output_dir(path.parent, "--table")
    if not path.name or path.is_dir():
        raise UserError(f"--table {form} {printable(name)[:200]}: is a folder; name a file")
    return form, path


def markdown_table(table):
    """A PrintedTable as GitHub's Markdown, its caption above it and its note below."""
    marks = ["---:" if right else ":---" for right in table.numeric]
    rows = [list(map(_in_markdown, row)) for row in (table.headings, *table.rows)]
    lines = [f"| {' | '.join(row)} |" for row in (rows[0], marks, *rows[1:])]
    title = [f"**{_in_markdown(table.title)}**", ""] if table.title else []
    note = ["", *map(_in_markdown, table.note.split("\n"))] if table.note else []
    return "\n".join([*title, *lines, *note, ""])


def _in_markdown(text):
    """A text in which Markdown finds nothing to do."""
    text = re.sub(r"([\\`*_<>|~$&#])", r"\\\1", _one_line(text))
    return re.sub(r"\](?=[(\[:])", r"\\]", text)


def latex_table(table):
    """A PrintedTable as a LaTeX table, its caption above it and its note below."""
    marks = "".join("r" if right else "l" for right in table.numeric)
    rows = [_latex_row(row) for row in (table.headings, *table.rows)]
    title = [rf"\caption{{{_in_latex(table.title)}}}"] if table.title else []
    note = []
    if table.note:
        note = [r"", r"\smallskip", *(rf"{_in_latex(line)}\par" for line in table.note.split("\n"))]
    lines = [r"\begin{table}", r"\centering\small", *title, rf"\begin{{tabular}}{{{marks}}}"]
    lines += [r"\hline", rows[0], r"\hline", *rows[1:], r"\hline", r"\end{tabular}", *note]
    return "\n".join([*lines, r"\end{table}", ""])


def _latex_row(cells):
    r"""Cells joined and ended. A row may not begin with [ or *: \\ of the row above takes these."""
    row = " & ".join(map(_in_latex, cells))
    return ("{}" if row.startswith(("[", "*")) else "") + row + r" \\"


def _in_latex(text):
    """A text in which LaTeX finds nothing to do; two hyphens stay two."""
    text = "".join(IN_LATEX.get(c, c) for c in _one_line(text))
    return re.sub("-(?=-)", "-{}", text)


def _one_line(text):
    return visible(" ".join(str(text).split()))
