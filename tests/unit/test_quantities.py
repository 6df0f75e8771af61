"""Sizes and durations as people write them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.quantities import QuantityError, format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (0, 0),
        (17, 17),
        ("17", 17),
        (" 17 ", 17),
        ("2 GB", 2_000_000_000),
        ("2GB", 2_000_000_000),
        ("2 gb", 2_000_000_000),
        ("512MiB", 512 * 1024**2),
        ("512 mib", 512 * 1024**2),
        ("1.5 kB", 1500),
        ("0.1 MB", 100_000),
        ("1.5 KiB", 1536),
        ("3 TB", 3 * 10**12),
        ("1 PiB", 1024**5),
        ("1 EB", 10**18),
        ("9007199254740993", 9_007_199_254_740_993),
        (9_007_199_254_740_993, 9_007_199_254_740_993),
        ("8 B", 8),
        (2.0, 2),
    ],
)
def test_sizes(value: Any, size: int) -> None:
    assert parse_size(value) == size
    assert type(parse_size(value)) is int


@pytest.mark.parametrize(
    "value",
    ["", "GB", "-1", -1, "-1 GB", "1.5", 1.5, "0.3 B", "1 XB", "1 GB 2 MB", "1,5 GB", True, None, [], "nan", "inf"],
)
def test_bad_sizes_name_field_value_and_remedy(value: Any) -> None:
    with pytest.raises(QuantityError) as raised:
        parse_size(value, "disk")
    assert str(raised.value) == (
        f"disk: {value!r} cannot be read: write whole bytes, or a number with a unit such as '512 MiB' or '2 GB'"
    )


@pytest.mark.parametrize("value", ["2G", "2 k", "512M"])
def test_bare_letters_are_refused_as_ambiguous(value: str) -> None:
    letter = value[-1].upper()
    with pytest.raises(QuantityError, match=rf"say {letter}B \(powers of 1000\) or {letter}iB \(of 1024\)"):
        parse_size(value)


@pytest.mark.parametrize(
    ("size", "decimal", "binary"),
    [
        (0, "0 B", "0 B"),
        (999, "999 B", "999 B"),
        (1000, "1.00 kB", "1000 B"),
        (999_999, "1.00 MB", "977 KiB"),
        (1_500_000_000, "1.50 GB", "1.40 GiB"),
        (536_870_912, "537 MB", "512 MiB"),
        (12_345_678, "12.3 MB", "11.8 MiB"),
        (5 * 10**21, "5000 EB", "4337 EiB"),
    ],
)
def test_sizes_for_people(size: int, decimal: str, binary: str) -> None:
    assert (format_size(size), format_size(size, binary=True)) == (decimal, binary)


@given(st.integers(0, 10**19), st.booleans())
def test_a_written_size_reads_back_within_its_digits(size: int, binary: bool) -> None:
    try:
        back = parse_size(format_size(size, binary=binary))
    except QuantityError:  # 1.40 GiB need not be whole bytes
        assert binary
        return
    assert abs(back - size) <= 0.006 * size


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0.0),
        (90, 90.0),
        (2.5, 2.5),
        ("90", 90.0),
        ("2.5", 2.5),
        ("90s", 90.0),
        ("2h", 7200.0),
        ("1h30m", 5400.0),
        ("1h 30m", 5400.0),
        (" 1 H 30 M ", 5400.0),
        ("1d12h", 129_600.0),
        ("1w", 604_800.0),
        ("1.5h", 5400.0),
        ("250ms", 0.25),
        ("1m250ms", 60.25),
    ],
)
def test_durations(value: Any, seconds: float) -> None:
    assert parse_duration(value) == seconds


@pytest.mark.parametrize(
    "value",
    ["", " ", "h", "-2h", -1, "1h-30m", "30m1h", "1h1h", "1 year", "1:30:00", "1h30", "5 minutes", True, None, "nan"],
)
def test_bad_durations_name_field_value_and_remedy(value: Any) -> None:
    with pytest.raises(QuantityError) as raised:
        parse_duration(value, "wall_time")
    assert str(raised.value) == (
        f"wall_time: {value!r} cannot be read: write seconds, or numbers with units such as '90s', '2h' or '1h30m'"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.25, "250ms"),
        (2.5, "2.5s"),
        (59.9996, "1m"),
        (60, "1m"),
        (90, "1m30s"),
        (5400, "1h30m"),
        (86_400, "1d"),
        (90_061, "1d1h1m1s"),
    ],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_negative_durations_are_refused() -> None:
    with pytest.raises(QuantityError, match="cannot be negative"):
        format_duration(-1)


@given(st.floats(0, 10**8))
def test_a_written_duration_reads_back(seconds: float) -> None:
    back = parse_duration(format_duration(seconds))
    assert abs(back - seconds) <= (0.001 if seconds < 59.9 else 1.0)


def test_errors_are_value_errors_with_their_parts() -> None:
    with pytest.raises(ValueError) as raised:
        parse_size("many", "disk")
    assert isinstance(raised.value, QuantityError)
    assert (raised.value.field, raised.value.value) == ("disk", "many")
