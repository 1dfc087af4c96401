"""A training file's examples → token ids: in this process, or by Ray Data on a cluster's CPUs.

Either way it happens once a run: the workers are handed token ids.
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
from limrank.scoring import TRUE
from limrank.scoring.encoding import encode_example
from limrank.training.examples import EncodedExample, encode_examples
from limrank.training.model import load_tokenizer
from limrank.training.sources import Example

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK = 1000
"""Examples of one task: half a second or more of work for a tokenizer."""


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
    """The same by Ray Data, a task for each :data:`BLOCK` of them, on the cluster that this
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
    return [encoded[place] for place in range(len(examples))]


@cache
def _tokenizer(model_dir: Path):
    """Once a process: a worker of Ray Data's encodes many blocks."""
    return load_tokenizer(model_dir)[0]


def _table(start: int, examples: Iterable[Example]) -> pa.Table:
    import pyarrow as pa

    return pa.Table.from_pylist(
        [
            {"place": place, "line": each.line, "prompt": each.prompt, "chain": each.chain, "label": each.label}
            for place, each in enumerate(examples, start)
        ]
    )


def _encode_block(block: pa.Table, config: TrainJob) -> pa.Table:
    import pyarrow as pa

    columns = pa.schema(
        {
            "place": pa.int64(),
            "ids": pa.large_list(pa.int32()),
            "prompt_tokens": pa.int64(),
            "cut": pa.bool_(),
            "error": pa.string(),
        }
    )
    rows = block.to_pylist()
    places = [row.pop("place") for row in rows]
    try:
        encoded = encode_here(config, [Example(**row, query=()) for row in rows])
    except UserError as error:
        # What a task raises comes back wrapped in all that stood around it.
        return pa.Table.from_pylist([{"error": str(error)}], columns)
    return pa.Table.from_pylist(
        [
            {"place": place, "ids": each.ids, "prompt_tokens": each.prompt_tokens, "cut": each.cut}
            for place, each in zip(places, encoded, strict=True)
        ],
        columns,
    )


def _examples(block: pa.Table, examples: Sequence[Example]) -> dict[int, EncodedExample]:
    """The encoded examples of a block, by their place. Raises UserError for one that does not fit."""
    if error := block["error"][0].as_py():
        raise UserError(error)
    plain = block.select(["place", "prompt_tokens", "cut"]).to_pylist()
    return {
        row["place"]: EncodedExample(
            line=examples[row["place"]].line,
            ids=ids.values.to_numpy(),  # a view: no token becomes an object
            prompt_tokens=row["prompt_tokens"],
            label=examples[row["place"]].label == TRUE,
            query=examples[row["place"]].query,
            cut=row["cut"],
        )
        for row, ids in zip(plain, block["ids"], strict=True)
    }
