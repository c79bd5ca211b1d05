"""Loader nodes: they identify files from their headers and hand out recipes; no weight is read."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io

from ..aiprod_engine.errors import CheckpointError, EngineError, MismatchError
from ..aiprod_engine.weights import Info, check_fit, inspect
from ..aiprod_engine.weights.recipe import Recipe
from . import _host as host
from . import _sockets as sockets
from ._schema import make_input, make_schema

CATEGORY = "AIPROD/loaders"
MONOLITH = ("transformer", "connectors", "text_projection", "video_vae", "audio_vae", "vocoder")


def locate(folder: str, name: str) -> Path:
    """Full path of a file chosen in a loader; raises with the remedy if it is gone."""
    path = host.find_file(folder, name)
    if path is None:
        raise CheckpointError(
            f"the file must exist: {name!r} is not in the folder models/{folder}; "
            "put it there and refresh, or choose another file"
        )
    return path


def inspect_checkpoint(name: str) -> Info:
    """Header facts of a monolithic LTX-2 checkpoint; raises if the file is anything else."""
    info = inspect(locate("checkpoints", name))
    missing = [part for part in MONOLITH if part not in info.components]
    if info.kind != "checkpoint" or missing:
        raise CheckpointError(
            f"Checkpoint Loader needs a complete LTX-2 checkpoint; {name} is {info.kind} "
            + (f"without {', '.join(missing)}" if info.kind == "checkpoint" else "")
            + ": choose a file such as ltx-2.3-22b-dev.safetensors"
        )
    return info


def verdict(check, *args) -> bool | str:
    """What `validate_inputs` returns: True, or the sentence of the error that `check` raised."""
    try:
        check(*args)
    except EngineError as error:
        return str(error)
    return True


class CheckpointLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODCheckpointLoader",
            display_name="Checkpoint Loader",
            category=CATEGORY,
            description="Opens a complete LTX-2 file. Reads its header only; weights are loaded "
            "when a node needs them.",
            search_aliases=["LTX-2", "LTXV", "load checkpoint"],
            inputs=[
                make_input(
                    io.Combo.Input,
                    "checkpoint",
                    options=host.list_files("checkpoints"),
                    tooltip="A complete LTX-2 2.0 or 2.3 file from models/checkpoints.",
                )
            ],
            outputs=[
                sockets.Model.Output("model", display_name="model"),
                sockets.TextParts.Output("text_parts", display_name="text parts"),
                sockets.VideoVAE.Output("video_vae", display_name="video VAE"),
                sockets.AudioVAE.Output("audio_vae", display_name="audio VAE"),
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint) -> bool | str:
        return True if checkpoint is None else verdict(inspect_checkpoint, checkpoint)

    @classmethod
    def fingerprint_inputs(cls, checkpoint) -> tuple:
        return host.fingerprint("checkpoints", checkpoint)

    @classmethod
    def execute(cls, checkpoint) -> io.NodeOutput:
        info = inspect_checkpoint(checkpoint)
        files = (str(locate("checkpoints", checkpoint)),)
        dtype = host.compute_dtype()

        def part(kind: str) -> Recipe:
            return Recipe(kind, files, dtype)

        return io.NodeOutput(
            sockets.ModelPayload(part("transformer"), info),
            sockets.TextPartsPayload(part("text_connector"), (info,)),
            sockets.VideoVAEPayload(part("video_encoder"), part("video_decoder"), info),
            sockets.AudioVAEPayload(
                part("audio_encoder"), part("audio_decoder"), part("vocoder"), info
            ),
        )


class TextEncoderLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODTextEncoderLoader",
            display_name="Text Encoder Loader",
            category=CATEGORY,
            description="Opens a Gemma file and checks that it belongs to the checkpoint.",
            search_aliases=["Gemma", "CLIP", "load text encoder"],
            inputs=[
                sockets.TextParts.Input(
                    "text_parts", tooltip="From the Checkpoint Loader: projection and connectors."
                ),
                make_input(
                    io.Combo.Input,
                    "encoder",
                    options=host.list_files("text_encoders"),
                    tooltip="Gemma 3 12B from models/text_encoders: a single file, or any file of "
                    "a Hugging Face folder (the whole folder is used).",
                ),
            ],
            outputs=[sockets.TextEncoder.Output("text_encoder", display_name="text encoder")],
        )

    @classmethod
    def validate_inputs(cls, encoder) -> bool | str:
        return True if encoder is None else verdict(inspect_encoder, encoder)

    @classmethod
    def fingerprint_inputs(cls, encoder, text_parts=None) -> tuple:
        return host.fingerprint("text_encoders", encoder)

    @classmethod
    def execute(cls, text_parts, encoder) -> io.NodeOutput:
        files, info = inspect_encoder(encoder)
        check_fit(*text_parts.infos, info)
        # Gemma keeps its stored dtype everywhere: a float32 copy of 12 B weights would not fit
        recipe = Recipe("text_encoder", files)
        return io.NodeOutput(sockets.TextEncoderPayload(recipe, text_parts))


def inspect_encoder(name: str) -> tuple[tuple[str, ...], Info]:
    """Files of a text encoder (a chosen shard stands for its folder) and their header facts."""
    path = locate("text_encoders", name)
    if (path.parent / "config.json").is_file():
        path = path.parent
    info = inspect(path)
    if info.kind != "text_encoder":
        raise MismatchError(
            f"Text Encoder Loader needs a Gemma 3 12B file; {name} is {info.kind}: choose a file "
            "such as gemma_3_12B_it.safetensors from models/text_encoders"
        )
    return (str(path),), info


NODES = [CheckpointLoader, TextEncoderLoader]
