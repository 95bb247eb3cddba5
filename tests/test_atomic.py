"""A file appears whole or not at all."""

import subprocess
import sys

import pytest

from flaxcnn.atomic import write_whole


def test_text_and_bytes_take_the_place_of_what_was_there(tmp_path):
    path = tmp_path / "file"
    write_whole(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode()
    write_whole(path, b"\0")
    assert path.read_bytes() == b"\0"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    # Larger than the process may write: as a full disk, an error in the middle of it.
    script = "import resource, sys; from pathlib import Path; from flaxcnn.atomic import write_whole\n"
    script += "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); write_whole(Path(sys.argv[1]), b'new' * 1000)"
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 1
    assert "OSError" in done.stderr
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "nowhere" / "file", "text")
