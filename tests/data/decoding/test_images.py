"""Decoding against PIL, closed forms and known colors; and every kind of bad image, made here."""

import ast
import functools
import io
import struct
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin, TiffImagePlugin
from sklearn.datasets import load_sample_image

from flaxcnn.data.decoding import images
from flaxcnn.data.decoding.errors import BadImage
from flaxcnn.data.decoding.headers import read_header
from flaxcnn.data.decoding.images import decode
from tests.conftest import ROOT


@functools.cache
def photograph(width=93, height=71):
    return Image.fromarray(load_sample_image("flower.jpg")).resize((width, height))


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def by_pil(encoded, mode="RGB"):
    """The pixels by PIL, (H, W, 3) or, for mode L, (H, W, 1); int, so that they can be subtracted."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert(mode)
    return np.asarray(image, int).reshape(image.height, image.width, -1)


def luma(rgb):
    return rgb.astype(float) @ [[0.299], [0.587], [0.114]]


def random(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def with_alpha():
    rgb = np.asarray(photograph())
    return Image.fromarray(np.dstack([rgb, random(*rgb.shape[:2])]))


def two_frames(kind, **options):
    return encode(photograph(), kind, save_all=True, append_images=[photograph().rotate(180)], **options)


def png_chunks(encoded):
    at = 8
    while at < len(encoded):
        length, kind = struct.unpack_from(">I4s", encoded, at)
        yield kind, encoded[at + 8 : at + 8 + length]
        at += 12 + length


def png(*chunks):
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


JPEG = {
    "baseline": lambda: encode(photograph(), "JPEG", quality=90),
    "no subsampling": lambda: encode(photograph(), "JPEG", quality=90, subsampling=0),
    "progressive": lambda: encode(photograph(), "JPEG", quality=90, progressive=True),
    "restarts": lambda: encode(photograph(), "JPEG", quality=90, restart_marker_blocks=3),
    "stored as RGB": lambda: encode(photograph(), "JPEG", quality=90, keep_rgb=True),
    "gray": lambda: encode(photograph().convert("L"), "JPEG", quality=90),
    "two images": lambda: two_frames("MPO"),
    "one pixel": lambda: encode(photograph(1, 1), "JPEG"),
    "a long row": lambda: encode(photograph(500, 1), "JPEG"),
    "padding before a marker": lambda: JPEG["baseline"]().replace(b"\xff\xdb", b"\xff\xff\xff\xdb", 1),
}
# All are lossless, or their format has only one decoder, so PIL's pixels are the only right ones.
OTHERS = {
    "PNG": lambda: encode(photograph(), "PNG"),
    "PNG, gray": lambda: encode(photograph().convert("L"), "PNG"),
    "PNG, black and white": lambda: encode(photograph().convert("1"), "PNG"),
    "PNG, palette": lambda: encode(photograph().quantize(200), "PNG"),
    "PNG, palette of 4 bits": lambda: encode(photograph().quantize(9), "PNG"),
    "PNG, transparent palette": lambda: encode(photograph().quantize(64), "PNG", transparency=bytes(range(64))),
    "PNG, transparent color": lambda: encode(photograph(), "PNG", transparency=photograph().getpixel((3, 3))),
    "PNG, alpha": lambda: encode(with_alpha(), "PNG"),
    "PNG, gray and alpha": lambda: encode(with_alpha().convert("LA"), "PNG"),
    "PNG, animated": lambda: two_frames("PNG"),
    "PNG, animated but for the first": lambda: two_frames("PNG", default_image=True),
    "GIF": lambda: encode(photograph(), "GIF"),
    "GIF, animated": lambda: two_frames("GIF"),
    "BMP": lambda: encode(photograph(), "BMP"),
    "BMP, palette": lambda: encode(photograph().quantize(200), "BMP"),
    "WebP": lambda: encode(photograph(), "WEBP"),
    "WebP, lossless": lambda: encode(photograph(), "WEBP", lossless=True),
    "WebP, alpha": lambda: encode(with_alpha(), "WEBP", lossless=True, exact=True),
    "WebP, animated": lambda: two_frames("WEBP"),
    "TIFF": lambda: encode(photograph(), "TIFF"),
    "TIFF, LZW": lambda: encode(photograph(), "TIFF", compression="tiff_lzw"),
}


def check(image, header, channels):
    assert image.dtype == np.uint8 and image.flags.c_contiguous and image.flags.writeable
    assert image.shape == (header.height, header.width, channels)


@pytest.mark.parametrize("kind", JPEG)
def test_jpeg_is_decoded_as_by_pil(kind, capfd):
    encoded = JPEG[kind]()
    header = read_header(encoded)
    assert header.format == "JPEG"
    for channels in (1, 3):
        image = decode(encoded, channels)
        check(image, header, channels)
        opened = Image.open(io.BytesIO(encoded))
        if channels == 1:
            opened.draft("L", None)  # the luma as stored
        expected = np.asarray(opened.convert("L" if channels == 1 else "RGB"), int).reshape(image.shape)
        assert np.abs(image - expected).max() <= 1
    assert capfd.readouterr().err == ""


def without_adobe_marker(encoded):
    at = encoded.index(b"\xff\xee\x00\x0eAdobe")
    return encoded[:at] + encoded[at + 16 :]


def four_components(kind):
    """The photograph in inks without black. PIL writes Adobe's marker, and inverts the inks as Adobe does."""
    inks = 255 - np.asarray(photograph())
    black = np.zeros((*inks.shape[:2], 1), np.uint8)
    if kind == "YCCK":
        inks = 255 - np.asarray(Image.fromarray(inks).convert("YCbCr"))
    encoded = encode(Image.fromarray(np.dstack([inks, black]), "CMYK"), "JPEG", quality=95)
    if kind == "CMYK without a marker":
        return without_adobe_marker(encoded)
    transform = encoded.index(b"Adobe") + 11
    assert encoded[transform] == 0
    return encoded[:transform] + (b"\x02" if kind == "YCCK" else b"\0") + encoded[transform + 1 :]


