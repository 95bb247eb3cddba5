"""The header of an encoded image: format, size, orientation and range of values; and whether the file is complete.

Worker processes import this module, so besides PIL it imports only the standard library.
"""

import functools
import io
import re
import struct
import zlib
from typing import NamedTuple

from PIL import TiffImagePlugin

from flaxcnn.data.decoding import exif, pil
from flaxcnn.data.decoding.errors import MAX_PIXELS, BadImage

# Number of bytes at the start of a file that are enough to recognize its format.
SIGNATURE_BYTES = 32

_SIGNATURES = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "GIF": re.compile(rb"GIF8[79]a"),
    "BMP": re.compile(rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL),  # with the header size
    "WebP": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
    "TIFF": re.compile(rb"II[*+]\0|MM\0[*+]"),
    "PNM": re.compile(rb"P[1-6fF]\s+(#|\d)"),
}
# Markers of JPEG segments.
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = {0x00, 0x01, *range(0xD0, 0xD9)}
_EXIF, _SCAN, _END = 0xE1, 0xDA, 0xD9


class Header(NamedTuple):
    """Properties of an encoded image that are known before its pixels are decoded.

    Attributes:
      format: "JPEG", "PNG", "GIF", "BMP", "WebP", "TIFF" or "PNM", recognized by content.
      height: height in pixels of the upright image, as `images.decode` returns it.
      width: width in pixels of the upright image.
      orientation: EXIF orientation, 1 to 8.
      cmyk: whether the image is a JPEG with four color components.
      white: stored value of white: 255 for values of up to 8 bits, 1 for floating-point values.
    """

    format: str
    height: int
    width: int
    orientation: int = 1
    cmyk: bool = False
    white: int = 255

    @property
    def is_deep(self) -> bool:
        """Returns whether pixel values have more than 8 bits."""
        return self.white != 255


def format_of(start: bytes) -> str | None:
    """Returns the format (as in `Header`) of a file by its first `SIGNATURE_BYTES` bytes; None if not an image."""
    return next((kind for kind, signature in _SIGNATURES.items() if signature.match(start)), None)


def read_header(encoded: bytes) -> Header:
    """Reads the header of an encoded image, and checks that a JPEG or PNG is complete.

    Bytes after the end of the image are ignored. If there are several frames, the header is that of the first one.
    Reading the header of a JPEG takes about 10 microseconds.

    Args:
      encoded: content of the image file.

    Raises:
      BadImage: the file is empty, not an image, truncated or damaged, or claims more than `MAX_PIXELS` pixels.
    """
    if not encoded:
        raise BadImage("empty file")
    kind = format_of(encoded[:SIGNATURE_BYTES])
    if kind is None:
        raise BadImage("neither JPEG nor PNG, GIF, BMP, WebP, TIFF or PNM")
    header = _HEADERS[kind](encoded)
    _check_size(header.width, header.height)
    return header if header.orientation < 5 else header._replace(height=header.width, width=header.height)


def _jpeg_header(encoded: bytes) -> Header:
    """Reads the header of a JPEG from its segments up to the first scan. ITU-T T.81, annex B."""
    size, orientation, at = None, 1, 2
    while True:
        at = encoded.find(b"\xff", at)
        if at < 0 or at + 10 > len(encoded):
            raise BadImage("truncated")
        marker, length = encoded[at + 1], encoded[at + 2] << 8 | encoded[at + 3]
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker in _WITHOUT_LENGTH:
            at += 2
            continue
        if marker in (_SCAN, _END):
            break
        if marker in _FRAMES and size is None:
            size = struct.unpack_from(">HHB", encoded, at + 5)
        elif marker == _EXIF and encoded.startswith(b"Exif\0\0", at + 4):
            orientation = exif.orientation(encoded[at + 10 : at + 2 + length])
        at += 2 + length
    # The end marker cannot occur within a scan. The search starts at the end, where the marker nearly always is.
    if encoded.rfind(b"\xff\xd9", at) < 0:
        raise BadImage("truncated")
    if size is None:
        raise BadImage("cannot be decoded")
    height, width, components = size
    return Header("JPEG", height, width, orientation, cmyk=components == 4)


