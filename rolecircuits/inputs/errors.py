"""The two errors that end a script with one line, and text made safe for a terminal."""

import sys


class UserError(Exception):
    """The request is wrong: one line that says what, where and what is allowed. Exit code 2."""


class RunFailed(Exception):
    """The request was right and the work failed: one line that says where. Exit code 1."""


def visible(text):
    """`text` with control characters (ANSI escapes among them) shown as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def printable(text):
    """`text` safe for a terminal: `visible`, and what its encoding cannot show is escaped too."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return visible(text).encode(encoding, "backslashreplace").decode(encoding)


def one_line(error, length=300):
    """An error's message without line breaks, safe for a terminal, cut to `length` characters."""
    return printable(" ".join(str(error).split()))[:length]
