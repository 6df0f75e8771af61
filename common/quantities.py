"""Sizes and durations as people write them: ``2 GB``, ``512 MiB``, ``90s``, ``1h30m``."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Union

_DECIMAL = ["B", "kB", "MB", "GB", "TB", "PB", "EB"]
_BINARY = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]

#: Bytes of each unit, by its lower-case name.
SIZE_UNITS: dict[str, int] = {
    **{unit.lower(): 1000**power for power, unit in enumerate(_DECIMAL)},
    **{unit.lower(): 1024**power for power, unit in enumerate(_BINARY)},
}

#: Seconds of each unit, largest first.
DURATION_UNITS: dict[str, Decimal] = {
    "w": Decimal(604_800),
    "d": Decimal(86_400),
    "h": Decimal(3_600),
    "m": Decimal(60),
    "s": Decimal(1),
    "ms": Decimal("0.001"),
}

_SIZE_REMEDY = "write whole bytes, or a number with a unit such as '512 MiB' or '2 GB'"
_DURATION_REMEDY = "write seconds, or numbers with units such as '90s', '2h' or '1h30m'"
_NUMBER = r"\d+(?:\.\d+)?"
_DURATION_PART = re.compile(rf"\s*({_NUMBER})\s*(ms|[wdhms])")

Quantity = Union[str, int, float]


class QuantityError(ValueError):
    """A size or duration that cannot be read; the text names the field, the value and the remedy."""

    def __init__(self, field: str, value: object, remedy: str) -> None:
        super().__init__(f"{field}: {value!r} cannot be read: {remedy}")
        self.field = field
        self.value = value
        self.remedy = remedy


def _plain_number(value: object, field: str, remedy: str) -> Decimal:
    """Read a bare, non-negative number; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise QuantityError(field, value, remedy)
    try:
        number = Decimal(str(value).strip())
    except InvalidOperation:
        raise QuantityError(field, value, remedy) from None
    if not number.is_finite() or number < 0:
        raise QuantityError(field, value, remedy)
    return number


def parse_size(value: Quantity, field: str = "size") -> int:
    """Give a size in bytes.

    ``value`` is a whole number of bytes or a number with a unit, decimal (``kB MB GB TB PB EB``) or binary
    (``KiB MiB GiB …``), in any case. A bare letter such as ``2G`` is refused, because half of the world means GiB by
    it. Raises :class:`QuantityError`; ``field`` is the name that it gives.

    >>> parse_size("2 GB"), parse_size("512MiB"), parse_size(17)
    (2000000000, 536870912, 17)
    """
    number, factor = value, 1
    if isinstance(value, str):
        match = re.fullmatch(rf"\s*({_NUMBER})\s*([a-zA-Z]+)\s*", value)
        if match:
            unit = match.group(2).lower()
            if unit not in SIZE_UNITS:
                ambiguous = f"{unit}ib" in SIZE_UNITS
                remedy = f"say {unit.upper()}B (powers of 1000) or {unit.upper()}iB (of 1024)"
                raise QuantityError(field, value, remedy if ambiguous else _SIZE_REMEDY)
            number, factor = match.group(1), SIZE_UNITS[unit]
    size = _plain_number(number, field, _SIZE_REMEDY) * factor
    if size != int(size):
        raise QuantityError(field, value, _SIZE_REMEDY)
    return int(size)


def format_size(size: int, *, binary: bool = False) -> str:
    """Write a size for people, with three significant digits at least: ``1.50 GB``.

    >>> format_size(1_500_000_000), format_size(536_870_912, binary=True), format_size(17)
    ('1.50 GB', '512 MiB', '17 B')
    """
    base, units = (1024, _BINARY) if binary else (1000, _DECIMAL)
    scaled, power = float(size), 0
    while power < len(units) - 1 and abs(scaled) >= base - 0.5:
        scaled, power = scaled / base, power + 1
    if power == 0:
        return f"{size} B"
    decimals = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
    return f"{scaled:.{decimals}f} {units[power]}"


def parse_duration(value: Quantity, field: str = "duration") -> float:
    """Give a duration in seconds.

    ``value`` is a number of seconds, or numbers with units ``w d h m s ms``, largest first and each once.
    Raises :class:`QuantityError`; ``field`` is the name that it gives.

    >>> parse_duration("1h30m"), parse_duration("90s"), parse_duration(2.5), parse_duration("250 ms")
    (5400.0, 90.0, 2.5, 0.25)
    """
    if not isinstance(value, str) or re.fullmatch(rf"\s*{_NUMBER}\s*", value):
        return float(_plain_number(value, field, _DURATION_REMEDY))
    order = list(DURATION_UNITS)
    total, position, last = Decimal(0), 0, -1
    text = value.lower().rstrip()
    while position < len(text):
        part = _DURATION_PART.match(text, position)
        if not part or order.index(part.group(2)) <= last:
            raise QuantityError(field, value, _DURATION_REMEDY)
        total += Decimal(part.group(1)) * DURATION_UNITS[part.group(2)]
        position, last = part.end(), order.index(part.group(2))
    if last < 0:
        raise QuantityError(field, value, _DURATION_REMEDY)
    return float(total)


def format_duration(seconds: float) -> str:
    """Write a duration for people; what it writes, :func:`parse_duration` reads.

    Whole units below a second are milliseconds; from a minute on fractions of a second are dropped.

    >>> format_duration(5400), format_duration(90), format_duration(2.5), format_duration(0.25)
    ('1h30m', '1m30s', '2.5s', '250ms')
    """
    if seconds < 0:
        raise QuantityError("duration", seconds, "it cannot be negative")
    if seconds == 0:
        return "0s"
    milliseconds = round(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    if milliseconds < 60_000:
        return f"{milliseconds / 1000:g}s"
    rest, parts = int(seconds + 0.0005), []
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, length)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


def format_about(seconds: float) -> str:
    """Write a duration for a glance, rounded to what matters; what it writes, :func:`parse_duration` reads.

    >>> format_about(93_784.2), format_about(310.4), format_about(12.34), format_about(1.26), format_about(0.0004)
    ('1d2h', '5m10s', '12s', '1.3s', '0ms')
    """
    for least, step in ((86_400, 3_600), (3_600, 60), (10, 1), (1, 0.1)):
        if seconds >= least:
            return format_duration(round(seconds / step) * step)
    return format_duration(max(0.0, seconds))
