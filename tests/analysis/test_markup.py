"""HTML: text is escaped, HTML stays, and a template that lacks a value fails."""

from __future__ import annotations

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from analysis.markup import html_table, render

HOSTILE = '<script>alert("x")</script>'


def test_a_table_escapes_text_wherever_it_stands_and_keeps_html() -> None:
    html = html_table([HOSTILE], [[HOSTILE, Markup("<b>1</b>")]], css=HOSTILE, label=HOSTILE)
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;") == 4
    assert '<tr><th scope="row">&lt;' in html
    assert "<td><b>1</b></td></tr>" in html
    assert html_table(["a"], [["b"]]).startswith("<table>")


def test_a_template_without_its_values_fails() -> None:
    with pytest.raises(UndefinedError, match="'header' is undefined"):
        render("templates/table.html.jinja", css="", label="")
