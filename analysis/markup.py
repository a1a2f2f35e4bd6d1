"""HTML from templates: what is put into one is escaped, unless it is `Markup` already."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_TEMPLATES = Environment(
    # From the root of the package, so that a template lies in the room that uses it.
    loader=PackageLoader("analysis", ""),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)


def render(template: str, /, **values: object) -> Markup:
    """The template at a path within `analysis`, filled in."""
    return Markup(_TEMPLATES.get_template(template).render(values))


def html_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, css: str = "", label: str = ""
) -> Markup:
    """A table whose rows begin with what they are about; cells are text, or `Markup`.

    Args:
        header: names of the columns, as text.
        rows: as many cells each.
        css: class of the table, left out where "".
        label: what a screen reader calls it, left out where "".
    """
    return render("templates/table.html.jinja", header=header, rows=rows, css=css, label=label)
