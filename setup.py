"""Builds the native kernels as one stable-ABI library; everything else is in pyproject.toml.

DDP_COMPRESS_CUDA=1 builds the CUDA kernels, 0 leaves them out; unset, they are built where torch
has CUDA and nvcc is found. TORCH_CUDA_ARCH_LIST names the architectures; no GPU need be there.
"""

import os
import sys
from pathlib import Path

import torch
from setuptools import Extension, setup
from setuptools.errors import CompileError, LinkError
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # runs on every torch >= 2.10
ARCHITECTURES = "8.0;9.0+PTX"  # unless TORCH_CUDA_ARCH_LIST says otherwise, or a GPU is there


def csrc(pattern: str) -> list[str]:
    return sorted(path.as_posix() for path in Path("csrc").glob(pattern))


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


def native_kernels(cuda: bool) -> Extension:
    """The extension `ddp_compress._C`: schemas and checks in csrc, kernels in csrc/cpu and cuda."""
    # No fused multiply-add: every machine must round alike, or ranks would drift apart.
    flags = {"cxx": ["-O3", "-std=c++20", "-ffp-contract=off", "-Wall", STABLE_ABI]}
    sources = [*csrc("cpu/*.cpp"), "csrc/ops.cpp"]
    if cuda:
        sources += [*csrc("cuda/*.cu"), "csrc/ops_cuda.cpp"]
        flags["nvcc"] = ["-O3", "-std=c++20", "-fmad=false", STABLE_ABI]
    return (CUDAExtension if cuda else CppExtension)(
        "ddp_compress._C",
        sources=sources,
        depends=csrc("**/*.h") + csrc("**/*.cuh"),
        extra_compile_args=flags,
        py_limited_api=True,
        optional=True,  # without a compiler the package still works, on ops.reference
    )


class BuildKernels(BuildExtension):
    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except (RuntimeError, CompileError, LinkError) as error:
            if not any(source.endswith(".cu") for source in ext.sources):
                raise CompileError(str(error)) from error  # the error that `optional` knows
            if os.environ.get("DDP_COMPRESS_CUDA") == "1":
                sys.exit(f"DDP_COMPRESS_CUDA=1, but the CUDA kernels cannot be built: {error}")
            print(f"ddp_compress: without CUDA kernels, they cannot be built: {error}")
            vars(ext).update(vars(native_kernels(cuda=False)))
            self.build_extension(ext)


cuda = wants_cuda()
if cuda and not torch.cuda.is_available():
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)
setup(
    ext_modules=[native_kernels(cuda)],
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
