"""The documentation is true: its code blocks run, and what the README names exists."""

import json
import os
import re
import shlex
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from fmlora_dist.card import LOADING
from fmlora_dist.cli import _COMMANDS
from fmlora_dist.config import RunConfig, make_config, parse_config
from fmlora_dist.registry import list_benchmarks, list_methods
from tiny_benchmark import BACKBONE, write_tiny

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
N_CLASSES = 20
CHANCE = 100 / N_CLASSES


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of that language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """The commands of the bash blocks, as words."""
    lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@dataclass
class Newcomer:
    """A folder in which somebody follows a page: its python files and entry points are a plugin beside the suite."""

    folder: Path
    page: str
    flags: tuple[str, ...] = ()
    """Added to each run: where the tiny data and a tiny backbone are."""

    def __post_init__(self) -> None:
        for block in blocks(self.page, "python"):
            name = re.match(r"# (?:\w+/)?(\w+\.py)\n", block)
            assert name, f"a python block must begin with its file's name: {block[:60]!r}"
            (self.folder / name[1]).write_text(block)
        # What installing a package with these entry points leaves behind.
        installed = self.folder / "newcomer-1.0.dist-info"
        installed.mkdir()
        (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: newcomer\nVersion: 1.0\n")
        (table,) = blocks(self.page, "toml")
        header, *entries = table.splitlines()
        assert header == '[project.entry-points."fmlora_dist.plugins"]'
        (installed / "entry_points.txt").write_text(
            "\n".join(["[fmlora_dist.plugins]", *(entry.replace('"', "") for entry in entries)])
        )
        script = self.folder / "bin" / "fmlora"
        script.parent.mkdir()
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m fmlora_dist.cli "$@"\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR)

    def run(self, words: list[str]) -> str:
        """Run one command of the page; gives what it printed."""
        if words[:2] == ["fmlora", "run"]:
            words = [*words, *self.flags, "--threads", "1"]
        if words[0] == "python":
            words = [sys.executable, *words[1:]]
        environment = os.environ | {
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(self.folder), str(ROOT)]),
            "COLUMNS": "200",
        }
        done = subprocess.run(words, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def follow(self) -> dict[str, str]:
        """Run all commands of the page in their order; what each printed, by its first words."""
        return {shlex.join(words): self.run(words) for words in commands(self.page)}

    def result(self, name: str) -> dict:
        return json.loads((self.folder / "runs" / name / "result.json").read_text())


@pytest.fixture(scope="module")
def method_page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Newcomer, dict[str, str]]:
    folder = tmp_path_factory.mktemp("method")
    write_tiny(folder / "data", n_classes=N_CLASSES, per_class=12)
    flags = (*BACKBONE, "--data-root", "data", "--batch-size", "8", "--epochs", "2")
    newcomer = Newcomer(folder, (ROOT / "docs" / "add-a-method.md").read_text(), flags)
    return newcomer, newcomer.follow()


def test_added_methods_are_listed(method_page):
    _, said = method_page
    assert "bitfit" in said["fmlora list"]
    assert "ncm" in said["fmlora list"]


def test_added_method_without_training_beats_chance_and_stores_its_sums(method_page):
    newcomer, _ = method_page
    result = newcomer.result("ncm")
    assert result["metrics"]["acc"] > 3 * CHANCE
    assert result["parameters"]["trainable"] == [0] * 5
    assert result["config"]["method"] == {"name": "ncm", "power": 0.5}
    # Head (weight and bias) and class sums, all of width 48.
    assert result["parameters"]["stored"][-1] == N_CLASSES * (48 + 1) + N_CLASSES * 48


def test_added_method_that_trains_stores_what_it_trained_and_can_be_evaluated(method_page):
    newcomer, said = method_page
    result = newcomer.result("bitfit")
    stored = load_file(newcomer.folder / "runs" / "bitfit" / "checkpoint.safetensors")
    biases = {name: value for name, value in stored.items() if name.startswith("method/backbone.")}
    assert all(name.endswith(".bias") for name in biases)
    assert all(value.any() for value in biases.values())  # timm starts them at zero
    trained = sum(value.numel() for value in biases.values()) + N_CLASSES // 5 * (48 + 1)
    assert result["parameters"]["trainable"] == [trained] * 5
    found = json.loads(said["fmlora evaluate runs/bitfit"].strip().splitlines()[-1])
    assert found["acc"] == pytest.approx(result["metrics"]["acc"])
    assert found["per_task"] == pytest.approx(result["accuracy_matrix"][-1])


