"""`videonarrator <verb>`: parse, validate, run, and print where the result is.

Progress goes to stderr; stdout has the result's path or one JSON object. Exit codes: 0 all that was asked for
is done; 2 the input is wrong and nothing was done; 3 some items failed (they are named) and the others are
done; 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from videonarrator.quiet import quieten
from videonarrator.schema import NarratorError

FAILED, PARTLY, INTERRUPTED = 2, 3, 130


def main(arguments: Sequence[str] | None = None) -> None:
    """The console command; ends by raising `SystemExit` with the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    quieten()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")
    import typer.main

    from videonarrator.cli.app import app

    try:
        words = None if arguments is None else list(arguments)
        typer.main.get_command(app).main(args=words, prog_name="videonarrator")
    except SystemExit as ended:  # typer's: the verb has run, or the words are wrong and that was said
        if ended.code == INTERRUPTED:
            say("interrupted: what is done is kept, the same command goes on from there")
        raise
    except (NarratorError, OSError) as error:  # OSError: disk full, no permission; the path is in the message
        say(f"error: {error}")
    sys.exit(FAILED)


def check_writable(folder: Path) -> None:
    """Make the folder of the results, and try it, before anything that takes long."""
    trial = folder / f".{os.getpid()}.trial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.write_bytes(b"")
        trial.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise NarratorError(f"cannot write to {folder}: {reason}; give another --out") from error


def say(line: str) -> None:
    """Progress: one line on stderr."""
    print(line, file=sys.stderr, flush=True)
