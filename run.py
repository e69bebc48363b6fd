"""`python run.py --cfg configs/digits_c/all.yaml [KEY VALUE ...]`: the command tta-apm."""
import sys

from tta_apm.cli import main_of_process

if __name__ == "__main__":
    sys.exit(main_of_process())
