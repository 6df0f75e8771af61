"""Small pieces of work that share a transaction on SQLite: what goes wrong in one is undone, and only that."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from server.store.database import Connection, Database

PATIENCE_S = 20.0


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(f"sqlite:///{tmp_path / 'some.db'}")
    with made.write() as connection:
        connection.exec_driver_sql("CREATE TABLE done (n INTEGER)")
    yield made
    made.close()


def put(number: int, *, fail: bool = False) -> Callable[[Connection], int]:
    def piece(connection: Connection) -> int:
        connection.exec_driver_sql(f"INSERT INTO done VALUES ({number})")
        if fail:
            raise ValueError(f"{number} goes wrong")
        return number

    return piece


def done(database: Database) -> list[int]:
    with database.read() as connection:
        return [row[0] for row in connection.exec_driver_sql("SELECT n FROM done ORDER BY n")]


def test_a_piece_that_fails_leaves_nothing_behind(database: Database) -> None:
    with pytest.raises(ValueError, match="1 goes wrong"):
        database.together(put(1, fail=True))
    assert database.together(put(2)) == 2
    assert done(database) == [2]


def test_a_piece_that_fails_harms_none_of_those_beside_it(database: Database) -> None:
    with ThreadPoolExecutor(8) as pool:
        with database.write():
            first = pool.submit(database.together, put(0))
            _wait_for(database, leading=1, waiting=0)
            others = [pool.submit(database.together, put(number, fail=number % 2 == 1)) for number in range(1, 6)]
            _wait_for(database, leading=1, waiting=5)
        assert first.result(PATIENCE_S) == 0
        for number, each in enumerate(others, start=1):
            if number % 2:
                with pytest.raises(ValueError, match=f"{number} goes wrong"):
                    each.result(PATIENCE_S)
            else:
                assert each.result(PATIENCE_S) == number
    assert done(database) == [0, 2, 4]


def _wait_for(database: Database, *, leading: int, waiting: int) -> None:
    """Until so many batches are at work (here: wait for the writer before them), and so many pieces behind them."""
    deadline = time.monotonic() + PATIENCE_S
    group = database._group
    while (group._leading, group._gathering, len(group._waiting)) != (leading, False, waiting):
        assert time.monotonic() < deadline
        time.sleep(0.001)
