"""Render: a table as Markdown, LaTeX and text of a terminal: escaped, aligned, within the width."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tta_apm.data.corruptions.constants import CORRUPTIONS
from tta_apm.report.write import make_tables


def check_latex(text):
    """Braces balance, environments close, every row has as many cells as the columns."""
    bare = re.sub(r"(?m)^%.*$", "", text)
    bare = re.sub(r"\\(textbackslash|textbar|textless|textgreater)\{\}|\\[{}&%#_$]", "", bare)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    assert not re.search("[^\x00-\x7f]", bare)
    tables = re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", bare, re.S)
    assert len(tables) == bare.count("\\begin") == bare.count("\\end") > 0
    for columns, body in tables:
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(rows) > 1
        assert {line.count("&") for line in rows} == {len(columns) - 1}


def test_names_are_escaped(write_cell, tmp_path):
    write_cell(r"my_tent A|B *x* __y__ 50% {z} \w <b> [a](b)", "fog", 9, backbone="net_1|2")
    make_tables(tmp_path).write(tmp_path)
    markdown = (tmp_path / "table.md").read_text()
    assert r"my_tent A\|B \*x\* \_\_y\_\_ 50% {z} \\w \<b\> [a\](b)" in markdown
    assert r"net_1\|2" in markdown
    tex = (tmp_path / "table.tex").read_text()
    assert r"my\_tent A\textbar{}B *x* \_\_y\_\_ 50\% \{z\} \textbackslash{}w" in tex
    check_latex(tex)


def test_markdown_tables_are_aligned(write_cell, tmp_path):
    for corruption in CORRUPTIONS:
        write_cell("a_long_name LR 0.001", corruption, 9, teacher=3)
        write_cell("tent", corruption, 10)
    make_tables(tmp_path).write(tmp_path)
    lines = (tmp_path / "table.md").read_text().splitlines()
    widths = {len(line) for line in lines if line.startswith("| ")}
    assert len(widths) == 2  # that of the main table, and of the one against the teacher
    assert any(" gauss |" in line for line in lines)


@pytest.mark.slow
def test_latex_is_well_formed(write_cell, tmp_path):
    for severity in (1, 5):
        for corruption in CORRUPTIONS:
            for seed in (0, 1):
                write_cell("apm", corruption, 9 - seed, teacher=7, severity=severity, seed=seed)
                write_cell("tent", corruption, 9, severity=severity, seed=seed)
    make_tables(tmp_path).write(tmp_path)
    text = (tmp_path / "table.tex").read_text()
    check_latex(text)
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 3


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no TeX is installed")
def test_latex_fits_a_page(write_cell, tmp_path):
    """Compiled: no line is wider than the page, with 15 corruptions, long names and paths."""
    for corruption in CORRUPTIONS:
        write_cell("apm STEPS 20 HIDDEN [256,128] IMAGE_SIZE 32", corruption, 9, teacher=7,
                   hyper_parameters={"repo": "/long/path/to/a/clone_of_others/test-time-adapt"})
        write_cell("online_tta NAME cotta CFG cfgs/cifar10_c/cotta.yaml", corruption, 9)
    make_tables(tmp_path).write(tmp_path)
    (tmp_path / "page.tex").write_text(
        "\\documentclass{article}\n\\usepackage{booktabs,graphicx}\n\\begin{document}\n"
        "\\input{table.tex}\n\\end{document}\n")
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"],
                          cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    wide = re.findall(r"Overfull .hbox \((\d+)\.", done.stdout)
    assert all(int(points) < 5 for points in wide), done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("columns", [40, 60, 100, 200])
def test_the_terminal_text_keeps_to_the_width(write_cell, tmp_path, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    for row in ("apm STEPS 10", "apm STEPS 20", "clip_zero_shot", "norm", "source", "tent"):
        for corruption in CORRUPTIONS:
            write_cell(row, corruption, 9, teacher=8 if row.startswith("apm") else None)
    text = make_tables(tmp_path).terminal
    assert max(map(len, text.splitlines())) <= columns
    assert text.count("gaussian_noise") == text.count("\nmean ") >= 1


@pytest.mark.parametrize("columns", [60, 100, 200])
def test_names_in_the_terminal_break_between_words_only(write_cell, tmp_path, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    name = "tpt WEIGHTS digits_coop.safetensors STEPS 10 MODEL ViT-B-16-quickgelu"
    for row in (name, "source"):
        write_cell(row, "fog", 9)
    text = make_tables(tmp_path).terminal
    heads = text.split("\nfog")[0]
    assert "digits_coop.safetensors" in heads and "ViT-B-16-quickgelu" in heads
    assert max(map(len, text.splitlines())) <= columns
    assert "\x1b" not in text and text == make_tables(tmp_path).terminal
