#!/bin/sh
# usage: run.sh TARGET SECONDS. Builds the engine with clang for it, and fuzzes.
set -eu
cd "$(dirname "$0")/../.."
target=$1 seconds=$2
python=${PYTHON:-python3}
mkdir -p build/fuzz/found/"$target" tests/fuzz/corpus/"$target"
CC=${CC:-clang} LDSHARED="${CC:-clang} -shared" REPLAY_FUZZ=1 "$python" setup.py -q build --build-base build/fuzz --build-lib build/fuzz/lib
runtime=$("$python" -c 'import atheris; print(atheris.path())')/asan_with_fuzzer.so
cp tests/fuzz/corpus/"$target"/* build/fuzz/found/"$target"/ 2>/dev/null || true
export PYTHONPATH=build/fuzz/lib:tests/fuzz ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1
LD_PRELOAD=$runtime "$python" tests/fuzz/fuzz.py "$target" build/fuzz/found/"$target" -max_total_time="$seconds" -max_len=4096 -rss_limit_mb=4096 -timeout=20 -artifact_prefix=build/fuzz/"$target"- -print_final_stats=1
echo "what reached something new is in build/fuzz/found/$target; keep the small ones in tests/fuzz/corpus/$target"
