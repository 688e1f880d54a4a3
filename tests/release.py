"""Before a release: `make wheel`'s wheel and the source distribution, on every Python and torch.

`make release ARGS="--python python3.10 python3.13 --torch torch==2.10.0 torch"`. For each of them
pip alone installs torch, then one and the other, in an environment of their own, and two ranks
train (see `package.py`). Each torch is downloaded, with all that it needs. The last words are rows
for bench/RESULTS.md.
"""

import argparse
import subprocess
import tempfile
from itertools import product
from pathlib import Path
from shutil import which

from tests.package import ROOT, TRAIN, Environment, source_distribution

PYTHONS = [f"python3.{minor}" for minor in range(10, 14)]
VERSIONS = "import platform, torch; print(platform.python_version(), '|', torch.__version__)"


def main() -> None:
    """Install and train, again and again; a table of what did."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--python", nargs="+", default=list(filter(which, PYTHONS)))
    options.add_argument("--torch", nargs="+", default=["torch"], help="as pip is told")
    arguments = options.parse_args()
    (wheel,) = ROOT.glob("dist/ddp_compress-*-manylinux_*.whl")
    rows = ["| Python | torch | installed from |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as name:
        archive = source_distribution(Path(name))
        for python, torch in product(arguments.python, arguments.torch):
            rows += tried(python, torch, [archive, wheel])
            print(*rows, sep="\n", flush=True)


def tried(python: str, torch: str, packages: list[Path]) -> list[str]:
    """Rows of the table, after two ranks have trained with each package."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = Environment(folder / "environment", python)
        environment.run(f"pip install '{torch}'", folder)
        asked = [str(folder / "environment" / "bin" / "python"), "-W", "ignore", "-c", VERSIONS]
        versions = subprocess.check_output(asked, text=True).strip()
        for package in packages:
            environment.run(f"pip install --no-cache-dir '{package}'\n{TRAIN}", folder)
            environment.run("pip uninstall --yes ddp_compress", folder)
        return [f"| {versions} | {package.name} |" for package in packages]


if __name__ == "__main__":
    main()
