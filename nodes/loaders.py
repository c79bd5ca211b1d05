"""Loader nodes: they identify files from their headers and hand out recipes; no weight is read."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from comfy_api.latest import io, ui

from ..aiprod_engine.errors import CheckpointError, EngineError, MismatchError
from ..aiprod_engine.weights import Info, check_fit, inspect
from ..aiprod_engine.weights.recipe import Recipe
from . import _host as host
from . import _sockets as sockets
from ._menus import FOLDERS as EVERY_FOLDER
from ._menus import MENUS
from ._schema import Node, make_input, make_schema

CATEGORY = "AIPROD/loaders"
NONE = "none"

# loader -> folders in which its files usually lie; they may lie in any model folder
FOLDERS = {
    "checkpoint": ("checkpoints",),
    "transformer": ("diffusion_models", "checkpoints"),
    "encoder": ("text_encoders",),
    "connectors": ("text_encoders", "checkpoints"),
    "video_vae": ("vae", "checkpoints"),
    "audio_vae": ("vae", "checkpoints"),
    "upsampler": ("latent_upscale_models",),
}
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


def places(role: str) -> tuple[str, ...]:
    """Folders in which a loader looks for its file, the usual ones first."""
    return (*FOLDERS.get(role, ()), *EVERY_FOLDER)


def locate(role: str, name: str) -> Path:
    """Full path of a file chosen in a loader; raises with the remedy if it is gone."""
    path = host.find_file(places(role), name)
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
    if not fits(role, info):
        raise CheckpointError(
            f"{NAMES[role]} is needed; {name} is {describe(info)}: choose a file such as "
            f"{EXAMPLES[role]}"
        )
    return path, info


def fits(role: str, info: Info) -> bool:
    """Whether a file is what a loader is for."""
    if role == "upsampler":
        return info.kind == "latent_upsampler"
    return set(PARTS[role]) <= set(info.components)


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
    options = MENUS.names(FOLDERS[role], partial(fits, role))
    return make_input(io.Combo.Input, name or role, options=options, tooltip=tooltip)


def _value_check():
    return make_input(
        io.Boolean.Input,
        "check_values",
        default=True,
        optional=True,
        advanced=True,
        tooltip="When weights are loaded, look at some values of every tensor and stop if no "
        "training can have produced them: a damaged file, scales that are missing. Off: use them "
        "as they are.",
    )


def _recipe(kind: str, path: Path, check_values: bool) -> Recipe:
    return Recipe(kind, (str(path),), host.compute_dtype(), check_values=check_values)


def _model(path: Path, info: Info, check: bool) -> sockets.ModelPayload:
    return sockets.ModelPayload(_recipe("transformer", path, check), info)


def _text_parts(path: Path, info: Info, check: bool) -> sockets.TextPartsPayload:
    return sockets.TextPartsPayload(_recipe("text_connector", path, check), (info,))


def _video_vae(path: Path, info: Info, check: bool) -> sockets.VideoVAEPayload:
    recipes = (_recipe(kind, path, check) for kind in ("video_encoder", "video_decoder"))
    return sockets.VideoVAEPayload(*recipes, info)


def _audio_vae(path: Path, info: Info, check: bool) -> sockets.AudioVAEPayload:
    kinds = ("audio_encoder", "audio_decoder", "vocoder")
    return sockets.AudioVAEPayload(*(_recipe(kind, path, check) for kind in kinds), info)


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
            inputs=[_files("checkpoint", "A complete LTX-2 2.0 or 2.3 file."), _value_check()],
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
    def fingerprint_inputs(cls, checkpoint, **_) -> tuple:
        return host.fingerprint(places("checkpoint"), checkpoint)

    @classmethod
    def execute(cls, checkpoint, check_values=True) -> io.NodeOutput:
        found = (*identify("checkpoint", checkpoint), check_values)
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
            inputs=[
                _files("transformer", "From models/diffusion_models or models/checkpoints."),
                _value_check(),
            ],
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
    def fingerprint_inputs(cls, transformer, **_) -> tuple:
        return host.fingerprint(places("transformer"), transformer)

    @classmethod
    def execute(cls, transformer, check_values=True) -> io.NodeOutput:
        found = (*identify("transformer", transformer), check_values)
        return io.NodeOutput(_model(*found), _text_parts(*found))


class TextEncoderLoader(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        connectors = make_input(
            io.Combo.Input,
            "connectors",
            options=[NONE, *MENUS.names(FOLDERS["connectors"], _has_text_parts)],
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
                _value_check(),
            ],
            outputs=[sockets.TextEncoder.Output("text_encoder", display_name="text encoder")],
        )

    @classmethod
    def validate_inputs(cls, encoder, connectors=NONE) -> bool | str:
        if connectors not in (None, NONE) and not host.find_file(EVERY_FOLDER, connectors):
            return f"connectors must be none or an existing file; {connectors!r} is not there"
        return verdict("encoder", encoder)

    @classmethod
    def fingerprint_inputs(cls, encoder, connectors=NONE, **_) -> tuple:
        extra = host.fingerprint(places("connectors"), connectors)
        return host.fingerprint(places("encoder"), encoder) + extra

    @classmethod
    def execute(cls, text_parts, encoder, connectors=NONE, check_values=True) -> io.NodeOutput:
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
        recipe = Recipe("text_encoder", (str(path),), check_values=check_values)
        return io.NodeOutput(sockets.TextEncoderPayload(recipe, parts))


def _has_text_parts(info: Info) -> bool:
    return not {"connectors", "text_projection"}.isdisjoint(info.components)


def _extended(parts: sockets.TextPartsPayload, name: str) -> sockets.TextPartsPayload:
    path = locate("connectors", name)
    connector = replace(parts.connector, files=(*parts.connector.files, str(path)))
    return sockets.TextPartsPayload(connector, (*parts.infos, inspect(path)))


class VideoVAELoader(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODVideoVAELoader",
            display_name="Video VAE Loader",
            category=CATEGORY,
            description="Opens a video VAE, alone or out of a complete checkpoint.",
            inputs=[
                _files("video_vae", "From models/vae or models/checkpoints.", "vae_file"),
                _value_check(),
            ],
            outputs=[sockets.VideoVAE.Output("video_vae", display_name="video VAE")],
        )

    @classmethod
    def validate_inputs(cls, vae_file) -> bool | str:
        return verdict("video_vae", vae_file)

    @classmethod
    def fingerprint_inputs(cls, vae_file, **_) -> tuple:
        return host.fingerprint(places("video_vae"), vae_file)

    @classmethod
    def execute(cls, vae_file, check_values=True) -> io.NodeOutput:
        return io.NodeOutput(_video_vae(*identify("video_vae", vae_file), check_values))


class AudioVAELoader(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODAudioVAELoader",
            display_name="Audio VAE Loader",
            category=CATEGORY,
            description="Opens an audio VAE with its vocoder, alone or out of a checkpoint.",
            inputs=[
                _files("audio_vae", "From models/vae or models/checkpoints.", "vae_file"),
                _value_check(),
            ],
            outputs=[sockets.AudioVAE.Output("audio_vae", display_name="audio VAE")],
        )

    @classmethod
    def validate_inputs(cls, vae_file) -> bool | str:
        return verdict("audio_vae", vae_file)

    @classmethod
    def fingerprint_inputs(cls, vae_file, **_) -> tuple:
        return host.fingerprint(places("audio_vae"), vae_file)

    @classmethod
    def execute(cls, vae_file, check_values=True) -> io.NodeOutput:
        return io.NodeOutput(_audio_vae(*identify("audio_vae", vae_file), check_values))


class UpsamplerLoader(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODUpsamplerLoader",
            display_name="Upsampler Loader",
            category=CATEGORY,
            description="Opens a latent upsampler: spatial x2, spatial x1.5 or temporal x2.",
            search_aliases=["latent upscale model"],
            inputs=[
                _files("upsampler", "From models/latent_upscale_models.", "upsampler_file"),
                _value_check(),
            ],
            outputs=[sockets.Upsampler.Output("upsampler", display_name="upsampler")],
        )

    @classmethod
    def validate_inputs(cls, upsampler_file) -> bool | str:
        return verdict("upsampler", upsampler_file)

    @classmethod
    def fingerprint_inputs(cls, upsampler_file, **_) -> tuple:
        return host.fingerprint(places("upsampler"), upsampler_file)

    @classmethod
    def execute(cls, upsampler_file, check_values=True) -> io.NodeOutput:
        path, info = identify("upsampler", upsampler_file)
        recipe = _recipe("upsampler", path, check_values)
        return io.NodeOutput(sockets.UpsamplerPayload(recipe, info))


class InspectFile(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        files = MENUS.names(EVERY_FOLDER)
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
