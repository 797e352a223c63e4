"""The LaTeX form is what a paper can use."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmlora_dist.report import make_report, read_runs
from fmlora_dist.report.latex import PACKAGES, to_latex
from result_files import write_whole

Write = Callable[..., Path]

tex = pytest.mark.skipif(
    not (shutil.which("pdflatex") and shutil.which("pdftoppm")),
    reason="needs pdflatex and pdftoppm: Debian's texlive-latex-base, texlive-latex-recommended and poppler-utils",
)


def test_what_latex_reads_as_commands_is_escaped(write_run: Write, tmp_path: Path) -> None:
    write_run("a_b&c%d#e$f{g}~h^i\\j<k", 0, 70.0, recipe={"note": "λ ≥ 1"})
    text = to_latex(make_report(read_runs([tmp_path])))
    escaped = r"a\_b\&c\%d\#e\$f\{g\}\textasciitilde{}h\textasciicircum{}i\textbackslash{}j\textless{}k [1] & 70.00"
    assert escaped in text
    assert "note ? ? 1" in text


def test_the_files_first_line_says_how_it_is_used(grid: Path) -> None:
    first = to_latex(make_report(read_runs([grid]))).splitlines()[0]
    assert first.startswith("%") and r"\usepackage{array,booktabs,graphicx,longtable,xcolor}" in first


@pytest.fixture
def paper(tmp_path: Path) -> Path:
    """A comparison with holes, published numbers, an ablation, several benchmarks; the folder of its tables.tex."""
    runs = tmp_path / "paper" / "runs"
    for benchmark, n_tasks in (("imagenet_r", 5), ("imagenet_r", 10), ("imagenet_r", 20), ("cifar100", 10)):
        for method, level in (("lora", 68.0), ("inflora", 74.0), ("sdlora", 77.0), ("fmlora", 79.0), ("joint", 82.0)):
            for seed in range(3 if method == "fmlora" else 5):
                write_whole(runs, method, seed, level, benchmark=benchmark, n_tasks=n_tasks)
    for seed in range(5):
        write_whole(runs, "fmlora", seed, 76.0, method={"drs": False, "prompt_tokens": 0})
        for variant, rank in (("official", 5), ("default", 12)):  # rows with long names
            more = {"variant": variant, "rank": rank, "alpha": 0.1234567 * rank, "later_ranks": [rank] * 9}
            write_whole(runs, "sdlora", seed, 70.0 + rank, benchmark="cub200", method=more)
    broken = runs / "brokenrun"
    broken.mkdir()
    (broken / "result.json").write_text("{")
    (tmp_path / "tables.tex").write_text(to_latex(make_report(read_runs([runs]))), encoding="utf-8")
    return tmp_path


@tex
@pytest.mark.long
def test_it_compiles_fits_the_page_and_can_be_looked_at(paper: Path) -> None:
    lines = [r"\documentclass[a4paper]{article}", r"\usepackage[margin=2cm]{geometry}"]
    lines += [rf"\usepackage{{{','.join(PACKAGES)}}}", r"\begin{document}", r"\listoftables"]
    lines += [r"\input{tables}", r"\end{document}"]
    (paper / "paper.tex").write_text("\n".join(lines))
    for _ in range(3):  # longtable finds its widths by and by
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
        done = subprocess.run(command, cwd=paper, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    listed = re.findall(r"\\contentsline \{table\}\{(.*?)\}\{\d+\}", (paper / "paper.lot").read_text())
    assert len(listed) == len({*listed}) > 3, "a table of several pages is named once"
    assert "Missing character" not in (paper / "paper.log").read_text(errors="replace")
    subprocess.run(["pdftoppm", "-r", "60", "-png", "-singlefile", "paper.pdf", "page"], cwd=paper, check=True)
    page = np.asarray(Image.open(paper / "page.png").convert("L"))
    assert (page < 128).mean() > 0.01  # there is ink
    assert (page[:, :20] > 250).all() and (page[:, -20:] > 250).all()  # and none in the margins
    text = subprocess.run(["pdftotext", "-layout", "paper.pdf", "-"], cwd=paper, capture_output=True, text=True).stdout
    assert "ImageNet-R" in text and "Published numbers" in text and "brokenrun" in text
