#!/bin/sh
# Installs dugnad from this folder: `./install.sh --help` says how. Needs nothing but the tools
# of any small Linux (busybox has them all).
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root='' prefix=/usr/local action=install purge='' options=''
arch=$(cat "$here/ARCH" 2>/dev/null || true)

usage() {
    cat <<TEXT
usage: ./install.sh [--prefix DIR] [--root DIR]
       ./install.sh --uninstall [--purge] [--prefix DIR] [--root DIR]

Checks the files of this folder against SHA256SUMS, then installs the program, its
manual page, an example of the owner's file, and what starts it at boot: a unit where
there is systemd, else a script in /etc/init.d.

--prefix DIR  instead of /usr/local
--root DIR    into a system that is mounted there; nothing is started
--uninstall   takes all of that away again, and ends the agent and its services
--purge       ... and deletes /etc/dugnad and /var/lib/dugnad: the identity of this
              node, and what its services have written
TEXT
}

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

# What `uname -m` calls the machines this program runs on.
runs_here() {
    case $arch:$1 in
    x86_64:x86_64 | x86_64:amd64 | aarch64:aarch64 | aarch64:arm64) ;;
    armv7:armv7* | armv7:armv8* | armv7:aarch64) ;;
    armv6:armv6* | armv6:armv7* | armv6:armv8* | armv6:aarch64) ;;
    riscv64:riscv64 | mipsel:mips | mipsel:mipsel) ;;
    *) return 1 ;;
    esac
}

check() {
    [ -n "$arch" ] || fail "run it from the folder of an unpacked tarball"
    command -v sha256sum >/dev/null || fail "needs sha256sum (coreutils or busybox)"
    (cd "$here" && sha256sum -c SHA256SUMS >/dev/null 2>&1) ||
        fail "a file here is not as it was packed (see: cd $here && sha256sum -c SHA256SUMS).
  Unpack the tarball again, or get it again."
    [ -n "$root" ] || runs_here "$(uname -m)" ||
        fail "this is dugnad for $arch, and this machine is $(uname -m): get the other tarball"
}

# What starts programs at boot here.
boots_with() {
    if [ -e "$root/etc/rc.common" ]; then
        echo openwrt
    elif [ -d "$root/run/systemd/system" ] || [ -d "$root/lib/systemd/system" ] ||
        [ -d "$root/usr/lib/systemd/system" ]; then
        echo systemd
    elif [ -d "$root/etc/init.d" ]; then
        echo init
    else
        echo nothing
    fi
}

# Folders made here, the innermost first: --uninstall removes these and no others.
made=''

make() { # FOLDER
    [ ! -d "$root$1" ] || return 0
    make "$(dirname "$1")"
    mkdir "$root$1"
    made="$1
$made"
}

put() { # MODE FILE TO
    make "$(dirname "$3")"
    # Beside it first: a running program cannot be written over.
    cp "$here/$2" "$root$3.new"
    chmod "$1" "$root$3.new"
    mv "$root$3.new" "$root$3"
    echo "$3"
}

files() {
    echo "$prefix/bin/dugnad"
    echo "$prefix/share/man/man1/dugnad.1"
    echo "$prefix/share/doc/dugnad/dugnad.toml"
    echo "$prefix/share/doc/dugnad/LICENSE-MIT"
    echo "$prefix/share/doc/dugnad/LICENSE-APACHE"
    echo "$prefix/share/doc/dugnad/folders"
    echo /etc/systemd/system/dugnad.service
    echo /etc/init.d/dugnad
}

