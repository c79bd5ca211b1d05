"""Draws `docs/images/text_to_video.svg` from the shipped workflow: a drawing, not a screenshot.

Run `python tools/graph_picture.py` after changing the workflow.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW = "text_to_video"
PICTURE = ROOT / "docs" / "images" / f"{WORKFLOW}.svg"

WIDTH, GAP, LINE, PAD = 236, 44, 26, 12
TITLE = 40  # height of a node's title bar
MOST_WIDGETS, LONGEST = 4, 20  # values shown of one node, letters of one line
PAPER, NODE, BAR, INK, FAINT = "#1c1e24", "#2c3038", "#3a404c", "#e8eaee", "#9aa2b0"
COLOURS = {
    "AIPROD_MODEL": "#b39ddb", "AIPROD_TEXT_PARTS": "#ffd54f", "AIPROD_TEXT_ENCODER": "#ffd54f",
    "AIPROD_VIDEO_VAE": "#ef6e6e", "AIPROD_AUDIO_VAE": "#f0a848", "AIPROD_CONDITIONING": "#84c884",
    "AIPROD_GUIDER": "#5cc8c8", "AIPROD_LATENT": "#f08fc8", "SIGMAS": "#c8d05c",
    "IMAGE": "#5c9cec", "AUDIO": "#f0a848", "FLOAT": "#9aa2b0", "VIDEO": "#d8d8d8",
}  # fmt: skip

Place = tuple[int, int]


def shortened(text: str, most: int = LONGEST) -> str:
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


def widget_lines(inputs: dict) -> list[str]:
    """`name: value` of the first widgets, and how many more there are."""
    values = [(name, value) for name, value in inputs.items() if not isinstance(value, list)]
    shown = [shortened(f"{name}: {value}") for name, value in values[:MOST_WIDGETS]]
    hidden = len(values) - len(shown)
    return [*shown, *([f"and {hidden} more"] if hidden else [])]


class Drawing:
    """The nodes of a workflow in the columns of its canvas."""

    def __init__(self, workflow: dict, prompt: dict):
        self.nodes = {n["id"]: n for n in workflow["nodes"] if str(n["id"]) in prompt}
        self.links = workflow["links"]
        self.prompt = prompt
        self.places: dict[int, Place] = {}
        self._lay_out()

    def lines(self, node: dict) -> list[str]:
        return widget_lines(self.prompt[str(node["id"])]["inputs"])

    def inputs(self, node: dict) -> list[dict]:
        """Sockets that are connected; the others would only take room."""
        return [socket for socket in node["inputs"] if socket["link"] is not None]

    def slots(self, node: dict) -> int:
        return max(len(self.inputs(node)), len(node["outputs"]))

    def height(self, node: dict) -> int:
        return TITLE + LINE * (self.slots(node) + len(self.lines(node))) + PAD

    def _lay_out(self) -> None:
        columns = sorted({node["pos"][0] for node in self.nodes.values()})
        below = [GAP] * len(columns)
        for node in sorted(self.nodes.values(), key=lambda n: (n["pos"][1], n["id"])):
            column = columns.index(node["pos"][0])
            self.places[node["id"]] = GAP + column * (WIDTH + GAP), below[column]
            below[column] += self.height(node) + GAP
        self.size = GAP + len(columns) * (WIDTH + GAP), max(below)

    def socket(self, node: int, slot: int, is_output: bool) -> Place:
        x, y = self.places[node]
        return x + WIDTH * is_output, y + TITLE + LINE * slot + LINE // 2 + 4

    def input_place(self, link: list) -> Place:
        connected = [socket["link"] for socket in self.inputs(self.nodes[link[3]])]
        return self.socket(link[3], connected.index(link[0]), False)

    def svg(self) -> str:
        width, height = self.size
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            'font-family="Helvetica, Arial, sans-serif" font-size="17">',
            f"<title>Drawing of the workflow {WORKFLOW}</title>",
            f'<rect width="{width}" height="{height}" fill="{PAPER}"/>',
            *map(self._link, self.links),
            *(part for node in self.nodes.values() for part in self._node(node)),
            "</svg>",
        ]
        return "\n".join(parts) + "\n"

    def _link(self, link: list) -> str:
        (x, y), (right, down) = self.socket(link[1], link[2], True), self.input_place(link)
        bend = max(50, abs(right - x) // 2)
        return (
            f'<path d="M{x} {y} C{x + bend} {y} {right - bend} {down} {right} {down}" '
            f'fill="none" stroke="{COLOURS[link[5]]}" stroke-width="3"/>'
        )

    def _node(self, node: dict) -> list[str]:
        x, y = self.places[node["id"]]
        parts = [
            _box(x, y, self.height(node), NODE),
            _box(x, y, TITLE, BAR),
            _text(x + PAD, y + 27, shortened(node["title"], 20), INK, weight="bold"),
        ]
        for is_output, sockets in ((False, self.inputs(node)), (True, node["outputs"])):
            for slot, socket in enumerate(sockets):
                where = self.socket(node["id"], slot, is_output)
                parts += _socket(*where, socket, is_output)
        top = y + TITLE + LINE * self.slots(node) + 22
        for row, line in enumerate(self.lines(node)):
            parts.append(_text(x + PAD, top + LINE * row, line, FAINT))
        return parts


def _socket(x: int, y: int, socket: dict, is_output: bool) -> list[str]:
    name = socket["name"].replace("_", " ").lower()
    at = (x - PAD, "end") if is_output else (x + PAD, "start")
    return [
        f'<circle cx="{x}" cy="{y}" r="6" fill="{COLOURS[socket["type"]]}"/>',
        _text(at[0], y + 6, name, INK, anchor=at[1]),
    ]


def _box(x: int, y: int, height: int, colour: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{height}" rx="8" fill="{colour}"/>'


def _text(
    x: int, y: int, words: str, colour: str, anchor: str = "start", weight: str = "normal"
) -> str:
    style = f'fill="{colour}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text x="{x}" y="{y}" {style}>{escape(words)}</text>'


def drawn() -> str:
    """The picture as it must be now."""
    workflow = json.loads((ROOT / "workflows" / f"{WORKFLOW}.json").read_text())
    prompt = json.loads((ROOT / "workflows" / "api" / f"{WORKFLOW}.json").read_text())
    return Drawing(workflow, prompt).svg()


if __name__ == "__main__":
    PICTURE.write_text(drawn())
