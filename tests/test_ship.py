"""What is shipped beside the code: pages made from the command line, the man page, completion, the tutorial, wheels for others."""

import os
import pathlib
import re
import runpy
import subprocess
import sys
import tomllib

import endtoend
import pytest

ROOT = endtoend.ROOT


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """An environment in which `replay` is this one."""
    import replay

    folder = tmp_path_factory.mktemp("bin")
    (folder / "replay").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m replay "$@"\n')
    (folder / "replay").chmod(0o755)
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(pathlib.Path(replay.__file__).parents[1])}


# ---- documents -------------------------------------------------------------------------------------------------------------------


def test_pages_made_from_the_command_line_are_fresh():
    made = runpy.run_path(str(ROOT / "docs" / "manual.py"))["pages"]()
    stale = [str(path.relative_to(ROOT)) for path, text in made.items() if not path.exists() or path.read_text() != text]
    assert not stale, f"run python docs/manual.py: {stale}"


def test_the_man_page_has_every_option_of_every_verb():
    from replay.cli.group import _VERBS

    page = (ROOT / "docs" / "man" / "replay.1").read_text().replace("\\-", "-")
    for verb in _VERBS:
        said = subprocess.run([*endtoend.COMMAND, verb, "--help"], capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"}).stdout
        section = page.partition(f".SS replay {verb}")[2].partition(".SS replay")[0]
        assert section, verb
        assert set(re.findall(r"--[a-z][a-z-]+", said)) - {"--help"} <= set(re.findall(r"--[a-z][a-z-]+", section)), verb


def test_the_man_page_is_one():
    done = subprocess.run(["man", "-l", "-Tascii", str(ROOT / "docs" / "man" / "replay.1")], capture_output=True, text=True) if os.path.exists("/usr/bin/man") else None
    if done is not None and done.returncode == 0:
        assert "EXIT STATUS" in re.sub(".\b", "", done.stdout)
    text = (ROOT / "docs" / "man" / "replay.1").read_text()
    assert text.startswith(".TH REPLAY 1") and not re.findall(r"(?m)^\.(?!TH|SH|SS|TP|PP|B|I)", text)


@pytest.mark.parametrize("words, wanted", [("replay ins", {"inspect"}), ("replay run --fail", {"--fail-if"}), ("replay run --credentials d", set()), ("replay completion z", {"zsh"})])
def test_completion(words, wanted, shell):
    done = subprocess.run(
        ["replay"], env=shell | {"_REPLAY_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}, capture_output=True, text=True
    )
    assert wanted <= {line.partition(",")[2] for line in done.stdout.splitlines()}, done.stderr
    for name in ("bash", "zsh", "fish"):
        assert "_REPLAY_COMPLETE" in endtoend.command("completion", name).stdout.decode()


def test_the_tutorial_runs_as_it_stands(tmp_path, shell):
    """Each command, in one shell; what stands below it comes out, in this order."""
    text = (ROOT / "docs" / "tutorial.md").read_text()
    script, wanted = ["set -u"], []
    for at, block in enumerate(re.findall(r"(?ms)^```console\n(.*?)^```", text)):
        lines = block.splitlines()
        script += [f"echo '== {at}'", *(line[2:] for line in lines if line.startswith("$ "))]
        wanted.append([line for line in lines if not line.startswith("$ ")])
    done = subprocess.run(["bash", "-c", "\n".join(script)], cwd=tmp_path, env=shell, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    blocks = re.split(r"(?m)^== \d+\n", done.stdout)[1:]
    assert len(blocks) == len(wanted) > 8
    for block, lines in zip(blocks, wanted, strict=True):
        place = 0
        for line in lines:
            words = line.split()
            found = re.compile(r"\s+".join(map(re.escape, words))).search(block, place)
            assert found, (line, block, done.stderr)
            if words[0] not in ("GET", "POST"):  # equally bad endpoints may change places
                place = found.end()
    assert (tmp_path / "v2.html").stat().st_size > 10_000


def test_links_between_documents_lead_somewhere():
    bad = []
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text()):
            if not link.startswith(("http", "mailto")) and not (path.parent / link).exists():
                bad.append((path.name, link))
    assert not bad


# ---- wheels ----------------------------------------------------------------------------------------------------------------------


def test_wheels_are_configured_for_all_that_is_promised():
    """What the classifiers and the README say is what cibuildwheel builds; each wheel is tested as installed."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheels = settings["tool"]["cibuildwheel"]
    promised = {name.rpartition(" ")[2] for name in settings["project"]["classifiers"] if re.search(r":: 3\.\d+$", name)}
    assert {f"cp{version.replace('.', '')}-*" for version in promised} == set(wheels["build"])
    assert set(wheels["linux"]["archs"]) == {"x86_64", "aarch64"}
    assert not any("musllinux_" in skip and "i686" not in skip for skip in wheels["skip"])
    command = " ".join(wheels["test-command"])
    assert "replay demo" in command
    for word in re.findall(r"tests/\w+\.py", command):
        assert (ROOT / word).exists(), word
