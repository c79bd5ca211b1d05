"""Says which families of nodes could not be loaded, where the user looks: log, node list, page."""

from __future__ import annotations

from comfy_api.latest import io

OLDEST_HOST = "0.3.75"
NODE_ID = "AIPRODMissingNodes"
# module -> package, of everything that `pyproject.toml` asks for
PACKAGES = {
    "safetensors": "safetensors", "numpy": "numpy", "PIL": "Pillow", "av": "av",
    "tokenizers": "tokenizers", "sentencepiece": "sentencepiece",
}  # fmt: skip


def sentence(family: str, error: Exception) -> str:
    """Family, exception and remedy in one sentence."""
    cause = f"{type(error).__name__}: {error}".replace("\n", " ").rstrip(".")
    return f"AIPROD: the nodes of family {family} could not be loaded ({cause}); {_remedy(error)}"


def _remedy(error: Exception) -> str:
    package = PACKAGES.get((getattr(error, "name", None) or "").partition(".")[0])
    if isinstance(error, ModuleNotFoundError) and package:
        return f"run `python -m pip install {package}` with ComfyUI's Python, then restart ComfyUI"
    return (
        f"update AIPROD, and ComfyUI to {OLDEST_HOST} or newer, then restart; if that does not "
        "help, report it with the lines of the log around this one"
    )


def missing_node(sentences: list[str]) -> type[io.ComfyNode]:
    """A node that exists only while others do not: its description is the reason.

    The page shows the description of a node of this id as a message. It is written without the
    rest of this package, which may be what does not load. There are no stand-ins under the ids of
    the missing nodes: a page keeps the values of an unknown node, those of a stand-in it drops.
    """

    class MissingNodes(io.ComfyNode):
        @classmethod
        def define_schema(cls) -> io.Schema:
            return io.Schema(
                node_id=NODE_ID,
                display_name="AIPROD: nodes are missing",
                category="AIPROD",
                description="\n".join(sentences),
                inputs=[],
                outputs=[],
                is_output_node=True,
            )

        @classmethod
        def execute(cls) -> io.NodeOutput:
            raise RuntimeError("\n".join(sentences))

    return MissingNodes
