"""The copytool s3 with what only object stores have: parts, ETags, keys, conditional writes."""

from __future__ import annotations

import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from common.errors import ErrorCode
from pilot.copytool import Copytool, TransferOutcome, load_copytool
from tests.contract.storages_http import S3Storage, Shown, s3_tool
from tests.contract.test_copytools import DATA, NEVER, Interference, code_of, copy_in, copy_out, names, transfer
from tests.services.base import wait_until
from tests.services.faulty_proxy import FaultyProxy, Way
from tests.services.s3 import ACCESS, BUCKET, SECRET, S3Server

PARTS = DATA * 6  # 18 MiB: three parts of 8 MB


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """The job's folder."""
    (tmp_path / "job").mkdir()
    return tmp_path / "job"


@pytest.fixture
def storage(s3: S3Server, s3_line: FaultyProxy) -> S3Storage:
    """A prefix of the bucket."""
    s3_line.down, s3_line.up = Way(), Way()
    return S3Storage(s3, s3_line)


def uploads(storage: S3Storage) -> set[str]:
    return {name for name in storage.names() if name.endswith(".part")}


def test_large_file_goes_in_parts(storage: S3Storage, s3: S3Server, s3_line: FaultyProxy, job: Path) -> None:
    (job / "f").write_bytes(PARTS)
    stored = copy_out(storage, transfer(storage.url("f"), job / "f", size=len(PARTS)))
    assert (code_of(stored), stored.size) == (None, len(PARTS))
    assert s3.client.head_object(Bucket=BUCKET, Key=f"{storage.prefix}/f")["ETag"].endswith('-3"')
    fetched = copy_in(storage, transfer(storage.url("f"), job / "in", checksum=stored.checksum))
    assert code_of(fetched) is None
    before = s3_line.down.passed
    assert code_of(copy_out(storage, transfer(storage.url("f"), job / "f"))) is None
    assert s3_line.down.passed - before < 10_000, "the ETag told that it is the same file: no need to read it"


def test_same_content_in_other_parts_is_the_same(storage: S3Storage, job: Path) -> None:
    (job / "f").write_bytes(PARTS)
    storage.put("f", PARTS)  # in one
    assert code_of(copy_out(storage, transfer(storage.url("f"), job / "f"))) is None


def test_mismatch_in_parts_leaves_nothing(storage: S3Storage, job: Path) -> None:
    (job / "f").write_bytes(PARTS)
    outcome = copy_out(storage, transfer(storage.url("f"), job / "f", checksum="adler32:00000002"))
    assert code_of(outcome) is ErrorCode.PUT_ADLER32_MISMATCH
    assert storage.names() == set()


@pytest.mark.parametrize("content", [DATA, PARTS])
def test_twin_that_was_quicker_is_not_overwritten(storage: S3Storage, job: Path, content: bytes) -> None:
    """It comes while ours is on its way: the store itself refuses the second."""
    (job / "f").write_bytes(content)
    asked = iter(range(100))
    twin = Interference(lambda: next(asked) >= 5, lambda: storage.put("f", b"of a winner"))
    assert code_of(copy_out(storage, transfer(storage.url("f"), job / "f"), twin)) is ErrorCode.FILE_EXISTS
    assert twin.done
    assert storage.path("f").read_bytes() == b"of a winner"
    assert storage.names() == {"f"}


def test_remove_takes_along_parts_of_a_killed_pilot(storage: S3Storage, s3: S3Server) -> None:
    for name in ("f", "f2"):
        s3.client.create_multipart_upload(Bucket=BUCKET, Key=f"{storage.prefix}/{name}")
    assert storage.tool.remove([storage.url("f")], cancel=NEVER) == [None]
    assert uploads(storage) == {"f2.part"}


