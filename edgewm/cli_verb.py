"""What makes a function a verb of the command line: its result printed for people, and as JSON where asked."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from .cli_options import PATH
from .errors import EdgewmError

SCHEMA_VERSION = 1
FILE_WIDTH = 160  # columns, where no terminal says how many there are


def verb(group: click.Group, *, seed: bool = False) -> Callable[[Callable[..., Any]], click.Command]:
    """Register a function as a verb with `--json FILE` (and `--seed`); it returns its result and what to print."""

    def register(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def command(json_file: Path | None, **options: Any) -> int:
            if json_file is not None:
                _check_writable(json_file)  # a verb may take minutes
            # With JSON on stdout nothing else goes there.
            result, shown, status = function(**options)
            _print(shown, to_stderr=str(json_file) == "-")
            if json_file is not None:
                _write_json(json_file, result)
            return status

        help = "Also write the result as JSON to this file; - is stdout, and then only that."
        made = click.option("--json", "json_file", type=PATH, metavar="FILE", help=help)(command)
        if seed:
            draws = "Of everything drawn at random."
            made = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help=draws)(made)
        return group.command(name=function.__name__.strip("_").replace("_", "-"))(made)

    return register


def _print(shown: Any, to_stderr: bool) -> None:
    if isinstance(shown, str):
        click.echo(shown, err=to_stderr)
    elif shown is not None:
        from rich.console import Console

        console = Console(stderr=to_stderr)
        console.width = console.width if console.is_terminal else max(console.width, FILE_WIDTH)
        console.print(shown)


def _check_writable(file: Path) -> None:
    """EdgewmError where JSON cannot go; makes nothing."""
    try:
        if str(file) == "-":
            return
        if file.exists():
            file.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=next(p for p in file.absolute().parents if p.exists())).close()
    except OSError as fault:
        raise _no_json(file, fault) from fault


def _no_json(file: Path, fault: OSError) -> EdgewmError:
    return EdgewmError(f"cannot write JSON: {fault.strerror}", str(file), "give --json a writable file")


def _write_json(file: Path, result: Mapping[str, Any]) -> None:
    text = json.dumps({"schema_version": SCHEMA_VERSION, **result}, indent=2, allow_nan=False) + "\n"
    if str(file) == "-":
        click.echo(text, nl=False)
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    except OSError as fault:
        raise _no_json(file, fault) from fault
