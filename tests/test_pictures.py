"""Pictures: what is read and to which pixels, what is refused and why; every file is made here."""

from __future__ import annotations

import io
import os
import random
import re
import socket
import struct
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from sklearn.datasets import load_sample_image

from heptad.datasets.pictures import (
    decode_picture,
    decode_stream,
    find_pictures,
    read_picture,
    resize_picture,
)
from heptad.errors import ImageError
from heptad.transform import Transform
from picture_files import chunk, png, saved, tiff

DRAWS = np.random.default_rng(0)
SHAPE = (6, 9)
GRAY = DRAWS.integers(0, 256, SHAPE, np.uint8)
COLOUR = DRAWS.integers(0, 256, (*SHAPE, 3), np.uint8)
ALPHA = DRAWS.integers(0, 256, SHAPE, np.uint8)
GRAY_16 = DRAWS.integers(0, 65536, (*SHAPE, 1), np.uint16)
COLOUR_16 = DRAWS.integers(0, 65536, (*SHAPE, 4), np.uint16)
# Large enough for a JPEG of many blocks.
PHOTO = np.add.outer(2 * np.arange(48), np.arange(64)).astype(np.uint8)
PHOTO += DRAWS.integers(0, 64, PHOTO.shape, np.uint8)
CMYK = (200, 100, 50, 30)


def with_alpha(colours, alpha) -> np.ndarray:
    return np.dstack([colours, alpha])