def test_stage_out_cancelled_between_parts_leaves_none(storage: S3Storage, s3_line: FaultyProxy, job: Path) -> None:
    (job / "f").write_bytes(PARTS)
    s3_line.up.rate = 6e6  # three seconds: it is not over before it is cancelled
    cancel, outcomes = threading.Event(), list[TransferOutcome]()
    copying = threading.Thread(
        target=lambda: outcomes.append(copy_out(storage, transfer(storage.url("f"), job / "f"), cancel))
    )
    copying.start()
    wait_until(lambda: bool(uploads(storage)), "parts arrive")
    cancel.set()
    cancelled_at = time.monotonic()
    copying.join(120)
    assert time.monotonic() - cancelled_at < 30
    assert code_of(outcomes[0]) is ErrorCode.STAGE_OUT_FAILED
    wait_until(lambda: storage.names() == set(), "the parts are gone")


# --- places and keys


def test_url_that_names_its_endpoint(storage: S3Storage, s3_line: FaultyProxy, job: Path) -> None:
    url = storage.put("f", DATA).replace("s3://", f"s3://localhost:{s3_line.port}/")
    assert code_of(copy_in(storage, transfer(url, job / "f"))) is None


@pytest.mark.parametrize(
    "url", ["s3://bucket", "s3://bucket/", "s3:///key", "s3://localhost:9000/bucket", "s3://a:b@c/d"]
)
def test_urls_that_name_no_object(url: str, job: Path, s3: S3Server) -> None:
    outcome = s3_tool(s3.endpoint).copy_in([transfer(url, job / "f")], cancel=NEVER)[0]
    assert code_of(outcome) is ErrorCode.STAGE_IN_FAILED
    assert outcome.error is not None and "is no URL" in outcome.error.detail


def test_bucket_that_is_not_there(s3: S3Server, job: Path) -> None:
    (job / "f").write_bytes(DATA)
    tool = s3_tool(s3.endpoint)
    url = f"s3://{uuid.uuid4().hex}/f"
    assert code_of(tool.copy_in([transfer(url, job / "in")], cancel=NEVER)[0]) is ErrorCode.NO_SUCH_FILE
    assert code_of(tool.copy_out([transfer(url, job / "f")], cancel=NEVER)[0]) is ErrorCode.STAGE_OUT_FAILED
    assert names(job) == {"f"}


def keyed(s3: S3Server, **options: Any) -> Copytool:
    return load_copytool("s3", endpoint=s3.endpoint, **options)


def test_keys_from_a_file_that_only_we_can_read(s3: S3Server, storage: S3Storage, job: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.touch(0o600)
    file.write_text(f"[default]\naws_access_key_id = {ACCESS}\naws_secret_access_key = {SECRET}\n")
    url = storage.put("f", DATA)
    tool = keyed(s3, keys_file=str(file), credentials=Shown())
    assert code_of(tool.copy_in([transfer(url, job / "f")], cancel=NEVER)[0]) is None
    file.chmod(0o644)
    outcome = tool.copy_in([transfer(url, job / "g")], cancel=NEVER)[0]
    assert code_of(outcome) is ErrorCode.BAD_CONFIGURATION
    file.chmod(0o600)
    file.write_text(f"[default]\naws_secret_access_key: {SECRET}\n")
    outcome = tool.copy_in([transfer(url, job / "g")], cancel=NEVER)[0]
    assert code_of(outcome) is ErrorCode.BAD_CONFIGURATION
    assert SECRET not in str(outcome.error)


def test_keys_of_the_environment_and_none(
    s3: S3Server, storage: S3Storage, job: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "absent"),
        "AWS_CONFIG_FILE": str(tmp_path / "absent"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    url = storage.put("f", DATA)
    bearer = Shown(token="a.bearer.token")  # is no pair of keys: passed over
    outcome = keyed(s3, credentials=bearer).copy_in([transfer(url, job / "f")], cancel=NEVER)[0]
    assert code_of(outcome) is ErrorCode.MISSING_CREDENTIALS
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert code_of(keyed(s3, credentials=bearer).copy_in([transfer(url, job / "f")], cancel=NEVER)[0]) is None
