"""Types for unchecked content of files and tables, the only places for values of any type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]
"""An object of a JSON or YAML file, or one that will be written; a reader checks its values."""

TableRow = Mapping[Any, Any]
"""One row of a data frame, as `to_dict("records")` gives it; its cells are of any type."""
