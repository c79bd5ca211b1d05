"""Times and weighs the loading of a transformer, next to plainly reading the bytes and to a peer.

    python benchmarks/load.py [--size GB] [--rank N] [--peer-python PYTHON] [--cold] [--json FILE]

Writes a synthetic LTX-2.3 transformer (published keys, configuration and dtypes; random values; two
blocks of a width that gives the size) and two LoRA files over all linears to a temporary folder.
Each measurement runs in a process of its own. The peer is `diffusers`, if the given Python has it.
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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import isnan, prod
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # appended: the host owns a module called `nodes`

PREFIX = "model.diffusion_model."
BLOCKS = 2
HEAD_DIM = 128
READ_BUFFER = 16 << 20
PUBLISHED_HEADS = 32
PUBLISHED_BYTES = 2.4e9  # of the published width with two blocks
_DTYPES = {torch.bfloat16: "BF16", torch.float32: "F32"}


# --- synthetic files -------------------------------------------------------------------------


def transformer_config(size: float) -> dict:
    """The published 2.3 configuration with two blocks of a width that gives about `size` bytes."""
    from aiprod_engine.weights.presets import preset

    heads = max(2, round(PUBLISHED_HEADS * (size / PUBLISHED_BYTES) ** 0.5))
    return preset("transformer", "2.3") | {
        "num_layers": BLOCKS,
        "num_attention_heads": heads,
        "audio_num_attention_heads": heads,
        "cross_attention_dim": heads * HEAD_DIM,
        "audio_cross_attention_dim": heads * HEAD_DIM // 2,
    }


def network(config: dict) -> torch.nn.Module:
    """The transformer without data."""
    from aiprod_engine.models.transformer import Transformer, TransformerConfig

    with torch.device("meta"):
        return Transformer(TransformerConfig.from_metadata(config, "av"))


def write_transformer(path: Path, config: dict) -> None:
    """bfloat16, modulation tables float32, under the published keys."""
    tensors = {
        PREFIX + name: (
            torch.float32 if "scale_shift_table" in name else torch.bfloat16,
            tuple(tensor.shape),
        )
        for name, tensor in network(config).state_dict().items()
    }
    text = json.dumps({"transformer": config})
    write_random(path, tensors, {"config": text, "model_version": "2.3.0"}, 0.02)


def write_lora(path: Path, config: dict, rank: int) -> None:
    """Rank-`rank` pairs for every linear."""
    tensors = {}
    for name, module in network(config).named_modules():
        if isinstance(module, torch.nn.Linear):
            base, kept = f"diffusion_model.{name}", min(rank, *module.weight.shape)
            tensors[f"{base}.lora_A.weight"] = (torch.bfloat16, (kept, module.in_features))
            tensors[f"{base}.lora_B.weight"] = (torch.bfloat16, (module.out_features, kept))
    write_random(path, tensors, {}, 0.01)


def write_random(
    path: Path,
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    metadata: Mapping[str, str],
    deviation: float,
) -> None:
    """A safetensors file of normal values, written piece by piece: it may exceed the memory."""
    header: dict = {"__metadata__": dict(metadata)}
    position = 0
    for name, (dtype, shape) in tensors.items():
        end = position + prod(shape) * dtype.itemsize
        header[name] = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    noise = torch.randn(4 << 20, generator=torch.Generator().manual_seed(0)) * deviation
    pieces = {dtype: noise.to(dtype).view(torch.uint8).numpy().data for dtype in _DTYPES}
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for dtype, shape in tensors.values():
            left, piece = prod(shape) * dtype.itemsize, pieces[dtype]
            while left:
                left -= file.write(piece[: min(left, len(piece))])
        file.flush()
        os.fsync(file.fileno())


# --- one measurement, in a process of its own ------------------------------------------------


class Watch:
    """Seconds, and how far anonymous memory rose above where it stood, inside a `with`."""

    def __init__(self) -> None:
        self.seconds = self.anonymous = self.held = self.mapped = 0.0

    @contextmanager
    def running(self) -> Iterator[Watch]:
        before, stop = resident("RssAnon"), threading.Event()
        peak = [before]

        def sample() -> None:
            while not stop.wait(0.002):
                peak[0] = max(peak[0], resident("RssAnon"))

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        start = time.perf_counter()
        yield self
        self.seconds = time.perf_counter() - start
        stop.set()
        thread.join()
        now = resident("RssAnon")
        self.anonymous, self.held = max(peak[0], now) - before, now - before
        self.mapped = resident("RssFile")

    def record(self, **more: float) -> dict:
        """What is printed."""
        names = ("seconds", "anonymous", "held", "mapped")
        return {name: getattr(self, name) for name in names} | more


def resident(field: str) -> int:
    """Resident bytes of this process by kind (RssAnon, RssFile); 0 where the system hides it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(field)), 0)


