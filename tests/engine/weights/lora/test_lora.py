"""LoRA files: spellings, reports, refusals, the fused weights of the tiny checkpoints."""

import gzip
import json

import pytest
import torch
from goldens import ROOT, Case, golden
from safetensors.torch import save_file

from aiprod_engine.errors import CheckpointError, MismatchError
from aiprod_engine.weights.lora.file import read_lora
from aiprod_engine.weights.lora.names import (
    SUFFIXES,
    ModuleNames,
    is_text_side,
    split_key,
    stream_of,
)
from aiprod_engine.weights.lora.stack import load_loras

PREFIX = "model.diffusion_model."
STYLES = (*("lightricks", "comfy_alpha", "kohya", "diffusers", "peft", "bare_default", "ab_alpha"),)
MANIFESTS = {"2.0": "transformer-2.0-19b", "2.3": "transformer-2.3-22b"}
TABLE = json.loads((ROOT / "checkpoints/lora_key_maps.json").read_text())


def _base(stem: str) -> dict[str, torch.Tensor]:
    """float32 transformer tensors of a tiny checkpoint by module key."""
    return {
        key.removeprefix(PREFIX): tensor.float()
        for key, tensor in Case(f"checkpoints/{stem}").tensors.items()
        if key.startswith(PREFIX) and "embeddings_connector" not in key
    }


def _shapes(weights):
    return {key: tuple(tensor.shape) for key, tensor in weights.items()}


def _modules(version: str) -> list[str]:
    path = ROOT.parent / f"manifests/{MANIFESTS[version]}.json.gz"
    manifest = json.loads(gzip.decompress(path.read_bytes()))
    return [
        key.removeprefix(PREFIX).removesuffix(".weight")
        for key, entry in manifest.items()
        if key.endswith(".weight") and "norm" not in key and "embeddings_connector" not in key
    ]


@pytest.mark.parametrize("version", MANIFESTS)
def test_every_spelling_of_every_listed_module(version):
    modules = _modules(version)
    assert len(modules) == TABLE["versions"][version]["linear_modules"]
    names = ModuleNames(modules)
    for module, *spellings in TABLE["versions"][version]["rows"]:
        for spelling in spellings:
            assert names.find(spelling) == module, spelling
    assert len(names.by_underscores) == len(modules)
    assert names.find("lora_unet_transformer_blocks_0_attn1_to_nothing") is None


def test_suffixes_are_those_of_the_vocabulary():
    listed = {suffix for group in TABLE["suffixes"].values() for suffix in group}
    assert listed <= SUFFIXES.keys()
    for suffix, role in SUFFIXES.items():
        assert split_key(f"a.b{suffix}") == ("a.b", role)
    assert split_key("vocoder.act.weight") is None


def test_text_side_is_recognised_and_resolved():
    for base, _ in TABLE["text_side"]:
        assert is_text_side(base), base
    for base in ("lora_te1_layers_0", "text_encoders.transformer.model.layers.0.mlp.up_proj"):
        assert is_text_side(base), base
    assert not is_text_side("diffusion_model.transformer_blocks.0.attn1.to_q")
    base, native = TABLE["text_side"][1]
    names = ModuleNames(
        [native, "layers.0.mlp.up_proj", "text_embedding_projection.aggregate_embed"]
    )
    assert names.find(base) == native
    assert names.find("text_encoders.transformer.model.layers.0.mlp.up_proj")
    assert names.find("text_embedding_projection.aggregate_embed")


