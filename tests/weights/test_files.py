import copyreg
import io
import math
import pickle
import pickletools
import random
import shlex
import struct
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from flaxcnn.errors import UserError
from flaxcnn.weights import pickles
from flaxcnn.weights.files import read_state_dict

DATA = Path(__file__).parent / "data"
STATES = ["state_zip.pth", "state_zip_protocol4.pth", "state_legacy.pth", "state_legacy_protocol4.pth"]
DTYPES = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8"]


def ramp(*shape, dtype="float32"):
    return np.arange(math.prod(shape)).reshape(shape).astype(dtype)


def expected_state():
    """What make_torch_files.py saved."""
    return {
        "0.weight": ramp(3, 2, 2, 2),
        "0.bias": ramp(3),
        **{f"1.{name}": ramp(3) for name in ("weight", "bias", "running_mean", "running_var")},
        "1.num_batches_tracked": np.array(41),
        **{f"dtypes.{name}": ramp(2, 3, dtype=name) for name in DTYPES},
        "dtypes.bfloat16": ramp(2, 3, dtype=ml_dtypes.bfloat16),
        "dtypes.bool": np.array([[False, True, False], [True, False, True]]),
        "views.transposed": ramp(3, 4).T,
        "views.strided": ramp(4, 6)[1:, ::2],
        "views.shared": ramp(24)[6:12],
        "views.tied": ramp(3, 2, 2, 2),
        "scalar": np.array(7.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "parameter": ramp(2, 2),
    }


def assert_equal(state, expected):
    assert set(state) == set(expected)
    for name, array in expected.items():
        assert state[name].dtype == array.dtype and state[name].shape == array.shape, name
        np.testing.assert_array_equal(state[name], array, err_msg=name)


def refusal(path):
    """The one line with which a file is refused, without its path and without memory having been spent."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as caught:
            read_state_dict(path)
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert "\n" not in message and len(message) < len(str(path)) + 300
    assert str(path) in message
    return message.replace(str(path), "FILE")


# Pickles built instruction by instruction.


def literal(value):
    return pickle.dumps(value, 2)[2:-1]


def storage(key="0", numel=6, kind=b"torch\nFloatStorage", view=()):
    rest = b"".join(map(literal, (key, "cpu", numel, *view)))
    return b"(" + literal("storage") + b"c" + kind + b"\n" + rest + b"tQ"


def tensor(stored=None, offset=0, size=(2, 3), stride=(3, 1)):
    arguments = (stored or storage()) + b"".join(map(literal, (offset, size, stride, False)))
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"ccollections\nOrderedDict\n)RtR"


def state_pickle(**entries):
    return b"\x80\x02}(" + b"".join(literal(name) + value for name, value in entries.items()) + b"u."


def write_zip(path, program, records=None, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program)
        for name, content in (records or {"data/0": ramp(6).tobytes()}).items():
            archive.writestr(f"archive/{name}", content)
    return path


def write_legacy(path, program, storages=None):
    storages = {"0": ramp(6)} if storages is None else storages
    head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    data = [struct.pack("<q", array.size) + array.tobytes() for array in storages.values()]
    path.write_bytes(b"".join([*head, program, pickle.dumps(list(storages), 2), *data]))
    return path


WRITERS = pytest.mark.parametrize("write", [write_zip, write_legacy])


@pytest.mark.parametrize("file_name", STATES)
def test_torch_files_are_read_as_saved(file_name):
    state = read_state_dict(DATA / file_name)
    assert_equal(state, expected_state())
    assert list(state)[:2] == ["0.weight", "0.bias"]
    assert np.shares_memory(state["views.tied"], state["0.weight"])


def test_the_format_is_told_from_the_content_not_the_name(tmp_path):
    save_file({"w": ramp(2)}, tmp_path / "w.pth")
    assert_equal(read_state_dict(tmp_path / "w.pth"), {"w": ramp(2)})
    for number, file_name in enumerate(STATES):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes((DATA / file_name).read_bytes())
        assert_equal(read_state_dict(path), expected_state())


def test_safetensors_keep_every_dtype(tmp_path):
    state = {name: ramp(2, 3, dtype=name) for name in DTYPES}
    state |= {"bfloat16": ramp(4, dtype=ml_dtypes.bfloat16), "bool": np.array([True, False])}
    state |= {"scalar": np.array(7.5), "empty": np.zeros((0, 3), np.float16)}
    save_file(state, tmp_path / "w.safetensors")
    assert_equal(read_state_dict(tmp_path / "w.safetensors"), state)


@WRITERS
def test_hand_made_files_are_read(write, tmp_path):
    """The files that the tests below spoil are right before they are spoiled."""
    program = state_pickle(w=tensor(), v=tensor(offset=5, size=(), stride=()))
    state = read_state_dict(write(tmp_path / "w.pth", program))
    assert_equal(state, {"w": ramp(2, 3), "v": np.array(5, np.float32)})


def test_files_of_python_2_are_read(tmp_path):
    """They have an OrderedDict's items in its constructor's argument, and strings of bytes."""
    old = tensor().replace(b"_rebuild_tensor_v2", b"_rebuild_tensor").replace(literal(False), b"", 1)
    old = old.replace(b"ccollections\nOrderedDict\n)R", b"")
    program = b"\x80\x02ccollections\nOrderedDict\n](](U\x01w" + old + b"eea\x85R}U\x09_metadata}sb."
    program = program.replace(b"](](", b"](]q\x07(").replace(b"eea", b"ee")
    assert_equal(read_state_dict(write_legacy(tmp_path / "w.pth", program)), {"w": ramp(2, 3)})


def test_a_storage_within_another_is_read_and_stays_within(tmp_path):
    def program(first, length):
        return state_pickle(w=tensor(storage(view=[("1", first, length)]), size=(2,), stride=(1,)))

    assert_equal(read_state_dict(write_legacy(tmp_path / "w.pth", program(4, 2))), {"w": ramp(6)[4:]})
    assert "beyond" in refusal(write_legacy(tmp_path / "w.pth", program(4, 3)))
    assert "beyond" in refusal(write_legacy(tmp_path / "w.pth", program(5, 1)))
    assert "impossible" in refusal(write_legacy(tmp_path / "w.pth", program(-1, 2)))


def test_big_endian_records_are_turned_round(tmp_path):
    for byteorder, stored in (("big", ">f4"), ("little", "<f4")):
        records = {"data/0": ramp(6).astype(stored).tobytes(), "byteorder": byteorder.encode()}
        path = write_zip(tmp_path / "w.pth", state_pickle(w=tensor()), records)
        assert_equal(read_state_dict(path), {"w": ramp(2, 3)})


# Programs in place of tensors. The marker is the file that each would make.


def programs(marker):
    shell, python = f"touch {shlex.quote(str(marker))}", f"__import__('pathlib').Path({str(marker)!r}).touch()"
    short, popen = shell.encode(), literal((["touch", str(marker)],))
    system = b"\x80\x02cos\nsystem\n" + literal(shell) + b"\x85R"
    return {
        "reduce": (system + b".", "os.system"),
        "reduce, then a state dict": (system + b"0" + state_pickle(w=tensor())[2:], "os.system"),
        "within a tensor": (state_pickle(v=tensor(), w=system[2:]), "os.system"),
        "stack_global": (
            b"\x80\x04\x8c\x02os\x8c\x06system\x93X" + struct.pack("<I", len(short)) + short + b"\x85R.",
            "os.system",
        ),
        "inst": (b"(" + literal(shell) + b"ios\nsystem\n.", "os.system"),
        "obj": (b"(cos\nsystem\n" + literal(shell) + b"o.", "os.system"),
        "eval": (b"\x80\x02c__builtin__\neval\n" + literal(python) + b"\x85R.", "__builtin__.eval"),
        "newobj": (b"\x80\x02csubprocess\nPopen\n" + popen + b"\x81.", "subprocess.Popen"),
        "extension": (b"\x80\x02\x82\x42" + literal(shell) + b"\x85R.", "EXT1"),
        "setstate": (
            b"\x80\x02cfunctools\npartial\ncos\nsystem\n\x85R(cos\nsystem\n" + literal((shell,)) + b"}Ntb)R.",
            "functools.partial",
        ),
        "torch": (b"\x80\x02ctorch.hub\nload\n" + literal(shell) + b"\x85R.", "torch.hub.load"),
        "attribute": (b"\x80\x04\x8c\x0ccollections \x8c\x14OrderedDict.__init__\x93.", "collections"),
    }


@pytest.fixture
def cached_extension():
    """An extension code for os.system that has been used: Python's own machine then asks nobody."""
    copyreg.add_extension("os", "system", 0x42)
    pickle.loads(b"\x80\x02\x82\x42.")
    yield
    copyreg.remove_extension("os", "system", 0x42)
    copyreg._extension_cache.clear()


NAMES = list(programs(Path("marker")))


@WRITERS
@pytest.mark.parametrize("name", NAMES)
def test_no_program_is_run(write, name, tmp_path, cached_extension):
    marker = tmp_path / "marker"
    program, called = programs(marker)[name]
    message = refusal(write(tmp_path / "w.pth", program))
    assert called in message and "it is refused" in message and "state_dict" in message
    assert not marker.exists()


@pytest.mark.parametrize("name", ["reduce", "stack_global", "inst", "obj", "eval", "extension", "setstate"])
def test_the_programs_are_live(name, tmp_path, cached_extension):
    program, _ = programs(tmp_path / "marker")[name]
    pickle.loads(program)
    assert (tmp_path / "marker").exists()


def test_no_program_is_run_in_place_of_the_magic_number_or_the_keys(tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "w.pth"
    program, called = programs(marker)["reduce"]
    path.write_bytes(program)
    assert called in refusal(path)
    write_legacy(path, state_pickle(w=tensor()))
    content = path.read_bytes()
    path.write_bytes(content.replace(pickle.dumps(["0"], 2), program))
    assert called in refusal(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "target",
    [b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n", tensor()],
    ids=["function", "class", "tensor"],
)
@pytest.mark.parametrize("state", [{"__defaults__": (1,)}, (None, {"__defaults__": (1,)})], ids=["dict", "slots"])
def test_no_attribute_is_set(target, state, tmp_path):
    program = state_pickle(w=target + literal(state) + b"b")
    assert "would set attributes" in refusal(write_zip(tmp_path / "w.pth", program))
    assert pickles._rebuild_tensor.__defaults__ is None


def test_what_an_ordered_dict_is_told_to_be_is_ignored(tmp_path):
    state = {"_metadata": {"": 1}, "items": 3, "__class__": 4}
    for attributes in (state, (state, state)):
        program = state_pickle(w=tensor())[:-1] + literal(attributes) + b"b."
        assert_equal(read_state_dict(write_zip(tmp_path / "w.pth", program)), {"w": ramp(2, 3)})


@WRITERS
@pytest.mark.parametrize(
    ("program", "words"),
    [
        (state_pickle(w=tensor(offset=1)), "'w' reaches beyond its storage"),
        (state_pickle(w=tensor(stride=(4, 1))), "'w' reaches beyond its storage"),
        (state_pickle(w=tensor(offset=-1)), "impossible size"),
        (state_pickle(w=tensor(stride=(-3, 1))), "impossible size"),
        (state_pickle(w=tensor(size=(-2, 3))), "impossible size"),
        (state_pickle(w=tensor(size=(2**63, 1))), "impossible size"),
        (state_pickle(w=tensor(size=(2.0, 3))), "impossible size"),
        (state_pickle(w=tensor(size=(6,))), "ill-formed"),
        (state_pickle(w=tensor(size=(1,) * 65, stride=(1,) * 65)), "ill-formed"),
        (state_pickle(w=tensor(stored=literal("0"))), "ill-formed"),
        (state_pickle(w=tensor(size=(2**40, 3), stride=(0, 1))), "repeats elements"),
        (state_pickle(w=tensor(storage(numel=2**40))), "declares more data than it has"),
        (state_pickle(w=tensor(storage(numel=10**5000))), "declares more data than it has"),
        (state_pickle(w=tensor(storage(numel=-1))), "impossible size"),
        (state_pickle(w=tensor(storage(numel=7))), "instead of"),
        (state_pickle(w=tensor(storage(numel=5))), "instead of"),
        (state_pickle(w=tensor(storage(key="../0"))), "damaged"),
        (state_pickle(w=tensor(), v=tensor(storage(numel=5))), "declared twice"),
        (state_pickle(w=tensor(), v=tensor(storage(kind=b"torch\nIntStorage"))), "declared twice"),
        (state_pickle(w=tensor(storage(kind=b"torch\nQInt8Storage"))), "torch.QInt8Storage"),
        (state_pickle(w=tensor(storage(kind=b"os\nStorage"))), "os.Storage"),
        (state_pickle(w=tensor(), epoch=literal(3)), "'epoch' of type int"),
        (state_pickle(w=tensor(), model=literal({})), "save its 'model' alone"),
        (b"\x80\x02}" + literal(3) + tensor() + b"s.", "holds 3 of type Tensor"),
        (b"\x80\x02" + tensor() + b".", "a single tensor"),
        (b"\x80\x02" + literal([1]) + b".", "a list instead of a state dict"),
        (b"\x80\x02}.", "no tensors"),
        (b"\x80\x02}()Nu.", "a dict is ill-formed"),
        (b"\x80\x02N)R.", "calls what is no function"),
        (b"\x80\x02Paddress\n.", "PERSID"),
        (b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"w.", "damaged"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"w.", "damaged"),
        (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"w.", "damaged"),
        (b"\x80\x02.", "damaged"),
        (b"\x80\x02}h\x05.", "damaged"),
        (b"\x80\x02}t.", "damaged"),
        (b"\x80\x02\xff.", "damaged"),
    ],
)
def test_what_makes_no_sense_is_refused_before_memory_is_spent(write, program, words, tmp_path):
    assert words in refusal(write(tmp_path / "w.pth", program))


def test_a_huge_memo_index_costs_nothing(tmp_path):
    program = state_pickle(w=tensor()).replace(b"}", b"}r\xff\xff\xff\xff", 1)
    tracemalloc.start()
    read_state_dict(write_zip(tmp_path / "w.pth", program))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6


def test_tuples_that_double_are_neither_hashed_nor_printed(tmp_path):
    path, doubling = tmp_path / "w.pth", b")" + b"q\x00h\x00\x86" * 22
    assert "a dict is ill-formed" in refusal(write_zip(path, b"\x80\x02}" + doubling + b"Ns."))
    assert "damaged" in refusal(write_zip(path, b"\x80\x04" + doubling + literal("run") + b"\x93."))
    keys = pickle.dumps(["0"], 2)
    content = write_legacy(path, state_pickle(w=tensor())).read_bytes()
    path.write_bytes(content.replace(keys, b"\x80\x02]" + doubling + b"a."))
    assert "key is no string" in refusal(path)


def test_zip_archives_with_wrong_records_are_refused(tmp_path):
    path, program = tmp_path / "w.pth", state_pickle(w=tensor())
    assert "data/0" in refusal(write_zip(path, program, {"data/1": b""}))
    assert "24 bytes" not in refusal(write_zip(path, program, {"data/0": bytes(23)}))
    assert "is not stored" in refusal(write_zip(path, program, compression=zipfile.ZIP_DEFLATED))
    assert "is not stored" in refusal(write_zip(path, bytes(10**7), compression=zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "nothing")
    assert "a zip archive, but not one that torch.save wrote" in refusal(path)
    write_zip(path, program)
    content = path.read_bytes()
    path.write_bytes(content.replace(ramp(6).tobytes(), bytes(24)))
    assert "CRC" in refusal(path)
    entry = content.rindex(b"PK\1\2")  # of data/0; at 20 its size, at 24 the size unpacked
    huge = struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0)
    path.write_bytes(content[: entry + 20] + huge + content[entry + 28 :])
    assert "is not stored" in refusal(path)


@pytest.mark.parametrize("file_name", STATES)
def test_truncated_files_are_refused(file_name, tmp_path):
    content, path = (DATA / file_name).read_bytes(), tmp_path / "w.pth"
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        refusal(path)


@pytest.mark.parametrize("file_name", STATES)
def test_spoiled_bytes_give_a_clean_error_or_another_number(file_name, tmp_path):
    content, path, random_ = (DATA / file_name).read_bytes(), tmp_path / "w.pth", random.Random(0)
    refused = 0
    for _ in range(80):
        spoiled = bytearray(content)
        for _ in range(3):
            spoiled[random_.randrange(len(content))] = random_.randrange(256)
        path.write_bytes(spoiled)
        try:
            read_state_dict(path)
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 10


def test_safetensors_that_make_no_sense_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"w": ramp(2, 3)}, path)
    content = path.read_bytes()
    for spoiled in (content[:-1], content[:40], content.replace(b"[2,3]", b"[9,9]")):
        path.write_bytes(spoiled)
        assert "is damaged" in refusal(path)
    header = b'{"w":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(2))
    assert "number format" in refusal(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "a git-lfs pointer"),
        (b"\n<!DOCTYPE html><html><head></head></html>", "a web page"),
        (b"", "not a weight file"),
        (b"some text", "not a weight file"),
        (pickle.dumps({"w": 1}), "a pickle, but not one that torch.save wrote"),
    ],
)
def test_files_of_other_kinds_are_named(content, words, tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    assert words in refusal(path)


def test_a_missing_file_is_an_error_with_the_nearest_name(tmp_path):
    (tmp_path / "resnet.pth").touch()
    assert refusal(tmp_path / "resnt.pth") == "no weight file FILE; did you mean resnet.pth?"
    assert refusal(tmp_path / "none" / "resnet.pth") == "no weight file FILE"
    assert "Is a directory" in refusal(tmp_path)


def test_other_things_that_torch_saves_are_named():
    assert "would run torch.nn.modules.linear.Linear" in refusal(DATA / "module.pth")
    assert "'epoch' of type int, which is no tensor; save its 'model' alone" in refusal(DATA / "checkpoint.pth")
    assert "'weight' as a view that repeats elements" in refusal(DATA / "expanded.pth")
    assert "a single tensor" in refusal(DATA / "tensor.pth")


def test_hostile_names_stay_on_one_short_line(tmp_path):
    name = "evil\nname\x1b[2J" * 1000
    program = b"\x80\x04" + literal(name) + literal("run") + b"\x93)R."
    assert r"evil\nname\x1b" in refusal(write_zip(tmp_path / "w.pth", program))
    assert r"evil\nname\x1b" in refusal(write_zip(tmp_path / "w.pth", state_pickle(**{name: literal(1)})))


def test_the_pickles_of_the_data_use_only_known_instructions():
    """The test files hold what they are there for: among others, metadata and a parameter."""
    with zipfile.ZipFile(DATA / "state_zip.pth") as archive:
        program = archive.read("state_zip/data.pkl")
    names = {opcode.name for opcode, _, _ in pickletools.genops(io.BytesIO(program))}
    assert {"BUILD", "REDUCE", "BINPERSID"} <= names
    assert b"_metadata" in program and b"_rebuild_parameter" in program
