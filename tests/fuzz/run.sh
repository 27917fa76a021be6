#!/bin/sh
# usage: run.sh TARGET SECONDS. Builds the engine with clang for it, and fuzzes; coverage over time goes to build/fuzz/TARGET.cov.
set -eu
cd "$(dirname "$0")/../.."
target=$1 seconds=$2
python=${PYTHON:-python3}
found=build/fuzz/found/$target
case $target in
reassembly) words=reader ;;
http1 | reply) words=http ;;
*) words=$target ;;
esac
mkdir -p "$found" tests/fuzz/corpus/"$target"
CC=${CC:-clang} LDSHARED="${CC:-clang} -shared" REPLAY_FUZZ=1 "$python" setup.py -q build --build-base build/fuzz --build-lib build/fuzz/lib
runtime=$("$python" -c 'import atheris; print(atheris.path())')/asan_with_fuzzer.so
cp tests/fuzz/corpus/"$target"/* "$found"/ 2>/dev/null || true
# Freed memory is kept back for a shorter while, and not given back to the kernel: half of the time went there.
export PYTHONPATH=build/fuzz/lib:tests/fuzz
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:quarantine_size_mb=16:malloc_context_size=8:allocator_release_to_os_interval_ms=-1
{
    LD_PRELOAD=$runtime "$python" tests/fuzz/fuzz.py "$target" "$found" -max_total_time="$seconds" -max_len=4096 -rss_limit_mb=4096 -timeout=20 \
        -dict=tests/fuzz/"$words".dict -artifact_prefix=build/fuzz/"$target"- -print_final_stats=1 2>&1 || echo "the fuzzer ended with $?"
} | "$python" tests/fuzz/watch.py build/fuzz/"$target".cov
echo "what reached something new is in $found; tests/fuzz/keep.sh $target makes the corpus anew of it"
