"""Guides: the items, given latents and frozen streams that each makes of a stage's start."""

import pytest
import torch

from aiprod_engine.errors import MismatchError, SizeError
from aiprod_engine.latents.attention import AttentionStrength
from aiprod_engine.latents.conditioning import KeyframeIndex, LatentIndex
from aiprod_engine.latents.references import ReferenceAudio, ReferenceLatent
from aiprod_engine.latents.regions import MaskItem, TemporalRegion
from aiprod_engine.media.mp4 import Sound
from aiprod_engine.pipelines.encode import encode_video
from aiprod_engine.pipelines.encoders import encoders
from aiprod_engine.pipelines.guides import (
    AudioTrackGuide,
    ClipGuide,
    Encoders,
    ImageGuide,
    MaskGuide,
    Pixels,
    ReferenceAudioGuide,
    ReferenceVideoGuide,
    RetakeGuide,
    encode_guides,
)
from aiprod_engine.types import AVLatent
from aiprod_engine.weights.lora.ic_lora import Reference

CLIP = AVLatent(None, None, 25, 64, 96, 24.0)


def fake_video(frames):
    """One channel: the mean brightness of the pixel frame that each latent frame ends with."""
    frames = torch.cat(list(frames))
    kept = frames[: (len(frames) - 1) // 8 * 8 + 1][::8]
    cells = torch.nn.functional.avg_pool2d(kept.mean(1, keepdim=True), 32)
    return cells.movedim(0, 1)[None]


def fake_audio(sound):
    return torch.ones(1, 1, -(-(sound.waveform.shape[1] // 160 + 1) // 4), 16)


ENCODE = Encoders(fake_video, fake_audio)


def frames(count, height=64, width=96):
    """Frame i has the brightness i."""
    return torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(
        count, height, width, 3
    )


def brightness(latent):
    return ((latent[0, 0, :, 0, 0] + 1) * 127.5).round().tolist()


def only(start):
    (item,) = start.video_items
    return item


def test_items_are_ordered_by_kind_and_then_as_given():
    guides = [
        ReferenceVideoGuide(frames(25)),
        ImageGuide(frames(1)[0], 8, crf=0),
        ReferenceAudioGuide(Sound(torch.zeros(1, 1600), 16000)),
        ImageGuide(frames(1)[0], 0, crf=0),
        RetakeGuide(frames(25), 0.1, 0.2),
    ]
    start = encode_guides(guides, CLIP, ENCODE)
    kinds = [type(item) for item in start.video_items]
    assert kinds == [TemporalRegion, KeyframeIndex, LatentIndex, ReferenceLatent]
    assert [type(item) for item in start.audio_items] == [ReferenceAudio]


@pytest.mark.parametrize(
    ("frame", "policy", "kind", "at"),
    [
        (0, "combined", LatentIndex, 0),
        (0, "guiding", KeyframeIndex, 0),
        (5, "combined", KeyframeIndex, 5),
        (-1, "combined", KeyframeIndex, 24),
        (2, "replacing", LatentIndex, 2),
    ],
)
def test_an_image_lies_where_its_policy_says(frame, policy, kind, at):
    guide = ImageGuide(frames(1)[0], frame, 0.6, crf=0, policy=policy)
    item = only(encode_guides([guide], CLIP, ENCODE))
    assert isinstance(item, kind)
    assert (item.index if kind is LatentIndex else item.frame) == at
    assert item.strength == 0.6
    assert item.latent.shape == (1, 1, 1, 2, 3)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"frame": 25}, "frame index"),
        ({"frame": -26}, "frame index"),
        ({"frame": 4, "policy": "replacing"}, "latent index 4"),
        ({"strength": 1.5}, "strength"),
    ],
)
def test_an_impossible_image_is_refused_before_it_is_encoded(fields, reason):
    with pytest.raises(SizeError, match=reason):
        encode_guides([ImageGuide(frames(1)[0], **fields)], CLIP, Encoders(None, None))


def test_an_image_is_recompressed_by_the_version():
    noisy = torch.randint(0, 255, (64, 96, 3), dtype=torch.uint8)
    plain, default, strong = (
        only(encode_guides([ImageGuide(noisy, crf=crf)], CLIP, ENCODE)).latent
        for crf in (0, None, 33)
    )
    assert torch.equal(default, strong)  # 33: the default where no version is known
    assert not torch.equal(default, plain)


def test_a_guide_takes_the_size_of_its_stage():
    guide = ImageGuide(frames(1, 70, 200)[0], crf=0)
    half, full = (
        only(encode_guides([guide], AVLatent(None, None, 9, h, w, 24.0), ENCODE)).latent.shape
        for h, w in ((64, 96), (128, 192))
    )
    assert (half, full) == ((1, 1, 1, 2, 3), (1, 1, 1, 4, 6))


def test_a_clip_at_the_start_replaces_latents():
    item = only(encode_guides([ClipGuide(frames(20), 0)], CLIP, ENCODE))
    assert isinstance(item, LatentIndex)
    assert brightness(item.latent) == [0, 8, 16]


def test_a_later_clip_lies_on_the_latent_grid_with_whole_latents():
    item = only(encode_guides([ClipGuide(frames(20), 14, 0.5)], CLIP, ENCODE))
    assert (item.frame, item.clip_frames, item.strength) == (9, 16, 0.5)
    # the doubled first frame makes latents end with the clip's frames 7 and 15
    assert brightness(item.latent) == [7, 15]


def test_a_later_clip_shorter_than_a_latent_is_refused():
    with pytest.raises(SizeError, match="at least 8 frames"):
        encode_guides([ClipGuide(frames(7), 9)], CLIP, ENCODE)


