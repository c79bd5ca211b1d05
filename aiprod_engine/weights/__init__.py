"""Files of the LTX-2 family: recognised from their headers, loaded strictly, never unpickled."""

from .fit import check_fit
from .identify import identify, inspect
from .info import Info
from .load import configuration, load
from .tokenizer_file import load_tokenizer

__all__ = [
    "Info",
    "check_fit",
    "configuration",
    "identify",
    "inspect",
    "load",
    "load_tokenizer",
]
