"""Weighs decode and the streamed transformer: peak memory over weights, next to a peer.

    python benchmarks/memory.py [--frames N ...] [--ways WAY ...] [--peer-python PYTHON]

Decoders of quarter width with the published layouts and random weights, one thread, float32. Each
figure is the peak of the resident set over what it was with all weights in memory, in a process of
its own whose allocator returns what is freed. Seconds are those of the processor, for the shortest
length, with the allocator as it comes, which touches fewer fresh pages. Tiles are 256 pixels and 32
frames large and overlap by 64 and 16; `rows` streams each frame in stripes. The streamed
transformer has weights of four times its budget. The peer is `diffusers`, a black box, if the given
Python has it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # appended: the host owns a module called `nodes`

VERSIONS = ("2.3", "2.0")
WAYS = ("streamed", "rows", "tiled", "untiled")
PEER_WAYS = ("tiled", "untiled")
TILES = (256, 64, 32, 16)  # pixels, their overlap, frames, their overlap
# Arguments of the peer's autoencoder; channels in units of the base channels. Those of 2.3 are the
# ones that make tensors of the same shapes.
PEERS = {
    "2.0": {"decoder_block_out_channels": (2, 4, 8), "decoder_causal": False},
    "2.3": {
        "decoder_block_out_channels": (2, 4, 4, 8),
        "decoder_layers_per_block": (4, 6, 4, 2, 2),
        "decoder_spatio_temporal_scaling": (True,) * 4,
        "decoder_inject_noise": (False,) * 5,
        "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
        "upsample_residual": (False,) * 4,
        "upsample_factor": (2, 2, 1, 2),
        "decoder_causal": False,
        "decoder_spatial_padding_mode": "zeros",
    },
}
QUARTER = 32  # base channels; released decoders have 128
BLOCKS, BUDGET = 24, 4  # the transformer's weights are so many times its budget
MIB = 2**20


# --- one measurement, in a process of its own ------------------------------------------------


@contextmanager
def peak(found: dict) -> Iterator[None]:
    """Seconds of this thread, and how far anonymous memory rose above where it stood."""
    before, stop = resident(), threading.Event()
    highest = [before]

    def sample() -> None:
        while not stop.wait(0.002):
            highest[0] = max(highest[0], resident())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    start = time.thread_time()
    yield
    found["seconds"] = time.thread_time() - start
    stop.set()
    thread.join()
    found["peak"] = max(highest[0], resident()) - before


def resident() -> int:
    """Anonymous resident bytes of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) << 10
    raise OSError("this benchmark needs the resident set of Linux")


def decoder_of(version: str, base: int):
    """A decoder of the published layout, narrower, filled with random values."""
    import torch

    from aiprod_engine.models.video_vae import VideoDecoder, VideoVAEConfig
    from aiprod_engine.weights.presets import preset

    section = preset("vae", version) | {"decoder_base_channels": base}
    with torch.device("meta"):
        decoder = VideoDecoder(VideoVAEConfig.from_metadata(section))
    return filled(decoder)


def filled(module):
    """Every tensor random, small enough for any depth."""
    import torch

    state = {k: torch.randn(v.shape) * 0.02 for k, v in module.state_dict().items()}
    module.load_state_dict(state, assign=True, strict=True)
    return module.eval().requires_grad_(False)


