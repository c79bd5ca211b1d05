"""The ledger, what is missing for a workflow, and downloads from a hub on 127.0.0.1."""

import json
import socket
import sys
from dataclasses import replace

import pytest
import torch
from hub_stand_in import StandIn
from safetensors.torch import save

from aiprod_engine.cli import main
from aiprod_engine.errors import CheckpointError
from aiprod_engine.ledger import records, workflows
from aiprod_engine.ledger.download import DownloadError, download
from aiprod_engine.ledger.presence import fault, find_all
from aiprod_engine.ledger.records import ModelFile, ledger, record
from aiprod_engine.ledger.workflows import files_of, workflow_names, workflows_naming

FOLDERS = {
    *("checkpoints", "diffusion_models", "text_encoders", "vae", "latent_upscale_models", "loras"),
}
CONTENT = save({"weight": torch.arange(3_000_000, dtype=torch.float32)})  # 12 MB
FILE = ModelFile(
    "tiny.safetensors", "owner/repo", "vae", "2.3", "test", "vae/tiny.safetensors", len(CONTENT)
)
KEY = "owner/repo/vae/tiny.safetensors"


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"connected: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def hub(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 20)  # else 10 MB at a time
    with StandIn({KEY: CONTENT}).running() as running:
        yield running


@pytest.fixture
def in_ledger(monkeypatch):
    monkeypatch.setattr(records, "ledger", lambda: {FILE.name: FILE})
    for module in ("presence", "records", "report"):
        monkeypatch.setattr(f"aiprod_engine.ledger.{module}.ledger", lambda: {FILE.name: FILE})


def test_records_are_complete_and_refer_to_each_other():
    for name, file in ledger().items():
        assert file.name == name == file.path.rpartition("/")[2]
        assert file.folder in FOLDERS, name
        assert set(file.version.split("|")) <= {"2.0", "2.3", "2.5"}, name
        assert len(file.repository.split("/")) == 2
        assert file.purpose
        assert set(file.goes_with) <= ledger().keys()
        for other in file.goes_with:
            assert set(ledger()[other].version.split("|")) & set(file.version.split("|"))


def test_published_sizes():
    assert record("ltx-2.3-spatial-upscaler-x2-1.1.safetensors").bytes == 995_743_560
    assert record("gemma_3_12B_it_fp4_mixed.safetensors").size == "9.45 GB"
    with pytest.raises(CheckpointError, match="not: `files` without"):
        record("something.safetensors")


@pytest.mark.parametrize("workflow", workflow_names())
def test_every_file_of_a_shipped_workflow_is_known_with_its_size(workflow):
    named = files_of(workflow)
    assert named
    for name in named:
        assert ledger()[name].approximate_bytes, name
        assert workflow in workflows_naming(name)


def test_present_missing_and_unfinished_files(tmp_path):
    upscaler = record("ltx-2-temporal-upscaler-x2-1.0.safetensors")
    folder = tmp_path / "latent_upscale_models" / "subfolder"
    folder.mkdir(parents=True)
    path = folder / upscaler.name
    path.write_bytes(b"")
    with path.open("r+b") as file:
        file.truncate(1000)
    (found,) = find_all([upscaler.name], [tmp_path])
    assert found.word == "broken"
    assert "fetch the remaining 261964800 bytes" in found.fault
    with path.open("r+b") as file:  # sparse
        file.truncate(upscaler.bytes + 1)
    assert "it is another file" in fault(path)
    (absent,) = find_all(["ltx-2.3-22b-dev.safetensors"], [tmp_path])
    assert absent.word == "missing"


def test_an_unfinished_file_of_unknown_size_shows_in_its_header(tmp_path):
    path = tmp_path / "unknown.safetensors"
    path.write_bytes(CONTENT[:-100])
    assert "100 bytes" in fault(path)
    path.write_bytes(CONTENT)
    assert fault(path) is None


