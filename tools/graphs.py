"""The shipped workflows as Python data: API form, titles and notes.

`tools/workflows.py` writes both JSON forms from them, so that the two can never disagree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from workflow_form import Graph

from aiprod_engine.ledger.records import record
from aiprod_engine.sampling.negative_prompt import NEGATIVE_PROMPT

Link = tuple[str, int]

DEV = "ltx-2.3-22b-dev.safetensors"
DISTILLED = "ltx-2.3-22b-distilled.safetensors"
GEMMA = "gemma_3_12B_it.safetensors"
UPSAMPLER = "ltx-2.3-spatial-upscaler-x2-1.1.safetensors"
DISTILLED_LORA = "ltx-2.3-22b-distilled-lora-384-1.1.safetensors"
CONTROL_LORA = "ltx-2.3-22b-ic-lora-union-control-ref0.5.safetensors"
DUB_LORA = "ltx-2.3-22b-ic-lora-lipdub-0.9.safetensors"

PROMPT = (
    "A steam train crosses a stone viaduct at dawn. Its whistle echoes through the valley, the "
    "wheels clatter over the joints of the rails and steam hisses past the camera."
)
STILL_PROMPT = (
    "The scene comes to life: leaves stir in a light wind, a bird calls twice, and the camera "
    "moves slowly forward while distant traffic hums."
)
VOICE_PROMPT = (
    'A woman looks into the camera and says warmly: "Good morning, and welcome aboard." Birds sing '
    "outside the window."
)
SOUND_PROMPT = (
    "Heavy rain on a tin roof, thunder rolling far away, then a kettle begins to whistle nearby."
)


def note(files: list[str], *hints: str) -> str:
    """The note of a workflow: its files with page, size and folder, then what to change."""
    rows = []
    for file in map(record, files):
        page = f"https://huggingface.co/{file.repository}"
        size = round(file.approximate_bytes / 1e9, 1)
        rows.append(f"- [{file.name}]({page}), {size} GB, into **models/{file.folder}**")
    general = [
        "",
        "Any matching LTX-2 2.0 or 2.3 file works in their place; press **R** after adding files.",
        "bf16 weights of the transformer take 38 GB; what does not fit your card streams from RAM.",
        "",
        "## What to change",
    ]
    return "\n".join(["## Files", *rows, *general, *(f"- {hint}" for hint in hints)]) + "\n"


SIZE_HINT = "**Size and Time** sets size, length and frame rate for picture and sound at once."
HALF_HINT = "**Size and Time** is the size of stage 1; the video comes out twice as wide and high."
GUIDANCE_HINT = (
    "**Guidance**: each step evaluates the transformer four times. STG 0 and modality 1 make two."
)
PLAIN_HINT = "Distilled files need no guidance: the negative text is not read."
ORDER_HINT = "Guides are chained; the order of the wire is their order."


class Builder:
    """Collects the nodes of one graph; methods return links."""

    def __init__(self) -> None:
        self.prompt: dict[str, dict[str, Any]] = {}
        self.heights: dict[str, int] = {}

    def add(self, class_type: str, title: str, **inputs: Any) -> str:
        """Add a node and return its key."""
        key = str(len(self.prompt) + 1)
        # links are written as (key, slot); JSON knows lists only
        plain = {name: list(v) if isinstance(v, tuple) else v for name, v in inputs.items()}
        self.prompt[key] = {
            "inputs": plain, "class_type": class_type, "_meta": {"title": title},
        }  # fmt: skip
        return key

    def checkpoint(self, file: str) -> str:
        self.loader = self.add("AIPRODCheckpointLoader", "Checkpoint", checkpoint=file)
        return self.loader

    def lora(self, model: Link, file: str, strength: float, title: str = "LoRA") -> Link:
        return self.add("AIPRODLoRA", title, model=model, lora=file, strength=strength), 0

    def prompts(self, checkpoint: str, text: str, negative: str = "") -> tuple[Link, Link]:
        """(positive, negative) of a prompt, encoded for a checkpoint."""
        encoder = self.add(
            "AIPRODTextEncoderLoader", "Text Encoder", text_parts=(checkpoint, 1), encoder=GEMMA
        )
        key = self.add(
            "AIPRODEncodePrompt", "Prompt", text_encoder=(encoder, 0), text=text,
            negative_text=negative,
        )  # fmt: skip
        self.heights[key] = 440 if negative else 340
        return (key, 0), (key, 1)

    def empty(self, width: int, height: int, frames: int = 121, **more: Any) -> Link:
        return (
            self.add(
                "AIPRODEmptyLatent", "Size and Time", width=width, height=height, frames=frames,
                fps=24.0, **more,
            ),
            0,
        )  # fmt: skip

    def guidance(self, positive: Link, negative: Link, **changes: Any) -> Link:
        """The authors' full guidance, with changes."""
        values = {
            "video_cfg": 3.0, "audio_cfg": 7.0, "video_stg": 1.0, "audio_stg": 1.0,
            "video_modality": 3.0, "audio_modality": 3.0, "video_rescale": 0.7,
            "audio_rescale": 0.7, "stg_blocks": "auto", "skip_step": 0,
        }  # fmt: skip
        key = self.add(
            "AIPRODCFGGuider", "Guidance", positive=positive, negative=negative, **values | changes
        )
        return key, 0

    def plain_guider(self, positive: Link, title: str = "No Guidance") -> Link:
        return self.add("AIPRODGuider", title, positive=positive), 0

    def schedule(self, steps: int = 30, **more: Any) -> Link:
        return self.add("AIPRODSchedule", "Schedule", schedule="ltx2", steps=steps, **more), 0

    def distilled(self, stage: str = "stage 1") -> Link:
        title = f"Schedule, {stage}"
        return self.add("AIPRODDistilledSchedule", title, stage=stage), 0

    def sample(
        self, model: Link, guider: Link, sigmas: Link, latent: Link, title: str = "Sampler",
        sampler: str = "euler", **more: Any,
    ) -> Link:  # fmt: skip
        if "guides" not in more:  # guides bring their own video VAE for the live preview
            more["video_vae"] = (self.loader, 2)
        key = self.add(
            "AIPRODSampler", title, model=model, guider=guider, sigmas=sigmas, latent=latent,
            sampler=sampler, seed=10, **more,
        )  # fmt: skip
        return key, 0

    def upsample(self, checkpoint: str, latent: Link) -> Link:
        loader = self.add("AIPRODUpsamplerLoader", "Upsampler", upsampler_file=UPSAMPLER)
        key = self.add(
            "AIPRODUpsampleLatent", "Twice the Size", latent=latent, upsampler=(loader, 0),
            video_vae=(checkpoint, 2),
        )  # fmt: skip
        return key, 0

    def save(self, name: str, checkpoint: str, latent: Link, **more: Any) -> None:
        """Decode a clip while the host writes it."""
        video = self.add(
            "AIPRODDecodeToVideo", "Decode to Video", latent=latent, video_vae=(checkpoint, 2),
            audio_vae=(checkpoint, 3), **more,
        )  # fmt: skip
        self.save_video(name, (video, 0))

    def save_video(self, name: str, video: Link) -> None:
        self.add(
            "SaveVideo", "Save Video", video=video, filename_prefix=f"video/{name}",
            format="auto", codec="auto",
        )  # fmt: skip

    def source(self) -> tuple[Link, Link, Link]:
        """(frames, sound, fps) of a video of the user's."""
        video = self.add("LoadVideo", "Your Video", file="example.mp4")
        parts = self.add("GetVideoComponents", "Frames and Sound", video=(video, 0))
        return (parts, 0), (parts, 1), (parts, 2)

    def two_stages(
        self, name: str, checkpoint: str, positive: Link, latent: Link, **guides: Any
    ) -> None:
        """The authors' distilled pipeline: eight steps, twice the size, three steps."""
        model, guider = (checkpoint, 0), self.plain_guider(positive)
        half = self.sample(model, guider, self.distilled(), latent, "Sampler, stage 1", **guides)
        full = self.upsample(checkpoint, half)
        second = self.distilled("stage 2")
        full = self.sample(model, guider, second, full, "Sampler, stage 2", **guides)
        self.save(name, checkpoint, full)

    def image_guide(self, checkpoint: str, frame: int, title: str, file: str, **more: Any) -> Link:
        image = self.add("LoadImage", title, image=file)
        key = self.add(
            "AIPRODImageGuide", f"{title}, as a guide", image=(image, 0),
            video_vae=(checkpoint, 2), frame=frame, strength=1.0, compression=-1, **more,
        )  # fmt: skip
        return key, 0


