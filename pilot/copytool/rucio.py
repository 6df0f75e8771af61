"""The copytool of Rucio: files found, fetched, stored and registered by Rucio's own clients, with traces.

Which file is meant, and where, is told in one of two ways:

* ``rucio://RSE/scope/name`` (or ``rucio://RSE/scope:name``, or with folders between scope and name, as the server makes
  the URLs of outputs): the file ``scope:name`` at that RSE, by whichever of its protocols Rucio prefers. A storage with
  the endpoint ``rucio://RSE`` is used like this for input and output alike, its registration left to this tool.
* Any other URL, for input only: the replica of the request's label (its DID) that Rucio knows at this URL.

The clients run in child processes: see :mod:`pilot.copytool.rucio_child`.
"""

from __future__ import annotations

import configparser
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Optional
from urllib.parse import unquote

from common.errors import ErrorCode, PilotageError
from common.tokens import read_secret_file
from pilot.copytool.base import (
    Copytool,
    Direction,
    Transferred,
    TransferRequest,
    expected_checksum,
    local_error,
    make_local_folder,
    open_output,
    refuse_climbing,
    safe_url,
    url_scheme,
    verify,
)
from pilot.copytool.children import Limits, Program, child_environment, token_file
from pilot.copytool.credentials import CredentialSource
from pilot.copytool.local import measure, pinned
from pilot.copytool.rucio_errors import exception_code

log = logging.getLogger(__name__)

_PROGRAM = Program.load("rucio_child")

#: How long a call about a file may take, in seconds.
CALL_TIMEOUT_S = 60.0
#: How long cleaning up after a failed upload may take, in seconds.
CLEAN_TIMEOUT_S = 3.0
#: How long a Python may take to say whether it has Rucio's clients, in seconds.
_PROBE_S = 20.0


class Place(NamedTuple):
    """A file of Rucio's: ``rse`` is empty where only the replica's ``url`` is known."""

    scope: str
    name: str
    rse: str
    url: str

    @classmethod
    def parse(cls, url: str, label: str, direction: Direction) -> Place:
        """Read a URL, and the label beside it where the URL does not name the file."""
        shown = safe_url(url)
        if url_scheme(url) != "rucio":
            scope, colon, name = label.partition(":")
            if not (scope and colon and name) or direction is Direction.OUT:
                detail = "give rucio://RSE/scope/name" if direction is Direction.OUT else f"{label!r} is no DID"
                raise PilotageError(ErrorCode.NO_STORAGE_PROTOCOL, f"{shown}: {detail}")
            return cls(scope, name, "", url)
        rse, _, encoded = url.partition("://")[2].partition("/")
        path = unquote(encoded).strip("/")
        refuse_climbing(path, shown, direction)
        scope, rest = path.split("/", 1) if "/" in path else (path.partition(":")[0], path.partition(":")[2])
        name = rest.rpartition("/")[2]
        if not (rse and scope and name):
            raise PilotageError(direction.failed, f"{shown}: is no URL like rucio://RSE/scope/name")
        return cls(scope, name, rse, url)

    @property
    def did(self) -> str:
        """The file's name in Rucio."""
        return f"{self.scope}:{self.name}"

    def asked(self) -> dict[str, Any]:
        """The same in a request to the child."""
        return {"scope": self.scope, "name": self.name, "did": self.did, "rse": self.rse, "url": self.url}


