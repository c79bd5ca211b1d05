"""Menus of model files: each loader offers what it can take, whatever lies in the folders."""

import json
import os
import threading
import time
from importlib import import_module

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


def test_a_monolith_is_offered_for_every_part_that_it_holds(client):
    wanted = {"CheckpointLoader", "TransformerLoader", "VideoVAELoader", "AudioVAELoader"}
    assert offering(client, DEV, {*wanted, "InspectFile"}) == {*wanted, "InspectFile"}


@pytest.mark.parametrize(
    ("folder", "starts", "strip", "loader"),
    [
        ("vae", ("vae.",), "vae.", "VideoVAELoader"),
        ("vae", ("audio_vae.", "vocoder."), "", "AudioVAELoader"),
        ("diffusion_models", ("model.diffusion_model.",), "", "TransformerLoader"),
        ("loras", ("vae.",), "", "VideoVAELoader"),  # in a folder where nobody expects it
    ],
)
def test_a_part_is_offered_by_its_loader_alone(
    folder, starts, strip, loader, client, added, tensors
):
    name = f"menu_{loader}_{folder}.safetensors"
    write_part(added(folder, name), tensors, *starts, strip=strip)
    assert offering(client, name, {loader, "InspectFile"}) == {loader, "InspectFile"}


def test_a_lora_among_the_checkpoints(client, added):
    write_lora(added("checkpoints", "menu_lora.safetensors"), "2.3", {})
    wanted = {"LoRA", "InspectFile"}
    assert offering(client, "menu_lora.safetensors", wanted) == wanted


def test_a_gguf_file_that_the_host_itself_does_not_list(client, added):
    writer = gguf.GGUFWriter(added("diffusion_models", "menu.gguf"), "ltxv")
    for name, rows in {"patchify_proj": 8, "adaln_single.linear": 72,
                       "audio_adaln_single.linear": 72}.items():  # fmt: skip
        writer.add_tensor(f"{name}.weight", np.zeros((rows, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    wanted = {"TransformerLoader", "InspectFile"}
    assert offering(client, "menu.gguf", wanted) == wanted


def test_what_cannot_be_read_stays_offered_and_both_are_explained_when_named(client, added):
    broken = added("checkpoints", "menu_broken.safetensors")
    broken.write_bytes(b"<!DOCTYPE html><html>not found</html>")
    other = added("checkpoints", "menu_other.safetensors")
    save_file({"conv.weight": torch.zeros(3)}, other)
    assert offering(client, other.name, {"InspectFile"}) == {"InspectFile"}
    # by now both were looked at
    wanted = {"CheckpointLoader", "TransformerLoader", "VideoVAELoader", "AudioVAELoader",
              "InspectFile"}  # fmt: skip
    assert offering(client, broken.name, wanted) == wanted
    assert "HTML page" in rejection(client, broken.name)
    assert "LTX-2" in rejection(client, other.name)


def test_a_replaced_file_changes_menus(client, added, tensors):
    path = added("vae", "menu_changing.safetensors")
    write_part(path, tensors, "vae.")
    assert offering(client, path.name, {"VideoVAELoader", "InspectFile"})
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
