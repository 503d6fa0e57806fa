"""The command line, `refold`: run an app, look at workflows, change them.

`main` is the program. The rest is for commands that a connector adds by its `refold.core.ConnectorPlugin`, so that they
look, fail and print JSON like the built-in ones.
"""

from refold.core.cli._client import open_log, project_folder
from refold.core.cli._load import load_app
from refold.core.cli._main import main
from refold.core.cli._output import (
    Unreachable,
    Wrong,
    clock,
    common,
    cut,
    database_option,
    example,
    parse_json,
    print_json,
    print_table,
    stamp,
)

__all__ = [
    "Unreachable",
    "Wrong",
    "clock",
    "common",
    "cut",
    "database_option",
    "example",
    "load_app",
    "main",
    "open_log",
    "parse_json",
    "print_json",
    "print_table",
    "project_folder",
    "stamp",
]
