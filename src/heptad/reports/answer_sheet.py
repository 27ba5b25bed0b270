"""A picture of answers: what was named, what the network was fed of it, and what it said."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

# Sides of what is drawn, in pixels. A tile is a multiple of the 32 that LeNet-5 is fed and of 64.
TILE, GAP, MARGIN = 192, 12, 16
TITLE, CAPTION, ANSWER, BAR = 26, 18, 48, 20
MOST_COLUMNS, MOST_BARS = 4, 3
BACKGROUND, CARD, FRAME = "#E8EBEE", "#FFFFFF", "#C9CFD5"
INK, PALE_INK, TRACK = "#1B2430", "#5C6773", "#E3E7EB"
# Blue and orange of Okabe & Ito, which people with any colour vision tell apart.
SURE, UNSURE = "#0072B2", "#D55E00"
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, eq=False)
class Shown:
    """One answer to be drawn.

    picture: `uint8` [3, H, W]. fed: `uint8` [1 or 3, S, S]. box: where the digit was found in it,
    left, top, right, bottom. classes: with their probabilities, likeliest first.
    """

    name: str
    picture: NDArray[np.uint8]
    fed: NDArray[np.uint8]
    box: tuple[int, int, int, int] | None
    classes: tuple[tuple[str, float], ...]
    is_unsure: bool


def draw_sheet(answers: Iterable[Shown], *, num_answers: int) -> bytes:
    """Draw a card for each answer, in rows, as a PNG; no answer is kept once it is drawn."""
    fonts = _Fonts()
    num_columns = min(num_answers, MOST_COLUMNS)
    num_rows = -(-num_answers // num_columns)
    width, height = card_size()
    size = (num_columns * (width + MARGIN) + MARGIN, num_rows * (height + MARGIN) + MARGIN)
    sheet = Image.new("RGB", size, BACKGROUND)
    for place, answer in enumerate(answers):
        row, column = divmod(place, num_columns)
        corner = (MARGIN + column * (width + MARGIN), MARGIN + row * (height + MARGIN))
        sheet.paste(_card(answer, fonts), corner)
    file = io.BytesIO()
    sheet.save(file, format="PNG")
    return file.getvalue()


def card_size() -> tuple[int, int]:
    """Give width and height of a card."""
    below = ANSWER + MOST_BARS * BAR
    return 2 * TILE + GAP + 2 * MARGIN, TITLE + TILE + CAPTION + below + 2 * MARGIN


class _Fonts:
    """DejaVu Sans, which comes with matplotlib and has the letters of many languages."""

    def __init__(self) -> None:
        # Here, since matplotlib takes a while to import.
        from matplotlib import get_data_path

        folder = Path(get_data_path(), "fonts", "ttf")
        plain, bold = folder / "DejaVuSans.ttf", folder / "DejaVuSans-Bold.ttf"
        self.answer, self.name = _font(bold, 34), _font(bold, 13)
        self.figure, self.small = _font(plain, 20), _font(plain, 12)


def _font(path: Path, size: int) -> Font:
    try:
        return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
    except OSError:
        return ImageFont.load_default(size)


def _card(answer: Shown, fonts: _Fonts) -> Image.Image:
    card = Image.new("RGB", card_size(), CARD)
    draw = ImageDraw.Draw(card)
    draw.rectangle((0, 0, card.width - 1, card.height - 1), outline=FRAME)
    inner = card.width - 2 * MARGIN
    draw.text((MARGIN, MARGIN - 4), fitting(answer.name, fonts.name, inner), INK, fonts.name)
    top = MARGIN + TITLE
    right = MARGIN + TILE + GAP
    _paste(card, _named_tile(answer), (MARGIN, top))
    _paste(card, _fed_tile(answer.fed), (right, top))
    side = answer.fed.shape[-1]
    height, width = answer.picture.shape[1:]
    top += TILE + 4
    draw.text((MARGIN, top), f"named: {width} × {height}", PALE_INK, fonts.small)
    draw.text((right, top), f"fed: {side} × {side}", PALE_INK, fonts.small)
    _write_answer(draw, answer, fonts, top + CAPTION)
    return card


def _paste(card: Image.Image, tile: Image.Image, corner: tuple[int, int]) -> None:
    """Put a tile into the middle of the square that begins at `corner`."""
    left, top = corner
    square = (left - 1, top - 1, left + TILE, top + TILE)
    ImageDraw.Draw(card).rectangle(square, fill=BACKGROUND, outline=FRAME)
    card.paste(tile, (left + (TILE - tile.width) // 2, top + (TILE - tile.height) // 2))


def _named_tile(answer: Shown) -> Image.Image:
    picture = Image.fromarray(answer.picture.transpose(1, 2, 0))
    scale = TILE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    is_enlarged = scale > 1
    how = Image.Resampling.NEAREST if is_enlarged else Image.Resampling.BILINEAR
    tile = picture.resize(size, how)
    if answer.box is not None:
        left, top, right, bottom = (round(edge * scale) for edge in answer.box)
        box = (max(left - 3, 0), max(top - 3, 0), right + 2, bottom + 2)
        box = (*box[:2], min(box[2], tile.width - 1), min(box[3], tile.height - 1))
        ImageDraw.Draw(tile).rectangle(box, outline=SURE, width=2)
    return tile


def _fed_tile(pixels: NDArray[np.uint8]) -> Image.Image:
    """Show each pixel as a square; pixels of larger images than a tile are averaged."""
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    times = TILE // picture.width
    if times:
        side = times * picture.width
        tile = picture.resize((side, side), Image.Resampling.NEAREST)
    else:
        tile = picture.resize((TILE, TILE), Image.Resampling.BILINEAR)
    return tile.convert("RGB")


def _write_answer(draw: ImageDraw.ImageDraw, answer: Shown, fonts: _Fonts, top: int) -> None:
    colour = UNSURE if answer.is_unsure else SURE
    name, probability = answer.classes[0]
    figure = f"{100 * probability:.2f} %" + (", unsure" if answer.is_unsure else "")
    room = card_size()[0] - 2 * MARGIN - GAP - fonts.figure.getlength(figure)
    said = fitting(name, fonts.answer, room)
    draw.text((MARGIN, top + 36), said, colour, fonts.answer, anchor="ls")
    x = MARGIN + fonts.answer.getlength(said) + GAP
    draw.text((x, top + 36), figure, colour if answer.is_unsure else INK, fonts.figure, anchor="ls")
    right = MARGIN + TILE + GAP
    for k, (name, probability) in enumerate(answer.classes[:MOST_BARS]):
        middle = top + ANSWER + k * BAR + BAR // 2
        draw.text((MARGIN, middle), fitting(name, fonts.small, TILE - 60), INK, fonts.small, "lm")
        draw.text(
            (MARGIN + TILE, middle), f"{100 * probability:.2f} %", PALE_INK, fonts.small, "rm"
        )
        track = (right, middle - 5, right + TILE - 1, middle + 5)
        draw.rectangle(track, fill=TRACK)
        filled = round(TILE * probability)
        if filled:
            draw.rectangle((*track[:2], right + filled - 1, track[3]), fill=colour)


def fitting(text: str, font: Font, width: float) -> str:
    """Give the text, with its middle left out where it is wider than `width` pixels."""
    if len(text) <= 500 and font.getlength(text) <= width:
        return text
    kept = min(len(text), 500) - 1
    while kept > 2:
        short = f"{text[: kept // 2]}…{text[-(kept - kept // 2) :]}"
        if font.getlength(short) <= width:
            return short
        kept -= 1
    return "…"
