"""A run's model card, as Hugging Face's hub reads it: README.md with a YAML header."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from fmlora_dist.errors import UserError
from fmlora_dist.registry import get_benchmark, get_method
from fmlora_dist.report.aggregate import Run, read_result

__all__ = ["LOADING", "model_card"]

LOADING = """\
import json, safetensors, timm

with safetensors.safe_open("model.safetensors", framework="pt") as file:
    made = json.loads(file.metadata()["timm_create_model"])
model = timm.create_model(made["model_name"], checkpoint_path="model.safetensors", **made["kwargs"]).eval()
"""
"""How an exported model is loaded, by timm alone."""

_METRICS = {
    "acc": ("Acc", "mean over tasks of the accuracy after the last one"),
    "aaa": ("AAA", "mean over t of the mean accuracy on tasks 1 to t after task t"),
    "forgetting": ("forgetting", "mean over tasks of the best accuracy minus the last"),
    "bwt": ("backward transfer", "mean over tasks of the last accuracy minus that after the task"),
    "acc_samples": ("Acc by samples", "accuracy on all test images after the last task"),
    "aaa_samples": ("AAA by samples", "mean over t of the accuracy on all test images of tasks 1 to t after task t"),
}
_SCENARIOS = {"cil": "class-incremental", "dil": "domain-incremental"}
_MARKUP = re.compile(r"[\\`*{}\[\]<>|#~&$!]|(?<!\w)_|_(?!\w)")


def model_card(folder: Path, *, licence: str = "other") -> str:
    """The card of a complete run. Its texts come from records and plugins, so they are escaped.

    Args:
        folder: The run's directory.
        licence: Under which the model is published, by Hugging Face's identifier.

    Raises:
        UserError: the folder holds no complete run, or one of a method or benchmark that is not installed.
    """
    try:
        run = read_result(folder / "result.json")
        result = run.load()
    except ValueError as error:
        raise UserError(f"card: {folder / 'result.json'} {error}; give the directory of a complete run") from error
    title = f"{run.method} on {run.column.benchmark}, {run.column.n_tasks} tasks"
    header = yaml.safe_dump(_header(run, result, title, licence), sort_keys=False, allow_unicode=True)
    parts = [
        f"# {_plain(title)}",
        _about(run, result),
        "## Accuracy",
        _table(("", "value", "what it is"), _metrics(run)),
        _table(("task", "test images", "after it was learned", "after the last task"), _tasks(result)),
        _loading(run),
        "## Protocol",
        "Runs are comparable where the first table is the same for both.",
        _table(("shared", ""), run.shared.items()),
        _table(("recipe", ""), run.recipe.items()),
        f"Hash of both: {_plain(result['protocol_hash'])}.",
    ]
    return f"---\n{header}---\n\n" + "\n\n".join(filter(None, parts)) + "\n"


def _header(run: Run, result: dict[str, Any], title: str, licence: str) -> dict[str, Any]:
    method, column = get_method(run.method), run.column
    task = {"type": "image-classification", "name": "Image Classification"}
    data = {"type": column.benchmark, "name": column.benchmark, "split": run.shared["tested_on"]}
    figures = [
        {"type": kind, "name": _METRICS[name][0], "value": round(value, 2)}
        for name, kind in (("acc", "accuracy"), ("aaa", "accuracy"), ("forgetting", "forgetting"))
        if (value := run.metrics.get(name)) is not None
    ]
    header = {
        "license": licence,
        "library_name": "timm" if method.is_plain() else "fmlora-dist",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "continual-learning", _SCENARIOS[column.scenario], run.method],
        "datasets": [column.benchmark],
        "metrics": ["accuracy"],
        "model-index": [{"name": title, "results": [{"task": task, "dataset": data, "metrics": figures}]}],
    }
    return header | ({"base_model": f"timm/{run.shared['backbone']}"} if _weights_of_the_hub(run, result) else {})


def _weights_of_the_hub(run: Run, result: dict[str, Any]) -> bool:
    given = result["config"]["backbone"]
    spec = get_benchmark(run.column.benchmark)
    return not given["weights"] and bool(given["name"] or not spec.backbone_weights)


def _about(run: Run, result: dict[str, Any]) -> str:
    method, spec = get_method(run.method).info, get_benchmark(run.column.benchmark)
    kind, parameters = _SCENARIOS[run.column.scenario], result["parameters"]
    how = "all at once, an upper bound" if method.joint else "one after the other, without images of earlier ones"
    return (
        f"{kind.capitalize()}: {run.column.n_tasks} tasks were learned {how}; the model is tested without being told "
        "the task.\n\n"
        f"- Method: {_plain(run.method)}: {_plain(method.summary)} ({_plain(method.paper)})\n"
        f"- Data: {_plain(spec.name)}: {_plain(spec.summary)}. Licence of the images: {_plain(spec.licence)}\n"
        f"- Backbone: {_plain(run.shared['backbone'])}, of {parameters['backbone']:,} numbers; what was learned beside "
        f"it was stored in {parameters['stored'][-1]:,}\n"
        f"- One run, of seed {result['seed']} and class order {result['order_seed']}: the spread over seeds is not "
        "known from it"
    )


def _metrics(run: Run) -> Iterable[tuple[str, str, str]]:
    for name, (title, meaning) in _METRICS.items():
        value = run.metrics.get(name)
        yield title, "n/a" if value is None else f"{value:.2f}", meaning


def _tasks(result: dict[str, Any]) -> Iterable[tuple[Any, ...]]:
    matrix = result["accuracy_matrix"]
    for place, (size, last) in enumerate(zip(result["test_sizes"], matrix[-1], strict=True)):
        # An upper bound learns all tasks at once, and has a single row.
        learned = f"{matrix[place][place]:.2f}" if len(matrix) == result["n_tasks"] else "n/a"
        yield place + 1, size, learned, f"{last:.2f}"


def _loading(run: Run) -> str:
    if not get_method(run.method).is_plain():
        return ""
    return (
        "## Loading it\n\n"
        "`fmlora export` writes `model.safetensors`, a plain timm vision transformer, so timm loads it:\n\n"
        f"```python\n{LOADING}```\n\n"
        "`timm.data.create_transform(**timm.data.resolve_model_data_config(model))` gives the transform of its images; "
        "the file's metadata holds the names of the classes (`class_names`) by the number of the logit."
    )


def _table(heads: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *(tuple(_plain(str(value)) for value in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """A text as Markdown that shows it as it is, in one line."""
    return _MARKUP.sub(lambda found: "\\" + found[0], " ".join(text.split()))