@pytest.mark.parametrize("kind", ["CMYK", "CMYK without a marker", "YCCK"])
def test_four_color_components_give_the_colors_that_were_encoded(kind):
    encoded = four_components(kind)
    header = read_header(encoded)
    image, gray = decode(encoded, 3), decode(encoded, 1)
    check(image, header, 3)
    check(gray, header, 1)
    np.testing.assert_array_equal(image, by_pil(encoded))
    assert np.abs(image - np.asarray(photograph(), float)).mean() < 2.5
    assert np.abs(gray - luma(image)).max() < 0.51


@pytest.mark.filterwarnings("ignore:Palette images")  # of PIL in the test
@pytest.mark.parametrize("kind", OTHERS)
def test_other_formats_are_decoded_as_by_pil(kind):
    encoded = OTHERS[kind]()
    header = read_header(encoded)
    assert header.format == kind.split(",")[0]
    image, gray = decode(encoded, 3), decode(encoded, 1)
    check(image, header, 3)
    check(gray, header, 1)
    np.testing.assert_array_equal(image, by_pil(encoded))
    assert np.abs(gray - luma(image)).max() < 0.51


def by_opencv(ending, rgb):
    """An array (H, W) or (H, W, 3 or 4), red first, in a file."""
    if rgb.ndim == 3:
        rgb = rgb[..., [2, 1, 0, 3][: rgb.shape[2]]]
    return cv2.imencode(ending, rgb)[1].tobytes()


@pytest.mark.parametrize("ending", [".png", ".tiff", ".pgm"])
@pytest.mark.parametrize("channels_stored", [1, 3, 4])
def test_sixteen_bits_are_divided_by_257(ending, channels_stored):
    if ending == ".pgm":
        ending, channels_stored = (".pgm", 1) if channels_stored == 1 else (".ppm", 3)
    values = random(20, 30, channels_stored, dtype=np.uint16)
    encoded = by_opencv(ending, values[..., 0] if channels_stored == 1 else values)
    color = values[..., :3] if channels_stored > 1 else np.repeat(values, 3, axis=2)
    image = decode(encoded, 3)
    check(image, read_header(encoded), 3)
    np.testing.assert_array_equal(image, np.rint(color / 257))
    assert np.abs(decode(encoded, 1) - luma(image)).max() < 0.51


