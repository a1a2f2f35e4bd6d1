"""Commands that run a module of ours in another Python process."""

from __future__ import annotations

import sys


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs `module` with this interpreter.

    `python -m` alone looks for modules in the current folder first, which may be a stranger's: a
    `torch.py` there would be run.  With -P it does not.
    """
    return [sys.executable, "-P", "-m", module, *arguments]
