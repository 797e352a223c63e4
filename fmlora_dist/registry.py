"""Methods and benchmarks by name. A decorator on one class in one file adds one; entry points add other packages'.

The only module of ``fmlora_dist`` that imports ``baselines`` and ``benchmarks``, and only when a name is asked for.
"""

import importlib.util
import pkgutil
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, TypeVar

from fmlora_dist.errors import UserError, nearest

if TYPE_CHECKING:
    from benchmarks.spec import BenchmarkSpec
    from fmlora_dist.method import Method, MethodInfo

__all__ = [
    "get_benchmark",
    "get_method",
    "list_benchmarks",
    "list_methods",
    "register_benchmark",
    "register_method",
]

_methods: dict[str, type["Method"]] = {}
_benchmarks: dict[str, "BenchmarkSpec"] = {}
M = TypeVar("M", bound="type[Method]")
B = TypeVar("B", bound=Callable[[], Any])


def register_method(info: "MethodInfo") -> Callable[[M], M]:
    """Register a ``Method`` class under ``info.name``. Raises ``ValueError`` when the name is taken."""

    def decorate(cls: M) -> M:
        _add(_methods, info.name, cls)
        cls.info = info
        return cls

    return decorate


def register_benchmark(make: B) -> B:
    """Register the ``BenchmarkSpec`` that the function makes. Raises ``ValueError`` when its name is taken."""
    spec = make()
    _add(_benchmarks, spec.name, spec)
    return make


def get_method(name: str) -> type["Method"]:
    """The method class of that name. Raises ``UserError`` that names the nearest one."""
    return _get(_methods, "method", name)


def get_benchmark(name: str) -> "BenchmarkSpec":
    """The benchmark of that name. Raises ``UserError`` that names the nearest one."""
    return _get(_benchmarks, "benchmark", name)


def list_methods() -> dict[str, type["Method"]]:
    """All methods by name. Raises ``UserError`` when a plugin cannot be imported."""
    _import_own()
    _import_plugins()
    return dict(sorted(_methods.items()))


def list_benchmarks() -> dict[str, "BenchmarkSpec"]:
    """All benchmarks by name. Raises likewise."""
    _import_own()
    _import_plugins()
    return dict(sorted(_benchmarks.items()))


def _add(table: dict[str, Any], name: str, value: Any) -> None:
    known = table.get(name)
    if known is not None and not _same_definition(known, value):
        raise ValueError(f"'{name}' is registered twice")
    table[name] = value


def _same_definition(known: Any, value: Any) -> bool:
    """A module run as __main__ or reloaded registers the same definition again; two definitions are a mistake."""
    if not isinstance(known, type) or not isinstance(value, type):
        return bool(known == value)
    modules = {known.__module__, value.__module__}
    return known.__qualname__ == value.__qualname__ and (len(modules) == 1 or "__main__" in modules)


def _get(table: dict[str, Any], kind: str, name: str) -> Any:
    for more in (_import_own, _import_plugins):
        if name not in table:
            more()
    if name not in table:
        raise UserError(f"unknown {kind} '{name}': {nearest(name, table)}")
    return table[name]


def _import_own() -> None:
    for module in _own_modules():
        importlib.import_module(module)


def _import_plugins() -> None:
    for entry in entry_points(group="fmlora_dist.plugins"):
        try:
            entry.load()
        except Exception as error:  # whatever another package's code does when it is imported
            raise UserError(
                f"plugin: '{entry.name}' ({entry.value}) cannot be imported: {type(error).__name__}: {error}; "
                "mend it, or uninstall its package"
            ) from error


def _own_modules() -> Iterator[str]:
    yield "fmlora_dist.fmlora.method"
    for package in ("baselines", "benchmarks"):
        for found in pkgutil.iter_modules(importlib.import_module(package).__path__):
            # A data set is one file, or a package whose file benchmark.py registers it; other packages register none.
            name = f"{package}.{found.name}"
            if not found.ispkg:
                yield name
            elif importlib.util.find_spec(f"{name}.benchmark"):
                yield f"{name}.benchmark"
