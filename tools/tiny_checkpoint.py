"""Writes tiny LTX-2 files in the published formats, from a seed, in seconds.

Key names, prefixes, metadata and architectures are the published ones; only widths and depths are
small and the weights random. The loaders cannot tell such a file from a real one except by size.

    python tools/tiny_checkpoint.py FOLDER [--version 2.0|2.3] [--seed N]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # appended: the host owns a module called `nodes`

from tiny_gemma import write_gemma  # noqa: E402

from aiprod_engine.models.audio_vae import (  # noqa: E402
    AudioDecoder,
    AudioEncoder,
    AudioVAEConfig,
    VocoderConfig,
    vocoder_for,
)
from aiprod_engine.models.diffusion_vae import (  # noqa: E402
    DiffusionDecoder,
    DiffusionDecoderConfig,
)
from aiprod_engine.models.text.connector import TextConnector, TextConnectorConfig  # noqa: E402
from aiprod_engine.models.transformer import Transformer, TransformerConfig  # noqa: E402
from aiprod_engine.models.upsampler import Upsampler, UpsamplerConfig  # noqa: E402
from aiprod_engine.models.video_vae import VideoDecoder, VideoEncoder, VideoVAEConfig  # noqa: E402

FILES = {
    "2.0": {
        "dev": "ltx-2-19b-dev.safetensors",
        "distilled": "ltx-2-19b-distilled.safetensors",
        "upsampler": "ltx-2-spatial-upscaler-x2-1.0.safetensors",
        "distilled_lora": "ltx-2-19b-distilled-lora-384.safetensors",
        "control_lora": "ltx-2-19b-ic-lora-union-ref0.5.safetensors",
        "dub_lora": "ltx-2-19b-ic-lora-detailer.safetensors",
    },
    "2.3": {
        "dev": "ltx-2.3-22b-dev.safetensors",
        "distilled": "ltx-2.3-22b-distilled.safetensors",
        "upsampler": "ltx-2.3-spatial-upscaler-x2-1.1.safetensors",
        "distilled_lora": "ltx-2.3-22b-distilled-lora-384-1.1.safetensors",
        "control_lora": "ltx-2.3-22b-ic-lora-union-control-ref0.5.safetensors",
        "dub_lora": "ltx-2.3-22b-ic-lora-lipdub-0.9.safetensors",
    },
}
LORAS = {
    "distilled_lora": {},
    "control_lora": {"reference_downscale_factor": "2"},
    "dub_lora": {"reference_downscale_factor": "1"},
}  # kind -> metadata
LATENT_CHANNELS = 16
AUDIO_CHANNELS = 2
GEMMA_WIDTH, GEMMA_STATES = 32, 8  # must equal tools/tiny_gemma.py: width, layers + 1
HEADS, HEAD_DIM, AUDIO_HEAD_DIM = 4, 16, 8

TRANSFORMER = {
    "_class_name": "AVTransformer3DModel", "activation_fn": "gelu-approximate",
    "attention_bias": True, "attention_head_dim": HEAD_DIM, "attention_type": "default",
    "audio_attention_head_dim": AUDIO_HEAD_DIM, "audio_num_attention_heads": HEADS,
    "audio_cross_attention_dim": HEADS * AUDIO_HEAD_DIM,
    "audio_in_channels": AUDIO_CHANNELS * 16, "audio_out_channels": AUDIO_CHANNELS * 16,
    "audio_positional_embedding_max_pos": [20], "av_ca_timestep_scale_multiplier": 1000.0,
    "av_cross_ada_norm": True, "caption_channels": GEMMA_WIDTH, "causal_temporal_positioning": True,
    "connector_attention_head_dim": 8, "connector_norm_output": True,
    "connector_num_attention_heads": 4, "connector_num_layers": 2,
    "connector_num_learnable_registers": 128, "connector_positional_embedding_max_pos": [4096],
    "cross_attention_dim": HEADS * HEAD_DIM, "cross_attention_norm": True,
    "double_self_attention": False, "dropout": 0.0, "frequencies_precision": "float64",
    "in_channels": LATENT_CHANNELS, "norm_elementwise_affine": False, "norm_eps": 1e-06,
    "norm_num_groups": 32, "num_attention_heads": HEADS, "num_embeds_ada_norm": 1000,
    "num_layers": 3, "num_vector_embeds": None, "only_cross_attention": False,
    "out_channels": LATENT_CHANNELS, "positional_embedding_max_pos": [20, 2048, 2048],
    "positional_embedding_theta": 10000.0, "positional_embedding_type": "rope",
    "qk_norm": "rms_norm", "rope_type": "split", "share_ff": False,
    "standardization_norm": "rms_norm", "timestep_scale_multiplier": 1000,
    "upcast_attention": False, "use_audio_video_cross_attention": True,
    "use_embeddings_connector": True, "use_linear_projection": False,
    "use_middle_indices_grid": True,
}  # fmt: skip
TRANSFORMER_23 = {
    "apply_gated_attention": True, "connector_apply_gated_attention": True,
    "connector_num_attention_heads": 4, "connector_attention_head_dim": HEAD_DIM,
    "connector_num_layers": 3, "audio_connector_attention_head_dim": AUDIO_HEAD_DIM,
    "audio_connector_num_attention_heads": 4, "connector_learnable_registers_std": 1,
    "caption_proj_before_connector": True, "caption_proj_input_norm": False,
    "caption_projection_first_linear": False, "caption_projection_second_linear": False,
    "cross_attention_adaln": True, "text_encoder_norm_type": "per_token_rms",
}  # fmt: skip
VAE = {
    "_class_name": "CausalVideoAutoencoder", "dims": 3, "in_channels": 3, "out_channels": 3,
    "latent_channels": LATENT_CHANNELS, "scaling_factor": 1.0, "norm_layer": "pixel_norm",
    "patch_size": 4, "latent_log_var": "uniform", "use_quant_conv": False,
    "causal_decoder": False, "timestep_conditioning": False, "normalize_latent_channels": False,
    "encoder_base_channels": LATENT_CHANNELS, "decoder_base_channels": 8,
}  # fmt: skip
VAE_BLOCKS = {
    "2.0": {
        "encoder_blocks": [
            ["res_x", {"num_layers": 1}], ["compress_space_res", {"multiplier": 2}],
            ["res_x", {"num_layers": 1}], ["compress_time_res", {"multiplier": 2}],
            ["res_x", {"num_layers": 1}], ["compress_all_res", {"multiplier": 2}],
            ["res_x", {"num_layers": 1}], ["compress_all_res", {"multiplier": 2}],
            ["res_x", {"num_layers": 1}],
        ],
        "decoder_blocks": [
            ["res_x", {"num_layers": 1, "inject_noise": False}],
            ["compress_all", {"residual": True, "multiplier": 2}],
            ["res_x", {"num_layers": 1, "inject_noise": False}],
            ["compress_all", {"residual": True, "multiplier": 2}],
            ["res_x", {"num_layers": 1, "inject_noise": False}],
            ["compress_all", {"residual": True, "multiplier": 2}],
            ["res_x", {"num_layers": 1, "inject_noise": False}],
        ],
    },
    "2.3": {
        "spatial_padding_mode": "zeros",
        "encoder_blocks": [
            ["res_x", {"num_layers": 1}], ["compress_space_res", {"multiplier": 2}],
            ["res_x", {"num_layers": 1}], ["compress_time_res", {"multiplier": 2}],
            ["res_x", {"num_layers": 1}], ["compress_all_res", {"multiplier": 2}],
            ["res_x", {"num_layers": 1}], ["compress_all_res", {"multiplier": 1}],
            ["res_x", {"num_layers": 1}],
        ],
        "decoder_blocks": [
            ["res_x", {"num_layers": 1}], ["compress_space", {"multiplier": 2}],
            ["res_x", {"num_layers": 1}], ["compress_time", {"multiplier": 2}],
            ["res_x", {"num_layers": 1}], ["compress_all", {"multiplier": 1}],
            ["res_x", {"num_layers": 1}], ["compress_all", {"multiplier": 2}],
            ["res_x", {"num_layers": 1}],
        ],
    },
}  # fmt: skip
DIFFUSION_VAE = {
    "_class_name": "CausalDiffusionVAE", "dims": 3, "model_output_type": "x0",
    "spatial_padding_mode": "zeros",
    "encoder": {
        "_class_name": "Encoder", "dims": 3, "in_channels": 3, "out_channels": LATENT_CHANNELS,
        "blocks": VAE_BLOCKS["2.3"]["encoder_blocks"], "patch_size": 4,
        "latent_log_var": "constant", "latent_log_var_value": -7.824046010856292,
        "norm_layer": "pixel_norm", "base_channels": LATENT_CHANNELS,
        "spatial_padding_mode": "zeros",
    },
    "decoder": {
        "_class_name": "NADiffusionDecoder", "in_channels": LATENT_CHANNELS, "out_channels": 3,
        "patch_size": 4, "head_dim": 16, "stage_channels": [64, 32, 16, 16, 16],
        "stage_depths": [1, 2, 1, 1, 2],
        "stage_kernels": [[3, 3, 3], [3, 3, 3], [3, 5, 3], [3, 3, 5], [5, 7, 5]],
        "upsamples": [[[1, 2, 2], 2], [[2, 1, 1], 2], [[2, 2, 2], 1], [[2, 2, 2], 1]],
        "spatial_padding_mode": "zeros", "resampler_kind": "linear", "stage5_kernel": [5, 7, 5],
        "t_emb_dim": 24, "timestep_scale_multiplier": 1000.0, "default_num_inference_steps": 1,
    },
}  # fmt: skip
AUDIO_VAE = {
    "model": {
        "params": {
            "ddconfig": {
                "double_z": True, "mel_bins": 64, "z_channels": AUDIO_CHANNELS, "resolution": 256,
                "downsample_time": False, "in_channels": 2, "out_ch": 2, "ch": AUDIO_CHANNELS * 16,
                "ch_mult": [1, 2, 4], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
                "mid_block_add_attention": False, "norm_type": "pixel", "causality_axis": "height",
            },
            "sampling_rate": 16000,
        }
    },
    "preprocessing": {
        "audio": {
            "sampling_rate": 16000, "max_wav_value": 32768.0, "duration": 5.12, "stereo": True,
            "causal_padding": 3,
        },
        "stft": {"filter_length": 1024, "hop_length": 160, "win_length": 1024, "causal": True},
        "mel": {"n_mel_channels": 64, "mel_fmin": 0, "mel_fmax": 8000},
    },
}  # fmt: skip
_GENERATOR = {
    "resblock_kernel_sizes": [3, 7], "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5]],
    "stereo": True,
}  # fmt: skip
_AMP = _GENERATOR | {
    "resblock": "AMP1", "activation": "snakebeta", "use_tanh_at_final": False,
    "use_bias_at_final": False,
}  # fmt: skip
VOCODER = {
    "2.0": _GENERATOR | {
        "resblock": "1", "upsample_initial_channel": 64, "upsample_rates": [6, 5, 2, 2, 2],
        "upsample_kernel_sizes": [16, 15, 8, 4, 4],
    },
    "2.3": {
        "vocoder": _AMP | {
            "upsample_initial_channel": 64, "upsample_rates": [5, 2, 2, 2, 2, 2],
            "upsample_kernel_sizes": [11, 4, 4, 4, 4, 4],
        },
        "bwe": _AMP | {
            "upsample_initial_channel": 32, "upsample_rates": [6, 5, 2, 2, 2],
            "upsample_kernel_sizes": [12, 11, 4, 4, 4], "apply_final_activation": False,
            "input_sampling_rate": 16000, "output_sampling_rate": 48000, "hop_length": 80,
            "n_fft": 512, "win_size": 512, "num_mels": 64,
        },
    },
}  # fmt: skip
SCHEDULER = {"_class_name": "RectifiedFlowScheduler", "num_train_timesteps": 1000}


def config(version: str) -> dict:
    """The `config` metadata entry of a tiny checkpoint."""
    return {
        "transformer": TRANSFORMER | (TRANSFORMER_23 if version == "2.3" else {}),
        "vae": VAE | VAE_BLOCKS[version],
        "audio_vae": AUDIO_VAE,
        "vocoder": VOCODER[version],
        "scheduler": SCHEDULER,
    }


def projection_shapes(version: str) -> dict[str, tuple[int, int]]:
    """Key -> shape of the text projection: 2.0 has one for both streams, 2.3 one for each."""
    columns = GEMMA_WIDTH * GEMMA_STATES
    if version == "2.0":
        return {"text_embedding_projection.aggregate_embed.weight": (GEMMA_WIDTH, columns)}
    widths = {"video": HEADS * HEAD_DIM, "audio": HEADS * AUDIO_HEAD_DIM}
    return {
        f"text_embedding_projection.{stream}_aggregate_embed.weight": (width, columns)
        for stream, width in widths.items()
    }


def networks(version: str) -> dict[str, nn.Module]:
    """File prefix -> network on the meta device, for every component of a checkpoint."""
    made = config(version)
    vae = VideoVAEConfig.from_metadata(made["vae"])
    audio = AudioVAEConfig.from_metadata(made["audio_vae"])
    with torch.device("meta"):
        return {
            "model.diffusion_model.": Transformer(
                TransformerConfig.from_metadata(made["transformer"])
            ),
            "text.": TextConnector(
                TextConnectorConfig.from_metadata(made["transformer"], projection_shapes(version))
            ),
            "vae.encoder.": VideoEncoder(vae),
            "vae.decoder.": VideoDecoder(vae),
            "audio_vae.encoder.": AudioEncoder(audio),
            "audio_vae.decoder.": AudioDecoder(audio),
            "vocoder.": vocoder_for(VocoderConfig.from_metadata(made["vocoder"])),
        }


def file_key(prefix: str, name: str) -> str:
    """Key in the published single-file layout of a network's parameter."""
    if prefix == "text.":
        inside = name.startswith("text_embedding_projection.")
        return name if inside else f"model.diffusion_model.{name}"
    if name.startswith("per_channel_statistics."):
        return prefix.split(".")[0] + "." + name  # encoder and decoder share one copy
    return prefix + name


