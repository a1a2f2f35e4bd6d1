"""Write numbers, intervals and text of unknown origin for people.

Numbers have a true minus sign; unknown ones become a word or a dash.
"""

from __future__ import annotations

import math
from collections.abc import Callable

MINUS = "\u2212"


def escape_unprintable(text: str) -> str:
    """The text on one line: line breaks, control characters and surrogates become escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def true_minus(text: str) -> str:
    """A formatted number with − in place of every hyphen; not for words."""
    return text.replace("-", MINUS)


def number_text(
    value: float | None, digits: int = 3, *, sign: bool = False, unknown: str = "unknown"
) -> str:
    """A number with `digits` decimals, such as "−0.120"; zero never gets a minus sign."""
    if value is None or not math.isfinite(value):
        return unknown
    return true_minus(f"{value:{'+' if sign else ''}z.{digits}f}")


def score_text(value: float) -> str:
    """A number from −1 to 1 with three decimals and no leading zero, such as "−.003"."""
    text = number_text(value)
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def small_text(value: float) -> str:
    """A p-value or effect size like `score_text`, but "<.001" instead of all zeros."""
    return "<.001" if 0 <= value < 0.001 else score_text(value)


def p_text(p: float) -> str:
    """For example "p = .012" or "p <.001"; "p unknown" if there is no test."""
    shown = small_text(p)
    return f"p = {shown}" if shown[0] in ".1" else f"p {shown}"


def percent_text(share: float) -> str:
    """A share in whole per cent, such as "41 %"."""
    shown = number_text(100 * share, 0)
    return shown if shown == "unknown" else f"{shown} %"


def share_text(share: float, low: float, high: float) -> str:
    """A share with its bounds in whole per cent, such as "83 % [76, 91]"."""
    bounds = [number_text(100 * bound, 0) for bound in (low, high)]
    known = math.isfinite(low) and math.isfinite(high)
    return percent_text(share) + (f" [{bounds[0]}, {bounds[1]}]" if known else "")


def interval_text(
    value: float, low: float, high: float, *, show: Callable[[float], str] = number_text
) -> str:
    """A value with its bounds, such as "0.412 [0.380, 0.450]", or alone if they are unknown."""
    bounds = f" [{show(low)}, {show(high)}]" if math.isfinite(low) else ""
    return show(value) + bounds


def size_text(count: float) -> str:
    """A number of bytes with its unit, such as "1.5 GiB"."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def count_text(count: int, noun: str) -> str:
    """A count with its noun, such as "1 run" or "3 runs"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def duration_text(seconds: float) -> str:
    """A length of time, such as 8 s, 2 min 5 s or 1 h 12 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def items_text(n: float, items: float | None) -> str:
    """What an interval rests on, such as "14 items, n = 42"; n alone if items are not recorded."""
    if items is None or not math.isfinite(items):
        return f"n = {int(n)}"
    said = count_text(int(items), "item")
    return said if int(n) == int(items) else f"{said}, n = {int(n)}"
