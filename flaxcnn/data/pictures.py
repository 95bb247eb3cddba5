"""Encoded pictures to uint8 pixels: what their headers say, decoding with grace, and which ones are refused.

For data workers: NumPy, OpenCV and PIL alone. OpenCV alone starts threads; a process that is one of several calls
`cv2.setNumThreads(0)` once. JPEG and PNG go to OpenCV, which is faster than PIL, and so do values of more than 8
bits, which PIL cuts off; all else, and JPEG with four colour components, goes to PIL, which is strict and converts
as other trainers do.

Most bad pictures are found before a decoder sees them and writes to stderr. What remains is a line by libjpeg
("Corrupt JPEG data: ...") or libpng on a file that is whole in form but damaged within, and libtiff's remarks, of
which `remarks` lets the first through. Such a JPEG is not refused, as no decoder tells; from the damage on it is
grey or garbled.
"""

import contextlib
import functools
import io
import re
import struct
import zlib
from typing import NamedTuple

import cv2
import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from flaxcnn.data import remarks

# A file of a few kB can claim any size. So many pixels take 0.3 GB as RGB, and up to 0.9 GB while a progressive
# JPEG of them is decoded, in each worker at once; few cameras make more.
MAX_PIXELS = 100_000_000
# By so many bytes at its beginning a file's format is told.
SIGNATURE_BYTES = 32


class BadPicture(Exception):
    """A picture that cannot be used; the message is the reason in a few words, without the file's name."""


class Header(NamedTuple):
    """What a file says of its picture before any pixel is decoded.

    Attributes:
      format: "JPEG", "PNG", "GIF", "BMP", "WebP", "TIFF" or "PNM", by content.
      height: in pixels, as `decode` gives it: after the rotation that EXIF asks for.
      width: likewise.
      orientation: of EXIF, 1 to 8.
      cmyk: whether it is a JPEG with four colour components.
      largest: the value of white, where values have more than 8 bits: 1 if they are floating-point; else 255.
    """

    format: str
    height: int
    width: int
    orientation: int = 1
    cmyk: bool = False
    largest: int = 255

    @property
    def is_deep(self) -> bool:
        """Returns whether values have more than 8 bits."""
        return self.largest != 255


def format_of(start: bytes) -> str | None:
    """Returns the format, as in `Header`, of a file by its first `SIGNATURE_BYTES`; None if it is no image."""
    return next((kind for kind, signature in _SIGNATURES.items() if signature.match(start)), None)


def read_header(encoded: bytes) -> Header:
    """Reads a picture's header, and looks whether a JPEG or PNG is there to its end.

    Bytes after the end do no harm. Of several frames the first counts. A JPEG takes about 10 microseconds.

    Raises:
      BadPicture: empty, of no known format, truncated, damaged, or of more than `MAX_PIXELS`.
    """
    if not encoded:
        raise BadPicture("empty file")
    kind = format_of(encoded[:SIGNATURE_BYTES])
    if kind is None:
        raise BadPicture("neither JPEG nor PNG, GIF, BMP, WebP, TIFF or PNM")
    header = _HEADERS[kind](encoded)
    _check_size(header.width, header.height)
    return header if header.orientation < 5 else header._replace(height=header.width, width=header.height)


def decode(encoded: bytes, channels: int, reduce: int = 1, header: Header | None = None) -> np.ndarray:
    """Decodes a picture to (H, W, channels) uint8, upright, C-contiguous.

    Alpha is dropped. Values of 16 bits are divided by 257 and rounded; floating-point ones from 0 to 1 are
    multiplied by 255. Refused are other floating-point values, integers of 32 bits, for which white has no agreed
    value, and an image of 16 bits whose values all lie in the lowest sixteenth: it holds 8 or 12 bits and would be
    black.

    Grey from a colour JPEG is its luma as stored, which is what TensorFlow gives too; from other colours it is
    0.299 R + 0.587 G + 0.114 B. The inks of a CMYK JPEG are taken to be upside down, as Adobe writes them, even
    without its marker; PIL does so.

    Args:
      encoded: the file.
      channels: 1 for grey, 3 for RGB.
      reduce: 1, 2, 4 or 8; height and width are divided by it and rounded up, each pixel being the mean of
        `reduce` x `reduce` or near it. That takes less time only for JPEG.
      header: of `read_header`, if it was called already.

    Raises:
      BadPicture: see `read_header`; or it cannot be decoded.
    """
    with remarks.caught():
        header = header or read_header(encoded)
        return _decode(encoded, channels, reduce, header)


