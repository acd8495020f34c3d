"""Build of the native kernels, of libedgeseg and of the data that lives outside the package.

Everything else about the package is in pyproject.toml. The library is plain C behind ctypes, so
it does not depend on the version of Python: the wheel is tagged for the platform only. ``CC`` and
``CFLAGS`` are honoured. Where no compiler works, the package is built without the library and
falls back to numpy.

``calibration_data/*.json``, ``profiles/*.toml`` and ``export/recipes/*.toml`` stand outside the
package, where people look for them; an installed package has them as ``edgeseg/calibration_data``,
``edgeseg/profiles`` and ``edgeseg/recipes``. An editable install reads them where they are.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

NATIVE = Path("edgeseg/scoring/native")
NAME = "edgeseg.scoring.native._edgeseg_kernels"
CLIB = Path("edgeseg/clib")
CLIB_NAME = "edgeseg.lib.libedgeseg"
SONAME = "libedgeseg.so.0"
MAPPED = {"calibration_data": "*.json", "profiles": "*.toml", "export/recipes": "*.toml"}
FLAGS = ["-std=c11", "-O3", "-fPIC", "-fvisibility=hidden", "-shared"]


class BuildKernels(build_ext):
    """One call of the C compiler; the instruction sets are chosen inside the sources."""

    def get_ext_filename(self, fullname: str) -> str:
        """File name without the tag of the Python version."""
        # setuptools asks for the whole name at one time and for its last part at another.
        *folders, name = fullname.split(".")
        return str(Path(*folders, SONAME if name == CLIB_NAME.split(".")[-1] else f"{name}.so"))

    def build_extension(self, ext: Extension) -> None:
        """Compile to a temporary name and move it there, so that a failure leaves no ruin."""
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_suffix(f".{os.getpid()}.tmp")
        compiler = shlex.split(os.environ.get("CC", "cc"))
        flags = [*FLAGS, *(f"-I{folder}" for folder in ext.include_dirs)]
        flags += shlex.split(os.environ.get("CFLAGS", ""))
        linked = [*ext.extra_link_args, "-lpthread", "-lm", "-ldl"]
        command = [*compiler, *flags, "-o", str(temporary), *ext.sources, *linked]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            problem = done.stderr.strip() if done.returncode else ""
        except OSError as error:
            problem = str(error)
        if problem:
            temporary.unlink(missing_ok=True)
            rule = "*" * 78
            print(
                f"{rule}\nWARNING: {target.name} of edgeseg could not be built:\n"
                f"{' '.join(command)}\n{problem}\n"
                "edgeseg will work without the C library, and without the kernels about twenty "
                f"times slower\nafter the network's body. Install a C compiler (or set CC) and "
                f"reinstall.\n{rule}",
                file=sys.stderr,
            )
            return
        temporary.replace(target)

    def get_outputs(self) -> list[str]:
        """Only what has really been built."""
        return [path for path in super().get_outputs() if Path(path).exists()]


class BuildWithData(build_py):
    """Also copies the mapped folders into the package."""

    def run(self) -> None:
        """Copy modules and package data, then the mapped folders."""
        super().run()
        for source, target in self._mapped():
            self.mkpath(str(Path(target).parent))
            self.copy_file(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Everything that was written, the mapped files included."""
        return [*super().get_outputs(include_bytecode), *(target for _, target in self._mapped())]

    def _mapped(self) -> list[tuple[str, str]]:
        """Source and target of every mapped file; none in an editable install."""
        if self.editable_mode:
            return []
        return [
            (str(path), str(Path(self.build_lib, "edgeseg", path.parent.name, path.name)))
            for folder, pattern in MAPPED.items()
            for path in sorted(Path(folder).glob(pattern))
        ]


class PlatformWheel(bdist_wheel):
    """A wheel for the platform and any Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        """``py3-none-<platform>``."""
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            NAME,
            sources=sorted(str(path) for path in NATIVE.glob("*.c")),
            depends=sorted(str(path) for path in NATIVE.glob("*.h")),
            optional=True,
        ),
        Extension(
            CLIB_NAME,
            sources=[
                *sorted(str(path) for path in CLIB.glob("*.c")),
                *sorted(str(p) for p in NATIVE.glob("*.c") if p.name != "histogram.c"),
            ],
            depends=[
                "edgeseg/include/edgeseg.h",
                str(CLIB / "libedgeseg.map"),
                *sorted(str(path) for f in (CLIB, NATIVE) for path in f.glob("*.h")),
            ],
            include_dirs=["edgeseg/include", str(NATIVE)],
            extra_link_args=[
                f"-Wl,-soname,{SONAME}",
                f"-Wl,--version-script={CLIB / 'libedgeseg.map'}",
                "-Wl,-z,defs",
            ],
            optional=True,
        ),
    ],
    cmdclass={
        "build_ext": BuildKernels,
        "build_py": BuildWithData,
        "bdist_wheel": PlatformWheel,
    },
)
