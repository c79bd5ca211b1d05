"""The nodes and the networks of a pack that was imported into the test process."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module


def nodes_of(pack) -> dict:
    """Node id -> node class, asked for as the host does."""

    async def listed() -> list:
        return await (await pack.comfy_entrypoint()).get_node_list()

    # in a thread of its own: a browser that is still open keeps an event loop in this one
    with ThreadPoolExecutor(1) as thread:
        nodes = thread.submit(asyncio.run, listed()).result()
    return {node.define_schema().node_id: node for node in nodes}


@contextmanager
def on_device(host, *recipes):
    """The networks of `recipes`, as a node gets them, in a phase that needs nothing beside them."""
    plan = import_module(host.__name__.replace("nodes._host", "aiprod_engine.memory.plan"))
    with host.placed(plan.Need("test", (), (plan.Way("", 0),)), *recipes) as placed:
        yield placed.networks