def text_to_video(g: Builder) -> str:
    """One stage with full guidance: the authors' undistilled pipeline."""
    checkpoint = g.checkpoint(DEV)
    positive, negative = g.prompts(checkpoint, PROMPT, NEGATIVE_PROMPT)
    latent = g.sample(
        (checkpoint, 0), g.guidance(positive, negative), g.schedule(), g.empty(768, 512)
    )
    frames = g.add(
        "AIPRODDecodeVideo", "Decode Video", latent=latent, video_vae=(checkpoint, 2), tiling="auto"
    )
    sound = g.add("AIPRODDecodeAudio", "Decode Audio", latent=latent, audio_vae=(checkpoint, 3))
    video = g.add(
        "CreateVideo", "Create Video", images=(frames, 0), fps=(frames, 1), audio=(sound, 0)
    )
    g.save_video("text_to_video", (video, 0))
    return note([DEV, GEMMA], SIZE_HINT, GUIDANCE_HINT)


def text_to_video_distilled(g: Builder) -> str:
    """Two stages without guidance: eight steps at half size, three at full size."""
    checkpoint = g.checkpoint(DISTILLED)
    positive, _ = g.prompts(checkpoint, PROMPT)
    g.two_stages("text_to_video_distilled", checkpoint, positive, g.empty(768, 512))
    return note([DISTILLED, GEMMA, UPSAMPLER], HALF_HINT, PLAIN_HINT)


