"""docs/frameworks.md: every script, as it stands, on two ranks that torchrun starts."""

import os
import re
import subprocess
import sys

import pytest

from tests.test_snippets import ROOT, SCRIPTS, blocks

COMPRESSED = """
import gc
import ddp_compress as dc
states = [each for each in gc.get_objects() if type(each) is dc.CompressionState]
assert [each.stats.ratio > 10 for each in states] == [True]
"""


@pytest.mark.parametrize(
    "script", blocks(ROOT / SCRIPTS, "python"), ids=lambda script: script.section
)
def test_a_script_of_the_page_trains(script, tmp_path):
    names = re.findall(r"^(?:from|import) (lightning|accelerate|transformers)", script.code, re.M)
    pytest.importorskip(names[0])
    assert len(script.code.splitlines()) <= 40
    (tmp_path / "train.py").write_text(script.code + COMPRESSED)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "train.py"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr
