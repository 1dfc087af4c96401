"""A training file's examples → token ids: in this process, or by Ray Data on a cluster's CPUs.

Either way it happens once a run: the workers get token ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from limrank import models
from limrank.batch.fanout import prepare_ray_data
from limrank.config import TrainJob
from limrank.engines.tokens import longest_token, tokens_before
from limrank.errors import UserError
from limrank.scoring.encoding import encode_example
from limrank.training.examples import EncodedExample, encode_examples, is_relevant
from limrank.training.model import load_tokenizer
from limrank.training.sources import Example

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK = 1000
"""Examples in one task: at least half a second of a tokenizer's work."""


def encode_here(config: TrainJob, examples: Sequence[Example]) -> list[EncodedExample]:
    """Token ids of every example, in this process.

    Raises:
        UserError: an example does not fit, see :func:`~limrank.training.examples.encode_examples`.
    """
    tokenizer = _tokenizer(models.resolve(config.model.id, weights=False))
    return encode_examples(
        examples,
        encode=partial(encode_example, tokenizer),
        end_id=tokenizer.eos_token_id,
        cutoff=config.training.cutoff_tokens,
        source=config.training.train_file,
        before=tokens_before(tokenizer),
        longest_token=longest_token(tokenizer),
    )


def encode_on_cluster(config: TrainJob, examples: Sequence[Example]) -> list[EncodedExample]:
    """The same by Ray Data, with one task for each :data:`BLOCK` examples, on the cluster that this
    process is connected to."""
    import ray

    prepare_ray_data()
    blocks = [_table(start, examples[start : start + BLOCK]) for start in range(0, len(examples), BLOCK)]
    encoded: dict[int, EncodedExample] = {}
    tasks = ray.data.from_arrow(blocks).map_batches(
        _encode_block, fn_kwargs={"config": config}, batch_format="pyarrow", batch_size=None, zero_copy_batch=True
    )
    for block in tasks.iter_batches(batch_format="pyarrow", batch_size=None, prefetch_batches=0):
        encoded |= _examples(block, examples)
    return [encoded[index] for index in range(len(examples))]


@cache
def _tokenizer(model_dir: Path):
    """Cached: a Ray Data worker encodes many blocks."""
    return load_tokenizer(model_dir)[0]


def _table(start: int, examples: Iterable[Example]) -> pa.Table:
    import pyarrow as pa

    columns = {"index": pa.int64(), "line": pa.int64()} | dict.fromkeys(("prompt", "chain", "label"), pa.large_string())
    return pa.Table.from_pylist(
        [
            {"index": index, "line": each.line, "prompt": each.prompt, "chain": each.chain, "label": each.label}
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
    try:
        encoded = encode_here(config, [Example(**row, query=()) for row in rows])
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


def _examples(block: pa.Table, examples: Sequence[Example]) -> dict[int, EncodedExample]:
    """The encoded examples of a block by index. Raises UserError for one that does not fit."""
    if error := block["error"][0].as_py():
        raise UserError(error)
    plain = block.select(["index", "prompt_tokens", "truncated"]).to_pylist()
    return {
        row["index"]: EncodedExample(
            line=examples[row["index"]].line,
            ids=ids.values.to_numpy(),  # a view: no token becomes an object
            prompt_tokens=row["prompt_tokens"],
            label=is_relevant(examples[row["index"]]),
            query=examples[row["index"]].query,
            truncated=row["truncated"],
            score=examples[row["index"]].score,
        )
        for row, ids in zip(plain, block["ids"], strict=True)
    }
