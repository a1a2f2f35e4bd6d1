"""HTML from templates; values are escaped unless they are `Markup` already."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_TEMPLATES = Environment(
    # Paths start at the package's root, so that a template can lie next to the code that uses it.
    loader=PackageLoader("analysis", ""),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)


def render(template: str, /, **values: object) -> Markup:
    """The template at a path within `analysis`, filled with values."""
    return Markup(_TEMPLATES.get_template(template).render(values))


def html_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, css: str = "", label: str = ""
) -> Markup:
    """A table in which the first cell of each row is the row's header.

    Args:
        header: names of the columns.
        rows: cells, each text or `Markup`; as many per row as there are columns.
        css: class of the table; none if "".
        label: name of the table for screen readers; none if "".
    """
    return render("templates/table.html.jinja", header=header, rows=rows, css=css, label=label)
