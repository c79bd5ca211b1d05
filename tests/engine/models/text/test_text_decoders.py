import pytest
import torch
from goldens import Case, golden

from aiprod_engine.errors import UnsupportedConfig
from aiprod_engine.models.text.gemma3 import Gemma3, Gemma3Config
from aiprod_engine.models.text.gemma4 import Gemma4, Gemma4Config

FAMILIES = {
    "gemma3": (Gemma3, Gemma3Config, "language_model.model."),
    "gemma4": (Gemma4, Gemma4Config, "model.language_model."),
}


def hf_config(case):
    return case.config.get("gemma", case.config)


def load(case, build, dtype=torch.float32):
    module, config, prefix = FAMILIES[case.name.split("/")[1].split("_")[0]]
    weights = {k.removeprefix(prefix): v.to(dtype) for k, v in case.weights.items()}
    return build(module, config.from_metadata(hf_config(case)), weights)


def prompts(case):
    for i in range(len(case.call["prompts"])):
        yield f"p{i}", case.inputs[f"p{i}.input_ids"], case.inputs[f"p{i}.attention_mask"]


def states(model, ids, mask):
    """Hidden states of the valid rows, (1, n, D, layers + 1)."""
    return torch.stack([x[mask.bool()] for x in model(ids, mask)], dim=-1)[None]


def trim(ids, mask):
    valid = mask.bool()
    return ids[valid][None], mask[valid][None]


@pytest.mark.parametrize("case", golden("text/gemma3_tiny", "text/gemma4_tiny"))
@pytest.mark.parametrize("padded", [True, False])
def test_hidden_states_match_reference(case, build, padded):
    model = load(case, build)
    for name, ids, mask in prompts(case):
        out = states(model, *((ids, mask) if padded else trim(ids, mask)))
        case.check(f"{name}.hidden", out)


@pytest.mark.parametrize(
    "files",
    [
        ["model-00001-of-00002", "model-00002-of-00002"],
        ["../comfy_single/tiny_gemma_comfy"],
    ],
)
def test_both_file_layouts_hold_the_same_decoder(files, build, read_files, strip):
    case = Case("text/gemma3_tiny")
    tensors = read_files(*(f"files/hf_folder/{name}.safetensors" for name in files))
    weights = strip(tensors, "language_model.model.") or strip(tensors, "model.")
    model = build(Gemma3, Gemma3Config.from_metadata(hf_config(case)), weights)
    name, ids, mask = next(prompts(case))
    case.check(f"{name}.hidden", states(model, ids, mask))


@pytest.mark.parametrize("case", golden("text/gemma3_tiny", "text/gemma4_tiny"))
def test_every_weight_matters(case, build):
    model = load(case, build)
    _, ids, mask = next(prompts(case))
    before = states(model, ids, mask)
    for name, parameter in model.named_parameters():
        if name == f"layers.{len(model.layers) - 1}.layer_scalar":
            continue  # cancelled by the final norm
        kept = parameter.clone()
        parameter += 0.05 + 0.05 * torch.rand_like(parameter)
        assert not torch.allclose(states(model, ids, mask), before, atol=1e-4), name
        parameter.copy_(kept)


