"""What the project promises about itself: the Cython, the direction of imports, the public names, what is committed and what is shipped."""

import ast
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import venv

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "replay"
CYTHON = sorted([*PACKAGE.glob("*.pyx"), *PACKAGE.glob("*.pxd"), *PACKAGE.glob("fastpath/*.pxi")])
PYTHON = sorted(PACKAGE.rglob("*.py"))
DECLARATION = re.compile(r"^(?P<indent>\s*)cdef\s+(?:inline\s+)?(?P<what>[^(=#:]*?)\b(?P<name>\w+)\s*\((?P<arguments>[^()]*(?:\([^()]*\)[^()]*)*)\)(?P<tail>[^#]*)")


OBJECTS = {"object", "bytes", "bytearray", "str", "dict", "list", "tuple", "set"} | {
    name for path in CYTHON for name in re.findall(r"(?m)^cdef class (\w+)", path.read_text())
}


def relative(path):
    return str(path.relative_to(ROOT))


# ---- Cython ---------------------------------------------------------------------------------------------------------


def cdef_functions(text):
    """(line, tail after the arguments, is external) of each cdef function in a Cython source; arguments may span lines.

    Functions that return an object are left out: NULL says that they raised.
    """
    lines = text.splitlines()
    external = None
    for at, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if external is not None and line.strip() and indent <= external:
            external = None
        if re.match(r"\s*cdef extern\b", line):
            external = indent
            continue
        if not re.match(r"\s*cdef\s", line) or re.match(r"\s*cdef\s+(class|struct|union|enum|packed|extern|object\s+\w+\s*=)", line):
            continue
        joined, more = line.split("#")[0], at
        while joined.count("(") > joined.count(")") and more + 1 < len(lines):
            more += 1
            joined += " " + lines[more].split("#")[0].strip()
        found = DECLARATION.match(joined)
        if found and re.sub(r"\binline\b", "", found["what"]).strip() in OBJECTS:
            continue
        if found and "=" not in joined[: found.start("arguments")] and "(*" not in joined.replace(" ", ""):
            yield at + 1, found["tail"], external is not None


def test_the_reader_of_declarations_sees_what_it_should():
    text = (
        "cdef void bare(int a):\n    pass\ncdef void bare_nogil(int a,\n        int b) nogil:\n    pass\n"
        "cdef int fine(int a) noexcept nogil:\n    pass\ncdef int also(int a) except -1 nogil:\n    pass\ncdef int x = call(3)\n"
        "cdef bytes an_object(int a):\n    return b''\n"
        "cdef extern from *:\n    int external(int)\n"
    )
    assert [(line, bool(re.search("noexcept|except", tail))) for line, tail, _ in cdef_functions(text)] == [(1, False), (3, False), (6, True), (8, True)]


@pytest.mark.parametrize("path", CYTHON, ids=relative)
def test_each_cdef_function_says_what_it_does_with_exceptions(path):
    bare = [line for line, tail, external in cdef_functions(path.read_text()) if not external and not re.search(r"\b(noexcept|except)\b", tail)]
    assert not bare, f"{relative(path)}: cdef functions with neither noexcept nor except at lines {bare}"


@pytest.mark.parametrize("path", CYTHON, ids=relative)
def test_no_deprecated_cython(path):
    assert not re.findall(r"(?m)^\s*(?:DEF|IF|ELIF)\s", path.read_text())


@pytest.fixture(scope="session")
def cythonized(tmp_path_factory):
    """What Cython says about a copy of the sources; the C compiler is left out."""
    folder = tmp_path_factory.mktemp("cython")
    copy_sources(folder)
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext"],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if not k.startswith("REPLAY_")} | {"CC": "true", "LDSHARED": "true"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Cythonizing" in done.stdout + done.stderr
    return done.stdout + done.stderr


def copy_sources(folder):
    for path in [ROOT / name for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")] + [
        p for p in PACKAGE.rglob("*") if p.is_file() and p.suffix not in (".so", ".pyc", ".c")
    ]:
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())


def test_cython_has_nothing_to_say(cythonized):
    said = [line for line in cythonized.splitlines() if re.search(r"(?i)performance hint|warning", line)]
    assert not said, "\n".join(said)


