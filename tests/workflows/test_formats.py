"""One workflow with every format in which users have the transformer, on a real host."""

import json

import gguf
import numpy as np
import pytest
import torch
from checkpoint_files import P, read, write
from host_client import PromptFailed
from shipped import small
from tiny_checkpoint import FILES

from aiprod_engine.media.tensor_files import load_clip
from aiprod_engine.weights.quant import fp8

pytestmark = pytest.mark.host

VERSION = "2.3"
Q8 = gguf.GGMLQuantizationType.Q8_0


def transformer_tensors(models):
    """Tensors below the transformer's prefix, and the metadata, of the tiny checkpoint."""
    tensors, metadata = read(models / "checkpoints" / FILES[VERSION]["dev"])
    return {key: t for key, t in tensors.items() if key.startswith(P)}, metadata


def is_target(key: str) -> bool:
    return fp8.is_storage_target(key.removeprefix(P).removesuffix(".weight"))


def as_fp8_cast(tensors, metadata):
    cast = {k: fp8.cast(t) if k.endswith(".weight") and is_target(k) else t
            for k, t in tensors.items()}  # fmt: skip
    return cast, metadata


def as_fp8_scaled(tensors, metadata):
    made, layers = {}, {}
    for key, tensor in tensors.items():
        if key.endswith(".weight") and is_target(key):
            layer = key.removesuffix(".weight")
            made[key], made[f"{layer}.weight_scale"] = fp8.quantize(tensor.float())
            layers[layer] = {"format": "float8_e4m3fn"}
        else:
            made[key] = tensor
    record = json.dumps({"format_version": "1.0", "layers": layers})
    return made, metadata | {"_quantization_metadata": record}


def write_gguf(path, tensors, metadata):
    """Q8_0 where rows are long enough, F32 for the rest; names are bare, as published."""
    writer = gguf.GGUFWriter(path, "ltxv")
    for key in ("config", "model_version"):
        writer.add_string(key, metadata[key])
    for key, tensor in tensors.items():
        values, name = tensor.float().numpy(), key.removeprefix(P)
        if key.endswith(".weight") and is_target(key) and values.shape[-1] % 32 == 0:
            writer.add_tensor(name, gguf.quants.quantize(values, Q8), raw_dtype=Q8)
        else:
            writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def formats(models):
    """Format -> file name in models/diffusion_models."""
    folder = models / "diffusion_models"
    tensors, metadata = transformer_tensors(models)
    write(folder / "tiny_bf16.safetensors", tensors, metadata)
    write(folder / "tiny_fp8_cast.safetensors", *as_fp8_cast(tensors, metadata))
    write(folder / "tiny_fp8_scaled.safetensors", *as_fp8_scaled(tensors, metadata))
    write_gguf(folder / "tiny_q8.gguf", tensors, metadata)
    bare, _ = as_fp8_scaled(tensors, metadata)
    broken = {k: t for k, t in bare.items() if not k.endswith(".0.attn1.to_q.weight_scale")}
    write(folder / "tiny_lost_scale.safetensors", broken, metadata)
    return {
        "bf16": "tiny_bf16.safetensors", "fp8 cast": "tiny_fp8_cast.safetensors",
        "fp8 scaled": "tiny_fp8_scaled.safetensors", "gguf": "tiny_q8.gguf",
    }  # fmt: skip


def sampled(client, running_host, file: str, lora: str | None = "control_lora"):
    """The clip that text_to_video samples with another transformer file and a LoRA stack."""
    prompt = small("text_to_video", VERSION)
    (sampler,) = [k for k, n in prompt.items() if n["class_type"] == "AIPRODSampler"]
    keep = {k: n for k, n in prompt.items() if not n["class_type"].startswith(("Create", "Save"))}
    keep["90"] = {"class_type": "AIPRODTransformerLoader", "inputs": {"transformer": file}}
    model = ["90", 0]
    for key, strength in (("91", 0.7), ("92", -0.2)) if lora else ():
        inputs = {"model": model, "lora": FILES[VERSION][lora], "strength": strength}
        keep[key] = {"class_type": "AIPRODLoRA", "inputs": inputs}
        model = [key, 0]
    keep[sampler]["inputs"]["model"] = model
    keep["93"] = {
        "class_type": "AIPRODSaveLatent",
        "inputs": {"latent": [sampler, 0], "filename_prefix": "latents/format"},
    }
    outcome = client.run(keep)
    (saved,) = outcome.outputs["93"]["files"]
    return load_clip(running_host.base / "output" / saved["subfolder"] / saved["filename"])


@pytest.fixture(scope="module")
def exact(client, running_host, formats):
    return sampled(client, running_host, formats["bf16"])


@pytest.mark.parametrize("name", ["fp8 cast", "fp8 scaled", "gguf"])
def test_every_format_gives_nearly_the_same_clip(name, client, running_host, formats, exact):
    clip = sampled(client, running_host, formats[name])
    for stream in ("video", "audio"):
        found, wanted = getattr(clip, stream), getattr(exact, stream)
        assert torch.isfinite(found).all()
        distance = (found - wanted).pow(2).mean().sqrt() / wanted.pow(2).mean().sqrt()
        # weights move by 0.4 % (Q8_0) to 3 % (fp8); guidance 7 over three steps multiplies it
        assert 0 < distance < 0.5, f"{name} {stream}: {distance:.3f}"


def test_a_stack_of_loras_changes_the_clip(client, running_host, formats, exact):
    plain = sampled(client, running_host, formats["bf16"], lora=None)
    assert not torch.equal(plain.video, exact.video)


def test_a_lora_of_another_release_is_refused_before_sampling(client, running_host, formats):
    prompt = small("text_to_video_hq", VERSION)
    for node in prompt.values():
        if node["class_type"] == "AIPRODLoRA":
            node["inputs"]["lora"] = FILES["2.0"]["distilled_lora"]
    messages = []
    with pytest.raises(PromptFailed, match="this LoRA targets"):
        client.run(prompt, messages.append)
    begun = {m["data"]["node"] for m in messages if m["type"] == "executing"}
    samplers = {k for k, n in prompt.items() if n["class_type"] == "AIPRODSampler"}
    assert not begun & samplers


def test_a_lost_scale_is_named_before_anything_runs(client, running_host, formats):
    from host_client import PromptRejected

    with pytest.raises(PromptRejected) as caught:
        sampled(client, running_host, "tiny_lost_scale.safetensors")
    assert "scale" in str(caught.value.body)
