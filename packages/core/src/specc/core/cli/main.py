"""`specc`: the group of commands, and the one place where an error becomes words and an exit code."""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any, Final

import click

from specc.core.errors import Exit, SpeccError
from specc.core.files import storage_error

# Plugins of other packages for pydantic could change what a spec may be, and to look for them takes a tenth of a check.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

COMMANDS: Final = {
    "init": "write a starter spec",
    "check": "check specs: schema and cross-field rules, offline",
    "lock": "pin everything that a rebuild needs",
    "plan": "show what a build would do, and why",
    "build": "build what is missing",
    "status": "which artifacts exist, which are stale",
    "explain": "why a stage rebuilds, where a value came from, what an error means",
    "diff": "what changed in meaning between two specs, locks, revisions or artifacts",
    "show": "an artifact: where it is from, what it measured, how to serve it",
    "verify": "hash artifacts again, or build them again and compare",
    "gc": "remove what no lock, ref or recent build needs",
    "logs": "what a stage's engines printed",
    "doctor": "what this machine has, and what a spec needs beyond it",
    "env": "a class's engines as requirements, to make the environment again",
    "schema": "the language's JSON Schema, or one field's page",
    "serve": "serve a speculator in vLLM, or print the command",
    "evaluate": "acceptance and speed over temperatures, tokens and batch sizes",
    "export": "a checkpoint as a plain directory for vLLM, speculators or a hub",
    "push": "a checkpoint to a model hub",
    "compile": "what a locked spec needs to be built elsewhere, as files",
    "convert": "bring in a draft of another repository",
}


class Commands(click.Group):
    """A group whose commands are modules of this package, imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order in which a user meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f"specc.core.cli.{cmd_name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="specc", prog_name="specc")
def group() -> None:
    """Compile a declarative spec into a speculator that vLLM drafts with."""


def main(argv: list[str] | None = None) -> int:
    """Run `specc` and return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    # A short command is over before there is garbage: looking for it in what was imported takes a fifth of its time.
    gc.set_threshold(200_000)
    atexit.register(gc.freeze)
    try:
        result: Any = group.main(arguments, prog_name="specc", standalone_mode=False)
        return int(result or 0)
    except SpeccError as error:
        return _say(error, arguments)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "")
        return Exit.USAGE
    except click.ClickException as error:
        error.show()
        return Exit.USAGE
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("interrupted: finished stages and shards are kept, and the same command goes on from there",
                   err=True)  # fmt: skip
        return Exit.INTERRUPTED
    except BrokenPipeError:
        return Exit.OK
    except OSError as error:  # of a file that a command writes: a full disk, a folder that is not ours
        return _say(storage_error(error, Path.cwd(), "write to another place"), arguments)


def _say(error: SpeccError, arguments: list[str]) -> int:
    """Say what is wrong, and return its exit code."""
    if "--json" in arguments:
        print(json.dumps({"errors": [item.as_json() for item in error.errors]}, indent=2, ensure_ascii=False))
    else:
        click.echo(error.render(), err=True)
    return int(error.code)
