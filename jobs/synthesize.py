"""`python jobs/synthesize.py RECIPE.yaml` is `limrank synthesize RECIPE.yaml`: what a cluster runs."""

import sys

from limrank.cli import main

if __name__ == "__main__":
    sys.exit(main(["synthesize", *sys.argv[1:]]))
