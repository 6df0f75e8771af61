"""The frame of the command ``pilotage``: lazy sub-commands, clear errors, exit codes.

Sub-commands come from the entry point group ``pilotage.commands``; a module is imported only when its command runs.
Exit codes: 0 done, 1 failure, 2 wrong usage or configuration, 3 server unreachable, 130 interrupted.
"""

from __future__ import annotations

import ast
import errno
import importlib.util
import traceback
from pathlib import Path
from typing import Any, Optional

import click

from common.cli import Frame
from common.errors import ErrorCode, PilotageError
from common.plugins import EntryPoint, load_plugin, plugins, version

GROUP = "pilotage.commands"
_GATEWAY_STATUSES = (502, 503, 504)


class Failure(click.ClickException):
    """A command that failed: one clear message on standard error, exit code 1."""


class WrongUsage(Failure):
    """The command line or the configuration must be corrected."""

    exit_code = 2


class ServerUnreachable(Failure):
    """The server did not answer; the same command may succeed later."""

    exit_code = 3


class Interrupted(Failure):
    """Somebody pressed Ctrl-C."""

    exit_code = 130


class LazyCommands(click.Group):
    """A group whose commands are entry points of :attr:`entry_points`, beside those that it holds itself."""

    entry_points = GROUP

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all installed commands."""
        return sorted({*super().list_commands(ctx), *plugins(self.entry_points)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> Optional[click.Command]:
        """Import and return the command. Raises PluginError when something it needs is not installed."""
        entry = plugins(self.entry_points).get(cmd_name)
        if entry is None:
            return super().get_command(ctx, cmd_name)
        command = load_plugin(entry)
        if not isinstance(command, click.Command):
            raise PilotageError(ErrorCode.BAD_CONFIGURATION, f"{entry.value} is not a click command: mend its package")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands with their short help, without importing any of them."""
        rows = [(name, command.get_short_help_str(120)) for name, command in self.commands.items()]
        rows += [(name, short_help(entry)) for name, entry in plugins(self.entry_points).items()]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(sorted(rows))


class LazyGroup(LazyCommands):
    """The outermost of them, whose failures are told in one message without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; failures become :class:`Failure`."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except (click.Abort, KeyboardInterrupt) as interrupt:
            raise Interrupted("interrupted") from interrupt
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # click ends quietly when the reader of a pipe is gone
            if ctx.params.get("debug"):
                traceback.print_exception(type(error), error, error.__traceback__)
            raise explain(error) from error


def explain(error: Exception) -> Failure:
    """The message and exit code for a failed command."""
    if not isinstance(error, PilotageError):
        if isinstance(error, OSError):
            return Failure(str(error))
        kind = type(error).__name__
        return Failure(f"internal error, please report it ({kind}: {error}); --debug shows where")
    # Only a command that made a call has loaded the HTTP client, and only its errors can be of these types.
    from common.http import HttpError, ProblemError, Unreachable

    if isinstance(error, ProblemError):
        gone = error.status in _GATEWAY_STATUSES
        lines = [f"{error.problem.title} ({error.status}): {error.problem.detail}".removesuffix(": ")]
        lines += [f"  {field.path}: {field.message}" for field in error.problem.errors]
        return ServerUnreachable("\n".join(lines)) if gone else Failure("\n".join(lines))
    if isinstance(error, Unreachable):
        return ServerUnreachable(f"the server cannot be reached: {error.detail}")
    number = f"({int(error.code)} {error.code.name})"
    if isinstance(error, HttpError):
        return Failure(f"{error.detail} {number}")
    if error.code is ErrorCode.BAD_CONFIGURATION:
        return WrongUsage(f"{error.detail or error.info.words} {number}")
    text = f"{error.detail}\n{error.info.words}" if error.detail else error.info.words
    return Failure(f"{text} {number}")


def short_help(entry: EntryPoint) -> str:
    """The first sentence of the command's docstring, read from its source: importing all of them would be slow."""
    try:
        spec = importlib.util.find_spec(entry.module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.loader is None:
        return "(not in this installation)"
    source = spec.loader.get_source(entry.module) if hasattr(spec.loader, "get_source") else None
    for node in ast.parse(source or "").body:
        if isinstance(node, ast.FunctionDef) and node.name == entry.attr:
            return _first_sentence(ast.get_docstring(node) or "")
    return ""


def _first_sentence(docstring: str) -> str:
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    sentence, _, _ = paragraph.partition(". ")
    return sentence.rstrip(".")


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(version(), prog_name="pilotage")
@click.option(
    "--config",
    "config_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read this file too, after those of the system and the user.",
)
@click.option("--debug", is_flag=True, help="Show where in the program a failure happened.")
@click.pass_context
def main(ctx: click.Context, config_file: Optional[Path], debug: bool) -> None:
    """Pilotage: work and data brought together just in time.

    Exit codes: 0 done, 1 failure, 2 wrong usage or configuration, 3 server unreachable, 130 interrupted.
    """
    ctx.obj = Frame(config_file=config_file, debug=debug)


if __name__ == "__main__":
    main()
