"""The reference pages say what the code says, and their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from common.errors import ErrorCode
from docs import generate
from server.api.routes import ROUTES

DOCS = Path(generate.__file__).parent
PAGES = generate.pages()


@pytest.mark.parametrize("name", PAGES)
def test_a_committed_page_is_what_the_code_says(name: str) -> None:
    committed = (DOCS / "reference" / name).read_text(encoding="utf-8")
    assert committed == PAGES[name], "run: python -m docs.generate"


def test_the_pages_are_the_same_each_time() -> None:
    assert generate.pages() == PAGES


def test_every_error_is_on_its_page() -> None:
    for code in ErrorCode:
        assert f"| {int(code)} | `{code.name}` |" in PAGES["errors.md"]


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_call_is_on_its_page(route: object) -> None:
    assert f"`{route.method} {route.path}" in PAGES["protocol.md"]  # type: ignore[attr-defined]


def test_every_kind_of_thing_has_its_moves() -> None:
    for _, kind, rows, _ in generate.KINDS:
        for state in kind:
            assert f"| `{state.value}` | " in PAGES["states.md"]
        for row in rows:
            assert f"| `{row.source.value}` | `{row.target.value}` | {row.trigger} | {row.who} |" in PAGES["states.md"]


@pytest.mark.parametrize("name", PAGES)
def test_a_table_has_as_many_cells_in_each_row_as_heads(name: str) -> None:
    for table in re.findall(r"(?:^\|.*\|\n)+", PAGES[name], re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


def test_the_links_within_the_documentation_lead_somewhere() -> None:
    for page in (DOCS / "README.md", *sorted((DOCS / "reference").glob("*.md"))):
        text = page.read_text(encoding="utf-8")
        heads = {head.lower() for head in re.findall(r"^#+ (\w+)$", text, re.MULTILINE)}
        for target in re.findall(r"\]\(([^)]+)\)", text):
            place, _, anchor = target.partition("#")
            assert (page.parent / place).exists() if place else anchor in heads, f"{page.name}: {target}"
