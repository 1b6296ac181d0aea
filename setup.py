"""Map the checkout's folders to packages inside `heliotrope`.

A wheel must not ship a top-level `distributed`: it would overwrite Dask's package of that name.
Everything else about the project is declared in pyproject.toml.
"""

from setuptools import find_packages, setup

MODES = ("distributed", "federated")

packages = find_packages(include=["heliotrope", "heliotrope.*"])
for mode in MODES:
    packages += [f"heliotrope.{name}" for name in find_packages(include=[mode, f"{mode}.*"])]

setup(
    packages=[*packages, "heliotrope.conf"],
    package_dir={f"heliotrope.{name}": name for name in (*MODES, "conf")},
)
