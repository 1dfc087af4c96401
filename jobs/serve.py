"""`python jobs/serve.py RECIPE.yaml` is `limrank serve RECIPE.yaml`: what a cluster runs."""

import sys

from limrank.cli import run

if __name__ == "__main__":
    run(["serve", *sys.argv[1:]])
