"""The host's samplers over this pack's engine: contract in process, whole prompts over HTTP."""

import time
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from host_client import PromptFailed, PromptInterrupted
from mp4_check import problems, read_movie
from shipped import FPS, FRAMES, HEIGHT, WIDTH, saved, small, with_host_sampler
from tiny_checkpoint import FILES

pytestmark = pytest.mark.host

SAMPLERS = ("euler", "heun", "dpmpp_2m", "euler_ancestral", "dpmpp_2m_sde", "uni_pc")


@pytest.fixture
def room(pack, node_types):
    """A module of the pack under the name that the host gave it."""
    return lambda path: import_module(f"custom_nodes_x_aiprod.{path}")


@pytest.fixture
def run(node_types):
    def execute(name, **inputs):
        with torch.inference_mode():
            return node_types[f"AIPROD{name}"].execute(**inputs).result

    return execute


@pytest.fixture
def parts(run):
    """Model, text parts, video VAE, audio VAE of the tiny 2.3 checkpoint."""
    return run("CheckpointLoader", checkpoint=FILES["2.3"]["dev"])


@pytest.fixture
def guider(room, run):
    """Random prompts with guidance of both streams."""
    seeded = torch.Generator().manual_seed(5)

    def context():
        widths = torch.randn(1, 8, 64 + 32, generator=seeded).split([64, 32], dim=-1)
        return room("aiprod_engine.types").TextContext(*widths, "2.3")

    strengths = {
        f"{stream}_{name}": value
        for stream in ("video", "audio")
        for name, value in {"cfg": 3.0, "stg": 1.0, "modality": 2.0, "rescale": 0.5}.items()
    }
    return run(
        "CFGGuider", positive=context(), negative=context(), stg_blocks="auto", skip_step=0,
        **strengths,
    )[0]  # fmt: skip


@pytest.fixture
def clip(run):
    (latent,) = run("EmptyLatent", width=96, height=64, frames=17, fps=FPS)
    return latent


class GivenNoise:
    """A NOISE of the host with the numbers that the Sampler node draws for this seed.

    That one draws for `appended` tokens of guides as well.
    """

    seed = 3

    def __init__(self, room, appended=0):
        self.source = room("aiprod_engine.sampling.noise").CpuNoise(self.seed)
        self.patchify, self.appended = room("aiprod_engine.latents.patchify"), appended

    def generate_noise(self, latent):
        video, audio = latent["samples"].unbind()
        cells = video[0, 0].numel()
        pixels = self.source((1, cells + self.appended, video.shape[1]), "video", "")[:, :cells]
        sound = self.source(self.patchify.tokens_of(audio).shape, "audio", "")
        return type(latent["samples"])(
            [
                self.patchify.unpatchify_video(pixels, *video.shape[2:]),
                self.patchify.unpatchify_audio(sound, audio.shape[1], audio.shape[3]),
            ]
        )


@pytest.fixture
def advanced():
    """The host's SamplerCustomAdvanced."""

    def sample(guider, latent, noise, sampler="euler", sigmas=None):
        import comfy.samplers
        from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced

        sigmas = torch.linspace(1, 0, 4) if sigmas is None else sigmas
        with torch.inference_mode():
            return SamplerCustomAdvanced.execute(
                noise, guider, comfy.samplers.sampler_object(sampler), sigmas, latent
            ).result

    return sample


def host_noise(seed=3):
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    return Noise_RandomNoise(seed)


def assert_close(clip, expected):
    """float32 that is summed in another order, over three steps of several evaluations."""
    torch.testing.assert_close(clip.video, expected.video, rtol=0, atol=2e-5)
    torch.testing.assert_close(clip.audio, expected.audio, rtol=0, atol=2e-5)


def test_latent_is_what_the_host_calls_a_joint_latent(run, parts, guider, clip):
    made, latent = run("HostGuider", model=parts[0], guider=guider, latent=clip)
    video, audio = latent["samples"].unbind()
    assert latent["samples"].is_nested
    assert video.shape[2:] == (3, 2, 3)
    assert audio.shape[2] == round(17 / FPS * 25)
    assert {video.dtype, audio.dtype} == {torch.float32}
    assert not video.any()
    assert not audio.any()
    assert set(latent) == {"samples"}
    assert "2.3" in repr(made)


