"""Nodes of this pack: thin adapters between ComfyUI and `aiprod_engine`, one file per family."""

import importlib
import logging

from comfy_api.latest import ComfyExtension

logger = logging.getLogger("aiprod")

FAMILIES = (
    "loaders", "lora", "text", "latents", "files", "encode", "conditioning", "guiders", "sampling",
    "upscale", "decode", "interop",
)  # fmt: skip


class AIPRODExtension(ComfyExtension):
    async def get_node_list(self) -> list[type]:
        """Every node; the host reports failures without a traceback, so they are logged here."""
        nodes = []
        for family in FAMILIES:
            try:
                nodes += importlib.import_module(f".{family}", __package__).NODES
            except Exception:
                logger.exception("AIPROD: the nodes of family %s could not be loaded", family)
                raise
        return nodes