def test_added_methods_stand_in_the_table(method_page):
    _, said = method_page
    assert "bitfit" in said["fmlora report runs"]
    assert "ncm" in said["fmlora report runs"]


def test_added_method_that_was_killed_before_end_task_ends_as_if_undisturbed(method_page, tmp_path):
    newcomer, _ = method_page
    whole, broken = newcomer.folder / "runs" / "ncm", tmp_path / "again"
    script = (
        "import os, sys\n"
        "from fmlora_dist.cli import main\n"
        "from fmlora_dist.registry import get_method\n"
        "cls = get_method('ncm')\n"
        "end = cls.end_task\n"
        "cls.end_task = lambda self, data: os._exit(9) if self.task.number == 3 else end(self, data)\n"
        "main(sys.argv[1:])\n"
    )
    words = ["run", "--config", str(whole / "config.yaml"), "--out", str(broken), "--resume"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(newcomer.folder), str(ROOT)])}
    killed = subprocess.run([sys.executable, "-c", script, *words], cwd=newcomer.folder, env=environment, check=False)
    assert killed.returncode == 9
    newcomer.run(["fmlora", *words])
    again = json.loads((broken / "result.json").read_text())
    assert again["accuracy_matrix"] == newcomer.result("ncm")["accuracy_matrix"]


