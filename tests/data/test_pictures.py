"""Decoding against PIL, closed forms and known colours; and every kind of bad picture, made here."""

import ast
import functools
import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin
from sklearn.datasets import load_sample_image

from flaxcnn.data import pictures
from flaxcnn.data.pictures import BadPicture, decode, read_header
from tests.conftest import ROOT


@functools.cache
def photograph(width=93, height=71):
    return Image.fromarray(load_sample_image("flower.jpg")).resize((width, height))


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def by_pil(encoded, mode="RGB"):
    """What PIL makes of a file, (H, W, 3) or, for mode L, (H, W, 1), int so as to be subtracted."""
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
    "grey": lambda: encode(photograph().convert("L"), "JPEG", quality=90),
    "two pictures": lambda: two_frames("MPO"),
    "one pixel": lambda: encode(photograph(1, 1), "JPEG"),
    "a long row": lambda: encode(photograph(500, 1), "JPEG"),
    "filling before a marker": lambda: JPEG["baseline"]().replace(b"\xff\xdb", b"\xff\xff\xff\xdb", 1),
}
# All lossless, or decoded by the one decoder of the format, so that PIL's pixels are the only right ones.
OTHERS = {
    "PNG": lambda: encode(photograph(), "PNG"),
    "PNG, grey": lambda: encode(photograph().convert("L"), "PNG"),
    "PNG, black and white": lambda: encode(photograph().convert("1"), "PNG"),
    "PNG, palette": lambda: encode(photograph().quantize(200), "PNG"),
    "PNG, palette of 4 bits": lambda: encode(photograph().quantize(9), "PNG"),
    "PNG, transparent palette": lambda: encode(photograph().quantize(64), "PNG", transparency=bytes(range(64))),
    "PNG, transparent colour": lambda: encode(photograph(), "PNG", transparency=photograph().getpixel((3, 3))),
    "PNG, alpha": lambda: encode(with_alpha(), "PNG"),
    "PNG, grey and alpha": lambda: encode(with_alpha().convert("LA"), "PNG"),
    "PNG, 16 bits": lambda: cv2.imencode(".png", random(9, 7, 3, dtype=np.uint16))[1].tobytes(),
    "PNG, 16 bits and alpha": lambda: cv2.imencode(".png", random(9, 7, 4, dtype=np.uint16))[1].tobytes(),
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


def check(picture, header, channels):
    assert picture.dtype == np.uint8 and picture.flags.c_contiguous and picture.flags.writeable
    assert picture.shape == (header.height, header.width, channels)


@pytest.mark.parametrize("kind", JPEG)
def test_jpeg_is_decoded_as_by_pil(kind, capfd):
    encoded = JPEG[kind]()
    header = read_header(encoded)
    assert header.format == "JPEG"
    for channels in (1, 3):
        picture = decode(encoded, channels)
        check(picture, header, channels)
        image = Image.open(io.BytesIO(encoded))
        if channels == 1:
            image.draft("L", None)  # the luma as stored
        expected = np.asarray(image.convert("L" if channels == 1 else "RGB"), int).reshape(picture.shape)
        assert np.abs(picture - expected).max() <= 1
    assert capfd.readouterr().err == ""


def without_adobe_marker(encoded):
    at = encoded.index(b"\xff\xee\x00\x0eAdobe")
    return encoded[:at] + encoded[at + 16 :]


def four_components(kind):
    """The photograph in inks without black. PIL writes Adobe's marker, and the inks upside down as Adobe does."""
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
def test_four_colour_components_give_the_colours_that_went_in(kind):
    encoded = four_components(kind)
    header = read_header(encoded)
    picture, grey = decode(encoded, 3), decode(encoded, 1)
    check(picture, header, 3)
    check(grey, header, 1)
    np.testing.assert_array_equal(picture, by_pil(encoded))
    assert np.abs(picture - np.asarray(photograph(), float)).mean() < 2.5
    assert np.abs(grey - luma(picture)).max() < 0.51


@pytest.mark.filterwarnings("ignore:Palette images")  # of PIL in the test
@pytest.mark.parametrize("kind", OTHERS)
def test_other_formats_are_decoded_as_by_pil(kind):
    encoded = OTHERS[kind]()
    header = read_header(encoded)
    assert header.format == kind.split(",")[0]
    picture, grey = decode(encoded, 3), decode(encoded, 1)
    check(picture, header, 3)
    check(grey, header, 1)
    np.testing.assert_array_equal(picture, by_pil(encoded))
    assert np.abs(grey - luma(picture)).max() < 0.51


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits_of_grey_are_scaled_to_eight(kind):
    values = random(20, 30, dtype=np.uint16)
    encoded = cv2.imencode(f".{kind}", values)[1].tobytes()
    for channels in (1, 3):
        expected = np.repeat(values[..., None] // 256, channels, axis=2)
        np.testing.assert_array_equal(decode(encoded, channels), expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_turns_the_picture_upright(kind, orientation, order):
    exif = Image.Exif()
    exif.endian = order
    exif[0x010F] = "maker"  # an entry before the one that counts
    exif[0x0112] = orientation
    encoded = encode(photograph(), kind, exif=exif)
    header = read_header(encoded)
    assert (header.width, header.height) == ((93, 71) if orientation < 5 else (71, 93))
    assert Image.open(io.BytesIO(encoded)).getexif()[0x0112] == orientation
    expected = by_pil(encoded)
    picture, half = decode(encoded, 3), decode(encoded, 1, 2)
    check(picture, header, 3)
    assert np.abs(picture - expected).max() <= (1 if kind == "JPEG" else 0)
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
def test_exif_that_makes_no_sense_is_left_aside(exif):
    encoded = encode(photograph(), "JPEG", exif=exif)
    assert read_header(encoded).orientation == 1
    np.testing.assert_array_equal(decode(encoded, 3), decode(encode(photograph(), "JPEG"), 3))


@pytest.mark.parametrize("reduce", [2, 4, 8])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "CMYK"])
def test_a_reduced_picture_is_that_of_the_means_of_blocks(kind, channels, reduce):
    encoded = four_components(kind) if kind == "CMYK" else encode(photograph(301, 203), kind)
    full = decode(encoded, channels).astype(float)
    padded = np.pad(full, [(0, -side % reduce) for side in full.shape[:2]] + [(0, 0)], mode="edge")
    rows, columns = padded.shape[0] // reduce, padded.shape[1] // reduce
    blocks = padded.reshape(rows, reduce, columns, reduce, channels).mean((1, 3))
    picture = decode(encoded, channels, reduce)
    assert picture.dtype == np.uint8 and picture.flags.c_contiguous and picture.shape == blocks.shape
    if kind == "JPEG":  # the decoder's are means of the cosines, and of the colours before they are cut off
        assert np.abs(picture - blocks)[:-1, :-1].mean() < 1
    else:
        assert np.abs(picture - blocks).max() < 0.51


def test_content_decides_and_a_header_can_be_handed_on(monkeypatch):
    encoded = encode(photograph(), "PNG")
    header = read_header(encoded)
    assert header.format == "PNG"
    monkeypatch.setattr(pictures, "read_header", None)
    np.testing.assert_array_equal(decode(encoded, 3, 1, header), np.asarray(photograph()))


def claiming(kind, width, height):
    """A picture of a few hundred bytes whose header says width x height."""
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
def test_an_enormous_picture_is_refused_by_its_header(kind, monkeypatch, recwarn):
    side = 16000 if kind == "WebP" else 30000
    enormous, largest = claiming(kind, side, side - 1), claiming(kind, 10000, 10000)
    monkeypatch.setattr(cv2, "imdecode", None)
    monkeypatch.setattr(Image.Image, "convert", None)
    for read in (read_header, lambda encoded: decode(encoded, 3)):
        with pytest.raises(BadPicture) as caught:
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
    "text": (lambda: b"the picture is to be had on request", "neither JPEG nor PNG, GIF, BMP, WebP or TIFF"),
    "HTML": (lambda: b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "neither JPEG nor PNG"),
    "zeros": (lambda: bytes(1000), "neither JPEG nor PNG"),
    "noise": (lambda: random(1000).tobytes(), "neither JPEG nor PNG"),
    "JPEG of zeros from the middle": (lambda: JPEG["baseline"]()[:1500] + bytes(9000), "truncated"),
    "JPEG without its end": (lambda: JPEG["baseline"]()[:-2], "truncated"),
    "progressive JPEG without its end": (lambda: JPEG["progressive"]()[:-2], "truncated"),
    "JPEG without its end, with that of a small picture in it": (
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
    "PNG that begins otherwise": (lambda: png((b"CgBI", b"1234"), (b"IEND", b"")), "cannot be decoded"),
    "PNG without pixels": (
        lambda: png((b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0)), (b"IEND", b"")),
        "cannot be decoded",
    ),
    "half a GIF": (lambda: encode(photograph(), "GIF")[:3000], "truncated"),
    "half a BMP": (lambda: encode(photograph(), "BMP")[:3000], "truncated"),
    "half a WebP": (lambda: encode(photograph(), "WEBP")[:500], "cannot be decoded"),
    "half a TIFF": (lambda: encode(photograph(), "TIFF")[:3000], ""),
    "text that begins as BMP": (lambda: b"BMW is the name of a firm in Munich, Bavaria", "cannot be decoded"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("channels", [1, 3])
def test_bad_pictures_are_refused_with_the_reason_and_in_silence(kind, channels, capfd):
    make, reason = REFUSED[kind]
    with pytest.raises(BadPicture) as caught:
        decode(make(), channels)
    assert str(caught.value).startswith(reason) and "\n" not in str(caught.value)
    assert ("PNG without pixels" in kind) or capfd.readouterr().err == ""


def test_damage_that_only_zlib_sees_is_refused():
    with pytest.raises(BadPicture, match="cannot be decoded"):
        decode(with_false_zlib_data(), 3)


@pytest.mark.parametrize("kind", ["baseline", "progressive", "restarts", "PNG", "GIF", "BMP"])
def test_whatever_is_missing_at_the_end_is_noticed(kind):
    encoded = (JPEG | OTHERS)[kind]()
    for length in {*range(1, len(encoded) - 1, 97), *range(1, 40)}:
        with pytest.raises(BadPicture):
            decode(encoded[:length], 3)


@pytest.mark.parametrize("kind", ["baseline", "progressive", "PNG", "GIF", "WebP", "BMP"])
@pytest.mark.parametrize("tail", [b"\0" * 50, b"garbage", b"\xff\xd8\xff\xe0 half of another picture"])
def test_bytes_after_the_end_do_no_harm(kind, tail, capfd):
    encoded = (JPEG | OTHERS)[kind]()
    np.testing.assert_array_equal(decode(encoded + tail, 3), decode(encoded, 3))
    assert capfd.readouterr().err == ""


@pytest.mark.filterwarnings("ignore::UserWarning")  # PIL's, of a TIFF's damaged tags
def test_damage_gives_a_picture_of_the_size_told_or_a_refusal():
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
            picture = decode(bytes(encoded), channels, reduce)
        except BadPicture as error:
            outcomes.add(str(error).split(" ")[-1])
        else:
            outcomes.add("decoded")
            assert picture.shape == (-(-header.height // reduce), -(-header.width // reduce), channels)
    assert {"decoded", "truncated", "wrong"} <= outcomes


def test_a_profile_that_libpng_would_remark_on_is_silent(capfd):
    info = PngImagePlugin.PngInfo()
    info.add(b"iCCP", b"x\0\0" + zlib.compress(b"junk" * 50))
    np.testing.assert_array_equal(decode(encode(photograph(), "PNG", pnginfo=info), 3), np.asarray(photograph()))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["pictures", "crops"])
def test_workers_import_nothing_heavy(name):
    allowed = {
        "numpy",
        "cv2",
        "PIL",
        "flaxcnn",
        "collections",
        "contextlib",
        "io",
        "math",
        "struct",
        "typing",
        "zlib",
    }
    imported = set()
    for node in ast.walk(ast.parse((ROOT / "flaxcnn/data" / f"{name}.py").read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    assert {module.split(".")[0] for module in imported} <= allowed
    assert {module for module in imported if module.startswith("flaxcnn")} <= {"flaxcnn.data.pictures"}
