"""How text of unknown origin, numbers and intervals are written for people.

Numbers have a true minus sign, and a word or a dash where they are unknown.
"""

from __future__ import annotations

import math
from collections.abc import Callable

MINUS = "\u2212"


def printable(text: str) -> str:
    """The text with line breaks, control characters and broken code points written as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def true_minus(text: str) -> str:
    """The text with − for every hyphen: of numbers, not of words."""
    return text.replace("-", MINUS)


def number_text(
    value: float | None, digits: int = 3, *, sign: bool = False, unknown: str = "unknown"
) -> str:
    """A number with as many decimals, such as "−0.120"; never a 0 with a minus sign."""
    if value is None or not math.isfinite(value):
        return unknown
    return true_minus(f"{value:{'+' if sign else ''}z.{digits}f}")


def score_text(value: float) -> str:
    """A number of size up to 1 with three decimals and no zero before them, such as "−.003"."""
    text = number_text(value)
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def small_text(value: float) -> str:
    """A p-value or a size as `score_text`, "<.001" where that would be zeros."""
    return "<.001" if 0 <= value < 0.001 else score_text(value)


def p_text(p: float) -> str:
    """Such as "p = .012" or "p <.001"; "p unknown" where there is no test."""
    shown = small_text(p)
    return f"p = {shown}" if shown[0] in ".1" else f"p {shown}"


def percent_text(share: float) -> str:
    """A share as whole per cent, such as "41 %"."""
    shown = number_text(100 * share, 0)
    return shown if shown == "unknown" else f"{shown} %"


def interval_text(
    value: float, low: float, high: float, *, show: Callable[[float], str] = number_text
) -> str:
    """A value and its bounds, such as "0.412 [0.380, 0.450]"; the value alone without them."""
    bounds = f" [{show(low)}, {show(high)}]" if math.isfinite(low) else ""
    return show(value) + bounds


def size_text(count: float) -> str:
    """Bytes in words, such as "1.5 GiB"."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def counted(count: int, noun: str) -> str:
    """Such as "1 run" and "3 runs"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
