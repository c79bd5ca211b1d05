"""Every network from every layout, exactly; and nothing that is not exactly it."""

import json
from dataclasses import replace
from types import MappingProxyType

import gguf
import pytest
import torch
from checkpoint_files import P, checkpoint, outputs, read, sides, starting, table, write
from goldens import ROOT, golden

from aiprod_engine import load as engine_load
from aiprod_engine.errors import CheckpointError, MismatchError
from aiprod_engine.weights import load, load_tokenizer, source
from aiprod_engine.weights.containers import mapped
from aiprod_engine.weights.containers.header import Header
from aiprod_engine.weights.files import open_headers

EXPECTED = golden("checkpoints/ltx2_20_tiny.expected", "checkpoints/ltx2_23_tiny.expected")
TEXT = ROOT / "text/files"
KINDS = (
    "transformer",
    "text_connector",
    "video_encoder",
    "video_decoder",
    "audio_encoder",
    "audio_decoder",
    "vocoder",
)


def stem(case):
    return case.name.partition("/")[2].removesuffix(".expected")


def tiny(case):
    return checkpoint(f"{stem(case)}.safetensors")


def check(case, kind, files):
    model = load(kind, files, dtype=torch.float32)
    for name, value in outputs(kind, model, case).items():
        case.check(f"{kind}.{name}", value)


@pytest.mark.parametrize("case", EXPECTED)
@pytest.mark.parametrize("kind", KINDS)
def test_single_file(case, kind):
    check(case, kind, tiny(case))


@pytest.fixture(scope="module", params=["plain", "bare"])
def parts(request, tmp_path_factory):
    """Both files in parts: `plain` with their prefixes, `bare` without where files exist so."""
    folder = tmp_path_factory.mktemp(request.param)
    found = {}
    for version in ("ltx2_20_tiny", "ltx2_23_tiny"):
        tensors, metadata = read(checkpoint(f"{version}.safetensors"))
        rows = {
            "transformer": ((P,), P),
            "projection": (("text_embedding_projection.",), ""),
            "vae": (("vae.",), "vae."),
            "audio": (("audio_vae.", "vocoder."), ""),
        }
        found[version] = [
            write(
                folder / version / f"{name}.safetensors",
                starting(tensors, *starts, strip=strip if request.param == "bare" else ""),
                metadata,
            )
            for name, (starts, strip) in rows.items()
        ]
    return found


@pytest.mark.parametrize("case", EXPECTED)
@pytest.mark.parametrize("kind", KINDS)
def test_split_files(case, kind, parts):
    check(case, kind, parts[stem(case)])
    if kind == "video_decoder":
        check(case, kind, parts[stem(case)][0].parent)  # a folder of files


@pytest.fixture(scope="module")
def diffusers(tmp_path_factory):
    """Both files as diffusers folders; the transformer in two shards."""
    folder = tmp_path_factory.mktemp("diffusers")
    versions = table("diffusers_key_maps.json")["versions"]
    for version, name in (("2.0", "ltx2_20_tiny"), ("2.3", "ltx2_23_tiny")):
        tensors, metadata = read(checkpoint(f"{name}.safetensors"))
        places = {key: (part, theirs) for key, part, theirs in versions[version]["map"]}
        copies = {}
        for key, tensor in tensors.items():
            if (place := place_of(key, places)) is not None:
                copies.setdefault(place[0], {})[place[1]] = tensor
        for part, found in copies.items():
            if part == "transformer":
                shards(folder / name / part, found, metadata)
            else:
                file = "diffusion_pytorch_model.safetensors"
                write(folder / name / part / file, found, metadata)
        (folder / name / "model_index.json").write_text("{}")
    return folder


def place_of(key, places):
    """Folder and name of a key; the map writes repeated numbers as {i} and {j}."""
    segments = key.split(".")
    numbers = [i for i, segment in enumerate(segments) if segment.isdigit()]
    for first in (None, *numbers):
        for second in (None, *(n for n in numbers if first is not None and n > first)):
            marks = {first: "{i}", second: "{j}"}
            row = places.get(".".join(marks.get(i, s) for i, s in enumerate(segments)))
            if row is not None:
                i, j = (segments[n] if n is not None else "" for n in (first, second))
                return row[0], row[1].replace("{i}", i).replace("{j}", j)
    return None


