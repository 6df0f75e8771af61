"""The program that works with gfal2's Python bindings for the pilot, in a process of its own.

It needs nothing but the standard library and ``gfal2``, so that any Python of the node that has the bindings can run
it. It reads requests from its standard input, a JSON object a line: ``{"do": NAME, ...}``; and answers each with one:
``{"ok": RESULT}``, or ``{"errno": NUMBER, "message": TEXT}``. It ends when its input does, whatever it is doing then.

The Python of a node may be as old as 3.6, and gfal2 has no types.
"""

import importlib
import json
import os
import queue
import stat
import sys
import threading
from pathlib import Path
from typing import Any


def prepare(gfal2: Any, context: Any, request: Any) -> None:
    """Set the time limits of what comes, as gfal2's own defaults are hours, and the token as it is now."""
    seconds = int(request["seconds"])
    for group, option in (
        ("CORE", "NAMESPACE_TIMEOUT"),
        ("CORE", "CHECKSUM_TIMEOUT"),
        ("HTTP PLUGIN", "OPERATION_TIMEOUT"),
        ("GRIDFTP PLUGIN", "OPERATION_TIMEOUT"),
        ("SRM PLUGIN", "OPERATION_TIMEOUT"),
    ):
        context.set_opt_integer(group, option, seconds)
    gfal2.cred_clean(context)
    token_file = os.environ.get("BEARER_TOKEN_FILE")
    if token_file and request["endpoint"]:  # XRootD's library reads the file itself, HTTP's knows a variable only
        token = Path(token_file).read_text().strip()
        gfal2.cred_set(context, request["endpoint"], gfal2.cred_new("BEARER", token))


def entry(context: Any, request: Any) -> Any:
    """Size in bytes, and whether it is a regular file."""
    found = context.stat(request["url"])
    return [found.st_size, stat.S_ISREG(found.st_mode)]


def checksum(context: Any, request: Any) -> Any:
    """A checksum's value."""
    return context.checksum(request["url"], request["algorithm"].upper())


def copy(context: Any, request: Any) -> None:
    """Copy one file to a place that is free."""
    parameters = context.transfer_parameters()
    parameters.timeout = int(request["seconds"])
    parameters.create_parent = bool(request["parents"])
    parameters.overwrite = False
    context.filecopy(parameters, request["source"], request["target"])


def rename(context: Any, request: Any) -> None:
    """Give a file another name."""
    context.rename(request["source"], request["target"])


def remove(context: Any, request: Any) -> None:
    """Remove a file."""
    context.unlink(request["url"])


def names(context: Any, request: Any) -> Any:
    """The names in a folder."""
    return context.listdir(request["url"])


OPERATIONS: Any = {function.__name__: function for function in (entry, checksum, copy, rename, remove, names)}


def answer(gfal2: Any, context: Any, line: bytes) -> Any:
    """Do what one line asks for."""
    request = json.loads(line.decode("utf-8"))
    try:
        prepare(gfal2, context, request)
        return {"ok": OPERATIONS[request["do"]](context, request)}
    except gfal2.GError as error:
        return {"errno": error.code, "message": error.message}


def read_requests(requests: "queue.Queue[bytes]") -> None:
    """Hand on what comes in; whoever asked is gone when it ends, so there is nobody left to work for."""
    for line in sys.stdin.buffer:
        requests.put(line)
    os._exit(1)


def main() -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="surrogateescape")
    os.dup2(2, 1)  # what the libraries print is no answer
    gfal2 = importlib.import_module("gfal2")
    context = gfal2.creat_context()
    requests: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=read_requests, args=(requests,), daemon=True).start()
    while True:
        answers.write(json.dumps(answer(gfal2, context, requests.get())) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
