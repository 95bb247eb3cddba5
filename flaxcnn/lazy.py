"""Lazy imports of the public names of a package."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def exports(package: str, homes: Mapping[str, tuple[str, ...]]) -> Callable[[str], Any]:
    """Returns a `__getattr__` for a package that imports a module when one of its public names is first used.

    The package must also import the names under `if TYPE_CHECKING`, for type checkers and editors.

    Args:
      package: name of the package.
      homes: {full name of a module: public names that it defines}.
    """
    modules = {name: module for module, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(modules[name]), name)

    return get
