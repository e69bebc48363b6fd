"""Text features on disk: encoded once per model, weights, class names and templates."""

from __future__ import annotations

import copy

import pytest
import torch

from tta_apm.backbones import text_cache
from tta_apm.backbones.clip import encode_classes

NAMES, TEMPLATES = ("one", "two", "three"), ("a photo of a {}.", "the digit {}.")


@pytest.fixture
def load(digits_clip, tmp_path, monkeypatch):
    """Text features of the digits CLIP, and whether the text tower was run."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = copy.deepcopy(digits_clip.model)
    calls: list[torch.Tensor] = []
    model.encode_text = lambda tokens: calls.append(tokens) or digits_clip.model.encode_text(tokens)

    def make(**changes):
        calls.clear()
        keywords = dict(class_names=NAMES, templates=TEMPLATES, model="digits_clip", weights="a 1f",
                        device="cpu") | changes
        features = text_cache.cached(
            lambda: encode_classes(model, digits_clip.tokenizer, keywords["class_names"],
                                   keywords["templates"]), **keywords)
        return features, bool(calls)

    return make


def test_the_second_load_takes_what_the_first_kept(load):
    (first, encoded), (second, again) = load(), load()
    assert encoded and not again
    assert torch.equal(first, second)
    # Otherwise sums over both differ in their last bits.
    assert first.data_ptr() % 64 == second.data_ptr() % 64 == 0


@pytest.mark.parametrize("change", [
    dict(class_names=("one", "two", "four")), dict(class_names=("two", "one", "three")),
    dict(templates=("a photo of a {}.", "the number {}.")), dict(templates=TEMPLATES[:1]),
    dict(weights="a 2f"), dict(model="other_clip")])
def test_anything_else_is_encoded_anew(load, change):
    first, _ = load()
    changed, encoded = load(**change)
    assert encoded
    if {"class_names", "templates"} & change.keys():
        assert not torch.equal(first, changed)
    assert torch.equal(load(**change)[0], changed)
    assert not load()[1]  # the first is still there


@pytest.mark.parametrize("content", [b"", b"no tensors", None])
def test_a_file_that_does_not_read_is_written_again(load, content):
    first, _ = load()
    file, = text_cache.folder().iterdir()
    file.write_bytes(file.read_bytes()[:-4] if content is None else content)
    again, encoded = load()
    assert encoded and torch.equal(first, again)
    assert not load()[1]


def test_where_nothing_can_be_written_it_goes_without(load, tmp_path):
    (tmp_path / "tta_apm").write_text("in the way")
    assert load()[1] and load()[1]


def test_packaged_weights_are_cached_too(digits_clip):
    assert list(text_cache.folder().glob("*.safetensors"))  # conftest loaded digits_clip
