"""ComfyUI entry point. Importing this package needs neither the host nor torch."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    from .nodes import AIPRODExtension  # lazy: pytest and tools import this package without a host

    return AIPRODExtension()
