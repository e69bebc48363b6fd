"""The command `tta-apm` from a checkout: `python run.py --cfg configs/digits_c/all.yaml`."""
import sys

from tta_apm.cli import main_of_process

if __name__ == "__main__":
    sys.exit(main_of_process())
