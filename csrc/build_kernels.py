"""The native kernels as stable-ABI libraries, for setup.py.

Two of them: `_C`, and `_C_cuda`, which adds the CUDA kernels and which a torch with CUDA alone can
load. What cannot be built is said and left out: the package works without.

DDP_COMPRESS_CUDA=1 builds the CUDA kernels, 0 leaves them out; unset, they are built where torch
has CUDA and nvcc is found. TORCH_CUDA_ARCH_LIST names the architectures; no GPU need be there.
"""

import os
import sys
from pathlib import Path
from textwrap import shorten

import torch
from setuptools import Extension
from setuptools.errors import CompileError, LinkError
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # runs on every torch >= 2.10
ARCHITECTURES = "8.0;9.0+PTX"  # unless TORCH_CUDA_ARCH_LIST says otherwise, or a GPU is there

# No fused multiply-add: every machine must round alike, or ranks would drift apart. Python's own
# flags ask for debugging symbols, nine tenths of the library.
CXX = ["-O3", "-g0", "-std=c++20", "-ffp-contract=off", "-Wall", STABLE_ABI]
NVCC = ["-O3", "-std=c++20", "-fmad=false", STABLE_ABI]

SLOW = "it runs on plain PyTorch: right, but many times slower"
REFUSED = "a model on a GPU will be refused"


def csrc(pattern: str) -> list[str]:
    return sorted(path.as_posix() for path in Path("csrc").glob(pattern))


def say(line: str) -> None:
    print(f"\nWARNING: ddp_compress is built without {line}\n", flush=True)


def wants_cuda() -> bool:
    choice = os.environ.get("DDP_COMPRESS_CUDA", "")
    if choice not in ("", "0", "1"):
        raise ValueError(f"DDP_COMPRESS_CUDA must be 0, 1 or unset, got {choice!r}")
    possible = torch.version.cuda is not None and CUDA_HOME is not None
    if choice == "1" and not possible:
        sys.exit(
            f"DDP_COMPRESS_CUDA=1 needs a torch with CUDA (this is {torch.__version__}) and nvcc "
            f"(CUDA_HOME is {CUDA_HOME})"
        )
    return possible and choice != "0"


def cuda_runtime() -> list[str]:
    """CUDA's runtime as torch's own packages have it: not every nvcc comes with one."""
    found = (Path(each).glob("nvidia/*/lib/libcudart.so.*") for each in sys.path)
    return [str(file) for files in found for file in files][:1]


class BuildKernels(BuildExtension):
    def run(self) -> None:
        self.left_out: list[Extension] = []
        super().run()
        if torch.version.cuda is not None and CUDA_HOME is None:
            say(f"CUDA kernels, {REFUSED}: nvcc is not found, CUDA_HOME says where it is")

    def build_extensions(self) -> None:
        try:
            super().build_extensions()
        except RuntimeError as error:  # nvcc's version is not that of torch's CUDA
            *self.extensions, cuda = self.extensions
            self.leave_out(cuda, error)
            super().build_extensions()
        built = [each for each in self.extensions if each not in self.left_out]
        self.extensions = self.distribution.ext_modules = built

    def build_extension(self, extension: Extension) -> None:
        try:
            super().build_extension(extension)
        except (RuntimeError, CompileError, LinkError) as error:
            self.leave_out(extension, error)

    def leave_out(self, extension: Extension, error: Exception) -> None:
        cuda = extension.name.endswith("cuda")
        if cuda and os.environ.get("DDP_COMPRESS_CUDA") == "1":
            sys.exit(f"DDP_COMPRESS_CUDA=1, but the CUDA kernels cannot be built: {error}")
        what = f"CUDA kernels, {REFUSED}" if cuda else f"native kernels, {SLOW}"
        say(f"{what}. They cannot be built, see above: {shorten(str(error), 200)}")
        Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)  # of an earlier build
        self.left_out.append(extension)


shared = {"depends": csrc("**/*.h") + csrc("**/*.cuh"), "py_limited_api": True}
extensions = [
    # Schemas and checks are in csrc, kernels in csrc/cpu and csrc/cuda.
    CppExtension(
        "ddp_compress._C",
        [*csrc("cpu/*.cpp"), "csrc/ops.cpp"],
        extra_compile_args={"cxx": CXX},
        **shared,
    )
]
if wants_cuda():
    if not torch.cuda.is_available():
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)
    cuda = CUDAExtension(
        "ddp_compress._C_cuda",
        [*csrc("cuda/*.cu"), "csrc/ops_cuda.cpp"],
        extra_compile_args={"cxx": CXX, "nvcc": NVCC},
        extra_objects=cuda_runtime(),
        **shared,
    )
    if cuda.extra_objects:
        cuda.libraries.remove("cudart")
    extensions.append(cuda)