class RucioCopytool(Copytool):
    """Copies with Rucio's upload and download clients, which send its traces; every upload registers its replica.

    ``config`` names a ``rucio.cfg`` (else Rucio looks for one by ``RUCIO_CONFIG`` and ``RUCIO_HOME``); ``host``,
    ``auth_host``, ``account``, ``auth_type``, ``vo``, ``username``, ``password_file`` (mode 0600) and ``ca`` stand in
    for what is in it. With ``auth_type`` ``oidc`` Rucio is shown the token of the credential source, with
    ``x509_proxy`` its proxy; the storages are shown both. ``register`` false stores without registering; ``lifetime_s``
    ends the rules that uploads make. ``python`` names a Python that has Rucio's clients.
    """

    name = "rucio"
    schemes = frozenset({"rucio", "root", "davs", "https", "gsiftp", "srm", "file"})

    def __init__(
        self,
        *,
        credentials: Optional[CredentialSource] = None,
        config: Optional[str] = None,
        host: Optional[str] = None,
        auth_host: Optional[str] = None,
        account: Optional[str] = None,
        auth_type: Optional[str] = None,
        vo: Optional[str] = None,
        username: Optional[str] = None,
        password_file: Optional[str] = None,
        ca: Optional[str] = None,
        register: bool = True,
        lifetime_s: Optional[int] = None,
        python: Optional[str] = None,
        **options: Any,
    ) -> None:
        super().__init__(credentials=credentials, **options)
        self._python = python or sys.executable
        self._register = register
        self._lifetime_s = lifetime_s
        # its temporary folder, where Rucio's clients keep their tokens, and their configuration
        self._folder = tempfile.TemporaryDirectory(prefix="pilotage-rucio-")
        self._config = _Config(config, Path(self._folder.name) / "rucio.cfg", password_file, os.environ)
        self._config.set(rucio_host=host, auth_host=auth_host or host, username=username, ca_cert=ca)
        self._environ = {**os.environ, "RUCIO_CLIENT_MODE": "1", "TMPDIR": self._folder.name}
        self._environ["RUCIO_CONFIG"] = str(self._config.path)
        named = {"RUCIO_ACCOUNT": account, "RUCIO_AUTH_TYPE": auth_type, "RUCIO_VO": vo}
        self._environ.update({name: value for name, value in named.items() if value})
        _demand_clients(self._python, self._environ)

    def exists(self, url: str) -> bool:
        """Say whether a file is there."""
        place = Place.parse(url, "", Direction.IN)
        limits = Limits(Direction.IN, safe_url(url), threading.Event(), time.monotonic() + CALL_TIMEOUT_S)
        return bool(self._ask("exists", place, {}, limits))

    def _fetch(self, request: TransferRequest, cancel: threading.Event) -> Transferred:
        place = Place.parse(request.url, request.label, Direction.IN)
        limits = Limits(Direction.IN, safe_url(request.url), cancel, time.monotonic() + request.timeout_s)
        expected = expected_checksum(request)
        make_local_folder(request.path.parent)
        try:
            with tempfile.TemporaryDirectory(prefix=".pilotage-rucio-", dir=request.path.parent) as folder:
                path = Path(self._ask("download", place, {"folder": str(Path(folder).absolute())}, limits))
                done = measure(path, expected.algorithm if expected else "adler32", limits)
                verify(request, done.size, done.checksum, Direction.IN)
                path.replace(request.path)
            return done
        except OSError as error:
            raise local_error(error, str(request.path)) from error

    def _store(self, request: TransferRequest, cancel: threading.Event) -> Transferred:
        place = Place.parse(request.url, request.label, Direction.OUT)
        limits = Limits(Direction.OUT, safe_url(request.url), cancel, time.monotonic() + request.timeout_s)
        expected = expected_checksum(request)
        descriptor = open_output(request.path)
        try:
            done = measure(descriptor, expected.algorithm if expected else "adler32", limits)
            verify(request, done.size, done.checksum, Direction.OUT)
            adler32 = (
                done.checksum
                if done.checksum.algorithm == "adler32"
                else measure(descriptor, "adler32", limits).checksum
            )
            what = {"size": done.size, "adler32": adler32.value}
            what.update(register=self._register, lifetime=self._lifetime_s)
            with pinned(request.path, descriptor) as path:
                self._upload(place, {**what, "path": str(path)}, limits)
            return done
        except OSError as error:
            raise local_error(error, str(request.path)) from error
        finally:
            os.close(descriptor)

    def _upload(self, place: Place, what: dict[str, Any], limits: Limits) -> None:
        try:
            self._ask("upload", place, what, limits)
        except PilotageError as error:
            if error.code is not ErrorCode.FILE_EXISTS:
                self._clean(place, limits)
            raise

    def _clean(self, place: Place, limits: Limits) -> None:
        """Remove an upload that did not make it, cancelled or not."""
        ours = limits._replace(cancel=threading.Event(), deadline=time.monotonic() + CLEAN_TIMEOUT_S)
        try:
            self._ask("clean", place, {}, ours)
        except PilotageError as error:
            log.warning("%s may be left behind: %s", limits.shown, error)

    def _delete(self, url: str, cancel: threading.Event) -> None:
        place = Place.parse(url, "", Direction.OUT)
        limits = Limits(Direction.OUT, safe_url(url), cancel, time.monotonic() + CALL_TIMEOUT_S)
        self._ask("remove", place, {}, limits)

    def _ask(self, what: str, place: Place, more: Mapping[str, Any], limits: Limits) -> Any:
        """Have a child do something; its result. Raises :class:`PilotageError`."""
        limits.check()
        credential = self.credentials.for_url(place.url, write=limits.direction is Direction.OUT)
        seconds = max(int(limits.seconds), 1)
        request = {"do": what, "seconds": seconds, **place.asked(), **more}
        self._config.write()
        with token_file(credential) as token:
            with _PROGRAM.start(self._python, child_environment(self._environ, credential, token)) as child:
                child.send(json.dumps(request).encode() + b"\n")
                line = child.line(limits)
                ended = child.end() if line is None else None
        if line is None:
            assert ended is not None
            raise PilotageError(limits.direction.failed, f"{limits.shown}: Rucio's clients failed: {ended.text}")
        reply = json.loads(line)
        if "ok" in reply:
            return reply["ok"]
        code = exception_code(str(reply["error"]), str(reply["message"]), limits.direction)
        words = " ".join(str(reply["message"]).split())[:1000]
        raise PilotageError(code, f"{limits.shown}: {reply['error']}: {words}")


