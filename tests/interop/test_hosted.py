"""Hosted: single images, windows and resets; what all hosts refuse; the commit of a clone."""

from __future__ import annotations

import subprocess

import pytest
import torch

from host_runs import IN_HOST_CLIP
from tta_apm.interop.hosts import launch
from tta_apm.interop.hosts.hosted import Hosted
from tta_apm.method import Method


class Counting(Method):
    """A method whose logits encode the number of its updates and of images."""

    def __init__(self, scope: str) -> None:
        super().__init__()
        self.scope = scope  # type: ignore[misc]
        self.reset()

    def forward(self, images):
        self.updates += 1
        return torch.tensor([[self.updates, len(images)]]).expand(len(images), 2)

    def reset(self):
        self.updates = 0


def single(hosted: Hosted, count: int) -> list[list[int]]:
    return [hosted(torch.zeros(1, 3, 4, 4))[0].tolist() for _ in range(count)]


def test_a_method_that_sees_images_alone_gets_no_company():
    assert single(Hosted(Counting("image"), window=4), 3) == [[1, 1], [2, 1], [3, 1]]


def test_a_window_of_single_images_fills_and_slides():
    assert single(Hosted(Counting("batch"), window=3), 5) == [[1, 1], [2, 2], [3, 3], [4, 3],
                                                              [5, 3]]


def test_state_moves_on_once_per_window():
    hosted = Hosted(Counting("stream"), window=3)
    # The predictions in between are from copies, which are one update ahead.
    assert single(hosted, 6) == [[1, 1], [1, 2], [1, 3], [2, 3], [2, 3], [2, 3]]
    assert hosted.method.updates == 2


def test_the_last_image_of_a_domain_joins_those_before_it():
    hosted = Hosted(Counting("stream"))
    hosted(torch.zeros(5, 3, 4, 4))
    assert single(hosted, 1) == [[2, 5]]


def test_episodic_and_reset_every():
    hosted = Hosted(Counting("stream"), episodic=True)
    assert [hosted(torch.zeros(2, 3, 4, 4))[0, 0].item() for _ in range(3)] == [1, 1, 1]
    hosted = Hosted(Counting("stream"), reset_every=2)
    assert [hosted(torch.zeros(2, 3, 4, 4))[0, 0].item() for _ in range(5)] == [1, 2, 1, 2, 1]


def test_of_a_list_of_views_the_first_is_the_image():
    images = torch.zeros(2, 3, 4, 4)
    assert Hosted(Counting("image"))([images, images[:1]]).shape == (2, 2)


# The hosts

@pytest.mark.parametrize("words", [
    ("online-tta", "--cfg", "cfgs/tent.yaml", "MODEL.ADAPTATION", "shot", *IN_HOST_CLIP),
    ("ttab", "--model_adaptation_method", "shot"),
    ("benchmark-tta", "--cfg", "cfgs/source.yaml", "MODEL.ADAPTATION", "shot")],
    ids=lambda words: words[0])
@pytest.mark.usefixtures("hosts_of_digits")
def test_an_offline_method_is_refused(words, refused):
    assert "shot is offline: it sees all images of a domain before" in refused(*words)


def test_another_commit_and_changed_files_are_told(tmp_path, capsys):
    def git(*words: str) -> str:
        return subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words],
                              cwd=tmp_path, check=True, text=True, capture_output=True).stdout

    def said(tested: str) -> str:
        launch.tell_commit(tmp_path, tested)
        return capsys.readouterr().err

    file = tmp_path / "test_time.py"
    file.write_text("")
    assert said("8b2ed63") == ""  # no clone of git's
    git("init", "-q"), git("add", "."), git("commit", "-qm", "x")
    here = git("rev-parse", "HEAD")[:7]
    assert said(here) == ""
    assert said("8b2ed63") == f"tta-apm: the clone is at commit {here}, tested is 8b2ed63\n"
    file.write_text("changed")
    assert said(here) == "tta-apm: the clone differs from its commit in 1 file\n"
