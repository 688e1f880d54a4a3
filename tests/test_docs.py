"""Pages lead to pages, sections and files that exist."""

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("bench/*.md")]
NAMED = [page for page in PAGES if page.name != "CHANGELOG.md"]  # which tells of files long gone

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@every_page
def test_every_link_leads_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", without_code(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"[...]({link}): there is no {target.relative_to(ROOT)}"
        assert not anchor or anchor in anchors(target), f"[...]({link}): there is no such section"


@pytest.mark.parametrize("page", NAMED, ids=lambda page: page.name)
def test_every_file_that_is_named_exists(page):
    """Whole paths, or only their ends, as in CONTRIBUTING's tree."""
    words = page.read_text()
    names = set(re.findall(r"(?<![\w./-])[a-z_][a-z_0-9/.]*\.(?:py|md|cpp|cu|h|mk)\b", words))
    held = [f"/{each}" for each in files()]
    assert not {name for name in names if not any(each.endswith(f"/{name}") for each in held)}


@cache
def files() -> list[str]:
    """What the repository holds."""
    tops = [each for each in ROOT.iterdir() if not each.name.startswith((".", "build"))]
    found = [*tops, *(each for top in tops for each in top.rglob("*"))]
    return [each.relative_to(ROOT).as_posix() for each in found]


@cache
def anchors(page: Path) -> set[str]:
    """What GitHub calls a page's sections."""
    titles = re.findall(r"^#+ (.*)$", without_code(page), re.M)
    return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}


def without_code(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
