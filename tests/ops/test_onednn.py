"""Convolutions by oneDNN: JAX's own numbers, in every process, thread and program; and what has none of it."""

import concurrent.futures
import functools
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from flaxcnn.ops import onednn, stock_operations
from flaxcnn.ops.convolution import convolution
from tests.ops.test_convolution import CASES, DEPTHWISE, GROUPED, PLAIN, arguments, value_and_gradients

needs_library = pytest.mark.skipif(onednn.programs() is None, reason="oneDNN is not installed")
PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def applied(case, dtype):
    x, kernel, fields = arguments(*case, np.float32)
    return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype), functools.partial(convolution, **fields)


def calls(function, *arguments):
    return jax.jit(function).lower(*arguments).as_text().count(f"@{onednn.NAME}(")


@needs_library
def test_what_is_computed_by_the_library():
    x, kernel, convolve = applied(GROUPED, "float32")
    run = functools.partial(value_and_gradients, convolve)
    assert calls(run, x, kernel) == 3
    with stock_operations():
        assert calls(run, x, kernel) == 0
    assert "custom_call" not in jax.export.export(jax.jit(run))(x, kernel).mlir_module()


@needs_library
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", [PLAIN, GROUPED, DEPTHWISE, *CASES[-6:]], ids=str)
def test_what_the_shared_space_held_before_does_not_matter(case, dtype):
    x, kernel, convolve = applied(case, dtype)
    run = jax.jit(functools.partial(value_and_gradients, convolve)).lower(x, kernel).compile()
    results = []
    for byte in (0, 255):  # zeros, and what is not a number
        onednn.programs()._space[:] = byte
        results.append(jax.device_get(run(x, kernel)))
    for one, other in zip(*results, strict=True):
        assert np.isfinite(one.astype(np.float32)).all()
        np.testing.assert_array_equal(one, other)


def test_without_the_library_jax_computes(monkeypatch):
    monkeypatch.setattr(onednn, "programs", lambda: None)
    x, kernel, convolve = applied(PLAIN, "float32")
    run = functools.partial(value_and_gradients, convolve)
    assert calls(run, x, kernel) == 0
    with stock_operations():
        expected = run(x, kernel)
    for one, other in zip(run(x, kernel), expected, strict=True):
        np.testing.assert_array_equal(one, other)


@needs_library
def test_programs_run_side_by_side():
    programs = []
    for case in (PLAIN, GROUPED, DEPTHWISE, CASES[8]):
        x, kernel, convolve = applied(case, "float32")
        run = jax.jit(functools.partial(value_and_gradients, convolve))
        programs.append((run, (x, kernel), jax.device_get(run(x, kernel))))

    def repeat(number):
        run, arrays, expected = programs[number % len(programs)]
        for _ in range(50):
            jax.tree.map(np.testing.assert_array_equal, jax.device_get(run(*arrays)), expected)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(repeat, range(16)))


@needs_library
@pytest.mark.parametrize("check_vma", [True, False])
def test_each_device_computes_its_own(check_vma):
    _, kernel, convolve = applied(GROUPED, "float32")
    x = np.random.default_rng(0).normal(size=(8, 6, 5, 80)).astype(np.float32)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    specs = {"mesh": mesh, "in_specs": (P("data"), P()), "out_specs": P("data"), "check_vma": check_vma}
    run = jax.jit(jax.shard_map(lambda x, kernel: convolve(x, kernel), **specs))
    assert calls(run, x, kernel) == 1
    np.testing.assert_array_equal(run(x, kernel), jax.pmap(convolve, in_axes=(0, None))(x[:, None], kernel)[:, 0])
    np.testing.assert_allclose(run(x, kernel), jax.jit(convolve)(x, kernel), rtol=0, atol=1e-5)


