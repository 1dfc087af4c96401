"""Reranking: the library's interface, and the job that reranks a benchmark."""

from limrank.reranking.reranker import RankedDocument, Reranker

__all__ = ["RankedDocument", "Reranker"]
