"""Draws `workflows/<name>.jpg`, the pictures of the template browser: diagrams, no results.

Run `python tools/thumbnails.py`. Each shows what goes in, what the model does, what comes out.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FOLDER = Path(__file__).resolve().parent.parent / "workflows"
SIDE = 400
PAPER, INK, FAINT = (28, 30, 36), (232, 234, 238), (96, 102, 114)
PICTURE, SOUND, WORDS, NEW = (92, 156, 236), (240, 168, 72), (132, 200, 132), (216, 112, 190)

# name -> (symbols that go in, steps of the model, symbols that come out)
DIAGRAMS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "text_to_video": (("words",), ("30 steps, guided",), ("clip", "wave")),
    "text_to_video_distilled": (("words",), ("8 steps", "x2", "3 steps"), ("clip", "wave")),
    "text_to_video_hq": (("words",), ("15 steps, res_2s", "x2", "3 steps"), ("clip", "wave")),
    "image_to_video": (("words", "still"), ("8 steps", "x2", "3 steps"), ("clip", "wave")),
    "first_last_frame": (("still", "words", "last"), ("30 steps, guided",), ("ends", "wave")),
    "reference_video": (("words", "lines"), ("IC-LoRA", "8 steps"), ("clip", "wave")),
    "audio_to_video": (("words", "wave"), ("30 steps, guided",), ("clip", "given wave")),
    "text_to_audio": (("words",), ("30 steps, sound alone",), ("wave",)),
    "retake": (("clip", "wave"), ("8 steps, a window",), ("window", "wave window")),
    "extend": (("clip", "wave"), ("8 steps, goes on",), ("longer", "wave longer")),
    "dub": (("clip", "wave", "words"), ("dubbing LoRA", "8 steps"), ("clip", "new wave")),
}


class Sheet:
    """One square picture and the pens to draw it with."""

    def __init__(self) -> None:
        self.image = Image.new("RGB", (SIDE, SIDE), PAPER)
        self.pen = ImageDraw.Draw(self.image)

    def text(self, x: int, y: int, words: str, size: int, colour=INK) -> None:
        self.pen.text((x, y), words, colour, ImageFont.load_default(size), anchor="mm")

    def arrow(self, y: int) -> None:
        x = SIDE // 2
        self.pen.line((x, y, x, y + 14), FAINT, 3)
        self.pen.polygon([(x - 7, y + 14), (x + 7, y + 14), (x, y + 24)], FAINT)

    def box(self, y: int, words: str) -> None:
        self.pen.rounded_rectangle((70, y, SIDE - 70, y + 34), 8, outline=FAINT, width=2)
        self.text(SIDE // 2, y + 17, words, 17)

    def words(self, x: int, y: int) -> None:
        for row, length in enumerate((70, 54, 62, 30)):
            top = y - 22 + row * 13
            self.pen.rounded_rectangle((x - 35, top, x - 35 + length, top + 6), 3, WORDS)

    def still(self, x: int, y: int, disc: int = -18, colour=PICTURE) -> None:
        self.pen.rectangle((x - 40, y - 26, x + 40, y + 26), outline=colour, width=3)
        self.pen.ellipse((x + disc - 9, y - 9, x + disc + 9, y + 9), colour)

    def frames(self, x: int, y: int, new=(), count: int = 4) -> None:
        width = 26
        for i in range(count):
            left = x - count * width // 2 + i * width
            colour = NEW if i in new else PICTURE
            self.pen.rectangle(
                (left + 1, y - 22, left + width - 2, y + 22), outline=colour, width=3
            )
            top = y + 8 - i * 16 // (count - 1)
            self.pen.ellipse((left + 8, top - 5, left + 18, top + 5), colour)

    def wave(self, x: int, y: int, new=(), colour=SOUND, count: int = 15) -> None:
        for i in range(count):
            height = 4 + (i * 7 + i * i * 3) % 19
            left = x - count * 3 + i * 6
            self.pen.line((left, y - height, left, y + height), NEW if i in new else colour, 3)

    def symbol(self, name: str, x: int, y: int) -> None:
        draw = {
            "words": lambda: self.words(x, y),
            "still": lambda: self.still(x, y),
            "last": lambda: self.still(x, y, disc=18),
            "clip": lambda: self.frames(x, y),
            "ends": lambda: self.frames(x, y, new=(1, 2)),
            "window": lambda: self.frames(x, y, new=(1, 2)),
            "longer": lambda: self.frames(x, y, new=(4, 5), count=6),
            "lines": lambda: self.still(x, y, colour=INK),
            "wave": lambda: self.wave(x, y),
            "given wave": lambda: self.wave(x, y),
            "new wave": lambda: self.wave(x, y, colour=NEW),
            "wave window": lambda: self.wave(x, y, new=range(4, 8)),
            "wave longer": lambda: self.wave(x, y, new=range(14, 20), count=20),
        }
        draw[name]()

    def row(self, names: tuple[str, ...], y: int) -> None:
        for i, name in enumerate(names):
            self.symbol(name, SIDE * (2 * i + 1) // (2 * len(names)), y)


def drawn(name: str) -> Image.Image:
    """The diagram of one workflow."""
    given, steps, made = DIAGRAMS[name]
    sheet = Sheet()
    sheet.text(SIDE // 2, 32, name.replace("_", " "), 24)
    sheet.row(given, 100)
    sheet.arrow(138)
    y = 170 + (3 - len(steps)) * 20
    for step in steps:
        sheet.box(y, step)
        y += 40
    sheet.arrow(292)
    sheet.row(made, 346)
    sheet.text(SIDE // 2, SIDE - 12, "diagram", 11, FAINT)
    return sheet.image


def main() -> None:
    for name in DIAGRAMS:
        drawn(name).save(FOLDER / f"{name}.jpg", quality=88, optimize=True)


if __name__ == "__main__":
    main()