def test_command_reports_without_connecting(tmp_path, capsys, no_network):
    folder = tmp_path / "text_encoders"
    folder.mkdir()
    (folder / "gemma_3_12B_it.safetensors").write_bytes(CONTENT)
    assert main(["files"]) == 0
    assert "models/checkpoints/ltx-2.3-22b-dev.safetensors  46.10 GB" in capsys.readouterr().out
    assert main(["files", "--models", str(tmp_path)]) == 0
    assert "present  models/text_encoders/gemma_3_12B_it.safetensors" in capsys.readouterr().out
    assert main(["files", "--models", str(tmp_path), "--workflow", "text_to_video"]) == 0
    out = capsys.readouterr().out
    assert "missing  models/checkpoints/ltx-2.3-22b-dev.safetensors" in out
    assert "files --download ltx-2.3-22b-dev.safetensors" in out
    assert "1 to fetch, 46.10 GB" in out
    assert main(["files", "--workflow", "nothing"]) == 2
    assert "known are" in capsys.readouterr().err
    assert main(["files", "--models", str(tmp_path / "no")]) == 2
    assert main(["files", "--download", "no.safetensors", "--models", str(tmp_path)]) == 2
    assert main(["files", "--download", "gemma_3_12B_it.safetensors"]) == 2


def test_a_workflow_may_name_a_file_that_nobody_published(tmp_path, monkeypatch, capsys):
    nodes = {"1": {"class_type": "x", "inputs": {"a": "mine.safetensors", "b": ["2", 0], "c": 1}}}
    (tmp_path / "own.json").write_text(json.dumps(nodes))
    assert workflows.files_of("own", tmp_path) == ["mine.safetensors"]
    monkeypatch.setattr(
        "aiprod_engine.ledger.report.files_of", lambda name: files_of(name, tmp_path)
    )
    assert main(["files", "--workflow", "own", "--models", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "mine.safetensors: not in the ledger" in out
    assert "0.00 GB and what is not known" in out


def test_download_lands_in_its_folder(tmp_path, hub, in_ledger, capsys):
    command = ["files", "--download", FILE.name, "--models", str(tmp_path), "--endpoint", hub.url]
    assert main(command) == 0
    target = tmp_path / "vae" / FILE.name
    assert target.read_bytes() == CONTENT
    assert [path.name for path in tmp_path.rglob("*")] == ["vae", FILE.name]  # nothing else stays
    assert len(hub.offsets) == 1
    assert main(command) == 0  # there already
    assert len(hub.offsets) == 1


def test_an_interrupted_download_is_resumed(tmp_path, hub):
    hub.cuts = [8 << 20]
    with pytest.raises(DownloadError, match="run the same command again and it continues"):
        download(FILE, tmp_path, hub.url)
    assert not (tmp_path / "vae" / FILE.name).exists()
    assert not list(tmp_path.rglob("*.safetensors"))  # the host lists no half file
    path = download(FILE, tmp_path, hub.url)
    assert path.read_bytes() == CONTENT
    assert len(hub.offsets) == 2
    assert 1 << 20 <= hub.offsets[1] <= 8 << 20


def test_another_size_is_refused_before_the_first_byte(tmp_path, hub):
    with pytest.raises(DownloadError, match=f"must have {len(CONTENT) + 1} bytes"):
        download(replace(FILE, bytes=len(CONTENT) + 1), tmp_path, hub.url)
    assert not hub.offsets


def test_something_that_is_no_weight_file_never_takes_the_place(tmp_path, hub):
    hub.files[KEY] = b"<html>" + bytes(100)
    with pytest.raises(DownloadError, match=r"(?i)html|web page"):
        download(replace(FILE, bytes=None), tmp_path, hub.url)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_broken_file_in_place_is_replaced(tmp_path, hub):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / FILE.name).write_bytes(CONTENT[:5000])
    assert download(FILE, tmp_path, hub.url).read_bytes() == CONTENT


def test_a_file_that_the_hub_lacks(tmp_path, hub):
    with pytest.raises(DownloadError, match="owner/repo does not hold other"):
        download(replace(FILE, path="other.safetensors"), tmp_path, hub.url)


def test_without_the_client_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DownloadError, match="pip install huggingface_hub"):
        download(FILE, tmp_path)
