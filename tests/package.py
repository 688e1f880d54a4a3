"""What users get: the documentation's own lines, where torch is all there is.

The lines of README's "Install" put the source distribution into a fresh environment, then the
wheel, and both times two ranks train with lines of README and `docs/` (see `readme.py`). What
`make` has built and installed is out of reach: a package that we forgot to ask for is missing here,
and so is a file that `MANIFEST.in` forgets. Before torch is there, and without a compiler, users
are told.
"""

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.readme import block

ROOT = Path(__file__).parents[1]
TRAIN = f"torchrun --nproc_per_node=2 '{ROOT}/tests/readme.py'"
LACKS = "python -c \"from importlib.util import find_spec; assert not find_spec('{0}'), '{0}'\""
WITHOUT_TORCH = """
{{ {0}
}} > words 2>&1 && exit 1
cat words
grep --fixed-strings 'pip install torch' words
"""
WITHOUT_COMPILER = """
CC=absent CXX=absent pip wheel --no-deps --wheel-dir slow .
ls slow/ddp_compress-*-py3-none-any.whl
pip install slow/*.whl
python -c 'import ddp_compress' 2>&1 | grep 'without its native kernels (they were not built)'
"""


class Environment:
    """A virtual environment; what runs in it sees no other."""

    def __init__(self, folder: Path, python: str = sys.executable, **variables: str) -> None:
        subprocess.run([python, "-m", "venv", folder], check=True)
        outer = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
        self.variables = outer | {
            "OMP_NUM_THREADS": "1",
            "PATH": f"{folder / 'bin'}{os.pathsep}{outer['PATH']}",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            **variables,
        }

    def run(self, lines: str, where: Path) -> None:
        """Lines of shell, up to the first that fails: that ends the check and shows its words."""
        ended = subprocess.run(
            ["bash", "-euxc", lines],
            cwd=where,
            env=self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if ended.returncode:
            sys.exit(f"{ended.stdout}\nWhat users are told to run fails, see above")


def main() -> None:
    """Install and train, twice; what cannot be had is said."""
    install, wheel = (block("README.md", "Install", "sh", number) for number in (0, 1))
    torch, package = install.splitlines()
    build, install_wheel = wheel.splitlines()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = unpacked(folder)
        constraints = str(ROOT / "constraints.txt")
        environment = Environment(
            folder / "environment", DDP_COMPRESS_CUDA="0", PIP_CONSTRAINT=constraints
        )
        environment.run(WITHOUT_TORCH.format(package), source)
        environment.run(f"{torch}\n{package}\n{LACKS.format('numpy')}", source)
        environment.run(TRAIN, folder)
        print("make package: two ranks have trained, installed from the source distribution")

        environment.run(f"{build}\npip uninstall --yes ddp_compress", source)
        environment.run(LACKS.format("ddp_compress"), folder)
        environment.run(install_wheel, source)
        environment.run(TRAIN, folder)
        print("make package: two ranks have trained, installed from the wheel")

        environment.run("rm -r build\npip uninstall --yes ddp_compress", source)
        environment.run(WITHOUT_COMPILER, source)
        print("make package: without torch, or without a compiler, users are told")


def unpacked(folder: Path) -> Path:
    """The source distribution, after a look at whether it holds every kernel and page."""
    archive = source_distribution(folder)
    with tarfile.open(archive) as files:
        files.extractall(folder)
    source = folder / archive.name.removesuffix(".tar.gz")
    missing = shipped(ROOT) - shipped(source)
    if missing:
        sys.exit(f"MANIFEST.in leaves out {', '.join(sorted(missing))}")
    return source


def source_distribution(folder: Path) -> Path:
    # Lists of files that earlier builds left here would make up for what MANIFEST.in forgets.
    made = ["egg_info", f"--egg-base={folder}", "sdist", f"--dist-dir={folder}"]
    subprocess.run([sys.executable, "setup.py", "--quiet", *made], cwd=ROOT, check=True)
    (archive,) = folder.glob("*.tar.gz")
    return archive


def shipped(tree: Path) -> set[str]:
    """The files that kernels are built from, and the pages that README leads to."""
    found = [each for folder in ("csrc", "docs") for each in tree.glob(f"{folder}/**/*")]
    found += [
        tree / link for link in re.findall(r"\]\(([\w./]+)", (ROOT / "README.md").read_text())
    ]
    files = (each for each in found if each.is_file() and each.suffix != ".pyc")
    return {each.relative_to(tree).as_posix() for each in files}


if __name__ == "__main__":
    main()