def decode(version: str, way: str, size: list[int], base: int) -> dict:
    """One decode; frames are counted and dropped, as a video encoder does."""
    import torch

    from aiprod_engine.models.video_vae.streaming import FRAME, STRIPES
    from aiprod_engine.pipelines.decode import DecodeWay
    from aiprod_engine.tiling import TileSizes

    frames, height, width = size
    decoder = decoder_of(version, base)
    shape = (1, decoder.config.latent_channels, (frames - 1) // 8 + 1, height // 32, width // 32)
    latent = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    sizes = TileSizes(*TILES) if way == "tiled" else None
    piece = STRIPES if way == "rows" else FRAME
    chosen = DecodeWay(way, 0, sizes, is_whole=way == "untiled", piece=piece)
    found: dict = {}
    with torch.inference_mode(), peak(found):
        found["frames"] = sum(chunk.shape[2] for chunk in chosen.chunks(decoder, latent))
    return found


def peer(version: str, way: str, size: list[int], base: int) -> dict:
    """The same decode by `diffusers`."""
    import diffusers
    import torch

    frames, height, width = size
    layout = dict(PEERS[version])
    widths = tuple(base * factor for factor in layout.pop("decoder_block_out_channels"))
    encoder = tuple(base * factor for factor in (2, 4, 8, 16))  # not used
    vae = filled(
        diffusers.AutoencoderKLLTX2Video(
            block_out_channels=encoder,
            decoder_block_out_channels=widths,
            spatial_compression_ratio=32,
            temporal_compression_ratio=8,
            **layout,
        )
    )
    if way == "tiled":
        pixels, overlap, length, shared = TILES
        vae.enable_tiling(pixels, pixels, length, *[pixels - overlap] * 2, length - shared)
        vae.use_framewise_decoding = True
    shape = (1, 128, (frames - 1) // 8 + 1, height // 32, width // 32)
    latent = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found: dict = {"version": diffusers.__version__}
    with torch.inference_mode(), peak(found):
        pixels = vae.decode(latent, return_dict=False)[0]
    return found | {"frames": pixels.shape[2]}


def empty_transformer(heads: int):
    """A transformer of published layout, narrower and half as deep, without data."""
    import torch

    from aiprod_engine.models.transformer import Transformer, TransformerConfig
    from aiprod_engine.weights.presets import preset

    raw = preset("transformer", "2.3") | {
        "num_layers": BLOCKS, "num_attention_heads": heads, "audio_num_attention_heads": heads,
        "cross_attention_dim": heads * 128, "audio_cross_attention_dim": heads * 64,
    }  # fmt: skip
    config = TransformerConfig.from_metadata(raw, "av")
    with torch.device("meta"):
        return Transformer(config)


def write_transformer(path: str, heads: int) -> dict:
    """Random weights in a file."""
    import torch
    from safetensors.torch import save_file

    shapes = empty_transformer(heads).state_dict().items()
    save_file({name: torch.randn(tensor.shape) * 0.02 for name, tensor in shapes}, path)
    return {}


def transformer(path: str, heads: int, policy: str) -> dict:
    """One forward from the mapped file; a CPU with copies plays the device."""
    import torch
    from safetensors.torch import load_file

    from aiprod_engine.memory.residency import Residency
    from aiprod_engine.types import Modality

    model = empty_transformer(heads)
    model.load_state_dict(load_file(path), assign=True, strict=True)  # views of the file
    model.eval().requires_grad_(False)

    def stream(side, tokens: int) -> Modality:
        return Modality(
            tokens=torch.randn(1, tokens, side.in_channels),
            sigma=torch.ones(1),
            timesteps=torch.ones(1, 1, 1),
            positions=torch.rand(1, len(side.max_pos), tokens, 2),
            context=torch.randn(1, 64, side.dim),
        )

    inputs = stream(model.config.video, 256), stream(model.config.audio, 32)
    residency = Residency(model, always_copies=True)
    budget = residency.total_bytes / BUDGET if policy == "streamed" else float("inf")
    found: dict = {"weights": residency.total_bytes}
    with torch.inference_mode(), peak(found):
        residency.place(torch.device("cpu"), budget)
        model(*inputs)
        found["placed"] = residency.placed_bytes
    residency.release()
    return found


WORKERS: dict[str, Callable[..., dict]] = {
    work.__name__: work for work in (decode, peer, write_transformer, transformer)
}


# --- all measurements ------------------------------------------------------------------------


def measure(
    worker: str, *arguments: object, python: str = sys.executable, returns_memory: bool = True
) -> dict:
    """Run one worker in a fresh process with one thread; says so, for it may take minutes."""
    sys.stderr.write(f"{worker} {' '.join(map(str, arguments))}\n")
    command = [python, str(Path(__file__).resolve()), "--worker", worker, json.dumps(arguments)]
    # without a fixed threshold freed tensors stay in the heap and count as resident
    thresholds = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    settings = os.environ | (thresholds if returns_memory else {})
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=settings)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no output"])[-1][:200]}
    return json.loads(done.stdout.splitlines()[-1])


def weigh(worker: str, *arguments: object, is_timed: bool, python: str = sys.executable) -> dict:
    """The peak of a worker, and its seconds in a second process if `is_timed`."""
    found = measure(worker, *arguments, python=python)
    found.pop("seconds", None)
    if is_timed and "failed" not in found:
        again = measure(worker, *arguments, python=python, returns_memory=False)
        found["seconds"] = again["seconds"]
    return found


def run(options: argparse.Namespace) -> dict:
    """Every figure by name."""
    results: dict = {}
    for version in options.versions:
        for frames in options.frames:
            size = [frames, options.height, options.width]
            for way in options.ways:
                if way == "untiled" and frames > options.longest_untiled:
                    continue
                name = f"{version} {way} {frames}"
                is_timed = frames == min(options.frames)
                arguments = (version, way, size, options.base)
                results[name] = weigh("decode", *arguments, is_timed=is_timed)
                if way in PEER_WAYS and options.peer_python:
                    name, python = f"{version} diffusers {way} {frames}", options.peer_python
                    results[name] = weigh("peer", *arguments, is_timed=is_timed, python=python)
    if options.only == "decode":
        return results | {"ratios": ratios(results, options)}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "transformer.safetensors")
        measure("write_transformer", path, options.heads)
        for policy in ("streamed", "resident"):
            results[f"transformer {policy}"] = measure("transformer", path, options.heads, policy)
    return results | {"ratios": ratios(results, options)}


