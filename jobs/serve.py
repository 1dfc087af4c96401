"""`python jobs/serve.py RECIPE.yaml` is `limrank serve RECIPE.yaml`: what a cluster runs."""

import sys

from limrank.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
