"""`python jobs/train.py RECIPE.yaml` is `limrank train RECIPE.yaml`: what a cluster runs."""

import sys

from limrank.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
