"""``limrank plan``: what a recipe will take, before anything is started."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from limrank.commands.options import Overrides
from limrank.errors import UserError
from limrank.printable import printable

Recipe = Annotated[str, typer.Argument(metavar="RECIPE.yaml", help="Any job's recipe.", show_default=False)]
Gpus = Annotated[
    str | None, typer.Option("--gpus", metavar="NAME:N", help="What it is to run on: H100:8. Default: this machine.")
]
Price = Annotated[float | None, typer.Option("--price", min=0, help="Of a GPU, or of this machine, for an hour.")]
RateValues = Annotated[
    list[str] | None,
    typer.Option(
        "--rate",
        metavar="KEY=VALUE",
        help="A rate of one engine: prefill, decode, train (tokens/s); startup_s, setup_s, chunk_s; chain (tokens of a "
        "chain); parameters (the model's size).",
    ),
]
Calibrate = Annotated[
    bool, typer.Option("--calibrate", help="Measure the rates here first, on a sample of the recipe's work.")
]
Against = Annotated[
    str | None, typer.Option("--against", metavar="RUN_DIR", help="Set the forecast beside this finished run.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@contextmanager
def _output_on_stderr() -> Iterator[None]:
    """What an engine, or a process of its, prints on stdout goes to stderr: stdout is the forecast's."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # stdout is closed
        yield
        return
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    gpus: Gpus = None,
    price: Price = None,
    rate: RateValues = None,
    calibrate: Calibrate = False,
    against: Against = None,
    as_json: Json = False,
) -> None:
    """What a recipe will take: units, tokens, time, cost, and what the time goes into. Nothing is run."""
    from limrank.config.recipe import load_config
    from limrank.optional import extras_explained
    from limrank.sizing.against import compared
    from limrank.sizing.against import lines as against_lines
    from limrank.sizing.forecast import lines
    from limrank.sizing.rates import parse_gpus, parse_rates
    from limrank.sizing.sizing import Question, advice, size

    if gpus is not None:
        parse_gpus(gpus)
    if calibrate and gpus:
        raise UserError("--calibrate: measures this machine, and --gpus asks of another: leave one of them out")
    question = Question(gpus, parse_rates(rate or ()), price, calibrate)
    config = load_config(recipe, overrides or ())
    with extras_explained(config.job), _output_on_stderr():
        found = size(config, question)
    rows = compared(found, against) if against else None
    if as_json:
        total = None
        if all(each.seconds is not None for each in found):
            total = round(sum(each.seconds or 0.0 for each in found), 3)
        values = {"stages": [each.values() for each in found], "seconds": total}
        if rows is not None:
            values["against"] = [{"what": what, "forecast": mine, "run": run} for what, mine, run in rows]
        print(json.dumps(values, indent=2))
        return
    for line in [*lines(found, price), *advice(config, question), *(["", *against_lines(rows)] if rows else [])]:
        print(printable(line, 1000))