def shards(folder, tensors, metadata):
    names = sorted(tensors)
    table = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        write(folder / file, {name: tensors[name] for name in part}, metadata)
        table |= dict.fromkeys(part, file)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": table}))


@pytest.mark.parametrize("case", EXPECTED)
@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_folder(case, kind, diffusers):
    check(case, kind, diffusers / stem(case))


@pytest.mark.parametrize("case", EXPECTED)
def test_load_is_the_engines_and_keeps_what_is_stored(case):
    model = engine_load("transformer", tiny(case))
    tables = torch.float32 if "23" in stem(case) else torch.bfloat16
    assert model.patchify_proj.weight.dtype == torch.bfloat16
    assert model.scale_shift_table.dtype == tables
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    everything = {*dict(model.named_parameters()), *dict(model.named_buffers())}
    assert everything == set(model.state_dict())


def test_weights_are_views_of_one_mapping():
    path = checkpoint("ltx2_20_tiny.safetensors")
    one, two = load("video_decoder", path), load("video_decoder", path)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert a.data_ptr() == b.data_ptr()
        assert a.untyped_storage().nbytes() == a.nbytes
    statistics = load("video_encoder", path).per_channel_statistics.get_buffer("std-of-means")
    shared = one.per_channel_statistics.get_buffer("std-of-means")
    assert statistics.data_ptr() == shared.data_ptr()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["ltx2_20_tiny.safetensors", "ltx2_23_tiny.safetensors"])
def test_every_dtype(kind, name):
    for dtype in (torch.bfloat16, torch.float32):
        model = load(kind, checkpoint(name), dtype=dtype)
        kept = torch.float32 if kind == "vocoder" else dtype
        assert {t.dtype for t in model.state_dict().values()} == {kept}


