"""What Gemma 3 sees of a picture: SigLIP tower, pooling, projection to the decoder's width.

Encoding prompts never needs it; a decoder that writes takes its rows in place of embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UnsupportedConfig
from .config import require
from .decoder import GemmaNorm

_LEGAL = {
    "model_type": ("siglip_vision_model",),
    "hidden_act": ("gelu_pytorch_tanh",),
    "vision_use_head": (False,),
    "num_channels": (3,),
}


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of tower and projector; the defaults are those of every published Gemma 3.

    `tokens` rows, a square, come out for a picture of `image_size` x `image_size` pixels.
    """

    width: int = 1152
    intermediate: int = 4304
    num_layers: int = 27
    heads: int = 16
    patch: int = 14
    image_size: int = 896
    tokens: int = 256
    text_width: int = 3840
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.width % self.heads or self.image_size % self.patch:
            raise UnsupportedConfig(
                "the vision tower's width must be a multiple of its heads and the picture one of "
                f"the patch, found {self.width} / {self.heads} and {self.image_size} / {self.patch}"
            )
        if math.isqrt(self.tokens) ** 2 != self.tokens or self.side % math.isqrt(self.tokens):
            raise UnsupportedConfig(
                f"mm_tokens_per_image must be a square whose root divides {self.side}, "
                f"found {self.tokens}"
            )

    @property
    def side(self) -> int:
        """Patches along one side of the picture."""
        return self.image_size // self.patch

    @property
    def pool(self) -> int:
        """Patches along one side of what is averaged into one row: 4 in the published model."""
        return self.side // math.isqrt(self.tokens)

    @classmethod
    def from_metadata(cls, hf_config: Mapping[str, Any]) -> VisionConfig:
        """Build from a Hugging Face config with `vision_config` beside `text_config`."""
        raw = hf_config.get("vision_config", {})
        require(hf_config, {"model_type": ("gemma3",)}, "config")
        require(raw, _LEGAL, "vision_config")
        image_size, patch = raw.get("image_size", cls.image_size), raw.get("patch_size", cls.patch)
        # A small tower whose file is silent: one row per patch.
        tokens = min(cls.tokens, (image_size // patch) ** 2)
        return cls(
            width=raw.get("hidden_size", cls.width),
            intermediate=raw.get("intermediate_size", cls.intermediate),
            num_layers=raw.get("num_hidden_layers", cls.num_layers),
            heads=raw.get("num_attention_heads", cls.heads),
            patch=patch,
            image_size=image_size,
            tokens=hf_config.get("mm_tokens_per_image", tokens),
            text_width=hf_config.get("text_config", {}).get("hidden_size", cls.text_width),
            eps=raw.get("layer_norm_eps", cls.eps),
        )


class Embeddings(nn.Module):
    """Patches, row by row, each with the learned embedding of its place."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch, stride=config.patch)
        self.position_embedding = nn.Embedding(config.side**2, config.width)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # (B, side^2, D)
        return patches + self.position_embedding.weight


class Attention(nn.Module):
    """Every patch sees every patch."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_proj = nn.Linear(config.width, config.width)
        self.k_proj = nn.Linear(config.width, config.width)
        self.v_proj = nn.Linear(config.width, config.width)
        self.out_proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, T, head_dim)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(out.transpose(1, 2).flatten(2))  # (B, T, D)


class MLP(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.intermediate)
        self.fc2 = nn.Linear(config.intermediate, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Layer(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.width, config.eps)
        self.self_attn = Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.width, config.eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Tower(nn.Module):
    """SigLIP without its pooling head: pixels (B, 3, S, S) -> (B, patches, D)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.width, config.eps)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.post_layernorm(self.encoder(self.embeddings(pixels)))


class Projector(nn.Module):
    """Average of `pool` x `pool` patches, norm, projection: (B, patches, D) -> (B, tokens, D')."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.side, self.pool = config.side, config.pool
        self.mm_soft_emb_norm = GemmaNorm(config.width, config.eps, offset=1.0)
        weight = torch.empty(config.width, config.text_width)
        self.mm_input_projection_weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        grid = x.transpose(1, 2).unflatten(-1, (self.side, self.side))  # (B, D, side, side)
        pooled = F.avg_pool2d(grid, self.pool).flatten(2).transpose(1, 2)  # (B, tokens, D)
        return self.mm_soft_emb_norm(pooled) @ self.mm_input_projection_weight


class Gemma3Vision(nn.Module):
    """Tower and projector under the names of the single files."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = Tower(config)
        self.multi_modal_projector = Projector(config)

    def forward(self, pixels: Tensor) -> Tensor:
        """Rows (B, tokens, text width) for pixels (B, 3, S, S) in [-1, 1]."""
        return self.multi_modal_projector(self.vision_model(pixels))

    def pixels(self, image: Tensor) -> Tensor:
        """The input (1, 3, S, S) for `image` (H, W, 3) uint8, squashed to a square.

        Resized as 8-bit values with antialias, like the reference's image library does.
        """
        size = (self.config.image_size, self.config.image_size)
        batch = image.cpu().movedim(-1, 0)[None]  # (1, 3, H, W)
        squashed = F.interpolate(batch, size, mode="bilinear", antialias=True)
        weight = self.vision_model.embeddings.patch_embedding.weight
        return (squashed.float() / 127.5 - 1).to(weight)
