"""Package layout; metadata and dependencies are in pyproject.toml, exact versions and hashes in launch/lock/.

MEGATV_BUILD_KERNELS=1 compiles the CUDA kernels now (needs nvcc, no GPU) instead of when they are first used.
"""

import importlib.util
import os
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

KERNELS = Path(__file__).parent / "kernels"


class BuildKernels(build_py):
    """Python files as usual, then the cubins beside the sources that they are made of."""

    def run(self) -> None:
        super().run()
        if os.environ.get("MEGATV_BUILD_KERNELS") != "1":
            return
        spec = importlib.util.spec_from_file_location("cuda_build", KERNELS / "cuda_build.py")
        assert spec is not None and spec.loader is not None
        cuda_build = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(cuda_build)
        folder = KERNELS / "cuda" if self.editable_mode else Path(self.build_lib) / "megatv_kernels" / "cuda"
        for element in cuda_build.ELEMENTS:
            for head_dim in cuda_build.HEAD_DIMS:
                print(f"compiled {cuda_build.build(element, head_dim, folder)}")


setup(
    packages=[*find_packages(include=["megatv", "megatv.*"]), "megatv_kernels"],
    # `kernels/` is installed under its own name: a top-level package called `kernels` would
    # shadow the PyPI package that transformers looks for.
    package_dir={"megatv_kernels": "kernels"},
    package_data={
        "megatv": [
            "py.typed",
            "assets/*",
            "curate/prompts/*.txt",
            "curate/report.css",
            "eval/human/page/*",
            "studio/static/*",
        ],
        "megatv_kernels": ["py.typed", "cuda/*.cu", "cuda/*.cuh", "cuda/*.h"],
    },
    cmdclass={"build_py": BuildKernels},
)