def draw(key: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """A weight of a size that keeps activations of order one through every network."""
    if key.endswith("std-of-means"):
        return torch.rand(shape, generator=generator) + 0.5
    if key.endswith(("lowpass.filter", "upsample.filter")):
        return _filter(shape)
    if key.endswith(("norm.weight", "norm1.weight", "norm2.weight", "norm_out.weight")):
        return torch.ones(shape)
    noise = torch.randn(shape, generator=generator)
    if key.endswith((".alpha", ".beta")):
        return noise * 0.1
    if len(shape) < 2 or "scale_shift_table" in key:
        return noise * 0.1
    fan_in = shape[0] * shape[2] / 4 if ".ups." in key else shape[1:].numel()
    return noise * (1.5 / fan_in) ** 0.5


def _filter(shape: torch.Size) -> Tensor:
    """The analytic low-pass of the vocoder's activations: Kaiser-windowed sinc, cutoff 1/4."""
    half = [0.0020290, 0.0093895, -0.0255435, -0.0576574, 0.1285726, 0.4432098]
    return torch.tensor([*half, *reversed(half)]).view(shape)


def write_checkpoint(path: Path, version: str, seed: int = 0) -> Path:
    """Write a complete tiny checkpoint of release 2.0 or 2.3."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for prefix, network in networks(version).items():
        for name, meta in network.state_dict().items():
            key = file_key(prefix, name)
            if key not in tensors:
                value = draw(key, meta.shape, generator)
                # 2.3 files keep their modulation tables in float32
                keep = version == "2.3" and "scale_shift_table" in key
                tensors[key] = value if keep else value.bfloat16()
    metadata = {"config": json.dumps(config(version)), "license": "tiny random weights"}
    if version == "2.3":
        metadata["model_version"] = "2.3.0"
    save_file(tensors, path, metadata)
    return path


def write_diffusion_vae(path: Path, seed: int = 0) -> Path:
    """Write a tiny video VAE of 2.5 with the diffusion decoder: a file of its own, bare keys."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        halves = {
            "encoder.": VideoEncoder(VideoVAEConfig.from_metadata(DIFFUSION_VAE)),
            "decoder.": DiffusionDecoder(DiffusionDecoderConfig.from_metadata(DIFFUSION_VAE)),
        }
    tensors = {"decoder.type_emb": torch.zeros(LATENT_CHANNELS).bfloat16()}  # nothing reads it
    for prefix, network in halves.items():
        for name, meta in network.state_dict().items():
            key = name if name.startswith("per_channel_statistics.") else prefix + name
            if key not in tensors:
                tensors[key] = draw(key, meta.shape, generator).bfloat16()
    metadata = {"config": json.dumps({"vae": DIFFUSION_VAE}), "model_version": "2.5.0"}
    save_file(tensors, path, metadata)
    return path


