"""Pages lead to pages, sections and files that exist, and say what RESULTS says."""

import json
import re
from functools import cache
from pathlib import Path
from pkgutil import resolve_name

import pytest

import ddp_compress

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md")]
NAMED = [page for page in PAGES if page.name != "CHANGELOG.md"]  # which tells of files long gone

every_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix()
)


@every_page
def test_every_link_leads_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", without_code(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"[...]({link}): there is no {target.relative_to(ROOT)}"
        assert not anchor or anchor in anchors(target), f"[...]({link}): there is no such section"


@pytest.mark.parametrize("page", NAMED, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_file_that_is_named_exists(page):
    """Whole paths, or only their ends, as in CONTRIBUTING's tree."""
    words = re.sub(r"^```python.*?^```", "", page.read_text(), flags=re.M | re.S)
    names = set(re.findall(r"(?<![\w./-])[a-z_][a-z_0-9/.]*\.(?:py|md|cpp|cu|h|mk)\b", words))
    held = [f"/{each}" for each in files()]
    assert not {name for name in names if not any(each.endswith(f"/{name}") for each in held)}


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160


def test_every_page_is_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text()
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in ROOT.glob("docs/**/*.md")]
    assert not [page for page in pages if f": {page}\n" not in menu]


def test_every_name_of_the_reference_exists():
    pages = [page.read_text() for page in ROOT.glob("docs/api/*.md")]
    names = [name for page in pages for name in re.findall(r"^::: (\S+)$", page, re.M)]
    # Modules of integrations need their frameworks.
    assert all(resolve_name(name) for name in names if ".integrations." not in name)


def test_every_public_name_is_in_the_reference():
    pages = "".join(page.read_text() for page in ROOT.glob("docs/api/*.md"))
    assert not [name for name in ddp_compress.__all__ if not re.search(rf"\b{name}\b", pages)]


@pytest.mark.parametrize("name", ["links", "loss", "ranks"])
def test_figures_are_those_of_results(name):
    held = json.loads((ROOT / "docs" / "figures" / f"{name}.json").read_text())
    section = re.escape(held["section"])
    results = (ROOT / "bench" / "RESULTS.md").read_text()
    (text,) = re.findall(rf"^#+ {section}\n(.*?)(?=^## |\Z)", results, re.M | re.S)
    there = {float(each.replace(",", "")) for each in re.findall(r"\d[\d,]*(?:\.\d+)?", text)}
    assert not set(numbers(held)) - there


def test_the_race_drawn_is_that_of_results():
    """Its last losses and seconds to the target, as they are rounded there."""
    race = json.loads((ROOT / "docs" / "figures" / "race.json").read_text())
    results = (ROOT / "bench" / "RESULTS.md").read_text()
    (text,) = re.findall(r"^#### The race\n(.*?)(?=^#)", results, re.M | re.S)
    for name, curve in race["curves"].items():
        assert f"{curve['losses'][-1]:.4f}" in text
        for link in race["links"].values():
            assert f" {link['to the target'][name]:.0f} s" in text


def numbers(held: object) -> list[float]:
    """All in a JSON."""
    if isinstance(held, dict):
        held = list(held.values())
    if isinstance(held, list):
        return [number for each in held for number in numbers(each)]
    return [held] if isinstance(held, int | float) else []


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