@pytest.mark.parametrize("white", [1, 15, 255, 1000, 4095, 65535])
@pytest.mark.parametrize("kind", [2, 3, 5, 6])
def test_netpbm_is_scaled_by_the_value_of_white(kind, white):
    values = np.random.default_rng(0).integers(0, white + 1, (5, 6, 1 if kind in (2, 5) else 3))
    values[0] = white
    body = values.astype(">u2" if white > 255 else "u1").tobytes()
    if kind in (2, 3):
        body = " ".join(map(str, values.ravel())).encode()
    encoded = b"P%d\n# a comment\n6 5\n%d\n" % (kind, white) + body
    np.testing.assert_allclose(decode(encoded, 3), np.broadcast_to(values / white * 255, (5, 6, 3)), atol=0.5001)


def test_netpbm_of_bits():
    bits = random(4, 8) & 1
    expected = np.repeat((255 * (1 - bits))[..., None], 3, axis=2)  # 1 is black
    np.testing.assert_array_equal(decode(b"P4\n8 4\n" + np.packbits(bits).tobytes(), 3), expected)
    rows = b"\n".join(b" ".join(b"%d" % bit for bit in row) for row in bits)
    np.testing.assert_array_equal(decode(b"P1 8 4\n" + rows + b"\n", 3), expected)


def floats(*shape, low=0.0, high=1.0, dtype=np.float32):
    return np.random.default_rng(0).uniform(low, high, shape).astype(dtype)


FLOATS = {
    "TIFF of PIL": lambda: encode(Image.fromarray(floats(20, 24)), "TIFF"),
    "TIFF, compressed": lambda: encode(Image.fromarray(floats(20, 24)), "TIFF", compression="tiff_lzw"),
    "TIFF": lambda: by_opencv(".tif", floats(20, 24)),
    "TIFF of colors": lambda: by_opencv(".tif", floats(20, 24, 3)),
    "TIFF of doubles": lambda: by_opencv(".tif", floats(20, 24, dtype=np.float64)),
    "PFM": lambda: by_opencv(".pfm", floats(20, 24)),
    "PFM of colors": lambda: by_opencv(".pfm", floats(20, 24, 3)),
}


@pytest.mark.parametrize("kind", FLOATS)
def test_floating_point_values_from_0_to_1_are_scaled(kind):
    expected = floats(20, 24, 3) if "colors" in kind else floats(20, 24)[..., None]
    image = decode(FLOATS[kind](), 3)
    check(image, read_header(FLOATS[kind]()), 3)
    np.testing.assert_allclose(image, np.broadcast_to(expected * 255, image.shape), atol=0.5001)


def test_values_that_rounding_has_moved_beyond_0_or_1_are_accepted():
    values = np.array([[-1e-6, 0.5, 1 + 1e-6]], np.float32)
    assert decode(by_opencv(".tif", values), 1).ravel().tolist() == [0, 128, 255]


def test_an_image_that_is_black_is_black():
    for values in (np.zeros((3, 4), np.uint16), np.zeros((3, 4), np.float32)):
        assert not decode(by_opencv(".tif", values), 3).any()


def signed(bits):
    return by_opencv(".tif", floats(9, 9, high=255).astype(f"int{bits}"))


