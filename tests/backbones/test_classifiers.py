"""Classifiers of timm, torchvision and robustbench, and all their error messages."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from tta_apm.backbones.classifiers import load_classifier
from tta_apm.errors import UserError

pytestmark = pytest.mark.slow  # sweeps, processes or training


@pytest.mark.parametrize("save, extension", [
    (lambda state, file: torch.save(state, file), "pth"),
    (lambda state, file: torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}},
                                    file), "pth"),
    (lambda state, file: save_file(state, file), "safetensors")])
def test_timm_with_a_file(save, extension, tmp_path):
    net = timm.create_model("resnet10t", num_classes=7).eval()
    file = tmp_path / f"weights.{extension}"
    save(net.state_dict(), file)
    backbone = load_classifier("timm/resnet10t", str(file), num_classes=7, device="cpu")
    images = torch.rand(2, 3, 176, 176)
    assert backbone.image_size == net.pretrained_cfg["input_size"][-1] == 176
    with torch.no_grad():
        # Another memory format changes the order of sums.
        assert torch.allclose(backbone(images), net((images - backbone.mean) / backbone.std),
                              atol=1e-5)
    assert backbone.weights.startswith(f"weights.{extension} ")


def test_torchvision_with_a_file(tmp_path):
    from torchvision import models
    net = models.get_model("mobilenet_v3_small", num_classes=10).eval()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    backbone = load_classifier("torchvision/mobilenet_v3_small", str(tmp_path / "net.pth"),
                               num_classes=10, device="cpu")
    assert backbone.image_size == 224
    assert backbone.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert backbone(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_robustbench_with_a_file(tmp_path):
    """robustbench's own loader reads the file; the network normalises images itself."""
    from tta_apm.compat import import_robustbench
    import_robustbench()
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel
    zoo = model_dicts[BenchmarkDataset.cifar_10][ThreatModel.corruptions]
    net = zoo["Hendrycks2020AugMix_WRN"]["model"]().eval()
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}},
               tmp_path / "augmix.pt")
    backbone = load_classifier("robustbench/Hendrycks2020AugMix_WRN", str(tmp_path / "augmix.pt"),
                               num_classes=10, device="cpu")
    images = torch.rand(8, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(backbone(images), net(images), atol=1e-5)  # another memory layout
    assert backbone.image_size is None and backbone.weights.startswith("augmix.pt ")


@pytest.mark.parametrize("model, weights, num_classes, message", [
    ("resnet18", "", 10, "'resnet18' must be one of timm/NAME, torchvision/NAME, robustbench/NAME"),
    ("keras/resnet18", "", 10, "must be one of timm/NAME"),
    ("timm/", "", 10, "must be one of timm/NAME"),
    ("timm/resnet81", "", 1000, "timm has no 'resnet81': did you mean 'resnet"),
    ("timm/resnet18.a1", "", 1000, "timm has no 'resnet18.a1': did you mean 'resnet18"),
    ("timm/resnet18", "", 10, "timm's resnet18 has 1000 classes, the data set 10"),
    ("timm/digits_resnet", "", 10, "timm has no weights for 'digits_resnet'"),
    ("timm/resnet18", "no.pth", 10, "CLASSIFIER.WEIGHTS: file not found: 'no.pth'"),
    ("timm/resnet18", "digits_resnet.safetensors", 10,
     r"is of another network than timm's resnet18: .*layer1.1.bn1.bias"),
    ("timm/digits_resnet", "digits_resnet.safetensors", 7, "has 10 classes, the data set 7"),
    ("torchvision/resnet81", "", 1000, "torchvision has no 'resnet81': did you mean 'resnet"),
    ("torchvision/resnet50", "IMAGENET1K_V3", 1000, "did you mean 'IMAGENET1K_V"),
    ("torchvision/resnet50", "", 10, "V2 has 1000 classes, the data set 10"),
    ("robustbench/Standrad", "", 10, "robustbench's cifar10 has no 'Standrad': did you mean 'Sta"),
    ("robustbench/Standard", "", 7, r"robustbench has models for \[10, 100, 1000\] classes, not 7"),
    ("robustbench/Standard_R50", "digits_resnet.safetensors", 1000, "leave CLASSIFIER.WEIGHTS emp"),
])
def test_wrong_classifier(model, weights, num_classes, message):
    with pytest.raises(UserError, match=message):
        load_classifier(model, weights, num_classes=num_classes, device="cpu")


@pytest.mark.parametrize("model, weights, message", [
    ("timm/resnet10t", "", r"model.safetensors of timm/resnet10t.c3_in1k .*no network here"),
    ("torchvision/resnet18", "IMAGENET1K_V1", r"https://download.pytorch.org/models/resnet18-"
     r"f37072fd.pth does not load: .*no network here.*/nowhere/checkpoints/resnet18-f37072fd.pth"),
    ("robustbench/Standard_R50", "", r"robustbench's Standard_R50 does not load: .*no network"),
])
def test_classifier_offline_says_what_to_download(model, weights, message, offline):
    with pytest.raises(UserError, match=message):
        load_classifier(model, weights, num_classes=1000, device="cpu")


def test_robustbench_download_failure_names_link_and_folder(monkeypatch, tmp_path):
    from tta_apm.compat import import_robustbench
    import_robustbench()
    monkeypatch.chdir(tmp_path)

    def refuse(**keywords):
        raise OSError("no network here")
    monkeypatch.setattr("gdown.download", refuse)
    with pytest.raises(UserError, match=r"https://drive.google.com/uc\?id=\S+ does not load: .*no "
                       "network here.*models/cifar10/corruptions/Hendrycks2020AugMix_WRN.pt"):
        load_classifier("robustbench/Hendrycks2020AugMix_WRN", "", num_classes=10, device="cpu")
