"""One target under libFuzzer: python fuzz.py TARGET CORPUS [options of libFuzzer]. Started by run.sh, which builds what it needs."""

import sys

import atheris
import targets

if __name__ == "__main__":
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, lambda data: targets.TARGETS[name](data))
    atheris.Fuzz()
