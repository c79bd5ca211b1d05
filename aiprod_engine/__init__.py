"""AIPROD's engine: joint audio+video diffusion with the LTX-2 family, without any host.

`inspect` identifies files from their headers, `load` builds one network strictly from them.
"""

__all__ = ["Modality", "inspect", "load"]


def __getattr__(name: str):
    # Lazy: importing the pack in the host, or reading a header, must not wait for torch.
    if name == "Modality":
        from .types import Modality

        return Modality
    if name in ("inspect", "load"):
        from . import weights

        return getattr(weights, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