@pytest.mark.parametrize("case", golden("text/gemma3_tiny", "text/gemma4_tiny"))
def test_batch_of_two_equals_two_of_one(case, build):
    model = load(case, build)
    (_, ids_a, mask_a), (_, ids_b, mask_b) = list(prompts(case))[:2]
    both = list(model(torch.cat([ids_a, ids_b]), torch.cat([mask_a, mask_b])))
    for row, (ids, mask) in enumerate([(ids_a, mask_a), (ids_b, mask_b)]):
        for x, alone in zip(both, model(ids, mask), strict=True):
            assert torch.isfinite(x).all()  # padded rows too
            valid = mask[0].bool()
            torch.testing.assert_close(x[row, valid], alone[0, valid], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", golden("text/gemma3_tiny", "text/gemma4_tiny"))
def test_padding_carries_no_information(case, build):
    model = load(case, build)
    _, ids, mask = next(prompts(case))
    other = torch.where(mask.bool(), ids, torch.randint_like(ids, 4, 400))
    assert torch.equal(states(model, ids, mask), states(model, other, mask))


@pytest.mark.parametrize("case", golden("text/gemma3_tiny", "text/gemma4_tiny"))
def test_bfloat16_stays_near_float32(case, build):
    """Four times the error of rounding the weights alone (2 % for Gemma 3 at this depth).

    The random Gemma 4 amplifies every rounding layer by layer, so no fixed figure would do.
    """
    exact, half = load(case, build), load(case, build, torch.bfloat16)
    rounded = load(case, build, torch.bfloat16).float()
    for _, ids, mask in prompts(case):
        a, b, c = (states(model, ids, mask) for model in (exact, half, rounded))
        assert b.dtype == torch.bfloat16
        assert (a - b.float()).norm() <= 4 * (a - c).norm()


def test_embedding_scale_is_rounded_to_the_table_dtype():
    """sqrt(3840) = 61.97 becomes 62 in bfloat16."""
    small = {"intermediate_size": 1, "num_hidden_layers": 1, "vocab_size": 3, "head_dim": 2}
    model = Gemma3(Gemma3Config.from_metadata(small)).bfloat16().requires_grad_(False)
    model.embed_tokens.weight.fill_(1)
    ids = torch.zeros(1, 2, dtype=torch.long)
    x = next(model(ids, torch.ones_like(ids)))
    assert torch.equal(x, torch.full_like(x, 62.0))


@pytest.mark.parametrize(
    ("family", "name", "prefix"),
    [
        ("gemma3", "gemma3-12b-text", "language_model.model."),
        ("gemma3", "gemma3-12b-text-comfy", "model."),
        ("gemma4", "text-2.5", "model."),
    ],
)
def test_keys_equal_the_full_size_file(family, name, prefix, manifest, strip):
    module, config, _ = FAMILIES[family]
    with torch.device("meta"):
        model = module(config.from_metadata({}))
    expected = strip(manifest(name), prefix)
    expected = {k: v for k, v in expected.items() if not k.startswith("diffusion_model.")}
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == expected
    # On the meta device: shapes, and that no tensor is made on another device.
    ids = torch.zeros(1, 7, dtype=torch.long, device="meta")
    found = [x.shape for x in model(ids, torch.ones_like(ids))]
    assert found == [(1, 7, 3840)] * 49 == [(1, 7, 3840)] * model.config.hidden_states


def test_published_config_of_transformers_5_reads_the_same():
    """transformers 5 nests the rotary settings per layer kind and lists the kinds."""
    case = Case("text/gemma3_tiny")
    older = hf_config(case)
    text = dict(older["text_config"])
    for key in ("rope_theta", "rope_local_base_freq", "rope_scaling", "sliding_window_pattern"):
        del text[key]
    text["layer_types"] = [*["sliding_attention"] * 5, "full_attention", "sliding_attention"]
    text["rope_parameters"] = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
    }
    assert Gemma3Config.from_metadata(text) == Gemma3Config.from_metadata(older)


@pytest.mark.parametrize(
    ("family", "raw", "message"),
    [
        ("gemma3", {"model_type": "gemma4", "text_config": {}}, "model_type must be 'gemma3'"),
        ("gemma3", {"model_type": "gemma2"}, "model_type must be 'gemma3_text'"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping must be None"),
        ("gemma3", {"hidden_activation": "silu"}, "hidden_activation"),
        ("gemma3", {"rope_scaling": {"rope_type": "yarn"}}, "rope_type must be 'linear'"),
        ("gemma3", {"layer_types": ["linear_attention"] * 48}, "layer_types"),
        ("gemma3", {"num_attention_heads": 9}, "multiple of key heads"),
        ("gemma4", {"attention_k_eq_v": False}, "attention_k_eq_v must be True"),
        ("gemma4", {"num_kv_shared_layers": 8}, "num_kv_shared_layers must be 0"),
        ("gemma4", {"layer_types": ["full_attention"]}, "must name 48 layers"),
    ],
)
def test_config_outside_what_is_implemented_raises(family, raw, message):
    with pytest.raises(UnsupportedConfig, match=message):
        FAMILIES[family][1].from_metadata(raw)
