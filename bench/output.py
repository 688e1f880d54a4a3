"""How benches report: tables as wide as they are, and all figures in a file."""

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

WIDTH = 160  # at least, also where nothing is a terminal


def show(*tables: Table) -> None:
    """Print tables."""
    console = Console(width=max(Console().width, WIDTH))
    for table in tables:
        console.print(table)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Let the command line name a file for `write_json`."""
    parser.add_argument("--json", type=_file, metavar="FILE", help="write all figures there")


def write_json(path: Path | None, figures: object) -> None:
    """Write figures into a file, if one was named."""
    if path:
        path.write_text(json.dumps(figures, indent=2) + "\n")


def _file(text: str) -> Path:
    """Better to hear now than after the run."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: not a file in a folder that is")
    return path
