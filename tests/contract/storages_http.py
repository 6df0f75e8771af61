"""The storages of the copytools http and s3 for the contract."""

from __future__ import annotations

import contextlib
import functools
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional, Union, cast
from urllib.parse import quote

import pytest

from pilot.copytool import Copytool, load_copytool
from pilot.copytool.credentials import Credential
from tests.contract.storages import Storage
from tests.services.certificates import Authority
from tests.services.faulty_proxy import FaultyProxy, Way
from tests.services.s3 import ACCESS, BUCKET, SECRET, S3Server
from tests.services.webdav import WebdavServer, XrootdHttpServer


class HttpStorage(Storage):
    """A folder of a server that speaks HTTP; ``options`` go to the copytool."""

    def __init__(self, server: Union[WebdavServer, XrootdHttpServer], base: str, **options: Any) -> None:
        self.server = server
        self.base = base
        self.folder = uuid.uuid4().hex
        (server.data / self.folder).mkdir()
        server.own(server.data / self.folder)
        self.tool = load_copytool("http", **options)

    def url(self, name: str) -> str:
        return f"{self.base}/{self.folder}/{quote(name)}"

    def path(self, name: str) -> Path:
        return self.server.data / self.folder / name

    def own(self, path: Path) -> None:
        self.server.own(path)

    @contextlib.contextmanager
    def ordinary_user(self) -> Iterator[None]:
        yield  # the server is one


def webdav_storage(request: pytest.FixtureRequest) -> Storage:
    """One that tells no checksums."""
    server: WebdavServer = request.getfixturevalue("webdav")
    return HttpStorage(server, server.url)


def xrootd_https_storage(request: pytest.FixtureRequest) -> Storage:
    """One that tells adler32, over TLS."""
    server: XrootdHttpServer = request.getfixturevalue("xrootd_http")
    authority: Authority = request.getfixturevalue("authority")
    return HttpStorage(server, server.https_url.replace("https:", "davs:"), ca=str(authority.folder))


class Shown:
    """A credential source that always shows the same."""

    def __init__(self, token: Optional[str] = None, proxy_file: Optional[Path] = None) -> None:
        self.credential = Credential(token, proxy_file)

    def for_url(self, url: str, *, write: bool) -> Credential:
        """The same for every storage."""
        return self.credential


class S3Key:
    """As much of a path as the contract needs of an object, or of the prefix that it lies below."""

    def __init__(self, client: Any, key: str) -> None:
        self._client = client
        self._key = key
        self._where = {"Bucket": BUCKET, "Key": key}

    @property
    def name(self) -> str:
        return self._key.rpartition("/")[2]

    @property
    def parent(self) -> S3Key:
        return S3Key(self._client, self._key.rpartition("/")[0])

    def read_bytes(self) -> bytes:
        return bytes(self._client.get_object(**self._where)["Body"].read())

    def write_bytes(self, content: bytes) -> None:
        self._client.put_object(**self._where, Body=content)

    def unlink(self) -> None:
        self._client.delete_object(**self._where)

    def mkdir(self) -> None:
        """There are no folders, but what people take for them."""
        self._client.put_object(Bucket=BUCKET, Key=f"{self._key}/", Body=b"")

    def stat(self) -> SimpleNamespace:
        found = self._client.head_object(**self._where)
        return SimpleNamespace(st_size=found["ContentLength"], st_mtime_ns=found["LastModified"].timestamp())

    def iterdir(self) -> Iterator[Any]:
        """What is below this prefix: objects, and uploads in parts that are under way."""
        prefix = f"{self._key}/"
        for item in self._client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", []):
            yield S3Key(self._client, prefix + item["Key"][len(prefix) :].partition("/")[0])
        for upload in self._client.list_multipart_uploads(Bucket=BUCKET, Prefix=prefix).get("Uploads", []):
            size = SimpleNamespace(st_size=1)
            yield SimpleNamespace(name=f"{upload['Key'].rpartition('/')[2]}.part", stat=lambda size=size: size)


#: Tests of what an object store has not: an object appears whole or not at all, and nobody chmods it.
NOT_IN_A_STORE = {
    "test_no_permission_to_read",
    "test_no_permission_to_write",
    "test_remove_takes_along_what_a_killed_pilot_left",
    "test_storage_that_damages_what_it_stores",
    "test_a_twin_that_was_quicker_is_not_overwritten",
}


@functools.lru_cache(maxsize=4)
def s3_tool(endpoint: str) -> Copytool:
    """A tool for an endpoint; it takes boto3 half a second to make a client."""
    return load_copytool("s3", endpoint=endpoint, credentials=Shown(token=f"{ACCESS}:{SECRET}"), part_mb=8.0)


class S3Storage(Storage):
    """A prefix of a bucket. What is large goes through a slow line, so that there is something to interrupt."""

    LARGE = 24_000_000

    def __init__(self, server: S3Server, line: FaultyProxy) -> None:
        self.server = server
        self.prefix = uuid.uuid4().hex
        self._line = line
        self._client = server.client
        self.tool = s3_tool(line.address)

    def url(self, name: str) -> str:
        return f"s3://{BUCKET}/{self.prefix}/{quote(name)}"

    def path(self, name: str) -> Path:
        return cast(Path, S3Key(self._client, f"{self.prefix}/{name}"))

    def own(self, path: Path) -> None:
        """Nobody's."""

    @contextlib.contextmanager
    def ordinary_user(self) -> Iterator[None]:
        yield

    def put_large(self, name: str) -> str:
        """Put a file that takes a while to read."""
        self._line.down.rate = 8e6
        return self.put(name, bytes(self.LARGE))


def s3_storage(request: pytest.FixtureRequest) -> Storage:
    """An object store."""
    server: S3Server = request.getfixturevalue("s3")
    line: FaultyProxy = request.getfixturevalue("s3_line")
    line.down = Way()
    return S3Storage(server, line)


HTTP_STORAGES: dict[str, Callable[[pytest.FixtureRequest], Storage]] = {
    "real_webdav": webdav_storage,
    "real_xrootd_https": xrootd_https_storage,
    "real_s3": s3_storage,
}
