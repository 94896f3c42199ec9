# Shared by tests/run and the scripts here: finding tools, and getting those that are missing
# without changing the machine. Sourced by bash in the root of the repository.
#
# A function that cannot do what it is for returns a failure and leaves the reason, with what to
# do about it, in $missing.

MSRV=1.85
# 0.17 puts a malloc of its own in place of musl's, and idle memory goes from 2 MB to 28.
ZIG_VERSION=0.13.0.post1
missing=
# The folder for all that is made.
target=${CARGO_TARGET_DIR:-$PWD/target}
case $target in /*) ;; *) target=$PWD/$target ;; esac

fail() {
    echo "$0: $*" >&2
    exit 1
}

# The prefix to call apt with, or failure if it may not be called.
apt_rights() {
    [ "${RUN_INSTALL:-1}" = 1 ] && command -v apt-get >/dev/null || return 1
    if [ "$(id -u)" = 0 ]; then
        echo env
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        echo "sudo -n env"
    else
        return 1
    fi
}

# apt_install PACKAGE...: quietly; failure if it may not or cannot.
apt_install() {
    local as
    as=$(apt_rights) || return 1
    local get="$as DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120"
    echo "installing: $*" >&2
    # shellcheck disable=SC2086
    $get install -y --no-install-recommends "$@" >/dev/null 2>&1 ||
        { $get update && $get install -y --no-install-recommends "$@" >/dev/null; }
}

# have PROGRAM PACKAGE...: the program is there, or is installed now.
have() {
    local program=$1
    shift
    command -v "$program" >/dev/null && return
    apt_install "$@" && command -v "$program" >/dev/null && return
    missing="needs $program: apt-get install $*"
    return 1
}

# unpack DIR PACKAGE[=VERSION]...: Debian's packages below DIR. Needs no rights, replaces nothing.
unpack() {
    local dir=$1
    shift
    command -v apt-get >/dev/null && command -v dpkg >/dev/null || return 1
    [ "${RUN_INSTALL:-1}" = 1 ] || return 1
    rm -rf "$dir" "$dir.new" && mkdir -p "$dir.new/debs" || return 1
    (
        cd "$dir.new/debs"
        # The warning that it is downloaded unsandboxed is about root only.
        apt-get -qq -o APT::Sandbox::User=root download "$@" &&
            for deb in *.deb; do dpkg -x "$deb" .. || exit 1; done
    ) >&2 || { rm -rf "$dir.new" && return 1; }
    rm -rf "$dir.new/debs"
    mv "$dir.new" "$dir"
}

version_at_least() { # HAVE WANT
    [ "$(printf '%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

rust_version() { # RUSTC
    "$1" --version 2>/dev/null | awk '{print $2}'
}

# Sets RUSTC to a compiler of exactly version $MSRV that has the sources of the standard library:
# one that is installed, else Debian's, unpacked below $target.
msrv_compiler() {
    local rustc dir=$target/rust-$MSRV
    for rustc in "$(rustup which --toolchain $MSRV rustc 2>/dev/null || true)" \
        /usr/bin/rustc "$dir/usr/bin/rustc"; do
        [ -x "$rustc" ] || continue
        [ "$rustc" != "$dir/usr/bin/rustc" ] ||
            export LD_LIBRARY_PATH=$dir/usr/lib/$(uname -m)-linux-gnu
        case $(rust_version "$rustc") in $MSRV.*) ;; *) continue ;; esac
        if [ -f "$("$rustc" --print sysroot)/lib/rustlib/src/rust/library/Cargo.toml" ]; then
            export RUSTC=$rustc
            return
        fi
    done
    [ "${1:-}" = unpacked ] || { unpack_msrv && msrv_compiler unpacked; } || {
        missing="needs rustc $MSRV with its sources. Either of
  rustup toolchain install $MSRV -c rust-src
  apt-get install rustc-web=$MSRV* rust-web-src=$MSRV*    (Debian 12)"
        return 1
    }
}

debian_rust() {
    apt-cache madison rustc-web | awk -v v="$MSRV" '$3 ~ "^" v {print $3; exit}'
}

unpack_msrv() {
    local dir=$target/rust-$MSRV version as
    command -v apt-get >/dev/null && [ "${RUN_INSTALL:-1}" = 1 ] || return 1
    version=$(debian_rust)
    if [ -z "$version" ]; then
        as=$(apt_rights) && $as apt-get -qq update || return 1
        version=$(debian_rust)
    fi
    [ -n "$version" ] || return 1
    echo "unpacking Debian's rustc $version to $dir" >&2
    unpack "$dir" "rustc-web=$version" "libstd-rust-web-$MSRV=$version" \
        "libstd-rust-web-dev=$version" "rust-web-src=$version" libllvm19
}

# Sets ZIG to the linker for boards: one of the right version, else PyPI's, below $target.
zig_linker() {
    local dir=$target/zig-$ZIG_VERSION
    case $(zig version 2>/dev/null) in "${ZIG_VERSION%.post*}")
        ZIG=$(command -v zig)
        export ZIG
        return
        ;;
    esac
    if [ ! -x "$dir/ziglang/zig" ] && [ "${RUN_INSTALL:-1}" = 1 ]; then
        python3 -m pip --version >/dev/null 2>&1 || apt_install python3 python3-pip || true
        echo "getting zig $ZIG_VERSION from PyPI into $dir" >&2
        python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
            --no-deps --target "$dir" "ziglang==$ZIG_VERSION" >&2 || rm -rf "$dir"
    fi
    export ZIG=$dir/ziglang/zig
    [ -x "$ZIG" ] || {
        missing="needs zig ${ZIG_VERSION%.post*} as linker. Either of
  python3 -m pip install --target $dir ziglang==$ZIG_VERSION
  unpack it from ziglang.org/download and put it into the PATH"
        return 1
    }
}

# Sets QEMU_DIR to where the emulators of other processors are: installed, else below $target.
qemu_user() {
    local dir=$target/qemu at
    at=$(command -v qemu-aarch64-static) && QEMU_DIR=$(dirname "$at") || QEMU_DIR=$dir/usr/bin
    export QEMU_DIR
    [ -x "$QEMU_DIR/qemu-aarch64-static" ] || {
        echo "unpacking Debian's qemu-user-static to $dir" >&2
        unpack "$dir" qemu-user-static
    } || {
        missing="needs qemu: apt-get install qemu-user-static"
        return 1
    }
}
