"""Package layout; metadata and dependencies are in pyproject.toml, exact versions in constraints.txt."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["megatv", "megatv.*"]), "megatv_kernels"],
    # `kernels/` is installed under its own name: a top-level package called `kernels` would
    # shadow the PyPI package that transformers looks for.
    package_dir={"megatv_kernels": "kernels"},
    package_data={"megatv": ["py.typed", "assets/*"], "megatv_kernels": ["py.typed"]},
)
