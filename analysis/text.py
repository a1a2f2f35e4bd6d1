"""Text of unknown origin, such as names in a file, made safe to print on one line."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with line breaks, control characters and broken code points written as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