@pytest.mark.parametrize("case", golden("checkpoints/ltx2_*_tiny_lora_*", "checkpoints/*_iclora"))
def test_files_match_completely(case):
    weights = _base(case.name.rpartition("/")[2].split("_lora_")[0].removesuffix("_iclora"))
    loras = load_loras([(case.path, 1.0)], _shapes(weights))
    (report,) = loras.reports
    assert not report.unmatched
    assert not report.mis_shaped
    if "distilled" in case.name:
        assert len(report.matched) == report.linears
        assert len(report.elsewhere) == (2 if "_20_" in case.name else 0)
        assert all(r.adapter.scale == 1.0 for found in loras.records.values() for r in found)
    if "iclora" in case.name:
        assert (loras.reference.spatial_factor, loras.reference.temporal_factor) == (2, 1)
        assert loras.reference.is_ic_lora
        assert len(report.matched) == 14
    assert str(len(report.matched)) in loras.describe()
    # Every stored tensor moves its weight, and only those weights move.
    for key in loras.keys:
        assert not torch.equal(loras.fuse(key, weights[key]), weights[key])
    untouched = next(key for key in weights if key not in loras.keys)
    assert loras.fuse(untouched, weights[untouched]) is weights[untouched]


@pytest.mark.parametrize("stem", ["ltx2_20_tiny", "ltx2_23_tiny"])
def test_seven_spellings_are_one_update(stem):
    weights = _base(stem)
    fused = []
    for style in STYLES:
        path = ROOT / f"checkpoints/{stem}_lora_{style}.safetensors"
        loras = load_loras([(path, 1.0)], _shapes(weights))
        assert len(loras.modules) == {"ltx2_20_tiny": 22, "ltx2_23_tiny": 25}[stem]
        fused.append({key: loras.fuse(key, weights[key]) for key in loras.keys})
    for other in fused[1:]:
        assert other.keys() == fused[0].keys()
        assert all(torch.equal(other[key], fused[0][key]) for key in other)


@pytest.mark.parametrize("case", golden("checkpoints/ltx2_*.variants"))
def test_fused_weights_of_the_variants(case):
    stem = case.name.removesuffix(".variants")
    weights = _base(stem.rpartition("/")[2])
    tag = "sub_0.8_iclora_-0.3"
    files = [(Case(f"{stem}_lora_comfy_alpha").path, 0.8), (Case(f"{stem}_iclora").path, -0.3)]
    loras = load_loras(files, _shapes(weights))
    for name in case.outputs:
        key = name.partition(f"{tag}.")[2]
        if name.startswith(f"weight.{tag}."):
            case.check(name, loras.fuse(key, weights[key]))
        elif name.startswith(f"weight_bf16.{tag}."):
            # The reference rounds each product to bf16: rtol 2^-6 plus atol 2e-3.
            fused = loras.fuse(key, weights[key].bfloat16()).float()
            torch.testing.assert_close(fused, case.outputs[name], rtol=2**-6, atol=2e-3)


def test_swapping_never_touches_the_base():
    weights = _base("ltx2_23_tiny")
    pristine = {key: tensor.clone() for key, tensor in weights.items()}
    a, b = (ROOT / f"checkpoints/ltx2_23_tiny_{s}.safetensors" for s in ("lora_peft", "iclora"))
    for files in ([(a, 1.0)], [(a, 1.0), (b, 0.5)], [(b, 0.5)], []):
        loras = load_loras(files, _shapes(weights))
        fused = {key: loras.fuse(key, tensor) for key, tensor in weights.items()}
        same = {key for key in weights if torch.equal(fused[key], pristine[key])}
        assert same == weights.keys() - loras.keys
    assert all(torch.equal(weights[key], pristine[key]) for key in weights)


def _write(path, tensors, **metadata):
    save_file(tensors, path, metadata or None)
    return path


def _pair(rank=2, rows=6, columns=4):
    return torch.randn(rank, columns), torch.randn(rows, rank)


SHAPES = {
    "transformer_blocks.0.attn1.to_q.weight": (6, 4),
    "transformer_blocks.0.attn1.to_q.bias": (6,),
    "transformer_blocks.0.audio_attn1.to_q.weight": (6, 4),
    "transformer_blocks.0.attn1.q_norm.weight": (6,),
}
Q, AUDIO_Q = "transformer_blocks.0.attn1.to_q", "transformer_blocks.0.audio_attn1.to_q"


def test_strength_zero_is_absent_and_not_even_opened(tmp_path):
    missing = tmp_path / "nowhere.safetensors"
    for strength in (0, 0.0, {"video": 0.0, "audio": 0.0}):
        loras = load_loras([(missing, strength)], SHAPES)
        assert not loras.keys
        assert not loras.reports
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors"):
        load_loras([(missing, 1.0)], SHAPES)


