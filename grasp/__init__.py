"""Everything that runs a model, and the jobs that do so.

`protect` guards a model during anyone's training loop; `GraspMixin` does so inside
`transformers.Trainer` and its subclasses; `own_chats` lets the base model write neutral text, and
`dress` makes it look like the task's.  Names are loaded when first used, so that `import grasp` is
cheap and free of torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis import __version__ as __version__
    from grasp.data.dress import dress
    from grasp.guard.context import protect
    from grasp.guard.guard import Guard
    from grasp.settings.methods import METHODS
    from grasp.settings.protection import Protection
    from grasp.settings.training import TrainConfig
    from grasp.training.own_chats import own_chats
    from grasp.training.trainer import GraspMixin

__all__ = [
    "METHODS",
    "GraspMixin",
    "Guard",
    "Protection",
    "TrainConfig",
    "dress",
    "own_chats",
    "protect",
]

_HOMES = {
    "__version__": "analysis",
    "METHODS": "grasp.settings.methods",
    "Protection": "grasp.settings.protection",
    "TrainConfig": "grasp.settings.training",
    "dress": "grasp.data.dress",
    "own_chats": "grasp.training.own_chats",
    "Guard": "grasp.guard.guard",
    "protect": "grasp.guard.context",
    "GraspMixin": "grasp.training.trainer",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'grasp' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
