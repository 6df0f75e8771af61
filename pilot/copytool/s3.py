"""The copytool of object stores: ``s3://`` with boto3. (URLs that are signed beforehand are for the copytool http.)

An object appears whole or not at all, so there are no temporary names. Every piece is sent with its MD5, which the
store compares; the store's ETag says afterwards what it holds.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Optional, TypeVar

import urllib3.exceptions

from common.checksums import Hasher
from common.errors import ErrorCode, PilotageError
from pilot.copytool.background import Call
from pilot.copytool.base import (
    Copytool,
    Direction,
    PartFile,
    Transferred,
    TransferRequest,
    expected_checksum,
    local_error,
    make_local_folder,
    raise_if_cancelled,
    verify,
)
from pilot.copytool.credentials import CredentialSource
from pilot.copytool.http_body import LocalFile
from pilot.copytool.http_errors import causes_of, network_error
from pilot.copytool.http_resume import Cut, Mark, Stream, download
from pilot.copytool.s3_body import Window
from pilot.copytool.s3_client import Clients, exceptions
from pilot.copytool.s3_errors import client_error, error_code, service_error
from pilot.copytool.s3_place import Place

log = logging.getLogger(__name__)

Result = TypeVar("Result")

#: An object up to this size goes in one request, a larger one in parts of this size at least, in bytes.
PART_BYTES = 64 * 1024 * 1024
#: The most parts that an object may have (limit of S3).
MOST_PARTS = 10_000
#: Bytes of a download read at a time.
CHUNK_BYTES = 1024 * 1024
#: How long a call about an object may take, in seconds.
CALL_TIMEOUT_S = 30.0


class _Stored(NamedTuple):
    """What a store holds: size in bytes, and its ETag (of a simple object the MD5, quoted)."""

    size: int
    etag: str


class S3Copytool(Copytool):
    """Copies from and to object stores.

    ``endpoint`` is the store's address for URLs that don't name it (``https://s3.example.org:443``; without it what the
    environment says, Amazon's otherwise) and says for those that name the same host and port whether it is http.
    ``keys_file`` is a file of mode 0600 as AWS's own programs have it. Without it the credential source is asked, whose
    token may be ``ACCESS:SECRET[:SESSION]``, and then the environment as boto3 does. ``ca`` is a file with the
    authorities to trust. A store that says nothing for ``stall_s`` seconds has stalled.
    """

    name = "s3"
    schemes = frozenset({"s3"})

    def __init__(
        self,
        *,
        credentials: Optional[CredentialSource] = None,
        endpoint: Optional[str] = None,
        keys_file: Optional[str] = None,
        region: Optional[str] = None,
        ca: Optional[str] = None,
        stall_s: float = 60.0,
        part_mb: float = PART_BYTES / 1e6,
        **options: Any,
    ) -> None:
        super().__init__(credentials=credentials, **options)
        if importlib.util.find_spec("boto3") is None:
            raise PilotageError(ErrorCode.MIDDLEWARE_IMPORT_FAILED, "boto3 cannot be found: install pilotage[s3]")
        self._clients = Clients(
            self.credentials,
            endpoint=endpoint.rstrip("/") if endpoint else None,
            keys_file=Path(keys_file) if keys_file else None,
            region=region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
            ca=ca,
            stall_s=stall_s,
        )
        self._part_bytes = int(part_mb * 1e6)

    def exists(self, url: str) -> bool:
        """Say whether an object is there."""
        place, deadline = Place.parse(url, Direction.IN), time.monotonic() + CALL_TIMEOUT_S

        def look(client: Any) -> bool:
            return self._head(client, place, Direction.IN) is not None

        return self._run(url, Direction.IN, False, threading.Event(), deadline, look)

    def _run(
        self,
        url: str,
        direction: Direction,
        write: bool,
        cancel: threading.Event,
        deadline: float,
        work: Callable[[Any], Result],
    ) -> Result:
        """Do a transfer's work in a thread that can be left behind."""
        place = Place.parse(url, direction)

        def run() -> Result:
            try:
                return work(self._clients.client(url, place, write))
            except exceptions().ClientError as error:
                raise service_error(error, direction, place.shown) from error
            except (exceptions().BotoCoreError, urllib3.exceptions.HTTPError) as error:
                for cause in causes_of(error):
                    if isinstance(cause, PilotageError):  # ours, raised while it read a body
                        raise cause from error
                raise client_error(error, direction, place.shown) from error

        return Call(run, self.name).wait(direction, place.shown, cancel, deadline)

    # --- in

    def _fetch(self, request: TransferRequest, cancel: threading.Event) -> Transferred:
        place, expected = Place.parse(request.url, Direction.IN), expected_checksum(request)
        deadline = time.monotonic() + request.timeout_s
        make_local_folder(request.path.parent)

        def work(client: Any) -> Transferred:
            check = _checker(cancel, deadline, Direction.IN)
            algorithm = expected.algorithm if expected else "adler32"
            try:
                with PartFile(request.path) as part:
                    done = download(self._opener(client, place), request, algorithm, Direction.IN, check, part)
                    verify(request, done.size, done.checksum, Direction.IN)
                    check()
                    part.commit(replace=True)
                return done
            except OSError as error:
                raise local_error(error, str(request.path)) from error

        return self._run(request.url, Direction.IN, False, cancel, deadline, work)

    def _opener(self, client: Any, place: Place) -> Callable[[Mark], contextlib.AbstractContextManager[Stream]]:
        @contextlib.contextmanager
        def open_at(mark: Mark) -> Iterator[Stream]:
            # An object is never changed in place: whichever has the same ETag is the same.
            more = {"Range": f"bytes={mark.offset}-", "IfMatch": mark.validator} if mark.offset else {}
            answer = client.get_object(Bucket=place.bucket, Key=place.key, **more)
            total = mark.offset + int(answer["ContentLength"])
            with contextlib.closing(answer["Body"]) as body:
                yield Stream(mark.offset, total, answer["ETag"], self._chunks(body, place))

        return open_at

    def _chunks(self, body: Any, place: Place) -> Iterator[memoryview]:
        """Give the bytes of an answer; :class:`Cut` when they end too early."""
        try:
            while chunk := body.read(CHUNK_BYTES):
                yield memoryview(chunk)
        except (exceptions().BotoCoreError, urllib3.exceptions.HTTPError) as error:
            raise Cut(network_error(error, Direction.IN, place.shown, "")) from error

    # --- out

    def _store(self, request: TransferRequest, cancel: threading.Event) -> Transferred:
        place, deadline = Place.parse(request.url, Direction.OUT), time.monotonic() + request.timeout_s

        def work(client: Any) -> Transferred:
            with LocalFile(request, _checker(cancel, deadline, Direction.OUT)) as local:
                if self._stored_before(client, place, local, request):
                    return local.verified()
                try:
                    self._upload(client, place, local)
                except exceptions().ClientError as error:
                    taken = error_code(error) == "PreconditionFailed"
                    if not taken or not self._stored_before(client, place, local, request):
                        raise
                    return local.verified()
                self._compare_stored(client, place, local)
                return local.verified()

        return self._run(request.url, Direction.OUT, True, cancel, deadline, work)

    def _stored_before(self, client: Any, place: Place, local: LocalFile, request: TransferRequest) -> bool:
        """Say whether the store holds the same object already; ``FILE_EXISTS`` when it holds another."""
        there = self._head(client, place, Direction.OUT)
        if there is None:
            return False
        if there.size == local.size:
            if there.etag == self._etag(local):
                return True
            # In other parts, or encrypted: only its bytes tell.
            opener = self._opener(client, place)
            found = download(opener, request, local.algorithm, Direction.OUT, local.check)
            if found.checksum == local.checksum(local.algorithm):
                return True
        raise PilotageError(ErrorCode.FILE_EXISTS, f"{place.shown} exists with other content ({there.size} bytes)")

    def _upload(self, client: Any, place: Place, local: LocalFile) -> None:
        where = {"Bucket": place.bucket, "Key": place.key}
        if local.size > self._part_size(local.size):
            self._upload_parts(client, where, local)
            return
        local.verified()  # before it is there for all to see
        body = Window(local, 0, local.size)

        def put(**condition: str) -> None:
            client.put_object(**where, Body=body, ContentMD5=body.content_md5(), ContentLength=local.size, **condition)

        self._if_absent(put)

    def _upload_parts(self, client: Any, where: dict[str, str], local: LocalFile) -> None:
        """Upload in parts; nothing is left of an upload that fails."""
        upload = {**where, "UploadId": client.create_multipart_upload(**where)["UploadId"]}
        try:
            step, parts, whole = self._part_size(local.size), [], Hasher(local.algorithm)
            for number, offset in enumerate(range(0, local.size, step), 1):
                body = Window(local, offset, min(step, local.size - offset))
                md5 = body.content_md5(whole)
                answer = client.upload_part(
                    **upload, PartNumber=number, Body=body, ContentMD5=md5, ContentLength=body.size
                )
                parts.append({"PartNumber": number, "ETag": answer["ETag"]})
            local.note(whole.result())
            local.verified()
            local.check()

            def complete(**condition: str) -> None:
                client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts}, **condition)

            self._if_absent(complete)
        except (PilotageError, exceptions().ClientError, exceptions().BotoCoreError):
            self._abort(client, upload)
            raise

    def _if_absent(self, call: Callable[..., None]) -> None:
        """Write on the condition that nothing is there; without it at stores that don't know it."""
        try:
            call(IfNoneMatch="*")
        except exceptions().ClientError as error:
            if error_code(error) != "NotImplemented":
                raise
            log.info("the store knows no conditional writes: it was asked before what is there")
            call()

    def _abort(self, client: Any, upload: dict[str, str]) -> None:
        try:
            client.abort_multipart_upload(**upload)
        except (exceptions().ClientError, exceptions().BotoCoreError) as error:
            log.warning("s3://%s/%s: parts of an upload may be left behind: %s", upload["Bucket"], upload["Key"], error)

    def _compare_stored(self, client: Any, place: Place, local: LocalFile) -> None:
        """Compare what the store has with what was sent; every piece was compared by its MD5 on arrival."""
        there = self._head(client, place, Direction.OUT)
        if there is None or there.size != local.size:
            found = "nothing" if there is None else f"{there.size} bytes"
            detail = f"{place.shown}: sent {local.size} bytes, the store has {found}"
            raise PilotageError(Direction.OUT.mismatch("md5"), detail)

    def _part_size(self, size: int) -> int:
        """Give the size of each part of an object, in bytes; the last one may be smaller."""
        return max(self._part_bytes, math.ceil(size / MOST_PARTS))

    def _etag(self, local: LocalFile) -> str:
        """Give the ETag that our own upload of a file has: its MD5, or that of its parts' MD5s and their number."""
        step = self._part_size(local.size)
        if local.size <= step:
            return f'"{local.checksum("md5").value}"'
        windows = [Window(local, offset, min(step, local.size - offset)) for offset in range(0, local.size, step)]
        whole = hashlib.md5(b"".join(window.md5() for window in windows), usedforsecurity=False)
        return f'"{whole.hexdigest()}-{len(windows)}"'

    def _head(self, client: Any, place: Place, direction: Direction) -> Optional[_Stored]:
        """Ask what is at a place; ``None`` for nothing."""
        try:
            answer = client.head_object(Bucket=place.bucket, Key=place.key)
        except exceptions().ClientError as error:
            if error_code(error) in ("404", "NoSuchKey", "NotFound"):
                return None
            raise service_error(error, direction, place.shown) from error
        return _Stored(int(answer["ContentLength"]), str(answer["ETag"]))

    # --- removal

    def _delete(self, url: str, cancel: threading.Event) -> None:
        place = Place.parse(url, Direction.OUT)

        def work(client: Any) -> None:
            client.delete_object(Bucket=place.bucket, Key=place.key)
            try:
                listing = client.list_multipart_uploads(Bucket=place.bucket, Prefix=place.key)
            except exceptions().ClientError as error:
                log.info("%s: uploads cannot be listed: %s", place.shown, error_code(error))
                return
            for upload in listing.get("Uploads", []):
                if upload["Key"] == place.key:
                    where = {"Bucket": place.bucket, "Key": place.key, "UploadId": upload["UploadId"]}
                    self._abort(client, where)

        self._run(url, Direction.OUT, True, cancel, time.monotonic() + CALL_TIMEOUT_S, work)


def _checker(cancel: threading.Event, deadline: float, direction: Direction) -> Callable[[], None]:
    """Give what a transfer calls between two chunks: it raises when the transfer was given up or is late."""

    def check() -> None:
        raise_if_cancelled(cancel, direction)
        if time.monotonic() >= deadline:
            raise PilotageError(direction.timeout, "not done in time")

    return check
