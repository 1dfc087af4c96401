"""`python jobs/rerank.py RECIPE.yaml` is `limrank rerank RECIPE.yaml`: what a cluster runs."""

import sys

from limrank.cli import run

if __name__ == "__main__":
    run(["rerank", *sys.argv[1:]])
