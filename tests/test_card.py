"""A model card that Hugging Face's own package reads, with the run's figures in it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from markdown_it.token import Token

from baselines.frozen import Frozen
from fmlora_dist import registry
from fmlora_dist.card import LOADING
from running import command_here, finished, result

ODD = "a|b <script>x</script> *bold* [link](http://x) `code` &lt; _under_ line\n# break"


def card(folder: Path, *words: str) -> ModelCard:
    done = command_here(["card", folder, *words])
    assert done.code == 0, done.err
    return ModelCard(done.out)


def tables(text: str) -> list[list[list[str]]]:
    """The tables of a Markdown text, by rows of cells, as they are shown."""
    found: list[list[list[str]]] = []
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and found and len(found[-1][-1]) < len(found[-1][0]) + (len(found[-1]) == 1):
            found[-1][-1].append(shown(token))
    return found


def shown(token: Token) -> str:
    return "".join(child.content for child in token.children or [] if child.type in ("text", "text_special"))


def test_huggingface_reads_the_accuracies(tmp_path: Path) -> None:
    metrics = result(finished("fmlora"))["metrics"]
    data = card(finished("fmlora")).data
    assert (data.license, data.library_name, data.datasets) == ("other", "timm", ["icons"])
    assert {"continual-learning", "class-incremental", "fmlora"} <= set(data.tags)
    assert {each.metric_name: each.metric_value for each in data.eval_results} == {
        "Acc": round(metrics["acc"], 2),
        "AAA": round(metrics["aaa"], 2),
        "forgetting": round(metrics["forgetting"], 2),
    }
    assert {(each.task_type, each.dataset_type, each.dataset_split) for each in data.eval_results} == {
        ("image-classification", "icons", "test")
    }
    assert data.base_model is None, "its weights are not the hub's"
    assert card(finished("fmlora"), "--license", "apache-2.0").data.license == "apache-2.0"


def test_the_body_has_the_run_the_protocol_and_how_to_load_it() -> None:
    run, text = result(finished("fmlora")), card(finished("fmlora")).text
    figures, tasks, shared, recipe = tables(text)
    assert ["Acc", f"{run['metrics']['acc']:.2f}"] == figures[1][:2]
    assert len(figures) == 7
    last, learned = run["accuracy_matrix"][-1], [row[-1] for row in run["accuracy_matrix"]]
    rows = zip(run["test_sizes"], learned, last, strict=True)
    assert tasks[1:] == [[str(n), str(size), f"{a:.2f}", f"{b:.2f}"] for n, (size, a, b) in enumerate(rows, 1)]
    assert ["split", run["protocol"]["shared"]["split"]] in shared
    assert ["method.rank", "16"] in recipe
    assert run["protocol_hash"] in text
    assert f"```python\n{LOADING}```" in text


def test_an_upper_bound_has_no_figures_of_earlier_tasks() -> None:
    found = card(finished("joint"))
    figures, tasks, *_ = tables(found.text)
    assert figures[2][:2] == ["AAA", "n/a"]
    assert [row[2] for row in tasks[1:]] == ["n/a"] * 3
    assert "all at once" in found.text
    assert [each.metric_name for each in found.data.eval_results] == ["Acc"]


def changed(folder: Path, change: dict[str, Any]) -> Path:
    """A copy of a run, with other fields in its result's protocol and config."""
    shutil.copytree(finished("frozen"), folder)
    values = json.loads((folder / "result.json").read_text())
    values["protocol"]["shared"] |= change.get("shared", {})
    values["config"]["backbone"] |= change.get("backbone", {})
    values["method"] = change.get("method", values["method"])
    (folder / "result.json").write_text(json.dumps(values))
    return folder


def test_weights_of_the_hub_are_named(tmp_path: Path) -> None:
    name = "vit_tiny_patch16_224.augreg_in21k"
    change = {"backbone": {"name": name, "weights": ""}, "shared": {"backbone": name}}
    assert card(changed(tmp_path / "run", change)).data.base_model == f"timm/{name}"


def test_texts_of_a_record_are_shown_as_they_are(tmp_path: Path) -> None:
    folder = changed(tmp_path / "run", {"shared": {"split_rule": ODD, "tested_on": ODD, "backbone": "x: {y"}})
    found = card(folder)
    _, _, shared, _ = tables(found.text)
    assert ["split_rule", " ".join(ODD.split())] in shared
    assert found.data.eval_results[0].dataset_split == ODD
    kinds = {child.type for token in MarkdownIt().parse(found.text) for child in token.children or []}
    assert not kinds & {"html_inline", "link_open", "em_open", "strong_open"}


def test_a_method_that_is_no_plain_vit_is_not_timms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(Frozen):
        @classmethod
        def is_plain(cls) -> bool:
            return False

    monkeypatch.setitem(registry._methods, "odd", Odd)
    found = card(changed(tmp_path / "run", {"method": "odd"}))
    assert found.data.library_name == "fmlora-dist"
    assert "timm.create_model" not in found.text and "Loading" not in found.text


def test_a_card_is_written_to_a_file(tmp_path: Path) -> None:
    done = command_here(["card", finished("frozen"), "--out", tmp_path / "README.md"])
    assert (done.code, done.out) == (0, "")
    text = (tmp_path / "README.md").read_text()
    assert text == command_here(["card", finished("frozen")]).out
    assert yaml.safe_load(text.split("---\n")[1])["model-index"][0]["name"] == "frozen on icons, 3 tasks"


def test_a_folder_without_a_complete_run_is_refused(tmp_path: Path) -> None:
    done = command_here(["card", tmp_path])
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "result.json cannot be read" in done.err and "a complete run" in done.err
