"""The shipped workflows as Python data: API form, titles and notes. `tools/workflows.py` writes
both JSON forms from them, so that the two can never disagree."""

from __future__ import annotations

from typing import Any

from workflow_form import Graph

PROMPT = (
    "A steam train crosses a stone viaduct at dawn. Its whistle echoes through the valley, the "
    "wheels clatter over the joints of the rails and steam hisses past the camera."
)
FILES_NOTE = """\
## Files
| file | folder | size |
|---|---|---|
| `{checkpoint}` | `models/checkpoints` | {size} |
| `gemma_3_12B_it.safetensors` | `models/text_encoders` | 24.4 GB |

Any complete LTX-2 2.0 or 2.3 checkpoint works; press **R** after adding files.
"""
ONE_STAGE_NOTE = (
    FILES_NOTE.format(checkpoint="ltx-2.3-22b-dev.safetensors", size="46.1 GB")
    + """
## What to change
- **Empty Latent** sets size, length and frame rate for picture and sound.
- **CFG Guider** holds the strengths for both streams; its defaults are the authors' own.
- Each step evaluates the transformer four times (prompt, negative, perturbed, isolated). Set STG
  to 0 and modality to 1 for two.
"""
)


class Builder:
    """Collects nodes of one graph; `add` returns the node's key for links."""

    def __init__(self) -> None:
        self.prompt: dict[str, dict[str, Any]] = {}

    def add(self, class_type: str, title: str, **inputs: Any) -> str:
        key = str(len(self.prompt) + 1)
        # links are written as (key, slot); JSON knows lists only
        plain = {name: list(v) if isinstance(v, tuple) else v for name, v in inputs.items()}
        self.prompt[key] = {
            "inputs": plain, "class_type": class_type, "_meta": {"title": title},
        }  # fmt: skip
        return key


def text_to_video(negative: str) -> Graph:
    """One stage with full guidance: the authors' undistilled pipeline."""
    graph = Builder()
    checkpoint = graph.add(
        "AIPRODCheckpointLoader", "Checkpoint", checkpoint="ltx-2.3-22b-dev.safetensors"
    )
    gemma = graph.add(
        "AIPRODTextEncoderLoader", "Text Encoder",
        text_parts=(checkpoint, 1), encoder="gemma_3_12B_it.safetensors",
    )  # fmt: skip
    positive = graph.add("AIPRODEncodePrompt", "Prompt", text_encoder=(gemma, 0), text=PROMPT)
    unwanted = graph.add(
        "AIPRODEncodePrompt", "Negative Prompt", text_encoder=(gemma, 0), text=negative
    )
    empty = graph.add(
        "AIPRODEmptyLatent", "Size and Time", width=768, height=512, frames=121, fps=24.0
    )
    guider = graph.add(
        "AIPRODCFGGuider", "Guidance", positive=(positive, 0), negative=(unwanted, 0),
        video_cfg=3.0, audio_cfg=7.0, video_stg=1.0, audio_stg=1.0, video_modality=3.0,
        audio_modality=3.0, video_rescale=0.7, audio_rescale=0.7, stg_blocks="auto", skip_step=0,
    )  # fmt: skip
    sigmas = graph.add("AIPRODSchedule", "Schedule", schedule="ltx2", steps=30)
    sampler = graph.add(
        "AIPRODSampler", "Sampler", model=(checkpoint, 0), guider=(guider, 0), sigmas=(sigmas, 0),
        latent=(empty, 0), sampler="euler", seed=10,
    )  # fmt: skip
    frames = graph.add(
        "AIPRODDecodeVideo", "Decode Video", latent=(sampler, 0), video_vae=(checkpoint, 2),
        tiling="auto",
    )  # fmt: skip
    sound = graph.add(
        "AIPRODDecodeAudio", "Decode Audio", latent=(sampler, 0), audio_vae=(checkpoint, 3)
    )
    video = graph.add(
        "CreateVideo", "Create Video", images=(frames, 0), fps=(frames, 1), audio=(sound, 0)
    )
    graph.add(
        "SaveVideo", "Save Video", video=(video, 0), filename_prefix="video/aiprod",
        format="auto", codec="auto",
    )  # fmt: skip
    sizes = {positive: (420, 240), unwanted: (420, 240)}
    return Graph("text_to_video", graph.prompt, (ONE_STAGE_NOTE,), sizes)


def _graphs() -> tuple[Graph, ...]:
    from aiprod_engine.sampling.negative_prompt import NEGATIVE_PROMPT

    return (text_to_video(NEGATIVE_PROMPT),)


GRAPHS = _graphs()
