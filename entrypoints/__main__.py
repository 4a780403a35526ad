"""The command line: `datadiet NAME …`, and `python -m entrypoints NAME …` in MLproject."""

from __future__ import annotations

import difflib
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import click

import datadiet
from datadiet import home
from datadiet.commands import Caller, module_program
from datadiet.errors import UserError
from datadiet.plugins import load_plugins
from datadiet.printable import UNSEEN, escaped, printable
from datadiet.registries import ENTRY_POINTS, EntryPoint

from .ends import Repairable
from .known import program_of, with_help_all


def lazily(module: str, name: str) -> Callable[[], click.Command]:
    """Makes a command whose module is imported when the command is run or asked for help. The module has it by its
    name, or a function that makes it where its options are those that registries have by then."""

    def make() -> click.Command:
        found = getattr(import_module(f".{module}", __package__), name)
        return found if isinstance(found, click.Command) else found()

    return make


COMMANDS = {
    "main": ("study", "The quick study: score, prune, retrain and compare on embedded data, in minutes."),
    "study": ("study", "Score, prune, retrain and compare: from data to a decision."),
    "full_data": ("training", "Train on all examples, tracking forgetting."),
    "random_subset": ("training", "Train on a random subset."),
    "keep_max": ("training", "Train on the examples of largest score."),
    "offset_subset": ("training", "Train on a window of examples by ascending score."),
    "subset": ("training", "Train on what any selector keeps, or on a kept manifest."),
    "select": ("selecting", "Write what a selector keeps as a manifest, without training."),
    "export": ("exporting", "Write a kept set as csv, parquet, links or txt, for others."),
    "score": ("scoring", "Score every training example with a checkpoint of a run."),
    "mean_score": ("scoring", "Average scores over runs."),
    "analyze": ("analyzing", "Analyse how training treats easy and hard examples."),
    "predictions": ("predicting", "Make score files of logits or probabilities that you saved."),
    "report": ("report", "Say what a finished study decides: report.html, pictures and kept sets."),
    "decide": ("deciding", "Decide from the results of trainings of your own: the report of a study, without one."),
    "inspect": ("inspecting", "Tell what data is, and what stands in the way; trains nothing."),
    "prepare_data": ("preparing", "Fetch, check and cache a dataset; the only command that downloads."),
    "sync": ("syncing", "Write into MLflow what it lacks of the mirror."),
    "results": ("table", "Write the table of finished training runs."),
}
ENTRY_POINTS |= {name: EntryPoint(text, lazily(module, name)) for name, (module, text) in COMMANDS.items()}


def _as_line(message: Warning | str, *_: Any) -> str:
    """A warning without the line of code that gave it, which is no help to those who typed a command."""
    return f"Warning: {printable(message)}\n"


class LazyGroup(click.Group):
    """A group that imports a command's module only when it is needed, so that --help is quick."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for number, text in enumerate(args, start=1):
            if UNSEEN.search(text):
                expected = "expected text in UTF-8 without control characters"
                raise click.UsageError(f"Argument {number}, {escaped(text[:80])}: {expected}.")
        return super().parse_args(ctx, args)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        warnings.formatwarning = _as_line
        home.settle(partial(click.echo, err=True))  # before JAX is imported, which reads where programs are kept
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no alarms of XLA; its errors are raised as well
        try:
            return super().main(*args, **kwargs)
        except SystemExit as end:
            leave(end.code)
            raise

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand:
            known = self.list_commands(ctx)
            close = difflib.get_close_matches(args[0][:80], known, 1)
            line = program_of(ctx).typed_again(close[0], args[1:]) if close else ""
            told = f"Did you mean {close[0]}? {line}" if close else f"Known: {', '.join(known)}."
            raise Repairable(f"No such command: {args[0][:80]}. {told}") from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_entry_points())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = _entry_points().get(cmd_name)
        try:
            return with_help_all(entry.make()) if entry else None
        except UserError as error:
            raise click.UsageError(str(error)) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (text, _) in _entry_points().items()])


def first_steps(caller: Caller) -> str:
    """What to do first."""
    mine = {"dataset": "folder:PHOTOS"}
    return f"""Which training examples matter, and how many can you drop?

In some minutes, on images that come with it, from scores to a decision:
  {caller.command("main")}
On your own images, in PHOTOS/train/CLASS/* and PHOTOS/test/CLASS/*:
  {caller.command("inspect", **mine)}
  {caller.command("study", **mine, dry_run=True)}
  {caller.command("study", **mine)}
All commands, and the options of one:
  {caller.program} --help
  {caller.program} study --help"""


def leave(code: object) -> None:
    """End the process at once where a computation that was left is still at work, or waits for a process that is gone:
    it cannot be ended in another way."""
    compiled, hosts = (sys.modules.get(f"datadiet.{name}") for name in ("training.compiled", "hosts"))
    if (compiled is not None and compiled.is_any_left()) or (hosts is not None and hosts.is_any_lost()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def _entry_points() -> Mapping[str, EntryPoint]:
    """Those there are once the user's own modules are imported."""
    try:
        load_plugins()
    except UserError as error:
        raise click.UsageError(str(error)) from None
    return ENTRY_POINTS


@click.group(
    cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)  # fmt: skip
@click.version_option(datadiet.__version__, package_name="datadiet")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Find the training examples that matter, prune the rest, and prove that nothing was lost."""
    if ctx.invoked_subcommand is None:
        click.echo(first_steps(program_of(ctx)))


if __name__ == "__main__":
    main(prog_name="datadiet", obj=module_program(str(__package__), Path(__file__).resolve().parents[1]))
