"""Routes agent trajectories to supervised fine-tuning or reinforcement learning by gradient concentration (PRISM).

    import gradprism as gp

Every public name is listed here and loaded from its room when it is first used, so that the import itself takes a moment and no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradprism.package_data import shipped, write_template
    from gradprism.runtime.errors import GradprismError
    from gradprism.runtime.usage import Usage
    from gradprism.training.summary import TrainingSummary

__version__ = "0.1.0"
__all__ = [
    "GradprismError",
    "TrainingSummary",
    "Usage",
    "shipped",
    "write_template",
]

_ROOMS = {
    "runtime.errors": ("GradprismError",),
    "runtime.usage": ("Usage",),
    "package_data": ("shipped", "write_template"),
    "training.summary": ("TrainingSummary",),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'gradprism' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gradprism.{_ROOM_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
