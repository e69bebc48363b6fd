"""A stand-in for the command line of LINs-lab/ttab, which refuses methods it does not know."""

import argparse


def get_args():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model_adaptation_method", default="tent",
                        choices=["no_adaptation", "tent"])
    parser.add_argument("--model_selection_method", default="last_iterate")
    parser.add_argument("--base_data_name", default="cifar10")
    parser.add_argument("--data_path", default=".")
    parser.add_argument("--data_names", default="fabricated")
    parser.add_argument("--ckpt_path", default="parameters.py")
    parser.add_argument("--model_name", default="resnet26")
    parser.add_argument("--episodic", default=False, type=lambda text: text == "true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", default=1, type=int)
    parser.add_argument("--trace", default="trace.json")
    return parser.parse_args()