def test_a_reference_follows_the_factors_of_its_lora():
    guide = ReferenceVideoGuide(frames(40), 0.9)
    item = only(encode_guides([guide], CLIP, ENCODE, Reference(1, 1)))
    assert brightness(item.latent) == [0, 8, 16, 24]  # only as many frames as the clip
    small = AVLatent(None, None, 33, 64, 128, 24.0)
    item = only(encode_guides([guide], small, ENCODE, Reference(2, 2)))
    assert (item.downscale, item.temporal_scale, item.strength) == (2, 2, 0.9)
    assert item.latent.shape == (1, 1, 3, 1, 2)
    assert brightness(item.latent) == [0, 15, 31]  # frame 0, then 1, 3, 5, ..
    with pytest.raises(SizeError, match="downscale factor 2"):
        encode_guides([guide], CLIP, ENCODE, Reference(2, 1))


def test_attention_of_a_reference():
    def item(**fields):
        return only(encode_guides([ReferenceVideoGuide(frames(25), **fields)], CLIP, ENCODE))

    assert isinstance(item(), ReferenceLatent)
    assert item(attention=0.4).weight == 0.4
    mask = torch.zeros(25, 64, 96)
    mask[:, :32] = 1
    masked = item(attention=0.5, attention_mask=mask)
    assert isinstance(masked, AttentionStrength)
    assert masked.weight.unflatten(1, (4, 2, 3))[0, :, :, 0].tolist() == [[0.5, 0.0]] * 4
    still = item(attention=0.5, attention_mask=mask[:1])
    assert torch.equal(still.weight, masked.weight)
    with pytest.raises(SizeError, match="as many frames"):
        item(attention_mask=mask[:8])
    with pytest.raises(SizeError, match="attention strength"):
        item(attention=1.2)


@pytest.mark.parametrize("seconds", [0.5, 25 / 24, 3.0])
def test_a_track_is_frozen_and_as_long_as_the_picture(seconds):
    sound = Sound(torch.zeros(2, round(16000 * seconds)), 16000)
    start = encode_guides([AudioTrackGuide(sound)], CLIP, ENCODE)
    assert start.frozen == {"audio"}
    assert start.latent.audio.shape == (1, 1, 26, 16)
    given = int(start.latent.audio[0, 0, :, 0].sum())
    assert given == 26, "a short sound is filled with silence before it is encoded, not after"
    with pytest.raises(MismatchError, match="one sound track"):
        encode_guides([AudioTrackGuide(sound)] * 2, CLIP, ENCODE)


def test_retake_regenerates_the_streams_it_is_told_to():
    sound = Sound(torch.zeros(2, 17600), 16000)

    def start(**fields):
        return encode_guides([RetakeGuide(frames(25), 0.3, 0.7, **fields)], CLIP, ENCODE)

    both = start(sound=sound)
    assert both.frozen == frozenset()
    assert both.video_items == both.audio_items == (TemporalRegion(0.3, 0.7),)
    assert both.latent.video.shape == (1, 1, 4, 2, 3)
    picture = start(sound=sound, regenerates_audio=False)
    assert (picture.frozen, picture.audio_items) == ({"audio"}, ())
    voice = start(sound=sound, regenerates_video=False)
    assert (voice.frozen, voice.video_items) == ({"video"}, ())
    silent = start()
    assert silent.latent.audio is None
    assert silent.audio_items == ()
    with pytest.raises(MismatchError, match="must regenerate"):
        start(regenerates_video=False, regenerates_audio=False)
    with pytest.raises(SizeError, match="start before it ends"):
        encode_guides([RetakeGuide(frames(25), 0.7, 0.3)], CLIP, ENCODE)


def test_a_mask_keeps_what_it_does_not_cover():
    mask = torch.zeros(25, 64, 96)
    mask[9:17, 32:, :32] = 1
    item = only(encode_guides([MaskGuide(frames(25), mask)], CLIP, ENCODE))
    assert isinstance(item, MaskItem)
    kept = torch.ones(1, 4, 2, 3)
    kept[0, 2, 1, 0] = 0  # frames 9 .. 16 are latent 2
    assert torch.equal(item.mask, kept)
    still = only(encode_guides([MaskGuide(frames(25), mask[9:10])], CLIP, ENCODE))
    assert torch.equal(still.mask[:, :, 1, 0], torch.zeros(1, 4))
    for guide in (MaskGuide(frames(24), mask), MaskGuide(frames(25), mask[:3])):
        with pytest.raises(SizeError, match="25 frames"):
            encode_guides([guide], CLIP, ENCODE)


def test_encoders_come_for_a_guide_and_go_after(tiny, caplog):
    caplog.set_level("INFO")
    encode = encoders(tiny, CLIP)
    assert not caplog.messages
    latent = encode.video(Pixels(frames(9), CLIP))
    assert latent.shape == (1, 8, 2, 2, 3)
    sound = encode.audio(Sound(torch.zeros(1, 8000), 16000))
    assert sound.shape[:2] == (1, 1)
    assert [line.partition(":")[0] for line in caplog.messages] == ["encode guides", "encode sound"]


def test_streamed_encoding_equals_the_whole_clip(tiny):
    clip = torch.stack([torch.randint(0, 255, (64, 96, 3), dtype=torch.uint8) for _ in range(17)])
    with tiny.use("video_encoder") as encoder:
        streamed = encode_video(encoder, Pixels(clip, CLIP))
        whole = encoder(torch.stack(list(Pixels(clip, CLIP)), dim=2))
    torch.testing.assert_close(streamed, whole, atol=1e-5, rtol=0)
