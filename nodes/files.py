"""Saving and loading clips and encoded prompts."""

from __future__ import annotations

from comfy_api.latest import io

from ..aiprod_engine.media.tensor_files import load_clip, load_context, save_clip, save_context
from . import _host as host
from . import _sockets as sockets
from ._schema import Node, make_input, make_schema

CLIPS, PROMPTS = "latents", "prompts"  # folders below the host's output folder


def _prefix(folder: str):
    return make_input(
        io.String.Input,
        "filename_prefix",
        default=f"{folder}/aiprod",
        tooltip="Below the output folder; a number is added.",
    )


def _saved_file(folder: str):
    return make_input(
        io.Combo.Input,
        "file",
        options=host.list_saved(folder),
        tooltip=f"Files below output/{folder} and input.",
    )


def _verdict(file: str | None) -> bool | str:
    return True if file is None else host.sentence(host.find_saved, file)


class SaveLatent(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODSaveLatent",
            display_name="Save Latent",
            category="AIPROD/latents",
            description="Keeps a sampled clip, so that decoding or another stage can follow later.",
            inputs=[sockets.Latent.Input("latent"), _prefix(CLIPS)],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, latent, filename_prefix) -> io.NodeOutput:
        path, ui = host.new_file(filename_prefix)
        save_clip(path, latent)
        return io.NodeOutput(ui=ui)


class LoadLatent(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODLoadLatent",
            display_name="Load Latent",
            category="AIPROD/latents",
            description="Loads a clip that Save Latent wrote.",
            inputs=[_saved_file(CLIPS)],
            outputs=[sockets.Latent.Output("latent", display_name="latent")],
        )

    @classmethod
    def validate_inputs(cls, file) -> bool | str:
        return _verdict(file)

    @classmethod
    def fingerprint_inputs(cls, file) -> tuple:
        return host.fingerprint_saved(file)

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        return io.NodeOutput(load_clip(host.find_saved(file)))


class SaveConditioning(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODSaveConditioning",
            display_name="Save Conditioning",
            category="AIPROD/text",
            description="Keeps an encoded prompt, so that the text encoder is not needed again.",
            inputs=[sockets.Conditioning.Input("conditioning"), _prefix(PROMPTS)],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, conditioning, filename_prefix) -> io.NodeOutput:
        path, ui = host.new_file(filename_prefix)
        save_context(path, conditioning)
        return io.NodeOutput(ui=ui)


class LoadConditioning(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODLoadConditioning",
            display_name="Load Conditioning",
            category="AIPROD/text",
            description="Loads an encoded prompt that Save Conditioning wrote.",
            inputs=[_saved_file(PROMPTS)],
            outputs=[sockets.Conditioning.Output("conditioning", display_name="conditioning")],
        )

    @classmethod
    def validate_inputs(cls, file) -> bool | str:
        return _verdict(file)

    @classmethod
    def fingerprint_inputs(cls, file) -> tuple:
        return host.fingerprint_saved(file)

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        return io.NodeOutput(load_context(host.find_saved(file)))


NODES = [SaveLatent, LoadLatent, SaveConditioning, LoadConditioning]
