"""The only importer of `comfy` and `folder_paths`: devices, memory, progress, cancel, files."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import comfy.latent_formats
import comfy.model_management as mm
import comfy.model_sampling
import comfy.utils
import folder_paths
import torch
from comfy.cli_args import LatentPreviewMethod, args
from comfy.nested_tensor import NestedTensor
from comfy_execution.utils import get_executing_context
from PIL import Image
from torch import Tensor, nn

from ..aiprod_engine.errors import CheckpointError, EngineError, MismatchError, OutOfMemory
from ..aiprod_engine.media.mp4 import Sound
from ..aiprod_engine.memory.placed import Placed
from ..aiprod_engine.memory.plan import MARGIN, Need
from ..aiprod_engine.preview import LatentRGB
from ..aiprod_engine.weights.recipe import Recipe
from ._handle import Handle, Handles
from ._progress import TimeLeft

logger = logging.getLogger("aiprod")

Cancelled = mm.InterruptProcessingException
EVERYTHING = 1e30  # bytes; what the host itself asks for to unload all


def compute_device() -> torch.device:
    """Device on which the host wants networks to run."""
    return mm.get_torch_device()


def compute_dtype() -> torch.dtype:
    """bfloat16 where the device computes in it, else float32; float16 overflows here."""
    return torch.bfloat16 if mm.should_use_bf16(compute_device()) else torch.float32


def list_files(*folders: str) -> list[str]:
    """Names of the files in the host's model folders, each name once."""
    return list(dict.fromkeys(n for f in folders for n in folder_paths.get_filename_list(f)))


def walk_files(folder: str, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Name -> path of the files below a model folder; reads every directory, so it may take long.

    Of other suffixes than those that the host lists, too.
    """
    found: dict[str, Path] = {}
    for root in folder_paths.get_folder_paths(folder):
        names, _ = folder_paths.recursive_search(root, excluded_dir_names=[".git"])
        for name in sorted(names):
            if name.lower().endswith(suffixes):
                found.setdefault(name, Path(root, name))
    return found


def find_file(folders: Sequence[str], name: str) -> Path | None:
    """Full path of a listed file in the first folder that has it; never outside the folders."""
    paths = (folder_paths.get_full_path(folder, name) for folder in folders)
    return next((Path(path) for path in paths if path is not None), None)


def fingerprint(folders: Sequence[str], name: str | None) -> tuple:
    """Changes when a listed file is replaced; never reads it, and holds no path.

    The host writes it into saved movies, where nobody's folders should appear.
    """
    path = None if name is None else find_file(folders, name)
    if path is None:
        return (name,)
    stat = path.stat()
    return (name, stat.st_size, stat.st_mtime_ns)


def check_cancelled() -> None:
    """Raise the host's interruption if the user pressed Cancel."""
    mm.throw_exception_if_processing_interrupted()


@contextlib.contextmanager
def placed(need: Need, *recipes: Recipe) -> Iterator[Placed]:
    """Yield the networks of a phase on their device, all at once, and what gives if it is too much.

    One line goes into the log: needed, free, plan. After a failure nothing stays on the device.
    Call it again before every use: anything loaded in between may have evicted the weights.
    """
    device = device_of(recipes[0])
    way = need.way(free_memory(device) * (1 - MARGIN))
    wanted = int(way.activations / (1 - MARGIN))
    with _handles.in_use(recipes) as handles:
        residencies = [handle.residency for handle in handles]
        free = mm.get_free_memory(device)
        phase = Placed(need, residencies, free, evict=lambda: _evict_others(device, handles))
        try:
            phase.begin(lambda: mm.load_models_gpu(handles, memory_required=wanted))
            free = mm.get_free_memory(device)
            for residency in residencies:  # the host may leave less than the activations need
                if free < wanted and residency.resident_bytes:
                    free += residency.shrink(wanted - free)
            phase.settle(free, way)
            logger.info("%s", phase.describe())
            yield phase
        except OutOfMemory:
            mm.unload_all_models()
            mm.soft_empty_cache()
            raise
        finally:
            phase.close()


def _evict_others(device: torch.device, handles: Sequence[Handle]) -> bool:
    """Let everything but `handles` leave the device; whether anything did."""
    ours = [held for held in mm.current_loaded_models if held.model in handles]
    before = len(mm.current_loaded_models)
    mm.free_memory(EVERYTHING, device, keep_loaded=ours)
    mm.soft_empty_cache()
    return len(mm.current_loaded_models) < before


def free_memory(device: torch.device) -> int:
    """Bytes for a run on a device: what is free and what the host could evict."""
    held = (m.model_loaded_memory() for m in mm.current_loaded_models if m.device == device)
    return int(mm.get_free_memory(device) + sum(held))


def devices() -> list[str]:
    """Names of the devices that a network may be sent to."""
    return ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]


def device_of(recipe: Recipe) -> torch.device:
    """Device on which a network computes."""
    return compute_device() if recipe.device is None else torch.device(recipe.device)


_handles = Handles(device_of)


def sentence(check: Callable, *args) -> bool | str:
    """What `validate_inputs` returns: True, or the sentence of the error that `check` raised."""
    try:
        check(*args)
    except EngineError as error:
        return str(error)
    return True


def require_version(what: str, found: str | None, wanted: str | None) -> None:
    """Raise unless two parts may belong to one release ("2.3|2.5" fits both)."""
    if None in (found, wanted) or set(found.split("|")) & set(wanted.split("|")):
        return
    raise MismatchError(
        f"all parts of a run must belong to one LTX-2 release: the {what} is for {found}, the rest "
        f"is {wanted}; load both from the same checkpoint"
    )


