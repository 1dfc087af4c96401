"""`limrank pipeline` as the entry point of a Ray job: `python jobs/pipeline.py RECIPE.yaml`."""

from limrank.cli import run_script

if __name__ == "__main__":
    run_script(__file__)
