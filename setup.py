"""Builds the native kernels as one stable-ABI library; everything else is in pyproject.toml."""

from pathlib import Path

from setuptools import Extension, setup
from setuptools.errors import CompileError
from torch.utils.cpp_extension import BuildExtension, CppExtension

STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # runs on every torch >= 2.10


def csrc(pattern: str) -> list[str]:
    return sorted(path.as_posix() for path in Path("csrc").glob(pattern))


def native_kernels() -> Extension:
    """The extension `ddp_compress._C`: schemas in csrc/ops.cpp, kernels in csrc/cpu."""
    return CppExtension(
        "ddp_compress._C",
        sources=[*csrc("*.cpp"), *csrc("cpu/*.cpp")],  # csrc/cuda/*.cu will join them
        depends=csrc("**/*.h"),
        # No fused multiply-add: every machine must round alike, or ranks would drift apart.
        extra_compile_args=["-O3", "-std=c++20", "-ffp-contract=off", "-Wall", STABLE_ABI],
        py_limited_api=True,
        optional=True,  # without a compiler the package still works, through ddp_compress.reference
    )


class BuildKernels(BuildExtension):
    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except RuntimeError as error:  # how torch reports ninja; `optional` knows CompileError only
            raise CompileError(str(error)) from error


setup(
    ext_modules=[native_kernels()],
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
