"""Rerank jobs over a real Ray with the fake engine."""

from helpers.units import Recorder
from limrank.config.recipe import parse_config
from limrank.progress import Progress
from limrank.reranking import job as reranking


def rerank_config(beir, run_dir, **engine):
    return parse_config(
        {
            "job": "rerank",
            "run_dir": str(run_dir),
            "data": {"format": "beir", "path": str(beir)},
            "first_stage": {"depth": 10},
            "engine": {"kind": "fake", **engine},
        }
    )


def rerank(config, **options):
    recorder = Recorder()
    result = reranking.run(config, address="local", progress=Progress(recorder, every_s=0), **options)
    return result, recorder.events
