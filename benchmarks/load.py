"""Times and weighs the loading of a transformer, next to plainly reading the bytes and to a peer.

    python benchmarks/load.py [--size GB] [--rank N] [--passes N] [--peer-python PYTHON] [--cold]
                              [--json FILE]

Writes a synthetic LTX-2.3 transformer (published keys, configuration and dtypes; random values; two
blocks of a width that gives the size), two LoRA files over all linears, and a transformer of the
published size without data (a sparse file) to a temporary folder. Each measurement runs in a
process of its own. Reading and loading differ by less than a busy machine adds, so they take turns
in several passes, of which the fastest counts. The peer is `diffusers`, if the given Python has it.
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
FULL = "full.sft"  # a suffix of its own: nobody reads it to have it in memory
_DTYPES = {torch.bfloat16: "BF16", torch.float32: "F32"}
Tensors = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


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


def write_transformer(path: Path, config: dict, is_sparse: bool = False) -> None:
    """bfloat16, modulation tables float32, under the published keys; sparse: all zero, no disk."""
    tensors = {
        PREFIX + name: (
            torch.float32 if "scale_shift_table" in name else torch.bfloat16,
            tuple(tensor.shape),
        )
        for name, tensor in network(config).state_dict().items()
    }
    metadata = {"config": json.dumps({"transformer": config}), "model_version": "2.3.0"}
    if is_sparse:
        text, size = header(tensors, metadata)
        path.write_bytes(text)
        os.truncate(path, len(text) + size)
    else:
        write_random(path, tensors, metadata, 0.02)


def write_lora(path: Path, config: dict, rank: int) -> None:
    """Rank-`rank` pairs for every linear."""
    tensors = {}
    for name, module in network(config).named_modules():
        if isinstance(module, torch.nn.Linear):
            base, kept = f"diffusion_model.{name}", min(rank, *module.weight.shape)
            tensors[f"{base}.lora_A.weight"] = (torch.bfloat16, (kept, module.in_features))
            tensors[f"{base}.lora_B.weight"] = (torch.bfloat16, (module.out_features, kept))
    write_random(path, tensors, {}, 0.01)


def header(tensors: Tensors, metadata: Mapping[str, str]) -> tuple[bytes, int]:
    """What a safetensors file begins with, and the bytes of data that follow."""
    entries: dict = {"__metadata__": dict(metadata)}
    position = 0
    for name, (dtype, shape) in tensors.items():
        end = position + prod(shape) * dtype.itemsize
        entries[name] = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, position


def write_random(
    path: Path, tensors: Tensors, metadata: Mapping[str, str], deviation: float
) -> None:
    """A safetensors file of normal values, written piece by piece: it may exceed the memory."""
    noise = torch.randn(4 << 20, generator=torch.Generator().manual_seed(0)) * deviation
    pieces = {dtype: noise.to(dtype).view(torch.uint8).numpy().data for dtype in _DTYPES}
    with path.open("wb") as file:
        file.write(header(tensors, metadata)[0])
        for dtype, shape in tensors.values():
            left, piece = prod(shape) * dtype.itemsize, pieces[dtype]
            while left:
                left -= file.write(piece[: min(left, len(piece))])
        file.flush()
        os.fsync(file.fileno())


# --- one measurement, in a process of its own ------------------------------------------------


class Watch:
    """Seconds on the clock and of the processor, and the rise of anonymous memory in a `with`."""

    def __init__(self) -> None:
        self.seconds = self.cpu = self.anonymous = self.held = self.mapped = 0.0

    @contextmanager
    def running(self) -> Iterator[Watch]:
        before, stop = resident("RssAnon"), threading.Event()
        peak = [before]

        def sample() -> None:
            while not stop.wait(0.002):
                peak[0] = max(peak[0], resident("RssAnon"))

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        start, begin = time.perf_counter(), time.process_time()
        yield self
        self.seconds, self.cpu = time.perf_counter() - start, time.process_time() - begin
        stop.set()
        thread.join()
        now = resident("RssAnon")
        self.anonymous, self.held = max(peak[0], now) - before, now - before
        self.mapped = resident("RssFile")

    def record(self, **more: float) -> dict:
        """What is printed."""
        names = ("seconds", "cpu", "anonymous", "held", "mapped")
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


def inspect_full(folder: Path) -> dict:
    """`engine.inspect` of a transformer of the published size: what it is, from its header."""
    from aiprod_engine.weights import inspect

    watch = Watch()
    with watch.running():
        inspect(folder / FULL)
    return watch.record()


def open_full(folder: Path) -> dict:
    """`engine.load` of a transformer of the published size, of which no weight is used."""
    from aiprod_engine.weights import loading

    watch = Watch()
    with watch.running():
        loading.load("transformer", folder / FULL)
    return watch.record()


def place(folder: Path) -> dict:
    """Loaded, and copied to a device, which the CPU plays; extra is what is beside its buffers."""
    return _place(folder)


def place_lora(folder: Path) -> dict:
    """The same with a LoRA over all linears, which the device fuses: swapping by a full reload."""
    return _place(folder, "b.safetensors")


def stream_lora(folder: Path) -> dict:
    """The same where no block stays: every block visits the device once."""
    return _place(folder, "b.safetensors", "stream")


def swap_lora(folder: Path) -> dict:
    """From one LoRA over all linears to another one, on the device."""
    return _swap(folder, ("a.safetensors", 1.0), ("b.safetensors", 1.0))


def drop_lora(folder: Path) -> dict:
    """From a LoRA to none."""
    return _swap(folder, ("a.safetensors", 1.0))


def swap_beside(folder: Path) -> dict:
    """Another strength of a LoRA that runs beside the weights."""
    return _swap(folder, ("a.safetensors", 1.0, True), ("a.safetensors", 0.5, True))


def _network(folder: Path, policy: str = "resident"):
    from aiprod_engine.memory.residency import Residency
    from aiprod_engine.weights.recipe import Recipe
    from aiprod_engine.weights.swap import AdaptedNetwork

    recipe = Recipe("transformer", (str(folder / "transformer.safetensors"),))
    return AdaptedNetwork(recipe, lambda module: Residency(module, policy, always_copies=True))


def _uses(folder: Path, *loras: tuple) -> list:
    from aiprod_engine.weights.recipe import LoraUse

    return [LoraUse(str(folder / name), value, value, *beside) for name, value, *beside in loras]


def _place(folder: Path, lora: str | None = None, policy: str = "resident") -> dict:
    uses, watch = _uses(folder, *([(lora, 1.0)] if lora else [])), Watch()
    with watch.running():
        network = _network(folder, policy)
        network.use(uses)
        network.holder.place(torch.device("cpu"))
        if policy == "stream":
            for _ in network.module.ready_blocks(network.module.transformer_blocks):
                pass
    device = network.holder.placed_bytes
    beside = {key: getattr(watch, key) - device for key in ("anonymous", "held")}
    return watch.record(device=device) | beside


def _swap(folder: Path, before: tuple, *after: tuple) -> dict:
    network, watch = _network(folder), Watch()
    network.use(_uses(folder, before))
    network.holder.place(torch.device("cpu"))
    with watch.running():
        done = network.use(_uses(folder, *after))
    touched = len(done.tensors) + len(done.side_paths)
    return watch.record(bytes_read=done.bytes_read, tensors=touched)


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
    work.__name__: work
    for work in (
        *(read, load, load_cast, load_lora, inspect_full, open_full),
        *(place, place_lora, stream_lora, swap_lora, drop_lora, swap_beside),
        peer,
    )
}
COMPARED = ("read", "load")


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
    from aiprod_engine.weights.containers.read import read_header
    from aiprod_engine.weights.presets import preset

    config = transformer_config(options.size * 1e9)
    write_transformer(folder / "transformer.safetensors", config)
    for name in ("a", "b"):
        write_lora(folder / f"{name}.safetensors", config, options.rank)
    write_transformer(folder / FULL, preset("transformer", "2.3"), is_sparse=True)
    (folder / "config.json").write_text(json.dumps(config))
    infos = read_header(folder / "transformer.safetensors").tensors.values()
    results: dict = {
        "bytes": (folder / "transformer.safetensors").stat().st_size,
        "largest": max(info.end - info.start for info in infos),
        "cold": options.cold,
    }
    names = [name for name in WORKERS if name != "peer" or options.peer_python]
    if options.peer_python:
        measure("peer", folder, options)  # writes its folder
    turns = [
        {name: measure(name, folder, options) for name in COMPARED} for _ in range(options.passes)
    ]
    results |= {name: fastest([found[name] for found in turns]) for name in COMPARED}
    results |= {name: measure(name, folder, options) for name in names if name not in COMPARED}
    return results | {"ratios": ratios(results)}


def fastest(runs: list[dict]) -> dict:
    """The run that was disturbed least; one that failed stands for all."""
    return min(runs, key=lambda run: run.get("seconds", -1.0))


def ratios(results: dict) -> dict[str, float]:
    """The numbers to compare; those of a measurement that failed are left out."""

    def of(name: str, key: str = "seconds") -> float:
        return results.get(name, {}).get(key, float("nan"))

    largest, size = results["largest"], results["bytes"]
    per_byte = of("peer") / of("peer", "bytes")
    found = {
        "load / read": of("load") / of("read"),
        "load / read, processor time": of("load", "cpu") / of("read", "cpu"),
        "load with cast / read": of("load_cast") / of("read"),
        "extra memory of load / largest tensor": of("load", "anonymous") / largest,
        "extra memory of cast beside its result / largest tensor": (
            (of("load_cast", "anonymous") - of("load_cast", "held")) / largest
        ),
        "load with LoRA / load": of("load_lora") / of("load"),
        "place with LoRA / place": of("place_lora") / of("place"),
        "swap LoRA / place with LoRA": of("swap_lora") / of("place_lora"),
        "new strength beside / place with LoRA": of("swap_beside") / of("place_lora"),
        "extra memory of place with LoRA / file": of("place_lora", "anonymous") / size,
        "extra memory of swap / file": of("swap_lora", "anonymous") / size,
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
        f"{'':<12} {'seconds':>8} {'of cpu':>8} "
        f"{'extra MB':>9} {'kept MB':>8} {'mapped MB':>9} {'read MB':>8}",
    ]
    for name in WORKERS:
        found = results.get(name, {"failed": "was not run: give --peer-python"})
        if "failed" in found:
            lines.append(f"{name:<12} {found['failed']}")
            continue
        row = [found[key] / 1e6 for key in ("anonymous", "held", "mapped")]
        text = f"{name:<12} {found['seconds']:>8.2f} {found['cpu']:>8.2f} "
        text += f"{row[0]:>9.0f} {row[1]:>8.0f} {row[2]:>9.0f}"
        count = found.get("bytes_read")
        lines.append(text if count is None else f"{text} {count / 1e6:>8.0f}")
    lines += [f"{name}: {value:.2f}" for name, value in results["ratios"].items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=float, default=2.0, help="of the checkpoint, in GB (1e9)")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--passes", type=int, default=5, help="of reading and loading")
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
