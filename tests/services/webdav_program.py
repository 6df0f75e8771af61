"""A WebDAV server for the tests: wsgidav under cheroot, as an ordinary user, with what sites put around such servers.

``python webdav_program.py SETTINGS.json``; all is imported before the user is changed, so that it may run from a folder
that only root can enter.
"""

from __future__ import annotations

import ctypes
import encodings.idna  # noqa: F401 - looked for when a host's name is first encoded
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jwt
from cheroot.ssl.builtin import BuiltinSSLAdapter
from cheroot.wsgi import Server
from wsgidav.wsgidav_app import WsgiDAVApp

App = Callable[..., Iterable[bytes]]
PLAIN = ("GET", "HEAD", "PUT", "DELETE")


def with_tokens(app: App, key: str) -> App:
    """Demand a bearer token: signed with ``key``, not expired, and with a scope that allows the method."""

    def wrapped(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        kind, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if kind != "Bearer":
            return _refused(start, "401 Unauthorized", b"no token")
        try:
            scope = jwt.decode(token, key, algorithms=["HS256"])["scope"]
        except jwt.InvalidTokenError as error:
            return _refused(start, "401 Unauthorized", str(error).encode())
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD", "PROPFIND", "OPTIONS") and "modify" not in scope:
            return _refused(start, "403 Forbidden", b"the token is for reading")
        return app(environ, start)

    return wrapped


def without_dav(app: App) -> App:
    """Let through what a plain HTTP server knows."""

    def wrapped(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in PLAIN:
            return _refused(start, "405 Method Not Allowed", b"GET, HEAD, PUT and DELETE only")
        if environ["REQUEST_METHOD"] == "PUT" and environ.get("HTTP_IF_NONE_MATCH") == "*":
            path = Path(ROOT + environ["PATH_INFO"].encode("latin-1").decode())
            if path.exists():
                return _refused(start, "412 Precondition Failed", b"exists")
        return app(environ, start)

    return wrapped


def with_redirects(app: App, target: str) -> App:
    """Send readers and writers of files on to another server, as a storage's door does."""

    def wrapped(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in ("GET", "PUT"):
            return app(environ, start)
        path = quote(environ["PATH_INFO"].encode("latin-1"), safe="/")
        start("307 Temporary Redirect", [("Location", target + path), ("Content-Length", "0")])
        return [b""]

    return wrapped


def _refused(start: Callable[..., Any], status: str, words: bytes) -> Iterable[bytes]:
    start(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(words)))])
    return [words]


def main() -> None:
    global ROOT
    settings = json.loads(Path(sys.argv[1]).read_text())
    ROOT = settings["root"]
    app: App = WsgiDAVApp(
        {
            "provider_mapping": {"/": ROOT},
            "simple_dc": {"user_mapping": {"*": True}},
            "verbose": 1,
            "logging": {"enable_loggers": []},
            "lock_storage": False,
            "property_manager": False,
        }
    )
    if settings.get("plain"):
        app = without_dav(app)
    if settings.get("redirect_to"):
        app = with_redirects(app, settings["redirect_to"])
    if settings.get("token_key"):
        app = with_tokens(app, settings["token_key"])
    server = Server(("127.0.0.1", settings["port"]), app, numthreads=12)
    if settings.get("certificate"):
        server.ssl_adapter = BuiltinSSLAdapter(settings["certificate"], settings["key"])
    server.prepare()
    if settings.get("uid"):
        os.setgroups([])
        os.setgid(settings["uid"])
        os.setuid(settings["uid"])
    # After the change of user, which makes the kernel forget it: to end with the tests, however those end.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    server.serve()


PR_SET_PDEATHSIG = 1
ROOT = ""
if __name__ == "__main__":
    main()
