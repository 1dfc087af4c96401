"""Ray clusters for jobs: a job's own, a running one, or one that the job is submitted to."""

from limrank.cluster.connection import check_paths, connect, default_address, prepare_environment
from limrank.cluster.dashboard import job_call, job_client, list_jobs
from limrank.cluster.packages import Terms
from limrank.cluster.submission import follow_job, retry, submit

__all__ = [
    "Terms",
    "check_paths",
    "connect",
    "default_address",
    "follow_job",
    "job_call",
    "job_client",
    "list_jobs",
    "prepare_environment",
    "retry",
    "submit",
]