@pytest.fixture(scope="module")
def benchmark_page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Newcomer, dict[str, str]]:
    folder = tmp_path_factory.mktemp("benchmark")
    draw = np.random.default_rng(0)
    for split, copies in (("train", 6), ("test", 2)):
        for domain in ("indoors", "outdoors"):
            for label, name in enumerate(("apple", "book", "cup", "door")):
                place = folder / "images" / split / domain / name
                place.mkdir(parents=True)
                for copy in range(copies):
                    pixels = draw.integers(0, 60, (40 + copy, 60, 3), dtype=np.uint8)
                    pixels[:, :, label % 3] += np.uint8(120 + 60 * (label // 3))
                    Image.fromarray(pixels).save(place / f"{copy}.{'jpg' if copy % 2 else 'png'}")
    newcomer = Newcomer(folder, (ROOT / "docs" / "add-a-benchmark.md").read_text(), tuple(BACKBONE))
    return newcomer, newcomer.follow()


def test_added_benchmark_is_listed_and_holds_every_image(benchmark_page):
    _, said = benchmark_page
    assert "photos" in said["fmlora list"]
    counts = "64 images (48 train, 16 test), 4 classes, 2 domains"
    assert counts in said["fmlora prepare photos --source images --out shards/photos"]
    assert counts in said["fmlora verify shards/photos"]


def test_added_benchmark_is_run_in_both_scenarios(benchmark_page):
    newcomer, _ = benchmark_page
    by_class, by_domain = newcomer.result("photos"), newcomer.result("photos-dil")
    assert by_class["test_sizes"] == [8, 8]
    assert by_domain["test_sizes"] == [8, 8]
    assert (by_class["scenario"], by_domain["scenario"]) == ("cil", "dil")
    assert by_domain["n_tasks"] == 2


def test_shards_of_the_added_benchmark_are_read_by_webdataset(benchmark_page):
    newcomer, _ = benchmark_page
    assert newcomer.run(["python", "read.py"]).split() == ["train-16", "apple", "indoors"]


def test_every_command_of_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text()
    seen = set()
    for words in commands(README):
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), words
        elif words[0] == "fmlora":
            assert words[1] in _COMMANDS, words
        elif words[0] in ("ray", "sbatch"):
            files = [word for word in words if word.startswith("cluster/")]
            assert files and all((ROOT / file).is_file() for file in files), words
        else:
            assert words[0] in ("python", "deepspeed"), words
            assert "train.py" in words, words
        seen.add(words[0])
    assert seen == {"make", "fmlora", "python", "deepspeed", "ray", "sbatch"}


def test_every_run_of_the_readme_is_a_valid_config(tmp_path, monkeypatch):
    (tmp_path / "runs" / "x").mkdir(parents=True)
    (tmp_path / "runs" / "x" / "config.yaml").write_text("method: {name: fmlora, rank: 16}\n")
    monkeypatch.chdir(tmp_path)
    runs = [words for words in commands(README) if "train.py" in words or words[:2] == ["fmlora", "run"]]
    assert len(runs) >= 7
    configs = []
    for words in runs:
        flags = words[words.index("train.py") + 1 :] if "train.py" in words else words[2:]
        configs.append(parse_config(flags, prog="fmlora run")[0])
    assert {config.method.name for config in configs} == {"fmlora"}
    assert configs[0].key() == configs[1].key() == configs[2].key()


def test_the_readme_loads_an_exported_model_by_the_lines_that_are_tested():
    (lines,) = blocks(README, "python")
    assert lines == LOADING  # which test_export.py runs where nothing of this project can be imported
    assert len([line for line in lines.splitlines() if line]) == 4


def test_the_deepspeed_command_of_the_readme_is_understood_by_its_launcher():
    from deepspeed.launcher.runner import parse_args

    one_host, several = (parse_args(words[1:]) for words in commands(README) if words[0] == "deepspeed")
    assert (one_host.num_gpus, one_host.user_script) == (2, "train.py")
    assert (several.hostfile, several.user_script) == ("cluster/hostfile", "train.py")
    assert "--benchmark" in one_host.user_args and "--benchmark" in several.user_args


def test_fields_named_by_the_readme_exist():
    config = make_config({"method": "fmlora"}).plain()
    table = README.partition("### Config")[2].partition("```")[0]
    names = [name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall("`(.*?)`", row)]
    assert len(names) > 15
    for name in names:
        value = config
        for part in name.split("."):
            if part != "…":
                assert part in value, name
                value = value[part]
    assert set(RunConfig.model_fields) == {name.split(".")[0] for name in names}


def test_the_readme_lists_every_method_and_embedded_benchmark():
    table = README.partition("## Methods")[2].partition("\n## ")[0]
    # Plugins that happen to be installed are not ours to list.
    ours = {name for name, cls in list_methods().items() if cls.__module__.startswith(("baselines.", "fmlora_dist."))}
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == ours
    for name, spec in list_benchmarks().items():
        assert spec.embedded is None or f"`{name}`" in README or f": {name}" in README


def test_the_page_on_methods_has_each_with_an_equation_what_it_stores_and_what_it_costs():
    page = (ROOT / "docs" / "methods.md").read_text()
    sections = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    ours = {name for name, cls in list_methods().items() if cls.__module__.startswith(("baselines.", "fmlora_dist."))}
    assert ours <= set(sections)
    for name, text in sections.items():
        assert re.search(r"^    \S", text, re.MULTILINE), f"{name}: an equation, indented"
        assert "- *Stores* " in text and "- *Costs* " in text, name


def test_the_readme_gives_a_reason_for_each_dependency():
    project = (ROOT / "pyproject.toml").read_text()
    required = re.search(r"^dependencies = \[(.*?)^\]", project, re.MULTILINE | re.DOTALL)
    assert required
    names = set(re.findall(r'"([a-z0-9-]+(?:\[\w+\])?)>=', required[1]))
    table = README.partition("## Dependencies")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| ([^ |]+) \| (.+) \|$", table, re.MULTILINE))
    rows.pop("package")
    assert set(rows) == names
    assert all(len(reason) > 8 for reason in rows.values())


@pytest.mark.parametrize("fact", ["classes", "families", "train", "test"])
def test_numbers_of_the_embedded_benchmark_are_those_of_its_recipe(fact):
    recipe = json.loads((ROOT / "benchmarks" / "data" / "icons" / "recipe.json").read_text())
    recipe |= recipe["splits"]
    stated = re.search(rf"<!-- icons:{fact} -->(\d+)<!-- / -->", README)
    assert stated
    assert int(stated[1]) == recipe[fact]


def test_links_between_the_pages_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
