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
    before = set(map(id, gc.get_objects()))
    os.chdir(folder)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code, SCRIPTS, "exec"), names)
    found = (each for each in gc.get_objects() if type(each) is dc.CompressionState)
    return [each.stats.ratio for each in found if id(each) not in before]


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
