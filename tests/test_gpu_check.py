"""`bench/gpu_check.sh`, without a GPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "bench/gpu_check.sh"
ROW = re.compile(r"^(\S.*?) +(ok|failed|skipped) +\d+ s  (.*)$", re.M)

# An interpreter that has a GPU and no pytest, whose smoke fails and whose hook's path hangs.
STUB = """#!/bin/sh
case "$*" in
  *find_spec*pytest*) echo pytest ;;
  *find_spec*) ;;
  *gpu_smoke.py*) echo halfway; echo; exit 3 ;;
  *hook_path.py*) echo at its first step; exit 124 ;;
  *) echo "ran $1" ;;
esac
"""


def run(python: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *arguments],
        env=os.environ | {"PYTHON": python, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def stub(folder: Path, lines: str) -> str:
    """An interpreter made of lines of shell."""
    path = folder / "python"
    path.write_text(lines)
    path.chmod(0o755)
    return str(path)


def summary(folder: Path) -> dict[str, tuple[str, str]]:
    """By step, its result and the line that matters."""
    rows = ROW.findall((folder / "summary.txt").read_text())
    return {name: (result, line) for name, result, line in rows}


def test_every_step_runs_where_a_gpu_is_pretended(tmp_path):
    ended = run(sys.executable, "--pretend", "--out", str(tmp_path))
    steps = summary(tmp_path)
    results = {name: result for name, (result, _) in steps.items()}
    need_a_gpu = dict.fromkeys(["rest of the tests", "ncu", "memcheck", "racecheck"], "skipped")
    run_here = ["versions", "build", "smoke", "tests of ops", "kernels", "hook's path", "hazards"]
    assert results == dict.fromkeys(run_here, "ok") | need_a_gpu, ended.stdout
    assert ended.returncode == 0
    assert "the same as on the CPU" in steps["smoke"][1]
    assert "1.5 waits" in steps["hook's path"][1]
    assert (tmp_path / "summary.txt").read_text() == ended.stdout
    assert len(list(tmp_path.iterdir())) <= 8
    for name in ("kernels.json", "hook_path.json"):
        assert json.loads((tmp_path / name).read_text())


def test_a_step_that_fails_stops_no_other(tmp_path):
    ended = run(stub(tmp_path, STUB), "--out", str(tmp_path / "results"))
    steps = summary(tmp_path / "results")
    assert steps["smoke"] == ("failed", "halfway")
    assert steps["tests of ops"] == ("skipped", "pytest is not installed")
    assert steps["kernels"] == ("ok", "ran bench/kernels.py")
    assert steps["hook's path"] == ("failed", "stopped at its limit, after: at its first step")
    assert steps["nccl_alone"] == ("ok", "ran bench/hazards.py")
    assert ended.returncode == 1


def test_what_would_tell_nothing_is_refused(tmp_path):
    ended = run(stub(tmp_path, "#!/bin/sh\nexit 1\n"), "--out", str(tmp_path / "results"))
    assert ended.returncode == 2
    assert "finds no torch with a GPU" in ended.stderr


@pytest.mark.parametrize("wrong", [["--prentend"], ["--out"]])
def test_a_wrong_word_is_refused(wrong):
    ended = run("python3", *wrong)
    assert ended.returncode != 0
    assert wrong[0] in ended.stderr
