"""README and docs: commands are ones that we take, configs load, links lead somewhere."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from places import ROOT
from tta_apm import cli, config
from tta_apm.fields.config import from_config, keys

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks/RESULTS.md"]
FENCED = re.compile(r"^```\w*\n(.*?)^```", re.S | re.M)
OURS = ("tta-apm", "python run.py", "python -m tta_apm", "python benchmarks/")
PLUGIN = "my_method.py"


# First words of commands that are named.
FIRST_WORDS = {name.split()[0] for name in cli.COMMANDS}


def commands(text: str) -> list[str]:
    """The commands of ours that a page shows, in blocks and in running text."""
    blocks = "\n".join(FENCED.findall(text))
    lines = [part.strip().removeprefix("$ ") for line in re.sub(r"\\\n\s*", "", blocks).splitlines()
             for part in line.split(" && ")]
    lines += [" ".join(part.split()) for part in re.findall(r"`([^`]+)`", FENCED.sub("", text))]
    # What follows two spaces explains the command; [NAME ...] may be left out.
    shown = [re.sub(r" \[[A-Z]+ \.\.\.\]", "", re.split(r"\s{2,}", line)[0]) for line in lines]
    return [line for line in shown if line.startswith(OURS) and is_whole(line)]


def is_whole(line: str) -> bool:
    """Whether a command can be run as it stands: neither a mere name nor one with a gap."""
    words = line.split()
    options = words[1:] if words[0] == "tta-apm" else words[2:]
    known = options and (options[0].startswith("--") or options[0] in FIRST_WORDS)
    return bool(known and len(options) > 1) and not line.endswith("--cfg ...") or (
        words[:2] == ["python", "-m"] and "NAME" not in words) or (
        len(words) > 1 and words[1].startswith("benchmarks/"))


SHOWN = [pytest.param(command, id=f"{page.name}: {command[:60]}")
         for page in PAGES for command in dict.fromkeys(commands(page.read_text()))]


def test_the_commands_are_found():
    found = {parameter.values[0] for parameter in SHOWN}
    assert len(found) > 50
    assert "tta-apm --cfg cfgs/digits_c/tent.yaml SETTING continual" in found
    assert "python run.py --cfg cfgs/digits_c/quick.yaml" in found
    assert "tta-apm train cifar_clip --data-dir DIR" in found
    assert "tta-apm data check --data-dir D" in found
    assert any(command.endswith("TTA_APM_TENT.LR 0.00025") for command in found)
    assert any(command.startswith("python benchmarks/methods.py") for command in found)


class Parsed(Exception):
    """What a command line was parsed to; raised in place of doing it."""


@pytest.fixture
def parse_only(monkeypatch):
    """Commands stop once their words are parsed."""
    for name in ("parse_args", "parse_intermixed_args"):
        def parse(parser, *arguments, original=getattr(argparse.ArgumentParser, name), **keywords):
            raise Parsed(original(parser, *arguments, **keywords))
        monkeypatch.setattr(argparse.ArgumentParser, name, parse)


@pytest.fixture
def in_a_folder(tmp_path, monkeypatch):
    """Be where README's own method lies, and the examples."""
    text, = [block for block in FENCED.findall((ROOT / "README.md").read_text())
             if "@register" in block]
    (tmp_path / PLUGIN).write_text(text)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words_of(command: str) -> list[str]:
    return [word for word in shlex.split(command) if word != "..."]


@pytest.mark.slow
@pytest.mark.parametrize("command", SHOWN)
def test_a_command_is_one_that_we_take(command, in_a_folder, request, monkeypatch, capsys):
    program, *words = words_of(command)
    if program == "python":
        script, *words = words
        if script == "-m":
            script, *words = words
        if script != "run.py":
            request.getfixturevalue("parse_only")
            takes(script, words, monkeypatch)
            return
    if words[0] in FIRST_WORDS:
        request.getfixturevalue("parse_only")
        with pytest.raises(Parsed) as parsed:
            cli.main(words)
        its_config_loads(words[0], parsed.value.args[0])
        return
    before = sorted(in_a_folder.iterdir())
    assert cli.main([*words, *(["--dry-run"] if "--dry-run" not in words else [])]) == cli.OK
    assert " would run" in capsys.readouterr().out
    assert [path for path in in_a_folder.iterdir() if path.name != "__pycache__"] == before


