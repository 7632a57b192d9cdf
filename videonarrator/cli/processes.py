"""Processes that work off one list together: one alone, or several that `accelerate launch` has started.

They say little to each other, through the CPU (gloo): who does what, how many items are done, what failed.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

from videonarrator.cli import INTERRUPTED

Item = TypeVar("Item")

PATIENCE = timedelta(days=30)
"""How long processes wait for each other at the end: as long as the slowest one takes."""


class Processes:
    """The processes of this launch as one of them sees them: `number`, and its own `index` (from 0)."""

    def __init__(self) -> None:
        launched = "LOCAL_RANK" in os.environ
        self.number = int(os.environ.get("WORLD_SIZE", "1")) if launched else 1
        self.index = int(os.environ.get("RANK", "0")) if self.number > 1 else 0
        self.done = 0
        self.launcher = os.getppid()
        if self.number > 1 and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._interrupted)

    def _interrupted(self, *_: Any) -> None:
        """Ctrl-C, which the launcher passes on a second time: one process tells."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self.index:
            os._exit(INTERRUPTED)
        raise KeyboardInterrupt

    def telling_once(self) -> AbstractContextManager[None]:
        """Of several processes that fail, let one say why."""
        if self.number == 1:
            return nullcontext()
        from videonarrator.training.parallel import telling_once

        return telling_once()

    def device(self, device: str) -> str:
        """This process's own device: of CUDA devices, each has another."""
        return f"cuda:{os.environ['LOCAL_RANK']}" if self.number > 1 and device == "cuda" else device

    def join(self) -> None:
        """Meet the others; before this, nothing below may be asked for."""
        if self.number > 1:
            from accelerate import PartialState

            PartialState(cpu=True, backend="gloo", timeout=PATIENCE)

    def leave(self) -> None:
        if self.number > 1:
            from accelerate import PartialState

            PartialState().destroy_process_group()

    @property
    def orphaned(self) -> bool:
        """Whether what started the processes is gone, so that nothing would end them all."""
        return self.number > 1 and os.getppid() != self.launcher

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What the first process makes, in all of them. Those that come early wait."""
        made = [make() if self.index == 0 else None]
        if self.number > 1:
            from torch import distributed

            distributed.broadcast_object_list(made)
        return made[0]

    def gathered(self, own: Any) -> list[Any]:
        """What each process has, in all of them, in their order. Those that come early wait."""
        if self.number == 1:
            return [own]
        from torch import distributed

        everything: list[Any] = [None] * self.number
        distributed.all_gather_object(everything, own)
        return everything

    def count(self) -> int:
        """One more item is done; how many all processes have done together."""
        self.done += 1
        if self.number == 1:
            return self.done
        from torch.distributed import distributed_c10d

        store: Any = distributed_c10d._get_default_store()
        return store.add("done", 1)


def shares(items: Sequence[Item], work: Callable[[Item], float], number: int) -> list[list[Item]]:
    """The items shared out so that the shares' sums of `work` are about equal, each in the items' order."""
    loads, chosen = [0.0] * number, {}
    costs = [work(item) for item in items] if number > 1 else [0.0] * len(items)
    for place in sorted(range(len(items)), key=lambda place: (-costs[place], place)):
        lightest = min(range(number), key=lambda one: (loads[one], one))
        chosen[place] = lightest
        loads[lightest] += costs[place]
    return [[item for place, item in enumerate(items) if chosen[place] == one] for one in range(number)]
