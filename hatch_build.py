"""The hook of the wheel's build: compile the kernels, so that a user's first call does not have to.

FASTSOFTMAX_BUILD says what for: ``native`` (the default), this machine's processor; ``all``, every level of its
architecture; ``none``, nothing. A wheel with compiled kernels has the tag of this platform. Where they cannot be
compiled, one line says so, and the wheel is a pure one. Then Numba compiles kernels when they are first called.
Editable installs and source distributions hold no compiled kernels.
"""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

CHOICES = ("native", "all", "none")


class CustomBuildHook(BuildHookInterface):
    """Puts libraries of kernels into a wheel."""

    _directory: str | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the kernels before hatchling collects the files."""
        if self.target_name != "wheel" or version == "editable":
            return
        choice = os.environ.get("FASTSOFTMAX_BUILD", "native")
        if choice not in CHOICES:
            raise ValueError(f"FASTSOFTMAX_BUILD={choice}: not one of {', '.join(CHOICES)}")
        if choice == "none":
            self.app.display_info("fastsoftmax: no compiled kernels, as FASTSOFTMAX_BUILD says")
            return
        self._directory = tempfile.mkdtemp(prefix="fastsoftmax-")
        if self._build(choice, self._directory):
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{_platform()}"
            for path in sorted(Path(self._directory).iterdir()):
                build_data["force_include"][str(path)] = f"fastsoftmax/_prebuilt/{path.name}"

    def _build(self, choice: str, directory: str) -> bool:
        """Compile with the package of this checkout, in a process of its own, and show what it prints."""
        path = os.pathsep.join(filter(None, (self.root, os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-m", "fastsoftmax.tools.build", choice, directory]
        last = ""
        with subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                last = line.strip() or last
                self.app.display_info(f"fastsoftmax: {line.rstrip()}")
        if process.returncode and not last.startswith("no compiled kernels"):
            self.app.display_info(f"fastsoftmax: no compiled kernels: {last or f'status {process.returncode}'}")
        return process.returncode == 0

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the libraries once they are in the wheel."""
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)


def _platform() -> str:
    """The tag of this platform. Kernels are for one architecture, also where Python is for two."""
    name = sysconfig.get_platform().replace("universal2", platform.machine())
    return name.replace("-", "_").replace(".", "_")
