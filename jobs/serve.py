"""`limrank serve` as the entry point of a Ray job: `python jobs/serve.py RECIPE.yaml`."""

from limrank.cli import run_script

if __name__ == "__main__":
    run_script(__file__)
