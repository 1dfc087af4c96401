"""`python jobs/evaluate.py RECIPE.yaml` is `limrank evaluate RECIPE.yaml`: what a cluster runs."""

import sys

from limrank.cli import run

if __name__ == "__main__":
    run(["evaluate", *sys.argv[1:]])
