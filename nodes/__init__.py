"""Nodes of this pack: thin adapters between ComfyUI and `aiprod_engine`, one file per family."""

import importlib
import logging

from comfy_api.latest import ComfyExtension

logger = logging.getLogger("aiprod")

FAMILIES = (
    "loaders", "lora", "model", "text", "latents", "files", "encode", "conditioning", "guiders",
    "sampling", "upscale", "decode", "interop", "planning", "host_guider",
)  # fmt: skip


class AIPRODExtension(ComfyExtension):
    async def get_node_list(self) -> list[type]:
        """Every node of every family that loads; one that fails is logged and left out."""
        nodes = []
        for family in FAMILIES:
            try:
                found = importlib.import_module(f".{family}", __package__).NODES
                for node in found:
                    node.GET_SCHEMA()  # the host would drop the rest of the pack if this raised
            except Exception:  # the host names neither file nor line
                logger.exception("AIPROD: the nodes of family %s could not be loaded", family)
            else:
                nodes += found
        return nodes
