"""The command line as a person meets it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from places import ROOT
from tta_apm import cli


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "run.py", *arguments], cwd=ROOT, text=True,
                          capture_output=True, timeout=60)


def test_help_names_the_commands():
    done = run("--help")
    assert done.returncode == 0
    assert "--cfg" in done.stdout and "tta-apm table" in done.stdout
    assert all(command.help in done.stdout for command in cli.COMMANDS.values())


HELP = """
import sys
from tta_apm import cli
try:
    cli.main([*sys.argv[1].split(), "--help"])
finally:
    print([name for name in ("torch", "matplotlib", "timm") if name in sys.modules])
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["data", *cli.COMMANDS])
def test_every_command_says_what_it_takes_and_imports_nothing_heavy_for_it(name):
    done = subprocess.run([sys.executable, "-c", HELP, name], cwd=ROOT, text=True,
                          capture_output=True, timeout=60)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert f"tta-apm {name}".removesuffix(" run") in done.stdout
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize("words, message", [
    ("cost METHODS [apm] --cfg cfgs/digits_c/all.yaml APM.STEPS some", "APM.STEPS takes a whole"),
    ("METHODS [apm] --cfg cfgs/digits_c/all.yaml APM.STEPS some", "APM.STEPS takes a whole"),
    ("pretrain STEPS 3 --cfg cfgs/pretrain/quick.yaml PRECISION half", "PRECISION: unknown 'half'"),
    ("data make --severity 7 imagenet_c --corruptions fog", "--severity 7"),
    ("data check digits --severity 7 digits_c", "--severity 7"),
    ("table --metric error no/such/folder --published", "no/such/folder"),
    ("export csv --to a.csv no/such/folder", "no/such/folder"),
    ("import no.log --into {} other.log", "none of the 2 files"),
    ("query --student {}/none.pth a.png --at 0,0", "student not found"),
    ("interpolate a.png --student {}/none.pth b.png", "student not found"),
    ("host --repo {} ttab", "there is no run_exp.py in"),
])
def test_words_and_options_come_in_any_order(words, message, tmp_path, capsys):
    assert cli.main(words.format(tmp_path).split()) == cli.BAD_INPUT
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("arguments, message", [
    (("--cfg", "cfgs/digits_c/nowhere.yaml"), "config file not found"),
    (("--cfg", "cfgs/digits_c/all.yaml", "SEVERITI", "5"), "did you mean 'SEVERITY'"),
    (("--cfg", "cfgs/digits_c/all.yaml", "SEVERITY", "6"), "SEVERITY 6"),
    (("table", "no/such/folder"), "no/such/folder"),
    ((), "--cfg"),
    (("tabel", "some/folder"), "unknown command 'tabel': did you mean 'table'?"),
    (("data", "chek", "digits"), "unknown command 'data chek': did you mean 'data check'?"),
    (("data",), "unknown command 'data': did you mean 'data get'?"),
    (("--cfg", ""), "no config file is named"),
    (("--cfg", "x" * 300), "a name is too long for the file system: xxx"),
    (("plot", "x" * 300), "a name is too long for the file system: xxx"),
    (("data", "check", "cifar10", "--data-dir", "x" * 300), "a name is too long for the file"),
    (("pretrain", "--cfg", "cfgs/pretrain/quick.yaml", "IMAGE_SIZE", "100000000", "PATCH", "10"),
     "weights, too many for any memory"),
    (("SEVERITY", "5"), "unknown command 'SEVERITY'"),
])
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_more_memory_than_there_is_is_one_sentence(tmp_path):
    done = run("pretrain", "--cfg", "cfgs/pretrain/quick.yaml", "BATCH_SIZE", "9000000000000000000",
               "OUTPUT_DIR", str(tmp_path / "out"))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "out of memory" in done.stderr


HEAVY = """
import sys
from tta_apm import cli
code = cli.main(sys.argv[1:])
print([name for name in ("torch", "timm", "open_clip", "robustbench") if name in sys.modules])
"""


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [
    ("--cfg", "cfgs/digits_c/nowhere.yaml"),
    ("--cfg", "cfgs/digits_c/all.yaml", "APM.STEPZ", "5"),
    ("--cfg", "cfgs/digits_c/all.yaml", "--dry-run"),
    ("--cfg", "cfgs/imagenet_c/apm.yaml", "DATA_DIR", "no/such/folder"),
    ("table", "no/such/folder"),
])
def test_answers_that_need_no_network_import_none(arguments):
    done = subprocess.run([sys.executable, "-c", HEAVY, *arguments], cwd=ROOT, text=True,
                          capture_output=True, timeout=60)
    assert done.stdout.endswith("[]\n"), done.stdout + done.stderr
