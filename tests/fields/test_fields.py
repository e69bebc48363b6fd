"""The field a student learns: columns in any order, islands, interpolation, Figure 3, files."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from places import ROOT
from tta_apm.apm.student import MEAN, STD
from tta_apm.cli import main
from tta_apm.errors import UserError
from tta_apm.fields.checkpoint import PUBLISHED, build_student, load_student, save_student
from tta_apm.fields.config import PretrainConfig
from tta_apm.fields.embedding import embed
from tta_apm.fields.field import Field, decode, field_of, interpolate, running_mean
from tta_apm.fields.overfit import overfit
from tta_apm.fields.photos import find_image, read_image
from tta_apm.fields.pictures import paint
from tta_apm.fields.teachers import load_teacher

GRID, FEATURE_DIM = 6, 5
SMALL = PretrainConfig(image_size=24, patch=4, code=8, hidden=(12, 10), teacher="none",
                       grid_weight=0.0)
CHINA, FLOWER = "sklearn/china.jpg", "sklearn/flower.jpg"


@pytest.fixture(scope="module")
def student():
    return build_student(SMALL, FEATURE_DIM).double()


@pytest.fixture(scope="module")
def images():
    return torch.stack([read_image(find_image(name), SMALL.image_size)
                        for name in (CHINA, FLOWER)]).double()


@pytest.fixture
def file(tmp_path):
    save_student(tmp_path / "student.safetensors", build_student(SMALL, FEATURE_DIM), SMALL)
    return tmp_path / "student.safetensors"


def test_decoding_gives_the_numbers_of_the_plain_student(student, images):
    features, colours = decode(student, student.trigger(images))
    for image, of_image, colour in zip(images, features, colours):
        inputs = student.unfold(image)
        assert torch.allclose(of_image, student.columns(inputs), atol=1e-12)
        assert torch.allclose(colour, student.colours(inputs, of_image), atol=1e-12)


def test_columns_come_in_any_order_as_in_the_whole_field(student, images):
    field = field_of(student, images[0])
    whole = field.features().view(GRID, GRID, FEATURE_DIM)
    positions = [(5, 0), (0, 5), (3, 2), (5, 0)]
    columns = list(field.query(iter(positions)))
    assert [(column.x, column.y) for column in columns] == positions
    for column in columns:
        assert torch.allclose(column.feature, whole[column.y, column.x], atol=1e-12)
        assert torch.allclose(column.colour.clamp(0, 1), field.colours()[column.y, column.x])


def test_a_query_computes_nothing_before_it_is_asked(student, images):
    def positions():
        yield 0, 0
        raise AssertionError("the second position was asked for too early")
    assert next(field_of(student, images[0]).query(positions())).x == 0


@pytest.mark.parametrize("position", [(GRID, 0), (0, GRID), (-1, 0)])
def test_a_position_outside_the_grid_is_refused(student, images, position):
    with pytest.raises(UserError, match=r"no column at .*from 0 to 5"):
        list(field_of(student, images[0]).query([position]))


def test_running_mean_is_the_mean(student, images):
    field = field_of(student, images[0])
    columns = field.query((x, y) for x in range(GRID) for y in range(GRID))
    mean = running_mean(column.feature for column in columns)
    assert torch.allclose(mean, field.features().mean(0), atol=1e-12)


MEMORY = """
import itertools, resource, torch
from tta_apm.fields.checkpoint import build_student
from tta_apm.fields.field import Field, running_mean
from tta_apm.fields.config import PretrainConfig

torch.set_num_threads(1)
config = PretrainConfig(image_size=8, patch=1, code=8, hidden=(8,))
student = build_student(config, feature_dim=20000)
field = Field(student, torch.zeros(64))

def megabytes_after(count):
    positions = itertools.islice(itertools.cycle([(1, 2), (7, 0), (3, 3)]), count)
    running_mean(column.feature for column in field.query(positions))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

