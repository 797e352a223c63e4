"""Who may import whom: the design's one rule about modules, read from the source itself."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("fmlora_dist", "baselines", "benchmarks", "cluster")

# What a module of each package may import of the other packages, by prefix.
ALLOWED = {
    "baselines": ("fmlora_dist.method", "fmlora_dist.vit", "fmlora_dist.registry", "fmlora_dist.errors"),
    "benchmarks": ("fmlora_dist.registry", "fmlora_dist.errors", "fmlora_dist.cores"),
    "cluster": (
        "fmlora_dist.run",
        "fmlora_dist.record",
        "fmlora_dist.config",
        "fmlora_dist.cores",
        "fmlora_dist.errors",
        "fmlora_dist.registry",
        "fmlora_dist.report",
    ),
    "fmlora_dist": (),
}
# Modules of fmlora_dist that may import more.
EXCEPTIONS = {
    "fmlora_dist.data": ("benchmarks",),
    "fmlora_dist.commands.data": ("benchmarks.contact_sheet", "benchmarks.preparation"),
    "fmlora_dist.commands.grids": ("cluster",),
    "fmlora_dist.commands.reports": ("cluster.journal", "cluster.output"),
    "fmlora_dist.report.documents": ("cluster.journal",),  # a script: a committed grid's table says what is not run yet
    "fmlora_dist.profile.photographs": ("benchmarks",),
    "fmlora_dist.profile.stream": ("benchmarks",),
    "cluster.grid": ("fmlora_dist.cli",),  # a script that starts the command line, as train.py does
}


def _modules(package: str) -> Iterator[tuple[str, Path]]:
    for path in sorted((REPOSITORY / package).rglob("*.py")):
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def _imported(path: Path, module: str) -> Iterator[str]:
    """Names of the modules that a file imports at run time, wherever in it."""
    tree = ast.parse(path.read_text())
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively; the project's imports are absolute"
            assert node.module is not None
            # `from package import name` may import the module package.name.
            yield from (f"{node.module}.{name.name}" for name in node.names)


def _within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_each_other_only_where_the_design_says(package: str) -> None:
    wrong = []
    for module, path in _modules(package):
        allowed = (package, *ALLOWED[package], *EXCEPTIONS.get(module, ()))
        for name in _imported(path, module):
            if name.split(".")[0] in PACKAGES and not _within(name, allowed) and name != "fmlora_dist.__version__":
                wrong.append(f"{module} imports {name}")
    assert wrong == []


def test_every_file_is_read() -> None:
    assert sum(1 for package in PACKAGES for _ in _modules(package)) > 40
    imported = {name for module, path in _modules("fmlora_dist") for name in _imported(path, module)}
    assert "benchmarks.samples.Samples" in imported, "the rule would not see a wrong import either"


def test_only_one_file_names_gpus() -> None:
    """No `cuda` in the code outside the one place that chooses the device."""
    named = [
        module
        for package in PACKAGES
        for module, path in _modules(package)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "cuda"
    ]
    assert set(named) <= {"fmlora_dist.distributed"}


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_is_unpickled(package: str) -> None:
    for module, path in _modules(package):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load", "pickle.loads"):
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert options.get("weights_only") == "True", f"{module}, line {node.lineno}"
