"""docs/frameworks.md: every script, as it stands, on two ranks."""

import gc
import os
import re
from pathlib import Path
from typing import Any

import pytest

import ddp_compress as dc
from tests.frameworks.launched import launched
from tests.test_snippets import ROOT, SCRIPTS, blocks


def run(code: str, folder: Path) -> list[float]:
    """The ratios of the states that a script leaves."""
    before = states()
    os.chdir(folder)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code, SCRIPTS, "exec"), names)
    made = (each for each in states() if not any(each is old for old in before))
    return [each.stats.ratio for each in made]


def states() -> list[dc.CompressionState]:
    """All that live."""
    return [each for each in gc.get_objects() if type(each) is dc.CompressionState]


@pytest.mark.parametrize(
    "script", blocks(ROOT / SCRIPTS, "python"), ids=lambda script: script.section
)
def test_a_script_of_the_page_trains(two_ranks, script, tmp_path):
    names = re.findall(r"^(?:from|import) (lightning|accelerate|transformers)", script.code, re.M)
    pytest.importorskip(names[0])
    assert len(script.code.splitlines()) <= 40
    for (ratio,), warned in two_ranks.run(2, launched, run, script.code, tmp_path):
        assert ratio > 10
        assert warned == []
