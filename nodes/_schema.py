"""Portability of node schemas: newer hosts know more fields than the oldest supported one."""

from __future__ import annotations

import dataclasses
import inspect

from comfy_api.latest import io


def make_input(kind: type, name: str, **fields):
    """Construct an input; fields that this host's constructor lacks travel in `extra_dict`."""
    known = inspect.signature(kind.__init__).parameters
    extra = dict(fields.pop("extra_dict", None) or {})
    for field in [field for field in fields if field not in known]:
        extra[field] = fields.pop(field)
    made = kind(name, **fields)
    if extra:
        made.extra_dict = {**(made.extra_dict or {}), **extra}
    return made


def make_schema(**fields) -> io.Schema:
    """Construct a schema from the fields that this host knows."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return io.Schema(**{name: value for name, value in fields.items() if name in known})
