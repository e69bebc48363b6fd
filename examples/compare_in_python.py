"""A comparison of methods in Python, without a config; it has the command line's numbers.

    python examples/compare_in_python.py
"""

from tta_apm import evaluate, load_backbone, load_dataset, load_method


def main() -> None:
    dataset = load_dataset("digits_c")
    classifier = load_backbone("classifier", "timm/digits_resnet", "digits_resnet.safetensors",
                               dataset=dataset)
    for name in ("source", "norm", "tent"):
        method = load_method(name, classifier)
        cells, images = evaluate(method, dataset, corruptions=["fog", "contrast"], severities=[5],
                                 num_images=200)
        print(f"{name}: {len(images)} predictions")
        print(cells[["corruption", "severity", "num_images", "error", "seconds"]].round(3))


if __name__ == "__main__":
    main()