def frames(format_name: str) -> bytes:
    """Three frames, the first of them COLOUR."""
    others = [Image.fromarray(255 - COLOUR), Image.fromarray(COLOUR // 2)]
    lossless = {"lossless": True} if format_name == "WEBP" else {}
    return saved(COLOUR, format_name, save_all=True, append_images=others, **lossless)


def decoded(content: bytes, *, channels=3, **options):
    return decode_stream(io.BytesIO(content), name="it", channels=channels, **options)


def on_white(colours, alpha) -> np.ndarray:
    """What light of this much cover looks like before white, rounded: [H, W, C]."""
    share = alpha[..., None] / 255
    return np.rint(colours.reshape(*SHAPE, -1) * share + 255 * (1 - share))


def three(gray) -> np.ndarray:
    """Gray [H, W] or [H, W, 1] as RGB [H, W, 3]."""
    return np.repeat(gray.reshape(*gray.shape[:2], 1), 3, axis=2)


JPEG = saved(PHOTO, "JPEG")
PALETTE = Image.fromarray(COLOUR).quantize(32)
CLEAR_PALETTE = PALETTE.copy()
CLEAR_PALETTE.info["transparency"] = 7

# The content of each file, and its verdict: mode, format, width and height, notes; or the refusal.
NO_PICTURE = "is no picture that can be read: "
UNKNOWN = NO_PICTURE + "its content is of no known format."
BEGINS_AS = NO_PICTURE + "it begins as {} does, but is damaged or of a kind that is not read."
CUT = NO_PICTURE + "image file is truncated."
UNKNOWN_WHITE = "holds {} numbers; which of them is black and which white is not known"
UNKNOWN_WHITE += " (float_range)."
LAYOUT = "has more than 8 bits a channel in a layout that is not read: {}."
PIXELS = "has {} pixels; allowed: 50,000,000 in all (max_pixels)."
SCALED = "16 bits scaled to 8"
CLEAR = "transparent places are white"
FIRST = "first of 3 frames"
NO_PROFILE = "CMYK turned into RGB without a colour profile"
ZOO = {
    "empty": (b"", NO_PICTURE + "it is empty."),
    "text": (b"these are words, whatever the name says", UNKNOWN),
    "PDF": (saved(COLOUR, "PDF"), UNKNOWN),
    "PPM, a format that is not allowed": (saved(COLOUR, "PPM"), UNKNOWN),
    "PNG signature alone": (b"\x89PNG\r\n\x1a\n", BEGINS_AS.format("PNG")),
    "JPEG signature alone": (JPEG[:4], BEGINS_AS.format("JPEG")),
    "JPEG": (JPEG, ("L", "JPEG", (64, 48))),
    "JPEG, progressive": (saved(PHOTO, "JPEG", progressive=True), ("L", "JPEG", (64, 48))),
    "JPEG without its end": (JPEG[:-2], CUT),
    "JPEG without its second half": (JPEG[: len(JPEG) // 2], CUT),
    "JPEG cut in its header": (JPEG[:200], NO_PICTURE + "Truncated File Read."),
    # Nothing in such a file shows that it was longer; a hash of it would.
    "JPEG that lost a part before its end": (JPEG[:-200] + JPEG[-2:], ("L", "JPEG", (64, 48))),
    "JPEG, CMYK": (
        saved(Image.new("CMYK", (8, 8), CMYK), "JPEG"),
        ("CMYK", "JPEG", (8, 8), NO_PROFILE),
    ),
    "JPEG, wide": (saved(np.zeros((1, 65500), np.uint8), "JPEG"), ("L", "JPEG", (65500, 1))),
    "MPO": (frames("MPO"), ("RGB", "MPO", (9, 6), FIRST)),
    "PNG, gray": (saved(GRAY, "PNG"), ("L", "PNG", (9, 6))),
    "PNG, colour": (saved(COLOUR, "PNG"), ("RGB", "PNG", (9, 6))),
    "PNG, black and white": (saved(Image.fromarray(GRAY > 99), "PNG"), ("1", "PNG", (9, 6))),
    "PNG, one pixel": (saved(GRAY[:1, :1], "PNG"), ("L", "PNG", (1, 1))),
    "PNG, high": (saved(np.zeros((65500, 1), np.uint8), "PNG"), ("L", "PNG", (1, 65500))),
    "PNG, palette": (saved(PALETTE, "PNG"), ("P", "PNG", (9, 6))),
    "PNG, palette, clear": (saved(CLEAR_PALETTE, "PNG"), ("P", "PNG", (9, 6), CLEAR)),
    "PNG, gray and alpha": (png(with_alpha(GRAY, ALPHA)), ("LA", "PNG", (9, 6), CLEAR)),
    "PNG, alpha": (png(with_alpha(COLOUR, ALPHA)), ("RGBA", "PNG", (9, 6), CLEAR)),
    "PNG, alpha, opaque": (png(with_alpha(COLOUR, 0 * ALPHA + 255)), ("RGBA", "PNG", (9, 6))),
    "PNG, 16-bit gray": (png(GRAY_16), ("I;16", "PNG", (9, 6), SCALED)),
    "PNG, 16-bit gray and alpha": (
        png(COLOUR_16[..., :2]),
        ("LA;16", "PNG", (9, 6), SCALED, CLEAR),
    ),
    "PNG, 16-bit colour": (png(COLOUR_16[..., :3]), ("RGB;16", "PNG", (9, 6), SCALED)),
    "PNG, 16-bit alpha": (png(COLOUR_16), ("RGBA;16", "PNG", (9, 6), SCALED, CLEAR)),
    "PNG, 12 bits in 16": (
        png(GRAY_16 // 16 // 2),
        ("I;16", "PNG", (9, 6), f"{SCALED} by the largest value, {GRAY_16.max() // 32}"),
    ),
    "PNG without its end": (saved(COLOUR, "PNG")[:-12], ("RGB", "PNG", (9, 6))),
    "PNG without its second half": (png(COLOUR)[:110], CUT),
    "PNG with a changed byte": (
        png(COLOUR)[:80] + b"?" + png(COLOUR)[81:],
        NO_PICTURE + "broken data stream when reading image file.",
    ),
    "PNG without pixels": (
        png(COLOUR)[:33] + chunk(b"IEND", b""),
        NO_PICTURE + "cannot load this image.",
    ),
    "PNG, animated": (frames("PNG"), ("RGB", "PNG", (9, 6), FIRST)),
    "PNG, 9000 x 9000": (png(GRAY[..., None], size=(9000, 9000)), PIXELS.format("9000 x 9000")),
    "PNG, 14000 x 14000": (
        png(GRAY[..., None], size=(14000, 14000)),
        "has too many pixels; allowed: 50,000,000 in all (max_pixels).",
    ),
    "GIF": (saved(PALETTE, "GIF"), ("P", "GIF", (9, 6))),
    "GIF, animated": (frames("GIF"), ("P", "GIF", (9, 6), FIRST)),
    "GIF, clear": (saved(CLEAR_PALETTE, "GIF", transparency=7), ("P", "GIF", (9, 6), CLEAR)),
    "GIF, 14000 x 14000": (
        saved(PALETTE, "GIF").replace(b"\t\0\6\0", b"\xb0\x36\xb0\x36"),
        "has too many pixels; allowed: 50,000,000 in all (max_pixels).",
    ),
    "WEBP": (saved(COLOUR, "WEBP", lossless=True), ("RGB", "WEBP", (9, 6))),
    "WEBP, alpha": (
        saved(with_alpha(COLOUR, ALPHA), "WEBP", lossless=True, exact=True),
        ("RGBA", "WEBP", (9, 6), CLEAR),
    ),
    "WEBP, animated": (frames("WEBP"), ("RGB", "WEBP", (9, 6), FIRST)),
    "BMP": (saved(COLOUR, "BMP"), ("RGB", "BMP", (9, 6))),
    # Rows of 160 bytes: the number 16 in it says nothing of depth.
    "BMP, 53 wide": (saved(np.zeros((4, 53, 3), np.uint8), "BMP"), ("RGB", "BMP", (53, 4))),
    "BMP without its second half": (saved(COLOUR, "BMP")[:140], CUT),
    "TIFF": (saved(COLOUR, "TIFF"), ("RGB", "TIFF", (9, 6))),
    "TIFF, several": (frames("TIFF"), ("RGB", "TIFF", (9, 6), FIRST)),
    "TIFF, YCbCr": (
        saved(Image.fromarray(COLOUR).convert("YCbCr"), "TIFF"),
        ("YCbCr", "TIFF", (9, 6)),
    ),
    "TIFF, 16-bit gray": (tiff(GRAY_16, 1), ("I;16", "TIFF", (9, 6), SCALED)),
    "TIFF, 16-bit colour": (tiff(COLOUR_16[..., :3], 2), ("RGB;16", "TIFF", (9, 6), SCALED)),
    "TIFF, 16-bit planes": (
        tiff(COLOUR_16[..., :3], 2, planes=True, packed=True),
        LAYOUT.format("one plane a channel"),
    ),
    "TIFF, 16-bit CMYK": (tiff(COLOUR_16, 5), LAYOUT.format("CMYK;16L")),
    "TIFF, 16-bit premultiplied": (tiff(COLOUR_16, 2, extra=[1]), LAYOUT.format("RGBa;16L")),
    "TIFF, signed": (
        tiff(GRAY_16.astype(np.int16), 1, kind=2),
        UNKNOWN_WHITE.format("signed or 32-bit whole"),
    ),
    "TIFF, 32-bit": (
        saved(Image.fromarray(GRAY.astype(np.int32)), "TIFF"),
        UNKNOWN_WHITE.format("signed or 32-bit whole"),
    ),
    "TIFF, floating-point": (
        saved(Image.fromarray(GRAY.astype(np.float32)), "TIFF"),
        UNKNOWN_WHITE.format("floating-point"),
    ),
    "TIFF, floating-point colour": (
        tiff(COLOUR.astype(np.float32), 2, kind=3),
        BEGINS_AS.format("TIFF"),
    ),
}


@pytest.mark.parametrize("name", ZOO)
def test_every_picture_of_the_zoo_has_its_verdict(name, tmp_path):
    content, verdict = ZOO[name]
    # A name that says something else, since the content alone is to count.
    path = tmp_path / ("it.png" if b"PNG" not in content[:8] else "it.jpg")
    path.write_bytes(content)
    if isinstance(verdict, str):
        with pytest.raises(ImageError) as refused:
            decode_picture(path, channels=3)
        # Pillow says how many bytes were left over, which depends on its buffers.
        message = re.sub(r" \(\d+ bytes not processed\)", "", refused.value.message)
        assert message == f"{path} {verdict}"
        assert refused.value.hint
        assert refused.value.exit_code == 2
    else:
        picture = decode_picture(path, channels=3)
        mode, format_name, (width, height), *notes = verdict
        assert (picture.mode, picture.format, picture.size) == (mode, format_name, (width, height))
        assert list(picture.notes) == notes
        assert picture.pixels.shape == (3, height, width)


def test_what_the_zoo_refuses_would_be_decoded_silently_otherwise(monkeypatch):
    """The faults are real: Pillow gives pixels for them, told to or by itself."""
    with Image.open(io.BytesIO(ZOO["TIFF, floating-point"][0])) as picture:
        assert picture.convert("RGB").size == (9, 6)
    with Image.open(io.BytesIO(JPEG[:-2])) as picture:
        picture.verify()
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with Image.open(io.BytesIO(JPEG[:-300])) as picture:
        assert (np.asarray(picture)[-1] == 128).any()


CLEAR_7 = np.where(np.asarray(PALETTE) == 7, 0, 255)
PALETTE_COLOURS = np.array(PALETTE.getpalette()).reshape(-1, 3)[np.asarray(PALETTE)]
KEYED = png(GRAY[..., None], extra=chunk(b"tRNS", struct.pack(">H", GRAY[0, 0])))
# Four pixels of 4 bits: 0, 3, 15 and 5, which stands for transparent.
FOUR_BITS = png(
    np.array([[[0x03], [0xF5]]], np.uint8),
    depth=4,
    size=(4, 1),
    extra=chunk(b"tRNS", b"\0\5"),
)
EXPECTED = {
    "PNG, gray": (ZOO["PNG, gray"][0], three(GRAY)),
    "PNG, colour": (ZOO["PNG, colour"][0], COLOUR),
    "PNG, colour, interlaced": (png(COLOUR, interlaced=True), COLOUR),
    "PNG, black and white": (ZOO["PNG, black and white"][0], three((GRAY > 99) * 255)),
    "PNG, palette": (ZOO["PNG, palette"][0], PALETTE_COLOURS),
    "PNG, palette, clear": (ZOO["PNG, palette, clear"][0], on_white(PALETTE_COLOURS, CLEAR_7)),
    "PNG, gray and alpha": (ZOO["PNG, gray and alpha"][0], three(on_white(GRAY, ALPHA))),
    "PNG, alpha": (ZOO["PNG, alpha"][0], on_white(COLOUR, ALPHA)),
    "PNG, one gray is clear": (KEYED, three(np.where(GRAY[0, 0] == GRAY, 255, GRAY))),
    "PNG, one gray of 4 bits is clear": (FOUR_BITS, three(np.array([[0, 51, 255, 255]]))),
    "GIF, first frame": (ZOO["GIF"][0], PALETTE_COLOURS),
    "GIF, clear": (ZOO["GIF, clear"][0], on_white(PALETTE_COLOURS, CLEAR_7)),
    "WEBP": (ZOO["WEBP"][0], COLOUR),
    "WEBP, first frame": (ZOO["WEBP, animated"][0], COLOUR),
    "WEBP, alpha": (ZOO["WEBP, alpha"][0], on_white(COLOUR, ALPHA)),
    "BMP": (ZOO["BMP"][0], COLOUR),
    "TIFF": (ZOO["TIFF"][0], COLOUR),
    "TIFF, first frame": (ZOO["TIFF, several"][0], COLOUR),
    "TIFF, white is zero": (tiff(GRAY[..., None], 0), three(255 - GRAY)),
    "PNG, animated": (ZOO["PNG, animated"][0], COLOUR),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_pixels_are_those_that_were_put_in(name):
    content, expected = EXPECTED[name]
    pixels = decoded(content).pixels
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    assert np.array_equal(pixels.transpose(1, 2, 0), expected)


@pytest.mark.parametrize("name", EXPECTED)
def test_one_channel_is_the_brightness_that_the_eye_sees(name):
    content, expected = EXPECTED[name]
    pixels = decoded(content, channels=1).pixels
    assert pixels.shape == (1, *expected.shape[:2])
    # ITU-R BT.601, rounded.
    brightness = expected @ np.array([0.299, 0.587, 0.114])
    assert np.abs(pixels[0] - brightness).max() < 0.51


def test_cmyk_is_ink_that_takes_light_away():
    pixels = decoded(ZOO["JPEG, CMYK"][0]).pixels
    light = [(255 - ink) * (255 - CMYK[3]) / 255 for ink in CMYK[:3]]
    # One step for JPEG, one for rounding.
    assert np.abs(pixels.reshape(3, -1) - np.array(light)[:, None]).max() <= 2


DEEP_GRAY, DEEP_RGB = GRAY_16[..., 0], COLOUR_16[..., :3]
DEEP = {
    "PNG, gray": (png(GRAY_16), three(DEEP_GRAY)),
    "PNG, colour": (png(DEEP_RGB), DEEP_RGB),
    "PNG, colour, interlaced": (png(DEEP_RGB, interlaced=True), DEEP_RGB),
    "TIFF, gray, white is zero": (tiff(GRAY_16, 0), three(65535 - DEEP_GRAY)),
} | {
    f"TIFF, {what}, {order}, {'packed' if packed else 'plain'}": (
        tiff(values, photometric, order=order, packed=packed, extra=extra),
        expected,
    )
    for what, values, photometric, extra, expected in (
        ("gray", GRAY_16, 1, [], three(DEEP_GRAY)),
        ("colour", DEEP_RGB, 2, [], DEEP_RGB),
        ("colour and something else", COLOUR_16, 2, [0], DEEP_RGB),
    )
    for order in "<>"
    for packed in (False, True)
}


@pytest.mark.parametrize("name", DEEP)
def test_16_bits_are_scaled_by_257_and_rounded(name):
    content, expected = DEEP[name]
    picture = decoded(content)
    assert np.array_equal(picture.pixels.transpose(1, 2, 0), np.rint(expected / 257))
    assert picture.notes == ("16 bits scaled to 8",)


def test_upper_bytes_alone_would_be_other_pixels():
    assert (np.rint(DEEP_RGB / 257) != DEEP_RGB // 256).any()


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("num_channels", [2, 4])
def test_16_bits_with_alpha_are_scaled_and_laid_on_white(num_channels, interlaced):
    values = COLOUR_16[..., -num_channels:]
    pixels = decoded(png(values, interlaced=interlaced)).pixels
    scaled = np.rint(values / 257)
    expected = on_white(scaled[..., :-1], scaled[..., -1])
    assert np.array_equal(pixels, np.broadcast_to(expected.transpose(2, 0, 1), pixels.shape))


@pytest.mark.parametrize("num_channels", [1, 3])
def test_the_value_that_16_bits_call_transparent_is_white(num_channels):
    values = COLOUR_16[..., :num_channels].copy()
    values[2, 3] = values[0, 0]
    # Only its lower byte differs from the transparent one.
    values[1, 1] = values[0, 0] ^ 1
    key = struct.pack(f">{num_channels}H", *values[0, 0])
    picture = decoded(png(values, extra=chunk(b"tRNS", key)))
    expected = np.rint(values / 257)
    expected[0, 0] = expected[2, 3] = 255
    assert np.array_equal(picture.pixels[:num_channels].transpose(1, 2, 0), expected)
    assert picture.notes[-1] == "transparent places are white"


@pytest.mark.parametrize(("most", "scale"), [(4095, 4095), (255, 255), (1, 1), (4096, 65535)])
def test_12_bits_or_fewer_in_a_file_of_16_are_scaled_by_the_largest(most, scale):
    values = (np.arange(54).reshape(*SHAPE, 1) % (most + 1)).astype(np.uint16)
    values[5, 8] = most
    picture = decoded(png(values), channels=1)
    assert np.array_equal(picture.pixels[0], np.floor(values[..., 0] * 255.0 / scale + 0.5))
    by_largest = f" by the largest value, {most}" if scale == most else ""
    assert picture.notes == (f"16 bits scaled to 8{by_largest}",)


def test_black_of_16_bits_is_black():
    assert not decoded(png(0 * GRAY_16)).pixels.any()


# Where the stored rows and columns of each orientation lie in the upright one: EXIF 2.32, 4.6.4.
STORED = {
    1: lambda upright: upright,
    2: np.fliplr,
    3: lambda upright: np.rot90(upright, 2),
    4: np.flipud,
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: np.rot90(upright, 2).swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


def with_exif(stored, orientation: int, format_name: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(np.ascontiguousarray(stored), format_name, exif=exif, lossless=True)


TURNED = {
    "PNG": lambda stored, turn: with_exif(stored, turn, "PNG"),
    "WEBP": lambda stored, turn: with_exif(stored, turn, "WEBP"),
    "TIFF": lambda stored, turn: tiff(stored, 2, turn=turn),
    "TIFF, packed": lambda stored, turn: tiff(stored, 2, turn=turn, packed=True),
    "TIFF, 16-bit": lambda stored, turn: tiff(stored * np.uint16(257), 2, turn=turn),
    "TIFF, 16-bit, packed": lambda stored, turn: tiff(
        stored * np.uint16(257), 2, turn=turn, packed=True
    ),
    "PNG, 16-bit": lambda stored, turn: png(
        stored * np.uint16(257), extra=chunk(b"eXIf", tiff(GRAY[:1, :1, None], 1, turn=turn))
    ),
}


@pytest.mark.parametrize("kind", TURNED)
@pytest.mark.parametrize("orientation", STORED)
def test_every_orientation_gives_the_same_upright_pixels(orientation, kind):
    stored = STORED[orientation](COLOUR)
    picture = decoded(TURNED[kind](stored, orientation))
    assert np.array_equal(picture.pixels.transpose(1, 2, 0), COLOUR)
    assert picture.size == (stored.shape[1], stored.shape[0])
    assert ("turned by its EXIF orientation" in picture.notes) == (orientation > 1)


@pytest.mark.parametrize("orientation", STORED)
def test_a_photo_is_turned_upright(orientation):
    upright = np.kron([[0, 80, 160], [255, 200, 120]], np.ones((16, 16))).astype(np.uint8)
    content = with_exif(STORED[orientation](upright), orientation, "JPEG")
    pixels = decoded(content, channels=1).pixels[0].astype(int)
    assert np.abs(pixels - upright).max() <= 4


WHOLE = {
    "JPEG": JPEG,
    "JPEG, progressive": saved(PHOTO, "JPEG", progressive=True),
    "JPEG, CMYK": ZOO["JPEG, CMYK"][0],
    "PNG": saved(COLOUR, "PNG"),
    "PNG, 16-bit": png(DEEP_RGB),
    "GIF": ZOO["GIF"][0],
    "WEBP": ZOO["WEBP"][0],
    "BMP": ZOO["BMP"][0],
    "TIFF": tiff(COLOUR, 2),
    "TIFF, packed": tiff(COLOUR, 2, packed=True),
}
# How many bytes at the end no pixel needs: of a PNG the checksums and the end, of a GIF two marks.
SPARE = {
    "JPEG": 2,
    "JPEG, progressive": 2,
    "JPEG, CMYK": 2,
    "PNG": 20,
    "PNG, 16-bit": 20,
    "GIF": 2,
    "BMP": 1,
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_cut_anywhere_is_refused_or_has_all_its_pixels(name):
    content = WHOLE[name]
    whole = decoded(content).pixels
    spared = []
    for length in range(len(content)):
        try:
            pixels = decoded(content[:length]).pixels
        except ImageError:
            continue
        assert np.array_equal(pixels, whole), length
        spared.append(len(content) - length)
    assert len(spared) <= SPARE.get(name, 0)


@pytest.mark.parametrize("name", ["PNG", "PNG, 16-bit", "TIFF, packed"])
def test_a_changed_bit_in_packed_pixels_is_never_taken_for_pixels(name):
    """Not so in a JPEG or a GIF: most changes of their bits are pixels like any other."""
    content = WHOLE[name]
    whole = decoded(content).pixels
    start = content.index(b"\x78\x9c") if b"\x78\x9c" in content else len(content) // 2
    refused = 0
    for place in range(start, len(content) - SPARE.get(name, 0)):
        changed = content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
        try:
            assert np.array_equal(decoded(changed).pixels, whole), place
        except ImageError:
            refused += 1
    assert refused > 0.9 * (len(content) - SPARE.get(name, 0) - start)


def test_no_damage_ends_in_anything_but_a_refusal_or_pixels():
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draws = random.Random(seed)
    contents = [content for content, _ in ZOO.values() if content]
    refused = 0
    for _ in range(2000):
        content = bytearray(draws.choice(contents))
        # Most often in the header, where sizes, depths and places are.
        for _ in range(draws.choice([1, 1, 2, 5])):
            place = draws.randrange(min(len(content), draws.choice([40, 200, len(content)])))
            content[place : place + draws.choice([1, 1, 1, 4])] = draws.randbytes(
                draws.choice([1, 1, 3])
            )
        try:
            picture = decoded(bytes(content), channels=1, max_pixels=200_000)
        except ImageError:
            refused += 1
        else:
            assert picture.pixels.dtype == np.uint8
            assert picture.pixels.shape[0] == 1
            assert picture.pixels.size
    assert 200 < refused < 2000


@pytest.mark.parametrize("format_name", ["PNG", "GIF", "WEBP", "BMP", "TIFF", "JPEG"])
def test_how_many_pixels_are_allowed_is_what_one_says(format_name):
    content = saved(COLOUR, format_name)
    assert decoded(content, max_pixels=54).pixels.shape == (3, 6, 9)
    with pytest.raises(ImageError, match=r"9 x 6 pixels; allowed: 53 in all \(max_pixels\)"):
        decoded(content, max_pixels=53)


def test_a_bomb_is_refused_before_it_is_decoded():
    """Its rows end at once; whoever decoded it would say that it is cut short."""
    content = ZOO["PNG, 9000 x 9000"][0]
    with pytest.raises(ImageError, match="truncated"):
        decoded(content, max_pixels=90_000_000)
    with pytest.raises(ImageError, match="9000 x 9000"):
        decoded(content)


def make_folder(path: Path) -> None:
    path.mkdir()


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


def make_dangling(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_folder, "is a folder, not a picture."),
        (os.mkfifo, "is a named pipe, not a picture."),
        (partial(Path.symlink_to, target="/dev/zero"), "is a device, not a picture."),
        (make_socket, "is a socket, not a picture."),
        (make_loop, "cannot be read: Too many levels of symbolic links."),
        (make_dangling, "is not there."),
        (lambda _: None, "is not there."),
    ],
    ids=["folder", "pipe", "device", "socket", "loop of links", "link to nothing", "nothing"],
)
def test_what_is_no_file_is_said_to_be_what_it_is(make, message, tmp_path, monkeypatch):
    # A socket's whole path has to be short.
    monkeypatch.chdir(tmp_path)
    path = Path("it.png")
    make(path)
    with pytest.raises(ImageError) as refused:
        read_picture(path, channels=3)
    assert refused.value.message == f"{path} {message}"


def test_a_pipe_is_never_opened(tmp_path):
    """Opening one waits until somebody writes; what is opened is reported by Python itself."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "file.png").write_bytes(WHOLE["PNG"])
    program = """if True:
        import sys
        from pathlib import Path
        from heptad.datasets.pictures import decode_picture
        from heptad.errors import ImageError
        report = lambda event, args: event == "open" and print(args[0])
        sys.addaudithook(report)
        for name in ("file.png", "pipe.png"):
            try:
                decode_picture(Path(name), channels=3)
            except ImageError as error:
                print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "file.png" in done.stdout.splitlines()
    assert "pipe.png" not in done.stdout.splitlines()
    assert "pipe.png is a named pipe, not a picture." in done.stdout.splitlines()


def test_a_named_pipe_among_pictures_is_refused_by_what_it_is(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (path,) = find_pictures([str(tmp_path / "pipe.png")])
    with pytest.raises(ImageError, match="is a named pipe"):
        read_picture(path, channels=1)


# An EXIF block that claims more entries than it has.
TORN_EXIF = b"Exif\0\0II*\0\x08\0\0\0\x09\0" + struct.pack("<HHII", 0x0112, 3, 1, 6) + b"\x0f\x01"


def test_what_pillow_warns_of_is_noted_and_no_reason_to_refuse():
    content = saved(PHOTO, "JPEG", exif=TORN_EXIF)
    picture = decoded(content, channels=1)
    assert any(note.startswith("Pillow warns: Corrupt EXIF data") for note in picture.notes)
    assert len(picture.notes) == len(set(picture.notes))
    # The negative control: it is a warning, which is an error in these tests.
    with pytest.raises(UserWarning, match="Corrupt EXIF"), Image.open(io.BytesIO(content)) as plain:
        plain.getexif()


def test_notes_stay_with_their_picture_in_many_threads():
    contents = [saved(PHOTO, "JPEG", exif=TORN_EXIF), JPEG] * 100
    filters = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        pictures = list(pool.map(decoded, contents))
    assert all(picture.notes for picture in pictures[::2])
    assert not any(picture.notes for picture in pictures[1::2])
    assert warnings.filters == filters
    with pytest.raises(UserWarning, match="as ever"):
        warnings.warn("as ever", stacklevel=1)


def bilinear(pixels, size: int) -> np.ndarray:
    """[C, H, W] to [C, S, S] with triangles as wide as the scale, in exact numbers."""
    for axis in (1, 2):
        length = pixels.shape[axis]
        scale = length / size
        centres = (np.arange(size) + 0.5) * scale
        distance = np.abs(np.arange(length) + 0.5 - centres[:, None]) / max(scale, 1)
        weights = np.clip(1 - distance, 0, None)
        weights /= weights.sum(axis=1, keepdims=True)
        pixels = np.moveaxis(np.tensordot(weights, pixels, (1, axis)), 0, axis)
    return pixels


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 28, 32, 64, 97, 224])
@pytest.mark.parametrize("shape", [(28, 28), (1, 1), (40, 53), (301, 200), (3, 700)])
def test_a_picture_is_resized_with_triangles_as_wide_as_the_scale(shape, size, channels):
    pixels = np.random.default_rng(size).integers(0, 256, (channels, *shape), np.uint8)
    resized = resize_picture(pixels, size)
    assert resized.dtype == np.uint8
    assert resized.flags.c_contiguous
    # Both directions are rounded, each by half a step.
    assert np.abs(resized - bilinear(pixels.astype(float), size)).max() < 1.01


@pytest.mark.parametrize("size", [28, 32, 64, 224])
def test_digits_are_resized_to_the_pixels_of_training(size, mnist):
    images = mnist["test"][0][:100]
    expected = Transform(size, 1, (0.5,), (0.5,)).to_size(torch.from_numpy(images))
    for image, pixels in zip(images, expected.numpy(), strict=True):
        assert np.array_equal(resize_picture(image, size), pixels)
        in_colour = resize_picture(np.repeat(image, 3, axis=0), size)
        assert np.array_equal(in_colour, np.repeat(pixels, 3, axis=0))


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize("size", [32, 64, 224])
def test_photos_are_resized_by_torch_to_nearly_the_same_pixels(name, size):
    """Torch weighs with 16 bits, Pillow with 22: a step apart in few of the pixels."""
    photo = np.ascontiguousarray(load_sample_image(name).transpose(2, 0, 1))
    by_torch = Transform(size, 3, (0.5,), (0.5,)).to_size(torch.from_numpy(photo)[None])[0]
    apart = np.abs(by_torch.numpy().astype(int) - resize_picture(photo, size))
    assert apart.max() <= 1
    assert (apart > 0).mean() < 0.01
