"""`python jobs/pipeline.py RECIPE.yaml` is `limrank pipeline RECIPE.yaml`: what a cluster runs."""

import sys

from limrank.cli import run

if __name__ == "__main__":
    run(["pipeline", *sys.argv[1:]])
