"""Pictures: formats, modes, transparency, EXIF and sizes, with files that Pillow writes."""

from __future__ import annotations

import ast
import io
import re
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tta_apm
from tta_apm.data import pictures as module
from tta_apm.data.pictures import InMemory, read_picture
from tta_apm.errors import UserError

RAMP = np.tile(np.arange(256, dtype=np.uint8), (8, 1))


def pixels(file, as_seen=False) -> np.ndarray:
    return read_picture(file, np.asarray, as_seen=as_seen)


def encoded(image: Image.Image, image_format: str, **options) -> InMemory:
    content = io.BytesIO()
    image.save(content, image_format, **options)
    return InMemory(f"x.{image_format}", content.getvalue())


def png_header(width: int, height: int) -> InMemory:
    """A PNG of this size with zero rows only, which compress well."""
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(
            ">I", zlib.crc32(kind + body))
    rows = zlib.compress(bytes((width + 1) * height), 9)
    return InMemory("big.png", b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


# Values

@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_of_grey_are_scaled(image_format):
    deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
    if image_format == "PPM":
        deep = deep.convert("I")
    for as_seen in (False, True):
        got = pixels(encoded(deep, image_format), as_seen)
        np.testing.assert_array_equal(got, np.repeat(RAMP[..., None], 3, axis=2))


@pytest.mark.parametrize("dtype, message", [
    (np.float32, "32-bit floating-point numbers"), (np.int32, "32-bit integers")])
def test_numbers_of_32_bits_are_refused(dtype, message, tmp_path):
    Image.fromarray(RAMP.astype(dtype)).save(tmp_path / "x.tif")
    with pytest.raises(UserError, match=rf"the picture .*x\.tif has {message}"):
        pixels(tmp_path / "x.tif")


def test_a_tiff_whose_white_is_0_is_refused(tmp_path):
    Image.fromarray(RAMP.astype(np.uint16)).save(tmp_path / "x.tif", tiffinfo={262: 0})
    with pytest.raises(UserError, match="TIFF of an unusual kind"):
        pixels(tmp_path / "x.tif")


@pytest.mark.parametrize("image_format", ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
def test_every_format_is_told_by_its_content(image_format, tmp_path):
    source = encoded(Image.new("RGB", (30, 20), (250, 10, 10)), image_format)
    (tmp_path / "wrong.dat").write_bytes(source.content)
    got = pixels(tmp_path / "wrong.dat")
    assert got.shape == (20, 30, 3) and np.abs(got.astype(int) - (250, 10, 10)).max() < 6


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "CMYK", "YCbCr", "RGBA"])
def test_modes_become_rgb(mode):
    image = Image.new("RGB", (16, 16), (255, 255, 255)).convert(mode)
    for image_format in {"CMYK": ("JPEG", "TIFF"), "YCbCr": ("JPEG", "TIFF"),
                         "LA": ("PNG", "TIFF")}.get(mode, ("PNG", "TIFF")):
        source = encoded(image, image_format)
        for as_seen in (False, True):
            assert pixels(source, as_seen).min() >= 254


# Transparency and EXIF

def hidden(image_format: str) -> InMemory:
    """Red, of which the left half is transparent."""
    image = Image.new("RGBA", (16, 16), (255, 0, 0, 255))
    image.paste((255, 0, 0, 0), (0, 0, 8, 16))
    return encoded(image, image_format)


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF"])
def test_transparent_parts_are_refused_as_seen_and_dropped_by_protocol(image_format):
    with pytest.raises(UserError, match="is transparent in parts"):
        pixels(hidden(image_format), as_seen=True)
    if image_format != "WEBP":  # whose writer clears what is hidden
        assert (pixels(hidden(image_format)) == (255, 0, 0)).all()


