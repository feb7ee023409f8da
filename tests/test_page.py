"""The page for people: what it says, that it escapes everything, and that it grows with reason."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from torrentfs.repository.curation import retired, with_alias
from torrentfs.repository.metainfo import Kind
from torrentfs.repository.page import magnet, render
from torrentfs.repository.publisher import Wanted, publish_all
from torrentfs.repository.workshop import Repository


class Reader(HTMLParser):
    """Collects text and links, and fails on what nobody meant to write."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.links: list[str] = []
        self.rows: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        given = dict(attrs)
        if tag == "a":
            self.links.append(given["href"] or "")
        if tag == "tr" and given.get("data-path"):
            self.rows.append(given["data-path"] or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def read(data: bytes) -> Reader:
    reader = Reader()
    reader.feed(data.decode())
    return reader


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository.create(tmp_path / "repository", "alice")
    source = tmp_path / "source"
    source.mkdir()
    (source / "data").write_bytes(b"x" * 100_000)
    odd = 'O<script>alert("1")</script>&/v"1\'<b>'
    publish_all(
        made, [Wanted(source, "ROOT/v6", ["latest"]), Wanted(source, "ROOT/v7", requires=["ROOT/v6"])]
    )
    publish_all(made, [Wanted(source, odd)])
    return made


def page(repository: Repository) -> Reader:
    return read((repository.public / "index.html").read_bytes())


def test_each_commit_writes_the_page(repository: Repository, tmp_path: Path) -> None:
    shown = page(repository)

    assert len(shown.rows) == 3
    assert "3 versions in 2 packages; catalog version 3" in shown.text
    assert "also ROOT/latest" in shown.text
    assert "requires ROOT/v6" in shown.text
    repository.change(lambda catalog: with_alias(catalog, "stable", "ROOT/v7"))
    assert "also stable" in page(repository).text


def test_every_link_leads_to_a_file_or_a_magnet(repository: Repository) -> None:
    links = page(repository).links
    magnets = [link for link in links if link.startswith("magnet:")]

    assert len(magnets) == 6  # a manifest and a pack each
    assert all((repository.public / link).is_file() for link in links if link not in magnets)
    ref = repository.catalog().versions["ROOT/v6"].current.ref
    assert magnet(ref) in magnets
    assert re.fullmatch(r"magnet:\?xt=urn:btmh:1220[0-9a-f]{64}&xl=\d+", magnet(ref))
    assert ref.kind is Kind.MANIFEST


def test_names_are_text(repository: Repository) -> None:
    shown = page(repository)

    assert shown.tags == {
        *("html", "meta", "title", "style", "h1", "p", "b", "pre", "span", "a", "code", "input"),
        *("details", "summary", "small", "table", "tr", "th", "td", "br", "script"),
    }
    assert 'O<script>alert("1")</script>&/v"1\'<b>' in shown.rows
    assert b"<script>alert" not in (repository.public / "index.html").read_bytes()


def test_what_is_retired_says_so_and_what_is_gone_is_not_there(repository: Repository) -> None:
    repository.change(lambda catalog: retired(catalog, "ROOT/v7", 4_000_000_000))
    assert "retired, gone on 2096-10-02" in page(repository).text
    repository.change(lambda catalog: retired(catalog, "ROOT/v7", 1))
    assert "ROOT/v7" not in page(repository).rows


def test_an_empty_repository_has_a_page(tmp_path: Path) -> None:
    made = Repository.create(tmp_path / "repository", "alice")

    shown = read(render(made.catalog(), {}, 0.0))

    assert "0 versions in 0 packages" in shown.text


def test_a_page_that_cannot_be_written_fails_no_commit(repository: Repository) -> None:
    said: list[str] = []
    (repository.public / "index.html").unlink()
    (repository.public / "index.html").mkdir()
    careful = Repository(repository.directory, notice=said.append)

    careful.change(lambda catalog: with_alias(catalog, "stable", "ROOT/v7"))

    assert repository.catalog().aliases["stable"] == "ROOT/v7"
    assert "people see an older page" in said[0]