def touch(model: torch.nn.Module) -> None:
    """Copy every tensor into one reused buffer by one thread, as `read` does with the file."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    buffer = torch.empty(READ_BUFFER, dtype=torch.uint8)
    for tensor in (*model.parameters(), *model.buffers()):
        for piece in tensor.detach().reshape(-1).view(torch.uint8).split(READ_BUFFER):
            buffer[: len(piece)].copy_(piece)
    torch.set_num_threads(threads)


def read(folder: Path) -> dict:
    """Read the file from beginning to end."""
    buffer, watch = bytearray(READ_BUFFER), Watch()
    with watch.running(), (folder / "transformer.safetensors").open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return watch.record()


def _load(folder: Path, lora: str | None = None, dtype: torch.dtype | None = None) -> dict:
    from aiprod_engine.weights import loading  # imports are not what is measured

    file, watch = folder / "transformer.safetensors", Watch()
    loras = [(folder / lora, 1.0)] if lora else []
    with watch.running():
        model = loading.load("transformer", file, dtype=dtype, loras=loras)
        touch(model)
    return watch.record()


def load(folder: Path) -> dict:
    """`engine.load` as stored, every tensor used once."""
    return _load(folder)


def load_cast(folder: Path) -> dict:
    """`engine.load` with a conversion to float32."""
    return _load(folder, dtype=torch.float32)


def load_lora(folder: Path) -> dict:
    """`engine.load` with a LoRA over all linears, fused."""
    return _load(folder, "b.safetensors")


def swap_lora(folder: Path) -> dict:
    """From one LoRA to another one on a loaded network."""
    return _swap(folder, [(folder / "b.safetensors", 1.0)])


def drop_lora(folder: Path) -> dict:
    """From a LoRA to none on a loaded network."""
    return _swap(folder, [])


def _swap(folder: Path, loras: list) -> dict:
    from aiprod_engine.weights.swap import AdaptedNetwork, Base

    watch = Watch()
    base = Base("transformer", folder / "transformer.safetensors")
    adapted = AdaptedNetwork(base, [(folder / "a.safetensors", 1.0)])
    with watch.running():
        done = adapted.swap(loras)
    return watch.record(bytes_read=done.bytes_read, tensors=len(done.tensors))


def peer(folder: Path) -> dict:
    """`diffusers`: its own transformer class from a folder that it wrote itself."""
    import inspect

    import diffusers

    kind = diffusers.LTX2VideoTransformer3DModel
    config = json.loads((folder / "config.json").read_text())
    known = inspect.signature(kind.__init__).parameters
    options = {name: value for name, value in config.items() if name in known and value is not None}
    plain = {n: v for n, v in options.items() if isinstance(v, int | float) and v is not True}
    written = folder / "peer"
    if not written.exists():
        kind(**plain).to(torch.bfloat16).save_pretrained(written, max_shard_size="100GB")
        return {"written": True}
    size = sum(file.stat().st_size for file in written.glob("*.safetensors"))
    watch = Watch()
    with watch.running():
        model = kind.from_pretrained(written, torch_dtype=torch.bfloat16)
        touch(model)
    return watch.record(bytes=size, version=diffusers.__version__)


WORKERS: dict[str, Callable[[Path], dict]] = {
    work.__name__: work for work in (read, load, load_cast, load_lora, swap_lora, drop_lora, peer)
}


# --- all measurements ------------------------------------------------------------------------


def measure(name: str, folder: Path, options: argparse.Namespace) -> dict:
    """Run one worker in a fresh process."""
    for file in folder.rglob("*.safetensors"):
        _cache(file, options.cold)
    python = options.peer_python if name == "peer" else sys.executable
    command = [python, str(Path(__file__).resolve()), "--worker", name, "--folder", str(folder)]
    command += ["--threads", str(options.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"failed": reason[:200]}
    return json.loads(done.stdout.splitlines()[-1])


def _cache(file: Path, cold: bool) -> None:
    """Let the system forget the file, or have it in memory."""
    with file.open("rb", buffering=0) as handle:
        if cold:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return
        buffer = bytearray(READ_BUFFER)
        while handle.readinto(buffer):
            pass


def run(options: argparse.Namespace, folder: Path) -> dict:
    """Write the files and measure everything."""
    from aiprod_engine.weights.containers.header import read_header

    config = transformer_config(options.size * 1e9)
    write_transformer(folder / "transformer.safetensors", config)
    for name in ("a", "b"):
        write_lora(folder / f"{name}.safetensors", config, options.rank)
    (folder / "config.json").write_text(json.dumps(config))
    infos = read_header(folder / "transformer.safetensors").tensors.values()
    results: dict = {
        "bytes": (folder / "transformer.safetensors").stat().st_size,
        "largest": max(info.end - info.start for info in infos),
        "cold": options.cold,
    }
    names = [name for name in WORKERS if name != "peer"]
    results |= {name: measure(name, folder, options) for name in names}
    if options.peer_python:
        measure("peer", folder, options)  # writes its folder
        results["peer"] = measure("peer", folder, options)
    return results | {"ratios": ratios(results)}


def ratios(results: dict) -> dict[str, float]:
    """The numbers to compare; those of a measurement that failed are left out."""

    def of(name: str, key: str = "seconds") -> float:
        return results.get(name, {}).get(key, float("nan"))

    largest, size = results["largest"], results["bytes"]
    per_byte = of("peer") / of("peer", "bytes")
    found = {
        "load / read": of("load") / of("read"),
        "load with cast / read": of("load_cast") / of("read"),
        "extra memory of load / largest tensor": of("load", "anonymous") / largest,
        "extra memory of cast beside its result / largest tensor": (
            (of("load_cast", "anonymous") - of("load_cast", "held")) / largest
        ),
        "load with LoRA / load": of("load_lora") / of("load"),
        "swap LoRA / load with LoRA": of("swap_lora") / of("load_lora"),
        "drop LoRA / load": of("drop_lora") / of("load"),
        "bytes read by swap / file": of("swap_lora", "bytes_read") / size,
        "peer / load, time per byte": per_byte / (of("load") / size),
        "extra memory of peer / of its file": of("peer", "anonymous") / of("peer", "bytes"),
    }
    return {name: value for name, value in found.items() if not isnan(value)}


def describe(results: dict) -> str:
    """The table that is printed."""
    lines = [
        f"file {results['bytes'] / 1e9:.2f} GB, largest tensor {results['largest'] / 1e6:.0f} MB, "
        f"{'cold' if results['cold'] else 'in the page cache'}, torch {torch.__version__}",
        f"{'':<12} {'seconds':>8} {'extra MB':>9} {'kept MB':>8} {'mapped MB':>9} {'read MB':>8}",
    ]
    for name in WORKERS:
        found = results.get(name, {"failed": "was not run: give --peer-python"})
        if "failed" in found:
            lines.append(f"{name:<12} {found['failed']}")
            continue
        row = [found[key] / 1e6 for key in ("anonymous", "held", "mapped")]
        text = f"{name:<12} {found['seconds']:>8.2f} {row[0]:>9.0f} {row[1]:>8.0f} {row[2]:>9.0f}"
        count = found.get("bytes_read")
        lines.append(text if count is None else f"{text} {count / 1e6:>8.0f}")
    lines += [f"{name}: {value:.2f}" for name, value in results["ratios"].items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=float, default=2.0, help="of the checkpoint, in GB (1e9)")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peer-python", help="interpreter that has diffusers")
    parser.add_argument("--cold", action="store_true", help="forget the files before each reading")
    parser.add_argument("--json", type=Path, help="write the numbers there, too")
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        torch.set_num_threads(options.threads)
        sys.stdout.write(json.dumps(WORKERS[options.worker](options.folder)) + "\n")
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        results = run(options, Path(folder))
    sys.stdout.write(describe(results) + "\n")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
