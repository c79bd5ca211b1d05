"""Token states: how they begin, how conditioning extends them, how they end.

Life cycle: `video_state` / `audio_state` -> conditioning items -> noise -> steps ->
`generated_keyframes`, `clear_conditioning` -> unpatchify.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..errors import SizeError
from ..types import SlotLayout, TokenState
from .patchify import patchify_audio, patchify_video, unpatchify_video
from .positions import FACTORS, Factors, audio_positions, video_positions


def video_state(
    latent: Tensor, fps: float, factors: Factors = FACTORS, frozen: bool = False
) -> TokenState:
    """Fresh state of a latent (B, C, F, H, W), zeros where nothing is given yet.

    Tokens of latent frame 0 encode a single pixel frame and carry the keyframe mark (2.5).
    """
    batch, _, frames, height, width = latent.shape
    state = _initial(
        patchify_video(latent), video_positions(frames, height, width, fps, factors, batch), frozen
    )
    marks = torch.zeros_like(state.denoise_mask)
    marks[:, : height * width] = 1
    return replace(state, keyframes_mask=marks)


def audio_state(latent: Tensor, shift: int = 0, frozen: bool = False) -> TokenState:
    """Fresh state of a latent (B, C, T, bins), zeros where nothing is given yet."""
    batch, _, count, _ = latent.shape
    return _initial(patchify_audio(latent), audio_positions(count, shift, batch=batch), frozen)


def _initial(tokens: Tensor, positions: Tensor, frozen: bool) -> TokenState:
    mask = torch.full_like(tokens[..., :1], 0.0 if frozen else 1.0, dtype=torch.float32)
    return TokenState(
        latent=tokens,
        denoise_mask=mask,
        clean_latent=tokens,
        positions=positions.to(tokens.device),
        target_tokens=tokens.shape[1],
        frozen=frozen,
    )


def freeze(state: TokenState) -> TokenState:
    """The same stream as a given one: mask 0, sigma forced to 0; noise it with scale 0."""
    return replace(state, denoise_mask=torch.zeros_like(state.denoise_mask), frozen=True)


def append_kept(
    state: TokenState, content: Tensor, positions: Tensor, strength: float
) -> TokenState:
    """Append condition tokens (B or 1, n, C) with mask 1 - strength; their noise seed is zero."""
    content = _like_tokens(state, content)
    mask = torch.full_like(content[..., :1], 1.0 - strength, dtype=torch.float32)
    return _append(state, torch.zeros_like(content), content, mask, positions, 0.0)


def append_generated(state: TokenState, seeds: Tensor, positions: Tensor) -> TokenState:
    """Append tokens that are generated from `seeds` and encode single pixel frames."""
    seeds = _like_tokens(state, seeds)
    mask = torch.ones_like(seeds[..., :1], dtype=torch.float32)
    return _append(state, seeds, torch.zeros_like(seeds), mask, positions, 1.0)


def _like_tokens(state: TokenState, tokens: Tensor) -> Tensor:
    return tokens.to(state.latent).expand(state.latent.shape[0], -1, -1)


def _append(
    state: TokenState, latent: Tensor, clean: Tensor, mask: Tensor, positions: Tensor, mark: float
) -> TokenState:
    attention, marks = state.attention_mask, state.keyframes_mask
    if attention is not None:  # an unweighted group still does not see earlier groups
        attention = extended_mask(state, 1.0, clean.shape[1])
    if marks is not None:
        marks = torch.cat((marks, torch.full_like(mask, mark)), dim=1)
    positions = positions.to(state.positions).expand(state.positions.shape[0], -1, -1, -1)
    return replace(
        state,
        latent=torch.cat((state.latent, latent), dim=1),
        clean_latent=torch.cat((state.clean_latent, clean), dim=1),
        denoise_mask=torch.cat((state.denoise_mask, mask), dim=1),
        positions=torch.cat((state.positions, positions), dim=2),
        attention_mask=attention,
        keyframes_mask=marks,
    )


def extended_mask(state: TokenState, weight: float | Tensor, count: int) -> Tensor:
    """Mask (B, N + count, N + count) of `state` after appending `count` tokens of `weight`.

    Without a mask so far, targets and earlier groups are fully connected.
    """
    batch, old = state.latent.shape[:2]
    weight = torch.as_tensor(weight, dtype=torch.float32, device=state.latent.device)
    if weight.ndim and weight.shape[-1] != count:
        raise SizeError(
            f"attention weights must be one per appended token: {weight.shape[-1]} weights for "
            f"{count} tokens"
        )
    weight = weight.expand(batch, count)
    targets = state.target_tokens
    mask = weight.new_zeros(batch, old + count, old + count)
    mask[:, :old, :old] = 1 if state.attention_mask is None else state.attention_mask
    mask[:, :targets, old:] = weight[:, None, :]
    mask[:, old:, :targets] = weight[:, :, None]
    mask[:, old:, old:] = 1
    return mask


def generated_keyframes(state: TokenState) -> Tensor | None:
    """Content of the generated slots as (B, C, K, H, W), one latent frame each, or None.

    Decode each of them as a clip of one frame, never together as a clip of K frames.
    """
    if state.slots is None:
        return None
    slots: SlotLayout = state.slots
    end = slots.first + slots.count * slots.height * slots.width
    return unpatchify_video(
        state.latent[:, slots.first : end], slots.count, slots.height, slots.width
    )


def clear_conditioning(state: TokenState) -> TokenState:
    """The target alone: appended tokens, masks and slots are gone, everything counts as generated.

    Read `generated_keyframes` before.
    """
    count = state.target_tokens
    return replace(
        state,
        latent=state.latent[:, :count],
        clean_latent=state.clean_latent[:, :count],
        denoise_mask=torch.ones_like(state.denoise_mask[:, :count]),
        positions=state.positions[:, :, :count],
        attention_mask=None,
        keyframes_mask=None,
        slots=None,
    )
