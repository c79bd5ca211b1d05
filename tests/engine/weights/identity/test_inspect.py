"""`engine.inspect` and `python -m aiprod_engine inspect`."""

import os
import subprocess
import sys

import pytest
from checkpoint_files import checkpoint, header, manifest
from goldens import ROOT

import aiprod_engine as engine
from aiprod_engine import cli
from aiprod_engine.weights.containers import mapped


def run(*arguments):
    return cli.main(["inspect", *map(str, arguments)])


def test_every_fact_is_printed(capsys):
    assert run(checkpoint("ltx2_23_tiny_fp8.safetensors")) == 0
    text = capsys.readouterr().out
    for fact in ("checkpoint", "2.3", "video_vae audio_vae vocoder", "fp8_scaled", "154.03 k",
                 "model.diffusion_model.", "config transformer:", "num_layers=3",
                 "config vae:", "latent_channels=8", "config vocoder:"):  # fmt: skip
        assert fact in text


def test_files_that_fit(capsys):
    upsampler = ROOT / "pipelines/ltx2_23_tiny_upsampler_x2.safetensors"
    assert run(checkpoint("ltx2_23_tiny.safetensors"), upsampler) == 0
    assert "belong together" in capsys.readouterr().out


def test_errors_are_one_sentence_and_exit_2(capsys, tmp_path):
    broken = tmp_path / "a.safetensors"
    broken.write_bytes(b"")
    files = [
        [broken],
        [tmp_path / "gone.safetensors"],
        [checkpoint("ltx2_23_tiny.safetensors"), checkpoint("ltx2_20_tiny.safetensors")],
    ]
    for given in files:
        assert run(*given) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert "Traceback" not in message


def test_as_a_module():
    path = checkpoint("ltx2_20_tiny_lora_kohya.safetensors")
    done = subprocess.run(
        [sys.executable, "-m", "aiprod_engine", "inspect", str(path)],
        cwd=ROOT.parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "lora_unet_" in done.stdout
    assert done.stderr == ""


@pytest.mark.skipif(os.name == "nt", reason="needs sparse files")
def test_a_46_gb_file_is_inspected_without_its_data(tmp_path, monkeypatch, capsys):
    """A sparse file of the published size: only the header has blocks on disk."""
    import json
    import struct

    invented = header(manifest("transformer-2.3-22b"))
    entries = {
        name: {"dtype": i.dtype, "shape": i.shape, "data_offsets": [i.start, i.end]}
        for name, i in invented.tensors.items()
    }
    text = json.dumps(entries).encode()
    path = tmp_path / "big.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + max(i.end for i in invented.tensors.values()))
    assert path.stat().st_size > 37e9
    monkeypatch.setattr(mapped, "_map", lambda _: pytest.fail("the file was mapped"))
    info = engine.inspect(path)
    assert (info.version, info.parameters["transformer"]) == ("2.3", 18_988_838_144)
    assert run(path) == 0
    assert "18.99 B" in capsys.readouterr().out


def test_reading_a_header_never_imports_torch():
    code = (
        "import sys; from aiprod_engine import cli;"
        f"cli.main(['inspect', {str(checkpoint('ltx2_23_tiny.safetensors'))!r}]);"
        "assert not {'torch', 'numpy'} & set(sys.modules), 'inspect must answer within a second'"
    )
    root = ROOT.parent.parent
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True)
