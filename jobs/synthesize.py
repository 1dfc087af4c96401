"""`python jobs/synthesize.py RECIPE.yaml` is `limrank synthesize RECIPE.yaml`: what a cluster runs."""

import sys

from limrank.cli import run

if __name__ == "__main__":
    run(["synthesize", *sys.argv[1:]])