def _decode(encoded: bytes, channels: int, reduce: int, header: Header) -> np.ndarray:
    scales = header.format == "JPEG" and not header.cmyk
    if scales:
        picture = _decode_by_opencv(encoded, _COLOURS[channels] | _REDUCTIONS[reduce])
    elif header.is_deep:
        picture = _in_channels(_to_8_bits(_decode_deep(encoded, header), header.largest), channels)
    elif header.format == "PNG":  # OpenCV rounds its grey of a coloured PNG down
        picture = _in_channels(_decode_by_opencv(_without_remarks(encoded), cv2.IMREAD_COLOR_RGB), channels)
    else:
        picture = _in_channels(_decode_by_pil(encoded, header.format), channels)
    if reduce > 1 and not scales:
        picture = _average_blocks(picture, reduce)
    picture = _UPRIGHT[header.orientation](picture)
    if picture.shape[:2] != (-(-header.height // reduce), -(-header.width // reduce)):
        raise BadPicture("cannot be decoded")
    return picture.reshape(*picture.shape[:2], channels)


# Formats

_SIGNATURES = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "GIF": re.compile(rb"GIF8[79]a"),
    "BMP": re.compile(rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL),  # the size of its header
    "WebP": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
    "TIFF": re.compile(rb"II[*+]\0|MM\0[*+]"),
    "PNM": re.compile(rb"P[1-6fF]\s+(#|\d)"),
}
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of a JPEG's frame header
_WITHOUT_LENGTH = {0x00, 0x01, *range(0xD0, 0xD9)}
_EXIF, _SCAN, _END = 0xE1, 0xDA, 0xD9
# `Image.open` would try these in turn, and warn on stderr of large pictures.
_PIL_READERS = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "PNM": PpmImagePlugin.PpmImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}


def _jpeg_header(encoded: bytes) -> Header:
    """Walks over the segments up to the first scan. ITU-T T.81, annex B."""
    size, orientation, at = None, 1, 2
    while True:
        at = encoded.find(b"\xff", at)
        if at < 0 or at + 10 > len(encoded):
            raise BadPicture("truncated")
        marker, length = encoded[at + 1], encoded[at + 2] << 8 | encoded[at + 3]
        if marker == 0xFF:  # filling
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
            orientation = _exif_orientation(encoded[at + 10 : at + 2 + length])
        at += 2 + length
    # The end marker cannot occur within a scan. Searched from the end, where it nearly always is, it costs nothing.
    if encoded.rfind(b"\xff\xd9", at) < 0:
        raise BadPicture("truncated")
    if size is None:
        raise BadPicture("cannot be decoded")
    height, width, components = size
    return Header("JPEG", height, width, orientation, cmyk=components == 4)


def _png_header(encoded: bytes) -> Header:
    """Walks over all chunks, so as to find a missing end or a wrong checksum before libpng tells stderr of it."""
    view = memoryview(encoded)
    at, orientation, width, height, largest = 8, 1, 0, 0, 255
    while True:
        if at + 12 > len(encoded):
            raise BadPicture("truncated")
        length, kind = struct.unpack_from(">I4s", encoded, at)
        end = at + 12 + length
        if end > len(encoded):
            raise BadPicture("truncated")
        if not kind[0] & 0x20 and zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end]):
            raise BadPicture("damaged: a checksum is wrong")
        if at == 8:
            if kind != b"IHDR" or length != 13:
                raise BadPicture("cannot be decoded")
            width, height, bits = struct.unpack_from(">IIB", encoded, 16)
            largest = 65535 if bits == 16 else 255
        elif kind == b"eXIf":
            orientation = _exif_orientation(encoded[at + 8 : end - 4])
        elif kind == b"IEND":
            return Header("PNG", height, width, orientation, largest=largest)
        at = end


def _without_remarks(png: bytes) -> bytes:
    """Returns a PNG with nothing but what its pixels need: libpng remarks on profiles, texts and times."""
    pieces, at = [png[:8]], 8
    while at < len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        end = at + 12 + length
        if not kind[0] & 0x20:
            pieces.append(png[at:end])
        if kind == b"IEND":
            break
        at = end
    return b"".join(pieces)


def _pil_header(encoded: bytes, kind: str) -> Header:
    with _pil_errors():
        image = _PIL_READERS[kind](io.BytesIO(encoded))
        exif = image.info.get("exif", b"") if kind == "WebP" else b""
        return Header(kind, image.height, image.width, _exif_orientation(exif.removeprefix(b"Exif\0\0")))


_SAMPLES = {1: "whole numbers", 2: "signed numbers", 3: "floating-point numbers", 4: "whole numbers"}


