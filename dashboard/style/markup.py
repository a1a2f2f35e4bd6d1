"""Text of models, data sets and manifests, made safe for Markdown and HTML."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from analysis import markup as tables
from analysis.text import items_text, number_text
from dashboard.style.glossary import mark_heading

_SPECIAL = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|$~:&^])")
# Addresses become links, and names between colons icons or emoji, in text that is already read.
_ACTIVE = re.compile(r":(?=//)|:(?=[\w+\-]+(?:/\w+)?:)|(?<=\w)@(?=\w)|\bwww(?=\.)", re.IGNORECASE)
_JOINER = "\u2060"
_LOW = (31, 119, 201)
_HIGH = (213, 94, 0)


def literal(text: str) -> str:
    """Escape `text` for Markdown, so that it is shown literally: no markup, links, icons or maths.

    An invisible character of no width keeps apart what Streamlit would turn into a link or an icon.
    """
    apart = _ACTIVE.sub(lambda found: found.group() + _JOINER, text.replace("\n", " "))
    return _SPECIAL.sub(r"\\\1", apart)


def prose(text: str) -> str:
    """Escape a message for Markdown, with what it puts between backticks as code."""
    parts = text.replace("\n", " ").split("`")
    if len(parts) % 2 == 0:  # one of them has no partner
        return literal(text)
    codes = [f"`{part}`" if part.strip() else literal(f"`{part}`") for part in parts]
    return "".join(
        code if position % 2 else literal(part)
        for position, (part, code) in enumerate(zip(parts, codes, strict=True))
    )


def escape(text: object) -> str:
    """Escape `text` for HTML, so that it is shown literally."""
    return html.escape(str(text), quote=True)


def chips(tokens: Sequence[str]) -> str:
    """Tokens as a row of small boxes."""
    spans = "".join(f'<span class="token">{_visible(token)}</span>' for token in tokens)
    return f'<div class="tokens">{spans}</div>'


def heat_map(
    tokens: Sequence[str], values: NDArray[np.floating], answer: Sequence[bool], *, limit: float
) -> str:
    """Tokens shaded by value: blue below 0, orange above, full colour at ±`limit`.

    Tokens outside the answer are fainter; each token shows its value on hover.
    """
    spans = [
        f'<span class="token {"" if inside else "outside"}" style="background:{_shade(v, limit)}" '
        f'title="{v:+.2f} std">{_visible(token)}</span>'
        for token, v, inside in zip(tokens, values.tolist(), answer, strict=True)
    ]
    return f'<div class="tokens flow">{"".join(spans)}</div>'


def interval(value: float, low: float, high: float, n: float, items: float | None = None) -> str:
    """A number with its 95 % interval and what that rests on, as two lines of HTML."""
    if not math.isfinite(value):
        return '<span class="absent">unknown</span>'
    if math.isfinite(low) and math.isfinite(high):
        bounds = f"{number_text(low)} to {number_text(high)}"
    else:
        bounds = "no interval"
    size = f", {items_text(n, items)}" if math.isfinite(n) else ""
    shown = f'<span class="value">{number_text(value)}</span>'
    return f'{shown}<span class="bounds">{bounds}{size}</span>'


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str) -> str:
    """A table; header and caption are text, cells are HTML that is already safe.

    Columns whose heading is in the glossary explain themselves when they are pointed at.
    """
    safe = [[Markup(cell) for cell in row] for row in rows]
    headings = [mark_heading(heading) for heading in header]
    table = tables.html_table(headings, safe, css="plain", label=caption)
    return f'<div class="table-scroll">{table}</div><p class="table-note">{escape(caption)}</p>'


def _visible(token: str) -> str:
    shown = token.replace("\n", "\u21b5").replace("\t", "\u21e5")
    return escape(shown) if shown.strip() else "\u2423"


def _shade(value: float, limit: float) -> str:
    if not math.isfinite(value) or limit <= 0:
        return "transparent"
    red, green, blue = _HIGH if value > 0 else _LOW
    return f"rgba({red},{green},{blue},{min(abs(value) / limit, 1.0) * 0.75:.2f})"


STYLE = """
<style>
@media (min-width: 900px) {
  [data-testid="stMainBlockContainer"] { padding-left: 2.5rem; padding-right: 2.5rem; }
}
.tokens { display: flex; flex-wrap: wrap; gap: 2px 3px; line-height: 1.5; }
.tokens .token { font-family: var(--st-code-font, monospace); font-size: 0.8rem; padding: 0 4px;
  border-radius: 3px; border: 1px solid rgba(125, 133, 143, 0.35); white-space: pre-wrap;
  overflow-wrap: anywhere; }