@needs_library
def test_what_the_library_refuses_is_an_error_of_the_program():
    x = jnp.zeros((2, 2))
    with pytest.raises(Exception, match="oneDNN could not run"):
        jax.jit(lambda x: jax.ffi.ffi_call(onednn.NAME, x)(x, key=np.int64(1)))(x)


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@needs_library
def test_another_process_takes_the_program_from_the_cache(tmp_path):
    code = """
        import jax, numpy as np
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        from flaxcnn.ops.convolution import convolution
        hits = []
        jax.monitoring.register_event_listener(lambda name, **_: hits.append(name.endswith("cache_hits")))
        x, kernel = np.ones((2, 9, 9, 8), np.float32), np.ones((3, 3, 8, 8), np.float32) / 3
        y = jax.jit(lambda x, kernel: convolution(x, kernel, (1, 1), ((1, 1), (1, 1))))(x, kernel)
        print(sum(hits), np.asarray(y).tobytes().hex())
    """
    first, second = (python(code, JAX_COMPILATION_CACHE_DIR=str(tmp_path)) for _ in range(2))
    (hits, y), (later_hits, later_y) = first.stdout.split(), second.stdout.split()
    assert (hits, later_hits) == ("0", "1") and y == later_y


@needs_library
def test_a_process_may_end_before_its_programs():
    code = """
        import jax, numpy as np
        from flaxcnn.ops.convolution import convolution
        x, kernel = np.ones((8, 64, 64, 64), np.float32), np.ones((3, 3, 64, 64), np.float32)
        run = jax.jit(lambda x, kernel: convolution(x, kernel, (1, 1), ((1, 1), (1, 1))))
        for _ in range(20):
            x = run(x, kernel)
        print("end")
    """
    ended = python(code)
    assert (ended.returncode, ended.stdout) == (0, "end\n"), ended.stderr


@needs_library
@pytest.mark.skipif(not PAGES.exists() or "[never]" in PAGES.read_text(), reason="this kernel has no large pages")
def test_large_results_lie_in_large_pages():
    code = """
        import jax, jax.numpy as jnp
        from flaxcnn.ops.convolution import convolution
        x, kernel = jnp.ones((4, 64, 64, 64)), jnp.ones((1, 1, 64, 1024))
        run = jax.jit(lambda x, kernel: convolution(x, kernel, (1, 1), ((0, 0), (0, 0))))
        y = run(x, kernel).block_until_ready()
        lines = open("/proc/self/smaps_rollup").read().splitlines()
        print(next(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages")) * 1024 / y.nbytes)
    """
    assert float(python(code).stdout) > 0.5  # a kernel short of large pages may give fewer


@needs_library
@pytest.mark.slow
def test_memory_does_not_grow_with_calls():
    code = """
        import jax, numpy as np
        from flaxcnn.ops.convolution import convolution

        def held():
            return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6

        kernel = np.ones((3, 3, 8, 8), np.float32)
        conv = lambda x: convolution(x, kernel, (1, 1), ((1, 1), (1, 1)))
        steps = jax.jit(lambda x: jax.lax.fori_loop(0, 50_000, lambda _, x: conv(x), x))
        steps(np.zeros((1, 8, 8, 8), np.float32)).block_until_ready()
        before = held()
        for _ in range(2):
            steps(np.zeros((1, 8, 8, 8), np.float32)).block_until_ready()
        print(held() - before)
    """
    ended = python(code)
    assert float(ended.stdout) < 10, ended.stderr


@needs_library
def test_programs_are_made_once_a_shape_and_so_many_at_most():
    code = """
        from flaxcnn.ops import onednn
        from flaxcnn.ops.onednn_convolution import _Call, _is_served
        onednn.SLOTS = 64
        for repeat in range(2):
            shapes = [(1, 8, size, 8) for size in range(3, 43)]
            rest = (1, 1), ((1, 1), (1, 1)), 1
            calls = [_Call("output", "float32", shape, (3, 3, 8, 8), shape, *rest) for shape in shapes]
            served = [_is_served(onednn.programs(), call) for call in calls]
            print(served.index(False), served.count(True), onednn.programs()._used)
    """
    assert python(code).stdout == "32 32 32\n" * 2
