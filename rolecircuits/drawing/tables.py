"""Tables on the terminal, the same in every script; text is never read as markup or emoji."""

from rich.box import HEAVY_HEAD, SIMPLE
from rich.console import Console
from rich.table import Column, Table

from rolecircuits.inputs.errors import printable

BOXED = {"box": HEAVY_HEAD}
PLAIN = {"box": None, "pad_edge": False}
WIDE = 132  # characters, for tables that a redirected output would break at 80


def right(heading):
    """A Column whose cells are aligned right."""
    return Column(heading, justify="right")


def print_table(columns: list[str | Column], rows, title=None, file_width=None, **look):
    """Print rows of texts and numbers under their columns.

    columns     headings, or a Column where cells are aligned right or never broken over lines
    file_width  characters a line where the output is no terminal (default 80)
    look        BOXED, PLAIN or other options of rich's Table; else a line under the headings
    """
    console = Console(markup=False, highlight=False, emoji=False)
    if file_width and not console.is_terminal:
        console.width = file_width
    table = Table(*columns, title=title, **({"box": SIMPLE} | look))
    for row in rows:
        table.add_row(*(printable(cell) for cell in row))
    console.print(table)
