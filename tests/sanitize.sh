#!/bin/sh
# The tests under AddressSanitizer and UndefinedBehaviorSanitizer: builds into build/sanitize and runs there everything that feeds bytes to the extension.
# Processes that the tests start (`python -m replay …`) are sanitized too. PYTHON names the interpreter that has the test dependencies.
#
# Leaks: the interpreter itself does not free everything, so leak detection is off for the tests; tests/isolated/leaks.py runs alone with it on, and a leak counts
# when a frame of our extension is in its stack.
set -eu
PYTHON=${PYTHON:-python3}
CC=${CC:-cc}
cd "$(dirname "$0")/.."
case $PYTHON in */*) PYTHON=$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON") ;; esac
out=build/sanitize
mkdir -p "$out"

probe=$out/probe
printf 'int main(void) { return 0; }\n' >"$probe.c"
if ! "$CC" -fsanitize=address,undefined "$probe.c" -o "$probe" 2>/dev/null || ! "$probe"; then
    echo "sanitize: this compiler ($CC) has no ASan and UBSan; left out" >&2
    [ "${REPLAY_NO_SKIP:-}" != 1 ] || exit 1
    exit 0
fi

REPLAY_SANITIZE=1 "$PYTHON" setup.py -q build --build-base "$out/base" --build-lib "$out/lib" >"$out/build.log" 2>&1 || { tail -n 40 "$out/build.log"; exit 1; }

case $("$CC" --version) in
*clang*) runtime=$("$CC" -print-file-name="libclang_rt.asan-$(uname -m).so") ;;
*) runtime="$("$CC" -print-file-name=libasan.so) $("$CC" -print-file-name=libubsan.so)" ;;
esac
# Safe path: the checkout, where an ordinary build may stand, is not looked into.
export PYTHONPATH="$PWD/$out/lib" PYTHONSAFEPATH=1 PYTHONMALLOC=malloc
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1

sanitized() {
    LD_PRELOAD="$runtime" "$PYTHON" "$@"
}

where=$(ASAN_OPTIONS=detect_leaks=0 sanitized -c 'import replay._fastpath as f; print(f.__file__)')
case $where in "$PWD/$out"/*) ;; *) echo "sanitize: the wrong extension is imported: $where" >&2; exit 1 ;; esac

echo "sanitize: leaks" >&2
if ! ASAN_OPTIONS=detect_leaks=1:exitcode=0 sanitized tests/isolated/leaks.py >"$out/leaks.log" 2>&1; then
    tail -n 40 "$out/leaks.log"
    exit 1
fi
grep -q '^leaks: done' "$out/leaks.log"
if awk -v RS= '/(Direct|Indirect) leak/ && /_fastpath/' "$out/leaks.log" | grep . ; then
    echo "sanitize: leaks of the extension, above" >&2
    exit 1
fi

# Not here: the house rules, the benchmarks and what looks at other things than bytes, and the tests of whole processes (the command line, replays into
# real servers, the daemon), whose bytes the others have read already and which take minutes under a sanitizer; and what counts shares of thousands of requests. `demo`-sized whole runs are in test_sink and test_captures.
left_out="house_rules benchmarks instructions ship deploy daemon doctor doctor_tap metrics policy policy_bad story example_customer
    access_log policy_documents cli guards replay_rivals replay_nginx replay_sink replay_faults policy_run envoy_parity relay shards shares tap tap_bounds tap_daemon tap_kernel tap_load tap_mends tap_netns tap_notes tap_refuses tap_soak head_variants"
# In parts, two at a time: each takes the next one when it is done. They wait for one core each, and next to nothing in them for time.
parts="0 1 2 3 4 5 6 7"
part() { # of the files every eighth
    number=0
    for path in tests/test_*.py; do
        name=${path#tests/test_}
        case " $(echo $left_out) " in *" ${name%.py} "*) continue ;; esac
        [ $((number % 8)) -ne "$1" ] || echo "$path"
        number=$((number + 1))
    done
}
tested() {
    # shellcheck disable=SC2046,SC2086
    ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:allocator_may_return_null=1 sanitized -m pytest -q -m "not slow" -p no:cacheprovider $(part "$1") ${SANITIZE_ARGS:-} ||
        [ "$?.${SANITIZE_ARGS:+some}" = 5.some ] # none of this part was asked for
}
rm -rf "$out/parts"
mkdir "$out/parts"
worker() {
    for n in $parts; do
        mkdir "$out/parts/$n" 2>/dev/null || continue
        if tested "$n" >"$out/parts/$n/log" 2>&1; then
            echo "sanitize: $(tail -n 1 "$out/parts/$n/log")" >&2
        else
            touch "$out/parts/failed"
            grep -v '^\.*  *\[ *[0-9]*%\]$' "$out/parts/$n/log" || true
        fi
    done
}
worker &
other=$!
trap 'kill "$other" 2>/dev/null || true' EXIT
worker
wait "$other"
trap - EXIT
[ ! -e "$out/parts/failed" ]
