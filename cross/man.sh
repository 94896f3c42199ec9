#!/usr/bin/env bash
# The manual page, made of what the program says of itself: cross/man.sh DUGNAD > dugnad.1
set -eu

program=$1

# Plain text as it is, whatever it holds.
text() {
    printf '.nf\n'
    sed -e 's/\\/\\e/g' -e "s/^\([.']\)/\\\\\&\1/" -e 's/-/\\-/g'
    printf '.fi\n'
}

version=$("$program" version | awk '{print $2}')
cat <<TEXT
.TH DUGNAD 1 "" "dugnad $version"
.SH NAME
dugnad \- runs a community's services on slices of the computers its members own
.SH SYNOPSIS
.B dugnad
.I command
.RI [ arguments ]
.SH DESCRIPTION
TEXT
"$program" help | text
printf '.SH COMMANDS\n'
for command in $("$program" help | awk '/^Commands:/ {on = 1; next} /^$/ {on = 0}
    on && /^  [a-z]/ {print $1}'); do
    printf '.SS %s\n' "$command"
    "$program" "$command" --help | text
done
cat <<'TEXT'
.SH FILES
.TP
.I /etc/dugnad/dugnad.toml, ~/.config/dugnad/dugnad.toml
What the owner gives; every key is optional.
.TP
.I /var/lib/dugnad, ~/.local/state/dugnad
The identity of the node, its records, packages, and the state of services.
TEXT
