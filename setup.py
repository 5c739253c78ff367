"""What pyproject.toml cannot express: which packages there are, and files from the root inside the wheel's package."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

NOT_INSTALLED = ("paper", "launch")  # they start the programs of the repository, so they stay there


def packages(src: Path) -> list[str]:
    """The library: `fda_bnn` for src, and a package in it for each folder of src with an `__init__.py`.

    The list is not written down because src/binary/native may be missing.
    """
    folders = [path.parent.relative_to(src).parts for path in sorted(src.rglob("__init__.py"))]
    return [".".join(("fda_bnn", *parts)) for parts in folders if not parts or parts[0] not in NOT_INSTALLED]


class BuildWithConfig(build_py):
    """Put default_config.yaml and pretrained/ next to the modules; an editable install reads them where they are."""

    def run(self):
        super().run()
        if not self.editable_mode:
            package = Path(self.build_lib, "fda_bnn")
            self.copy_file("default_config.yaml", str(package / "default_config.yaml"))
            self.copy_tree("pretrained", str(package / "pretrained"))


if __name__ == "__main__":
    setup(packages=packages(Path("src")), cmdclass={"build_py": BuildWithConfig})
