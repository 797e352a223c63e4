"""Which runs may stand in one table."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fmlora_dist.errors import UserError
from fmlora_dist.report import Grouping, make_report, read_runs
from fmlora_dist.report.protocols import describe, strangers

Write = Callable[..., Path]


def refusal(folder: Path, **grouping: list[str]) -> str:
    with pytest.raises(UserError) as caught:
        make_report(read_runs([folder]), Grouping(**grouping))
    return str(caught.value)


def test_runs_of_other_shared_protocols_are_refused_with_what_differs(write_run: Write, tmp_path: Path) -> None:
    one = write_run("lora", 0, 70.0)
    other = write_run("fmlora", 0, 75.0, shared={"backbone": "huge"})
    message = refusal(tmp_path)
    assert str(one) in message
    assert str(other) in message
    assert "backbone is 'huge' in the first and 'tiny' in the second" in message
    assert "--allow-mixed" in message


def test_the_whole_protocols_hash_stands_in_for_a_missing_shared_one(write_run: Write, tmp_path: Path) -> None:
    for seed, digest in enumerate("ab"):
        write_run("lora", seed, 70.0, protocol={}, protocol_hash=digest)
    assert "protocol is 'a' in the first and 'b' in the second" in refusal(tmp_path)


def test_columns_of_one_benchmark_may_differ_in_the_number_of_tasks_only(write_run: Write, tmp_path: Path) -> None:
    write_run("lora", 0, 70.0)
    write_run("lora", 0, 60.0, n_tasks=10)
    assert make_report(read_runs([tmp_path])).tables[0].mixed == []
    write_run("lora", 0, 60.0, n_tasks=20, shared={"backbone": "huge"})
    assert "backbone is 'tiny' in the first and 'huge' in the second" in refusal(tmp_path)


def test_columns_of_several_benchmarks_may_differ_in_what_the_data_bring(write_run: Write, tmp_path: Path) -> None:
    write_run("lora", 0, 70.0, benchmark="cifar100", shared={"split": "one", "test_images": 7})
    write_run("lora", 0, 60.0, benchmark="cub200", shared={"split": "other"})
    (table,) = make_report(read_runs([tmp_path])).tables
    assert [head.group for head in table.heads[::2]] == ["cifar100 N=5", "cub200 N=5"]
    write_run("lora", 0, 60.0, benchmark="cub200", n_tasks=10, shared={"split": "third"})
    assert "split is 'other' in the first and 'third' in the second" in refusal(tmp_path)


def test_a_grouping_that_would_mix_task_counts_in_a_column_is_refused(write_run: Write, tmp_path: Path) -> None:
    write_run("lora", 0, 70.0)
    write_run("lora", 0, 60.0, n_tasks=10)
    assert "n_tasks is 10 in the first and 5 in the second" in refusal(tmp_path, columns=["benchmark"])


def test_fields_that_rows_are_made_of_may_differ(write_run: Write, tmp_path: Path) -> None:
    write_run("lora", 0, 70.0)
    write_run("lora", 0, 60.0, shared={"backbone": "huge"})
    (table,) = make_report(read_runs([tmp_path]), Grouping(rows=["backbone"])).tables
    assert [(row.label, row.cells[0].text) for row in table.rows] == [
        ("backbone=huge", "60.00"),
        ("backbone=tiny", "70.00"),
    ]


def test_allowed_mixed_runs_are_never_averaged_and_their_cells_marked(write_run: Write, tmp_path: Path) -> None:
    for seed in range(2):
        write_run("lora", seed, 70.0)
        write_run("inflora", seed, 71.0)
    write_run("lora", 2, 90.0, shared={"backbone": "huge"})
    table = make_report(read_runs([tmp_path]), allow_mixed=True).tables[0]
    assert [(row.label, row.cells[0].text, row.cells[0].mark) for row in table.rows] == [
        ("lora, backbone=huge", "90.00 (n=1) †", ""),
        ("lora, backbone=tiny", "70.00 ± 0.00 (n=2)", "second"),
        ("inflora", "71.00 ± 0.00 (n=2)", "best"),
    ]
    assert table.mixed == [
        "† not comparable, another shared protocol: lora, backbone=huge: backbone huge instead of tiny"
    ]


def test_runs_that_choose_prompts_by_the_batch_are_marked_and_not_refused(write_run: Write, tmp_path: Path) -> None:
    write_run("lora", 0, 70.0, shared={"predictions": "independent of other test images"})
    for seed in range(2):  # though they are the more common ones
        write_run("l2p", seed, 90.0, shared={"predictions": "dependent on other test images (paper_compat)"})
    table = make_report(read_runs([tmp_path])).tables[0]
    assert [(row.label, row.cells[0].text, row.cells[0].mark) for row in table.rows] == [
        ("lora", "70.00 (n=1)", ""),
        ("l2p", "90.00 ± 0.00 (n=2) †", ""),
    ]
    (note,) = table.mixed
    assert note.endswith(
        "predictions dependent on other test images (paper_compat) instead of independent of other test images"
    )


def test_the_commonest_protocol_is_the_tables(write_run: Write, tmp_path: Path) -> None:
    odd = write_run("finetune", 0, 90.0, shared={"backbone": "huge"})
    for seed in range(2):
        write_run("lora", seed, 70.0)
    runs = read_runs([tmp_path]).runs
    assert [stranger.run.folder for stranger in strangers({"icons N=5": runs})] == [odd]


def test_values_are_written_short() -> None:
    facts = {"split": "0123456789abcdef" * 2, "method.rank": 4, "x_y": None, "flags": [True, []]}
    assert describe(facts) == "split 0123456789ab, rank 4, x y none, flags true/none"
