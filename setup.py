"""The one extension. Switches of the environment: REPLAY_DEBUG=1 (bounds checks, asserts, hardly optimised) and REPLAY_TRACE=1 (line coverage of the
Cython); REPLAY_SANITIZE=1 adds ASan and UBSan; REPLAY_FUZZ=1 (with clang) ASan and the counters of a fuzzer. Each flavour has its own folder of
generated C, so that none is mistaken for another; give it its own --build-base and --build-lib too (`make debug`, `make trace`, `make sanitize` do)."""

import os
import pathlib

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("REPLAY_DEBUG") == "1"
TRACE = os.environ.get("REPLAY_TRACE") == "1"
SANITIZE = os.environ.get("REPLAY_SANITIZE") == "1"
FUZZ = os.environ.get("REPLAY_FUZZ") == "1"
FLAVOUR = "".join(name for name, on in (("-debug", DEBUG), ("-trace", TRACE), ("-sanitize", SANITIZE), ("-fuzz", FUZZ)) if on)

compile_args = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wno-unused-function", "-Wno-unused-variable", "-fno-strict-aliasing"]
link_args: list[str] = []
macros: list[tuple[str, str | None]] = []
compile_args += ["-O1", "-g"] if DEBUG else ["-O3", "-g1"]
if DEBUG:
    # Python is built with NDEBUG, which would switch Cython's and our own asserts off.
    compile_args += ["-UNDEBUG"]
if TRACE:
    macros += [("CYTHON_TRACE_NOGIL", "1"), ("CYTHON_USE_SYS_MONITORING", "0")]
if SANITIZE:
    compile_args += ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined"]
    link_args += ["-fsanitize=address,undefined"]

if FUZZ:  # with clang, for tests/fuzz: the runtimes come with the fuzzer
    compile_args += ["-fsanitize=address,fuzzer-no-link", "-fno-omit-frame-pointer"]
    link_args += ["-fsanitize=fuzzer-no-link"]

fastpath = Extension(
    "replay._fastpath",
    ["replay/_fastpath.pyx"],
    include_dirs=["replay"],
    extra_compile_args=compile_args,
    extra_link_args=link_args,
    define_macros=macros,
    depends=[str(p) for d in ("replay/fastpath", "replay") for p in sorted(pathlib.Path(d).glob("*.p[xy][idx]"))]
    + [str(p) for p in sorted(pathlib.Path("replay/fastpath").glob("*.h"))],
)

setup(
    ext_modules=cythonize(
        [fastpath],
        build_dir=f"build/cython{FLAVOUR}",
        force=bool(FLAVOUR),
        compiler_directives={
            "language_level": 3,
            "boundscheck": DEBUG,
            "wraparound": DEBUG,
            "initializedcheck": DEBUG,
            "cdivision": True,
            "embedsignature": True,
            "autotestdict": False,
            "linetrace": TRACE,
            "legacy_implicit_noexcept": False,
        },
    )
)