def test_what_docs_name_for_a_gpu_runs_on_one():
    """In full: that each dry-runs is seen above."""
    text = (ROOT / "docs/apm.md").read_text()
    section, = re.findall(r"^## What remains for a GPU\n(.*?)^## ", text, re.S | re.M)
    found = [command for command in commands(section) if "data check" not in command]
    assert len(found) > 15
    for command in found:
        program, *words = words_of(command)
        if "--cfg" in words:
            file, *overrides = words[words.index("--cfg") + 1:]
            assert config.load(file, overrides).DEVICE == "cuda", command
        else:
            assert words[words.index("--device") + 1] == "cuda", command


def takes(script: str, words: list[str], monkeypatch) -> None:
    """The options of a module of ours, or of a benchmark."""
    if script.startswith("benchmarks/"):
        monkeypatch.syspath_prepend(ROOT / "benchmarks")
        module = importlib.import_module(Path(script).stem)
    else:
        module = importlib.import_module(script)
    monkeypatch.setattr(sys, "argv", [script, *words])
    with pytest.raises(Parsed):
        module.main()


def its_config_loads(command: str, options: argparse.Namespace) -> None:
    if not getattr(options, "cfg", None):
        return
    file, *overrides = options.cfg if isinstance(options.cfg, list) else [options.cfg]
    overrides += getattr(options, "overrides", [])
    if command == "cost":
        config.load(file, overrides)
    else:
        from_config(config.load_keys(file, overrides, keys()))


@pytest.mark.slow
def test_the_method_that_readme_shows_runs(in_a_folder):
    """For real, on few images."""
    command, = [command for command in commands((ROOT / "README.md").read_text())
                if PLUGIN in command]
    done = subprocess.run(
        [sys.executable, ROOT / "run.py", *words_of(command)[1:], "CORRUPTIONS", "fog",
         "NUM_IMAGES", "20", "OUTPUT_DIR", "out"], text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "sharpened" in (in_a_folder / "out/table.md").read_text()


# Links

def links() -> list[tuple[Path, str]]:
    return [(page, target) for page in PAGES
            for target in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", page.read_text()))
            if not re.match(r"https?:|mailto:", target)]


def anchors(text: str) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_are_found():
    assert len(links()) > 20
    assert anchors("# A `b`: c, d\n```\n# no\n```\n## E") == {"a-b-c-d", "e"}


@pytest.mark.parametrize("page, target", links(), ids=lambda value: getattr(value, "name", value))
def test_a_link_leads_somewhere(page, target):
    path, _, anchor = target.partition("#")
    file = page.parent / path if path else page
    assert file.exists()
    assert not anchor or anchor in anchors(file.read_text())


# Files of ours that running text names; docs/hosts name those of others, too.
NAMED = re.compile(r"`((?:tta_apm|baselines|benchmarks|tests|docs|configs|cfgs)/[\w./{},*-]*)`")


def named() -> list[str]:
    text = "".join(page.read_text() for page in PAGES if page.parent.name != "hosts")
    return sorted({target for found in NAMED.findall(text) for target in braced(found)})


def braced(text: str) -> list[str]:
    """a/{b,c}.d as the shell reads it."""
    start, brace, rest = text.partition("{")
    choices, _, end = rest.partition("}")
    return [start + choice + end for choice in choices.split(",")] if brace else [text]


def test_names_of_files_are_found():
    assert len(named()) > 20 and "cfgs/ablations/kernels.yaml" in named()


@pytest.mark.parametrize("name", named())
def test_a_file_that_is_named_is_there(name):
    assert list(ROOT.glob(re.sub("^cfgs", "configs", name).rstrip("/")))
