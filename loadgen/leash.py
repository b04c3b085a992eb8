"""Replaces itself with a command that dies when its parent does: `python -I -S leash.py PARENT_PID COMMAND...`

Owns the leash only. On Linux the kernel ends the command even when the parent was killed with SIGKILL and could clean
up nothing; elsewhere the command simply runs. The setting survives exec, and there is no way to make it from outside.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the leash was on
            sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
