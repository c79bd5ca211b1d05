"""Shared set-up. The repository goes to the *end* of `sys.path`: the host owns `nodes`."""

import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent
for entry in (TESTS, TESTS.parent):
    if str(entry) not in sys.path:
        sys.path.append(str(entry))


@pytest.fixture(autouse=True)
def _one_seed():
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the fixtures were recorded with one thread
