"""Public names that are imported when they are asked for."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def exports(package: str, homes: Mapping[str, tuple[str, ...]]) -> Callable[[str], Any]:
    """Returns the `__getattr__` of a package, which imports a module when one of its public names is first used.

    The names stand in an import `if TYPE_CHECKING` as well, for type checkers and editors.

    Args:
      package: name of the package.
      homes: the public names, by the full name of the module that holds them.
    """
    modules = {name: module for module, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(modules[name]), name)

    return get