def _png_header(encoded: bytes) -> Header:
    """Reads the header of a PNG, and checks all chunks for a missing end and for wrong checksums.

    libpng would print these errors to standard error.
    """
    view = memoryview(encoded)
    at, orientation, width, height, white = 8, 1, 0, 0, 255
    while True:
        if at + 12 > len(encoded):
            raise BadImage("truncated")
        length, kind = struct.unpack_from(">I4s", encoded, at)
        end = at + 12 + length
        if end > len(encoded):
            raise BadImage("truncated")
        if not kind[0] & 0x20 and zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end]):
            raise BadImage("damaged: a checksum is wrong")
        if at == 8:
            if kind != b"IHDR" or length != 13:
                raise BadImage("cannot be decoded")
            width, height, bits = struct.unpack_from(">IIB", encoded, 16)
            white = 65535 if bits == 16 else 255
        elif kind == b"eXIf":
            orientation = exif.orientation(encoded[at + 8 : end - 4])
        elif kind == b"IEND":
            return Header("PNG", height, width, orientation, white=white)
        at = end


def _pil_header(encoded: bytes, kind: str) -> Header:
    with pil.errors_as_bad_image():
        image = pil.open_image(encoded, kind)
        tags = image.info.get("exif", b"") if kind == "WebP" else b""
        return Header(kind, image.height, image.width, exif.orientation(tags.removeprefix(b"Exif\0\0")))


_SAMPLES = {1: "unsigned integers", 2: "signed integers", 3: "floating-point numbers", 4: "unsigned integers"}


def _tiff_header(encoded: bytes) -> Header:
    file = io.BytesIO(encoded)
    with pil.errors_as_bad_image():
        start = file.read(16 if b"+" in encoded[:4] else 8)
        tags = TiffImagePlugin.ImageFileDirectory_v2(start)
        file.seek(tags.next)
        tags.load(file)
        width, height, orientation = (int(tags.get(tag, 1)) for tag in (256, 257, 274))
        bits, samples = max(tags.get(258, (1,))), max(tags.get(339, (1,)))
        photometric = tags.get(262, 1)
    if bits <= 8 and samples in (1, 4):
        # PIL turns such a TIFF upright itself.
        return Header("TIFF", width, height) if orientation in (5, 6, 7, 8) else Header("TIFF", height, width)
    white = {(16, 1): 65535, (16, 4): 65535, (32, 3): 1, (64, 3): 1}.get((bits, samples))
    if white is None or photometric not in (1, 2):  # 1: grayscale with black as 0; 2: RGB
        what = f"{bits}-bit {_SAMPLES.get(samples, 'numbers')}"
        raise BadImage(f"a TIFF of {what}; store it as 8 or 16 bits, or as floating-point values from 0 to 1")
    return Header("TIFF", height, width, orientation if 1 <= orientation <= 8 else 1, white=white)


# White space and comments, then a number. The header of a PNM file has two or three of these.
_NUMBER = rb"(?:\s|#[^\n]*\n)+([-+.\deE]+)"


def _pnm_header(encoded: bytes) -> Header:
    """Reads a PNM header, such as "P6 640 480 255 ". Netpbm's manual: ppm(5), pgm(5), pbm(5), pfm(5)."""
    kind = chr(encoded[1])
    found = re.match(rb"P." + _NUMBER * (2 if kind in "14" else 3) + rb"\s", encoded)
    if found is None or not (found[1].isdigit() and found[2].isdigit()):
        raise BadImage("cannot be decoded")
    width, height = int(found[1]), int(found[2])
    _check_size(width, height)
    if kind in "14":
        return Header("PNM", height, width)
    white = 1 if kind in "fF" else int(found[3]) if found[3].isdigit() else 0
    if not 1 <= white <= 65535:
        raise BadImage("cannot be decoded")
    if kind in "56fF":
        value_bytes = 4 if kind in "fF" else 2 if white > 255 else 1
        if len(encoded) - found.end() < width * height * (3 if kind in "6F" else 1) * value_bytes:
            raise BadImage("truncated")
    # PIL scales values of up to 8 bits itself.
    return Header("PNM", height, width, white=white if kind in "fF" or white > 255 else 255)


_HEADERS = {
    "JPEG": _jpeg_header,
    "PNG": _png_header,
    "TIFF": _tiff_header,
    "PNM": _pnm_header,
    "GIF": functools.partial(_pil_header, kind="GIF"),
    "BMP": functools.partial(_pil_header, kind="BMP"),
    "WebP": functools.partial(_pil_header, kind="WebP"),
}


def _check_size(width: int, height: int) -> None:
    if not width * height:
        raise BadImage("cannot be decoded")
    if width * height > MAX_PIXELS:
        raise BadImage(f"{width}x{height} pixels, more than the {MAX_PIXELS:,} that are accepted")
