"""Whole runs against those of ltx-pipelines 1.2.0, from the first token state to the latents."""

import pytest
import torch
from goldens import golden

from aiprod_engine.latents.attention import AttentionStrength
from aiprod_engine.latents.patchify import patchify_audio
from aiprod_engine.latents.regions import TemporalRegion
from aiprod_engine.media.mp4 import Sound
from aiprod_engine.pipelines.audio_to_video import audio_to_video
from aiprod_engine.pipelines.decode import decode_frames, decode_track
from aiprod_engine.pipelines.distilled import distilled
from aiprod_engine.pipelines.dub import dub
from aiprod_engine.pipelines.guides import (
    AudioTrackGuide,
    ImageGuide,
    ReferenceAudioGuide,
    ReferenceVideoGuide,
    RetakeGuide,
)
from aiprod_engine.pipelines.ic_lora import ic_lora
from aiprod_engine.pipelines.one_stage import one_stage
from aiprod_engine.pipelines.retake import retake
from aiprod_engine.pipelines.text_to_audio import text_to_audio
from aiprod_engine.pipelines.two_stage import keyframes, two_stage, two_stage_hq


def images(r):
    stills = enumerate(r.call.get("images", []))
    return [
        ImageGuide(r.case.inputs[f"image.{i}"], still["frame"], still["strength"], crf=0)
        for i, still in stills
    ]


def sound(r):
    return Sound(r.case.inputs["waveform"][0], r.call["waveform_rate"])


def run_one_stage(r, noise):
    return one_stage(r.run(noise), r.clip, r.contexts, images(r), r.settings())


def run_two_stage(r, noise):
    lora = r.lora(1)[-1]
    return two_stage(r.run(noise), r.clip, r.contexts, images(r), lora, r.settings())


def run_hq(r, noise):
    path, _ = r.lora(1)[-1]
    return two_stage_hq(r.run(noise), r.clip, r.contexts, images(r), path, r.settings(loras=()))


def run_keyframes(r, noise):
    lora = r.lora(1)[-1]
    return keyframes(r.run(noise), r.clip, r.contexts, images(r), lora, r.settings())


def run_distilled(r, noise):
    name = r.call.get("stage_1_sampler", {}).get("name")
    return distilled(r.run(noise), r.clip, r.contexts, images(r), r.settings(sampler=name))


def run_ic_lora(r, noise):
    mask = r.case.inputs.get("attention_mask")
    reference = ReferenceVideoGuide(
        r.case.inputs["reference_video"],
        r.call["reference_strength"],
        r.call.get("attention", 1.0),
        None if mask is None else mask[0, 0],
    )
    # the reference comes first here: the order of kinds, not of the list, must count
    return ic_lora(
        r.run(noise),
        r.clip,
        r.contexts,
        [reference, *images(r)],
        r.settings(),
        r.call.get("skip_stage_2", False),
    )


def run_audio_to_video(r, noise):
    guides = [*images(r), AudioTrackGuide(sound(r))]
    lora = r.lora(1)[-1]
    return audio_to_video(r.run(noise), r.clip, r.contexts, guides, lora, r.settings())


def run_retake(r, noise):
    source = RetakeGuide(
        r.case.inputs["source_video"],
        *r.call["window"],
        sound(r),
        regenerates_audio=r.call["regenerate_audio"],
    )
    return retake(
        r.run(noise), r.call["fps"], r.contexts, source, r.settings(), r.call["distilled"]
    )


def run_text_to_audio(r, noise):
    return text_to_audio(r.run(noise), r.call["frames"], r.call["fps"], r.contexts, r.settings())


def run_dub(r, noise):
    video = ReferenceVideoGuide(r.case.inputs["reference_video"], r.call["reference_strength"])
    voice = ReferenceAudioGuide(sound(r))
    return dub(r.run(noise), r.clip, r.contexts, video, voice, r.settings())


PIPELINES = {
    "one_stage": run_one_stage,
    "two_stage": run_two_stage,
    "hq": run_hq,
    "keyframes": run_keyframes,
    "distilled": run_distilled,
    "ic_lora": run_ic_lora,
    "a2v": run_audio_to_video,
    "retake": run_retake,
    "t2a": run_text_to_audio,
    "dub_it": run_dub,
}


def encoded(item):
    """Content of a conditioning item, None for one without."""
    if isinstance(item, AttentionStrength):
        item = item.item
    return None if isinstance(item, TemporalRegion) else item.latent


def observed(events, output):
    """What a run told about one recorded tensor."""
    if output == "upsampled":
        return events["upsampled"].video
    stage, _, rest = output.partition(".")
    if rest == "sigmas":
        return events[f"{stage}.stage"].sigmas
    stream, _, rest = rest.partition(".")
    if not rest:
        return getattr(events[f"{stage}.latent"], stream)
    start = events[f"{stage}.start"]
    if rest == "given":
        return getattr(start.latent, stream)
    if rest.startswith("state."):
        return getattr(getattr(events[f"{stage}.states"], stream), rest.removeprefix("state."))
    item = encoded(getattr(start, f"{stream}_items")[int(rest.removeprefix("item"))])
    return item if stream == "video" else patchify_audio(item)


@pytest.mark.parametrize("case", golden("pipelines/*_2[03]"))
def test_run_equals_the_recorded_one(case, recorded):
    """Noise and contexts are given; the fixture names the bound of every tensor."""
    r = recorded(case)
    noise = r.injected
    clip = PIPELINES[r.call["pipeline"]](r, noise)
    for output in sorted(case.outputs):
        if output not in ("pixels", "waveform"):
            case.check(output, observed(r.recorder.events, output))
    assert r.networks.evaluations == r.call["evaluations_by_stage"]
    assert not noise.initial.draws
    check_media(case, r, clip)


def check_media(case, r, clip):
    if "pixels" in case.outputs:
        with r.networks.use("video_decoder") as decoder:
            case.check("pixels", decode_frames(decoder, clip))
            case.check("pixels", decode_frames(decoder, clip, "off"))
    if "waveform" in case.outputs:
        with (
            r.networks.use("audio_decoder") as decoder,
            r.networks.use("vocoder") as vocoder,
        ):
            track, rate = decode_track(decoder, vocoder, clip)
        decoded = case.outputs["waveform"].shape[-1]
        assert rate == r.call["output_rate"]
        assert track.shape[-1] == round(clip.frames / clip.fps * rate)
        assert not track[..., decoded:].any()
        case.check("waveform", track[0, :, :decoded])


@pytest.mark.parametrize("case", golden("pipelines/two_stage_23", "pipelines/distilled_23"))
def test_shipped_sound_is_that_of_the_right_stage(case, recorded):
    r = recorded(case)
    clip = PIPELINES[r.call["pipeline"]](r, r.injected)
    stage = 1 if r.call["pipeline"] == "two_stage" else 2
    assert torch.equal(clip.audio, r.recorder.events[f"stage{stage}.latent"].audio)
    assert torch.equal(clip.video, r.recorder.events["stage2.latent"].video)


@pytest.mark.parametrize("case", golden("pipelines/*_2[03]"))
def test_seed_reproduces_the_recorded_initial_noise(case, recorded):
    r = recorded(case)
    source = r.run().begin().initial
    for name in case.call["noise"]:
        if name.endswith("initial"):
            wanted = case.inputs[f"noise.{name}"]
            assert torch.equal(source(tuple(wanted.shape), "", ""), wanted)