install() {
    check
    [ -w "$root/" ] || fail "needs root: try again with sudo"
    put 755 dugnad "$prefix/bin/dugnad"
    put 644 dugnad.1 "$prefix/share/man/man1/dugnad.1"
    for name in dugnad.toml LICENSE-MIT LICENSE-APACHE; do
        put 644 $name "$prefix/share/doc/dugnad/$name"
    done
    case $(boots_with) in
    systemd)
        put 644 dugnad.service /etc/systemd/system/dugnad.service
        sed -i "s|/usr/local/bin|$prefix/bin|" "$root/etc/systemd/system/dugnad.service"
        start="systemctl enable --now dugnad"
        [ -n "$root" ] || [ ! -d /run/systemd/system ] || systemctl daemon-reload
        ;;
    openwrt)
        put 755 dugnad.openwrt /etc/init.d/dugnad
        sed -i "s|/usr/local/bin|$prefix/bin|" "$root/etc/init.d/dugnad"
        start="/etc/init.d/dugnad enable; /etc/init.d/dugnad start"
        options="--dir /etc/dugnad "
        ;;
    init)
        put 755 dugnad.init /etc/init.d/dugnad
        sed -i "s|/usr/local/bin|$prefix/bin|" "$root/etc/init.d/dugnad"
        start="/etc/init.d/dugnad start"
        if command -v rc-update >/dev/null; then
            start="rc-update add dugnad; $start"
        elif command -v update-rc.d >/dev/null; then
            start="update-rc.d dugnad defaults; $start"
        fi
        ;;
    *) start="dugnad agent" ;;
    esac
    # What an earlier one made is ours, too.
    touch "$root$prefix/share/doc/dugnad/folders"
    printf '%s' "$made" >>"$root$prefix/share/doc/dugnad/folders"
    cat <<TEXT
dugnad is installed. Now, as root:
  dugnad ${options}init --community NAME     (or: dugnad ${options}join TOKEN)
  $start
TEXT
}

# The agent, and services, which outlive it.
end() {
    if command -v systemctl >/dev/null && [ -d /run/systemd/system ]; then
        systemctl disable --now dugnad >/dev/null 2>&1 || true
        systemctl kill --kill-whom=all dugnad >/dev/null 2>&1 || true
    elif [ -x /etc/init.d/dugnad ]; then
        /etc/init.d/dugnad stop >/dev/null 2>&1 || true
        if [ -e /etc/rc.common ]; then
            /etc/init.d/dugnad disable >/dev/null 2>&1 || true
        elif command -v rc-update >/dev/null; then
            rc-update delete dugnad >/dev/null 2>&1 || true
        elif command -v update-rc.d >/dev/null; then
            update-rc.d -f dugnad remove >/dev/null 2>&1 || true
        fi
    fi
}

uninstall() {
    [ -w "$root/" ] || fail "needs root: try again with sudo"
    [ -n "$root" ] || end
    made=$(cat "$root$prefix/share/doc/dugnad/folders" 2>/dev/null || true)
    for file in $(files); do
        [ ! -e "$root$file" ] || { rm -f "$root$file" && echo "removed $file"; }
    done
    for folder in $made; do
        # Another program may use it by now.
        rmdir "$root$folder" 2>/dev/null || true
    done
    [ -n "$root" ] || [ ! -d /run/systemd/system ] || systemctl daemon-reload
    if [ -n "$purge" ]; then
        rm -rf "$root/etc/dugnad" "$root/var/lib/dugnad"
        echo "removed /etc/dugnad and /var/lib/dugnad"
    elif [ -e "$root/var/lib/dugnad" ] || [ -e "$root/etc/dugnad" ]; then
        echo "left: /etc/dugnad and /var/lib/dugnad (--purge deletes them)"
    fi
}

while [ $# -gt 0 ]; do
    case $1 in
    --uninstall) action=uninstall ;;
    --purge) purge=1 ;;
    --prefix | --root)
        [ $# -gt 1 ] || fail "$1 needs a folder"
        case $2 in /*) ;; *) fail "$1 needs a full path, not \"$2\"" ;; esac
        [ "$1" = --root ] && root=${2%/} || prefix=${2%/}
        shift
        ;;
    -h | --help)
        usage
        exit 0
        ;;
    *)
        usage >&2
        exit 2
        ;;
    esac
    shift
done
$action
