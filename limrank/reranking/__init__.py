"""Reranking: the library's face, and the job that runs it over a benchmark."""

from limrank.reranking.reranker import RankedDocument, Reranker

__all__ = ["RankedDocument", "Reranker"]
