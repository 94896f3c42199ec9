//! What a service may expect of its environment, and the words of its command.
//!
//! | variable | meaning |
//! |---|---|
//! | `PORT`, `HOST` | where to listen: a free port of 127.0.0.1; absent without `[port]` |
//! | `STATE_DIRECTORY`, `HOME` | the one folder it may write to and that outlives it |
//! | `TMPDIR` | scratch space, empty at every start |
//! | `DUGNAD_SERVICE`, `DUGNAD_REPLICA` | its name, its number |
//! | `DUGNAD_URL` | where this node answers for all services, if it does: `$DUGNAD_URL/NAME/` |
//! | `DUGNAD_NODE`, `DUGNAD_ARCH` | the name and processor of the node |
//! | `DUGNAD_SOCKET` | store, groups: HTTP on a Unix socket of its own (`control/door.rs`) |
//! | `DUGNAD_FENCE` | a number that grows with every replica, if only one may run |
//! | `DUGNAD_NAMESPACES` | namespaces of the store it uses beside its own |
//! | `DUGNAD_USES` | services it finds as `NAME.dugnad.internal`, where it has a view of its own |
//! | `PATH` | the usual folders of programs |
//!
//! `LISTEN_FDS` is not passed: the agent would have to hold `PORT` open itself, and an ordinary
//! server that binds `PORT` would find it in use.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use dugnad_kernel::map::Map;
use dugnad_resource::execute::Run;

use super::HostConfig;

/// The variable with the namespaces of the store that a service uses beside its own, with spaces
/// between them: `[store] namespaces` of its file.
pub(crate) const NAMESPACES: &str = "DUGNAD_NAMESPACES";
/// The variable of services it finds by name: what its file asks for.
pub(crate) const USES: &str = "DUGNAD_USES";
/// What names of services end in, for the gateway and for the services themselves.
pub(crate) const DOMAIN: &str = ".dugnad.internal";

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The environment of a service: the service file may change `PATH`, `HOME` and `TMPDIR` and add
/// what it likes, but not what the contract promises.
pub(super) fn environment(
    config: &HostConfig,
    socket: &Path,
    run: &Run,
    port: Option<u16>,
    state: &Path,
    tmp: &Path,
) -> Map<String, String> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut env = Map::from([
        ("PATH".to_owned(), PATH.to_owned()),
        ("HOME".to_owned(), text(state)),
        ("TMPDIR".to_owned(), text(tmp)),
    ]);
    for (name, value) in &run.spec.env {
        // These could not be passed on at all.
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            log::warn!("{}: the variable {name:?} cannot be passed: left out", run.spec.name);
            continue;
        }
        env.insert(name.clone(), value.clone());
    }
    if let Some(port) = port {
        env.insert("PORT".to_owned(), port.to_string());
        env.insert("HOST".to_owned(), Ipv4Addr::LOCALHOST.to_string());
    }
    let contract = [
        ("STATE_DIRECTORY", text(state)),
        ("DUGNAD_SERVICE", run.spec.name.clone()),
        ("DUGNAD_REPLICA", run.id.number.to_string()),
        ("DUGNAD_NODE", config.node_name.clone()),
        ("DUGNAD_ARCH", config.arch.name().to_owned()),
        ("DUGNAD_SOCKET", text(socket)),
    ];
    env.extend(contract.map(|(name, value)| (name.to_owned(), value)));
    if let Some(gateway) = config.gateway {
        env.insert("DUGNAD_URL".to_owned(), format!("http://{gateway}"));
    }
    env
}

/// The names of this machine, and those of the services that are used: all are at the gateway.
pub(super) fn hosts(machine: &str, gateway: IpAddr, uses: &str) -> String {
    let names: Vec<String> =
        uses.split_whitespace().map(|name| format!("{name}{DOMAIN}")).collect();
    format!("{}\n{gateway} {}\n", machine.trim_end(), names.join(" "))
}

/// `$NAME` and `${NAME}` replaced from `env`, `$$` by `$`. What `env` does not have stays as it
/// is, so that a shell in the command can still use variables of its own.
pub(super) fn expand(word: &str, env: &Map<String, String>) -> String {
    let mut out = String::with_capacity(word.len());
    let mut rest = word;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let braced = rest.strip_prefix('{').and_then(|inside| inside.split_once('}'));
        let (name, after) = braced.unwrap_or_else(|| {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            rest.split_at(end.unwrap_or(rest.len()))
        });
        if let Some(value) = env.get(name) {
            out.push_str(value);
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_expanded_once_and_only_from_the_contract() {
        let env = Map::from([
            ("PORT".to_owned(), "80".to_owned()),
            ("TWICE".to_owned(), "$PORT".to_owned()),
        ]);
        let of = |word| expand(word, &env);
        assert_eq!(of("--port=$PORT,"), "--port=80,");
        assert_eq!(of("${PORT}00 $PORT_X $$PORT"), "8000 $PORT_X $PORT");
        assert_eq!(of("$TWICE"), "$PORT");
        assert_eq!(of("$ ${ ${NO} $"), "$ ${ ${NO} $");
    }
}
