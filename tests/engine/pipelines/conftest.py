"""Runs of the recorded pipelines: tiny checkpoints, injected noise, everything that was told."""

import json
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
from goldens import ROOT
from safetensors.torch import save_file

from aiprod_engine.memory.placed import Placed
from aiprod_engine.memory.residency import Residency
from aiprod_engine.models.upsampler import Upsampler, UpsamplerConfig
from aiprod_engine.pipelines.networks import Networks
from aiprod_engine.pipelines.run import Run, Settings
from aiprod_engine.pipelines.stage import Noise
from aiprod_engine.sampling.denoise import Contexts
from aiprod_engine.sampling.guidance import Guidance
from aiprod_engine.types import AVLatent, Streams
from aiprod_engine.weights import load

CHECKPOINTS, PIPELINES = ROOT / "checkpoints", ROOT / "pipelines"


class RecordedNoise:
    """The draws of a fixture; asking for another one, or in another order, fails."""

    def __init__(self, case):
        self.draws = list(case.call["noise"])
        self.tensors = case.group("in.noise.")

    def __call__(self, shape, stream, purpose):
        name = self.draws.pop(0)
        assert name.endswith(f"{stream}.{purpose}")
        assert tuple(self.tensors[name].shape) == tuple(shape)
        return self.tensors[name]


@dataclass
class Recorder:
    """What a run told, by event."""

    events: dict = field(default_factory=dict)

    def tell(self, event, value):
        self.events[event] = value


loaded = cache(load)


class CountingNetworks(Networks):
    """Networks that stay for all tests and count the transformer's evaluations, use by use."""

    @contextmanager
    def place(self, need, *recipes):
        networks = [self.kept(recipe) for recipe in recipes]
        placed = Placed(need, [Residency(network) for network in networks])
        if recipes[0].kind != "transformer":
            yield placed
            return
        calls = []
        hook = networks[0].register_forward_hook(lambda *_: calls.append(1))
        yield placed
        hook.remove()
        self.evaluations.append(len(calls))

    def kept(self, recipe):
        loras = tuple((use.path, use.video) for use in recipe.loras)
        return loaded(recipe.kind, recipe.files, "cpu", torch.float32, loras, recipe.modalities)


def file_of(name):
    return CHECKPOINTS / name if (CHECKPOINTS / name).exists() else PIPELINES / name


def contexts_of(case):
    def side(which):
        tensors = case.group(f"in.context.{which}.")
        return Streams(tensors.get("video"), tensors.get("audio")) if tensors else None

    return Contexts(side("positive"), side("negative"))


def guidance_of(call):
    names = {
        "cfg_scale": "cfg", "stg_scale": "stg", "stg_blocks": "stg_blocks",
        "rescale_scale": "rescale", "modality_scale": "modality", "skip_step": "skip_step",
    }  # fmt: skip

    def one(key):
        given = {names[k]: v for k, v in call.get(key, {}).items()}
        if "stg_blocks" in given:
            given["stg_blocks"] = tuple(given["stg_blocks"])
        return Guidance(**given)

    if "steps" not in call:
        return None
    return Streams(one("video_guidance"), one("audio_guidance"))


@dataclass
class Recorded:
    """One fixture as the arguments of a pipeline function."""

    case: object
    networks: Networks
    recorder: Recorder

    @property
    def call(self):
        return self.case.call

    def run(self, noise=None):
        return Run(self.networks, self.call["seed"], noise, self.recorder.tell)

    @property
    def injected(self):
        return Noise.injected(RecordedNoise(self.case))

    @property
    def clip(self):
        c = self.call
        return AVLatent(None, None, c["frames"], c["height"], c["width"], c["fps"])

    @property
    def contexts(self):
        return contexts_of(self.case)

    def lora(self, stage):
        found = self.call["loras_by_stage"][stage]
        return tuple((file_of(name), strength) for name, strength in found)

    def settings(self, **fields):
        """Settings of stage 1; a run without `steps` takes the recorded table."""
        given = {"guidance": guidance_of(self.call), "loras": self.lora(0)}
        if "steps" in self.call:
            given["steps"] = self.call["steps"]
        else:
            given["sigmas"] = self.case.outputs["stage1.sigmas"]
        return Settings(**given | fields)


@pytest.fixture
def recorded():
    def make(case):
        call = case.call
        upsampler = file_of(call["upsampler"]) if "upsampler" in call else None
        networks = CountingNetworks.of(
            file_of(call["checkpoint"]), upsampler=upsampler, dtype=torch.float32
        )
        object.__setattr__(networks, "evaluations", [])
        return Recorded(case, networks, Recorder())

    return make


@pytest.fixture(scope="session")
def tiny():
    """Networks of the tiny 2.3 checkpoint in float32."""
    return Networks.of(file_of("ltx2_23_tiny.safetensors"), dtype=torch.float32)


@pytest.fixture(scope="session")
def transformer(tiny):
    return load("transformer", tiny.files["transformer"], dtype=torch.float32)


@pytest.fixture(scope="session")
def contexts():
    """A positive and a negative context for the tiny 2.3 transformer."""
    generator = torch.Generator().manual_seed(3)

    def side():
        return Streams(*(torch.randn(1, 6, width, generator=generator) for width in (32, 16)))

    return Contexts(side(), side())


@pytest.fixture(scope="session")
def small():
    """A clip of 9 frames, 64 x 96."""
    return AVLatent(None, None, 9, 64, 96, 24.0)


@pytest.fixture(scope="session")
def write_upsampler():
    """A function that writes a latent upsampler with random weights in the published layout."""

    def write(path, channels, temporal=False):
        section = {
            "_class_name": "LatentUpsampler", "in_channels": channels, "mid_channels": 32,
            "num_blocks_per_stage": 1, "dims": 3, "spatial_upsample": not temporal,
            "temporal_upsample": temporal, "spatial_scale": 2.0, "rational_resampler": False,
        }  # fmt: skip
        torch.manual_seed(0)
        network = Upsampler(UpsamplerConfig.from_metadata(section))
        tensors = {key: value.bfloat16() for key, value in network.state_dict().items()}
        save_file(tensors, path, {"config": json.dumps(section)})
        return path

    return write
