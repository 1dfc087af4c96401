"""`python jobs/pipeline.py RECIPE.yaml` is `limrank pipeline RECIPE.yaml`: what a cluster runs."""

import sys

from limrank.cli import main

if __name__ == "__main__":
    sys.exit(main(["pipeline", *sys.argv[1:]]))
