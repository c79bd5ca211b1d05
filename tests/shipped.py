"""The shipped workflows at a size for tests."""

import json

from tiny_checkpoint import FILES

from workflows import FOLDER

WIDTH, HEIGHT, FRAMES, FPS = 128, 64, 17, 24.0
ADDED = 16  # frames that `extend` adds


def small(name: str, version: str) -> dict:
    """The shipped API prompt at a size for tests, with the files of one release."""
    text = (FOLDER / "api" / f"{name}.json").read_text()
    for kind, file in FILES["2.3"].items():
        text = text.replace(file, FILES[version][kind])
    prompt = json.loads(text)
    changes = {
        "AIPRODEmptyLatent": {"width": WIDTH, "height": HEIGHT, "frames": FRAMES},
        "AIPRODSchedule": {"steps": 3},
        "AIPRODExtend": {"frames": ADDED, "overlap": 2},
        "AIPRODRetakeRegion": {"start": 0.2, "end": 0.5},
    }
    for node in prompt.values():
        node["inputs"] |= changes.get(node["class_type"], {})
    return prompt


def saved(outcome, base, kind="images"):
    """Path of the one file that a finished prompt saved."""
    (result,) = [o[kind][0] for o in outcome.outputs.values() if kind in o]
    return base / "output" / result["subfolder"] / result["filename"]


def with_host_sampler(prompt: dict, sampler: str = "euler", steps: int = 3) -> dict:
    """The prompt with the host's sampling nodes in place of its one Sampler."""

    def node(class_type: str, **inputs) -> dict:
        return {"class_type": class_type, "inputs": inputs}

    (key,) = [k for k, n in prompt.items() if n["class_type"] == "AIPRODSampler"]
    (schedule,) = [n for n in prompt.values() if n["class_type"] == "AIPRODSchedule"]
    schedule["inputs"]["steps"] = steps
    given = prompt[key]["inputs"]
    inputs = ("model", "guider", "latent", "guides", "video_vae")
    return prompt | {
        "guider": node("AIPRODHostGuider", **{n: given[n] for n in inputs if n in given}),
        "noise": node("RandomNoise", noise_seed=steps),
        "kind": node("KSamplerSelect", sampler_name=sampler),
        "sample": node(
            "SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0],
            sampler=["kind", 0], sigmas=given["sigmas"], latent_image=["guider", 1],
        ),
        key: node("AIPRODJoinLatent", video_latent=["sample", 0], fps=1.0, like=given["latent"]),
    }  # fmt: skip