def test_strength_per_stream(tmp_path):
    down, up = _pair()
    tensors = {}
    for module in (Q, AUDIO_Q):
        tensors |= {f"{module}.lora_A.weight": down.clone(), f"{module}.lora_B.weight": up.clone()}
    path = _write(tmp_path / "x.safetensors", tensors)
    loras = load_loras([(path, {"video": 2.0, "audio": 0.0})], SHAPES)
    assert loras.modules == {Q}
    torch.testing.assert_close(loras.fuse(f"{Q}.weight", torch.zeros(6, 4)), 2 * up @ down)
    for wrong in ({"video": 1.0}, {"video": 1.0, "audio": 1.0, "text": 1.0}, float("nan")):
        with pytest.raises(MismatchError, match="strength"):
            load_loras([(path, wrong)], SHAPES)


@pytest.mark.parametrize(
    ("module", "stream"),
    [
        ("transformer_blocks.3.attn1.to_q", "video"),
        ("transformer_blocks.3.attn2.to_out.0", "video"),
        ("transformer_blocks.3.ff.net.2", "video"),
        ("transformer_blocks.3.audio_to_video_attn.to_q", "video"),
        ("transformer_blocks.3.video_to_audio_attn.to_q", "audio"),
        ("transformer_blocks.3.audio_attn1.to_q", "audio"),
        ("transformer_blocks.3.audio_ff.net.0.proj", "audio"),
        ("adaln_single.linear", "video"),
        ("audio_adaln_single.linear", "audio"),
        ("av_ca_video_scale_shift_adaln_single.linear", "video"),
        ("av_ca_audio_scale_shift_adaln_single.linear", "audio"),
        ("av_ca_a2v_gate_adaln_single.linear", "video"),
        ("av_ca_v2a_gate_adaln_single.linear", "audio"),
        ("audio_proj_out", "audio"),
    ],
)
def test_stream_of_a_module(module, stream):
    assert stream_of(module) == stream


def test_metadata_alpha_counts_only_without_alpha_tensors(tmp_path):
    down, up = _pair()
    pair = {f"{Q}.lora_A.weight": down, f"{Q}.lora_B.weight": up}

    def scale(tensors, **metadata):
        path = _write(tmp_path / "x.safetensors", tensors, **metadata)
        (record,) = load_loras([(path, 1.0)], SHAPES).records[f"{Q}.weight"]
        return record.adapter.scale

    assert scale(pair) == 1.0
    assert scale(pair, lora_alpha="450", lora_rank="450") == 1.0  # not divided by the own rank
    assert scale(pair, lora_alpha="8", lora_rank="16") == 0.5
    assert scale(pair, lora_alpha="8") == 1.0
    alpha = {f"{Q}.alpha": torch.tensor(6.0)}
    assert scale({**pair, **alpha}, lora_alpha="8", lora_rank="16") == 3.0
    with pytest.raises(CheckpointError, match="lora_alpha"):
        scale(pair, lora_alpha="8", lora_rank="0")
    with pytest.raises(CheckpointError, match="alpha"):
        scale({**pair, f"{Q}.alpha": torch.tensor(float("nan"))})


