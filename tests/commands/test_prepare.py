"""flaxcnn prepare."""

import re

from tests.images import write_folder
from tests.verbs import run


def test_prepare_says_what_there_is(capsys, tmp_path):
    code, out, _ = run(capsys, "prepare", "digits", "--data-dir", tmp_path / "data")
    assert code == 0 and out.strip().endswith("train 1,438, test 359")


def test_prepare_makes_smaller_images_of_a_folder(capsys, tmp_path):
    folder = write_folder(tmp_path / "Pets", 20)
    for number in range(9):
        for kind in ("flower", "temple", "upside_down"):
            (folder / kind / f"{number}.jpg").write_bytes(b"")
    code, out, _ = run(capsys, "prepare", f"folder:{folder}")
    assert code == 0 and out.endswith(f"folder:{folder} needs no preparation: train 48, test 12\n")
    arguments = ["prepare", f"folder:{folder}", "--resize", 32, "--data-dir", tmp_path / "sets"]
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == "" and re.match(r"error: .*\.jpg: empty file; --bad-images skip [^\n]*\n\Z", err)
    assert not (tmp_path / "sets").exists()
    code, out, err = run(capsys, *arguments, "--bad-images", "skip")
    found, *lines = out.splitlines()
    assert found == f"folder:{folder} holds 3 classes; images: train 48, test 12"
    path = tmp_path / "sets" / "pets_32" / "1.0.0"
    sizes = re.fullmatch(rf"pets_32/1\.0\.0 is prepared in {path}: train (\d+), test (\d+)", lines[0])
    assert code == 0 and err == "" and int(sizes[1]) + int(sizes[2]) == 60 - 27
    assert lines[1] == "left out, because they cannot be read: 27" and lines[-1] == "  and 7 more"
    assert len(lines) == 23 and all(line.endswith(".jpg: empty file") for line in lines[2:-1])
    code, out, _ = run(capsys, *arguments)
    assert code == 0 and out == lines[0].replace("is prepared", "is prepared already") + "\n"
