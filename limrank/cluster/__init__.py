"""Ray clusters for jobs: a job's own, a running one, or one that the job is submitted to."""

from limrank.cluster.connection import check_paths, connect, default_address, prepare_environment
from limrank.cluster.submission import follow, job_call, job_client, list_jobs, submit

__all__ = [
    "check_paths",
    "connect",
    "default_address",
    "follow",
    "job_call",
    "job_client",
    "list_jobs",
    "prepare_environment",
    "submit",
]
