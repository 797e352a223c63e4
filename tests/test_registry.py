"""Names of methods and benchmarks, the nearest ones, and double registration."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fmlora_dist import registry
from fmlora_dist.errors import UserError
from fmlora_dist.method import Method, MethodInfo, ParameterGroup
from fmlora_dist.registry import (
    get_benchmark,
    get_method,
    list_benchmarks,
    list_methods,
    register_benchmark,
    register_method,
)


@pytest.fixture(autouse=True)
def _own_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    list_methods()
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))
    monkeypatch.setattr(registry, "_benchmarks", dict(registry._benchmarks))


def info(name: str) -> MethodInfo:
    return MethodInfo(name=name, summary="nothing", paper="none", family="head")


def a_method(module: str = __name__, qualname: str = "Nothing") -> type[Method]:
    class Nothing(Method):
        def parameter_groups(self) -> list[ParameterGroup]:
            return []

    Nothing.__module__, Nothing.__qualname__ = module, qualname
    return Nothing


def test_methods_of_the_issue_are_registered_with_a_line_each() -> None:
    methods = list_methods()
    assert {"fmlora", "finetune", "lora", "inflora", "sdlora", "joint", "frozen"} <= set(methods)
    assert {"l2p", "dualprompt", "coda_prompt", "hide_prompt"} <= set(methods)
    assert list(methods) == sorted(methods)
    for name, cls in methods.items():
        assert cls.info.name == name
        assert cls.info.summary and "\n" not in cls.info.summary


def test_benchmarks_are_registered_with_a_line_each() -> None:
    benchmarks = list_benchmarks()
    assert {"icons", "icons_mini"} <= set(benchmarks)
    for name, spec in benchmarks.items():
        assert spec.name == name
        assert spec.summary and "\n" not in spec.summary


def test_registered_method_is_found_by_its_name_and_knows_its_info() -> None:
    cls = register_method(info("nothing"))(a_method())
    assert get_method("nothing") is cls
    assert cls.info.name == "nothing"


@pytest.mark.parametrize(
    ("name", "hint"), [("fmlra", "'fmlora'"), ("in_flora", "'inflora'"), ("Finetune", "'finetune'")]
)
def test_unknown_method_names_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UserError, match=f"unknown method '{name}': did you mean {hint}"):
        get_method(name)


def test_unknown_benchmark_names_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown benchmark 'icon': did you mean 'icons'"):
        get_benchmark("icon")


def test_name_like_none_lists_all() -> None:
    with pytest.raises(UserError, match=r"unknown method 'zzz': known are: .*fmlora") as error:
        get_method("zzz")
    assert all(name in str(error.value) for name in list_methods())


def test_second_definition_of_a_name_is_refused_and_the_first_stays() -> None:
    first = register_method(info("nothing"))(a_method())
    with pytest.raises(ValueError, match="'nothing' is registered twice"):
        register_method(info("nothing"))(a_method(qualname="Another"))
    assert get_method("nothing") is first


def test_same_class_name_in_another_module_is_another_definition() -> None:
    original = get_method("lora")
    with pytest.raises(ValueError, match="'lora' is registered twice"):
        register_method(info("lora"))(a_method("plugin.lora", original.__qualname__))
    assert get_method("lora") is original


@pytest.mark.parametrize("module", [__name__, "__main__"])
def test_reloaded_or_started_module_registers_its_own_again(module: str) -> None:
    register_method(info("nothing"))(a_method())
    again = register_method(info("nothing"))(a_method(module))
    assert get_method("nothing") is again


def test_benchmark_is_registered_again_only_if_it_says_the_same() -> None:
    spec = get_benchmark("icons")
    register_benchmark(lambda: dataclasses.replace(spec))
    with pytest.raises(ValueError, match="'icons' is registered twice"):
        register_benchmark(lambda: dataclasses.replace(spec, summary="other images"))
    assert get_benchmark("icons") == spec


def with_plugin(folder: Path, module: str, code: str) -> str:
    """What ``code`` prints in a process where a distribution is really installed whose entry point is ``module``."""
    (folder / "mine.py").write_text(module)
    about = folder / "mine-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[fmlora_dist.plugins]\nmine = mine\n")
    root = Path(__file__).parent.parent
    paths: dict[str, Any] = {"PYTHONPATH": f"{folder}:{root}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=paths, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_another_package_adds_methods_by_an_entry_point(tmp_path: Path) -> None:
    module = (
        "from fmlora_dist.method import Method, MethodInfo\n"
        "from fmlora_dist.registry import register_method\n"
        "@register_method(MethodInfo(name='mine', summary='mine', paper='none', family='head'))\n"
        "class Mine(Method):\n"
        "    def parameter_groups(self):\n"
        "        return []\n"
    )
    code = "from fmlora_dist.registry import get_method; print(get_method('mine').__module__)"
    assert with_plugin(tmp_path, module, code) == "mine"


def test_a_broken_package_is_named_and_harms_only_what_looks_for_it(tmp_path: Path) -> None:
    code = (
        "from fmlora_dist.errors import UserError\n"
        "from fmlora_dist.registry import get_benchmark, get_method, list_methods\n"
        "print(get_method('lora').info.name, get_benchmark('icons_mini').cut.of)\n"
        "try:\n"
        "    list_methods()\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    named = "plugin: 'mine' (mine) cannot be imported: ModuleNotFoundError: No module named 'nowhere'"
    printed = with_plugin(tmp_path, "import nowhere\n", code)
    assert printed == f"lora icons\n{named}; mend it, or uninstall its package"