def preview_side() -> int | None:
    """Longest side of live previews, None where the user wants none (per prompt on new hosts)."""
    return None if args.preview_method == LatentPreviewMethod.NoPreviews else args.preview_size


def sound_of(audio: dict | None, node: str) -> Sound:
    """The first track of a host AUDIO; raises for files that have none."""
    if not audio or "waveform" not in audio:
        raise MismatchError(f"{node} needs a sound track; the file that was loaded has none")
    return Sound(audio["waveform"][0].float().cpu(), int(audio["sample_rate"]))


def progress(total: int, unit: str | None = None) -> Callable[..., None]:
    """`advance(value, image=None)`: moves this node's progress bar, raises if the user cancelled.

    `image` (H, W, 3) uint8 is shown in the node. With a `unit` ("step") the time left is written
    below the node, and now and then into the log.
    """
    bar, left = comfy.utils.ProgressBar(total), TimeLeft(total)

    def advance(value: int, image: Tensor | None = None) -> None:
        check_cancelled()
        picture = None
        if image is not None:
            picture = ("JPEG", Image.fromarray(image.numpy()), args.preview_size)
        bar.update_absolute(value, total, picture)
        if unit is not None:
            text = left.text(unit, value)
            _write_below_node(text)
            if left.is_log_due():
                logger.info(text)

    return advance


def _write_below_node(text: str) -> None:
    running = get_executing_context()
    if running is None:  # not called by a prompt
        return
    with contextlib.suppress(Exception):  # a nicety, and not every host has it
        from server import PromptServer

        server = PromptServer.instance
        server.send_progress_text(text, running.node_id, sid=server.client_id)


def counted(chunks: Iterator[Tensor], frames: int) -> Iterator[Tensor]:
    """The same pixel chunks (1, 3, f, H, W), with this node's progress bar and cancel."""
    advance, done = progress(frames), 0
    for chunk in chunks:
        done += chunk.shape[2]
        advance(done)
        yield chunk


def _saved_roots() -> dict[str, Path]:
    return {
        "output": Path(folder_paths.get_output_directory()),
        "input": Path(folder_paths.get_input_directory()),
    }


def list_saved(folder: str) -> list[str]:
    """Tensor files below output/`folder` and in input, as "name [output]"."""
    roots = _saved_roots()
    places = [(roots["output"], roots["output"] / folder), (roots["input"], roots["input"])]
    return [
        f"{path.relative_to(root).as_posix()} [{root_name}]"
        for root_name, (root, place) in zip(roots, places, strict=True)
        for path in sorted(place.rglob("*.safetensors"))
    ]


def find_saved(name: str) -> Path:
    """Path of a listed tensor file; raises if it is gone or would lie outside its folder."""
    plain, _, root_name = name.removesuffix("]").rpartition(" [")
    root = _saved_roots().get(root_name)
    if root is not None:
        path = (root / plain).resolve()
        if path.is_relative_to(root.resolve()) and path.is_file():
            return path
    raise CheckpointError(
        f"a saved file must lie in the output or input folder; {name!r} does not: choose another"
    )


def fingerprint_saved(name: str | None) -> tuple:
    """Changes when a saved file is replaced."""
    try:
        stat = find_saved(name or "").stat()
    except CheckpointError:
        return (name,)
    return (name, stat.st_size, stat.st_mtime_ns)


def new_file(prefix: str) -> tuple[Path, dict]:
    """A free path below the output folder for `prefix`, and what the interface shows of it."""
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory()
    )
    while (path := Path(folder) / f"{name}_{counter:05}_.safetensors").exists():
        counter += 1
    return path, {"files": [{"filename": path.name, "subfolder": subfolder, "type": "output"}]}


def statistics(decoder: Recipe) -> nn.Module:
    """Per-channel statistics of a video VAE, on the CPU; the rest of it stays in its file."""
    return _handles.get(decoder).model.per_channel_statistics


# what the host's samplers need: see `_sampler_bridge`


class FlowSampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    """Rectified flow, by the classes at which samplers of the host recognise it."""


class Denoised(NestedTensor):
    """A joint latent that newer hosts may also cut up as the packed one that they expect."""

    def __getitem__(self, where):
        return pack(self.tensors)[where]


def members(samples) -> list[Tensor]:
    """The streams of a host latent; joint ones hold video first, audio last."""
    return list(samples.unbind()) if getattr(samples, "is_nested", False) else [samples]


def joined(streams: Sequence[Tensor], kind: type = NestedTensor):
    """The host latent of streams: one as it is, several as a joint one."""
    return streams[0] if len(streams) == 1 else kind(streams)


def pack(streams: Sequence[Tensor]) -> Tensor:
    """What samplers carry: one stream as it is, several as (B, 1, N)."""
    return streams[0] if len(streams) == 1 else comfy.utils.pack_latents(streams)[0]


def unpack(packed: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """The inverse of `pack`."""
    return [packed] if len(shapes) == 1 else comfy.utils.unpack_latents(packed, shapes)


def fit_mask(mask: Tensor, latent: Tensor) -> Tensor:
    """A host mask, of pixels or latents, in the shape of a latent."""
    if mask.ndim == latent.ndim:
        mask = mask[:, :1]  # equal in all channels
    return comfy.utils.reshape_mask(mask.float(), latent.shape).to(latent)


def latent_format(channels: int, axes: int, rgb: LatentRGB | None = None):
    """What the host wants to know of latents with `axes` axes in space and time."""
    known = comfy.latent_formats.LatentFormat()
    known.latent_channels, known.latent_dimensions = channels, axes
    if rgb is not None:
        known.latent_rgb_factors = rgb.weight.T.tolist()
        known.latent_rgb_factors_bias = rgb.bias.tolist()
    return known
