"""AIPROD's engine: joint audio+video diffusion with the LTX-2 family, without any host.

`inspect` identifies a file from its header, `load` builds one network strictly from it.
"""

from .types import Modality

__all__ = ["Modality", "inspect", "load"]


def __getattr__(name: str):
    # Lazy, so that importing the pack in the host costs milliseconds.
    if name in ("inspect", "load"):
        from . import weights

        return getattr(weights, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