class _Config:
    """The ``rucio.cfg`` of the children, a file of mode 0600: what somebody else wrote, with our options over it.

    Only there do all parts of Rucio's clients find them: some make clients of their own.
    """

    def __init__(
        self, given: Optional[str], path: Path, password_file: Optional[str], environ: Mapping[str, str]
    ) -> None:
        self.path = path
        self._password_file = password_file
        self._parser = configparser.RawConfigParser()
        homes = [environ.get("RUCIO_HOME"), "/opt/rucio"]
        usual = [environ.get("RUCIO_CONFIG"), *(f"{home}/etc/rucio.cfg" for home in homes if home)]
        found = [given] if given else [each for each in usual if each and Path(each).is_file()][:1]
        try:
            for each in found:
                self._parser.read_string(Path(each).read_text(), each)
        except (OSError, UnicodeDecodeError, configparser.Error) as error:
            raise PilotageError(ErrorCode.BAD_CONFIGURATION, f"copytool 'rucio': {found[0]}: {error}") from error
        if not self._parser.has_section("client"):
            self._parser.add_section("client")

    def set(self, **options: Optional[str]) -> None:
        """Set options of the section ``client``; ``BAD_CONFIGURATION`` when no server is known then."""
        for name, value in options.items():
            if value:
                self._set(name, value)
        if not self._parser.has_option("client", "rucio_host"):
            detail = "copytool 'rucio': there is no rucio.cfg: name one with the option config, or the server with host"
            raise PilotageError(ErrorCode.BAD_CONFIGURATION, detail)

    def write(self) -> None:
        """Write the file, with the password as it is now."""
        if self._password_file:
            self._set("password", read_secret_file(self._password_file))
        descriptor, name = tempfile.mkstemp(dir=self.path.parent)  # of mode 0600
        with os.fdopen(descriptor, "w") as stream:
            self._parser.write(stream)
        Path(name).replace(self.path)

    def _set(self, name: str, value: str) -> None:
        self._parser.set("client", name, value.replace("%", "%%"))  # Rucio's parser interpolates


def _demand_clients(python: str, environ: Mapping[str, str]) -> None:
    """Raise ``MIDDLEWARE_IMPORT_FAILED`` when a Python has no Rucio clients."""
    look = "import importlib.util as u; raise SystemExit(not (u.find_spec('rucio') and u.find_spec('rucio.client')))"
    try:
        done = subprocess.run(
            [python, "-I", "-c", look],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=dict(environ),
            timeout=_PROBE_S,
        )
        problem = "" if done.returncode == 0 else "has no rucio-clients"
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem:
        detail = f"copytool 'rucio': {python} {problem}: install the extra 'rucio', or name another Python"
        raise PilotageError(ErrorCode.MIDDLEWARE_IMPORT_FAILED, detail)