def test_other_adapters_by_their_keys(tmp_path):
    down, up = _pair()
    pair = {f"{Q}.lora_A.weight": down, f"{Q}.lora_B.weight": up}
    alpha = {f"{Q}.alpha": torch.tensor(3.0)}
    weight = torch.randn(6, 4)
    delta = up @ down

    def fused(tensors, key="weight"):
        path = _write(tmp_path / "x.safetensors", tensors)
        loras = load_loras([(path, 1.0)], SHAPES)
        return loras.fuse(f"{Q}.{key}", weight if key == "weight" else torch.zeros(6))

    merged, m = weight + delta, torch.rand(6, 1)
    dora = m * merged / merged.norm(dim=1, keepdim=True)
    for suffix in (".lora_magnitude_vector", ".lora_magnitude_vector.weight"):
        torch.testing.assert_close(fused({**pair, Q + suffix: m.flatten()}), dora)
    rows = m * merged / weight.norm(dim=1, keepdim=True)
    torch.testing.assert_close(fused({**pair, f"{Q}.dora_scale": m}), rows)
    n = torch.rand(1, 4)
    columns = n * merged / merged.norm(dim=0, keepdim=True)
    torch.testing.assert_close(fused({**pair, f"{Q}.dora_scale": n}), columns)

    w1, w2a, w2b = torch.randn(2, 2), torch.randn(3, 1), torch.randn(1, 2)
    lokr = {f"{Q}.lokr_w1": w1, f"{Q}.lokr_w2_a": w2a, f"{Q}.lokr_w2_b": w2b}
    torch.testing.assert_close(fused(lokr), weight + torch.kron(w1, w2a @ w2b))
    torch.testing.assert_close(fused({**lokr, **alpha}), weight + 3 * torch.kron(w1, w2a @ w2b))
    whole = {f"{Q}.lokr_w1": w1, f"{Q}.lokr_w2": w2a @ w2b}
    torch.testing.assert_close(fused({**whole, **alpha}), weight + torch.kron(w1, w2a @ w2b))

    diff, diff_b = torch.randn(6, 4), torch.randn(6)
    both = {f"{Q}.diff": diff, f"{Q}.diff_b": diff_b}
    torch.testing.assert_close(fused(both), weight + diff)
    torch.testing.assert_close(fused(both, "bias"), diff_b)
    norm = {**pair, "transformer_blocks.0.attn1.q_norm.diff": diff_b}
    path = _write(tmp_path / "x.safetensors", norm)
    loras = load_loras([(path, 1.0)], SHAPES)
    assert "transformer_blocks.0.attn1.q_norm.weight" in loras.keys


@pytest.mark.parametrize(
    "suffix", [".lora_mid.weight", ".lokr_t2", ".set_weight", ".reshape_weight"]
)
def test_refused_suffixes_raise(tmp_path, suffix):
    down, up = _pair()
    tensors = {f"{Q}.lora_A.weight": down, f"{Q}.lora_B.weight": up, Q + suffix: torch.ones(2)}
    with pytest.raises(CheckpointError, match="not supported"):
        load_loras([(_write(tmp_path / "x.safetensors", tensors), 1.0)], SHAPES)


def test_broken_adapters_raise(tmp_path):
    down, up = _pair()
    pair = {f"{Q}.lora_A.weight": down, f"{Q}.lora_B.weight": up}
    broken = {
        "has no lora_B": {f"{Q}.lora_A.weight": down},
        "has no lora_A": {f"{Q}.lora_B.weight": up},
        "do not multiply": {**pair, f"{Q}.lora_A.weight": torch.randn(3, 4)},
        "no low-rank pair": {f"{Q}.dora_scale": torch.ones(6, 1)},
        "has no lokr_w2": {f"{Q}.lokr_w1": torch.ones(2, 2)},
        "magnitude of shape": {**pair, f"{Q}.dora_scale": torch.ones(5, 1)},
        "floating point": {**pair, f"{Q}.lora_A.weight": torch.ones(2, 4, dtype=torch.int8)},
        "low-rank pair and a Kronecker": {
            **pair,
            **{f"{Q}.lokr_w{i}": torch.ones(size) for i, size in ((1, (2, 2)), (2, (3, 2)))},
        },
        "name the same tensor": {**pair, f"diffusion_model.{Q}.lora_A.weight": down.clone()},
    }
    for words, tensors in broken.items():
        with pytest.raises(CheckpointError, match=words):
            load_loras([(_write(tmp_path / "x.safetensors", tensors), 1.0)], SHAPES)