def test_members_that_the_host_asks_for(run, parts, guider, clip):
    import comfy.model_sampling

    made, _ = run("HostGuider", model=parts[0], guider=guider, latent=clip)
    patcher, core = made.model_patcher, made.inner_model
    assert patcher.model is core
    sampling = patcher.get_model_object("model_sampling")
    assert isinstance(sampling, comfy.model_sampling.CONST)
    assert isinstance(sampling, comfy.model_sampling.ModelSamplingDiscreteFlow)
    assert float(sampling.sigma_max) == 1
    known = patcher.get_model_object("latent_format")
    assert known.latent_dimensions == 3
    assert known.latent_rgb_factors is None
    assert patcher.load_device == torch.device("cpu")
    x = torch.ones(2)
    assert core.process_latent_in(x) is core.process_latent_out(x) is x


def test_euler_of_the_host_is_euler_of_the_sampler(room, run, parts, guider, clip, advanced):
    made, latent = run("HostGuider", model=parts[0], guider=guider, latent=clip)
    out, denoised = advanced(made, latent, GivenNoise(room))
    (joined,) = run("JoinLatent", video_latent=out, fps=1.0, like=clip)
    (expected,) = run(
        "Sampler", model=parts[0], guider=guider, sigmas=torch.linspace(1, 0, 4), latent=clip,
        sampler="euler", seed=GivenNoise.seed,
    )  # fmt: skip
    assert_close(joined, expected)
    (last,) = run("JoinLatent", video_latent=denoised, fps=1.0, like=clip)
    assert_close(last, expected)  # the last step of a schedule ends at x0
    assert (joined.fps, joined.frames, joined.width) == (clip.fps, clip.frames, clip.width)


def test_a_finished_clip_is_refined_as_the_sampler_does(room, run, parts, guider, clip, advanced):
    torch.manual_seed(1)
    given = replace(clip, video=torch.randn(1, *_shape(run, parts, guider, clip, 0)),
                    audio=torch.randn(1, *_shape(run, parts, guider, clip, 1)))  # fmt: skip
    sigmas = torch.tensor([0.9, 0.5, 0.0])
    made, latent = run("HostGuider", model=parts[0], guider=guider, latent=given)
    out, _ = advanced(made, latent, GivenNoise(room), sigmas=sigmas)
    (joined,) = run("JoinLatent", video_latent=out, fps=FPS, like=given)
    (expected,) = run(
        "Sampler", model=parts[0], guider=guider, sigmas=sigmas, latent=given, sampler="euler",
        seed=GivenNoise.seed,
    )  # fmt: skip
    assert_close(joined, expected)


def _shape(run, parts, guider, clip, member):
    _, latent = run("HostGuider", model=parts[0], guider=guider, latent=clip)
    return latent["samples"].unbind()[member].shape[1:]


@pytest.mark.parametrize("sampler", [*SAMPLERS, "euler_cfg_pp", "res_multistep_cfg_pp"])
def test_samplers_of_the_host_run(sampler, run, parts, guider, clip, advanced):
    made, latent = run("HostGuider", model=parts[0], guider=guider, latent=clip)
    out, _ = advanced(made, latent, host_noise(), sampler)
    for member in out["samples"].unbind():
        assert torch.isfinite(member).all()
        assert member.std() > 0


def images(frames=1):
    return torch.linspace(0, 1, 96).expand(frames, 64, -1)[..., None].repeat(1, 1, 1, 3)


@pytest.fixture
def image_guide(run, parts):
    def guide(frame, strength, guides=None):
        more = {} if guides is None else {"guides": guides}
        return run(
            "ImageGuide", image=images(), frame=frame, strength=strength, compression=0,
            video_vae=parts[2], **more,
        )[0]  # fmt: skip

    return guide


def test_guides_become_content_mask_and_held_tokens(
    room, run, parts, guider, clip, advanced, image_guide
):
    guides = image_guide(16, 0.5, image_guide(0, 1.0))
    made, latent = run("HostGuider", model=parts[0], guider=guider, latent=clip, guides=guides)
    video, _ = latent["samples"].unbind()
    mask, sound = latent["noise_mask"].unbind()
    assert mask.shape == (1, 1, *video.shape[2:])
    assert not mask[:, :, 0].any()
    assert mask[:, :, 1:].min() == sound.min() == 1
    assert video[:, :, 0].any()
    assert not video[:, :, 1:].any()
    out, _ = advanced(made, latent, GivenNoise(room))
    made_video, _ = out["samples"].unbind()
    torch.testing.assert_close(made_video[:, :, 0], video[:, :, 0], rtol=0, atol=1e-6)
    without, plain = run("HostGuider", model=parts[0], guider=guider, latent=clip)
    free, _ = advanced(without, plain, GivenNoise(room))
    assert (free["samples"].unbind()[0] - made_video)[:, :, 1:].abs().max() > 1e-3


