"""Loader nodes: they identify files from their headers and hand out recipes; no weight is read."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io, ui

from ..aiprod_engine.errors import CheckpointError, EngineError, MismatchError
from ..aiprod_engine.weights import Info, check_fit, inspect
from ..aiprod_engine.weights.recipe import Recipe
from . import _host as host
from . import _sockets as sockets
from ._schema import Node, make_input, make_schema

CATEGORY = "AIPROD/loaders"
NONE = "none"

# loader -> folders in which its files may lie, most usual first
FOLDERS = {
    "checkpoint": ("checkpoints",),
    "transformer": ("diffusion_models", "checkpoints"),
    "encoder": ("text_encoders",),
    "connectors": ("text_encoders", "checkpoints"),
    "video_vae": ("vae", "checkpoints"),
    "audio_vae": ("vae", "checkpoints"),
    "upsampler": ("latent_upscale_models",),
}
EVERY_FOLDER = (
    "checkpoints", "diffusion_models", "text_encoders", "vae", "latent_upscale_models", "loras",
)  # fmt: skip
PARTS = {
    "checkpoint": (
        "transformer", "connectors", "text_projection", "video_vae", "audio_vae", "vocoder",
    ),
    "transformer": ("transformer",),
    "encoder": ("gemma3_12b",),
    "video_vae": ("video_vae",),
    "audio_vae": ("audio_vae", "vocoder"),
    "upsampler": (),
}  # fmt: skip
NAMES = {
    "checkpoint": "a complete LTX-2 checkpoint",
    "transformer": "an LTX-2 transformer",
    "encoder": "a Gemma 3 12B text encoder",
    "video_vae": "an LTX-2 video VAE",
    "audio_vae": "an LTX-2 audio VAE with vocoder",
    "upsampler": "an LTX-2 latent upsampler",
}
EXAMPLES = {
    "checkpoint": "ltx-2.3-22b-dev.safetensors",
    "transformer": "ltx-2.3-22b-dev_transformer_only_bf16.safetensors",
    "encoder": "gemma_3_12B_it.safetensors",
    "video_vae": "LTX23_video_vae_bf16.safetensors",
    "audio_vae": "LTX23_audio_vae_bf16.safetensors",
    "upsampler": "ltx-2.3-spatial-upscaler-x2-1.1.safetensors",
}


def locate(role: str, name: str) -> Path:
    """Full path of a file chosen in a loader; raises with the remedy if it is gone."""
    path = host.find_file(FOLDERS.get(role, EVERY_FOLDER), name)
    if path is None:
        folders = " or ".join(f"models/{folder}" for folder in FOLDERS.get(role, EVERY_FOLDER))
        raise CheckpointError(
            f"a chosen file must exist: {name!r} is not in {folders}; put it there and refresh, "
            "or choose another file"
        )
    # any file of a Hugging Face folder stands for the whole folder
    return path.parent if role == "encoder" and (path.parent / "config.json").is_file() else path


def identify(role: str, name: str) -> tuple[Path, Info]:
    """Path and header facts of a file that a loader may take; raises if it is something else."""
    path = locate(role, name)
    info = inspect(path)
    missing = [part for part in PARTS[role] if part not in info.components]
    if missing or (role == "upsampler" and info.kind != "latent_upsampler"):
        raise CheckpointError(
            f"{NAMES[role]} is needed; {name} is {describe(info)}: choose a file such as "
            f"{EXAMPLES[role]}"
        )
    return path, info


def describe(info: Info) -> str:
    """A file in a few words: kind, release, what is in it."""
    parts = f" ({', '.join(info.components)})" if info.components else ""
    return f"{info.kind.replace('_', ' ')} {info.version or ''}".strip() + parts


def verdict(role: str, name: str | None) -> bool | str:
    """What `validate_inputs` returns for a chosen file: True, or the sentence of the error."""
    if name is None:
        return True
    return host.sentence(identify, role, name)


def _files(role: str, tooltip: str, name: str | None = None):
    return make_input(
        io.Combo.Input, name or role, options=host.list_files(*FOLDERS[role]), tooltip=tooltip
    )


def _recipe(kind: str, *paths: Path) -> Recipe:
    return Recipe(kind, tuple(str(path) for path in paths), host.compute_dtype())


def _model(path: Path, info: Info) -> sockets.ModelPayload:
    return sockets.ModelPayload(_recipe("transformer", path), info)


def _text_parts(path: Path, info: Info) -> sockets.TextPartsPayload:
    return sockets.TextPartsPayload(_recipe("text_connector", path), (info,))


def _video_vae(path: Path, info: Info) -> sockets.VideoVAEPayload:
    return sockets.VideoVAEPayload(
        _recipe("video_encoder", path), _recipe("video_decoder", path), info
    )


def _audio_vae(path: Path, info: Info) -> sockets.AudioVAEPayload:
    recipes = (_recipe(kind, path) for kind in ("audio_encoder", "audio_decoder", "vocoder"))
    return sockets.AudioVAEPayload(*recipes, info)


class CheckpointLoader(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODCheckpointLoader",
            display_name="Checkpoint Loader",
            category=CATEGORY,
            description="Opens a complete LTX-2 file. Reads its header only; weights are loaded "
            "when a node needs them.",
            search_aliases=["LTX-2", "LTXV", "load checkpoint"],
            inputs=[_files("checkpoint", "A complete LTX-2 2.0 or 2.3 file.")],
            outputs=[
                sockets.Model.Output("model", display_name="model"),
                sockets.TextParts.Output("text_parts", display_name="text parts"),
                sockets.VideoVAE.Output("video_vae", display_name="video VAE"),
                sockets.AudioVAE.Output("audio_vae", display_name="audio VAE"),
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint) -> bool | str:
        return verdict("checkpoint", checkpoint)

    @classmethod
    def fingerprint_inputs(cls, checkpoint) -> tuple:
        return host.fingerprint(FOLDERS["checkpoint"], checkpoint)

    @classmethod
    def execute(cls, checkpoint) -> io.NodeOutput:
        found = identify("checkpoint", checkpoint)
        return io.NodeOutput(
            _model(*found), _text_parts(*found), _video_vae(*found), _audio_vae(*found)
        )


class TransformerLoader(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODTransformerLoader",
            display_name="Transformer Loader",
            category=CATEGORY,
            description="Opens a transformer-only file (or the transformer of a complete one).",
            search_aliases=["UNETLoader", "diffusion model", "GGUF"],
            inputs=[_files("transformer", "From models/diffusion_models or models/checkpoints.")],
            outputs=[
                sockets.Model.Output("model", display_name="model"),
                sockets.TextParts.Output(
                    "text_parts",
                    display_name="text parts",
                    tooltip="The text connectors that the file holds; a text projection can be "
                    "added in the Text Encoder Loader.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, transformer) -> bool | str:
        return verdict("transformer", transformer)

    @classmethod
    def fingerprint_inputs(cls, transformer) -> tuple:
        return host.fingerprint(FOLDERS["transformer"], transformer)

    @classmethod
    def execute(cls, transformer) -> io.NodeOutput:
        found = identify("transformer", transformer)
        return io.NodeOutput(_model(*found), _text_parts(*found))


class TextEncoderLoader(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        connectors = make_input(
            io.Combo.Input,
            "connectors",
            options=[NONE, *host.list_files(*FOLDERS["connectors"])],
            default=NONE,
            optional=True,
            tooltip="Only for split files: the text projection (and, for 2.0, connectors) that "
            "the transformer file lacks.",
        )
        return make_schema(
            node_id="AIPRODTextEncoderLoader",
            display_name="Text Encoder Loader",
            category=CATEGORY,
            description="Opens a Gemma file and checks that it belongs to the checkpoint.",
            search_aliases=["Gemma", "CLIP", "load text encoder"],
            inputs=[
                sockets.TextParts.Input(
                    "text_parts", tooltip="Projection and connectors, from the model's loader."
                ),
                _files(
                    "encoder",
                    "Gemma 3 12B: a single file, or any file of a Hugging Face folder (the whole "
                    "folder is used).",
                ),
                connectors,
            ],
            outputs=[sockets.TextEncoder.Output("text_encoder", display_name="text encoder")],
        )

    @classmethod
    def validate_inputs(cls, encoder, connectors=NONE) -> bool | str:
        if connectors not in (None, NONE) and not host.find_file(FOLDERS["connectors"], connectors):
            return f"connectors must be none or an existing file; {connectors!r} is not there"
        return verdict("encoder", encoder)

    @classmethod
    def fingerprint_inputs(cls, encoder, text_parts=None, connectors=NONE) -> tuple:
        extra = host.fingerprint(FOLDERS["connectors"], connectors)
        return host.fingerprint(FOLDERS["encoder"], encoder) + extra

    @classmethod
    def execute(cls, text_parts, encoder, connectors=NONE) -> io.NodeOutput:
        path, info = identify("encoder", encoder)
        parts = text_parts if connectors == NONE else _extended(text_parts, connectors)
        held = {component for part in parts.infos for component in part.components}
        for component in ("connectors", "text_projection"):
            if component not in held:
                raise MismatchError(
                    f"the text side needs {component.replace('_', ' ')}; the model's file holds "
                    f"none: choose the file that has them in connectors"
                )
        check_fit(*parts.infos, info)
        # Gemma keeps its stored dtype everywhere: a float32 copy of 12 B weights would not fit
        recipe = Recipe("text_encoder", (str(path),))
        return io.NodeOutput(sockets.TextEncoderPayload(recipe, parts))


def _extended(parts: sockets.TextPartsPayload, name: str) -> sockets.TextPartsPayload:
    path = locate("connectors", name)
    files = [Path(file) for file in parts.connector.files]
    return sockets.TextPartsPayload(
        _recipe("text_connector", *files, path), (*parts.infos, inspect(path))
    )


class VideoVAELoader(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODVideoVAELoader",
            display_name="Video VAE Loader",
            category=CATEGORY,
            description="Opens a video VAE, alone or out of a complete checkpoint.",
            inputs=[_files("video_vae", "From models/vae or models/checkpoints.", "vae_file")],
            outputs=[sockets.VideoVAE.Output("video_vae", display_name="video VAE")],
        )

    @classmethod
    def validate_inputs(cls, vae_file) -> bool | str:
        return verdict("video_vae", vae_file)

    @classmethod
    def fingerprint_inputs(cls, vae_file) -> tuple:
        return host.fingerprint(FOLDERS["video_vae"], vae_file)

    @classmethod
    def execute(cls, vae_file) -> io.NodeOutput:
        return io.NodeOutput(_video_vae(*identify("video_vae", vae_file)))


class AudioVAELoader(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODAudioVAELoader",
            display_name="Audio VAE Loader",
            category=CATEGORY,
            description="Opens an audio VAE with its vocoder, alone or out of a checkpoint.",
            inputs=[_files("audio_vae", "From models/vae or models/checkpoints.", "vae_file")],
            outputs=[sockets.AudioVAE.Output("audio_vae", display_name="audio VAE")],
        )

    @classmethod
    def validate_inputs(cls, vae_file) -> bool | str:
        return verdict("audio_vae", vae_file)

    @classmethod
    def fingerprint_inputs(cls, vae_file) -> tuple:
        return host.fingerprint(FOLDERS["audio_vae"], vae_file)

    @classmethod
    def execute(cls, vae_file) -> io.NodeOutput:
        return io.NodeOutput(_audio_vae(*identify("audio_vae", vae_file)))


class UpsamplerLoader(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODUpsamplerLoader",
            display_name="Upsampler Loader",
            category=CATEGORY,
            description="Opens a latent upsampler: spatial x2, spatial x1.5 or temporal x2.",
            search_aliases=["latent upscale model"],
            inputs=[_files("upsampler", "From models/latent_upscale_models.", "upsampler_file")],
            outputs=[sockets.Upsampler.Output("upsampler", display_name="upsampler")],
        )

    @classmethod
    def validate_inputs(cls, upsampler_file) -> bool | str:
        return verdict("upsampler", upsampler_file)

    @classmethod
    def fingerprint_inputs(cls, upsampler_file) -> tuple:
        return host.fingerprint(FOLDERS["upsampler"], upsampler_file)

    @classmethod
    def execute(cls, upsampler_file) -> io.NodeOutput:
        path, info = identify("upsampler", upsampler_file)
        return io.NodeOutput(sockets.UpsamplerPayload(_recipe("upsampler", path), info))


class InspectFile(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        files = host.list_files(*EVERY_FOLDER)
        return make_schema(
            node_id="AIPRODInspectFile",
            display_name="Inspect File",
            category=CATEGORY,
            description="Says what a file is and whether it fits another one, from headers alone.",
            search_aliases=["what is this file", "model info"],
            inputs=[
                make_input(io.Combo.Input, "file", options=files, tooltip="The file to look at."),
                make_input(
                    io.Combo.Input,
                    "fits_with",
                    options=[NONE, *files],
                    default=NONE,
                    optional=True,
                    tooltip="A second file that should work together with the first.",
                ),
            ],
            outputs=[io.String.Output("text", display_name="text")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, file, fits_with=NONE) -> bool | str:
        for name in (file, fits_with):
            if name not in (None, NONE) and host.find_file(EVERY_FOLDER, name) is None:
                return f"a chosen file must exist: {name!r} is in none of the model folders"
        return True

    @classmethod
    def fingerprint_inputs(cls, file, fits_with=NONE) -> tuple:
        return host.fingerprint(EVERY_FOLDER, file) + host.fingerprint(EVERY_FOLDER, fits_with)

    @classmethod
    def execute(cls, file, fits_with=NONE) -> io.NodeOutput:
        text = _summary(file) if fits_with == NONE else _fit(file, fits_with)
        return io.NodeOutput(text, ui=ui.PreviewText(text))


def _summary(name: str) -> str:
    try:
        return inspect(locate("", name)).summary()
    except EngineError as error:
        return str(error)


def _fit(first: str, second: str) -> str:
    text = f"{_summary(first)}\n\n{_summary(second)}\n\n"
    try:
        check_fit(*(inspect(locate("", name)) for name in (first, second)))
    except EngineError as error:
        return f"{text}{error}"
    return f"{text}Nothing speaks against using these two files together."


NODES = [
    CheckpointLoader, TransformerLoader, TextEncoderLoader, VideoVAELoader, AudioVAELoader,
    UpsamplerLoader, InspectFile,
]  # fmt: skip
