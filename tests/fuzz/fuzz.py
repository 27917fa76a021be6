"""One target under libFuzzer: python fuzz.py TARGET CORPUS [options of libFuzzer]. Started by run.sh, which builds what it needs."""

import sys

import atheris

if __name__ == "__main__":
    name = sys.argv.pop(1)
    if name == "records":  # its readers are Python; the others' engine counts its edges by itself
        with atheris.instrument_imports(include=["replay.capture"]):
            import replay.capture.records  # noqa: F401
    import targets

    # The first word is what a merge starts again, by way of a shell.
    atheris.Setup([f"{sys.executable} {__file__} {name}", *sys.argv[1:]], lambda data: targets.TARGETS[name](data))
    atheris.Fuzz()
