"""Checkpoints: the newest few and the best stay, and what comes back is what went in, bit for bit."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxcnn import UserError
from flaxcnn.models import create_model
from flaxcnn.runs import workdir
from flaxcnn.runs.checkpoint import Checkpoints
from flaxcnn.runs.checksum import checksum
from flaxcnn.runs.variables import read_variables
from flaxcnn.training.state import LoopState
from tests.variables import random_state


def carry_of(model, seed=0):
    loop_state = LoopState.start(
        random_state(model, optax.sgd(0.1, momentum=0.9), (12, 12, 1), step=seed, seed=seed)
    )
    return jax.device_put(loop_state, jax.devices()[0])


@pytest.fixture(scope="module")
def model():
    return create_model("lenet5", norm="batch_norm")


def test_what_comes_back_is_what_went_in(tmp_path, model):
    saved = carry_of(model, seed=7)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(7, saved, 0.5)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        restored = checkpoints.restore(7, carry_of(model))
    assert jax.tree.structure(saved) == jax.tree.structure(restored)
    for before, after in zip(jax.tree.leaves(saved), jax.tree.leaves(restored), strict=True):
        assert before.dtype == after.dtype and before.sharding == after.sharding
        if jnp.issubdtype(before.dtype, jax.dtypes.prng_key):
            before, after = jax.random.key_data(before), jax.random.key_data(after)
        np.testing.assert_array_equal(before, after)


def test_the_newest_and_the_best_are_kept(tmp_path, model):
    loop_state = carry_of(model)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, accuracy in ((1, 0.3), (2, 0.9), (3, 0.5), (4, None), (5, 0.6), (6, 0.7)):
            checkpoints.save(step, loop_state, accuracy)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [2, 5, 6]
        assert (checkpoints.best_step, checkpoints.latest_step) == (2, 6)


def test_an_array_may_be_donated_while_it_is_written(tmp_path, model):
    loop_state = carry_of(model, seed=3)
    expected = np.array(loop_state.state.params["fc1"]["kernel"])
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0 - 1, tree), donate_argnums=0)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, loop_state, None)
        for _ in range(20):
            params = overwrite(loop_state.state.params)
            loop_state = loop_state.replace(state=loop_state.state.replace(params=params))
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        restored = checkpoints.restore(1, carry_of(model))
    np.testing.assert_array_equal(restored.state.params["fc1"]["kernel"], expected)


def test_another_network_is_refused_in_one_line(tmp_path, model):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, carry_of(model), None)
    with Checkpoints(tmp_path, keep=1) as checkpoints, pytest.raises(UserError, match="does not fit") as raised:
        checkpoints.restore(1, carry_of(create_model("lenet5", num_classes=3)))
    assert "\n" not in str(raised.value)


def test_what_a_killed_run_left_half_written_is_cleared_by_the_next_and_not_by_a_reader(tmp_path, model):
    half = tmp_path / "checkpoints" / "5.orbax-checkpoint-tmp"
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, carry_of(model), None)
    half.mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [1]
    assert half.exists()
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(2, carry_of(model), None)
    assert not half.exists()


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def delete(path):
    path.unlink()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of tasks below orbax
@pytest.mark.parametrize(
    "damage",
    [flip_a_bit, pytest.param(truncate, marks=pytest.mark.slow), pytest.param(delete, marks=pytest.mark.slow)],
)
def test_what_is_restored_is_what_was_saved_or_is_passed_over(tmp_path, model, damage, capfd):
    """Each file of a checkpoint in turn, some of which hold nothing that is needed."""
    with Checkpoints(tmp_path / "good", keep=2) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, carry_of(model, seed=step), None)
    newest = tmp_path / "good" / "checkpoints" / "2"
    expected = {step: jax.device_get(checksum(carry_of(model, seed=step))).tolist() for step in (1, 2)}
    like = carry_of(model)
    passed_over = 0
    files = [path.relative_to(newest) for path in newest.rglob("*") if path.is_file() and path.stat().st_size]
    for number, name in enumerate(sorted(files)):
        workdir = tmp_path / str(number)
        shutil.copytree(tmp_path / "good", workdir)
        damage(workdir / "checkpoints" / "2" / name)
        warnings = []
        with Checkpoints(workdir, keep=2) as checkpoints:
            restored = checkpoints.restore_newest(like, warnings.append)
            step = int(restored.state.step)
            assert jax.device_get(checksum(restored)).tolist() == expected[step]
            assert checkpoints.steps == ([1, 2] if step == 2 else [1])
        if step == 1:
            passed_over += 1
            assert len(list((workdir / "damaged").glob("2-*"))) == len(warnings) == 1
            assert warnings[0].startswith("warning: checkpoint 2 is damaged") and "\n" not in warnings[0]
    assert passed_over >= 5
    assert not capfd.readouterr().err


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of tasks below orbax
def test_variables_are_read_without_the_optimizer_and_are_those_saved_or_an_error(tmp_path, model):
    """Each file of a checkpoint in turn; those that hold only the state of the optimizer are not needed."""
    with Checkpoints(tmp_path / "good", keep=1) as checkpoints:
        checkpoints.save(1, carry_of(model, seed=1), None)
    state, read = carry_of(model, seed=1).state, 0
    expected = {"params": state.params, "batch_stats": state.batch_stats}
    folder = tmp_path / "good" / "checkpoints" / "1"
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    for number, name in enumerate([None, *sorted(files)]):
        workdir = tmp_path / str(number)
        shutil.copytree(tmp_path / "good", workdir)
        if name:
            flip_a_bit(workdir / "checkpoints" / "1" / name)
        try:
            with Checkpoints(workdir) as checkpoints:
                found = checkpoints.restore_variables(1)
        except UserError as error:
            assert name and "checkpoint 1 is damaged" in str(error) and "\n" not in str(error)
            continue
        read += 1
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for leaf, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(leaf, other)
    assert 1 <= read < 1 + len(files)


def test_the_variables_of_several_checkpoints_are_averaged(tmp_path, model):
    with Checkpoints(tmp_path, keep=5) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, carry_of(model, seed=step), None)
    found, step = read_variables(tmp_path, "3", count=2)
    assert step == 3
    kernels = [np.asarray(carry_of(model, seed=seed).state.params["head"]["kernel"]) for seed in (2, 3)]
    np.testing.assert_allclose(found["params"]["head"]["kernel"], np.mean(kernels, axis=0), rtol=1e-6)
    with pytest.raises(UserError, match=r"has 4 checkpoints up to step 4, and 5 are to be averaged; .*keep=5"):
        read_variables(tmp_path, count=5)
    with pytest.raises(UserError, match=r"has no checkpoint '7'; write latest, best or one of 1, 2, 3, 4"):
        read_variables(tmp_path, "7")


def test_if_none_can_be_read_all_stay(tmp_path, model):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, carry_of(model, seed=step), None)
    for path in (tmp_path / "checkpoints").rglob("*METADATA"):
        path.unlink()
    before = sorted(tmp_path.rglob("*"))
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        with pytest.raises(UserError, match=r"no checkpoint in .* can be read: checkpoint 2 .*--workdir"):
            checkpoints.restore_newest(carry_of(model), print)
        assert checkpoints.steps == [1, 2]
    assert sorted(tmp_path.rglob("*")) == before


def test_the_checksum_sees_every_word_and_its_place():
    tree = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.arange(4, dtype=jnp.bfloat16), "c": jax.random.key(1)}
    sums = {tuple(jax.device_get(checksum(tree)).tolist())}
    for path in [(0, 0), (1, 2)]:
        sums.add(tuple(jax.device_get(checksum(tree | {"a": tree["a"].at[path].add(1e-6)})).tolist()))
    sums.add(tuple(jax.device_get(checksum(tree | {"a": tree["a"][::-1]})).tolist()))
    sums.add(tuple(jax.device_get(checksum(tree | {"b": tree["b"].at[1].set(1.5)})).tolist()))
    sums.add(tuple(jax.device_get(checksum(tree | {"c": jax.random.key(2)})).tolist()))
    assert len(sums) == 6


def test_a_disk_without_space_is_noticed_beforehand(tmp_path, model, monkeypatch):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(1, carry_of(model), None)
        usage = shutil._ntuple_diskusage(10 << 20, 9 << 20, 1 << 20)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(
            UserError, match=r"no space for a checkpoint: .* has 1\.0 MiB left, .*same command"
        ) as raised:
            checkpoints.save(2, carry_of(model), None)
        assert "\n" not in str(raised.value)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [1]


def test_two_runs_do_not_write_to_one_folder(tmp_path):
    second = pytest.raises(UserError, match="another process is training in")
    with workdir._locked(tmp_path), second, workdir._locked(tmp_path):
        pass
    with workdir._locked(tmp_path):
        pass
