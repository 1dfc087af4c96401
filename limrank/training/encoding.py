"""A training file's examples → token ids: in this process, or by Ray Data on a cluster's CPUs.

Either way it happens once a run: the workers get token ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limrank import models
from limrank.batch.fanout import prepare_ray_data
from limrank.config import TrainJob
from limrank.engines.tokens import longest_token, tokens_before
from limrank.errors import UserError
from limrank.scoring.encoding import encode_example
from limrank.scoring.labels import label_answers
from limrank.training.examples import EncodedExample, encode_examples, is_relevant
from limrank.training.model import load_tokenizer
from limrank.training.sources import Example
from limrank.training.writer import Pair, encode_pairs

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK = 1000
"""Examples in one task: at least half a second of a tokenizer's work."""


def encode_here(config: TrainJob, examples: Sequence[Example] | Sequence[Pair]) -> list[EncodedExample]:
    """Token ids of every example, in this process.

    Raises:
        UserError: an example does not fit, see :func:`~limrank.training.examples.encode_examples` and
            :func:`~limrank.training.writer.encode_pairs`.
    """
    training = config.training
    tokenizer = _tokenizer(models.resolve(config.model.id, weights=False), training.task)
    if training.task == "writer":
        return encode_pairs(examples, tokenizer, training.cutoff_tokens, str(training.train_file))
    return encode_examples(
        examples,
        encode=partial(encode_example, tokenizer),
        end_id=tokenizer.eos_token_id,
        cutoff=training.cutoff_tokens,
        source=training.train_file,
        before=tokens_before(tokenizer),
        longest_token=longest_token(tokenizer),
        answers=label_answers(tokenizer, training.labels, tokenizer.eos_token_id) if training.labels else None,
    )


def encode_on_cluster(config: TrainJob, examples: Sequence[Example] | Sequence[Pair]) -> list[EncodedExample]:
    """The same by Ray Data, with one task for each :data:`BLOCK` examples, on the cluster that this
    process is connected to."""
    import ray

    prepare_ray_data()
    task = config.training.task
    blocks = [_table(start, examples[start : start + BLOCK], task) for start in range(0, len(examples), BLOCK)]
    encoded: dict[int, EncodedExample] = {}
    tasks = ray.data.from_arrow(blocks).map_batches(
        _encode_block, fn_kwargs={"config": config}, batch_format="pyarrow", batch_size=None, zero_copy_batch=True
    )
    for block in tasks.iter_batches(batch_format="pyarrow", batch_size=None, prefetch_batches=0):
        encoded |= _examples(block, examples)
    return [encoded[index] for index in range(len(examples))]


@cache
def _tokenizer(model_dir: Path, task: str):
    """Cached: a Ray Data worker encodes many blocks."""
    return load_tokenizer(model_dir, task)[0]


_TEXTS = {"reranker": ("prompt", "chain", "label"), "writer": ("passage", "text")}
"""The fields of an example that its token ids depend on."""


def _table(start: int, examples: Iterable[Example | Pair], task: str) -> pa.Table:
    import pyarrow as pa

    columns = {"index": pa.int64(), "line": pa.int64()} | dict.fromkeys(_TEXTS[task], pa.large_string())
    return pa.Table.from_pylist(
        [
            {"index": index, "line": each.line} | {name: getattr(each, name) for name in _TEXTS[task]}
            for index, each in enumerate(examples, start)
        ],
        pa.schema(columns),
    )


def _encode_block(block: pa.Table, config: TrainJob) -> pa.Table:
    import pyarrow as pa

    columns = pa.schema(
        {
            "index": pa.int64(),
            "ids": pa.large_list(pa.int32()),
            "prompt_tokens": pa.int64(),
            "truncated": pa.bool_(),
            "error": pa.string(),
        }
    )
    rows = block.to_pylist()
    indices = [row.pop("index") for row in rows]
    writes = config.training.task == "writer"
    try:
        encoded = encode_here(config, [Pair(**row) if writes else Example(**row, query=()) for row in rows])
    except UserError as error:
        # Ray wraps an exception that a task raises in its own text; a row does not change.
        return pa.Table.from_pylist([{"error": str(error)}], columns)
    return pa.Table.from_pylist(
        [
            {"index": index, "ids": each.ids, "prompt_tokens": each.prompt_tokens, "truncated": each.truncated}
            for index, each in zip(indices, encoded, strict=True)
        ],
        columns,
    )


def _examples(block: pa.Table, examples: Sequence[Example] | Sequence[Pair]) -> dict[int, EncodedExample]:
    """The encoded examples of a block by index. Raises UserError for one that does not fit."""
    if error := block["error"][0].as_py():
        raise UserError(error)
    plain = block.select(["index", "prompt_tokens", "truncated"]).to_pylist()
    return {
        row["index"]: EncodedExample(
            line=examples[row["index"]].line,
            ids=ids.values.to_numpy(),  # a view: no token becomes an object
            prompt_tokens=row["prompt_tokens"],
            query=examples[row["index"]].query,
            truncated=row["truncated"],
            **_judged(examples[row["index"]]),
        )
        for row, ids in zip(plain, block["ids"], strict=True)
    }


def _judged(example: Example | Pair) -> dict[str, Any]:
    """Label and score of an example."""
    if isinstance(example, Pair):
        return {"label": None}
    return {"label": is_relevant(example), "score": example.score}
