"""Put default_config.yaml inside the package of the wheel, which pyproject.toml cannot express."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfig(build_py):
    """Copy the file from the repository's root next to the modules; an editable install reads it where it is."""

    def run(self):
        super().run()
        if not self.editable_mode:
            self.copy_file("default_config.yaml", str(Path(self.build_lib, "fda_bnn", "default_config.yaml")))


setup(cmdclass={"build_py": BuildWithConfig})