def test_a_bare_function_would_be_seen(tmp_path):
    """The test above can fail: Cython still gives the hint that we look for."""
    (tmp_path / "m.pyx").write_text("cdef void bare() nogil:\n    pass\ndef f():\n    with nogil:\n        bare()\n")
    done = subprocess.run([sys.executable, "-m", "cython", "-3", "m.pyx"], cwd=tmp_path, capture_output=True, text=True)
    assert "performance hint" in done.stdout + done.stderr


# ---- imports ----------------------------------------------------------------------------------------------------------

LAYERS = {  # module of replay (by its first name) -> what it may import of replay
    "errors": set(),
    "extras": set(),
    "units": {"errors"},
    "settings": {"units", "errors"},
    "histogram": set(),
    "capture": {"process", "units", "errors", "_fastpath"},
    "relay": {"settings", "errors"},
    "credentials": {"errors"},
    "batch": {"_fastpath"},
    "results": {"engine", "errors"},
    "outputs": {"capture", "errors"},
    "accesslog": {"engine", "errors", "report"},
    "embedded": {"settings", "units", "_fastpath"},
    "api": {"accesslog", "policy", "credentials", "batch", "capture", "engine", "errors", "histogram", "judge", "outputs", "report", "results", "settings", "units"},
    "doctor": {"extras", "settings", "units", "errors", "_fastpath"},
    "judge": {"histogram", "settings", "units", "errors"},
    "report": {"judge", "settings", "histogram", "units", "errors"},
    "daemon": {"histogram", "units", "errors", "_fastpath"},
    "process": set(),
    "engine": {"process", "relay", "capture", "settings", "histogram", "units", "errors", "_fastpath"},
    "tap": {"process", "relay", "doctor", "engine", "capture", "report", "settings", "histogram", "units", "errors", "_fastpath"},
    "cli": {"accesslog", "outputs", "process", "extras", "tap", "credentials", "results", "doctor", "engine", "judge", "report", "capture", "policy", "daemon", "settings", "units", "errors", "_fastpath", "data"},
    "policy": {"extras", "settings", "units", "errors", "_fastpath"},
    "_reference": {"errors", "units"},
    "data": set(),
    "__main__": {"cli"},
}


def imported_from_replay(path):
    """First names below `replay` that a module imports; its own part left out."""
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("replay."):
                    names.add(alias.name.split(".")[1])
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                base = path.relative_to(ROOT).with_suffix("").parts[: -node.level]
                module = ".".join([*base, *filter(None, module.split("."))])
            if module == "replay":
                names |= {alias.name for alias in node.names if not alias.name.startswith("__")}
            elif module.startswith("replay."):
                names.add(module.split(".")[1])
    return names - {own}


