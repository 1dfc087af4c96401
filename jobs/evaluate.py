"""`python jobs/evaluate.py RECIPE.yaml` is `limrank evaluate RECIPE.yaml`: what a cluster runs."""

import sys

from limrank.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
