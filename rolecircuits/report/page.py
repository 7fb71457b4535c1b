"""Sections -> one HTML file that needs no network and opens from disk.

    page = build_page(sections, Page(title, head, menus))

What users wrote (model names, prompts, answers) reaches the page in two ways only: through Jinja
with autoescape, and as JSON in <script type="application/json">, which no browser runs, with < as
\\u003c, so that no text can end it. A Content-Security-Policy names the hash of every script: none
that is not ours runs, nothing is fetched, and there is no eval.
"""

import base64
import gzip
import hashlib
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rolecircuits.report import palette
from rolecircuits.report.section import as_plain

TEMPLATES = Path(__file__).parent / "templates"
VENDOR = Path(__file__).parents[1] / "drawing" / "vendor"
LIBRARIES = ("vega.min.js", "vega-lite.min.js", "vega-embed.min.js")  # in the order of their needs

STYLES = ("style.css", "sections.css")


@dataclass(frozen=True)
class Page:
    """What the page itself shows: its title, its head (static), its menus and first state."""

    title: str
    head: dict = field(default_factory=dict)
    menus: dict = field(default_factory=dict)
    state: dict = field(default_factory=dict)


def build_page(sections, page):
    """The HTML text of a list of Sections under the head of a Page."""
    scripts = [_script(VENDOR / name) for name in LIBRARIES]
    names = ["core", *(section.name for section in sections)]
    own = [TEMPLATES / f"{name}.js" for name in names]
    scripts += [_script(path) for path in own if path.is_file()]
    style = palette.style_sheet()
    style += "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in STYLES)
    facts = {
        "page": page,
        "sections": sections,
        "included": [s.name for s in sections if (TEMPLATES / f"{s.name}.html").is_file()],
        "policy": content_policy(scripts, style),
        "style": Markup(style),
        "scripts": [Markup(text) for text in scripts],
        "page_json": embed_json({"menus": page.menus, "state": page.state}),
        "data_json": {section.name: _section_json(section) for section in sections},
    }
    return _environment().get_template("page.html").render(facts)


def embed_json(value):
    """JSON that stands safely inside a <script> of HTML."""
    text = json.dumps(as_plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def _section_json(section):
    """Data and tables of a section; tables are packed, because they are read on a click only."""
    tables = {name: pack_table(rows) for name, rows in section.tables.items()}
    if not section.packed:
        return embed_json({"data": section.data, "tables": tables})
    text = json.dumps(as_plain(section.data), ensure_ascii=False, allow_nan=False)
    return embed_json({"packed": pack(text.encode("utf-8", "backslashreplace")), "tables": tables})


def pack_table(rows):
    """Rows (dicts with the same keys) as {"columns", "packed": their JSON}."""
    columns = list(rows[0]) if rows else []
    values = [[row[name] for row in rows] for name in columns]
    text = json.dumps(as_plain(values), ensure_ascii=False, allow_nan=False)
    return {"columns": columns, "packed": pack(text.encode("utf-8", "backslashreplace"))}


def pack(data):
    """Bytes, or those of an array, as text for report.unpack of core.js: gzip, base64."""
    raw = data if isinstance(data, bytes) else data.tobytes()
    return base64.b64encode(gzip.compress(raw, 6, mtime=0)).decode("ascii")


def content_policy(scripts, style):
    """Nothing is fetched or framed; only these scripts and this style sheet count."""
    hashes = " ".join(_hash(text) for text in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src {_hash(style)}; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text):
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


@cache
def _script(path):
    """The text of a script; a map of its sources lies nowhere, so the line that names it goes."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("//# sourceMappingURL"))


@cache
def _environment():
    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.lstrip_blocks = True
    return environment