@pytest.mark.parametrize("path", PYTHON, ids=relative)
def test_imports_point_one_way(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    imported = imported_from_replay(path)
    if own == "__init__":
        assert "cli" not in imported
        return
    allowed = LAYERS.get(own)
    assert allowed is not None, f"replay.{own} has no place in LAYERS yet"
    assert imported <= allowed, f"{relative(path)} may not import {sorted(imported - allowed)}"


def test_the_extension_imports_only_errors():
    found = set()
    for path in CYTHON:
        for line in path.read_text().splitlines():
            match = re.match(r"\s*(?:from\s+replay(?:\.(\w+))?\s+(c?import)|(c?import)\s+replay(?:\.(\w+))?)", line)
            if match:
                found.add(match[1] or match[4])
    assert found <= {"errors", "_linux", "_fastpath"}


@pytest.mark.parametrize("path", [p for p in PYTHON if p == PACKAGE / "__init__.py" or not any(part.startswith("_") or part == "cli" for part in p.relative_to(PACKAGE).parts)], ids=relative)
def test_public_modules_have_all(path):
    """`__all__` is there, sorted, and each of its names exists."""
    tree = ast.parse(path.read_text())
    found = [node for node in tree.body if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"]
    assert found, f"{relative(path)} has no __all__"
    names = ast.literal_eval(found[0].value)
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            defined |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
    lazy = any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in tree.body)
    assert list(names) == sorted(names), f"{relative(path)}: __all__ is not sorted"
    assert lazy or set(names) <= defined, f"{relative(path)}: {sorted(set(names) - defined)} do not exist"


def test_version_needs_neither_numpy_nor_yaml_nor_rich():
    code = "import sys, runpy\nsys.argv = ['replay', '--version']\ntry:\n    runpy.run_module('replay', run_name='__main__')\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
    code += "print(sorted({'numpy', 'yaml', 'rich', 'msgspec', 'scapy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    version, loaded = done.stdout.splitlines()
    assert re.search(r"\d+\.\d+", version)
    assert loaded == "[]"


def test_a_plain_run_loads_little():
    """Start-up is a part of what each run costs: what only some runs need is loaded by those."""
    words = ["replay", "run", str(ROOT / "replay" / "data" / "demo.pcap"), "--to", "http://127.0.0.1:9", "--dry-run", "--pace", "max"]
    code = f"import sys, runpy\nsys.argv = {words!r}\ntry:\n    runpy.run_module('replay', run_name='__main__')\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
    unwanted = {"numpy", "yaml", "rich", "json", "http", "pathlib", "hashlib", "ssl", "encodings.idna", "replay.judge.gates", "replay.capture.envoytap", "replay.capture.gor", "replay.capture.record", "replay.relay"}
    code += f"print(sorted({unwanted!r} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


def test_documented_options_exist():
    """Each option in docs/usage.md and docs/troubleshooting.md is in some verb's --help; each verb's options but the common ones are in docs/usage.md."""
    helps = ""
    from replay.cli.group import _VERBS

    for verb in _VERBS:
        done = subprocess.run([sys.executable, "-m", "replay", verb, "--help"], capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"})
        assert done.returncode == 0, done.stderr
        helps += done.stdout
    known = set(re.findall(r"--[a-z][a-z-]+", helps))
    usage = (ROOT / "docs" / "usage.md").read_text()
    documented = set(re.findall(r"--[a-z][a-z-]+", usage + (ROOT / "docs" / "troubleshooting.md").read_text()))
    assert documented <= known, f"in the documents, but not in the program: {sorted(documented - known)}"
    assert known - {"--help"} <= set(re.findall(r"--[a-z][a-z-]+", usage)), f"not in docs/usage.md: {sorted(known - {'--help'} - documented)}"


# ---- what is committed ------------------------------------------------------------------------------------------------


def committed():
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if done.returncode:
        pytest.skip("needs a git checkout")
    return [ROOT / name for name in done.stdout.decode().split("\0") if name]


def test_no_paths_of_a_machine_and_no_registry_hosts():
    """Nobody's home or work folder, no address of a package index: what is committed must work elsewhere."""
    forbidden = re.compile(rb"/wor[k]/|/roo[t]/|/hom[e]/[a-z]|/tmp/ven[v]|pypi[.]org|pythonhoste[d]|index-ur[l]|registry[.]npmjs")
    bad = []
    for path in committed():
        if path.is_file() and ".pcap" not in path.name:
            bad += [f"{relative(path)}: {match[0].decode()}" for match in forbidden.finditer(path.read_bytes())]
    assert not bad


def test_nothing_built_and_nothing_large_is_committed():
    files = [path for path in committed() if path.is_file()]
    assert not [relative(p) for p in files if p.suffix in (".so", ".o", ".pyc", ".c", ".whl") and not (p.suffix == ".c" and ("benchmarks" in p.parts or p.name == "headscan_main.c"))]
    assert not [relative(p) for p in files if p.stat().st_size > 400_000]
    assert sum(p.stat().st_size for p in files if "captures" in p.parts) < 3_000_000
    assert (PACKAGE / "data" / "demo.pcap").stat().st_size < 300_000


def test_licence_is_whole():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text and len(text) > 11_000


def test_changelog_tells_of_this_version():
    version = re.search(r'__version__ = "(.*?)"', (PACKAGE / "__init__.py").read_text())[1]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_where_nothing_may_skip_a_skip_fails(tmp_path):
    """The switch of .ci/run, seen from outside: a skipped test and a skipped module fail, an expected failure and a permitted skip do not."""
    (tmp_path / "conftest.py").write_bytes((ROOT / "tests" / "conftest.py").read_bytes())
    (tmp_path / "test_a.py").write_text(
        "import pytest\ndef test_skips(): pytest.skip('needs something')\n@pytest.mark.skip(reason='by mark')\ndef test_marked(): pass\n"
        "@pytest.mark.xfail\ndef test_expected(): assert 0\ndef test_permitted(): pytest.skip('needs aarch64')\n"
    )
    (tmp_path / "test_b.py").write_text("import pytest\npytest.importorskip('no_such_module')\n")
    for switch, counts in (("0", {"skipped": 4, "xfailed": 1}), ("1", {"failed": 1, "error": 2, "skipped": 1, "xfailed": 1})):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", tmp_path, "--continue-on-collection-errors", tmp_path],
            capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"REPLAY_NO_SKIP": switch},
        )  # fmt: skip
        last = done.stdout.splitlines()[-1]
        found = {word: int(n) for n, word in re.findall(r"(\d+) (failed|skipped|xfailed|error)", last)}
        assert found == counts, done.stdout
        assert done.returncode == (0 if switch == "0" else 1)