def ratios(results: dict, options: argparse.Namespace) -> dict[str, float]:
    """The numbers to compare; those of a measurement that failed are left out."""

    def of(name: str, key: str = "peak") -> float:
        return results.get(name, {}).get(key, float("nan"))

    frames = sorted(options.frames)
    long = frames[-1]
    found = {}
    for version in options.versions:
        for shorter in frames[:-1]:
            name = f"{version}: streamed, {long} over {shorter} frames"
            found[name] = of(f"{version} streamed {long}") / of(f"{version} streamed {shorter}")
        for count in frames:
            streamed = f"{version} streamed {count}"
            for way in ("rows", "tiled", "untiled", "diffusers tiled", "diffusers untiled"):
                name = f"{version}: {way} over streamed, {count} frames"
                found[name] = of(f"{version} {way} {count}") / of(streamed)
            seconds = of(streamed, "seconds") / of(f"{version} untiled {count}", "seconds")
            found[f"{version}: seconds streamed over untiled, {count} frames"] = seconds
    weights = of("transformer streamed", "weights")
    found |= {
        "transformer: streamed over weights": of("transformer streamed") / weights,
        "transformer: resident over weights": of("transformer resident") / weights,
    }
    return {name: value for name, value in found.items() if value == value}  # NaN


def describe(results: dict) -> str:
    """The table that is printed."""
    lines = [f"{'':<28} {'MiB over weights':>16} {'seconds':>8}"]
    for name, found in results.items():
        if name == "ratios":
            continue
        if "failed" in found:
            lines.append(f"{name:<28} {found['failed']}")
            continue
        seconds = f"{found['seconds']:>8.1f}" if "seconds" in found else ""
        lines.append(f"{name:<28} {found['peak'] / MIB:>16.0f} {seconds}".rstrip())
    lines += [f"{name}: {value:.2f}" for name, value in results["ratios"].items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--height", type=int, default=320)
    parser.add_argument("--frames", type=int, nargs="+", default=[49, 121, 257])
    parser.add_argument("--versions", nargs="+", choices=VERSIONS, default=VERSIONS)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--base", type=int, default=QUARTER, help="channels; released: 128")
    parser.add_argument("--heads", type=int, default=8, help="of the transformer; released: 32")
    parser.add_argument("--longest-untiled", type=int, default=257, metavar="FRAMES")
    parser.add_argument("--peer-python", help="interpreter that has diffusers")
    parser.add_argument("--only", choices=("decode",), help="leave out the transformer")
    parser.add_argument("--json", type=Path, help="write the numbers there, too")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        import torch

        torch.set_num_threads(1)
        name, arguments = options.worker
        sys.stdout.write(json.dumps(WORKERS[name](*json.loads(arguments))) + "\n")
        return
    results = run(options)
    sys.stdout.write(describe(results) + "\n")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
