#!/bin/sh
# usage: keep.sh TARGET [MOST]. Merges what run.sh found into the corpus: the fewest inputs, small ones first, that reach all of it; at most MOST bytes each.
set -eu
cd "$(dirname "$0")/../.."
target=$1 most=${2:-1024}
python=${PYTHON:-python3}
runtime=$("$python" -c 'import atheris; print(atheris.path())')/asan_with_fuzzer.so
rm -rf build/fuzz/merged
mkdir -p build/fuzz/merged
export PYTHONPATH=build/fuzz/lib:tests/fuzz
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:quarantine_size_mb=16:malloc_context_size=0:allocator_release_to_os_interval_ms=-1
LD_PRELOAD=$runtime "$python" tests/fuzz/fuzz.py "$target" -set_cover_merge=1 -max_len="$most" build/fuzz/merged build/fuzz/found/"$target" tests/fuzz/corpus/"$target"
