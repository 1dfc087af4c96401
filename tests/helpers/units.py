"""What the unit tests share: a dataset repository, recipes, a plan, fake tasks, an HTML parser."""

import asyncio
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser

import pyarrow as pa

from limrank.batch.chunks import ChunkRunner, Outcome, Worker
from limrank.batch.plan import write_plan
from limrank.batch.receipts import Receipt, Work
from limrank.config import EngineConfig, ModelConfig
from limrank.engines import open_engine
from limrank.errors import EngineError, RowError
from limrank.progress import Progress
from limrank.storage import Storage

UNIT_SCHEMA = pa.schema([("unit_id", pa.string()), ("cost", pa.int64())])
ROW_SCHEMA = pa.schema([("unit_id", pa.string()), ("answer", pa.string())])

WORK = Work("s", "one", began=100.0, ended=104.0, ready=99.0, startup_seconds=3.0, engines=1, busy_seconds=3.5)
RECEIPT = Receipt(
    chunk=0,
    units=2,
    rows=20,
    failed=1,
    requests=20,
    prompt_tokens=100,
    cached_prompt_tokens=40,
    generated_tokens=10,
    work=(WORK,),
)
"""One chunk's, of a worker with one engine."""


def repository(folder, configs):
    """``{config: {split: rows}}`` as a directory that `datasets` reads."""
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, rows in splits.items():
            file = folder / config / f"{split}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            lines += [f"  - split: {split}", f"    path: {config}/{split}.jsonl"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return str(folder)


def write_recipe(path, **sections):
    """A recipe as YAML: JSON is YAML."""
    path.write_text(json.dumps(sections), encoding="utf-8")
    return path


def in_other_processes(program, given=""):
    """What a Python program prints in each of two processes that hash strings differently."""
    return [
        subprocess.run(
            [sys.executable, "-c", program],
            input=given,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]


def write_embedder(directory, vocabulary, synonyms):
    """A sentence embedder of random weights, of which the first and the second of the two
    ``synonyms`` are one word; safetensors and a tokenizer of ``vocabulary``."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *vocabulary]
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(tokens)})
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        # Weights so large that texts, their order and their padding make a difference.
        model = BertModel(BertConfig(vocab_size=len(tokens), initializer_range=0.5, **shape))
    with torch.no_grad():
        first, second = tokenizer.convert_tokens_to_ids(synonyms)
        model.embeddings.word_embeddings.weight[second] = model.embeddings.word_embeddings.weight[first]
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def fake_engine(*, context=None, **settings):
    """An open fake engine. It belongs to the loop that first uses it."""
    return open_engine(ModelConfig(id="fake", max_model_len=context), EngineConfig(kind="fake", **settings))


def planned(root, names, cost=1):
    """A plan of units with these ids, and the storage that holds it."""
    storage = Storage(str(root))
    units = [({"unit_id": name, "cost": cost}, 1) for name in names]
    return storage, write_plan(storage, units, UNIT_SCHEMA, chunk_cost=1000)


@dataclass
class EchoTask:
    """Answers every unit with its own id in capitals, but for those told to go wrong.

    ``calls`` lists the units that were asked for, over all runs.
    """

    row_error: set = field(default_factory=set)
    bug: set = field(default_factory=set)
    deadly: set = field(default_factory=set)
    suffix: str = ""
    step: str = "echo"
    unit_column: str = "unit_id"
    row_key: tuple = ("unit_id",)
    retry_key: tuple = ("unit_id",)
    calls: list = field(default_factory=list)

    @property
    def row_schema(self):
        return ROW_SCHEMA

    async def run(self, unit, engines):
        name = unit["unit_id"]
        self.calls.append(name)
        if name in self.row_error:
            raise RowError(f"{name} cannot be done")
        if name in self.bug:
            raise ZeroDivisionError("a bug")
        if name in self.deadly:
            raise EngineError("the engine died")
        if "engine" in engines:
            await engines["engine"].generate(name, max_tokens=4)
        return Outcome([{"unit_id": name, "answer": name.upper() + self.suffix}])

    async def retry(self, unit, rows, engines):
        return await self.run(unit, engines)

    def failed_rows(self, unit):
        return [{"unit_id": unit["unit_id"], "answer": None}]


class Runner:
    """A ChunkRunner for tests that are not coroutines."""

    def __init__(self, chunks):
        self.chunks = chunks

    def crashes(self, number):
        return asyncio.run(self.chunks.crashes(number))

    def run(self, number, *, isolated):
        async def opened_and_run():
            chunk = await self.chunks.open(number)
            return chunk if isinstance(chunk, Receipt) else await self.chunks.run(chunk, isolated=isolated)

        return asyncio.run(opened_and_run())


def runner(storage, task, engines=None, *, session="first", startup_seconds=0.0):
    return Runner(ChunkRunner(storage, task, engines or {}, Worker(session, startup_seconds=startup_seconds)))


class Recorder:
    """A renderer that keeps what it was shown."""

    def __init__(self):
        self.events = []

    def show(self, event):
        self.events.append(event)

    def close(self):
        self.events.append("closed")


def silent():
    return Progress(Recorder())


@contextmanager
def clock(monkeypatch, module, start=1000.0):
    """Replaces a module's ``time.monotonic`` by one that the test moves."""
    now = [start]
    monkeypatch.setattr(f"{module}.time.monotonic", lambda: now[0])
    yield now


class Page(HTMLParser):
    """Collects text, checks that every tag is closed, and notes what would be loaded."""

    def __init__(self, html):
        super().__init__()
        self.open, self.text, self.loaded = [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.loaded += [value for name, value in attributes if name in ("src", "href")] + [tag] * (tag == "script")
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


def words(html):
    """What a page says, in one line."""
    return " ".join(" ".join(Page(html).text).split())
