# The machines dugnad is built for, and how. Sourced by bash, after lib.sh.

out=$target/boards
# Room for the tools and the objects of one target, in MB.
ROOM_TOOLS=1600
ROOM_TARGET=700
TARGETS="x86_64 aarch64 armv7 armv6 riscv64 mipsel"

# Sets for a target: $triple as Rust names it, $zig as zig does, $cpu for the emulator, $emulator,
# and $flags for rustc.
target_is() {
    cpu='' flags=''
    case $1 in
    x86_64) triple=x86_64-unknown-linux-musl zig=x86_64-linux-musl emulator=qemu-x86_64 ;;
    aarch64) triple=aarch64-unknown-linux-musl zig=aarch64-linux-musl emulator=qemu-aarch64 ;;
    # Thumb code is a third smaller, and every armv7 has it.
    armv7)
        triple=armv7-unknown-linux-musleabihf emulator=qemu-arm cpu=cortex-a7
        zig='arm-linux-musleabihf -mcpu=generic+v7a+vfp3d16'
        flags='-C target-feature=+thumb-mode'
        ;;
    armv6)
        triple=arm-unknown-linux-musleabihf emulator=qemu-arm cpu=arm1176
        zig='arm-linux-musleabihf -mcpu=arm1176jzf_s'
        ;;
    riscv64) triple=riscv64gc-unknown-linux-musl zig=riscv64-linux-musl emulator=qemu-riscv64 ;;
    mipsel)
        triple=mipsel-unknown-linux-musl emulator=qemu-mipsel cpu=24Kc
        zig='mipsel-linux-musl -mcpu=mips32r2+soft_float'
        # By way of musl, rustix hands times of 64 bits to a function that takes 32: no timer ever
        # fires. With this it asks the kernel itself.
        flags='--cfg=rustix_use_experimental_asm'
        ;;
    # Nobody's board, but the other order of bytes: for tests.
    mips)
        triple=mips-unknown-linux-musl emulator=qemu-mips cpu=24Kc
        zig='mips-linux-musl -mcpu=mips32r2+soft_float'
        ;;
    *) return 1 ;;
    esac
}

room() { # MB WHAT
    local free
    mkdir -p "$target"
    free=$(df -Pm "$target" | awk 'NR == 2 {print $4}')
    [ "$free" -ge "$1" ] || fail "$2 needs about $1 MB, and $target has $free MB left:
  make room, or set CARGO_TARGET_DIR to a folder on another disk"
}

# Finds all that a build needs, or ends with what is missing.
tools() {
    mkdir -p "$out"
    command -v cargo >/dev/null || apt_install cargo-web || true
    command -v cargo >/dev/null || fail "needs cargo:
  https://rustup.rs or apt-get install cargo-web"
    # For the parts of the build that run here.
    have cc gcc libc6-dev || fail "$missing"
    [ -x "$target/rust-$MSRV/usr/bin/rustc" ] || room $ROOM_TOOLS "getting the tools"
    msrv_compiler || fail "$missing"
    have python3 python3 || fail "$missing"
    zig_linker || fail "$missing"
    export ZIG_GLOBAL_CACHE_DIR=$target/zig-cache ZIG_LOCAL_CACHE_DIR=$target/zig-cache
}

# A TOML list of the words on standard input, one a line.
toml_list() {
    awk '{gsub(/[\\"]/, "\\\\&"); printf "%s\"%s\"", sep, $0; sep = ", "} END {print ""}'
}

# The flags of rustc for a target. No path of this machine gets into the program.
rustc_flags() {
    printf '%s\n' -C link-self-contained=no -C target-feature=+crt-static \
        -C relocation-model=static \
        --remap-path-prefix="$PWD=dugnad" \
        --remap-path-prefix="$("$RUSTC" --print sysroot)/lib/rustlib/src/rust=rust" \
        --remap-path-prefix="${CARGO_HOME:-$HOME/.cargo}/registry/src=crates"
    # shellcheck disable=SC2086
    [ -z "$flags" ] || printf '%s\n' $flags
}

# Sets $words: what cargo has to be told to build for a target. After target_is.
cargo_words() { # TARGET
    local link
    link=$(linker "$1")
    words=(--target "$triple"
        --config "target.$triple.linker=\"$link\""
        --config "target.$triple.rustflags=[$(rustc_flags | toml_list)]")
}

# linker TARGET: a program that links for it; its path.
linker() {
    local file=$out/link-$1 objects=
    if [ "$1" = armv7 ]; then
        objects=$out/thumb-init.o
        # shellcheck disable=SC2086
        "$ZIG" cc -target $zig -c cross/thumb-init.s -o "$objects"
    fi
    cat >"$file" <<TEXT
#!/bin/sh
ZIG_TARGET='$zig' ZIG_OBJECTS='$objects' exec '$PWD/cross/zcc' "\$@"
TEXT
    chmod +x "$file"
    echo "$file"
}
