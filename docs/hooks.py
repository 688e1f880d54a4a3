"""MkDocs hooks: the site also holds what pages lead to outside of `docs/`.

A Markdown file becomes a page, any other one a page with its text. Links are rewritten for it; in
the repository, and so on GitHub, they are plain relative paths.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()(?!\w+:)[^)#\s]+")


class Examples(griffe.Extension):
    """What our docstrings call "Example" is a section, whose doctests are code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every class, function and module."""
        if obj.docstring:
            text = obj.docstring.value
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.M)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages outside of `docs/` that the menu names, and all that pages lead to."""
    outside = [path for path in named(config.nav) if not files.get_file_from_path(path)]
    pages = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    pages += [path for path in outside if (ROOT / path).is_file()]
    for page in pages:  # grows
        if not page.startswith("docs/"):
            files.append(File.generated(config, in_site(page), content=text_of(page)))
        if page.endswith(".md"):
            found = (resolve(page, link) for link in LINK.findall((ROOT / page).read_text()))
            pages += [path for path in found if is_outside(path) and path not in pages]
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as paths in the site."""
    here = page.file.src_uri
    source = here if (ROOT / here).is_file() and page.file.generated_by else f"docs/{here}"
    if not source.endswith(".md"):
        return markdown

    def rewritten(link: re.Match[str]) -> str:
        path = resolve(source, link[0])
        if not is_outside(path) and source.startswith("docs/"):
            return link[0]
        return posixpath.relpath(in_site(path), posixpath.dirname(here) or ".")

    return LINK.sub(rewritten, markdown)


def named(nav: object) -> list[str]:
    """The paths in a menu."""
    if isinstance(nav, str):
        return [nav]
    below = nav.values() if isinstance(nav, dict) else nav
    return [path for each in below for path in named(each)]


def resolve(page: str, link: str) -> str:
    """What a page's link leads to, from the repository's root."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def is_outside(path: str) -> bool:
    """Whether a path is a file of the repository, but none of `docs/`."""
    return not path.startswith(("docs/", "..")) and (ROOT / path).is_file()


def in_site(path: str) -> str:
    """Where a file of the repository is in the site's sources."""
    path = path.removeprefix("docs/")
    return path if path.endswith((".md", ".png", ".svg")) else f"{path}.md"


def text_of(path: str) -> str:
    """A page of a file."""
    text = (ROOT / path).read_text()
    language = Path(path).suffix.removeprefix(".")
    return text if path.endswith(".md") else f"# {path}\n\n`````{language}\n{text}`````\n"
