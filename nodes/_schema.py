"""What all nodes share: portable schemas, and inputs that are what their sockets say."""

from __future__ import annotations

import dataclasses
import functools
import inspect

from comfy_api.latest import io

from ..aiprod_engine.errors import MismatchError
from ._sockets import PAYLOADS


class Node(io.ComfyNode):
    """A node whose `execute` never sees a payload of the wrong kind.

    The host matches sockets by name only; another pack may put anything on a wire of that name.
    """

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        own = cls.__dict__.get("execute")
        # the host copies each class together with its methods and locks the copy
        if own is None or hasattr(own.__func__, "__wrapped__"):
            return
        inner = own.__func__

        @functools.wraps(inner)
        def execute(cls, **inputs):
            check_payloads(cls.define_schema(), inputs)
            return inner(cls, **inputs)

        cls.execute = classmethod(execute)


def check_payloads(schema: io.Schema, inputs: dict) -> None:
    """Raise unless every input on one of this pack's sockets is that socket's payload."""
    for declared in schema.inputs:
        wanted = PAYLOADS.get(declared.get_io_type())
        found = inputs.get(declared.id)
        if wanted is None or isinstance(found, wanted) or (found is None and declared.optional):
            continue
        raise MismatchError(
            f"{schema.display_name}: {declared.id} takes {declared.get_io_type()} from a node of "
            f"this pack, got {type(found).__name__}; reconnect it"
        )


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
