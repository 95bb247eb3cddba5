"""Encoded pictures to uint8 pixels: what their headers say, decoding with grace, and which ones are refused.

For data workers: NumPy, OpenCV and PIL alone. OpenCV alone starts threads; a process that is one of several calls
`cv2.setNumThreads(0)` once. JPEG and PNG go to OpenCV, which is faster than PIL; all else, and JPEG with four
colour components, goes to PIL, which is strict and converts as other trainers do.

Most bad pictures are found before a decoder sees them and writes to stderr. What remains is a line by libjpeg
("Corrupt JPEG data: ...") or libpng on a file that is whole in form but damaged within, and libtiff's remarks; no
setting turns them off. Such a JPEG is not refused, as no decoder tells; from the damage on it is grey or garbled.
"""

import contextlib
import io
import struct
import zlib
from typing import NamedTuple

import cv2
import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, TiffImagePlugin, WebPImagePlugin

# A file of a few kB can claim any size. So many pixels take 0.3 GB as RGB, and up to 0.9 GB while a progressive
# JPEG of them is decoded, in each worker at once; few cameras make more.
MAX_PIXELS = 100_000_000


class BadPicture(Exception):
    """A picture that cannot be used; the message is the reason in a few words, without the file's name."""


class Header(NamedTuple):
    """What a file says of its picture before any pixel is decoded.

    Attributes:
      format: "JPEG", "PNG", "GIF", "BMP", "WebP" or "TIFF", by content.
      height: in pixels, as `decode` gives it: after the rotation that EXIF asks for.
      width: likewise.
      orientation: of EXIF, 1 to 8.
      cmyk: whether it is a JPEG with four colour components.
    """

    format: str
    height: int
    width: int
    orientation: int = 1
    cmyk: bool = False


def read_header(encoded: bytes) -> Header:
    """Reads a picture's header, and looks whether a JPEG or PNG is there to its end.

    Bytes after the end do no harm. Of several frames the first counts. A JPEG takes about 10 microseconds.

    Raises:
      BadPicture: empty, of no known format, truncated, damaged, or of more than `MAX_PIXELS`.
    """
    if not encoded:
        raise BadPicture("empty file")
    if encoded.startswith(b"\xff\xd8\xff"):
        header = _jpeg_header(encoded)
    elif encoded.startswith(_PNG_SIGNATURE):
        header = _png_header(encoded)
    else:
        header = _other_header(encoded)
    _check_size(header.width, header.height)
    return header if header.orientation < 5 else header._replace(height=header.width, width=header.height)


def decode(encoded: bytes, channels: int, reduce: int = 1, header: Header | None = None) -> np.ndarray:
    """Decodes a picture to (H, W, channels) uint8, upright, C-contiguous.

    Alpha is dropped and 16 bits become the upper 8. Grey from a colour JPEG is its luma as stored, which is what
    TensorFlow gives too; from other colours it is 0.299 R + 0.587 G + 0.114 B. The inks of a CMYK JPEG are taken to
    be upside down, as Adobe writes them, even without its marker; PIL does so.

    Args:
      encoded: the file.
      channels: 1 for grey, 3 for RGB.
      reduce: 1, 2, 4 or 8; height and width are divided by it and rounded up, each pixel being the mean of
        `reduce` x `reduce` or near it. That takes less time only for JPEG.
      header: of `read_header`, if it was called already.

    Raises:
      BadPicture: see `read_header`; or it cannot be decoded.
    """
    header = header or read_header(encoded)
    scales = header.format == "JPEG" and not header.cmyk
    if scales:
        picture = _decode_by_opencv(encoded, _COLOURS[channels] | _REDUCTIONS[reduce])
    elif header.format == "PNG":  # OpenCV rounds its grey of a coloured PNG down
        picture = _in_channels(_decode_by_opencv(encoded, cv2.IMREAD_COLOR_RGB), channels)
    else:
        picture = _in_channels(_decode_by_pil(encoded, header.format), channels)
    if reduce > 1 and not scales:
        picture = _average_blocks(picture, reduce)
    picture = _UPRIGHT[header.orientation](picture)
    if picture.shape[:2] != (-(-header.height // reduce), -(-header.width // reduce)):
        raise BadPicture("cannot be decoded")
    return picture.reshape(*picture.shape[:2], channels)


# Formats

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of a JPEG's frame header
_WITHOUT_LENGTH = {0x00, 0x01, *range(0xD0, 0xD9)}
_EXIF, _SCAN, _END = 0xE1, 0xDA, 0xD9
# `Image.open` would try these in turn, and warn on stderr of large pictures.
_PIL_READERS = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
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
    at, orientation, width, height = 8, 1, 0, 0
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
            width, height = struct.unpack_from(">II", encoded, 16)
        elif kind == b"eXIf":
            orientation = _exif_orientation(encoded[at + 8 : end - 4])
        elif kind == b"IEND":
            return Header("PNG", height, width, orientation)
        at = end


def _other_header(encoded: bytes) -> Header:
    if encoded.startswith((b"GIF87a", b"GIF89a")):
        kind = "GIF"
    elif encoded.startswith(b"BM"):
        kind = "BMP"
    elif encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP":
        kind = "WebP"
    elif encoded.startswith((b"II*\0", b"MM\0*")):
        kind = "TIFF"
    else:
        raise BadPicture("neither JPEG nor PNG, GIF, BMP, WebP or TIFF")
    with _pil_errors():
        image = _PIL_READERS[kind](io.BytesIO(encoded))
        if kind != "TIFF":
            exif = image.info.get("exif", b"") if kind == "WebP" else b""
            return Header(kind, image.height, image.width, _exif_orientation(exif.removeprefix(b"Exif\0\0")))
        # PIL turns a TIFF upright itself, and depending on its version tells the new size before or after.
        width, height, orientation = (int(image.tag_v2.get(tag, 1)) for tag in (256, 257, 274))
        return Header(kind, width, height) if orientation in (5, 6, 7, 8) else Header(kind, height, width)


def _exif_orientation(tiff: bytes) -> int:
    """Returns tag 0x0112 of the first directory, 1 to 8; 1 where it is missing or makes no sense."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, at)
        for entry in range(entries):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, at + 2 + 12 * entry)
            if tag == 0x0112:
                return value if 1 <= value <= 8 else 1
    except struct.error:  # it ends too early
        pass
    return 1


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
        if image.mode.startswith("I;16"):  # in a TIFF; PIL itself would cut off at 255
            image.load()
            return cv2.cvtColor((np.asarray(image) >> 8).astype(np.uint8), cv2.COLOR_GRAY2RGB)
        return np.array(image.convert("RGB"))


@contextlib.contextmanager
def _pil_errors():
    try:
        yield
    except MemoryError:  # no fault of the picture
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