def _tiff_header(encoded: bytes) -> Header:
    file = io.BytesIO(encoded)
    with _pil_errors():
        start = file.read(16 if b"+" in encoded[:4] else 8)
        tags = TiffImagePlugin.ImageFileDirectory_v2(start)
        file.seek(tags.next)
        tags.load(file)
        width, height, orientation = (int(tags.get(tag, 1)) for tag in (256, 257, 274))
        bits, samples = max(tags.get(258, (1,))), max(tags.get(339, (1,)))
        photometric = tags.get(262, 1)
    if bits <= 8 and samples in (1, 4):
        # PIL turns a TIFF upright itself.
        return Header("TIFF", width, height) if orientation in (5, 6, 7, 8) else Header("TIFF", height, width)
    largest = {(16, 1): 65535, (16, 4): 65535, (32, 3): 1, (64, 3): 1}.get((bits, samples))
    if largest is None or photometric not in (1, 2):  # black is zero, or red, green, blue
        what = f"{_SAMPLES.get(samples, 'numbers')} of {bits} bits"
        raise BadPicture(f"a TIFF of {what}; store it as 8 or 16 bits, or as floating-point values from 0 to 1")
    return Header("TIFF", height, width, orientation if 1 <= orientation <= 8 else 1, largest=largest)


# What PNM's header consists of: space and comments, and then a number.
_NUMBER = rb"(?:\s|#[^\n]*\n)+([-+.\deE]+)"


def _pnm_header(encoded: bytes) -> Header:
    """Reads "P6 640 480 255 " and its like. Netpbm's manual: ppm(5), pgm(5), pbm(5), pfm(5)."""
    kind = chr(encoded[1])
    found = re.match(rb"P." + _NUMBER * (2 if kind in "14" else 3) + rb"\s", encoded)
    if found is None or not (found[1].isdigit() and found[2].isdigit()):
        raise BadPicture("cannot be decoded")
    width, height = int(found[1]), int(found[2])
    _check_size(width, height)
    if kind in "14":
        return Header("PNM", height, width)
    largest = 1 if kind in "fF" else int(found[3]) if found[3].isdigit() else 0
    if not 1 <= largest <= 65535:
        raise BadPicture("cannot be decoded")
    if kind in "56fF":
        value = 4 if kind in "fF" else 2 if largest > 255 else 1
        if len(encoded) - found.end() < width * height * (3 if kind in "6F" else 1) * value:
            raise BadPicture("truncated")
    # PIL scales what has up to 8 bits.
    return Header("PNM", height, width, largest=largest if kind in "fF" or largest > 255 else 255)


_HEADERS = {
    "JPEG": _jpeg_header,
    "PNG": _png_header,
    "TIFF": _tiff_header,
    "PNM": _pnm_header,
    "GIF": functools.partial(_pil_header, kind="GIF"),
    "BMP": functools.partial(_pil_header, kind="BMP"),
    "WebP": functools.partial(_pil_header, kind="WebP"),
}


def _exif_orientation(tiff: bytes) -> int:
    """Returns tag 0x0112 of the first directory, 1 to 8; 1 where it is missing or makes no sense."""
    order, at = _orientation_place(tiff)
    value = struct.unpack_from(f"{order}H", tiff, at)[0] if at else 1
    return value if 1 <= value <= 8 else 1