def upsampler_config(version: str) -> dict:
    """Flat `config` of a spatial x2 upsampler: 2.0 resamples rationally, 2.3 by plain shuffle."""
    return {
        "_class_name": "LatentUpsampler", "in_channels": LATENT_CHANNELS, "mid_channels": 32,
        "num_blocks_per_stage": 1, "dims": 3, "spatial_upsample": True,
        "temporal_upsample": False, "spatial_scale": 2.0, "rational_resampler": version == "2.0",
    }  # fmt: skip


def write_upsampler(path: Path, version: str, seed: int = 0) -> Path:
    """Write a tiny spatial x2 latent upsampler."""
    config = upsampler_config(version)
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        state = Upsampler(UpsamplerConfig.from_metadata(config)).state_dict()
    tensors = {key: draw(key, meta.shape, generator).bfloat16() for key, meta in state.items()}
    save_file(tensors, path, {"config": json.dumps(config)})
    return path


def write_lora(path: Path, version: str, metadata: dict[str, str], seed: int = 0) -> Path:
    """Write a rank 2 LoRA in the official spelling on every linear layer of the transformer."""
    generator = torch.Generator().manual_seed(seed)
    state = networks(version)["model.diffusion_model."].state_dict()
    tensors = {}
    for key, meta in state.items():
        module = key.removesuffix(".weight")
        if key.endswith(".weight") and len(meta.shape) == 2:
            rows, columns = meta.shape
            down = torch.randn(2, columns, generator=generator) / columns**0.5
            up = torch.randn(rows, 2, generator=generator) * 0.1
            tensors[f"diffusion_model.{module}.lora_A.weight"] = down.bfloat16()
            tensors[f"diffusion_model.{module}.lora_B.weight"] = up.bfloat16()
    save_file(tensors, path, metadata)
    return path


def write_models(folder: Path, *versions: str, seed: int = 0) -> None:
    """Fill a host's `models` folder with tiny files under the names of the published ones."""
    for version in versions:
        names = FILES[version]
        for kind in ("dev", "distilled"):
            write_checkpoint(folder / "checkpoints" / names[kind], version, seed)
        write_upsampler(folder / "latent_upscale_models" / names["upsampler"], version, seed)
        for kind, metadata in LORAS.items():
            write_lora(folder / "loras" / names[kind], version, metadata, seed)
    encoders = folder / "text_encoders"
    _, single = write_gemma(encoders, seed)
    single.rename(encoders / "gemma_3_12B_it.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--version", choices=FILES, default="2.3")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in ("checkpoints", "text_encoders", "latent_upscale_models", "loras"):
        (options.folder / name).mkdir(parents=True, exist_ok=True)
    write_models(options.folder, options.version, seed=options.seed)


if __name__ == "__main__":
    main()
