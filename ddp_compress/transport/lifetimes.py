"""How long tensors live that Gloo's threads work on."""

import atexit
import ctypes
import time
from contextlib import suppress
from pathlib import Path
from weakref import WeakSet

from torch import Tensor


class KeptAlive:
    """Views of what a step's collectives were given.

    As long as they live, Gloo's thread is not the last in C++ to let go of a tensor that Python
    knows. It would need the GIL for that, which deadlocks where the group is being destroyed, and
    ends the process where Python is ending.
    """

    def __init__(self) -> None:
        self._views: list[Tensor] = []
        _all.add(self)

    def add(self, *tensors: Tensor) -> None:
        """Keep these until the next step."""
        self._views += [tensor.view_as(tensor) for tensor in tensors]

    def begin_step(self) -> None:
        """Let go of the last step's."""
        self._views = []

    def leak(self) -> None:
        """Never let go of this step's."""
        for view in self._views:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(view))


_all: WeakSet[KeptAlive] = WeakSet()


@atexit.register
def _outlive_the_interpreter() -> None:
    """Gloo's threads may still hold tensors, and at the end there is no GIL to free them with."""
    for kept in _all:
        kept.leak()
    _rest_gloo()


def _rest_gloo() -> None:
    """Hand Gloo's threads the GIL until they wait for work or another rank; for a second at most.

    When a collective is done, its thread has yet to let go of the tensors of it, a user's own among
    them, which takes the GIL (torch 2.13). A thread that waits for the GIL seems to rest as well,
    so they must be seen at rest three times, with the GIL free in between. Only Linux tells.
    """
    seen = 0
    for _ in range(200):
        states = _gloo_threads()
        seen = seen + 1 if states <= {"S"} else 0
        if not states or seen == 3:
            return
        time.sleep(0.005)


def _gloo_threads() -> set[str]:
    """States of this process's threads that run Gloo's collectives, as the kernel names them."""
    states = set()
    for path in Path("/proc/self/task").glob("*/stat"):
        with suppress(OSError):  # it has ended
            name, _, rest = path.read_text().partition("(")[2].rpartition(")")
            if name == "pt_gloo_runloop":
                states.add(rest.split()[0])
    return states
