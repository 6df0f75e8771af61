"""Checksums: how they are written, read and computed."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path

import pytest

from common.checksums import CHUNK_BYTES, Checksum, Hasher, file_checksum, parse_checksum
from common.errors import ErrorCode, PilotageError


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("adler32:0a1b2c3d", "adler32:0a1b2c3d"),
        ("adler32:A1B2C3D", "adler32:0a1b2c3d"),
        ("ad:1", "adler32:00000001"),
        ("AD: 0A1B2C3D ", "adler32:0a1b2c3d"),
        ("adler:0a1b2c3d", "adler32:0a1b2c3d"),
        ("md5:D41D8CD98F00B204E9800998ECF8427E", "md5:d41d8cd98f00b204e9800998ecf8427e"),
        ("md:d41d8cd98f00b204e9800998ecf8427e", "md5:d41d8cd98f00b204e9800998ecf8427e"),
        ("SHA-256:" + 64 * "A", "sha256:" + 64 * "a"),
    ],
)
def test_spellings(text: str, normal: str) -> None:
    assert str(parse_checksum(text)) == normal
    assert parse_checksum(text) == parse_checksum(normal)
    assert hash(parse_checksum(text)) == hash(parse_checksum(normal))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0a1b2c3d", "names no type: write it like adler32:0a1b2c3d"),
        ("crc32:0a1b2c3d", "'crc32' is unknown: use one of adler32, md5, sha256"),
        (":0a1b2c3d", "is unknown"),
        ("adler32:", "write 8 hexadecimal digits"),
        ("adler32:0a1b2c3g", "write 8 hexadecimal digits"),
        ("adler32:00a1b2c3d", "write 8 hexadecimal digits"),
        ("adler32:-a1b2c3d", "write 8 hexadecimal digits"),
        ("md5:0a1b2c3d", "write 32 hexadecimal digits"),
        ("sha256:" + 63 * "a", "write 64 hexadecimal digits"),
    ],
)
def test_what_cannot_be_read_says_the_remedy(text: str, says: str) -> None:
    with pytest.raises(PilotageError) as raised:
        parse_checksum(text)
    assert raised.value.code is ErrorCode.UNKNOWN_CHECKSUM_TYPE
    assert says in raised.value.detail


@pytest.mark.parametrize("size", [0, 1, 1000, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES + 12_345])
def test_file_checksum_agrees_with_the_libraries(tmp_path: Path, size: int) -> None:
    data = (bytes(range(251)) * (size // 251 + 1))[:size]
    (tmp_path / "f").write_bytes(data)
    assert str(file_checksum(tmp_path / "f")) == f"adler32:{zlib.adler32(data):08x}"
    assert str(file_checksum(str(tmp_path / "f"), "md5")) == f"md5:{hashlib.md5(data).hexdigest()}"
    assert str(file_checksum(tmp_path / "f", "sha256")) == f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.mark.parametrize("algorithm", ["adler32", "md5", "sha256", "ad"])
def test_hasher_does_not_care_about_pieces(algorithm: str) -> None:
    whole, pieces = Hasher(algorithm), Hasher(algorithm)
    whole.update(b"Wikipedia")
    for piece in (b"Wi", b"", bytearray(b"kipe"), memoryview(b"dia")):
        pieces.update(piece)
        pieces.result()  # may be asked at any time
    assert whole.result() == pieces.result()


def test_missing_file_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        file_checksum(tmp_path / "absent")


def test_checksums_of_different_algorithms_differ() -> None:
    assert Checksum("md5", 32 * "0") != Checksum("sha256", 64 * "0")
