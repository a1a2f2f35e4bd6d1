"""Factors that add nothing to the others: they lie in the span of those named before them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from analysis.errors import InputError
from analysis.spectra.subspace import find_dependent

_NAMED = 3


def explain_dependent(names: Sequence[str], directions: NDArray[np.floating]) -> dict[str, str]:
    """Name of each factor that lies in the span of those before it → which they are, in words."""
    return {
        names[number]: _listed([names[one] for one in parts])
        for number, parts in find_dependent(directions)
    }


def require_independent(names: Sequence[str], directions: NDArray[np.floating]) -> None:
    """Refuse factors that add nothing.

    Raises:
        InputError: a factor lies in the span of those before it; the message names all such.
    """
    found = explain_dependent(names, directions)
    if not found:
        return
    said = "; ".join(f"{name} lies in the span of {parts}" for name, parts in found.items())
    these = "it" if len(found) == 1 else "them"
    raise InputError(
        f"Some factors add nothing to those named before them: {said}. Leave {these} out: what "
        "is protected stays the same."
    )


def _listed(names: Sequence[str]) -> str:
    if len(names) > _NAMED:
        return f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
