"""A user's file of prompts, read and checked, and prompts written as such a file.

    .json   {category: [text, ...]}, or a list of rows {"category": ..., "text": ...}
    .jsonl  one row a line
    .csv    a header line with at least category,text; comma, UTF-8

A row may also have id, frame, filler and turn (see categories.Prompt). What cannot be understood is
refused in one line that names the file, the place and the field. A file in which a frame holds
prompts of several categories is a crossed set, and must be a whole one (see `check_crossed`).

    prompts, notes = read_prompt_file("mine.csv")
    write_prompt_file("copy.json", prompts)     # reads back as the same prompts
"""

import csv
import difflib
import io
import json
import os
import unicodedata
from collections import Counter
from dataclasses import replace
from pathlib import Path

from rolecircuits.inputs.arguments import check_text
from rolecircuits.inputs.categories import (
    CATEGORIES,
    MAX_CATEGORIES,
    PAIRED,
    REQUIRED,
    TURNS,
    Prompt,
    check_category,
    is_crossed,
    order_categories,
)
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.files import TEMPORARY, parse_strict_json, read_text
from rolecircuits.inputs.prompt_sets import SETS, Row, check_crossed, join_pairs, order_cells

FLAG = "--prompts"
SUFFIXES = ".json, .jsonl or .csv"
COLUMNS = ("id", "category", "frame", "filler", "text", "turn")
NEEDED = ("category", "text")
MAX_LABEL, MAX_ID = 80, 100  # characters
FORBIDDEN = ("Cc", "Cs", "Zl", "Zp")  # Unicode's control characters, surrogates and line breaks
SEPARATORS = {";": "semicolons", "\t": "tabs"}


def read_prompt_file(path):
    """(prompts, notes) of a user's file; the notes say what was left out.

    Prompts come in the order of `order_categories`. In a crossed set the first filler of every
    frame comes first; in others a duplicate is counted once: the first stays, and one that belongs
    to a pair takes its partner with it, so that the remaining pairs still match.
    """
    path = Path(path)
    file, suffix = f"{FLAG} {path}", path.suffix.lower()
    if suffix not in READERS and os.path.isfile(path):
        sets = f"{', '.join(SETS)}, crossed:de"
        raise UserError(f"{file}: must end in {SUFFIXES}, or be a built-in set: {sets}")
    text = read_text(path, FLAG)
    rows = READERS[suffix](text, path)
    _check_ids(rows)
    _check_categories(rows, file)
    if is_crossed([row.prompt for row in rows]):
        check_crossed(rows)
        rows, notes = order_cells(rows), []
    else:
        rows, notes = _drop_duplicates(rows, file)
    prompts = join_pairs(_name_prompts(rows))
    notes += _note_absent({prompt.category for prompt in prompts})
    sizes = Counter(prompt.category for prompt in prompts)
    if all(sizes[name] for name in PAIRED) and len({sizes[name] for name in PAIRED}) > 1:
        notes.append("confounder and third_person differ in number, so they are no pairs")
    return prompts, [f"{printable(path)}: {note}" for note in notes]


def _read_json(text, path):
    file = f"{FLAG} {path}"
    root = parse_strict_json(text, file)
    if isinstance(root, dict):
        return _rows_of_object(root, file)
    if not isinstance(root, list):
        raise UserError(
            f"{file}: the root is a {type(root).__name__}; it must be an object of "
            "{category: [text, ...]} or a list of objects with category and text"
        )
    return [_row_of(row, f"{file}[{i}]", f"{path.name}[{i}]") for i, row in enumerate(root)]


def _rows_of_object(root, file):
    """Rows of {category: [text, ...]}."""
    _check_number(len(root), file)
    rows = []
    for category, texts in root.items():
        check_category(category, file)
        check_spelling(category, file)
        if not isinstance(texts, list):
            kind = type(texts).__name__
            raise UserError(f"{file}: {category} is a {kind}; it must be a list of texts")
        for i, text in enumerate(texts):
            place = f"{category}[{i}]"
            _check_prompt_text(text, f"{file}: {place}")
            rows.append(Row(f"{file}: {place}", place, Prompt("", category, -1, text)))
    return rows


def _read_jsonl(text, path):
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{FLAG} {path}: line {number}"
            rows.append(_row_of(parse_strict_json(line, where, True), where, f"line {number}"))
    return rows


