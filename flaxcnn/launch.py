"""The process that a training script runs in: settings of the C library and of XLA that make CPUs quick."""

import contextlib
import importlib.metadata
import os
import sys
from pathlib import Path

# glibc 2.35 and later read it when a process starts; older ones and other C libraries ignore it.
HUGE_PAGES = "glibc.malloc.hugetlb=1"
# "always [madvise] never" where the kernel gives huge pages to those who ask.
OFFER = Path("/sys/kernel/mm/transparent_hugepage/enabled")
# By default XLA:CPU has YNNPACK compute convolutions, products and sums. Only for sums is it quicker than Eigen.
YNNPACK_FOR_SUMS = "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_REDUCE"
# XLA ends a process that sets an option it does not know, so that it is set for these releases only.
RELEASES = ("0.10.", "0.11.", "0.12.")


def prepare_process() -> None:
    """Makes this process quick on CPUs; if it takes that, starts it anew with the same arguments.

    Call it before anything heavy is imported, which would be imported twice.
    """
    variables = settings()
    os.environ.update(variables)
    if "GLIBC_TUNABLES" in variables and sys.executable:
        with contextlib.suppress(OSError):  # then it goes on as it is
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def settings() -> dict[str, str]:
    """Returns the environment variables to change, with their values; what a user has set in them stays.

    GLIBC_TUNABLES has large arrays lie in pages of 2 MiB, where the kernel gives these on request. XLA:CPU takes
    the memory of a step from the C library and gives it back afterwards, and the kernel then hands it out again
    page by page: in pages of 4 KiB that is a sixth of the processor time of a ResNet.

    XLA_FLAGS has Eigen compute convolutions and products, at up to twice the speed of YNNPACK.
    """
    result = {}
    tunables, flags = os.environ.get("GLIBC_TUNABLES", ""), os.environ.get("XLA_FLAGS", "")
    if "glibc.malloc.hugetlb" not in tunables and _huge_pages_are_offered():
        result["GLIBC_TUNABLES"] = f"{tunables}:{HUGE_PAGES}".lstrip(":")
    if "xla_cpu_experimental_ynn_fusion_type" not in flags and _jaxlib().startswith(RELEASES):
        result["XLA_FLAGS"] = f"{flags} {YNNPACK_FOR_SUMS}".lstrip()
    return result


def _huge_pages_are_offered() -> bool:
    try:
        return "[madvise]" in OFFER.read_text()
    except OSError:
        return False


def _jaxlib() -> str:
    return importlib.metadata.version("jaxlib")
