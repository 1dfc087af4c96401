"""`python jobs/train.py RECIPE.yaml` is `limrank train RECIPE.yaml`: what a cluster runs."""

import sys

from limrank.cli import run

if __name__ == "__main__":
    run(["train", *sys.argv[1:]])