WITHOUT_SCALE = {
    "32 bits": (lambda: signed(32), "a TIFF of 32-bit signed integers; store it as"),
    "16 bits, signed": (lambda: signed(16), "a TIFF of 16-bit signed integers"),
    "8 bits, signed": (lambda: signed(8), "a TIFF of 8-bit signed integers"),
    "32 bits by PIL": (
        lambda: encode(Image.fromarray(random(5, 5, dtype=np.int32)), "TIFF"),
        "a TIFF of 32-bit signed integers",
    ),
    "0 to 255": (
        lambda: by_opencv(".tif", floats(9, 9, high=255)),
        "floating-point values from 0.6983",
    ),
    "-1 to 1": (lambda: by_opencv(".tif", floats(9, 9, low=-1)), "floating-point values from -0.99"),
    "not a number": (
        lambda: by_opencv(".tif", np.full((3, 3), np.nan, np.float32)),
        "floating-point values from nan",
    ),
    "infinite": (lambda: by_opencv(".pfm", np.full((3, 3), np.inf, np.float32)), "floating-point values from inf"),
    "nothing but small": (lambda: by_opencv(".tif", floats(9, 9, high=1e-3)), "floating-point values up to"),
    "8 bits in 16": (lambda: by_opencv(".png", random(9, 9).astype(np.uint16)), "values up to 2"),
    "8 bits in 16, TIFF": (lambda: by_opencv(".tif", random(9, 9, 3).astype(np.uint16)), "values up to 2"),
    "8 bits in 16, PGM": (lambda: by_opencv(".pgm", random(9, 9).astype(np.uint16)), "values up to 2"),
    "12 bits in 16": (lambda: by_opencv(".png", random(9, 9, dtype=np.uint16) // 16), "values up to 3,9"),
}


@pytest.mark.parametrize("kind", WITHOUT_SCALE)
def test_values_without_a_known_white_are_refused_and_not_black(kind, capfd):
    make, reason = WITHOUT_SCALE[kind]
    for channels in (1, 3):
        with pytest.raises(BadImage) as caught:
            decode(make(), channels)
        assert str(caught.value).startswith(reason) and "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_a_tiff_of_many_bits_is_turned_upright(orientation, dtype):
    values, tags = random(5, 7), TiffImagePlugin.ImageFileDirectory_v2()
    tags[0x0112] = orientation
    deep = values.astype(np.uint16) * 257 if dtype == np.uint16 else values.astype(np.float32) / 255
    encoded = encode(Image.fromarray(deep), "TIFF", tiffinfo=tags)
    image = decode(encoded, 1)
    check(image, read_header(encoded), 1)
    np.testing.assert_array_equal(image, by_pil(encode(Image.fromarray(values), "TIFF", tiffinfo=tags), "L"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_turns_the_image_upright(kind, orientation, order):
    exif = Image.Exif()
    exif.endian = order
    exif[0x010F] = "maker"  # an entry before the one that counts
    exif[0x0112] = orientation
    encoded = encode(photograph(), kind, exif=exif)
    header = read_header(encoded)
    assert (header.width, header.height) == ((93, 71) if orientation < 5 else (71, 93))
    assert Image.open(io.BytesIO(encoded)).getexif()[0x0112] == orientation
    expected = by_pil(encoded)
    image, half = decode(encoded, 3), decode(encoded, 1, 2)
    check(image, header, 3)
    assert np.abs(image - expected).max() <= (1 if kind == "JPEG" else 0)
    assert half.shape == (-(-header.height // 2), -(-header.width // 2), 1)
    assert decode(encoded, 1).shape == (header.height, header.width, 1)


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0junk and more junk",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\x05\0" + struct.pack("<HHII", 0x010F, 2, 1, 0),
        b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x0112, 3, 1, 9),
    ],
)
def test_invalid_exif_is_ignored(exif):
    encoded = encode(photograph(), "JPEG", exif=exif)
    assert read_header(encoded).orientation == 1
    np.testing.assert_array_equal(decode(encoded, 3), decode(encode(photograph(), "JPEG"), 3))


@pytest.mark.parametrize("reduce", [2, 4, 8])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "CMYK"])
def test_a_reduced_image_has_the_means_of_blocks(kind, channels, reduce):
    encoded = four_components(kind) if kind == "CMYK" else encode(photograph(301, 203), kind)
    full = decode(encoded, channels).astype(float)
    padded = np.pad(full, [(0, -side % reduce) for side in full.shape[:2]] + [(0, 0)], mode="edge")
    rows, columns = padded.shape[0] // reduce, padded.shape[1] // reduce
    blocks = padded.reshape(rows, reduce, columns, reduce, channels).mean((1, 3))
    image = decode(encoded, channels, reduce)
    assert image.dtype == np.uint8 and image.flags.c_contiguous and image.shape == blocks.shape
    if kind == "JPEG":  # its decoder takes means of the cosines, and of colors before they are clipped
        assert np.abs(image - blocks)[:-1, :-1].mean() < 1
    else:
        assert np.abs(image - blocks).max() < 0.51


def test_content_decides_and_a_header_can_be_passed_on(monkeypatch):
    encoded = encode(photograph(), "PNG")
    header = read_header(encoded)
    assert header.format == "PNG"
    monkeypatch.setattr(images, "read_header", None)
    np.testing.assert_array_equal(decode(encoded, 3, 1, header), np.asarray(photograph()))


def claiming(kind, width, height):
    """A file of a few hundred bytes whose header claims width x height."""
    if kind == "PNG":
        chunks = dict(png_chunks(encode(photograph(), "PNG")))
        return png((b"IHDR", struct.pack(">II", width, height) + chunks[b"IHDR"][8:]), *list(chunks.items())[1:])
    encoded = bytearray(encode(photograph(), "WEBP" if kind == "WebP" else kind))
    if kind == "JPEG":
        struct.pack_into(">HH", encoded, encoded.index(b"\xff\xc0") + 5, height, width)
    elif kind == "GIF":
        struct.pack_into("<HH", encoded, 6, width, height)
    elif kind == "BMP":
        struct.pack_into("<ii", encoded, 18, width, height)
    elif kind == "WebP":
        struct.pack_into("<HH", encoded, 26, width, height)
    return bytes(encoded)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WebP"])
def test_an_enormous_image_is_refused_by_its_header(kind, monkeypatch, recwarn):
    side = 16000 if kind == "WebP" else 30000
    enormous, largest = claiming(kind, side, side - 1), claiming(kind, 10000, 10000)
    monkeypatch.setattr(cv2, "imdecode", None)
    monkeypatch.setattr(Image.Image, "convert", None)
    for read in (read_header, lambda encoded: decode(encoded, 3)):
        with pytest.raises(BadImage) as caught:
            read(enormous)
        if kind == "WebP":
            assert "more than the 100,000,000" in str(caught.value)
        else:
            assert str(caught.value) == "30000x29999 pixels, more than the 100,000,000 that are accepted"
    assert read_header(largest).width == 10000
    assert not recwarn.list


def flipped(encoded, at):
    return encoded[:at] + bytes(byte ^ 0x5A for byte in encoded[at : at + 20]) + encoded[at + 20 :]


def with_false_zlib_data():
    chunks = list(png_chunks(encode(photograph(), "PNG")))
    return png(*((kind, flipped(data, len(data) // 2) if kind == b"IDAT" else data) for kind, data in chunks))


REFUSED = {
    "empty": (lambda: b"", "empty file"),
    "text": (lambda: b"the image is to be had on request", "neither JPEG nor PNG, GIF, BMP, WebP, TIFF or PNM"),
    "HTML": (lambda: b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "neither JPEG nor PNG"),
    "zeros": (lambda: bytes(1000), "neither JPEG nor PNG"),
    "noise": (lambda: random(1000).tobytes(), "neither JPEG nor PNG"),
    "JPEG of zeros from the middle": (lambda: JPEG["baseline"]()[:1500] + bytes(9000), "truncated"),
    "JPEG without its end": (lambda: JPEG["baseline"]()[:-2], "truncated"),
    "progressive JPEG without its end": (lambda: JPEG["progressive"]()[:-2], "truncated"),
    "JPEG without its end, with a small JPEG in it": (
        lambda: encode(photograph(), "JPEG", exif=b"Exif\0\0" + encode(photograph(20, 20), "JPEG"))[:-100],
        "truncated",
    ),
    "JPEG without pixels": (lambda: b"\xff\xd8\xff\xd9" + bytes(20), "cannot be decoded"),
    "JPEG without a frame": (lambda: JPEG["baseline"]().replace(b"\xff\xc0", b"\xff\xe5"), "cannot be decoded"),
    "JPEG of height 0": (lambda: claiming("JPEG", 10, 0), "cannot be decoded"),
    "PNG without its end": (lambda: encode(photograph(), "PNG")[:-12], "truncated"),
    "PNG without half of its end": (lambda: encode(photograph(), "PNG")[:-3], "truncated"),
    "half a PNG": (lambda: encode(photograph(), "PNG")[:5000], "truncated"),
    "PNG with damaged pixels": (lambda: flipped(encode(photograph(), "PNG"), 5000), "damaged: a checksum is wrong"),
    "PNG with a damaged header": (lambda: flipped(encode(photograph(), "PNG"), 9), "truncated"),
    "PNG of height 0": (lambda: claiming("PNG", 10, 0), "cannot be decoded"),
    "PNG that begins with another chunk": (lambda: png((b"CgBI", b"1234"), (b"IEND", b"")), "cannot be decoded"),
    "PNG without pixels": (
        lambda: png((b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0)), (b"IEND", b"")),
        "cannot be decoded",
    ),
    "half a GIF": (lambda: encode(photograph(), "GIF")[:3000], "truncated"),
    "half a BMP": (lambda: encode(photograph(), "BMP")[:3000], "truncated"),
    "half a WebP": (lambda: encode(photograph(), "WEBP")[:500], "cannot be decoded"),
    "half a TIFF": (lambda: encode(photograph(), "TIFF")[:3000], ""),
    "text that begins as BMP": (lambda: b"BMW is the name of a firm in Munich, Bavaria", "neither JPEG nor PNG"),
    "text that begins as PNM": (lambda: b"P5 is an abbreviation", "neither JPEG nor PNG"),
    "a PNM without its end": (lambda: by_opencv(".ppm", random(9, 9, 3))[:-1], "truncated"),
    "a PNM of 16 bits without its end": (
        lambda: by_opencv(".pgm", random(9, 9, dtype=np.uint16))[:-1],
        "truncated",
    ),
    "a PFM without its end": (lambda: by_opencv(".pfm", floats(9, 9))[:-1], "truncated"),
    "a PNM without white": (lambda: b"P5 2 2 0 abcd", "cannot be decoded"),
    "half a TIFF of 16 bits": (lambda: by_opencv(".tif", random(90, 90, dtype=np.uint16))[:3000], ""),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("channels", [1, 3])
def test_bad_images_are_refused_with_the_reason_and_in_silence(kind, channels, capfd):
    make, reason = REFUSED[kind]
    with pytest.raises(BadImage) as caught:
        decode(make(), channels)
    assert str(caught.value).startswith(reason) and "\n" not in str(caught.value)
    assert ("PNG without pixels" in kind) or capfd.readouterr().err == ""


def test_damage_that_only_zlib_sees_is_refused():
    with pytest.raises(BadImage, match="cannot be decoded"):
        decode(with_false_zlib_data(), 3)


@pytest.mark.parametrize("kind", ["baseline", "progressive", "restarts", "PNG", "GIF", "BMP"])
def test_whatever_is_missing_at_the_end_is_noticed(kind):
    encoded = (JPEG | OTHERS)[kind]()
    for length in {*range(1, len(encoded) - 1, 97), *range(1, 40)}:
        with pytest.raises(BadImage):
            decode(encoded[:length], 3)


@pytest.mark.parametrize("kind", ["baseline", "progressive", "PNG", "GIF", "WebP", "BMP"])
@pytest.mark.parametrize("tail", [b"\0" * 50, b"garbage", b"\xff\xd8\xff\xe0 half of another image"])
def test_bytes_after_the_end_do_no_harm(kind, tail, capfd):
    encoded = (JPEG | OTHERS)[kind]()
    np.testing.assert_array_equal(decode(encoded + tail, 3), decode(encoded, 3))
    assert capfd.readouterr().err == ""


@pytest.mark.filterwarnings("ignore::UserWarning")  # PIL's, of a TIFF's damaged tags
def test_a_damaged_file_is_refused_or_decodes_to_the_size_in_its_header():
    generator = np.random.default_rng(0)
    whole = [make() for make in [*JPEG.values(), *OTHERS.values()]]
    outcomes = set()
    for index in range(20 * len(whole)):
        encoded = bytearray(whole[index % len(whole)])
        for at in generator.integers(0, min(len(encoded), 600), 3):
            encoded[at] = generator.integers(256)
        channels, reduce = int(generator.choice([1, 3])), int(generator.choice([1, 2, 4, 8]))
        try:
            header = read_header(bytes(encoded))
            image = decode(bytes(encoded), channels, reduce)
        except BadImage as error:
            outcomes.add(str(error).split(" ")[-1])
        else:
            outcomes.add("decoded")
            assert image.shape == (-(-header.height // reduce), -(-header.width // reduce), channels)
    assert {"decoded", "truncated", "wrong"} <= outcomes


def test_a_profile_that_libpng_would_complain_about_is_silent(capfd):
    info = PngImagePlugin.PngInfo()
    info.add(b"iCCP", b"x\0\0" + zlib.compress(b"junk" * 50))
    np.testing.assert_array_equal(decode(encode(photograph(), "PNG", pnginfo=info), 3), np.asarray(photograph()))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("path", sorted((ROOT / "flaxcnn/data/decoding").glob("*.py")), ids=lambda path: path.stem)
def test_workers_import_nothing_heavy(path):
    allowed = {
        "numpy",
        "cv2",
        "PIL",
        "flaxcnn",
    }
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    assert {module.split(".")[0] for module in imported} <= allowed | sys.stdlib_module_names
    own = {module for module in imported if module.startswith("flaxcnn.")}
    assert all(
        module.startswith("flaxcnn.data.decoding") or module == "flaxcnn.data.sources.protocol" for module in own
    )
