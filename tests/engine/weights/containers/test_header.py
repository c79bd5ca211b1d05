"""Files are opened only if every byte of their header makes sense."""

import base64
import json
import pickle
import struct
import tempfile
from contextlib import suppress
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from checkpoint_files import checkpoint, read, table, write
from hypothesis import given, settings
from hypothesis import strategies as st

from aiprod_engine.errors import CheckpointError, EngineError
from aiprod_engine.weights.containers import mapped
from aiprod_engine.weights.containers.mapped import MappedFile
from aiprod_engine.weights.containers.read import read_bytes, read_header
from aiprod_engine.weights.identity.identify import identify

CASES = table("malformed_cases.json")["cases"]


def safetensors_bytes(entries: object, data: bytes = b"") -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_malformed_files(case, tmp_path):
    path = tmp_path / "file.safetensors"
    path.write_bytes(base64.b64decode(case["base64"]))
    if case["valid"]:
        assert read_header(path).tensors.keys() == read(path)[0].keys()
    else:
        with pytest.raises(CheckpointError, match=r"^file\.safetensors: "):
            read_header(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>401</html>", "HTML"),
        (b"PK\x03\x04" + bytes(40), "zip"),
        (pickle.dumps({"weight": 1}), "pickle"),
        (
            safetensors_bytes({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}})[:-9],
            "truncated",
        ),
        (
            safetensors_bytes(
                {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"12"
            ),
            "14 bytes are missing",
        ),
        (safetensors_bytes({"__metadata__": {"a": "x" * 16_000_001}}), "16 MB"),
        (safetensors_bytes(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "not valid JSON"),
        (
            safetensors_bytes(
                {"a": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, b"1"
            ),
            "non-negative integers",
        ),
        (
            safetensors_bytes({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}, b"12"),
            "bytes where F4",
        ),
        (safetensors_bytes({"a": {"dtype": "U8", "shape": [0]}}), "needs exactly"),
    ],
)
def test_named_reasons(content, reason, tmp_path):
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason):
        read_header(path)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".pkl", ".txt", ""])
def test_other_file_types_are_not_opened(suffix, tmp_path):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(b"x")
    with pytest.raises(CheckpointError, match="opened"):
        read_header(path)


def test_missing_file_and_folder():
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_header("no_such_file.safetensors")


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_is_never_executed(tmp_path):
    path, trace = tmp_path / "model.safetensors", tmp_path / "executed"
    path.write_bytes(pickle.dumps(Trap(trace)))
    with pytest.raises(CheckpointError, match="pickle"):
        read_header(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    "name", ["ltx2_20_tiny.safetensors", "ltx2_23_tiny_fp8.safetensors", "quant_layers.safetensors"]
)
def test_tensors_are_those_of_the_library(name):
    path = checkpoint(name)
    found, metadata = read(path)
    header = read_header(path)
    file = MappedFile(header)
    assert header.metadata == metadata
    assert header.tensors.keys() == found.keys()
    for key, tensor in found.items():
        view = file.tensor(key)
        assert (view.dtype, view.shape) == (tensor.dtype, tensor.shape)
        ours, theirs = (x.reshape(-1).view(torch.uint8) for x in (view, tensor))  # NaN too
        assert torch.equal(ours, theirs), key


def test_views_share_one_mapping_and_never_reach_the_file(tmp_path):
    path = write(tmp_path / "a.safetensors", {"a": torch.ones(4), "b": torch.zeros(3)})
    one, two = MappedFile(read_header(path)), MappedFile(read_header(path))
    tensor = one.tensor("a")
    assert tensor.data_ptr() == two.tensor("a").data_ptr()
    assert tensor.untyped_storage().nbytes() == tensor.nbytes  # not the whole file
    tensor.zero_()
    assert torch.equal(read(path)[0]["a"], torch.ones(4))
    resolved = path.resolve()
    del one, two, tensor
    assert not any(key[0] == resolved for key in mapped._open)


