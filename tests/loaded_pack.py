"""The nodes of a pack that was imported into the test process."""

import asyncio
from concurrent.futures import ThreadPoolExecutor


def nodes_of(pack) -> dict:
    """Node id -> node class, asked for as the host does."""

    async def listed() -> list:
        return await (await pack.comfy_entrypoint()).get_node_list()

    # in a thread of its own: a browser that is still open keeps an event loop in this one
    with ThreadPoolExecutor(1) as thread:
        nodes = thread.submit(asyncio.run, listed()).result()
    return {node.define_schema().node_id: node for node in nodes}
