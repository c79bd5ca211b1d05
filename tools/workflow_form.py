"""Turns a graph between ComfyUI's two JSON forms: API (what runs) and UI (what the canvas saves).

Both directions need only the host's `/object_info`. Restricted to plain nodes, links and notes.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field
from typing import Any

import layout

from aiprod_engine.ledger.records import ModelFile, ledger

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
NOTE_TYPES = ("MarkdownNote", "Note")


class WorkflowError(ValueError):
    """A graph does not fit the host's node definitions."""


@dataclass(frozen=True)
class Graph:
    """A workflow as its author writes it: API prompt with titles in `_meta`, and notes."""

    name: str
    prompt: dict[str, dict[str, Any]]
    notes: tuple[str, ...] = ()
    heights: dict[str, int] = field(default_factory=dict)


def is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def input_definitions(info: dict) -> dict[str, tuple[Any, dict, bool]]:
    """input name -> (type, options, optional) in the order of the canvas: required first."""
    ordered = {}
    for group in ("required", "optional"):
        for name in info.get("input_order", {}).get(group, []):
            definition = info["input"][group][name]
            options = definition[1] if len(definition) > 1 else {}
            ordered[name] = (definition[0], options, group == "optional")
    return ordered


def is_widget(kind: Any, options: dict) -> bool:
    return not options.get("forceInput") and (
        isinstance(kind, list) or options.get("widgetType", kind) in WIDGET_TYPES
    )


def trailing_values(class_type: str, name: str, kind: Any, options: dict) -> list:
    """What the frontend saves after a widget's own value: seed control, upload buttons."""
    if kind == "INT" and (options.get("control_after_generate") or name in ("seed", "noise_seed")):
        return ["fixed"]
    if options.get("image_upload") or options.get("video_upload"):
        return ["image"]
    if class_type == "LoadAudio" and name == "audio":
        return [None, ""]
    return []


def to_ui(graph: Graph, object_info: dict) -> dict:
    """UI form of a graph; node ids, links and positions are a pure function of it."""
    prompt = graph.prompt
    links, nodes = [], {}
    for key, node in prompt.items():
        nodes[key] = _ui_node(key, node, object_info[node["class_type"]], links)
    for link in links:
        source = nodes[str(link[1])]["outputs"][link[2]]
        link[5] = source["type"]
        source["links"] = [*(source["links"] or []), link[0]]
    for key, pixels in graph.heights.items():
        nodes[key]["size"][1] = pixels
    last = max(int(key) for key in prompt)
    for text in graph.notes:
        last += 1
        nodes[str(last)] = _note(last, text)
    items = [
        layout.Item(node, object_info.get(node["type"], {}).get("category", ""))
        for node in nodes.values()
    ]
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"aiprod/{graph.name}")),
        "revision": 0,
        "last_node_id": last,
        "last_link_id": len(links),
        "nodes": list(nodes.values()),
        "links": links,
        "groups": layout.place(items),
        "config": {},
        "extra": {"ds": layout.view()},
        "version": 0.4,
    }


def _ui_node(key: str, node: dict, info: dict, links: list) -> dict:
    sockets, values = [], []
    given, class_type = node["inputs"], node["class_type"]
    definitions = input_definitions(info)
    if unknown := set(given) - set(definitions):
        raise WorkflowError(f"{class_type} has no input {sorted(unknown)}")
    for name, (kind, options, optional) in definitions.items():
        value = given.get(name)
        widget = is_widget(kind, options)
        if widget:
            values.append(options.get("default") if value is None or is_link(value) else value)
            values += trailing_values(class_type, name, kind, options)
        if not widget or is_link(value):
            socket: dict[str, Any] = {"name": name, "type": kind, "link": None}
            if optional and not widget:
                socket["shape"] = 7
            if widget:
                socket["widget"] = {"name": name}
            if is_link(value):
                links.append([len(links) + 1, int(value[0]), value[1], int(key), len(sockets), ""])
                socket["link"] = len(links)
            sockets.append(socket)
    outputs = [
        {"name": name, "type": kind, "links": None, "slot_index": slot}
        for slot, (name, kind) in enumerate(zip(info["output_name"], info["output"], strict=True))
    ]
    properties: dict[str, Any] = {"Node name for S&R": class_type}
    if class_type.startswith("AIPROD"):
        properties |= {"cnr_id": "aiprod"}
    if models := [ledger()[value] for value in values if value in ledger()]:
        properties |= {"models": [_offer(model) for model in models]}
    return {
        "id": int(key),
        "type": class_type,
        "pos": [0, 0],
        "size": [0, 0],
        "flags": {},
        "order": 0,
        "mode": 0,
        "title": node.get("_meta", {}).get("title", info["display_name"]),
        "inputs": sockets,
        "outputs": outputs,
        "properties": properties,
        "widgets_values": values,
    }


