"""Decoding an encoded image to uint8 pixels.

Worker processes import this module, so it imports only NumPy, OpenCV and PIL. Only OpenCV starts threads; each of
several worker processes must call `cv2.setNumThreads(0)` once. OpenCV decodes JPEG and PNG, because it is faster
than PIL, and images of more than 8 bits, because PIL clips their values. PIL decodes all other formats, and JPEGs
with four color components, because it is strict and converts colors as other training pipelines do.

Most bad images are detected before they are decoded, so that no decoder prints a message about them. If a file is
complete but damaged inside, libjpeg ("Corrupt JPEG data: ..."), libpng or libtiff prints messages; `messages` shows
only the first one. Such a JPEG is not refused, because no decoder reports the damage to its caller. The damaged
part of the image is gray or garbled.
"""

import struct

import cv2
import numpy as np

from flaxcnn.data.decoding import exif, messages, pil
from flaxcnn.data.decoding.errors import BadImage
from flaxcnn.data.decoding.headers import Header, read_header

_READ_FLAGS = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR_RGB}
_REDUCTIONS = {  # grayscale flags, because they set no other bit and so also combine with the flags for color
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
# Functions that turn an image upright, by its EXIF orientation. OpenCV can do this too, but not for every format
# and not in every version.
_TURN_UPRIGHT = {
    1: lambda image: image,
    2: lambda image: cv2.flip(image, 1),
    3: lambda image: cv2.rotate(image, cv2.ROTATE_180),
    4: lambda image: cv2.flip(image, 0),
    5: cv2.transpose,
    6: lambda image: cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE),
    7: lambda image: cv2.rotate(cv2.transpose(image), cv2.ROTATE_180),
    8: lambda image: cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE),
}
# Floating-point values may lie outside of 0..1 by this much: they round to black or white anyway.
_TOLERANCE = 1 / 512
# An image of more than 8 bits is refused if all its values lie below this fraction of white. 12-bit values stored
# in 16 bits lie below a sixteenth of white.
_DARK = 1 / 16


def decode(encoded: bytes, channels: int, reduce: int = 1, header: Header | None = None) -> np.ndarray:
    """Decodes an image to (H, W, channels) uint8, upright and C-contiguous.

    Alpha is dropped. 16-bit values are divided by 257 and rounded. Floating-point values from 0 to 1 are multiplied
    by 255; an image with other floating-point values is refused. 32-bit integers are refused, because there is no
    convention for the value of white. A 16-bit image whose values all lie in the lowest sixteenth is refused,
    because it holds 8-bit or 12-bit values and would become black.

    A color JPEG is converted to gray by taking its luma as stored, as in TensorFlow; other color images by
    0.299 R + 0.587 G + 0.114 B. The inks of a CMYK JPEG are assumed to be inverted, as Adobe writes them, even
    without Adobe's marker, as in PIL.

    Args:
      encoded: content of the image file.
      channels: 1 for gray, 3 for RGB.
      reduce: 1, 2, 4 or 8. Height and width are divided by it and rounded up. Each pixel is the mean of
        `reduce` x `reduce` pixels, or close to it. This saves time only for JPEG.
      header: result of `read_header`, if it has already been called.

    Raises:
      BadImage: the image cannot be decoded, or is refused as described above; see also `read_header`.
    """
    with messages.caught():
        header = header or read_header(encoded)
        return _decode(encoded, channels, reduce, header)


def _decode(encoded: bytes, channels: int, reduce: int, header: Header) -> np.ndarray:
    decoder_reduces = header.format == "JPEG" and not header.cmyk
    if decoder_reduces:
        image = _decode_by_opencv(encoded, _READ_FLAGS[channels] | _REDUCTIONS[reduce])
    elif header.is_deep:
        image = _in_channels(_to_8_bits(_decode_deep(encoded, header), header.white), channels)
    elif header.format == "PNG":  # always in color, because OpenCV truncates the gray values of a color PNG
        image = _in_channels(_decode_by_opencv(_critical_chunks(encoded), cv2.IMREAD_COLOR_RGB), channels)
    else:
        image = _in_channels(_decode_by_pil(encoded, header.format), channels)
    if reduce > 1 and not decoder_reduces:
        image = _average_blocks(image, reduce)
    image = _TURN_UPRIGHT[header.orientation](image)
    if image.shape[:2] != (-(-header.height // reduce), -(-header.width // reduce)):
        raise BadImage("cannot be decoded")
    return image.reshape(*image.shape[:2], channels)


def _decode_by_opencv(encoded: bytes, flag: int) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from error
        image = None
    if image is None:
        raise BadImage("cannot be decoded")
    return image


def _decode_by_pil(encoded: bytes, kind: str) -> np.ndarray:
    """Decodes an image with PIL to (H, W, 3) uint8, RGB."""
    with pil.errors_as_bad_image():
        image = pil.open_image(encoded, kind)
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # PIL would clip at 255
            raise BadImage("cannot be decoded")
        return np.array(image.convert("RGB"))


def _decode_deep(encoded: bytes, header: Header) -> np.ndarray:
    """Decodes an image of more than 8 bits to its stored values, (H, W, 3) uint16 or float, RGB."""
    if header.format == "PNG":
        return _decode_by_opencv(_critical_chunks(encoded), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH)
    if header.format == "PNM":
        encoded += b"\n"  # OpenCV misses the last number if nothing follows it
    elif header.orientation > 1:
        encoded = exif.without_orientation(encoded)  # OpenCV turns some TIFFs, whatever the flags say
    pixels = _decode_by_opencv(encoded, cv2.IMREAD_UNCHANGED)
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=2)
    if pixels.shape[2] not in (3, 4):
        raise BadImage("cannot be decoded")
    return pixels[..., 2::-1]


def _critical_chunks(png: bytes) -> bytes:
    """Returns a PNG without ancillary chunks, because libpng prints warnings about profiles, texts and times."""
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


def _to_8_bits(pixels: np.ndarray, white: int) -> np.ndarray:
    """Scales pixel values from the range 0..white to uint8, rounded to nearest.

    Raises:
      BadImage: values lie outside of that range, or are so low that the image would be black or nearly black.
    """
    low, high = pixels.min(), pixels.max()
    if np.issubdtype(pixels.dtype, np.floating):
        if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):  # also true for NaN
            raise BadImage(f"floating-point values from {low:g} to {high:g}; only those from 0 to 1 can be scaled")
        result = np.rint(pixels.clip(0, 1) * 255).astype(np.uint8)
        if high > 0 and not result.any():
            raise BadImage(f"floating-point values up to {high:g}, which would be black")
        return result
    if pixels.dtype != np.uint16 or high > white:
        raise BadImage("cannot be decoded")
    if 0 < high < white * _DARK:
        raise BadImage(
            f"values up to {high:,} where white is {white:,}, which would be black or nearly black; store it as 8 "
            f"bits, or scale it"
        )
    return ((pixels.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)


def _in_channels(rgb: np.ndarray, channels: int) -> np.ndarray:
    return rgb if channels == 3 else cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)


def _average_blocks(image: np.ndarray, reduce: int) -> np.ndarray:
    """Returns the means of blocks of `reduce` x `reduce` pixels. Incomplete blocks are padded with edge pixels."""
    height, width = image.shape[:2]
    below, right = -height % reduce, -width % reduce
    if below or right:
        image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE)
    size = (image.shape[1] // reduce, image.shape[0] // reduce)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