.tokens.flow .token { border-color: transparent; }
.tokens .outside { opacity: 0.55; }
.example { padding: 0.35rem 0; border-bottom: 1px solid rgba(125, 133, 143, 0.25); }
.example .about { font-size: 0.78rem; opacity: 0.75; }
.table-scroll { overflow-x: auto; }
table.plain { border-collapse: collapse; width: 100%; font-size: 0.86rem; }
.table-note { font-size: 0.8rem; opacity: 0.75; margin: 0.35rem 0 0 0; }
table.plain th, table.plain td { text-align: left; padding: 0.35rem 0.7rem; vertical-align: top;
  border: 0; border-bottom: 1px solid rgba(125, 133, 143, 0.28); font-weight: 400; }
table.plain thead th { font-weight: 600; white-space: nowrap; }
table.plain tbody th { font-weight: 600; min-width: 9.5rem; }
table.plain .value { display: block; font-variant-numeric: tabular-nums; font-weight: 600; }
table.plain .bounds { display: block; font-size: 0.72rem; opacity: 0.75; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
table.plain .absent { opacity: 0.6; }
table.plain .sub { display: block; font-size: 0.72rem; opacity: 0.7; font-weight: 400; }
[data-testid="stCode"] .token.parameter { white-space: nowrap; }
table.plain .long { overflow-wrap: anywhere; font-weight: 400; }
.swatch { display: inline-block; width: 0.7em; height: 0.7em; border-radius: 2px;
  margin-right: 0.45em; }
abbr.term, table.plain abbr[title] {
  text-decoration: underline dotted 1px rgba(125, 133, 143, 0.9);
  text-underline-offset: 0.2em; cursor: help; }
abbr.term { position: relative; }
abbr.term:hover::after, abbr.term:focus::after { content: attr(data-means); position: absolute;
  left: 0; top: 1.7em; z-index: 100; width: max-content; max-width: 20rem; padding: 0.45rem 0.65rem;
  border-radius: 6px; border: 1px solid #66717E; background: #1A222C; color: #FFFFFF;
  font-size: 0.8rem; font-weight: 400; line-height: 1.4; white-space: normal; }
@media (max-width: 700px) {
  abbr.term { position: static; }
  abbr.term:hover::after, abbr.term:focus::after { position: fixed; left: 1rem; right: 1rem;
    top: auto; bottom: 1rem; width: auto; max-width: none; }
}
ol.steps.steps { list-style: none; margin: 0; padding: 0; }
ol.steps.steps li { margin: 0; padding: 0.22rem 0 0.22rem 1.7rem; position: relative;
  line-height: 1.4; }
.steps li::before { position: absolute; left: 0.1rem; content: "○"; opacity: 0.6; }
.steps li.done::before { content: "✓"; color: #009E73; opacity: 1; font-weight: 700; }
.steps li.next { font-weight: 600; }
.steps li.next::before { content: "➜"; color: #1F77C9; opacity: 1; }
.steps li.later { opacity: 0.7; }
.steps .why { display: block; font-weight: 400; font-size: 0.86rem; opacity: 0.85; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden;
  clip-path: inset(50%); white-space: nowrap; }
.glossary { columns: 2; column-gap: 2rem; margin: 0; font-size: 0.88rem; }
.glossary div { break-inside: avoid; padding: 0.25rem 0; }
.glossary dt { font-weight: 600; }
.glossary dd { margin: 0; opacity: 0.85; }
@media (max-width: 900px) { .glossary { columns: 1; } }
.lead { font-size: 1.12rem; line-height: 1.5; margin: 0 0 0.35rem 0; max-width: 52rem; }
.more { margin: 0 0 0.35rem 0; line-height: 1.5; max-width: 52rem; }
.small { font-size: 0.8rem; opacity: 0.8; line-height: 1.45; margin: 0.35rem 0 0 0;
  max-width: 60rem; }
</style>
"""