@pytest.mark.parametrize(("frame", "appended"), [(0, 0), (16, 6)])  # cells of a frame
def test_firm_guides_give_what_the_sampler_gives(
    frame, appended, room, run, parts, guider, clip, advanced, image_guide
):
    guides = image_guide(frame, 1.0)
    made, latent = run("HostGuider", model=parts[0], guider=guider, latent=clip, guides=guides)
    out, _ = advanced(made, latent, GivenNoise(room, appended))
    (joined,) = run("JoinLatent", video_latent=out, fps=FPS, like=clip)
    (expected,) = run(
        "Sampler", model=parts[0], guider=guider, sigmas=torch.linspace(1, 0, 4), latent=clip,
        sampler="euler", seed=GivenNoise.seed, guides=guides,
    )  # fmt: skip
    assert_close(joined, expected)


def test_masks_of_the_host_count(run, parts, guider, clip, advanced):
    made, latent = run("HostGuider", model=parts[0], guider=guider, latent=clip)
    torch.manual_seed(2)
    samples = [torch.randn_like(t) for t in latent["samples"].unbind()]
    half = torch.ones(1, 64, 96)
    half[..., :32] = 0  # a mask of pixels, for the picture alone
    given = {"samples": type(latent["samples"])(samples), "noise_mask": half}
    out, _ = advanced(made, given, host_noise())
    video, audio = out["samples"].unbind()
    torch.testing.assert_close(video[..., 0], samples[0][..., 0], rtol=0, atol=1e-6)
    assert (video[..., 2] - samples[0][..., 2]).abs().max() > 1e-2
    assert (audio - samples[1]).abs().max() > 1e-2