def test_wrong_models_are_named(tmp_path):
    stems = ("ltx2_20_tiny", "ltx2_23_tiny")
    for stem, other, says in (
        (*stems, r"targets LTX-2\.3 or 2\.5"),
        (*stems[::-1], r"targets LTX-2\.0"),
    ):
        path = ROOT / f"checkpoints/{other}_lora_kohya.safetensors"
        with pytest.raises(MismatchError, match=says):
            load_loras([(path, 1.0)], _shapes(_base(stem)))
    down, up = _pair()
    text = {"lora_te1_x.lora_down.weight": down, "lora_te1_x.lora_up.weight": up}
    with pytest.raises(MismatchError, match="targets the text encoding"):
        load_loras([(_write(tmp_path / "x.safetensors", text), 1.0)], SHAPES)


def test_the_text_part_of_a_distilled_lora_fits_the_projection():
    """2.0 carries it; for a text component the transformer's keys are those of another one."""
    key = "text_embedding_projection.aggregate_embed.weight"
    weight = Case("checkpoints/ltx2_20_tiny").tensors[key]
    path = ROOT / "checkpoints/ltx2_20_tiny_lora_distilled_bf16.safetensors"
    loras = load_loras([(path, 1.0)], {key: tuple(weight.shape)})
    assert loras.keys == {key}
    assert not loras.reports[0].unmatched
    assert len(loras.reports[0].elsewhere) == 2 * 82
    assert not torch.equal(loras.fuse(key, weight), weight)


def test_unmatched_keys_warn_with_five_names(tmp_path, caplog):
    down, up = _pair()
    tensors = {f"{Q}.lora_A.weight": down, f"{Q}.lora_B.weight": up}
    tensors |= {f"elsewhere.{i}.lora_A.weight": down.clone() for i in range(7)}
    tensors |= {f"{AUDIO_Q}.alpha": torch.tensor(1.0), f"{AUDIO_Q}.diff_b": torch.ones(6)}
    path = _write(tmp_path / "x.safetensors", tensors)
    loras = load_loras([(path, 1.0)], SHAPES)
    assert len(loras.reports[0].unmatched) == 8  # the bias does not exist
    assert "8 keys without a target" in caplog.text
    assert caplog.text.count("elsewhere") <= 5
    del tensors[f"{AUDIO_Q}.diff_b"]
    path = _write(tmp_path / "y.safetensors", tensors)
    assert f"{AUDIO_Q}.alpha" in read_lora(path, SHAPES).report.unmatched


def test_ic_lora_metadata(tmp_path):
    down, up = _pair()
    pair = {f"{Q}.lora_A.weight": down, f"{Q}.lora_B.weight": up}
    count = iter(range(100))

    def reference(*metadata):
        files = [
            (_write(tmp_path / f"{next(count)}.safetensors", pair, **entry), 1.0)
            for entry in metadata
        ]
        return load_loras(files, SHAPES).reference

    assert not reference({}).is_ic_lora
    assert reference({"reference_downscale_factor": "2"}, {}).spatial_factor == 2
    assert reference({"reference_spatial_scale_factor": "3"}).spatial_factor == 3
    one = reference({"reference_downscale_factor": "1"}, {"reference_downscale_factor": "2"})
    assert one.spatial_factor == 2
    assert reference({"reference_temporal_scale_factor": "4"}).temporal_factor == 4
    for key in ("hdr_transform", "use_hdr_transform"):
        assert reference({key: "true"}).hdr_transform == "logc3"
    with pytest.raises(MismatchError, match="agree"):
        reference({"reference_downscale_factor": "2"}, {"reference_downscale_factor": "3"})
    for key in ("reference_downscale_factor", "reference_temporal_scale_factor"):
        for wrong in ("0", "1.5", "x", "nan", "1e9"):
            with pytest.raises(CheckpointError, match=key):
                reference({key: wrong})
    with pytest.raises(CheckpointError, match="hdr_transform"):
        reference({"hdr_transform": "pq"})


def test_fp8_weights_are_not_fused_silently(tmp_path):
    down, up = _pair()
    pair = {f"{Q}.lora_A.weight": down, f"{Q}.lora_B.weight": up}
    loras = load_loras([(_write(tmp_path / "x.safetensors", pair), 1.0)], SHAPES)
    with pytest.raises(MismatchError, match="side path"):
        loras.fuse(f"{Q}.weight", torch.zeros(6, 4).to(torch.float8_e4m3fn))
