"""flaxcnn export of a run; tests/inference exports networks."""

import json
import re

import cv2
import jax
import numpy as np
from PIL import Image

from tests.images import piece, read_as_told
from tests.verbs import read_rows, run


def test_export_writes_a_program_that_predicts_the_same(trained, capsys, test_digits, tmp_path):
    workdir, _ = trained
    images = test_digits[0][:3]
    file = tmp_path / "0.png"
    cv2.imwrite(str(file), images[0])
    code, out, _ = run(capsys, "export", workdir, tmp_path / "digits")
    assert code == 0 and "digits maps uint8 images of 8x8x1 to the probabilities of 10 classes" in out
    names = json.loads((tmp_path / "digits.json").read_text())["class_names"]
    found = jax.export.deserialize(bytearray((tmp_path / "digits").read_bytes())).call(images)
    np.testing.assert_allclose(np.sum(found, axis=1), 1, rtol=1e-5)
    first = np.argsort(-np.asarray(found[0]))[:5]
    out = run(capsys, "predict", workdir, file)[1]
    expected = [(f"{found[0][index]:.4f}", names[index]) for index in first]
    assert [line[1] for line in expected] == re.findall(r"\d\.\d{4}  (\S+)", out)
    printed = [float(probability) for probability in re.findall(r"(\d\.\d{4})  ", out)]
    np.testing.assert_allclose(printed, [float(probability) for probability, _ in expected], atol=2e-4)


def test_the_json_of_a_program_tells_how_a_file_becomes_its_input(pets, trained, capsys, tmp_path):
    files = [tmp_path / name for name in ("wide.png", "exact.png", "gray.png", "tall.png", "turned.jpg")]
    cv2.imwrite(str(files[0]), piece("flower", 1, 60, 90))
    cv2.imwrite(str(files[1]), piece("flower", 2, 24, 24))
    cv2.imwrite(str(files[2]), cv2.cvtColor(piece("flower", 1, 60, 90), cv2.COLOR_RGB2GRAY))
    cv2.imwrite(str(files[3]), piece("flower", 2, 200, 31))
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    Image.fromarray(piece("temple", 3, 60, 90)).save(files[4], exif=exif)
    for workdir in (pets[0], trained[0]):
        program = tmp_path / workdir.parent.name
        assert run(capsys, "export", workdir, program)[0] == 0
        about = json.loads(program.with_name(f"{program.name}.json").read_text())
        images = np.concatenate(
            [read_as_told(file, about["image_shape"], about["preprocessing"]) for file in files]
        )
        found = jax.export.deserialize(bytearray(program.read_bytes())).call(images)
        output = program.with_name(f"{program.name}.jsonl")
        assert run(capsys, "predict", workdir, *files, "--top", 10, "--output", output)[0] == 0
        for row, probabilities in zip(read_rows(output), np.asarray(found), strict=True):
            by_class = dict(zip(about["class_names"], probabilities, strict=True))
            np.testing.assert_allclose([by_class[kind] for kind in row["classes"]], row["probabilities"], atol=0.01)
