"""The package as a whole: what a wheel holds, and what its code must not contain. (Imports: test_imports.py.)"""

import ast
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tiny_benchmark import BACKBONE

ROOT = Path(__file__).parent.parent
PACKAGES = ("fmlora_dist", "baselines", "benchmarks", "cluster")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imported(module: Path) -> Iterator[str]:
    """Names of all modules that a file imports, at its top or later."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield str(node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_methods_name_no_launcher_and_no_device():
    methods = [*(ROOT / "baselines").rglob("*.py"), *(ROOT / "fmlora_dist" / "fmlora").rglob("*.py")]
    assert len(methods) > 8
    for module in methods:
        assert not {"deepspeed", "ray", "torch.distributed"} & set(imported(module)), module
        assert "cuda" not in module.read_text(), module


def test_files_are_one_idea_long():
    assert not {path.name: n for path in MODULES if (n := len(path.read_text().splitlines())) > 400}


def test_code_is_python_3_10():
    for path in [*MODULES, ROOT / "train.py"]:
        ast.parse(path.read_text(), str(path), feature_version=(3, 10))


def test_importing_the_core_imports_no_method_benchmark_or_launcher():
    heavy = ("torch", "deepspeed", "ray", "baselines", "benchmarks", "cluster")
    code = (
        "import sys; from fmlora_dist.cli import main; main(['--version']);"
        f"print(*(name for name in {heavy} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[1] == ""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what installing the wheel puts into site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_wheel_holds_every_file_of_the_packages(installed):
    listed = subprocess.run(
        ["git", "ls-files", "--", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    wanted = listed or [
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    assert "benchmarks/data/icons/index.json" in wanted
    assert [name for name in wanted if not (installed / name).is_file()] == []


def test_wheel_has_the_command_and_the_licence(installed):
    (facts,) = installed.glob("*.dist-info")
    assert "fmlora = fmlora_dist.cli:main" in (facts / "entry_points.txt").read_text()
    assert "Apache License" in (facts / "licenses" / "LICENSE").read_text()


def test_run_from_the_wheel_trains_on_its_embedded_shards(installed, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(installed)}
    words = ["run", "--benchmark", "icons_mini", "--tasks", "10", "--method", "frozen", "--epochs", "1"]
    words += ["--threads", "1", "--out", "run", *BACKBONE]
    code = (
        f"import sys, benchmarks\nfrom fmlora_dist.cli import main\nprint(benchmarks.__file__)\nsys.exit(main({words}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(installed))
    assert (tmp_path / "run" / "result.json").is_file()