few = megabytes_after(100)
print(megabytes_after(1500) - few)  # 112 MB, if their features were kept
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit")
def test_peak_memory_does_not_grow_with_the_number_of_columns():
    done = subprocess.run([sys.executable, "-c", MEMORY], text=True, capture_output=True,
                          timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 20


def test_interpolation_ends_at_the_two_reconstructions(student, images):
    start, end = (field_of(student, image) for image in images)
    fields = list(interpolate(start, end, 10))
    assert len(fields) == 11
    assert torch.equal(fields[0].colours(), start.colours())
    assert torch.equal(fields[-1].colours(), end.colours())
    expected = start.trigger + 3 * (end.trigger - start.trigger) / 10
    assert torch.allclose(fields[3].trigger, expected, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("method, dimensions", [("pca", 1), ("pca", 3), ("tsne", 1), ("tsne", 3)])
def test_an_embedding_keeps_islands_apart(method, dimensions):
    island = torch.arange(36) // 18
    features = torch.randn(36, 7, generator=torch.Generator().manual_seed(0)) + 20 * island[:, None]
    embedded = embed(features, method, dimensions, seed=0)
    assert embedded.shape == (36, dimensions)
    assert embedded.min() >= 0 and embedded.max() <= 1
    colours = paint(embedded.reshape(6, 6, dimensions))
    assert colours.shape == (6, 6, 3)
    halves = embedded[:18], embedded[18:]
    gap = np.linalg.norm(halves[0].mean(0) - halves[1].mean(0))
    assert gap > max(half.std(0).max() for half in halves)


@pytest.mark.slow
def test_loss_of_one_image_falls_by_five_orders_of_magnitude():
    """Figure 3: 250 steps on one image, from 1e-3 to 1e-12."""
    cfg = PretrainConfig(image_size=32, patch=4, code=32, hidden=(128, 128),
                         teacher="clip/digits_clip", weights="digits_clip.safetensors",
                         cls_weight=1.0, grid_weight=0.0, rgb_weight=0.0, lr=1e-3)
    teacher = load_teacher(cfg, torch.device("cpu"))
    image = read_image(find_image(CHINA), cfg.image_size)
    before, after = overfit(cfg, teacher, image, (0, 250))
    assert after.loss < 1e-5 * before.loss
    assert before.error.shape == (64,)
    assert torch.isfinite(after.error).all()


NETWORK = f"{ROOT / 'examples/my_network.py'}:resnet20"


@pytest.mark.slow
@pytest.mark.parametrize("name, width, weights", [
    ("timm/resnet10t", 512, "random"), (NETWORK, 64, "random"), (NETWORK, 64, "")])
def test_a_classifier_is_a_teacher(name, width, weights):
    """Its grid are the activations that the head's input is the mean of."""
    cfg = replace(SMALL, image_size=64, teacher=f"classifier/{name}", weights=weights,
                  grid_weight=1.0, rgb_weight=0.0)
    teacher = load_teacher(cfg, torch.device("cpu"))
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features, grid = teacher.encode(images)
    assert features.shape == (2, width) == (2, teacher.feature_dim)
    assert torch.allclose(grid.mean((1, 2)), features, atol=1e-5)
    pooled, places = teacher.targets(images, cfg.grid)
    assert torch.equal(pooled, features) and places.shape == (2, cfg.grid**2, width)
    if weights == "random":
        again, other = (load_teacher(replace(cfg, seed=seed), torch.device("cpu")).weights
                        for seed in (cfg.seed, cfg.seed + 1))
        assert teacher.weights == again != other


@pytest.mark.slow
def test_a_student_of_a_classifier_comes_to_fit_its_grid():
    cfg = PretrainConfig(image_size=32, patch=4, code=32, hidden=(128, 128),
                         teacher=f"classifier/{NETWORK}", weights="random", cls_weight=0.0,
                         grid_weight=1.0, rgb_weight=0.0, lr=1e-3)
    image = read_image(find_image(CHINA), cfg.image_size)
    before, after = overfit(cfg, load_teacher(cfg, torch.device("cpu")), image, (0, 250))
    assert after.error.mean() < 0.1 * before.error.mean()


@pytest.mark.slow
@pytest.mark.parametrize("name, message", [
    ("classifier/vgg11", "CLASSIFIER.MODEL 'vgg11' must be one of"),
    ("classifier/timm/resnet1", "did you mean"),
    ("classifier/timm/vgg11", "has no grid for L_grid"),
])
def test_a_classifier_that_is_no_teacher_is_told_in_a_sentence(name, message):
    cfg = replace(SMALL, teacher=name, weights="random", grid_weight=1.0)
    with pytest.raises(UserError, match=re.escape(message)):
        load_teacher(cfg, torch.device("cpu"))


def test_a_saved_student_comes_back_with_its_recipe(student, images, file):
    trained = load_student(file)
    assert trained.cfg == SMALL
    shown = trained.preprocess(images)
    assert trained.preprocess.image_size == SMALL.image_size
    assert torch.allclose(shown, (images - torch.tensor(MEAN).view(3, 1, 1))
                          / torch.tensor(STD).view(3, 1, 1))
    assert not any(parameter.requires_grad for parameter in trained.student.parameters())
    mine = Field(trained.student, trained.student.trigger(images[0].float()))
    assert torch.allclose(mine.features().double(), field_of(student, images[0]).features(),
                          atol=1e-5)


class PlainPublished(nn.Module):
    """The layers of the authors' model.py under their names, for any size of grid."""

    def __init__(self, side: int, patch: int, widths: tuple[int, ...], feature_dim: int) -> None:
        super().__init__()
        size = side * side
        sizes = [2 * size, *widths]
        for number in range(5):
            self.add_module(f"fc{number + 1}", nn.Linear(sizes[number], sizes[number + 1]))
        self.feat_proj_head = nn.Linear(widths[-1], feature_dim)
        self.rgb_head_1 = nn.Linear(feature_dim + 2 * size, 256)
        self.rgb_head_2 = nn.Linear(256, 256)
        self.rgb_head_3 = nn.Linear(256, 3)
        self.conv1 = nn.Conv2d(3, 1, patch, stride=patch)

    def forward(self, blue_green_red, code):
        """A stretched image [3,H,W] -> features [L,D] and blue, green, red [L,3]."""
        trigger = self.conv1(blue_green_red[None]).flatten()
        inputs = hidden = torch.cat([trigger.expand(len(code), -1), code], 1)
        for number in range(5):
            hidden = getattr(self, f"fc{number + 1}")(hidden).relu()
        features = self.feat_proj_head(hidden)
        colours = torch.cat([features, inputs], 1)
        for head in (self.rgb_head_1, self.rgb_head_2, self.rgb_head_3):
            colours = head(colours).relu()
        return features, colours


def test_the_published_checkpoint_gives_the_numbers_of_its_code(images, tmp_path):
    torch.manual_seed(0)
    net = PlainPublished(4, 6, (16, 14, 12, 10, 8), FEATURE_DIM)
    torch.save(net.state_dict(), tmp_path / "model_15.pth")
    trained = load_student(tmp_path / "model_15.pth")
    image = images[0].float()
    field = field_of(trained.student, trained.preprocess(image[None])[0])
    stretched = (image - image.min()) / (image.max() - image.min())
    features, colours = net(stretched.flip(0), trained.student.code.flatten(0, 1))
    assert torch.allclose(field.features(), features, atol=1e-5)
    assert torch.allclose(field.colours().flatten(0, 1), colours.flip(1).clamp(0, 1), atol=1e-5)


@pytest.mark.slow
def test_the_published_checkpoint_has_the_size_of_table_6(tmp_path):
    with torch.device("meta"):
        shapes = PlainPublished(32, 14, (4096, 4096, 4096, 2048, 1024), 1024).state_dict()
    # Zeros that take no space on disk.
    torch.save({name: torch.zeros(1).expand(tensor.shape) for name, tensor in shapes.items()},
               tmp_path / "model_15.pth")
    student = load_student(tmp_path / "model_15.pth").student
    assert {name.rpartition(".")[0] for name in shapes} == set(PUBLISHED)
    without_colours = sum(parameter.numel() for name, parameter in student.named_parameters()
                          if not name.startswith("rgb"))
    assert without_colours == 53_494_349
    assert (student.grid, student.patch) == (32, 14)


@pytest.mark.slow
@pytest.mark.parametrize("options, pictures", [
    (("islands", CHINA, FLOWER, "--embedding", "pca"), ["islands.png"]),
    (("islands", CHINA, "--over", "--dimensions", "1"), ["islands.png"]),
    (("reconstruct", CHINA), ["reconstruction.png"]),
    (("interpolate", CHINA, FLOWER, "-n", "3"), ["interpolation.png", "interpolation.gif"]),
])
def test_commands_draw(file, options, pictures, tmp_path, capsys):
    out = tmp_path / pictures[0]
    assert main([*options, "--student", str(file), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    for name in pictures:
        with Image.open(tmp_path / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 1
            assert getattr(picture, "n_frames", 1) == (6 if name.endswith("gif") else 1)
        assert name in said


@pytest.mark.slow
def test_islands_on_the_way_of_test_time_training(tmp_path):
    config = tmp_path / "figure3.yaml"
    config.write_text("TEACHER: clip/digits_clip\nWEIGHTS: digits_clip.safetensors\n"
                      "IMAGE_SIZE: 24\nPATCH: 4\nCODE: 8\nHIDDEN: [16]\n"
                      "CLS_WEIGHT: 1\nGRID_WEIGHT: 0\nRGB_WEIGHT: 0\nLR: 1e-3\nDEVICE: cpu\n")
    out = tmp_path / "strip.png"
    assert main(["islands", CHINA, "--cfg", str(config), "--steps", "0", "2", "--embedding", "pca",
                 "--out", str(out)]) == 0
    with Image.open(out) as picture:
        assert picture.width > picture.height > 200


def test_query_prints_and_writes_what_it_was_asked_for(file, tmp_path, capsys):
    out = tmp_path / "columns.csv"
    assert main(["query", CHINA, "--student", str(file), "--at", "5,0", "2,3",
                 "--out", str(out)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3 and "colour #" in said[0] and said[2].startswith("mean of 2")
    rows = [line.split(",") for line in out.read_text().splitlines()]
    assert [row[:2] for row in rows] == [["5", "0"], ["2", "3"]]
    assert all(len(row) == 2 + 3 + FEATURE_DIM for row in rows)


@pytest.mark.parametrize("words, message", [
    (["reconstruct", "no.jpg"], "image not found: 'no.jpg'"),
    (["reconstruct", "sklearn/chna.jpg"], "did you mean 'sklearn/china.jpg'?"),
    (["reconstruct", "{text}"], "cannot read the image"),
    (["query", CHINA, "--at", "6,0"], "no column at 6,0: the grid is 6×6"),
    (["interpolate", CHINA, FLOWER, "-n", "0"], "give at least one"),
    (["islands", CHINA, "--error-map"], "names no teacher"),
    (["islands", CHINA, "--out", "{folder}/islands.jpg"], "written as .png or .svg"),
])
def test_bad_input_is_one_sentence(file, tmp_path, capsys, words, message):
    (tmp_path / "text.jpg").write_text("no picture")
    words = [word.format(text=tmp_path / "text.jpg", folder=tmp_path) for word in words]
    assert main([*words, "--student", str(file)]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_wrong_config_is_told_before_torch_is_imported():
    """In a fraction of a second; torch takes several."""
    subprocess.run([sys.executable, "-c", "import sys; from tta_apm.cli import main; "
                    "assert main(['islands', 'x.jpg', '--cfg', 'cfgs/pretrain/quick.yaml', 'LR', "
                    "'0']) == 2; assert not {'torch', 'sklearn'} & set(sys.modules)"], check=True)


def write_nothing(path: Path) -> None:
    path.write_bytes(b"")


def write_other_weights(path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, path)


def write_half(path: Path) -> None:
    save_student(path, build_student(SMALL, FEATURE_DIM), SMALL)
    path.write_bytes(path.read_bytes()[:-100])


def write_other_recipe(path: Path) -> None:
    save_student(path, build_student(SMALL, FEATURE_DIM), replace(SMALL, hidden=(12,)))


@pytest.mark.parametrize("name, write, message", [
    ("nowhere.pth", None, "student not found"),
    ("empty.pth", write_nothing, "not a checkpoint of weights"),
    ("other.pth", write_other_weights, "neither a student"),
    ("half.safetensors", write_half, "is corrupt or incomplete"),
    ("config.safetensors", write_other_recipe, "not hold the student that its config describes"),
])
def test_a_wrong_checkpoint_is_one_sentence(tmp_path, name, write, message):
    if write:
        write(tmp_path / name)
    with pytest.raises(UserError, match=message) as caught:
        load_student(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_fault_of_ours_is_never_told_as_a_wrong_checkpoint(file, monkeypatch):
    def slip(cfg: PretrainConfig) -> None:
        raise TypeError("a slip of ours")
    monkeypatch.setattr(PretrainConfig, "check", slip)
    with pytest.raises(TypeError, match="a slip of ours"):
        load_student(file)


def test_a_student_without_rgb_head_cannot_reconstruct():
    cfg = replace(SMALL, rgb_weight=0.0, cls_weight=1.0, teacher="timm/test_vit")
    student = build_student(cfg, FEATURE_DIM)
    with pytest.raises(UserError, match="no RGB head"):
        Field(student, torch.zeros(GRID**2)).colours()