def _orientation_place(tiff: bytes) -> tuple[str, int]:
    """Returns the order of bytes, and where the value of tag 0x0112 lies; 0 if there is none."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2], "")
    try:
        (at,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, at)
        for entry in range(entries if order else 0):
            tag, _, _, _ = struct.unpack_from(f"{order}HHIH", tiff, at + 2 + 12 * entry)
            if tag == 0x0112:
                return order, at + 2 + 12 * entry + 8
    except struct.error:  # it ends too early
        pass
    return order, 0


def _as_stored(tiff: bytes) -> bytes:
    """Returns a TIFF that asks for no rotation: OpenCV heeds that of some, whatever its flags say."""
    order, at = _orientation_place(tiff)
    return tiff[:at] + struct.pack(f"{order}H", 1) + tiff[at + 2 :] if at else tiff


def _check_size(width: int, height: int) -> None:
    if not width * height:
        raise BadPicture("cannot be decoded")
    if width * height > MAX_PIXELS:
        raise BadPicture(f"{width}x{height} pixels, more than the {MAX_PIXELS:,} that are accepted")


# Pixels

_COLOURS = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR_RGB}
_REDUCTIONS = {  # grey's have no other bit set, so they go with any colours
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
# By EXIF's orientation. OpenCV does the same, but not for every format, nor in every version.
_UPRIGHT = {
    1: lambda picture: picture,
    2: lambda picture: cv2.flip(picture, 1),
    3: lambda picture: cv2.rotate(picture, cv2.ROTATE_180),
    4: lambda picture: cv2.flip(picture, 0),
    5: cv2.transpose,
    6: lambda picture: cv2.rotate(picture, cv2.ROTATE_90_CLOCKWISE),
    7: lambda picture: cv2.rotate(cv2.transpose(picture), cv2.ROTATE_180),
    8: lambda picture: cv2.rotate(picture, cv2.ROTATE_90_COUNTERCLOCKWISE),
}


def _decode_by_opencv(encoded: bytes, flag: int) -> np.ndarray:
    try:
        picture = cv2.imdecode(np.frombuffer(encoded, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from error
        picture = None
    if picture is None:
        raise BadPicture("cannot be decoded")
    return picture


def _decode_by_pil(encoded: bytes, kind: str) -> np.ndarray:
    """Returns (H, W, 3) uint8."""
    with _pil_errors():
        image = _PIL_READERS[kind](io.BytesIO(encoded))
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # PIL would cut off at 255
            raise BadPicture("cannot be decoded")
        return np.array(image.convert("RGB"))


def _decode_deep(encoded: bytes, header: Header) -> np.ndarray:
    """Returns (H, W, 3) uint16 or float, red, green, blue, as stored."""
    if header.format == "PNG":
        return _decode_by_opencv(_without_remarks(encoded), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH)
    if header.format == "PNM":
        encoded += b"\n"  # OpenCV does not see the last number where nothing follows it
    elif header.orientation > 1:
        encoded = _as_stored(encoded)
    pixels = _decode_by_opencv(encoded, cv2.IMREAD_UNCHANGED)
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=2)
    if pixels.shape[2] not in (3, 4):
        raise BadPicture("cannot be decoded")
    return pixels[..., 2::-1]


# Of the range from 0 to 1, what floating-point values may lie outside: what rounds to black or white anyway.
_OUTSIDE = 1 / 512
# The lowest part of the range in which an image of many bits may not lie as a whole. 12 bits of 16 are a sixteenth.
_DARK = 1 / 16


def _to_8_bits(pixels: np.ndarray, largest: int) -> np.ndarray:
    """Returns uint8 values of others whose white is `largest`, each rounded to the nearest.

    Raises:
      BadPicture: white cannot be `largest`.
    """
    low, high = pixels.min(), pixels.max()
    if np.issubdtype(pixels.dtype, np.floating):
        if not (low >= -_OUTSIDE and high <= 1 + _OUTSIDE):  # also where one is not a number
            raise BadPicture(
                f"floating-point values from {low:g} to {high:g}; only those from 0 to 1 can be scaled"
            )
        result = np.rint(pixels.clip(0, 1) * 255).astype(np.uint8)
        if high > 0 and not result.any():
            raise BadPicture(f"floating-point values up to {high:g}, which would be black")
        return result
    if pixels.dtype != np.uint16 or high > largest:
        raise BadPicture("cannot be decoded")
    if 0 < high < largest * _DARK:
        raise BadPicture(
            f"values up to {high:,} where white is {largest:,}, which would be black or nearly; store it as 8 "
            f"bits, or scale it"
        )
    return ((pixels.astype(np.uint32) * 255 + largest // 2) // largest).astype(np.uint8)


@contextlib.contextmanager
def _pil_errors():
    try:
        yield
    except (MemoryError, BadPicture):  # the first is no fault of the picture
        raise
    except Image.DecompressionBombError:
        raise BadPicture(f"more than the {MAX_PIXELS:,} pixels that are accepted") from None
    except Exception as error:  # what a damaged file raises in PIL is not to be foreseen
        raise BadPicture("truncated" if "truncated" in str(error) else "cannot be decoded") from error


def _in_channels(rgb: np.ndarray, channels: int) -> np.ndarray:
    return rgb if channels == 3 else cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)


def _average_blocks(picture: np.ndarray, reduce: int) -> np.ndarray:
    """Returns the means of blocks of `reduce` x `reduce`, the last ones filled up with the picture's edge."""
    height, width = picture.shape[:2]
    below, right = -height % reduce, -width % reduce
    if below or right:
        picture = cv2.copyMakeBorder(picture, 0, below, 0, right, cv2.BORDER_REPLICATE)
    size = (picture.shape[1] // reduce, picture.shape[0] // reduce)
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