def test_split_schedules_join(room, run, parts, guider, clip, advanced):
    from comfy_extras.nodes_custom_sampler import Noise_EmptyNoise

    made, latent = run("HostGuider", model=parts[0], guider=guider, latent=clip)
    sigmas = torch.linspace(1, 0, 5)
    whole, _ = advanced(made, latent, host_noise(), sigmas=sigmas)
    first, _ = advanced(made, latent, host_noise(), sigmas=sigmas[:3])
    second, _ = advanced(made, first, Noise_EmptyNoise(), sigmas=sigmas[2:])
    for found, expected in zip(second["samples"].unbind(), whole["samples"].unbind(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_no_step_is_no_change(run, parts, guider, clip, advanced):
    made, latent = run("HostGuider", model=parts[0], guider=guider, latent=clip)
    out, _ = advanced(made, latent, host_noise(), sigmas=torch.empty(0))
    pairs = zip(out["samples"].unbind(), latent["samples"].unbind(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_batch_is_two_clips(run, parts, guider, clip, advanced):
    made, latent = run("HostGuider", model=parts[0], guider=guider, latent=clip)
    pair = [t.repeat(2, *[1] * (t.ndim - 1)) for t in latent["samples"].unbind()]
    given = {"samples": type(latent["samples"])(pair)}
    out, _ = advanced(made, given, host_noise())
    video, _ = out["samples"].unbind()
    assert video.shape[0] == 2
    assert not torch.equal(video[0], video[1])


@pytest.mark.parametrize("streams", ["picture", "sound"])
def test_one_stream_is_a_plain_latent(streams, run, parts, guider, advanced):
    (clip,) = run("EmptyLatent", width=96, height=64, frames=17, fps=FPS, streams=streams)
    made, latent = run("HostGuider", model=parts[0], guider=guider, latent=clip)
    assert latent["samples"].ndim == (5 if streams == "picture" else 4)
    out, denoised = advanced(made, latent, host_noise())
    assert out["samples"].shape == denoised["samples"].shape == latent["samples"].shape
    (joined,) = run("JoinLatent", video_latent=out, fps=FPS, like=clip)
    assert joined.modalities == clip.modalities
    assert (joined.video is None) == (streams == "sound")


def test_denoised_latents_come_apart_as_newer_hosts_do_it(room, parts):
    import comfy.utils

    members = [torch.randn(1, 4, 3, 2, 2), torch.randn(1, 8, 5, 16)]
    latent = room("nodes._host").Denoised(members)
    again = comfy.utils.unpack_latents(latent, [m.shape for m in members])
    assert all(torch.equal(a, b) for a, b in zip(again, members, strict=True))


def test_a_latent_of_another_size_is_refused(run, parts, guider, clip, advanced):
    made, _ = run("HostGuider", model=parts[0], guider=guider, latent=clip)
    _, other = run("HostGuider", model=parts[0], guider=guider, latent=replace(clip, width=64))
    with pytest.raises(Exception, match="wire its latent into the sampler"):
        advanced(made, other, host_noise())
    with pytest.raises(Exception, match="connect the clip that it was made for"):
        run("JoinLatent", video_latent=other, fps=FPS, like=clip)


def test_cancel_stops_within_a_step(room, run, parts, guider, clip, advanced):
    host, asked = room("nodes._host"), []
    made, latent = run("HostGuider", model=parts[0], guider=guider, latent=clip)
    inner = type(made).__call__

    class Cancelling(type(made)):
        def __call__(self, *given, **more):
            asked.append(1)
            if len(asked) == 2:
                host.mm.interrupt_current_processing(True)
            return inner(self, *given, **more)

    made.__class__ = Cancelling
    with pytest.raises(host.Cancelled):
        advanced(made, latent, host_noise())
    assert len(asked) == 2
    made.__class__ = Cancelling.__base__
    assert advanced(made, latent, host_noise())


def test_previews_take_one_frame_in_true_colours(
    room, run, parts, guider, clip, advanced, monkeypatch
):
    import latent_preview
    from comfy.cli_args import LatentPreviewMethod, args

    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Latent2RGB)
    seen = []
    decode = latent_preview.Latent2RGBPreviewer.decode_latent_to_preview
    monkeypatch.setattr(
        latent_preview.Latent2RGBPreviewer, "decode_latent_to_preview",
        lambda self, x0: seen.append(x0.shape) or decode(self, x0),
    )  # fmt: skip
    for video_vae in (None, parts[2]):
        made, latent = run(
            "HostGuider", model=parts[0], guider=guider, latent=clip, video_vae=video_vae
        )
        out, denoised = advanced(made, latent, host_noise())
        assert [t.shape for t in denoised["samples"].unbind()] == [
            t.shape for t in out["samples"].unbind()
        ]
    channels = latent["samples"].unbind()[0].shape[1]
    assert seen == [(1, channels, 1, 2, 3)] * 3  # only where a VAE says what colours mean


# over HTTP


def prompt_of(version, sampler="euler", steps=3):
    return with_host_sampler(small("text_to_video", version), sampler, steps)


@pytest.mark.parametrize("version", FILES)
def test_a_movie_from_the_samplers_of_the_host(version, client, running_host):
    outcome = client.run(prompt_of(version))
    movie = read_movie(saved(outcome, running_host.base))
    assert problems(movie, FRAMES, WIDTH, HEIGHT, FPS) == []
    assert movie.loudness > 0


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "euler_ancestral"])
def test_other_samplers_over_http(sampler, client, running_host):
    assert saved(client.run(prompt_of("2.3", sampler)), running_host.base).is_file()


def test_what_the_sampler_raises_reaches_the_user(client):
    prompt = prompt_of("2.3")
    prompt["sample"]["inputs"]["latent_image"] = ["other", 1]
    prompt["size"] = {
        "class_type": "AIPRODEmptyLatent",
        "inputs": {"width": 64, "height": 64, "frames": 9, "fps": FPS},
    }
    prompt["other"] = {
        "class_type": "AIPRODHostGuider",
        "inputs": prompt["guider"]["inputs"] | {"latent": ["size", 0]},
    }
    with pytest.raises(PromptFailed, match="wire its latent into the sampler"):
        client.run(prompt)


def test_cancel_over_http(client, running_host):
    prompt = prompt_of("2.3", steps=900)
    sent = []

    def interrupt(message):
        data = message.get("data", {})
        if message["type"] == "progress" and data["max"] == 900 and data["value"] >= 2 and not sent:
            sent.append(time.monotonic())
            client.post("/interrupt", {})

    with pytest.raises(PromptInterrupted):
        client.run(prompt, interrupt)
    assert time.monotonic() - sent[0] < 10
    assert saved(client.run(prompt_of("2.3", steps=4)), running_host.base).is_file()
