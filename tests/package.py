"""What users get: the documentation's own lines, where torch is all there is.

The lines of README's "Install" put the source distribution into a fresh environment, then the
wheel, and both times two ranks train with lines of README and `docs/` (see `readme.py`). What
`make` has built and installed is out of reach: a package that we forgot to ask for is missing here,
and so is a file that `MANIFEST.in` forgets.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.readme import block

ROOT = Path(__file__).parents[1]
TRAIN = f"torchrun --nproc_per_node=2 '{ROOT}/tests/readme.py'"
LACKS = "python -c \"from importlib.util import find_spec; assert not find_spec('{0}'), '{0}'\""


class Environment:
    """A virtual environment; what runs in it sees no other."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        outer = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
        self.variables = outer | {
            "DDP_COMPRESS_CUDA": "0",
            "OMP_NUM_THREADS": "1",
            "PATH": f"{folder / 'bin'}{os.pathsep}{outer['PATH']}",
            "PIP_CONSTRAINT": str(ROOT / "constraints.txt"),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
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
            sys.exit(f"{ended.stdout}\nmake package: what users are told to run fails, see above")


def main() -> None:
    """Install and train, twice."""
    install, wheel = (block("README.md", "Install", "sh", number) for number in (0, 1))
    build, install_wheel = wheel.splitlines()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = unpacked(folder)
        environment = Environment(folder / "environment")
        environment.run(f"{install}\n{LACKS.format('numpy')}", source)
        environment.run(TRAIN, folder)
        print("make package: two ranks have trained, installed from the source distribution")

        environment.run(f"{build}\npip uninstall --yes ddp_compress ninja", source)
        environment.run(LACKS.format("ddp_compress"), folder)
        environment.run(install_wheel, source)
        environment.run(TRAIN, folder)
        print("make package: two ranks have trained, installed from the wheel")


def unpacked(folder: Path) -> Path:
    """The source distribution, after a look at whether it holds every kernel and page."""
    # Lists of files that earlier builds left here would make up for what MANIFEST.in forgets.
    made = ["egg_info", f"--egg-base={folder}", "sdist", f"--dist-dir={folder}"]
    subprocess.run([sys.executable, "setup.py", "--quiet", *made], cwd=ROOT, check=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        files.extractall(folder)
    source = folder / archive.name.removesuffix(".tar.gz")
    missing = shipped(ROOT) - shipped(source)
    if missing:
        sys.exit(f"make package: MANIFEST.in leaves out {', '.join(sorted(missing))}")
    return source


def shipped(tree: Path) -> set[str]:
    """The files that kernels are built from, and the pages that README leads to."""
    found = (each for folder in ("csrc", "docs") for each in tree.glob(f"{folder}/**/*"))
    return {each.relative_to(tree).as_posix() for each in found if each.is_file()}


if __name__ == "__main__":
    main()
