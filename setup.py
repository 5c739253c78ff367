"""Put default_config.yaml and pretrained/ inside the package of the wheel, which pyproject.toml cannot express."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfig(build_py):
    """Copy them from the repository's root next to the modules; an editable install reads them where they are."""

    def run(self):
        super().run()
        if not self.editable_mode:
            package = Path(self.build_lib, "fda_bnn")
            self.copy_file("default_config.yaml", str(package / "default_config.yaml"))
            self.copy_tree("pretrained", str(package / "pretrained"))


setup(cmdclass={"build_py": BuildWithConfig})
