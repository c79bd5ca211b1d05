"""Files of the LTX-2 family: recognised from their headers, loaded strictly, never unpickled."""

from .identity.fit import check_fit
from .identity.identify import identify, inspect, sniff
from .identity.info import Info

__all__ = [
    "Info",
    "check_fit",
    "configuration",
    "identify",
    "inspect",
    "load",
    "load_tokenizer",
    "sniff",
]


def __getattr__(name: str):
    # Lazy: what needs torch and the networks must not slow down reading a header.
    if name in ("configuration", "load"):
        from . import loading

        return getattr(loading, name)
    if name == "load_tokenizer":
        from .tokenizer_file import load_tokenizer

        return load_tokenizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