def _offer(file: ModelFile) -> dict[str, str]:
    """What the page needs to say that a file is missing and to offer its download."""
    url = f"https://huggingface.co/{file.repository}/resolve/main/{file.path}"
    return {"name": file.name, "url": url, "directory": file.folder}


def _note_height(text: str) -> int:
    """Canvas pixels of a note in Nodes 2.0, which write larger than the classic rendering."""
    shown = re.sub(r"\(http[^)]*\)", "", text).splitlines()
    return 30 + sum(27 * (1 + len(line) // 48) for line in shown)


def _note(number: int, text: str) -> dict:
    return {
        "id": number,
        "type": "MarkdownNote",
        "pos": [0, 0],
        "size": [0, _note_height(text)],
        "flags": {},
        "order": 0,
        "mode": 0,
        "title": "Files and memory",
        "inputs": [],
        "outputs": [],
        "properties": {},
        "widgets_values": [text],
        "color": "#222",
        "bgcolor": "#000",
    }


def to_api(workflow: dict, object_info: dict) -> dict:
    """API form of a UI workflow; surplus widget values on this pack's own nodes are an error."""
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in sorted(workflow["nodes"], key=lambda n: n["id"]):
        if node["type"] in NOTE_TYPES:
            continue
        info = object_info[node["type"]]
        linked = {s["name"]: sources[s["link"]] for s in node["inputs"] if s["link"] is not None}
        values = list(node["widgets_values"])
        inputs: dict[str, Any] = {}
        for name, (kind, options, _) in input_definitions(info).items():
            if is_widget(kind, options):
                inputs[name] = values.pop(0) if values else options.get("default")
                for _ in trailing_values(node["type"], name, kind, options):
                    if values:
                        values.pop(0)
            if name in linked:
                inputs[name] = linked[name]
        if values and node["type"].startswith("AIPROD"):
            raise WorkflowError(f"{node['type']} has {len(values)} widget values too many")
        prompt[str(node["id"])] = {
            "inputs": inputs,
            "class_type": node["type"],
            "_meta": {"title": node.get("title", info["display_name"])},
        }
    return prompt


def check(prompt: dict, object_info: dict) -> list[str]:
    """Everything in an API prompt that the host's node definitions forbid."""
    problems = []
    for key, node in prompt.items():
        info = object_info.get(node["class_type"])
        if info is None:
            problems.append(f"{key}: no node type {node['class_type']}")
            continue
        for name, (kind, options, optional) in input_definitions(info).items():
            value = node["inputs"].get(name)
            where = f"{key} {node['class_type']}.{name}"
            if value is None:
                if not optional:
                    problems.append(f"{where}: required input missing")
            elif is_link(value):
                problems += _check_link(where, value, kind, prompt, object_info)
            else:
                problems += _check_literal(where, value, kind, options)
    return problems


def _check_link(where: str, value: list, kind: Any, prompt: dict, object_info: dict) -> list[str]:
    source = prompt.get(value[0])
    if source is None:
        return [f"{where}: dangling link to {value[0]}"]
    outputs = object_info[source["class_type"]]["output"]
    if value[1] >= len(outputs):
        return [f"{where}: {source['class_type']} has no output {value[1]}"]
    accepted, offered = set(str(kind).split(",")), set(str(outputs[value[1]]).split(","))
    if "*" in accepted | offered or accepted & offered:
        return []
    return [f"{where}: takes {kind}, linked to {outputs[value[1]]}"]


def _check_literal(where: str, value: Any, kind: Any, options: dict) -> list[str]:
    choices = kind if isinstance(kind, list) else options.get("options")
    # file combos depend on the machine; they are checked against the workflow's file list instead
    if choices and value not in choices and not str(value).endswith((".safetensors", ".gguf")):
        return [f"{where}: {value!r} is not one of {choices}"]
    if kind in ("INT", "FLOAT"):
        low, high = options.get("min", value), options.get("max", value)
        if not low <= value <= high:
            return [f"{where}: {value} is outside [{low}, {high}]"]
    return []
