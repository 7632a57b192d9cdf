"""`accelerate launch` with the processes' own exit codes: `launch.py OPTIONS PROGRAM WORDS`.

accelerate's own command ends with a traceback and exit code 1, whatever the processes said.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sys

INTERRUPTED = 130

if __name__ == "__main__":
    logging.disable(logging.ERROR)  # the processes tell what is wrong
    try:
        with contextlib.redirect_stdout(sys.stderr):  # where DeepSpeed would greet
            from accelerate.commands.launch import launch_command, launch_command_parser
            from torch.distributed.elastic.multiprocessing.api import SignalException
            from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

            launch_command(launch_command_parser().parse_args(sys.argv[1:]))
    except (KeyboardInterrupt, SignalException):
        sys.exit(INTERRUPTED)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            print(
                f"error: process {rank} was ended by {signal.Signals(-failure.exitcode).name}",
                file=sys.stderr,
            )
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)
    except (ConnectionError, ImportError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
