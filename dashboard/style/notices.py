"""What a page shows when there is nothing to show, or something is broken."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import streamlit as st

from analysis.errors import GraspError, NotFoundError
from analysis.store.workspace import Broken
from dashboard.style.markup import literal, prose

_log = logging.getLogger(__name__)


def show_empty(title: str, text: str, *, command: str | None = None) -> None:
    """An empty state: what is missing, what to do, and the command that does it."""
    with st.container(border=True):
        st.markdown(f"**{literal(title)}**")
        st.markdown(prose(text))
        if command is not None:
            st.code(command, language="bash", wrap_lines=True)


def show_problem(title: str, reason: str) -> None:
    """An error state: what went wrong, and the reason."""
    st.error(f"**{literal(title)}**  \n{prose(reason)}")


def explain(text: str) -> None:
    """The caption under a chart that explains how to read it."""
    st.caption(prose(text))


def show_broken(broken: Sequence[Broken]) -> None:
    """List the records that cannot be read, each with the reason."""
    if not broken:
        return
    lines = "\n".join(f"- **{literal(one.id)}**: {prose(one.reason)}" for one in broken)
    count = "One record" if len(broken) == 1 else f"{len(broken)} records"
    are = "is" if len(broken) == 1 else "are"
    st.warning(f"{count} cannot be read and {are} left out:\n\n{lines}")


@contextmanager
def catch_errors(what: str) -> Iterator[None]:
    """Turn an error into a notice and go on with the page.

    An unexpected error is named as such; its traceback goes to the server's log.
    """
    try:
        yield
    except NotFoundError as error:
        st.info(prose(str(error)))
    except GraspError as error:
        show_problem(f"{what} cannot be shown.", str(error))
    except Exception as error:
        _log.exception("%s cannot be shown", what)
        show_problem(
            f"{what} cannot be shown.",
            f"Unexpected error: {type(error).__name__}: {error}. "
            "The terminal that serves this page has the details.",
        )
