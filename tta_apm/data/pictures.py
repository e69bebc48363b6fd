"""Pictures: reading image files as RGB; all image files are read here.

A file's format is recognised by its first bytes, never by its name. Formats other than FORMATS are
refused (Pillow would pass a PostScript file to Ghostscript), and so are pictures that would not fit
into memory or whose values cannot be converted to 8 bits unambiguously. The others are converted:

- 16-bit grey is divided by 257, so that white stays white; of 16-bit colours, Pillow keeps the
  upper 8 bits.
- Palettes, grey, CMYK (without its colour profile) and YCbCr are converted to RGB by Pillow.
- The loaders of published benchmarks ignore transparency and the camera's orientation in EXIF, and
  so do the data sets that follow them. Users' own pictures are read `as_seen`: rotated upright,
  and refused if a part is transparent.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition
from typing import IO, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from PIL import Image, ImageOps

from tta_apm.errors import UserError, reason

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}

MAX_PIXELS = 89_478_485  # Pillow's own limit, above which it only warns
MAX_RATIO = 100  # of the sides: with a shorter side of 256, the other one is at most 25,600
DECODED_AT_ONCE = 32_000_000  # pixels, in all threads together

SIXTEEN_BITS = {"I;16", "I;16B", "I;16L", "I;16N"}
GREY_OF_16 = {"PNG", "PPM"}  # formats in which some versions of Pillow use mode I for 16-bit grey

ORIENTATION, BITS, WHITE = 0x0112, 258, 262  # tags of EXIF and TIFF

BEGINNINGS = (
    (b"%!PS", "PostScript"), (b"\xc5\xd0\xd3\xc6", "PostScript"), (b"%PDF", "PDF"),
    (b"version https://git-lfs", "a pointer of git lfs ('git lfs pull' downloads the file)"),
    (b"<", "HTML, XML or SVG"), (b"8BPS", "Photoshop"),
    (b"\x00\x00\x00\x0cjP", "JPEG 2000"), (b"PK", "a zip archive"), (b"\x1f\x8b", "gzip"))

T = TypeVar("T")


class PictureFile(Protocol):
    """The source of a picture: a Path, or any object with `open` and a name as its str."""

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        ...


class InMemory(NamedTuple):
    """A picture's bytes, with a name for error messages."""

    name: str
    content: bytes

    def open(self, mode: Literal["rb"] = "rb") -> IO[bytes]:
        return io.BytesIO(self.content)

    def __str__(self) -> str:
        return self.name


def read_picture(source: PictureFile, prepare: Callable[[Image.Image], T], *, as_seen: bool = False
                 ) -> T:
    """Read a picture and return `prepare(image)` of the RGB image.

    Args:
        as_seen: whether to rotate it as its EXIF says, and to refuse one that is transparent in
            parts.

    Raises:
        UserError: if it is not found, not a picture, incomplete, too large, or cannot be converted
            to RGB unambiguously; it names the source.
    """
    with _opened(source) as image:
        width, height = image.size
        with _MEMORY.taken(width * height):
            try:
                rgb = _rgb(image, as_seen)
            except _Unclear as error:
                raise UserError(f"the picture {source} {error}") from error
            except Exception as error:  # Pillow raises many kinds of errors for malformed files
                raise UserError(f"cannot read the image {source}: {error}") from error
            return prepare(rgb)


def picture_size(source: PictureFile) -> tuple[int, int]:
    """Width and height in the file, ignoring its EXIF. Raises as read_picture."""
    with _opened(source) as image:
        return image.size


@contextmanager
def _opened(source: PictureFile) -> Iterator[Image.Image]:
    """A picture of FORMATS and of an allowed size; its pixels are not decoded yet."""
    try:
        file = source.open("rb")
    except OSError as error:
        raise UserError(f"cannot read the image {source}: {reason(error)}") from error
    with file:
        begins = file.read(32)
        file.seek(0)
        try:
            image = Image.open(file, formats=FORMATS)
        except Image.UnidentifiedImageError as error:
            raise UserError(f"cannot read the image {source}: it is {_beginning(begins)}, not "
                            f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}") from error
        except Exception as error:
            raise UserError(f"cannot read the image {source}: {error}") from error
        with image:
            _check_size(image, source)
            yield image


def _beginning(content: bytes) -> str:
    if not content:
        return "empty"
    return next((kind for start, kind in BEGINNINGS if content.startswith(start)),
                "of another format or cut off")


def _check_size(image: Image.Image, source: PictureFile) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UserError(f"the picture {source} is {width}×{height}, above the limit of "
                        f"{MAX_PIXELS / 1e6:.0f} million pixels: make it smaller")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise UserError(f"the picture {source} is {width}×{height}: one side is over {MAX_RATIO} "
                        "times the other, so that a square crop shows little of it; leave it out")


class _Unclear(ValueError):
    """A picture that cannot be converted; the message is a predicate that follows its name."""


def _rgb(image: Image.Image, as_seen: bool) -> Image.Image:
    frames = getattr(image, "n_frames", 1)
    # The other pictures in a JPEG (MPO) are previews and depth maps of the first.
    if frames > 1 and image.format != "MPO":
        raise _Unclear(f"holds {frames} pictures: keep one of them")
    image.load()
    if as_seen and _is_transparent(image):
        raise _Unclear("is transparent in parts, and its background is not known: put it on a "
                       "background first")
    rgb = _eight_bits(image).convert("RGB")
    return _upright(rgb) if as_seen else rgb


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode in SIXTEEN_BITS or image.mode == "I" and image.format in GREY_OF_16:
        return _grey_of_16_bits(image)
    if image.mode in ("I", "F"):
        raise _Unclear(f"has 32-bit {'integers' if image.mode == 'I' else 'floating-point numbers'}"
                       ", of which it is unknown which one is white: save it with 8 or 16 bits")
    return image


def _is_transparent(image: Image.Image) -> bool:
    if "A" not in image.getbands() and "transparency" not in image.info:
        return False
    lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
    return lowest != 255


def _upright(image: Image.Image) -> Image.Image:
    orientation = image.getexif().get(ORIENTATION, 1)
    return image if orientation == 1 else ImageOps.exif_transpose(image)


def _grey_of_16_bits(image: Image.Image) -> Image.Image:
    bits, white_is_zero = (getattr(image, "tag_v2", {}).get(tag, default)
                           for tag, default in ((BITS, (16,)), (WHITE, 1)))
    if bits != (16,) or white_is_zero == 0:
        raise _Unclear("is a TIFF of an unusual kind (12 bits, or white as 0): save it as PNG")
    levels = np.asarray(image).astype(np.uint32)
    grey = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    grey.info = image.info
    return grey


class _Memory:
    """Limits the pixels that threads decode at the same time to `limit`; a larger picture is
    decoded alone."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.changed = Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        with self.changed:
            self.changed.wait_for(lambda: not self.used or self.used + pixels <= self.limit)
            self.used += pixels
        try:
            yield
        finally:
            with self.changed:
                self.used -= pixels
                self.changed.notify_all()


_MEMORY = _Memory(DECODED_AT_ONCE)