# ---- what is shipped --------------------------------------------------------------------------------------------------


def run(*command, **more):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=900, **more)
    assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def make_sdist(folder):
    """An sdist built from the committed files, as a release is."""
    for path in committed():
        if path.is_file():
            target = folder / "source" / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    run(sys.executable, "-c", "from setuptools import build_meta; print(build_meta.build_sdist('dist'))", cwd=folder / "source")
    (archive,) = (folder / "source" / "dist").glob("*.tar.gz")
    return archive


def holds_all_that_a_build_needs(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    wanted = {
        relative(path)
        for path in committed()
        if path.is_file() and not path.name.startswith(".git")
    }
    missing = sorted(wanted - names)
    assert not missing
    assert not [name for name in names - wanted if name.endswith((".so", ".c", ".pyc"))]  # C of ours (benchmarks/peers) may be there


def clean():
    """The environment without what would change a build."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CFLAGS")}


def make_wheel(sdist, folder):
    """(wheel, what pip said), built from the unpacked sdist."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    log = run(sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation", "-w", folder, source, env=clean())
    (found,) = folder.glob("*.whl")
    return found, log


def auditwheel_accepts(wheel, tmp_path):
    """The wheel needs nothing of this machine but libc: auditwheel gives it a manylinux tag."""
    path = {"PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"}
    repaired = subprocess.run([sys.executable, "-m", "auditwheel", "repair", "-w", tmp_path, wheel], capture_output=True, text=True, env=os.environ | path)
    assert repaired.returncode == 0, repaired.stderr
    (found,) = tmp_path.glob("*.whl")
    assert "manylinux" in found.name


def installs_and_runs(wheel, log, tmp_path):
    """Without a word from the compiler, and run far from any checkout."""
    noise = [line for line in log.splitlines() if re.search(r"(?i)\bwarning: |performance hint", line) and "-W" not in line.split("warning:")[0]]
    ours = [line for line in noise if "replay/" in line]
    assert not ours, "\n".join(ours)
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", wheel, env=clean())
    assert re.search(r"\d+\.\d+", run(tmp_path / "venv" / "bin" / "replay", "--version", cwd=tmp_path, env=clean()))
    assert run(tmp_path / "venv" / "bin" / "shadow-replay", "--version", cwd=tmp_path, env=clean())
    installed = pathlib.Path(run(python, "-c", "import replay._fastpath as f; print(f.__file__)", cwd=tmp_path, env=clean()).strip()).parent
    for name in ("py.typed", "_fastpath.pyi", "data/demo.pcap"):
        assert (installed / name).exists(), name
    assert not list(installed.rglob("*.pxi")) and not list(installed.rglob("*.c"))
    run(tmp_path / "venv" / "bin" / "replay", "demo", cwd=tmp_path, env=clean())


@pytest.mark.slow
def test_sdist_and_wheel(tmp_path):
    """One test, so that both are built once, whichever processes share the tests out."""
    for name in ("sdist", "wheel", "repaired", "installed"):
        (tmp_path / name).mkdir()
    sdist = make_sdist(tmp_path / "sdist")
    holds_all_that_a_build_needs(sdist)
    wheel, log = make_wheel(sdist, tmp_path / "wheel")
    auditwheel_accepts(wheel, tmp_path / "repaired")
    installs_and_runs(wheel, log, tmp_path / "installed")
