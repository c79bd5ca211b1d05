"""Places the nodes of a workflow: numbered groups from left to right, all of it legible at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

GAP, ROW, TITLE = 40, 24, 30  # canvas pixels: between columns, between nodes, of a node's title
PAD, GROUP_TITLE = 20, 54  # of a group around its nodes
TALLEST = 1360  # a column that would be higher becomes two
SCALE = 0.58  # at which a page just shows text; all nodes begin inside 1600 x 1000 pixels
CORNER = (80, 150)  # of the page, right and below of what it lays over the canvas

# what a column holds: categories of nodes, or names of single ones, in the order of the page
FILES = ("MarkdownNote", "AIPROD/loaders", "AIPROD/model")
WORDS = ("AIPROD/text", "AIPRODEmptyLatent")
MEDIA = (
    "LoadImage", "LoadAudio", "LoadVideo", "GetVideoComponents", "AIPROD/latents", "AIPROD/guides",
)  # fmt: skip
CONTROLS = ("AIPROD/guidance", "AIPRODSchedule", "AIPRODDistilledSchedule")
STEPS = ("AIPROD/sampling", "AIPROD/upscaling")
RESULT = ("AIPROD/decode", "CreateVideo", "SaveVideo", "SaveAudio")

GROUPS = (
    ("1  Files", (FILES,)),
    ("2  What to make", (WORDS, MEDIA)),
    ("3  Sampling", (CONTROLS, STEPS)),
    ("4  Result", (RESULT,)),
)
GROUP_COLOUR = "#3f789e"  # that of a new group on the page
WIDTHS = {FILES: 380, WORDS: 380, MEDIA: 320, CONTROLS: 300, STEPS: 320, RESULT: 340}

# canvas pixels that the page's two renderings, classic and Nodes 2.0, need beside the widgets of a
# node: for pictures, players and lines of text that come when there is something to show
ROOM = {
    "LoadImage": (240, 220), "LoadVideo": (230, 200), "LoadAudio": (40, 0),
    "SaveVideo": (280, 250), "SaveAudio": (60, 60), "AIPRODEmptyLatent": (24, 32),
    "AIPRODSampler": (270, 270), "AIPRODExtend": (270, 270),
}  # fmt: skip


@dataclass(frozen=True)
class Item:
    """A UI node and its category.

    It is as high as the classic rendering needs and has the space that Nodes 2.0 needs, where the
    page makes it higher itself.
    """

    node: dict
    category: str

    @property
    def height(self) -> int:
        """The node's own where it has one."""
        rows, widgets = _lines(self.node)
        classic, _ = ROOM.get(self.node["type"], (0, 0))
        return self.node["size"][1] or 14 + 20 * rows + 24 * widgets + classic

    @property
    def space(self) -> int:
        rows, widgets = _lines(self.node)
        _, newer = ROOM.get(self.node["type"], (0, 0))
        return max(self.height, 56 + 24 * rows + 32 * widgets + newer)

    @property
    def shelf(self) -> tuple[str, ...]:
        shelves = [shelf for _, group in GROUPS for shelf in group]
        names = (self.node["type"], self.category)  # a node's own name comes first
        return next(shelf for name in names for shelf in shelves if name in shelf)

    @property
    def rank(self) -> tuple[int, int]:
        """By kinds, but where one node leads to the next in the order of the author."""
        is_chain = self.shelf in (MEDIA, STEPS, RESULT)
        names = (self.node["type"], self.category)
        kind = next(self.shelf.index(name) for name in names if name in self.shelf)
        return 0 if is_chain else kind, self.node["id"]


def _lines(node: dict) -> tuple[int, int]:
    """Rows of sockets, and widgets."""
    sockets = sum("widget" not in socket for socket in node["inputs"])
    return max(sockets, len(node["outputs"])), len(node["widgets_values"])


def place(items: list[Item]) -> list[dict]:
    """Give each node its place, size and order; returns the groups around them."""
    groups, left = [], 0
    for title, shelves in GROUPS:
        columns = []
        for shelf in shelves:
            mine = sorted((i for i in items if i.shelf is shelf), key=lambda item: item.rank)
            columns += [(WIDTHS[shelf], part) for part in _split(mine)]
        if columns:
            groups.append({"id": len(groups) + 1, **_group(title, columns, left)})
            left += groups[-1]["bounding"][2] + PAD
    nodes = sorted((item.node for item in items), key=lambda node: tuple(node["pos"]))
    for order, node in enumerate(nodes):
        node["order"] = order
    return groups


def view() -> dict[str, Any]:
    """What the page shows first: the upper left corner of the first group, at a legible scale."""
    (x, y), scale = CORNER, SCALE
    return {"scale": scale, "offset": [x / scale + PAD, y / scale + GROUP_TITLE + TITLE]}


def _split(items: list[Item]) -> list[list[Item]]:
    """As few columns as are not too high, about equally high."""
    needed = [TITLE + item.space + ROW for item in items]
    count = -(-sum(needed) // TALLEST)
    columns: list[list[Item]] = [[] for _ in range(count)]
    used = 0
    for item, pixels in zip(items, needed, strict=True):
        middle = used + pixels // 2
        columns[middle * count // sum(needed)].append(item)
        used += pixels
    return columns


def _group(title: str, columns: list[tuple[int, list[Item]]], left: int) -> dict:
    """Set places and sizes of the nodes of a group, the first at `left`; returns the group."""
    x, lowest = left, 0
    for width, items in columns:
        y = 0
        for item in items:
            space = item.space
            item.node["pos"], item.node["size"] = [x, y], [width, item.height]
            lowest = max(lowest, y + space)
            y += space + ROW + TITLE
        x += width + GAP
    top = -GROUP_TITLE - TITLE
    box = [left - PAD, top, x - GAP - left + 2 * PAD, lowest - top + PAD]
    return {"title": title, "bounding": box, "color": GROUP_COLOUR, "font_size": 24, "flags": {}}
