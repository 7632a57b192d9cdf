"""`videonarrator <verb>`: parse, validate, run, and print where the result is.

Progress goes to stderr; stdout has the result's path or one JSON object. Exit codes: 0 all that was asked for is
done; 2 the input is wrong and nothing was done; 3 some items failed (they are named) and the others are done;
130 interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

FAILED, PARTLY, INTERRUPTED = 2, 3, 130


def main(arguments: Sequence[str] | None = None) -> None:
    """The console command; ends by raising `SystemExit` with the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import typer.main
    from click.exceptions import ClickException, Exit

    from videonarrator.cli.app import app
    from videonarrator.schema import NarratorError

    command = typer.main.get_command(app)
    try:
        code = command.main(args=list(arguments) if arguments is not None else None, standalone_mode=False)
    except NarratorError as error:
        print(f"error: {error}", file=sys.stderr)
        code = FAILED
    except Exit as ended:
        code = ended.exit_code
    except ClickException as error:
        error.show(sys.stderr)
        code = error.exit_code
    except (KeyboardInterrupt, EOFError):
        print("interrupted: what is done is kept, the same command goes on from there", file=sys.stderr)
        code = INTERRUPTED
    except OSError as error:  # disk full, no permission: the path is in the message
        print(f"error: {error}", file=sys.stderr)
        code = FAILED
    sys.exit(code if isinstance(code, int) else 0)


def say(line: str) -> None:
    """Progress: one line on stderr."""
    print(line, file=sys.stderr, flush=True)
