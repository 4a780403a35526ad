"""The command line: `datadiet NAME …`, and `python -m entrypoints NAME …` in MLproject."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

import click

import datadiet
from datadiet.commands import module_program
from datadiet.errors import UserError
from datadiet.plugins import load_plugins

# Compiled programs outlive the process; JAX reads this when it is first imported.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "datadiet" / "xla"))

# name -> (module, line of help); a module is imported when its command is run or asked for help. It has the command by
# its name, or a function that makes it where its options are those that registries have by then.
COMMANDS = {
    "main": ("study", "The quick study: score, prune, retrain and compare on embedded data, in minutes."),
    "study": ("study", "Score, prune, retrain and compare: from data to a decision."),
    "full_data": ("training", "Train on all examples, tracking forgetting."),
    "random_subset": ("training", "Train on a random subset."),
    "keep_max": ("training", "Train on the examples of largest score."),
    "offset_subset": ("training", "Train on a window of examples by ascending score."),
    "subset": ("training", "Train on what any selector keeps, or on a kept manifest."),
    "select": ("selecting", "Write what a selector keeps as a manifest, without training."),
    "score": ("scoring", "Score every training example with a checkpoint of a run."),
    "mean_score": ("scoring", "Average scores over runs."),
    "report": ("report", "Say what a finished study decides: report.html, pictures and kept sets."),
    "prepare_data": ("preparing", "Fetch, check and cache a dataset; the only command that downloads."),
    "sync": ("syncing", "Write into MLflow what it lacks of the mirror."),
    "results": ("table", "Write the table of finished training runs."),
}


class LazyGroup(click.Group):
    """A group that imports a command's module only when it is needed, so that --help is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        try:
            load_plugins()
            found = getattr(import_module(f".{COMMANDS[cmd_name][0]}", __package__), cmd_name)
            return found if isinstance(found, click.Command) else found()
        except UserError as error:
            from .options import Repairable

            raise Repairable(str(error)) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(datadiet.__version__, package_name="datadiet")
def main() -> None:
    """Find the training examples that matter, prune the rest, and prove that nothing was lost."""


if __name__ == "__main__":
    main(prog_name="datadiet", obj=module_program(str(__package__), Path(__file__).resolve().parents[1]))
