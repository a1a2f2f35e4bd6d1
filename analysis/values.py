"""Types of what files and tables hold before it is checked: the only values of any type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]
"""An object of a JSON or YAML file, or one that will be written; a reader checks its values."""

TableRow = Mapping[Any, Any]
"""One row of a data frame, as `to_dict("records")` gives it; its cells are of any type."""
