"""Builds against the torch of whoever installs; everything else is in pyproject.toml.

What is built, and what is left out, stands in csrc/build_kernels.py.
"""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:
    sys.exit("ddp_compress is built by newer tools: pip install 'setuptools>=77' ninja")

NEEDS_TORCH = """
ddp_compress builds its kernels against your torch, 2.10 or newer, and {}.

    pip install torch                     # first
    pip install .                         # then; pip may isolate the build

Other tools build in an environment of their own, which has no torch: tell them not to.

    pip install 'setuptools>=77' ninja
    uv pip install --no-build-isolation . # or python -m build --no-isolation

Wheels need neither a compiler nor this: see docs/install.md.
"""


def lacks_torch() -> str:
    """Find torch, and say what is wrong with it, if anything.

    In isolation pip hides the packages beside which it installs, but runs their interpreter.
    """
    if find_spec("torch") is None:
        outside = [sys.executable, "-E", "-c", "import sys; print(*sys.path[1:], sep='\\n')"]
        sys.path += subprocess.check_output(outside, text=True).splitlines()
    if find_spec("torch") is None:
        return f"{sys.executable} has none"
    import torch

    return "" if torch.__version__ >= "2.10" else f"{sys.executable} has {torch.__version__}"


class Wheel(bdist_wheel):
    """The name tells what is in it: py3-none-any without kernels, a build tag with CUDA's."""

    def run(self) -> None:
        self.run_command("build")
        self.skip_build = True
        kernels = [each.name for each in self.distribution.ext_modules]
        self.root_is_pure = not kernels
        if "ddp_compress._C_cuda" in kernels:
            from torch.version import cuda

            self.build_number = f"1cu{cuda.replace('.', '')}"
        super().run()


class Refused(build_ext):
    """In the place of a build: source distributions and metadata need no torch, kernels do."""

    def run(self) -> None:
        sys.exit(NEEDS_TORCH.format(lacks))


lacks = lacks_torch()
if lacks:
    BuildKernels, extensions = Refused, [Extension("ddp_compress._C", [])]
else:
    sys.path.append(str(Path(__file__).parent / "csrc"))
    from build_kernels import BuildKernels, extensions
setup(
    ext_modules=extensions,
    cmdclass={"bdist_wheel": Wheel, "build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