def test_a_transparent_colour_of_a_palette_is_refused_as_seen():
    image = Image.fromarray(np.repeat(RAMP[..., None], 3, axis=2)).convert("P")
    source = encoded(image, "PNG", transparency=image.getpixel((9, 0)))
    assert pixels(source).shape == (8, 256, 3)
    with pytest.raises(UserError, match="is transparent in parts"):
        pixels(source, as_seen=True)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_heeded_as_seen_only(image_format, orientation):
    stored = Image.new("RGB", (32, 16))
    stored.paste((255, 255, 255), (0, 0, 16, 8))  # white in the upper left corner
    exif = Image.Exif()
    exif[0x0112] = orientation
    source = encoded(stored, image_format, exif=exif)
    assert pixels(source).shape == (16, 32, 3)
    upright = pixels(source, as_seen=True)
    assert upright.shape == ((16, 32, 3) if orientation < 5 else (32, 16, 3))
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0),
              5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}[orientation]
    bright = {place: int(upright[place].min()) for place in ((0, 0), (0, -1), (-1, 0), (-1, -1))}
    assert max(bright, key=bright.__getitem__) == corner


def test_orientation_of_sixteen_bits_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    source = encoded(Image.fromarray(RAMP.astype(np.uint16) * 257), "PNG", exif=exif)
    assert pixels(source, as_seen=True).shape == (256, 8, 3)


# Not a picture, or too large

EPS = (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
       b"(HARM) (w) file closefile showpage\n%%EOF\n")


@pytest.mark.parametrize("content, kind", [
    (EPS, "PostScript"), (b"\xc5\xd0\xd3\xc6" + EPS, "PostScript"), (b"%PDF-1.4", "PDF"),
    (b"<!DOCTYPE html>", "HTML, XML or SVG"), (b"", "empty"), (b"nothing", "of another format"),
    (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of git lfs")])
def test_what_is_no_picture_is_named(content, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("x.png").write_bytes(content)
    with pytest.raises(UserError, match=rf"cannot read the image x\.png: it is {kind}.*not BMP"):
        pixels(Path("x.png"))
    assert [file.name for file in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_a_cut_picture_is_named_at_any_length(image_format):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    name, content = encoded(Image.fromarray(noise), image_format)
    for size in (1, 20, len(content) // 3, len(content) // 2):
        with pytest.raises(UserError, match=f"cannot read the image {re.escape(name)}: "):
            pixels(InMemory(name, content[:size]))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="x.png: No such file"):
        pixels(tmp_path / "x.png")


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "TIFF", "PNG"])
def test_several_pictures_in_one_file_are_refused(image_format):
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    source = encoded(frames[0], image_format, save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match="holds 2 pictures"):
        pixels(source)


@pytest.mark.slow
@pytest.mark.parametrize("width, height, message", [
    (1, 60_000, "one side is over 100 times"), (60_000, 1, "one side is over 100 times"),
    (9_500, 9_500, "above the limit of 89 million pixels")])
def test_sizes_that_would_fill_the_memory_are_refused_by_the_header(width, height, message):
    source = png_header(width, height)
    assert len(source.content) < 200_000
    with pytest.raises(UserError, match=f"the picture big.png is {width}×{height}.*{message}"):
        pixels(source)


def test_large_pictures_are_decoded_one_after_the_other(monkeypatch):
    monkeypatch.setattr(module, "_MEMORY", module._Memory(1_000))
    source = encoded(Image.new("RGB", (30, 30)), "PNG")
    inside, most = [], []

    def prepare(image):
        inside.append(1)
        most.append(len(inside))
        threading.Event().wait(0.02)
        inside.pop()

    threads = [threading.Thread(target=read_picture, args=(source, prepare)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(most) == 5 and max(most) == 1


@pytest.mark.slow
def test_no_other_file_opens_pictures():
    """Only one module opens pictures, so its checks of formats and sizes apply everywhere."""
    found = []
    for file in sorted(Path(tta_apm.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            opens = isinstance(node, ast.Attribute) and (
                (node.attr == "open" and isinstance(node.value, ast.Name)
                 and node.value.id == "Image") or node.attr in ("imread", "imopen", "imdecode"))
            if opens and file.name != "pictures.py":
                found.append(f"{file.name}:{node.lineno}")
    # What corruptions/functions.py opens, it wrote itself.
    assert [place.split(":")[0] for place in found] == ["functions.py"]