def _read_csv(text, path):
    file = f"{FLAG} {path}"
    first = next((line for line in text.split("\n") if line.strip()), "")
    for mark, name in SEPARATORS.items():
        if set(NEEDED) <= {cell.strip(" \r\"'").lower() for cell in first.split(mark)}:
            raise UserError(f"{file}: the cells are separated by {name}; it must be a comma")
    records = _csv_records(text, file)
    line, header = next(records, (1, []))
    _check_header(header, f"{file}: line {line}")
    rows = []
    for line, cells in records:
        where = f"{file}: line {line}"
        if len(cells) != len(header):
            raise UserError(
                f"{where}: cells: {len(cells)}, but the header has {len(header)}; "
                "a text with a comma stands in double quotes"
            )
        value = {n: c for n, c in zip(header, cells, strict=True) if c or n in NEEDED}
        rows.append(_row_of(value, where, f"line {line}"))
    return rows


def _csv_records(text, file):
    """(number of its first line, cells) of every record that is not an empty line."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{file}: line {line}: not CSV: {error}") from error
        if cells is None:
            return
        if cells:
            yield line, cells


def _check_header(header, where):
    if not any(cell.strip().lower() in COLUMNS for cell in header):
        raise UserError(
            f"{where}: no header: the first line must name the columns, at least category,text"
        )
    _check_fields(header, where, "column")
    for name in header:
        if header.count(name) > 1:
            raise UserError(f"{where}: the column {name} appears twice")


def _check_fields(names, where, kind):
    """Refuse unknown names of fields, and rows or headers without category or text."""
    for name in names:
        if name not in COLUMNS:
            close = difflib.get_close_matches(name[:MAX_ID].strip().lower(), COLUMNS, 1)
            hint = f"did you mean {close[0]}?" if close else f"allowed are {', '.join(COLUMNS)}"
            raise UserError(f"{where}: unknown {kind} {printable(name[:MAX_ID])!r}: {hint}")
    for name in NEEDED:
        if name not in names:
            raise UserError(f"{where}: the {kind} {name} is missing")


def _row_of(value, where, place):
    """The Row of an object {"category": ..., "text": ..., ...}, checked."""
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise UserError(f"{where} is a {kind}; it must be an object with category and text")
    _check_fields(list(value), where, "field")
    check_category(value["category"], where)
    _check_prompt_text(value["text"], f"{where}: text")
    own_id = _check_label(value["id"], f"{where}: id", MAX_ID) if "id" in value else ""
    if "id" in value and not own_id:
        raise UserError(f"{where}: id is empty; leave it out, or give 1 to {MAX_ID} characters")
    frame = _check_label(value.get("frame", ""), f"{where}: frame", MAX_LABEL)
    filler = _check_label(value.get("filler", ""), f"{where}: filler", MAX_LABEL)
    if filler and not frame:
        shown = printable(filler)
        raise UserError(f"{where}: filler {shown!r} without frame; it names a prompt of a frame")
    turn = value.get("turn", "user")
    if turn not in TURNS:
        shown = printable(turn)[:MAX_LABEL]
        raise UserError(f"{where}: turn {shown!r} is neither user nor assistant")
    labels = (own_id, value["category"], -1, value["text"])
    return Row(where, place, Prompt(*labels, frame, filler, turn))


def _check_prompt_text(text, where):
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where} must be a text that is not empty")
    check_text(text, where)


def _check_label(value, where, most):
    """A text of one line with at most so many characters."""
    if not isinstance(value, str):
        raise UserError(f"{where} is a {type(value).__name__}; it must be a text")
    if len(value) > most:
        raise UserError(f"{where} has {len(value)} characters; allowed are {most}")
    if any(unicodedata.category(character) in FORBIDDEN for character in value):
        shown = printable(value)
        raise UserError(f"{where} {shown!r} holds a line break or another control character")
    return value


def _check_ids(rows):
    known = {}
    for row in rows:
        first = known.setdefault(row.prompt.id, row)
        if row.prompt.id and first is not row:
            shown = printable(row.prompt.id)
            raise UserError(f"{row.where}: id {shown!r}: {first.place} has it already")


def _check_categories(rows, file):
    """Refuse misspelt categories, and fewer or more of them than can be contrasted."""
    first = {}
    for row in rows:
        first.setdefault(row.prompt.category, row)
    _check_number(len(first), file)
    for name, row in first.items():
        check_spelling(name, row.where)
    if len(first) < 2:
        only = f"only {next(iter(first))} has" if first else "no category has"
        raise UserError(f"{file}: {only} prompts; two are needed to contrast")


def _check_number(n, file):
    if n > MAX_CATEGORIES:
        raise UserError(f"{file}: has {n} categories; allowed are 2 to {MAX_CATEGORIES}")


def check_spelling(name, where):
    """Refuse a name that is nearly one of CATEGORIES."""
    close = difflib.get_close_matches(name, CATEGORIES, 1, cutoff=0.85)
    if close and name not in CATEGORIES:
        raise UserError(f"{where}: unknown category {printable(name)!r}: did you mean {close[0]}?")


def _drop_duplicates(rows, file):
    """(rows in the order of their categories without duplicates, notes).

    A pair stays or goes as one; what was dropped blocks nothing later.
    """
    of_category = {name: [] for name in order_categories(row.prompt.category for row in rows)}
    for row in rows:
        of_category[row.prompt.category].append(row)
    seen, notes, kept = {}, [], {name: [] for name in of_category}
    for group in _groups(of_category):
        for unit in zip(*(of_category[name] for name in group), strict=True):
            row, first = _find_double(unit, seen)
            if row is None:
                for own in unit:
                    seen[own.content] = own
                    kept[own.prompt.category].append(own)
                continue
            where = row.place + (", dropped with its partner" if len(group) > 1 else "")
            shown = printable(row.prompt.text)
            notes.append(
                f"duplicate prompt {shown!r} in {where}; {first.place} has it: counted once"
            )
    for name, left in kept.items():
        if not left:
            raise UserError(f"{file}: every {name} prompt is a duplicate of another; none is left")
    return [row for own in kept.values() for row in own], notes


def _groups(of_category):
    """The categories, those of pairs together: [(name, ...)]."""
    if len({len(of_category.get(name, ())) for name in PAIRED}) > 1:
        return [(name,) for name in of_category]
    singles = [name for name in of_category if name != PAIRED[1]]
    return [PAIRED if name == PAIRED[0] else (name,) for name in singles]


def _find_double(unit, seen):
    """(row, the earlier row with its content) of a pair or a single row; (None, None) if new."""
    for i, row in enumerate(unit):
        earlier = [own for own in unit[:i] if own.content == row.content]
        first = seen.get(row.content) or (earlier[0] if earlier else None)
        if first:
            return row, first
    return None, None


def _name_prompts(rows):
    """The prompts of the rows, with an id where a row has none: category and position in it."""
    given = {row.prompt.id: row for row in rows}
    position, prompts = Counter(), []
    for row in rows:
        prompt = row.prompt
        new = f"{prompt.category}_{position[prompt.category]:02d}"
        position[prompt.category] += 1
        if not prompt.id and new in given:
            raise UserError(
                f"{given[new].where}: id {new!r} is the one that {row.place} gets, which has none; "
                "give every prompt an id"
            )
        prompts.append(replace(prompt, id=prompt.id or new))
    return prompts


def _note_absent(names):
    """What the set cannot do for want of the standard categories."""
    if not names & set(CATEGORIES):
        listed = ", ".join(CATEGORIES)
        return [f"no category is one of {listed}: RFC and RSI need --roles"]
    absent = [name for name in PAIRED if name not in names]
    notes = [f"no {name} prompts; what needs them is left out" for name in absent]
    lost = " and no ".join(name for name in REQUIRED if name not in names)
    if lost:
        notes.append(f"no {lost} prompts: RFC and RSI are left out unless --roles names others")
    return notes


def write_prompt_file(path, prompts):
    """Write prompts as a new file that `read_prompt_file` understands; all of it or nothing."""
    path = Path(path)
    write = WRITERS.get(path.suffix.lower())
    if write is None:
        raise UserError(f"--export {path}: must end in {SUFFIXES}")
    if os.path.lexists(path):
        raise UserError(f"--export {path}: exists already; name a new file")
    if not os.path.isdir(path.parent):
        raise UserError(f"--export {path}: no such folder: {path.parent}")
    turns = any(prompt.turn != "user" for prompt in prompts)
    columns = COLUMNS if turns else [name for name in COLUMNS if name != "turn"]
    rows = [{name: getattr(prompt, name) for name in columns} for prompt in prompts]
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}{path.suffix}")
    try:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            file.write(write(rows))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _json_text(rows):
    return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"


def _jsonl_text(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _csv_text(rows):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


READERS = {".json": _read_json, ".jsonl": _read_jsonl, ".csv": _read_csv}
WRITERS = {".json": _json_text, ".jsonl": _jsonl_text, ".csv": _csv_text}
