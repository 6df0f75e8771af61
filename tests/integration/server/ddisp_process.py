"""Runs ``ddisp`` command by command, each in a process of its own that need not import everything first.

Standard input has a line of JSON for each command: ``words``, ``environment``, ``folder``, and ``files``, the paths of its
standard input, output and error. The answer is a line with its exit code.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any


def run(asked: dict[str, Any]) -> int:
    """One command, in this process."""
    from data_dispatcher.ui.ui_main import main

    os.setsid()  # without a terminal a password is read from standard input
    flags = (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)
    for number, (path, flag) in enumerate(zip(asked["files"], flags, strict=True)):
        os.dup2(os.open(path, flag), number)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    sys.argv[:] = ["ddisp", *asked["words"]]
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode) for number, mode in enumerate("rww"))
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:  # noqa: BLE001 - whatever it is, the client shows it
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def serve() -> None:
    """Commands, until standard input ends."""
    import data_dispatcher.ui.ui_main  # noqa: F401

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(run(json.loads(line)))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
