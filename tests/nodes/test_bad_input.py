"""Bad input over HTTP: one sentence with rule, value and remedy, before any weight is read."""

import json

import pytest
import torch
from host_client import PromptFailed, PromptRejected
from safetensors.torch import save_file
from shipped import small
from tiny_checkpoint import FILES

pytestmark = pytest.mark.host


def change(prompt: dict, class_type: str, **inputs) -> dict:
    for node in prompt.values():
        if node["class_type"] == class_type:
            node["inputs"] |= inputs
    return prompt


def rejection(client, prompt: dict) -> str:
    with pytest.raises(PromptRejected) as caught:
        client.run(prompt)
    errors = [e for n in caught.value.body["node_errors"].values() for e in n["errors"]]
    # the host repeats a node's sentence for each of its validated inputs
    sentences = {e["details"].partition(" - ")[2] for e in errors}
    assert len(sentences) == 1, json.dumps(errors, indent=1)
    return sentences.pop()


def test_missing_model_file(client):
    prompt = change(
        small("text_to_video", "2.3"), "AIPRODCheckpointLoader", checkpoint="gone.safetensors"
    )
    text = rejection(client, prompt)
    assert "gone.safetensors" in text
    assert "models/checkpoints" in text


def test_a_file_that_is_no_ltx2_checkpoint(client, models):
    save_file({"conv.weight": torch.zeros(3)}, models / "checkpoints" / "other.safetensors")
    prompt = change(
        small("text_to_video", "2.3"), "AIPRODCheckpointLoader", checkpoint="other.safetensors"
    )
    text = rejection(client, prompt)
    assert "other.safetensors" in text
    assert "LTX-2" in text


def test_a_truncated_download(client, models):
    whole = (models / "checkpoints" / FILES["2.3"]["dev"]).read_bytes()
    (models / "checkpoints" / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    prompt = change(
        small("text_to_video", "2.3"), "AIPRODCheckpointLoader", checkpoint="half.safetensors"
    )
    assert "missing" in rejection(client, prompt)


@pytest.mark.parametrize(
    ("inputs", "nearest"),
    [({"width": 720}, ("704", "736")), ({"height": 100}, ("96", "128")),
     ({"frames": 120}, ("113", "121"))],
)  # fmt: skip
def test_a_size_off_the_grid_names_the_nearest(client, inputs, nearest):
    text = rejection(client, change(small("text_to_video", "2.3"), "AIPRODEmptyLatent", **inputs))
    assert all(value in text for value in nearest)


def test_an_encoder_that_does_not_belong_to_the_checkpoint(client, models):
    from tiny_gemma import random_weights, text_config, train_sentencepiece

    pieces = torch.frombuffer(bytearray(train_sentencepiece()), dtype=torch.uint8)
    wrong = random_weights(text_config(424, width=48), seed=1)
    tensors = {f"model.{k}": v for k, v in wrong.items()} | {"spiece_model": pieces}
    save_file(tensors, models / "text_encoders" / "wrong.safetensors")
    prompt = change(
        small("text_to_video", "2.3"), "AIPRODTextEncoderLoader", encoder="wrong.safetensors"
    )
    with pytest.raises(PromptFailed) as caught:
        client.run(prompt)
    assert caught.value.data["node_type"] == "AIPRODTextEncoderLoader"
    assert "384" in str(caught.value)  # 48 wide, 8 states; the checkpoint takes 256


def test_a_checkpoint_chosen_as_text_encoder(client, models):
    target = models / "text_encoders" / "checkpoint.safetensors"
    target.write_bytes((models / "checkpoints" / FILES["2.3"]["dev"]).read_bytes())
    prompt = change(
        small("text_to_video", "2.3"), "AIPRODTextEncoderLoader", encoder="checkpoint.safetensors"
    )
    assert "Gemma" in rejection(client, prompt)


def test_unknown_combo_value_and_bad_blocks(client):
    prompt = change(small("text_to_video", "2.3"), "AIPRODSampler", sampler="magic")
    assert "magic" in rejection(client, prompt)
    prompt = change(small("text_to_video", "2.3"), "AIPRODCFGGuider", stg_blocks="all of them")
    assert "all of them" in rejection(client, prompt)