def text_to_video_hq(g: Builder) -> str:
    """Two stages with res_2s and the distilled LoRA at 0.25, then 0.5."""
    checkpoint = g.checkpoint(DEV)
    positive, negative = g.prompts(checkpoint, PROMPT, NEGATIVE_PROMPT)
    latent = g.empty(960, 544)
    first = g.lora((checkpoint, 0), DISTILLED_LORA, 0.25, "Distilled LoRA, stage 1")
    second = g.lora(first, DISTILLED_LORA, 0.25, "Distilled LoRA, stage 2: 0.5 in all")
    strong = g.guidance(
        positive, negative, video_stg=0.0, audio_stg=0.0, video_rescale=0.45, audio_rescale=1.0
    )
    sigmas = g.schedule(15, latent=latent)
    half = g.sample(first, strong, sigmas, latent, "Sampler, stage 1", "res_2s")
    full = g.upsample(checkpoint, half)
    plain = (strong[0], 1)
    full = g.sample(second, plain, g.distilled("stage 2"), full, "Sampler, stage 2", "res_2s")
    g.save("text_to_video_hq", checkpoint, full, sound_latent=half)
    return note(
        [DEV, GEMMA, UPSAMPLER, DISTILLED_LORA],
        HALF_HINT,
        "The LoRA acts at 0.25 in stage 1 and at 0.5 in stage 2; the sound is that of stage 1.",
    )


