"""Tokens as one reads them, from the tokenizer's own spelling in prompts.jsonl."""

import re

SPACE_OF_BYTES, SPACE_OF_PIECES = "\u0120", "\u2581"
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
MARKS = {"\n": "\u23ce", "\r": "\u240d", "\t": "\u21e5"}


def byte_characters():
    """{character: byte} of byte-level tokenizers: bytes that print stand for themselves, the others
    for the characters from U+0100 on, in order (the table of GPT-2, which all of them use).
    """
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + i): byte for i, byte in enumerate(others)}


def readable_tokens(strings):
    """{spelling: text to show} of the token strings of a run.

    Line ends and tabs are shown as marks, other control characters as escapes; bytes that are no
    character by themselves (half of an emoji) as U+FFFD.
    """
    strings = list(dict.fromkeys(strings))  # in their order: a page is the same every time
    byte_level = any(text.startswith((SPACE_OF_BYTES, "\u010a")) for text in strings)
    table = byte_characters() if byte_level else {}
    return {text: _shown(_decode(text, table)) for text in strings}


def _decode(text, table):
    if table:
        known = all(character in table for character in text)
        return bytes(table[c] for c in text).decode("utf-8", "replace") if known else text
    if piece := BYTE_PIECE.fullmatch(text):
        return bytes([int(piece[1], 16)]).decode("utf-8", "replace")
    return text.replace(SPACE_OF_PIECES, " ")


def _shown(text):
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(MARKS.get(c, own) for c, own in zip(text, escaped, strict=True))
