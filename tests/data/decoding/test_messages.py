"""Decoders that write to standard error: at most one of their messages is shown, and nothing else is lost."""

import io
import struct
import subprocess
import sys
import textwrap
import zlib

import numpy as np
import pytest
from PIL import Image

from flaxcnn.data.decoding import images
from tests.conftest import ROOT


def encode(kind, number, **options):
    pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if kind == "PNG" else pixels).save(file, kind, **options)
    return file.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def disliked_png(number):
    """A gray PNG with the profile of a color PNG, and a wrong number of significant bits."""
    profile = bytearray(200)
    profile[:4], profile[8], profile[12:20], profile[36:40] = struct.pack(">I", 200), 2, b"mntrRGB ", b"acsp"
    png = encode("PNG", number)
    return png[:33] + chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(profile))) + chunk(b"sBIT", b"\x09") + png[33:]


def damaged_jpeg(number):
    jpeg = encode("JPEG", number)
    return jpeg[:-40] + bytes(20) + jpeg[-20:]


def odd_tiff(number):
    """A TIFF with an unknown tag."""
    tiff = bytearray(encode("TIFF", number, compression="tiff_lzw"))
    (at,) = struct.unpack_from("<I", tiff, 4)
    (entries,) = struct.unpack_from("<H", tiff, at)
    struct.pack_into("<H", tiff, at + 2 + 12 * (entries - 1), 65000)
    return bytes(tiff)


KINDS = {"png": disliked_png, "jpg": damaged_jpeg, "tif": odd_tiff}

FEED = """
import sys
import numpy as np
from flaxcnn.config import DataConfig, TrainConfig
from flaxcnn.data.loading.loader import open_loaders
from flaxcnn.data.loading.sampler import BatchIndices
from flaxcnn.training.setup import open_dataset
from flaxcnn.parallel.strategy import Strategy

_, path, loading, workers = sys.argv
data = DataConfig(name=f"folder:{path}", image_size=16, loading=loading, workers=int(workers), bad_images="skip")
config = TrainConfig(data=data)
datasets = {split: open_dataset(config, split, training=False) for split in ("train", "test")}
with open_loaders(data, Strategy("jit"), datasets, dict.fromkeys(datasets, 16), 2**30) as loaders:
    for epoch in range(2):
        for loader in loaders.values():
            indices = [BatchIndices(epoch, np.arange(16, dtype=np.int32), np.ones(16, np.float32))] * 3
            batches = loader.batches(iter(indices))
            for _ in indices:
                batches.next()
            batches.close()
print("the end", file=sys.stderr)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("flood")
    for kind in ("a", "b"):
        (path / kind).mkdir()
        for number in range(30):
            for ending, make in KINDS.items():
                (path / kind / f"{number}.{ending}").write_bytes(make(number))
    return path


def test_decoders_complain_about_the_inputs(folder):
    code = "import cv2, sys; [cv2.imread(path) for path in sys.argv[1:]]"
    files = [str(folder / "a" / f"{number}.{ending}") for number in range(3) for ending in ("png", "jpg")]
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=True)
    assert done.stderr.count("\n") >= 6


@pytest.mark.parametrize(("loading", "workers"), [("memory", 0), ("stream", 0), ("stream", 2)])
def test_one_of_all_messages_is_shown(folder, loading, workers):
    command = [sys.executable, "-c", FEED, str(folder), loading, str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    lines = done.stderr.splitlines()
    assert lines[-1] == "the end" and len(lines) == 2 and "Corrupt JPEG" in lines[0]


def test_pngs_give_no_message_and_the_same_pixels(capfd):
    for number in range(5):
        expected = np.asarray(Image.open(io.BytesIO(encode("PNG", number))))
        np.testing.assert_array_equal(images.decode(disliked_png(number), 1)[..., 0], expected)
    assert capfd.readouterr().err == ""


def test_what_others_write_in_the_meantime_is_passed_on():
    code = """
        import os, sys, threading
        from flaxcnn.data.decoding import messages
        with messages.caught():
            print("left out: something", file=sys.stderr)
            os.write(2, b"libpng warning: a message\\nof another library\\n")
            with messages.caught():
                os.write(2, b"Corrupt JPEG data: a second one\\n")
        print("after", file=sys.stderr)
        for _ in range(3):
            messages.tell(messages.take())
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    first, second, third, fourth = done.stderr.splitlines()
    assert (first, second, third) == ("left out: something", "of another library", "after")
    assert fourth.startswith("libpng warning: a message")


def test_without_standard_error_it_decodes():
    code = """
        import os, sys
        from flaxcnn.data.decoding import images
        os.close(2)
        assert images.decode(sys.stdin.buffer.read(), 3).shape == (20, 24, 3)
        """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], input=damaged_jpeg(0), check=True, cwd=ROOT)
