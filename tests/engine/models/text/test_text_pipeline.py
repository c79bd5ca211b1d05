"""Token ids to contexts, with the language model, projection and connectors of one fixture."""

import pytest
import torch
from goldens import Case, golden

from aiprod_engine.models.text.connector import TextConnector, TextConnectorConfig
from aiprod_engine.models.text.gemma3 import Gemma3, Gemma3Config
from aiprod_engine.models.text.gemma4 import Gemma4, Gemma4Config


def prompts(case):
    for i in range(len(case.call["prompts"])):
        yield f"p{i}", case.inputs[f"p{i}.input_ids"], case.inputs[f"p{i}.attention_mask"]


def text_connector(case, tensors, build, connector_part):
    shapes = {k: v.shape for k, v in tensors.items()}
    config = TextConnectorConfig.from_metadata(case.config["transformer"], shapes)
    return build(TextConnector, config, connector_part(tensors))


def check_prompts(case, decoder, connector, trimmed):
    for name, ids, mask in prompts(case):
        valid = mask[0].bool()
        if trimmed:
            ids, mask = ids[:, valid], mask[:, valid]
        length = case.call["max_length"]
        video, audio, ones = connector.encode(decoder(ids, mask), mask, length)
        case.check(f"{name}.video_context", video)
        case.check(f"{name}.audio_context", audio)
        assert torch.equal(ones, torch.ones(1, length, dtype=torch.int64))
        if f"{name}.context_mask" in case.outputs:
            case.check(f"{name}.context_mask", ones)
        features = connector.text_embedding_projection(decoder(ids, mask), mask)
        for side, x in zip(("video", "audio"), features, strict=True):
            if f"{name}.{side}_features" in case.outputs:
                case.check(f"{name}.{side}_features", x[mask.bool()][None])


@pytest.mark.parametrize("case", golden("text/pipeline_v1", "text/pipeline_v2"))
@pytest.mark.parametrize("trimmed", [False, True])
def test_contexts_match_reference(case, trimmed, build, strip, connector_part):
    weights = strip(Case("text/gemma3_tiny").weights, "language_model.model.")
    decoder = build(Gemma3, Gemma3Config.from_metadata(case.config["gemma"]), weights)
    connector = text_connector(case, case.weights, build, connector_part)
    check_prompts(case, decoder, connector, trimmed)


@pytest.mark.parametrize("case", golden("text/pipeline_25"))
@pytest.mark.parametrize("trimmed", [False, True])
def test_contexts_of_the_packed_files_match_reference(
    case, trimmed, build, read_files, strip, connector_part
):
    """The projection lies in the text-encoder file, the connectors in the transformer's."""
    tensors = read_files(*case.call["files"])
    language = {
        k: v for k, v in strip(tensors, "model.").items() if not k.startswith("diffusion_model.")
    }
    decoder = build(Gemma4, Gemma4Config.from_metadata(case.config["gemma"]), language)
    connector = text_connector(case, tensors, build, connector_part)
    check_prompts(case, decoder, connector, trimmed)