def test_unaligned_and_unreadable_tensors(tmp_path):
    entries = {
        "odd": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
        "none": {"dtype": "F32", "shape": [0, 3], "data_offsets": [9, 9]},
        "f4": {"dtype": "F4", "shape": [2], "data_offsets": [9, 10]},
    }
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors_bytes(entries, b"\1" + struct.pack("<ff", 1.5, -2.0) + b"\0"))
    file = MappedFile(read_header(path))
    assert file.tensor("a").tolist() == [1.5, -2.0]
    assert file.tensor("none").shape == (0, 3)
    assert read_bytes(file.header, "odd") == b"\1"
    with pytest.raises(CheckpointError, match="F4"):
        file.tensor("f4")


def test_an_overwritten_file_is_read_again(tmp_path):
    path = write(tmp_path / "a.safetensors", {"a": torch.ones(4)})
    assert read_header(path) is read_header(path)
    write(path, {"b": torch.ones(8)})
    assert list(read_header(path).tensors) == ["b"]


def test_gguf_agrees_with_the_reference_reader():
    path = checkpoint("ltx2_23_tiny.gguf")
    header = read_header(path)
    file = MappedFile(header)
    expected = {t.name: t for t in gguf.GGUFReader(path).tensors}
    assert header.container == "gguf"
    assert header.tensors.keys() == expected.keys()
    assert json.loads(header.metadata["config"])["transformer"]["num_layers"] == 3
    for name, tensor in expected.items():
        info = header.tensors[name]
        assert info.dtype == tensor.tensor_type.name
        assert info.shape == tuple(reversed(tensor.shape.tolist()))
        raw = np.asarray(tensor.data).reshape(-1).view(np.uint8)
        assert np.array_equal(file.tensor(name).reshape(-1).view(torch.uint8).numpy(), raw)


def test_gguf_original_shape(tmp_path):
    """Writers fold tensors of more than four axes; a key says what they were."""
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "ltxv")
    writer.add_array("comfy.gguf.orig_shape.a", [2, 1, 3, 1, 4])
    writer.add_tensor("a", np.arange(24, dtype=np.float32).reshape(6, 4))
    for step in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        step()
    tensor = MappedFile(read_header(path)).tensor("a")
    assert tensor.shape == (2, 1, 3, 1, 4)
    assert torch.equal(tensor.flatten(), torch.arange(24.0))


def test_gguf_original_shape_must_be_a_list(tmp_path):
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "ltxv")
    writer.add_uint32("comfy.gguf.orig_shape.a", 24)
    writer.add_tensor("a", np.arange(24, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="original shape"):
        read_header(path)


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [
        (4, b"\1\0\0\0", "version 1"),
        (8, b"\xff" * 8, "entries"),
        (16, b"\xff" * 8, "entries"),
        (24, b"\xff" * 8, "truncated"),
    ],
)
def test_gguf_refusals(at, value, reason, tmp_path):
    data = bytearray(checkpoint("ltx2_23_tiny.gguf").read_bytes())
    data[at : at + len(value)] = value
    path = tmp_path / "a.gguf"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=reason):
        read_header(path)


def test_a_cut_gguf_is_truncated(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(checkpoint("ltx2_23_tiny.gguf").read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        read_header(path)


def survives(content: bytes, name: str) -> None:
    """Reading and identifying `content` works or raises an error of our own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            header = read_header(path)
        except CheckpointError:
            return
        with suppress(EngineError):
            identify(header).summary()


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes(content):
    survives(content, "a.safetensors")
    survives(b"GGUF\3\0\0\0" + content, "a.gguf")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F4", "U8", "Q4", 3]),
        "shape": st.lists(st.integers(-1, 4), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(-1, 40), min_size=2, max_size=2) | json_values,
    }
)


@settings(max_examples=80, deadline=None)
@given(
    st.dictionaries(st.text(max_size=4) | st.just("__metadata__"), entries | json_values),
    st.integers(0, 40),
)
def test_random_headers(table, size):
    survives(safetensors_bytes(table, bytes(size)), "a.safetensors")


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["ltx2_20_tiny_lora_kohya.safetensors", "ltx2_23_tiny.gguf"]), st.data())
def test_mutated_files(name, data):
    path = checkpoint(name)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(content), 20_000) - 1))
        content[at] = data.draw(st.integers(0, 255))
    survives(bytes(content[: data.draw(st.integers(0, len(content)))]), path.name)
    survives(bytes(content), path.name)
