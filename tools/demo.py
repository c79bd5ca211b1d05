"""`make demo`: a prompt becomes an MP4 with sound through the pack's nodes on a real ComfyUI.

The weights are tiny and random, written in seconds in the published file formats, so the picture
is abstract; every part of the path is the one that full-size files take.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # appended: the host owns a module called `nodes`

from host import HostError, make_base, run_host  # noqa: E402
from host_client import HostClient, PromptFailed, PromptRejected  # noqa: E402
from mp4_check import problems, read_movie  # noqa: E402
from tiny_checkpoint import write_models  # noqa: E402


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--workflow", default="text_to_video")
    parser.add_argument("--version", default="2.3", choices=("2.0", "2.3"))
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--height", type=int, default=160)
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--output", type=Path, default=ROOT / "output")
    return parser.parse_args()


def adapt(prompt: dict, options: argparse.Namespace) -> dict:
    """The shipped workflow with the user's prompt, at a size for a CPU."""
    widgets = {
        "AIPRODEmptyLatent": {
            "width": options.width, "height": options.height, "frames": options.frames,
        },
        "AIPRODSchedule": {"steps": options.steps},
    }  # fmt: skip
    for node in prompt.values():
        node["inputs"] |= widgets.get(node["class_type"], {})
        if node["class_type"] == "AIPRODEncodePrompt" and node["_meta"]["title"] == "Prompt":
            node["inputs"]["text"] = options.prompt
    return prompt


class Bar:
    """One progress bar per node, fed by the host's websocket."""

    def __init__(self, prompt: dict):
        self.titles = {key: node["_meta"]["title"] for key, node in prompt.items()}
        self.bar: tqdm | None = None

    def __call__(self, message: dict) -> None:
        data = message.get("data", {})
        if message["type"] == "executing" and data.get("node"):
            self.close()
            self.bar = tqdm(desc=f"{self.titles[data['node']]:<16}", total=1, leave=True)
        if message["type"] == "progress" and self.bar is not None:
            self.bar.total = data["max"]
            self.bar.update(data["value"] - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.update(self.bar.total - self.bar.n)
            self.bar.close()
            self.bar = None


def run(options: argparse.Namespace, base: Path) -> Path:
    """Run the workflow on a host below `base`; returns the MP4, copied to the output folder."""
    make_base(base)
    write_models(base / "models", options.version)
    source = ROOT / "workflows" / "api" / f"{options.workflow}.json"
    prompt = adapt(json.loads(source.read_text()), options)
    bar = Bar(prompt)
    print("Starting ComfyUI on the CPU ...")
    with run_host(base) as running:
        outcome = HostClient(running.url).run(prompt, bar)
        bar.close()
        saved = next(o["images"][0] for o in outcome.outputs.values() if "images" in o)
        made = base / "output" / saved["subfolder"] / saved["filename"]
        options.output.mkdir(parents=True, exist_ok=True)
        target = options.output / f"aiprod_{options.workflow}_{time.strftime('%H%M%S')}.mp4"
        shutil.copyfile(made, target)
    return target


def main() -> int:
    logging.basicConfig(level=logging.WARNING)
    options = parse()
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="aiprod-demo-") as base:
            target = run(options, Path(base))
    except (HostError, PromptFailed, PromptRejected) as error:
        sentences = error.sentences() if isinstance(error, PromptRejected) else [str(error)]
        print("\n".join(sentences), file=sys.stderr)
        return 1
    movie = read_movie(target)
    wrong = problems(movie, options.frames, options.width, options.height, 24.0)
    for problem in wrong:
        print(f"wrong: {problem}", file=sys.stderr)
    print(
        f"{target}\n{movie.width}x{movie.height}, {movie.frames} frames at {movie.fps:g} fps "
        f"({movie.video_codec}), {movie.audio_seconds:.2f} s of sound at {movie.sample_rate} Hz "
        f"({movie.audio_codec}), made in {time.monotonic() - started:.0f} s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
