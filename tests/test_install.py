"""What an installation lacks is said: when it is built, when it is imported, at the first model.

Whole installations are tried by `package.py` and `release.py`.
"""

import runpy
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from setuptools import Distribution, Extension
from torch.torch_version import TorchVersion

from ddp_compress import ops
from ddp_compress.step.guards import refuse_unsupported_parameters
from tests.pretend_cuda import CUDA, pretend

ROOT = Path(__file__).parents[1]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A folder that `ops` takes for that of the package."""
    monkeypatch.setattr(ops, "__file__", str(tmp_path / "ops" / "__init__.py"))
    return tmp_path


def test_a_library_that_is_not_there_was_not_built(package):
    assert ops._why_not("_C") == "they were not built"


def test_a_library_that_does_not_load_says_why(package):
    (package / "_C.abi3.so").write_text("no library")
    assert "_C.abi3.so" in ops._why_not("_C")
    assert ops._why_not("_C_cuda") == "they were not built"


def test_native_kernels_are_those_that_were_built():
    assert ops._why_not("_C") == ops.NATIVE_LACKS == ""


def test_plain_pytorch_is_warned_of(monkeypatch):
    monkeypatch.setattr(ops, "NATIVE", False)
    monkeypatch.setattr(ops, "NATIVE_LACKS", "they were not built")
    with pytest.warns(UserWarning, match=r"native kernels \(they were not built\).* pip install "):
        ops._say_what_lacks()


@pytest.mark.parametrize(
    ("version", "cards", "built", "warned"),
    [
        ("13.0", 1, False, True),
        ("13.0", 1, True, False),
        ("13.0", 0, False, False),  # PyPI's torch, on a machine without a GPU
        (None, 0, False, False),
    ],
)
def test_a_gpu_without_kernels_is_warned_of(version, cards, built, warned, recwarn, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(ops, "CUDA", built)
    monkeypatch.setattr(ops, "CUDA_LACKS", "libcudart.so.12 is missing")
    ops._say_what_lacks()
    assert [str(each.message) for each in recwarn.list if "nvcc" in str(each.message)] == [
        "ddp_compress runs without its CUDA kernels (libcudart.so.12 is missing): models on a GPU "
        f"are refused. Install a wheel that has them, or where nvcc is: {ops.INSTALL}"
    ] * warned


def test_a_model_on_a_gpu_is_refused_without_kernels(monkeypatch):
    with pretend():
        weight = torch.zeros(2).to(CUDA)
        model = Mock(**{"named_parameters.return_value": [("weight", weight)]})
        model.named_modules.return_value = []
        refuse_unsupported_parameters(model)
        monkeypatch.setattr(ops, "CUDA", False)
        monkeypatch.setattr(ops, "CUDA_LACKS", "they were not built")
        with pytest.raises(ValueError, match=r"^weight is on cuda:0, .* \(they were not built\): "):
            refuse_unsupported_parameters(model)


def setup_py(monkeypatch):
    """Run it, up to its last call, whose arguments it returns."""
    asked = Mock()
    monkeypatch.setattr("setuptools.setup", asked)
    monkeypatch.setattr(sys, "path", [*sys.path])
    runpy.run_path(str(ROOT / "setup.py"))
    return asked.call_args.kwargs


def test_old_setuptools_are_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "setuptools.command.bdist_wheel", None)
    with pytest.raises(SystemExit, match="pip install 'setuptools>=77' ninja"):
        setup_py(monkeypatch)


@pytest.mark.parametrize(
    ("name", "lack", "told"),
    [
        ("importlib.util.find_spec", lambda name: None, " has none"),
        ("torch.__version__", TorchVersion("2.9.1"), " has 2.9.1"),
    ],
)
def test_a_build_without_a_right_torch_says_what_to_do(name, lack, told, monkeypatch):
    monkeypatch.setattr(name, lack)
    command = setup_py(monkeypatch)["cmdclass"]["build_ext"](Distribution())
    with pytest.raises(SystemExit, match=rf"{told}\.\n\n    pip install torch .*\n.*\n\n.*\n"):
        command.run()


@pytest.fixture
def build_ext(monkeypatch):
    """What builds `_C` and `_C_cuda`; where a library would lie there is nothing."""
    command = setup_py(monkeypatch)["cmdclass"]["build_ext"](Distribution())
    command.left_out = []
    command.extensions = [Extension(f"ddp_compress.{name}", []) for name in ("_C", "_C_cuda")]
    command.get_ext_fullpath = lambda name: str(ROOT / "absent" / name)
    monkeypatch.delenv("DDP_COMPRESS_CUDA", raising=False)
    return command


def failing(monkeypatch, method, *what):
    monkeypatch.setattr(
        f"torch.utils.cpp_extension.BuildExtension.{method}", Mock(side_effect=what)
    )


def test_kernels_that_cannot_be_built_are_left_out(build_ext, monkeypatch, capsys):
    failing(monkeypatch, "build_extension", None, RuntimeError("nvcc fatal"))
    for extension in build_ext.extensions:
        build_ext.build_extension(extension)
    assert [each.name for each in build_ext.left_out] == ["ddp_compress._C_cuda"]
    said = capsys.readouterr().out
    assert "WARNING: ddp_compress is built without CUDA kernels, a model on a GPU will be" in said
    assert "nvcc fatal" in said


def test_an_nvcc_of_another_version_leaves_the_others(build_ext, monkeypatch, capsys):
    failing(monkeypatch, "build_extensions", RuntimeError("CUDA 12.4, but torch 13.0"), None)
    build_ext.build_extensions()
    assert [each.name for each in build_ext.extensions] == ["ddp_compress._C"]
    assert build_ext.distribution.ext_modules == build_ext.extensions
    assert "CUDA 12.4, but torch 13.0" in capsys.readouterr().out


def test_who_insists_on_cuda_gets_an_error(build_ext, monkeypatch):
    failing(monkeypatch, "build_extension", RuntimeError("nvcc fatal"))
    monkeypatch.setenv("DDP_COMPRESS_CUDA", "1")
    with pytest.raises(SystemExit, match=r"^DDP_COMPRESS_CUDA=1, but .*: nvcc fatal"):
        build_ext.build_extension(build_ext.extensions[1])
