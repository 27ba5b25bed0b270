"""The commands: what each takes, which part of the library it calls, how its result is printed."""

# In the order of use, in which an unknown command is told of them.
from heptad.cli.commands import train, tune, look, use, data, check  # noqa: I001
from heptad.cli.commands.app import app

__all__ = ["app", "check", "data", "look", "train", "tune", "use"]

# The examples are for the page of all commands, whose lines are laid out by hand.
for command in app.resolved_commands():
    app[command].help_epilogue, app[command].help_format = "", "markdown"