def image_to_video(g: Builder) -> str:
    """The distilled pipeline, begun with a picture."""
    checkpoint = g.checkpoint(DISTILLED)
    positive, _ = g.prompts(checkpoint, STILL_PROMPT)
    guides = g.image_guide(checkpoint, 0, "First Frame", "example.png")
    g.two_stages("image_to_video", checkpoint, positive, g.empty(768, 512), guides=guides)
    return note(
        [DISTILLED, GEMMA, UPSAMPLER],
        HALF_HINT,
        PLAIN_HINT,
        "If the picture stays still: describe motion, lower its strength to 0.7, or raise its "
        "compression.",
    )


def first_last_frame(g: Builder) -> str:
    """One stage between two pictures."""
    checkpoint = g.checkpoint(DEV)
    positive, negative = g.prompts(checkpoint, STILL_PROMPT, NEGATIVE_PROMPT)
    first = g.image_guide(checkpoint, 0, "First Frame", "example.png")
    both = g.image_guide(checkpoint, -1, "Last Frame", "example_last.png", guides=first)
    latent = g.sample(
        (checkpoint, 0), g.guidance(positive, negative), g.schedule(), g.empty(768, 512),
        guides=both,
    )  # fmt: skip
    g.save("first_last_frame", checkpoint, latent)
    return note([DEV, GEMMA], SIZE_HINT, ORDER_HINT, GUIDANCE_HINT)


def reference_video(g: Builder) -> str:
    """A control video followed by an IC-LoRA."""
    checkpoint = g.checkpoint(DISTILLED)
    model = g.lora((checkpoint, 0), CONTROL_LORA, 1.0, "IC-LoRA")
    positive, _ = g.prompts(checkpoint, PROMPT)
    frames, _, _ = g.source()
    reference = g.add(
        "AIPRODReferenceVideoGuide", "Reference", images=frames, video_vae=(checkpoint, 2),
        strength=1.0, attention=1.0,
    )  # fmt: skip
    guider = g.plain_guider(positive)
    latent = g.sample(
        model, guider, g.distilled(), g.empty(768, 512), guides=(reference, 0)
    )  # fmt: skip
    g.save("reference_video", checkpoint, latent)
    return note(
        [DISTILLED, GEMMA, CONTROL_LORA],
        SIZE_HINT,
        "Load the video that the IC-LoRA was made for: depth, pose, edges, or a clip to change.",
        "The size of the reference inside the model comes from the LoRA; sizes must be multiples "
        "of 64 for a half-size one.",
    )


def audio_to_video(g: Builder) -> str:
    """Pictures to a given sound track."""
    checkpoint = g.checkpoint(DEV)
    positive, negative = g.prompts(checkpoint, VOICE_PROMPT, NEGATIVE_PROMPT)
    sound = g.add("LoadAudio", "Your Sound", audio="example.wav")
    track = g.add(
        "AIPRODAudioTrackGuide", "Sound, as a guide", audio=(sound, 0), audio_vae=(checkpoint, 3)
    )
    latent = g.sample(
        (checkpoint, 0), g.guidance(positive, negative), g.schedule(), g.empty(768, 512),
        guides=(track, 0), video_vae=(checkpoint, 2),
    )  # fmt: skip
    g.save("audio_to_video", checkpoint, latent, audio=(sound, 0))
    return note(
        [DEV, GEMMA],
        SIZE_HINT,
        "The video carries your own sound, not a decoded one; it is cut to the picture's length.",
    )


def text_to_audio(g: Builder) -> str:
    """Sound alone, with the sound's part of the transformer."""
    checkpoint = g.checkpoint(DEV)
    positive, negative = g.prompts(checkpoint, SOUND_PROMPT, NEGATIVE_PROMPT)
    guider = g.guidance(positive, negative, audio_modality=1.0)
    latent = g.sample(
        (checkpoint, 0), guider, g.schedule(), g.empty(768, 512, streams="sound")
    )  # fmt: skip
    sound = g.add("AIPRODDecodeAudio", "Decode Audio", latent=latent, audio_vae=(checkpoint, 3))
    g.add("SaveAudio", "Save Audio", audio=(sound, 0), filename_prefix="audio/text_to_audio")
    return note([DEV, GEMMA], "**Size and Time**: frames and rate say how long the sound is.")


