"""Build step: leave out of the installed wheels what the engine never loads, then compile the rest.

``slim.py SITE_PACKAGES``. The tests of the image run every part of the engine on what is left, and
prove that no shared library of it misses another. A wheel's RECORD is kept true, so that ``pip
check`` and the bill of materials go on telling what is there.
"""

import compileall
import csv
import pathlib
import py_compile
import sys

UNUSED = (
    "**/*.cpp",
    "**/*.h",
    "**/*.pyi",
    "**/*.pyx",
    "**/*.pxd",
    "**/*.pxi",
    "numpy/**/tests/**/*",
    "numpy/_core/_*_tests.*.so",
    "numpy/_core/_simd.*.so",
    "numpy/_core/include/**/*",
    "numpy/_core/lib/**/*",
    "numpy/distutils/**/*",
    "numpy/f2py/**/*",
    "onnxruntime/backend/**/*",
    "onnxruntime/capi/libonnxruntime.so.*",  # for programs in C; the Python module has its own copy
    "onnxruntime/datasets/**/*",
    "onnxruntime/quantization/**/*",
    "onnxruntime/tools/**/*",
    "onnxruntime/transformers/**/*",
    "pyarrow/include/**/*",
    "pyarrow/includes/**/*",
    "pyarrow/src/**/*",
    "pyarrow/tests/**/*",
    "pyarrow/_s3fs*",
    "pyarrow/_gcsfs*",
    "pyarrow/_azurefs*",
    "pyarrow/libarrow_s3*",
    "pyarrow/libarrow_python*.so",  # the same bytes under two more names
    "pyarrow/libarrow_python*.so.*.*.*",
)


def remove_unused(site_packages: pathlib.Path) -> None:
    """Delete the files that ``UNUSED`` matches, and the folders that this leaves empty."""
    for pattern in UNUSED:
        for path in site_packages.glob(pattern):
            if path.is_file() or path.is_symlink():
                path.unlink()
    for folder in sorted(site_packages.rglob("*"), reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def rewrite_records(site_packages: pathlib.Path) -> None:
    """Drop from each RECORD the files that are no longer there."""
    for record in site_packages.glob("*.dist-info/RECORD"):
        with record.open(newline="") as lines:
            rows = [row for row in csv.reader(lines) if (site_packages / row[0]).exists()]
        with record.open("w", newline="") as lines:
            csv.writer(lines, lineterminator="\n").writerows(rows)


def main() -> int:
    """Slim and compile the folder named on the command line; non-zero when a file is broken."""
    site_packages = pathlib.Path(sys.argv[1])
    remove_unused(site_packages)
    rewrite_records(site_packages)
    # Unchecked: the sources of an image never change, so no import has to look at them.
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compiled = compileall.compile_dir(site_packages, quiet=1, workers=0, invalidation_mode=mode)
    return 0 if compiled else 1


if __name__ == "__main__":
    sys.exit(main())
