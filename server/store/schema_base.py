"""What every module of tables begins with."""

from __future__ import annotations

from sqlalchemy import BigInteger, Integer, MetaData

metadata = MetaData()

BigId = BigInteger().with_variant(Integer, "sqlite")
"""SQLite numbers rows by itself only where the column's type is INTEGER."""
