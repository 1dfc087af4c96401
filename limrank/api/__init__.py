"""The jobs as functions: ``from limrank import synthesize, train, rerank, evaluate, serve``.

Each takes a config object or keyword arguments in the recipe's shape, runs the job that the command of
the same name runs, and returns a typed result. A call with the same arguments resumes its ``run_dir``.

A job needs a Ray cluster unless its function says otherwise. ``address="local"`` starts one for the call,
``"auto"`` attaches to a running one, and None means ``auto`` where ``RAY_ADDRESS`` is set, else ``local``.
A process that is connected to Ray already (``ray.init()``) uses that cluster. While a job runs in the main
thread, SIGTERM raises KeyboardInterrupt, as Ctrl-C does, so that the job ends cleanly.
"""

from limrank.api.jobs import evaluate, rerank, serve, synthesize, train
from limrank.api.keywords import JobKeys, RerankKeys, ServeKeys, SynthesizeKeys, TrainKeys
from limrank.api.results import EvaluationResult, JobRun, RerankResult, SynthesisResult, TrainingResult

__all__ = [
    "EvaluationResult",
    "JobKeys",
    "JobRun",
    "RerankKeys",
    "RerankResult",
    "ServeKeys",
    "SynthesisResult",
    "SynthesizeKeys",
    "TrainKeys",
    "TrainingResult",
    "evaluate",
    "rerank",
    "serve",
    "synthesize",
    "train",
]
