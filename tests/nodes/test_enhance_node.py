"""Enhance Prompt on a real host: it shows what it wrote, and runs without any other node."""

import shutil

import pytest
from goldens import ROOT
from host_client import PromptFailed

pytestmark = pytest.mark.host

TINY_SEEING = ROOT / "text/files/comfy_single/tiny_gemma_comfy.safetensors"


def prompt(encoder="gemma_3_12B_it.safetensors", **inputs) -> dict:
    asked = {"text": "a red fox", "max_tokens": 32, "temperature": 0.7, "top_k": 50, "seed": 3}
    return {
        "1": {
            "class_type": "AIPRODCheckpointLoader",
            "inputs": {"checkpoint": "ltx-2.3-22b-dev.safetensors"},
        },
        "2": {
            "class_type": "AIPRODTextEncoderLoader",
            "inputs": {"text_parts": ["1", 1], "encoder": encoder},
        },
        "3": {
            "class_type": "AIPRODEnhancePrompt",
            "inputs": {"text_encoder": ["2", 0], **asked, **inputs},
        },
        "4": {
            "class_type": "EmptyImage",
            "inputs": {"width": 64, "height": 32, "batch_size": 2, "color": 0x336699},
        },
    }


def written(client, asked: dict) -> str:
    (text,) = client.run(asked).outputs["3"]["text"]
    return text


def test_the_text_is_shown_and_logged(client, running_host):
    messages = []
    outcome = client.run(prompt(seed=11), messages.append)
    (text,) = outcome.outputs["3"]["text"]
    assert text
    assert "Enhance Prompt wrote" in running_host.log_text()
    assert any(m["type"] == "progress" and m["data"]["max"] == 32 for m in messages)


def test_the_seed_decides(client):
    texts = [written(client, prompt(seed=seed)) for seed in (1, 2, 3, 4)]
    assert len(set(texts)) > 1
    assert written(client, prompt(seed=2, text="a red fox")) == texts[1]


def test_a_picture_needs_an_encoder_that_sees(client, models):
    with pytest.raises(PromptFailed) as caught:
        client.run(prompt(image=["4", 0]))
    assert caught.value.data["node_type"] == "AIPRODEnhancePrompt"
    assert "choose a Gemma 3 file that has them, or give no picture" in str(caught.value)

    # 28 pixels and 4 rows show in its shapes; that it has 2 heads, not 16, only changes the text
    shutil.copyfile(TINY_SEEING, models / "text_encoders" / "seeing.safetensors")
    assert written(client, prompt("seeing.safetensors", image=["4", 0]))


def test_the_text_goes_on_to_encode_prompt(client):
    asked = prompt()
    asked["5"] = {
        "class_type": "AIPRODEncodePrompt",
        "inputs": {"text_encoder": ["2", 0], "text": ["3", 0]},
    }
    asked["6"] = {
        "class_type": "AIPRODSaveConditioning",
        "inputs": {"conditioning": ["5", 0], "filename_prefix": "enhanced"},
    }
    assert client.run(asked).outputs
