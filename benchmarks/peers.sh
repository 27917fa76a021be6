#!/bin/sh
# What `replay` is measured against, from Debian. As root it installs what is missing; otherwise it says so, and the benchmarks go on without it.
# dpkt and httptools come from the project's extra "test".
set -u
PATH=$PATH:/usr/sbin:/sbin
programs="wrk ab h2load tcpreplay tshark tcpdump nginx ip cc"
packages="wrk apache2-utils nghttp2-client tcpreplay tshark tcpdump iproute2 gcc libc6-dev"

missing=""
for program in $programs; do
    command -v "$program" >/dev/null || missing="$missing $program"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "not installed:$missing; as root on Debian or Ubuntu this script installs them: $packages nginx-light" >&2
    exit 0
fi
echo "installing for:$missing"
# An nginx of another flavour is left alone.
command -v nginx >/dev/null || packages="$packages nginx-light"
export DEBIAN_FRONTEND=noninteractive
# Services of what is installed are not started.
if [ ! -e /usr/sbin/policy-rc.d ]; then
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
fi
command -v debconf-set-selections >/dev/null && echo 'wireshark-common wireshark-common/install-setuid boolean false' | debconf-set-selections
# shellcheck disable=SC2086
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends $packages >/dev/null; }; then
    echo "some of them could not be installed; the benchmarks go on without" >&2
fi
exit 0
