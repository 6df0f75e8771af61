"""Many rows in one statement: whatever their texts hold, and never cut."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from server.store.database import UnstorableValue
from server.store.lists import among, put
from server.store.schema import setting
from tests.integration.server.harness import Site

ODD = ['a"b', "{c,}", "d\\e", "NULL", "", "é", "'", "\\u0000", "\\\\u0000", "\n\x01"]


def test_odd_texts_come_back_as_they_are(site: Site) -> None:
    with site.database.write() as connection:
        rows = [{"key": text, "value": text} for text in ODD]
        made = put(connection, setting, rows, returning=(setting.c.key,))
        assert sorted(row.key for row in made) == sorted(ODD)
        found = connection.execute(select(setting).where(among(connection, setting.c.key, ODD))).all()
        assert sorted((row.key, row.value) for row in found) == sorted((text, text) for text in ODD)
        assert connection.execute(select(setting).where(among(connection, setting.c.key, []))).all() == []


def test_nul_is_replaced_where_the_database_keeps_none(site: Site) -> None:
    with site.database.write() as connection:
        put(connection, setting, [{"key": "a\\u0000", "value": "b\0c"}, {"key": "d", "value": "e"}])
        found = {row.key: row.value for row in connection.execute(select(setting))}
    kept = "b\0c" if site.database.is_sqlite else "b\N{REPLACEMENT CHARACTER}c"
    assert found == {"a\\u0000": kept, "d": "e"}


def test_what_is_there_already_is_changed_as_the_caller_says(site: Site) -> None:
    with site.database.write() as connection:
        put(connection, setting, [{"key": "a", "value": "1"}])
        rows = [{"key": "a", "value": "2"}, {"key": "b", "value": "3"}]
        put(connection, setting, rows, lambda statement: statement.on_conflict_do_nothing())
        values = select(setting.c.value).order_by(setting.c.key)
        assert list(connection.execute(values).scalars()) == ["1", "3"]


def test_a_text_that_is_too_long_is_refused_and_not_cut(site: Site) -> None:
    rows = [{"key": "k" * 256, "value": ""}]
    if site.database.is_sqlite:  # it knows no lengths, and keeps all of it
        with site.database.write() as connection:
            assert [row.key for row in put(connection, setting, rows, returning=(setting.c.key,))] == ["k" * 256]
        return
    with pytest.raises(UnstorableValue), site.database.write() as connection:
        put(connection, setting, rows)
