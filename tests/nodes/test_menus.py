"""Menus of model files: each loader offers what it can take, whatever lies in the folders."""

import json
import os
import threading
import time
from importlib import import_module
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from host_client import PromptRejected
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_checkpoint import FILES, write_lora

pytestmark = pytest.mark.host

DEV = FILES["2.3"]["dev"]
WIDGETS = {
    "AIPRODCheckpointLoader": "checkpoint",
    "AIPRODTransformerLoader": "transformer",
    "AIPRODTextEncoderLoader": "encoder",
    "AIPRODVideoVAELoader": "vae_file",
    "AIPRODAudioVAELoader": "vae_file",
    "AIPRODUpsamplerLoader": "upsampler_file",
    "AIPRODLoRA": "lora",
    "AIPRODInspectFile": "file",
}


@pytest.fixture
def added(models):
    """`added(folder, name)`: a path in a model folder; the file is gone after the test."""
    paths = []

    def path(folder, name):
        paths.append(models / folder / name)
        return paths[-1]

    yield path
    for given in paths:
        given.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def tensors(models):
    with safe_open(models / "checkpoints" / DEV, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def menus(client) -> dict[str, set[str]]:
    """What the page shows after R is pressed."""
    found = {}
    for node, widget in WIDGETS.items():
        kind, options = client.get(f"/object_info/{node}")[node]["input"]["required"][widget]
        found[node] = set(options["options"] if kind == "COMBO" else kind)
    return found


def offering(client, name: str, settled) -> set[str]:
    """Loaders that offer a file, as soon as that is `settled`."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = {node[6:] for node, files in menus(client).items() if name in files}
        if found == settled:
            return found
        time.sleep(0.5)
    return found


def write_part(path, tensors, *starts, strip=""):
    chosen = {k.removeprefix(strip): v for k, v in tensors.items() if k.startswith(starts)}
    save_file({k: v.contiguous() for k, v in chosen.items()}, path)


def write_gguf(path):
    writer = gguf.GGUFWriter(path, "ltxv")
    for name, rows in {"patchify_proj": 8, "adaln_single.linear": 72,
                       "audio_adaln_single.linear": 72}.items():  # fmt: skip
        writer.add_tensor(f"{name}.weight", np.zeros((rows, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


PARTS = ("TransformerLoader", "VideoVAELoader", "AudioVAELoader")
# file -> loaders that offer it, besides Inspect File
OFFERED = {
    f"checkpoints/{DEV}": ("CheckpointLoader", *PARTS),
    "vae/menu_video.safetensors": ("VideoVAELoader",),
    "vae/menu_audio.safetensors": ("AudioVAELoader",),
    "diffusion_models/menu_transformer.safetensors": ("TransformerLoader",),
    "loras/menu_lost_vae.safetensors": ("VideoVAELoader",),  # where nobody expects it
    "checkpoints/menu_lora.safetensors": ("LoRA",),
    "diffusion_models/menu.gguf": ("TransformerLoader",),  # the host itself lists none
    "checkpoints/menu_other.safetensors": (),  # of another family
    "checkpoints/menu_broken.safetensors": ("CheckpointLoader", *PARTS),
}


@pytest.fixture(scope="module")
def files(models, tensors):
    """Writes what `OFFERED` names; gone afterwards, other tests share the folders."""
    added = {Path(name).stem: models / name for name in OFFERED if not name.endswith(DEV)}
    write_part(added["menu_video"], tensors, "vae.", strip="vae.")
    write_part(added["menu_audio"], tensors, "audio_vae.", "vocoder.")
    write_part(added["menu_transformer"], tensors, "model.diffusion_model.")
    write_part(added["menu_lost_vae"], tensors, "vae.")
    write_lora(added["menu_lora"], "2.3", {})
    write_gguf(added["menu"])
    save_file({"conv.weight": torch.zeros(3)}, added["menu_other"])
    added["menu_broken"].write_bytes(b"<!DOCTYPE html><html>not found</html>")
    yield
    for path in added.values():
        path.unlink()


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("name", OFFERED)
def test_a_file_is_offered_by_the_loaders_that_can_take_it(name, client):
    # what is not looked at yet is offered by all loaders of its folder
    offering(client, "menu_other.safetensors", {"InspectFile"})
    wanted = {*OFFERED[name], "InspectFile"}
    assert offering(client, Path(name).name, wanted) == wanted


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("name", "reason"),
    [("menu_other.safetensors", "LTX-2"), ("menu_broken.safetensors", "HTML page")],
)
def test_a_file_that_cannot_be_taken_is_explained_when_a_prompt_names_it(name, reason, client):
    assert reason in rejection(client, name)


def test_a_replaced_file_changes_menus(client, added, tensors):
    path = added("vae", "menu_changing.safetensors")
    write_part(path, tensors, "vae.")
    wanted = {"VideoVAELoader", "InspectFile"}
    assert offering(client, path.name, wanted) == wanted
    path.unlink()
    write_part(path, tensors, "audio_vae.", "vocoder.")
    wanted = {"AudioVAELoader", "InspectFile"}
    assert offering(client, path.name, wanted) == wanted
    path.unlink()
    assert offering(client, path.name, set()) == set()


def rejection(client, name: str) -> str:
    """The sentence that a prompt with this checkpoint gets."""
    loader = {"class_type": "AIPRODCheckpointLoader", "inputs": {"checkpoint": name}}
    decode = {"class_type": "AIPRODDecodeAudio", "inputs": {"audio_vae": ["1", 3]}}
    preview = {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}
    with pytest.raises(PromptRejected) as caught:
        client.run({"1": loader, "2": preview, "3": decode})
    errors = caught.value.body["node_errors"]["1"]["errors"]
    sentences = {error["details"].partition(" - ")[2] for error in errors}
    assert len(sentences) == 1, json.dumps(errors)
    return sentences.pop()


@pytest.fixture
def module(pack):
    return import_module("custom_nodes_x_aiprod.nodes._menus")


def settle(found) -> None:
    """Wait for the thread that looks."""
    found._last = float("-inf")
    found._look()
    with found._looking:
        pass


def test_a_menu_does_not_wait_for_a_slow_disk(module, monkeypatch, added):
    save_file({"conv.weight": torch.zeros(3)}, added("vae", "menu_slow.safetensors"))
    looks, began, go = [], threading.Event(), threading.Event()

    def slow(_):
        looks.append(threading.current_thread())
        began.set()
        assert go.wait(30)

    monkeypatch.setattr(module, "sniff", slow)
    found = module.Menus()
    found.names(())
    assert began.wait(30)
    begin = time.monotonic()
    for _ in range(20):
        assert "menu_slow.safetensors" in found.names(("vae",), lambda _: False)
    assert time.monotonic() - begin < 5
    go.set()
    with found._looking:  # it ends
        pass
    assert len({thread.ident for thread in looks}) == 1
    assert looks[0].daemon


@pytest.mark.skipif(os.name == "nt", reason="needs named pipes and sparse files")
def test_what_is_no_file_or_absurd_is_passed_over(module, monkeypatch, added):
    os.mkfifo(added("vae", "menu_pipe.safetensors"))
    huge = added("vae", "menu_huge.safetensors")
    huge.write_bytes((90_000_000).to_bytes(8, "little") + b"{")
    os.truncate(huge, 90_000_100)
    added("vae", "menu_gone.safetensors").symlink_to("nowhere")
    deep = added("vae", "menu_deep.safetensors")
    deep.write_bytes((80_000).to_bytes(8, "little") + b"{" + b'"a":{' * 15_999)
    found = module.Menus()
    settle(found)
    for name in ("pipe", "huge", "gone", "deep"):
        assert found._known["vae"][f"menu_{name}.safetensors"] is None
    offered = found.names(("vae",), lambda _: False)
    assert {"menu_pipe.safetensors", "menu_huge.safetensors", "menu_deep.safetensors"} <= {*offered}


def test_an_unforeseen_error_ends_no_menu(module, monkeypatch, added, caplog):
    save_file({"conv.weight": torch.zeros(3)}, added("vae", "menu_odd.safetensors"))
    monkeypatch.setattr(module, "sniff", lambda _: 1 / 0)
    found = module.Menus()
    settle(found)
    assert "menu_odd.safetensors" in found.names(("vae",), lambda _: False)
    monkeypatch.setattr(module.host, "walk_files", lambda *_: 1 / 0)
    with caplog.at_level("DEBUG", "aiprod"):
        settle(found)
    assert "could not be looked through" in caplog.text
    assert found.names(("vae",))


def test_unchanged_files_are_opened_once(module, monkeypatch, added):
    save_file({"conv.weight": torch.zeros(3)}, added("vae", "menu_once.safetensors"))
    opened = []
    monkeypatch.setattr(module, "sniff", lambda path: opened.append(path.name))
    found = module.Menus()
    settle(found)
    settle(found)
    assert opened.count("menu_once.safetensors") == 1
