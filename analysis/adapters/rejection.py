"""Why an adapter is rejected, said by what sees it; the folder is named once, by who opened it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from analysis.errors import AdapterError
from analysis.text import escape_unprintable


class _Rejected(AdapterError):
    """What is wrong with an adapter and what to do, without the adapter's name."""


def reject(problem: str, remedy: str) -> NoReturn:
    """Raise AdapterError: what `naming` names `problem`; `remedy`."""
    raise _Rejected(f"{problem}; {remedy}.")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name a folder or file in what is rejected inside, so that checks need not know it."""
    try:
        yield
    except _Rejected as why:
        raise AdapterError(escape_unprintable(f"{path} {why}")) from None
