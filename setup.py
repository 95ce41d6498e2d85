"""Build of finepref: the package, its patch cards, and the start-up file that attaches it to the hosts.

`finepref.pth` goes to the root of site-packages, where Python reads it at start. setuptools puts it there in wheels
and sdists through package data, but its editable wheel leaves it out, so `editable_wheel` is extended below.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

STARTUP_FILES = ("finepref.pth", "finepref.start")
HERE = Path(__file__).parent


class BuildWithStartup(build_py):
    """Copy the start-up files to the root of the build, beside the package."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for name in STARTUP_FILES:
                self.copy_file(str(HERE / "plugins" / name), str(Path(self.build_lib) / name))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return super().get_outputs(include_bytecode) + [str(Path(self.build_lib) / name) for name in STARTUP_FILES]


class EditableWithStartup(editable_wheel):
    """Add the start-up files, with their RECORD lines, to the finished editable wheel."""

    def run(self) -> None:
        super().run()
        (wheel,) = Path(self.dist_dir).glob("finepref-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            entries = {info.filename: archive.read(info) for info in archive.infolist()}
        record = next(name for name in entries if name.endswith(".dist-info/RECORD"))
        for name in STARTUP_FILES:
            content = (HERE / "plugins" / name).read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            entries[record] += f"{name},sha256={digest},{len(content)}\n".encode()
            entries[name] = content
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in entries.items():
                archive.writestr(name, content)


setup(cmdclass={"build_py": BuildWithStartup, "editable_wheel": EditableWithStartup})
