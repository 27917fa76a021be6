#!/bin/sh
# usage: keep.sh TARGET [BYTES] [FILES]. Makes the corpus anew of what run.sh found and what it was: inputs of at most BYTES, those that reach most first, at
# most FILES. Inputs with a name of their own (regressions) stay.
set -eu
cd "$(dirname "$0")/../.."
target=$1 bytes=${2:-2048} files=${3:-280}
python=${PYTHON:-python3}
corpus=tests/fuzz/corpus/$target
runtime=$("$python" -c 'import atheris; print(atheris.path())')/asan_with_fuzzer.so
rm -rf build/fuzz/merged
mkdir -p build/fuzz/merged
export PYTHONPATH=build/fuzz/lib:tests/fuzz
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:quarantine_size_mb=16:malloc_context_size=0:allocator_release_to_os_interval_ms=-1
LD_PRELOAD=$runtime "$python" tests/fuzz/fuzz.py "$target" -set_cover_merge=1 -max_len="$bytes" build/fuzz/merged build/fuzz/found/"$target" "$corpus"
find "$corpus" -type f -regextype posix-extended -regex '.*/[0-9a-f]{16}' -delete
files=$((files - $(ls "$corpus" | wc -l)))
# The merge writes in the order in which it chose.
ls -tr build/fuzz/merged | head -n "$files" | while read -r name; do
    cp build/fuzz/merged/"$name" "$corpus/$(printf %.16s "$name")"
done
