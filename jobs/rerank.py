"""`python jobs/rerank.py RECIPE.yaml` is `limrank rerank RECIPE.yaml`: what a cluster runs."""

import sys

from limrank.cli import main

if __name__ == "__main__":
    sys.exit(main(["rerank", *sys.argv[1:]]))
