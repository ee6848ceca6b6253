#!/bin/sh
# Makes sure that the servers the whole-system tests run are installed: rabbitmq-server, redis-server, openssl;
# and chromium, which looks at the status page.
#
# Does nothing, not even a look at the network, when all are there. Otherwise installs the missing ones from Debian's
# packages, as root or through sudo. The packages' own services are kept from starting: the tests start
# servers of their own, on free ports, and a broker in the background would only be in the way.
set -eu

missing() {
    # Debian keeps the scripts that do not change the user here, off the PATH.
    [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || command -v rabbitmq-server >/dev/null || echo rabbitmq-server
    command -v redis-server >/dev/null && command -v redis-cli >/dev/null || echo redis-server
    command -v openssl >/dev/null || echo openssl
    command -v chromium >/dev/null || echo chromium
}

packages=$(missing | tr '\n' ' ')
[ -n "$packages" ] || exit 0

fail() {
    echo "install-servers: $1" >&2
    echo "install-servers: the tests need, on the PATH: ${packages}(RabbitMQ 3.10 or later, Redis 7.0 or later)" >&2
    exit 1
}

command -v apt-get >/dev/null || fail "this is not a Debian or Ubuntu system; install the servers by its own means."
as_root=
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || fail "neither root nor sudo; ask root for: apt-get install $packages"
    as_root=sudo
fi

# invoke-rc.d asks this program before it starts a service; 101 forbids it. One that is there already stays.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap '$as_root rm -f "$policy"' EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
elif [ -x "$policy" ] && "$policy" rabbitmq-server start >/dev/null 2>&1; then
    echo "install-servers: $policy lets services start; stop rabbitmq-server and redis-server if they disturb" >&2
fi

echo "install-servers: installing $packages" >&2
$as_root apt-get update -qq
# shellcheck disable=SC2086 # package names are words
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null

packages=$(missing | tr '\n' ' ')
[ -z "$packages" ] || fail "apt-get is done, and still something is missing."