@pytest.mark.parametrize("case", EXPECTED)
@pytest.mark.parametrize("modalities", ["video", "audio"])
def test_single_stream_equals_the_whole_model_with_one_stream(case, modalities):
    whole = load("transformer", tiny(case), dtype=torch.float32)
    part = load("transformer", tiny(case), dtype=torch.float32, modalities=modalities)
    video, audio = sides(case)
    given = (video, None) if modalities == "video" else (None, audio)
    with torch.no_grad():
        expected, found = whole(*given), part(*given)
    for a, b in zip(expected, found, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    assert len(part.state_dict()) < len(whole.state_dict())


def test_single_stream_of_quantised_files():
    path = checkpoint("ltx2_23_tiny_fp8.safetensors")
    whole = load("transformer", path)
    part = load("transformer", path, modalities="audio")
    assert part.state_dict().keys() < whole.state_dict().keys()


def test_upsamplers_of_the_tiny_checkpoints():
    for name in ("ltx2_20_tiny_upsampler_x2", "ltx2_23_tiny_upsampler_x2"):
        model = load("upsampler", ROOT / f"pipelines/{name}.safetensors")
        assert model.config.rational_resampler == ("20" in name)


@pytest.mark.parametrize(
    ("path", "module"),
    [
        (TEXT / "hf_folder", "Gemma3"),
        (TEXT / "comfy_single/tiny_gemma_comfy.safetensors", "Gemma3"),
        (TEXT / "comfy_single/tiny_gemma_comfy_fp8_scaled.safetensors", "Gemma3"),
        (TEXT / "comfy_single/tiny_gemma_comfy_fp4_mixed.safetensors", "Gemma3"),
        (TEXT / "te_bundle_25/tiny_gemma4_with_proj.safetensors", "Gemma4"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_text_encoders(path, module):
    model = load("text_encoder", path)
    assert type(model).__name__ == module
    assert load_tokenizer(path).ids("hello world") == [2, 385, 362, 403, 291]


def test_gemma_layouts_hold_the_same_weights():
    folder = load("text_encoder", TEXT / "hf_folder").state_dict()
    single = load("text_encoder", TEXT / "comfy_single/tiny_gemma_comfy.safetensors").state_dict()
    assert folder.keys() == single.keys()
    assert all(torch.equal(folder[name], single[name]) for name in folder)


def test_gemma_from_llama_cpp(tmp_path):
    """Norms are stored with 1 added there; block types stay packed, the embedding is decoded."""
    expected = load("text_encoder", TEXT / "hf_folder").state_dict()
    words = {
        "embed_tokens": "token_embd",
        "self_attn.o_proj": "attn_output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
        **{f"self_attn.{n}_proj": f"attn_{n}" for n in "qkv"},
        **{f"self_attn.{n}_norm": f"attn_{n}_norm" for n in "qk"},
        **{f"mlp.{n}_proj": f"ffn_{n}" for n in ("gate", "up", "down")},
    }
    path = tmp_path / "gemma.gguf"
    writer = gguf.GGUFWriter(path, "gemma3")
    for name, tensor in expected.items():
        key = "output_norm.weight" if name == "norm.weight" else name.replace("layers.", "blk.")
        for word, other in words.items():
            key = key.replace(f"{word}.weight", f"{other}.weight")
        values = (tensor + 1 if "norm" in name else tensor).numpy()
        if tensor.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(key, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(key, values)
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    model = load("text_encoder", path, dtype=torch.float32)
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert model.get_submodule("layers.0.mlp.up_proj").quant == "gguf:Q8_0"
    for name, tensor in expected.items():
        if "norm" in name:
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)
    embedding = expected["embed_tokens.weight"]
    error = (found["embed_tokens.weight"] - embedding).abs().max()
    assert error <= embedding.abs().max() / 127  # half a step of 8 bits
    with pytest.raises(CheckpointError, match="searched"):
        load_tokenizer(path)
    assert load_tokenizer([path, TEXT / "hf_folder/tokenizer.model"]).ids("hello")[0] == 2
    assert load("text_encoder", [path, TEXT / "hf_folder/tokenizer.json"], dtype=torch.float32)


def test_connectors_and_projection_of_2_5_lie_in_two_files():
    names = ("tiny_gemma4_with_proj", "tiny_transformer_connectors")
    files = [TEXT / f"te_bundle_25/{name}.safetensors" for name in names]
    model = load("text_connector", files)
    assert (model.config.width, model.config.layers) == (32, 8)
    with pytest.raises(CheckpointError, match="no file holds the text_projection"):
        load("text_connector", files[1])


def test_quantised_projections_are_decoded(tmp_path):
    """The connector reads that weight itself, a packed one would be taken for values."""
    tensors, metadata = read(checkpoint("ltx2_23_tiny.safetensors"))
    layer = "text_embedding_projection.video_aggregate_embed"
    packed = {
        f"{layer}.weight": (tensors[f"{layer}.weight"] * 64).to(torch.float8_e4m3fn),
        f"{layer}.weight_scale": torch.tensor(1 / 64),
    }
    text = starting(tensors, f"{P}video_emb", f"{P}audio_emb", "text_emb")
    model = load("text_connector", write(tmp_path / "a.safetensors", text | packed, metadata))
    found = model.text_embedding_projection.video_aggregate_embed
    assert type(found) is torch.nn.Linear
    assert found.weight.dtype == torch.bfloat16
    torch.testing.assert_close(found.weight, tensors[f"{layer}.weight"], rtol=2**-3, atol=1e-3)


def test_plain_fp8_files_load_everywhere(tmp_path):
    """A file cast as a whole: convolutions, norms and biases too."""
    tensors, metadata = read(checkpoint("ltx2_20_tiny.safetensors"))
    cast = {k: t.to(torch.float8_e4m3fn) for k, t in tensors.items()}
    path = write(tmp_path / "a.safetensors", cast, metadata)
    for kind in KINDS:
        model = load(kind, path)
        floats = {p.dtype for p in model.parameters()}
        assert floats == {torch.float32 if kind == "vocoder" else torch.bfloat16}


def test_adapters_go_into_weights_and_beside_packed_layers():
    lora = [(checkpoint("ltx2_23_tiny_lora_distilled_bf16.safetensors"), 1.0)]
    plain = checkpoint("ltx2_23_tiny.safetensors")
    base = load("transformer", plain, dtype=torch.float32).state_dict()
    fused = load("transformer", plain, dtype=torch.float32, loras=lora).state_dict()
    assert any(not torch.equal(base[name], fused[name]) for name in base)
    packed = load("transformer", checkpoint("ltx2_23_tiny_fp8.safetensors"), loras=lora)
    assert any(getattr(m, "adapter_up", None) is not None for m in packed.modules())
    with pytest.raises(MismatchError):
        load("video_decoder", plain, loras=lora)


@pytest.fixture
def without_data(monkeypatch):
    """Reading a tensor fails the test: errors must come from the header."""

    def forbidden(*_):
        raise AssertionError("tensor data was read")

    monkeypatch.setattr(mapped.MappedFile, "tensor", forbidden)


@pytest.fixture
def changed(monkeypatch, without_data):
    """Let `load` see an edited copy of a file's header."""

    def edit(name, tensors=None, metadata=None):
        (header,) = open_headers(checkpoint(name))
        found = dict(header.tensors)
        for key, value in (tensors or {}).items():
            if value is None:
                del found[key]
            else:
                found[key] = value(found[key]) if callable(value) else value
        edited = Header(
            header.path,
            MappingProxyType(found),
            metadata if metadata is not None else header.metadata,
            header.container,
        )
        monkeypatch.setattr(source, "open_headers", lambda _: (edited,))

    return edit


def own_keys(kind, name):
    return [t.key for t in source.find(kind, checkpoint(name)).tensors.values()]


@pytest.mark.parametrize("name", ["ltx2_20_tiny.safetensors", "ltx2_23_tiny.safetensors"])
@pytest.mark.parametrize("kind", KINDS)
def test_any_missing_tensor_is_an_error(kind, name, changed):
    keys = own_keys(kind, name)
    for key in keys[:: max(len(keys) // 5, 1)]:
        changed(name, {key: None})
        with pytest.raises(CheckpointError):
            load(kind, "any")


@pytest.mark.parametrize("name", ["ltx2_20_tiny.safetensors", "ltx2_23_tiny.safetensors"])
@pytest.mark.parametrize("kind", KINDS)
def test_any_changed_shape_is_an_error(kind, name, changed):
    def grown(info):
        first = (info.shape[0] + 1, *info.shape[1:])
        return replace(info, shape=first)

    keys = own_keys(kind, name)
    for key in keys[:: max(len(keys) // 5, 1)]:
        changed(name, {key: grown})
        with pytest.raises(CheckpointError):
            load(kind, "any")


@pytest.mark.parametrize(
    ("kind", "start"),
    [
        ("transformer", P),
        ("transformer", f"{P}transformer_blocks.0.attn1."),
        ("text_connector", f"{P}video_embeddings_connector."),
        ("text_connector", "text_embedding_projection."),
        ("video_encoder", "vae.encoder."),
        ("video_decoder", "vae.decoder."),
        ("video_decoder", "vae."),
        ("video_encoder", "vae.per_channel_statistics."),
        ("audio_decoder", "audio_vae.decoder."),
        ("audio_encoder", "audio_vae."),
        ("vocoder", "vocoder."),
    ],
)
def test_an_unknown_tensor_inside_is_an_error(kind, start, changed):
    name = "ltx2_20_tiny.safetensors"
    extra = next(iter(open_headers(checkpoint(name))[0].tensors.values()))
    changed(name, {f"{start}surplus.weight": extra})
    with pytest.raises(CheckpointError, match="unexpected"):
        load(kind, "any")


def test_unknown_tensors_elsewhere_do_not_matter(changed):
    name = "ltx2_20_tiny.safetensors"
    extra = next(iter(open_headers(checkpoint(name))[0].tensors.values()))
    changed(name, {"first_stage_model.x": extra, "vae.per_channel_statistics.channel": extra})
    with pytest.raises(AssertionError, match="data was read"):
        load("video_decoder", "any")


def test_the_sentence_names_file_tensor_and_remedy(changed):
    key = f"{P}transformer_blocks.1.attn1.to_q.bias"
    changed("ltx2_20_tiny.safetensors", {key: None})
    with pytest.raises(CheckpointError) as caught:
        load("transformer", "any")
    text = str(caught.value)
    assert "ltx2_20_tiny.safetensors" in text
    assert "transformer_blocks.1.attn1.to_q.bias" in text
    assert "incomplete" in text


@pytest.mark.parametrize("role", ["weight_scale", "weight"])
@pytest.mark.parametrize(
    ("name", "block"),
    [("ltx2_20_tiny_fp8.safetensors", 1), ("ltx2_23_tiny_fp8.safetensors", 2)],
)
def test_a_dropped_scale_is_an_error(name, block, role, changed):
    changed(name, {f"{P}transformer_blocks.{block}.attn1.to_q.{role}": None})
    with pytest.raises(CheckpointError):
        load("transformer", "any")


def test_swapped_versions_are_an_error(without_data, tmp_path):
    for a, b in (("20", "23"), ("23", "20")):
        model, _ = read(checkpoint(f"ltx2_{a}_tiny.safetensors"))
        other, metadata = read(checkpoint(f"ltx2_{b}_tiny.safetensors"))
        connectors = starting(model, f"{P}video_emb", f"{P}audio_emb")
        mixed = connectors | starting(other, "text_emb")
        with pytest.raises(CheckpointError):
            load("text_connector", write(tmp_path / f"{a}.safetensors", mixed, metadata))
        apart = [
            write(tmp_path / f"{a}c.safetensors", connectors),
            write(tmp_path / f"{b}p.safetensors", starting(other, "text_emb"), metadata),
        ]
        with pytest.raises((CheckpointError, MismatchError)):
            load("text_connector", apart)
        vae = starting(model, "vae.encoder.", "vae.per") | starting(other, "vae.decoder.")
        path = write(tmp_path / f"{a}v.safetensors", vae, metadata)
        with pytest.raises((CheckpointError, AssertionError)):
            load("video_encoder", path)


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("transformer", {"rope_type": "other"}),
        ("transformer", {"activation_fn": "relu"}),
        ("transformer", {"norm_eps": "small"}),
        ("transformer", {"positional_embedding_max_pos": 7}),
        ("vae", {"norm_layer": "group_norm"}),
        ("vae", {"patch_size": None}),
        ("vocoder", {"resblock": "2"}),
        ("vocoder", {"upsample_rates": "x"}),
        ("audio_vae", {"model": {"params": {"ddconfig": {"norm_type": "batch"}}}}),
        ("audio_vae", {"model": {"params": {"ddconfig": {"attn_resolutions": 5}}}}),
    ],
)
def test_bad_configs_are_refused(section, change, changed):
    kinds = {
        "transformer": "transformer",
        "vae": "video_decoder",
        "vocoder": "vocoder",
        "audio_vae": "audio_decoder",
    }
    name = "ltx2_20_tiny.safetensors"
    config = json.loads(open_headers(checkpoint(name))[0].metadata["config"])
    merged = json.loads(json.dumps(config[section]))
    for key, value in change.items():
        if isinstance(value, dict):
            merged[key]["params"]["ddconfig"] |= value["params"]["ddconfig"]
        else:
            merged[key] = value
    changed(name, metadata={"config": json.dumps(config | {section: merged})})
    with pytest.raises(CheckpointError):
        load(kinds[section], "any")


def test_what_is_not_there(without_data, tmp_path):
    with pytest.raises(CheckpointError, match="unknown kind"):
        load("unet", checkpoint("ltx2_20_tiny.safetensors"))
    with pytest.raises(CheckpointError, match="is lora"):
        load("transformer", checkpoint("ltx2_20_tiny_lora_peft.safetensors"))
    files = [checkpoint(f"ltx2_20_tiny{x}.safetensors") for x in ("", "_fp8")]
    with pytest.raises(CheckpointError, match="several files"):
        load("transformer", files)
    old = {
        f"{P}patchify_proj.weight": torch.zeros(8, 4),
        f"{P}adaln_single.linear.weight": torch.zeros(48, 8),
    }
    with pytest.raises(CheckpointError, match=r"0\.9\.x"):
        load("transformer", write(tmp_path / "old.safetensors", old))


def test_connectors_of_the_transformer_file_win(tmp_path):
    tensors, metadata = read(checkpoint("ltx2_23_tiny.safetensors"))
    connectors = starting(tensors, f"{P}video_emb", f"{P}audio_emb")
    other = {key: torch.zeros_like(value) for key, value in connectors.items()}
    files = [
        write(tmp_path / "c.safetensors", other, metadata),
        write(tmp_path / "t.safetensors", starting(tensors, P), metadata),
        write(tmp_path / "p.safetensors", starting(tensors, "text_emb"), metadata),
    ]
    model = load("text_connector", files)
    registers = model.video_embeddings_connector.learnable_registers
    assert torch.equal(registers, tensors[f"{P}video_embeddings_connector.learnable_registers"])


def test_integers_without_a_record_are_refused(tmp_path):
    tensors, metadata = read(checkpoint("ltx2_20_tiny.safetensors"))
    key = "vae.decoder.conv_in.conv.bias"
    vae = starting(tensors, "vae.") | {key: torch.ones(tensors[key].shape, dtype=torch.int32)}
    with pytest.raises(CheckpointError, match="quantisation record"):
        load("video_decoder", write(tmp_path / "a.safetensors", vae, metadata))