def retake(g: Builder) -> str:
    """A time window of a finished clip made again."""
    checkpoint = g.checkpoint(DISTILLED)
    positive, _ = g.prompts(checkpoint, PROMPT)
    frames, sound, fps = g.source()
    region = g.add(
        "AIPRODRetakeRegion", "Window", images=frames, video_vae=(checkpoint, 2), start=1.0,
        end=2.0, regenerate="picture and sound", audio=sound, audio_vae=(checkpoint, 3), fps=fps,
    )  # fmt: skip
    latent = g.sample(
        (checkpoint, 0), g.plain_guider(positive), g.distilled(), (region, 1), guides=(region, 0)
    )
    g.save("retake", checkpoint, latent)
    return note(
        [DISTILLED, GEMMA],
        "**Window**: seconds of your video; everything outside stays as it is.",
        "Sides of the video must be multiples of 32; frames beyond the last 8k + 1 are left out.",
    )


def extend(g: Builder) -> str:
    """A finished clip goes on, picture and sound."""
    checkpoint = g.checkpoint(DISTILLED)
    positive, _ = g.prompts(checkpoint, PROMPT)
    frames, sound, fps = g.source()
    video = g.add(
        "AIPRODEncodeVideo", "Encode Video", images=frames, video_vae=(checkpoint, 2), fps=fps
    )
    clip = g.add(
        "AIPRODEncodeAudio", "Encode Audio", audio=sound, audio_vae=(checkpoint, 3),
        latent=(video, 0),
    )  # fmt: skip
    longer = g.add(
        "AIPRODExtend", "Extend", model=(checkpoint, 0), guider=g.plain_guider(positive),
        sigmas=g.distilled(), latent=(clip, 0), frames=80, overlap=3, strength=0.5,
        sampler="euler", seed=10, video_vae=(checkpoint, 2),
    )  # fmt: skip
    g.save("extend", checkpoint, (longer, 0))
    return note(
        [DISTILLED, GEMMA],
        "**Extend** adds frames at the end; chain several for a longer clip.",
        "A clip that you have just sampled can go in directly, without encoding.",
    )


def dub(g: Builder) -> str:
    """A clip spoken anew with the voice of its own sound."""
    checkpoint = g.checkpoint(DISTILLED)
    model = g.lora((checkpoint, 0), DUB_LORA, 1.0, "Dubbing LoRA")
    positive, _ = g.prompts(checkpoint, VOICE_PROMPT)
    frames, sound, _ = g.source()
    picture = g.add(
        "AIPRODReferenceVideoGuide", "Face to keep", images=frames, video_vae=(checkpoint, 2),
        strength=1.0, attention=1.0,
    )  # fmt: skip
    voice = g.add(
        "AIPRODReferenceAudioGuide", "Voice to keep", audio=sound, audio_vae=(checkpoint, 3),
        strength=1.0, guides=(picture, 0),
    )  # fmt: skip
    latent = g.sample(
        model, g.plain_guider(positive), g.distilled(), g.empty(768, 512), guides=(voice, 0)
    )
    g.save("dub", checkpoint, latent)
    return note(
        [DISTILLED, GEMMA, DUB_LORA],
        SIZE_HINT,
        "Set frames and rate to those of your video; write the new words into the prompt.",
    )


def build(make: Callable[[Builder], str]) -> Graph:
    """The graph that one of the functions above describes."""
    builder = Builder()
    text = make(builder)
    return Graph(make.__name__, builder.prompt, (text,), builder.heights)


GRAPHS = tuple(
    build(make)
    for make in (
        text_to_video, text_to_video_distilled, text_to_video_hq, image_to_video,
        first_last_frame, reference_video, audio_to_video, text_to_audio, retake, extend, dub,
    )
)  # fmt: skip
