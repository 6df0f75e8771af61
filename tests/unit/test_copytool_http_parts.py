"""The copytools http and s3: URLs, digests, and every answer in our errors (the contract: tests/contract)."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import requests

from common.checksums import Checksum
from common.errors import ErrorCode, PilotageError
from pilot.copytool import load_copytool
from pilot.copytool.base import Direction
from pilot.copytool.http_digest import digests, wanted
from pilot.copytool.http_errors import STATUSES, network_error, status_code
from pilot.copytool.http_place import Place
from pilot.copytool.s3_errors import CODES, service_code
from pilot.copytool.s3_place import Keys, keys_from_file, keys_from_token
from pilot.copytool.s3_place import Place as S3Place

IN, OUT = Direction.IN, Direction.OUT


# --- URLs


@pytest.mark.parametrize(
    ("url", "endpoint", "sent"),
    [
        ("davs://h:2880/a%20b/c?x=%2F", "https://h:2880", "https://h:2880/a%20b/c?x=%2F"),
        ("dav://H/a", "http://h", "http://h/a"),
        ("https://[::1]:1/a", "https://[::1]:1", "https://[::1]:1/a"),
    ],
)
def test_urls_are_sent_as_they_are(url: str, endpoint: str, sent: str) -> None:
    place = Place.parse(url, IN)
    assert (place.endpoint, place.url) == (endpoint, sent)
    assert "?" not in place.shown


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://h", "is no URL"),
        ("https://h/", "is no URL"),
        ("https:///a", "is no URL"),
        ("ftp://h/a", "is no URL"),
        ("https://h:99999/a", "is no URL"),
        ("https://user:secret@h/a", "credentials come from"),
        ("https://h/a b", "percent-encoded"),
        ("https://h/ü", "percent-encoded"),
        ("https://h/a%2F%2e%2e/b", "could leave the storage"),
    ],
)
def test_urls_that_cannot_be_used(url: str, words: str) -> None:
    with pytest.raises(PilotageError, match=words) as raised:
        Place.parse(url, OUT)
    assert raised.value.code is ErrorCode.STAGE_OUT_FAILED
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("query", "signed", "bound"),
    [
        ("", False, False),
        ("x=1", False, False),
        ("X-Amz-Signature=abc&X-Amz-Date=1", True, True),
        ("AWSAccessKeyId=a&Signature=b&Expires=1", True, True),
        ("authz=Bearer%20x", True, False),
    ],
)
def test_urls_that_are_the_permission(query: str, signed: bool, bound: bool) -> None:
    place = Place.parse(f"https://h/a?{query}", IN)
    assert (place.signed, place.bound) == (signed, bound)


@pytest.mark.parametrize(
    ("url", "private"),
    [
        ("https://h/a", True),
        ("http://h/a", False),
        ("http://localhost/a", True),
        ("http://127.0.0.1:80/a", True),
        ("http://127.0.0.1.evil.org/a", False),
    ],
)
def test_where_a_token_may_go(url: str, private: bool) -> None:
    assert Place.parse(url, IN).private is private


def test_temporary_places_lie_beside_the_file_and_keep_its_query() -> None:
    final = Place.parse("https://h/a/b%2Fc?x=1", OUT)
    assert final.part().path.startswith("/a/.pilotage-") and final.part().query == "x=1"
    assert final.folder().path == "/a/"


# --- digests


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({"Digest": "adler32=11e60398"}, "adler32:11e60398"),
        ({"Digest": "ADLER32=1E60398"}, "adler32:01e60398"),
        ({"Digest": "md5=nIBXPn9BiUi0ELhX2r08qA=="}, "md5:9c80573e7f418948b410b857dabd3ca8"),
        ({"Digest": "md5=9c80573e7f418948b410b857dabd3ca8"}, "md5:9c80573e7f418948b410b857dabd3ca8"),
        ({"Repr-Digest": "adler=:EeYDmA==:"}, "adler32:11e60398"),
        ({"Repr-Digest": "sha-512=:AAAA:, adler=:EeYDmA==:"}, "adler32:11e60398"),
        ({"Digest": "sha-256=" + 43 * "A" + "="}, "sha256:" + 64 * "0"),
    ],
)
def test_digests_are_read(headers: dict[str, str], found: str) -> None:
    assert [str(checksum) for checksum in digests(headers).values()] == [found]


@pytest.mark.parametrize("text", ["", "md5", "md5=", "md5=???", "md5=AAAA", "adler32=xyz", "sha-256=11e60398", "=,="])
def test_digests_that_are_none(text: str) -> None:
    assert digests({"Digest": text, "Repr-Digest": text}) == {}


@pytest.mark.parametrize("algorithm", ["adler32", "md5", "sha256"])
def test_the_algorithm_of_the_transfer_is_wanted_most(algorithm: str) -> None:
    headers = wanted(algorithm)
    first = headers["Want-Digest"].split(",")[0]
    assert digests(
        {"Digest": f"{first}=00000001"} if algorithm == "adler32" else {"Digest": f"{first}={_zeros(first)}"}
    )
    assert headers["Want-Repr-Digest"].split(",")[0].endswith("=9")


def _zeros(name: str) -> str:
    return {"md5": 32, "sha-256": 64}[name] * "0"


def test_both_headers_together_prefer_the_older() -> None:
    found = digests({"Digest": "adler32=00000001", "Repr-Digest": "adler=:EeYDmA==:"})
    assert found == {"adler32": Checksum("adler32", "1")}


# --- errors


@pytest.mark.parametrize("status", [*range(400, 600)])
def test_every_status_is_some_error(status: int) -> None:
    for direction in Direction:
        code = status_code(status, direction)
        assert isinstance(code, ErrorCode)
        if status not in STATUSES:
            assert code is (ErrorCode.SERVICE_UNAVAILABLE if status >= 500 else direction.failed)


@pytest.mark.parametrize(
    ("status", "coming", "going"),
    [
        (401, ErrorCode.STAGE_IN_AUTHENTICATION, ErrorCode.STAGE_OUT_AUTHENTICATION),
        (403, ErrorCode.STAGE_IN_AUTHENTICATION, ErrorCode.STAGE_OUT_AUTHENTICATION),
        (404, ErrorCode.NO_SUCH_FILE, ErrorCode.STAGE_OUT_FAILED),
        (412, ErrorCode.FILE_EXISTS, ErrorCode.FILE_EXISTS),
        (503, ErrorCode.SERVICE_UNAVAILABLE, ErrorCode.SERVICE_UNAVAILABLE),
        (504, ErrorCode.STAGE_IN_TIMEOUT, ErrorCode.STAGE_OUT_TIMEOUT),
        (507, ErrorCode.NO_REMOTE_SPACE, ErrorCode.NO_REMOTE_SPACE),
    ],
)
def test_answers_in_our_errors(status: int, coming: ErrorCode, going: ErrorCode) -> None:
    assert (status_code(status, IN), status_code(status, OUT)) == (coming, going)


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (requests.ConnectionError(ConnectionResetError(104, "reset")), ErrorCode.SERVICE_UNAVAILABLE),
        (requests.ConnectionError(OSError(101, "unreachable")), ErrorCode.NETWORK_UNREACHABLE),
        (caused(requests.ConnectionError(), socket.gaierror(-2, "unknown")), ErrorCode.NETWORK_UNREACHABLE),
        (requests.exceptions.ProxyError("refused"), ErrorCode.NETWORK_UNREACHABLE),
        (requests.ConnectTimeout("slow"), ErrorCode.SERVICE_UNAVAILABLE),
        (requests.ReadTimeout("slow"), ErrorCode.STAGE_IN_TIMEOUT),
        (caused(requests.ConnectionError(), TimeoutError("slow")), ErrorCode.STAGE_IN_TIMEOUT),
        (requests.exceptions.SSLError(ssl.SSLError("alert")), ErrorCode.STAGE_IN_AUTHENTICATION),
        (caused(requests.exceptions.SSLError(), ssl.SSLEOFError("cut")), ErrorCode.SERVICE_UNAVAILABLE),
        (requests.exceptions.InvalidURL("bad"), ErrorCode.STAGE_IN_FAILED),
    ],
)
def test_failures_on_the_way_in_our_errors(error: Exception, code: ErrorCode) -> None:
    assert network_error(error, IN, "https://h/a", "").code is code


def test_errors_tell_no_query() -> None:
    error = network_error(requests.ConnectionError("no route to /a?sig=s3cr3t"), IN, "https://h/a", "sig=s3cr3t")
    assert "s3cr3t" not in str(error)


def test_nothing_in_the_environment_is_named_in_vain(tmp_path: Path) -> None:
    with pytest.raises(PilotageError, match="there is no file") as raised:
        load_copytool("http", ca=str(tmp_path / "absent"))
    assert raised.value.code is ErrorCode.BAD_CONFIGURATION


# --- s3


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("s3://bucket/a/b", S3Place(None, "bucket", "a/b")),
        ("s3://bucket.with.dots/a%20b", S3Place(None, "bucket.with.dots", "a b")),
        ("s3://h.example:443/bucket/a", S3Place("https://h.example:443", "bucket", "a")),
    ],
)
def test_s3_urls(url: str, place: S3Place) -> None:
    assert S3Place.parse(url, IN) == place


@pytest.mark.parametrize(
    ("token", "keys"),
    [
        (None, None),
        ("eyJh.bearer.token", None),
        ("A:", None),
        ("A:B", Keys("A", "B", None)),
        ("A:B:C:D=", Keys("A", "B", "C:D=")),
    ],
)
def test_s3_keys_from_a_credential(token: Any, keys: Any) -> None:
    assert keys_from_token(token) == keys
    assert "B" not in repr(keys)


def test_s3_keys_file_that_is_nonsense_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.touch(0o600)
    for text in ("s3cr3t", "[default]\ns3cr3t", "[other]\naws_access_key_id = s3cr3t"):
        file.write_text(text)
        with pytest.raises(PilotageError, match="aws_access_key_id") as raised:
            keys_from_file(file)
        assert "s3cr3t" not in str(raised.value)
        assert raised.value.__cause__ is None


def test_s3_codes_in_our_errors() -> None:
    for code in CODES:
        assert all(isinstance(service_code(code, 0, direction), ErrorCode) for direction in Direction)
    assert service_code("BadDigest", 400, OUT) is ErrorCode.PUT_MD5_MISMATCH
    assert service_code("NoSuchBucket", 404, OUT) is ErrorCode.STAGE_OUT_FAILED
    assert service_code("Unheard", 503, IN) is ErrorCode.SERVICE_UNAVAILABLE
    assert service_code("Unheard", 403, IN) is ErrorCode.STAGE_IN_AUTHENTICATION
