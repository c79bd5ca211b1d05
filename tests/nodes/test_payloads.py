"""No node changes what it receives, and none accepts a payload of the wrong kind."""

import pytest
import torch
from graphs import GRAPHS
from shipped import FPS, FRAMES, HEIGHT, WIDTH, small
from tiny_media import picture, tone
from workflow_form import is_link

pytestmark = pytest.mark.host


def host_outputs(node: dict) -> tuple:
    """What the host's own loaders would hand over."""
    frames = [torch.from_numpy(picture(WIDTH, HEIGHT, i / FRAMES)) for i in range(FRAMES)]
    images = torch.stack(frames).float() / 255
    audio = {"waveform": torch.from_numpy(tone(FRAMES / FPS))[None], "sample_rate": 44_100}
    return {
        "LoadImage": (images[:1],),
        "LoadAudio": (audio,),
        "LoadVideo": (None,),
        "GetVideoComponents": (images, audio, FPS),
    }[node["class_type"]]


def snapshot(value):
    """A deep copy to compare with later; payloads are dataclasses of tensors and records."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: snapshot(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return tuple(snapshot(entry) for entry in value)
    if hasattr(value, "__dataclass_fields__"):
        return {name: snapshot(getattr(value, name)) for name in value.__dataclass_fields__}
    return repr(value)


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.mark.parametrize("name", [graph.name for graph in GRAPHS])
def test_nodes_leave_their_inputs_alone(name, node_types):
    prompt, done = small(name, "2.3"), {}

    def outputs(key: str) -> tuple:
        if key not in done:
            node = prompt[key]
            if not node["class_type"].startswith("AIPROD"):
                done[key] = host_outputs(node)
                return done[key]
            inputs = {
                k: outputs(v[0])[v[1]] if is_link(v) else v for k, v in node["inputs"].items()
            }
            before = snapshot(inputs)
            with torch.inference_mode():
                done[key] = node_types[node["class_type"]].execute(**inputs).result
            assert equal(before, snapshot(inputs)), f"{node['class_type']} changed an input"
        return done[key]

    own = [key for key, node in prompt.items() if node["class_type"].startswith("AIPROD")]
    for key in own:
        outputs(key)
    assert len(own) > 5


def test_every_node_names_a_payload_of_the_wrong_kind(node_types):
    checked = 0
    for node in node_types.values():
        schema = node.define_schema()
        for declared in schema.inputs:
            if not declared.get_io_type().startswith("AIPROD_"):
                continue
            inputs = {
                i.id: None if i.optional else getattr(i, "default", None) for i in schema.inputs
            }
            inputs[declared.id] = {"samples": torch.zeros(1)}
            # other required sockets come first in some schemas; give them the same wrong payload
            for other in schema.inputs:
                if other.get_io_type().startswith("AIPROD_") and not other.optional:
                    inputs[other.id] = inputs[declared.id]
            with pytest.raises(Exception, match=r"takes AIPROD_\w+ from a node of this pack"):
                node.execute(**inputs)
            checked += 1
    assert checked > 20
