"""Nodes of this pack: thin adapters between ComfyUI and `aiprod_engine`, one file per family."""

import importlib
import logging

from comfy_api.latest import ComfyExtension

from ._missing import missing_node, sentence

logger = logging.getLogger("aiprod")

FAMILIES = (
    "loaders", "lora", "model", "text", "latents", "files", "encode", "conditioning", "guiders",
    "sampling", "upscale", "decode", "interop", "planning", "host_guider",
)  # fmt: skip


class AIPRODExtension(ComfyExtension):
    async def get_node_list(self) -> list[type]:
        """Every node of every family that loads, and one that says which families do not."""
        nodes, problems = [], []
        for family in FAMILIES:
            try:
                found = importlib.import_module(f".{family}", __package__).NODES
                for node in found:
                    node.GET_SCHEMA()  # the host would drop the rest of the pack if this raised
            except Exception as error:
                problems.append(sentence(family, error))
                logger.exception(problems[-1])  # the host names neither file nor line
            else:
                nodes += found
        return [*nodes, missing_node(problems)] if problems else nodes
