"""Every node keeps the rules that make it load on the oldest supported host and stay compatible."""

import pytest

pytestmark = pytest.mark.host


def test_every_node_has_a_valid_schema(node_types):
    assert node_types
    for name, node in node_types.items():
        schema = node.GET_SCHEMA()
        node.GET_NODE_INFO_V1()
        assert name.startswith("AIPROD")
        assert name.isascii()
        assert schema.category.startswith("AIPROD/")
        assert schema.description
        inputs = {i.id for i in schema.inputs}
        for output in schema.outputs:
            # the oldest host drops a pack in which an output has the id of an input
            assert output.id, name
            assert output.id not in inputs, name
            assert output.display_name, name


def test_required_inputs_come_first_and_widgets_explain_themselves(node_types):
    for name, node in node_types.items():
        inputs = node.define_schema().inputs
        optional = [i.optional for i in inputs]
        assert optional == sorted(optional), f"{name}: widget values are saved by position"
        for i in inputs:
            if hasattr(i, "default"):
                assert i.tooltip, f"{name}.{i.id} has no tooltip"


def test_seeds_survive_the_browser(node_types):
    for node in node_types.values():
        for i in node.define_schema().inputs:
            if i.id in ("seed", "noise_seed"):
                assert i.max <= 2**53 - 1
                assert i.control_after_generate


def test_the_running_host_lists_every_node(node_types, object_info):
    assert set(node_types) <= set(object_info)
