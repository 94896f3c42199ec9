//! Where things lie: the owner's file, the state, the control socket.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Looks a variable of the environment up; a parameter so that tests need no real one.
pub(crate) type Env<'a> = &'a dyn Fn(&str) -> Option<OsString>;

pub(crate) const SYSTEM_SOCKET: &str = "/run/dugnad/dugnad.sock";

/// The three places. All absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dirs {
    /// The owner's file; it need not exist.
    pub(crate) config: PathBuf,
    /// Identity, records and packages.
    pub(crate) state: PathBuf,
    /// The control socket.
    pub(crate) socket: PathBuf,
    /// The folder named with `--dir` or `DUGNAD_DIR`, to repeat it in advice.
    pub(crate) named: Option<PathBuf>,
}

impl Dirs {
    /// `--dir D`, else `DUGNAD_DIR`, puts everything under D. Without: the system's places for
    /// root, the XDG places (with their defaults) for others. `DUGNAD_SOCKET` names another
    /// socket in all cases but `--dir`.
    ///
    /// # Errors
    /// Nothing names a home folder, or a relative path cannot be made absolute.
    pub(crate) fn resolve(flag: Option<&Path>, env: Env<'_>, root: bool) -> Result<Self, String> {
        let set = |name: &str| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(dir) = flag.map(Path::to_path_buf).or_else(|| set("DUGNAD_DIR")) {
            let dir = std::path::absolute(&dir)
                .map_err(|error| format!("{}: no usable folder: {error}", dir.display()))?;
            let socket = set("DUGNAD_SOCKET").filter(|_| flag.is_none());
            return Ok(Self {
                config: dir.join("dugnad.toml"),
                socket: socket.unwrap_or_else(|| dir.join("dugnad.sock")),
                state: dir.clone(),
                named: Some(dir),
            });
        }
        let socket = set("DUGNAD_SOCKET");
        if root {
            return Ok(Self {
                config: PathBuf::from("/etc/dugnad/dugnad.toml"),
                state: PathBuf::from("/var/lib/dugnad"),
                socket: socket.unwrap_or_else(|| PathBuf::from(SYSTEM_SOCKET)),
                named: None,
            });
        }
        // XDG says that a relative path in these variables is to be ignored.
        let xdg = |name: &str| set(name).filter(|path| path.is_absolute());
        let under_home = |rest: &str| {
            xdg("HOME")
                .map(|home| home.join(rest))
                .ok_or("HOME is not set: name a folder with --dir D or DUGNAD_DIR=D")
        };
        let state = match xdg("XDG_STATE_HOME") {
            Some(dir) => dir.join("dugnad"),
            None => under_home(".local/state/dugnad")?,
        };
        let config = match xdg("XDG_CONFIG_HOME") {
            Some(dir) => dir.join("dugnad/dugnad.toml"),
            None => under_home(".config/dugnad/dugnad.toml")?,
        };
        let runtime = xdg("XDG_RUNTIME_DIR").map(|dir| dir.join("dugnad.sock"));
        let socket = socket.or(runtime).unwrap_or_else(|| state.join("dugnad.sock"));
        Ok(Self { config, state, socket, named: None })
    }

    /// The socket a command talks to: its own, or the system's where only that one exists (a
    /// person on a machine whose agent runs as a system service).
    #[must_use]
    pub(crate) fn client_socket(&self) -> PathBuf {
        let system = Path::new(SYSTEM_SOCKET);
        if self.named.is_none() && !self.socket.exists() && system.exists() {
            return system.to_path_buf();
        }
        self.socket.clone()
    }

    /// What to type in front of another command for the same folder: ` --dir D`, or nothing.
    #[must_use]
    pub(crate) fn flag(&self) -> String {
        self.named.as_ref().map(|dir| format!(" --dir {}", dir.display())).unwrap_or_default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn resolve(flag: Option<&str>, vars: &[(&str, &str)], root: bool) -> Result<Dirs, String> {
        let env = |name: &str| {
            vars.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        };
        Dirs::resolve(flag.map(Path::new), &env, root)
    }

    fn places(dirs: &Dirs) -> [&str; 3] {
        [&dirs.config, &dirs.state, &dirs.socket].map(|path| path.to_str().unwrap())
    }

    #[test]
    fn a_named_folder_holds_everything_and_the_flag_wins() {
        let vars = [("DUGNAD_DIR", "/b"), ("DUGNAD_SOCKET", "/c.sock")];
        let dirs = resolve(Some("/a"), &vars, true).unwrap();
        assert_eq!(places(&dirs), ["/a/dugnad.toml", "/a", "/a/dugnad.sock"]);
        assert_eq!(dirs.flag(), " --dir /a");
        let dirs = resolve(None, &vars, true).unwrap();
        assert_eq!(places(&dirs), ["/b/dugnad.toml", "/b", "/c.sock"]);
        assert!(resolve(Some("rel"), &[], true).unwrap().state.is_absolute());
    }

    #[test]
    fn root_uses_the_systems_places_and_people_the_xdg_ones() {
        let dirs = resolve(None, &[("HOME", "/root")], true).unwrap();
        let system = ["/etc/dugnad/dugnad.toml", "/var/lib/dugnad", "/run/dugnad/dugnad.sock"];
        assert_eq!(places(&dirs), system);
        let vars = [
            ("XDG_CONFIG_HOME", "/x/c"),
            ("XDG_STATE_HOME", "/x/s"),
            ("XDG_RUNTIME_DIR", "/run/user/7"),
        ];
        let dirs = resolve(None, &vars, false).unwrap();
        let xdg = ["/x/c/dugnad/dugnad.toml", "/x/s/dugnad", "/run/user/7/dugnad.sock"];
        assert_eq!(places(&dirs), xdg);
    }

    #[test]
    fn unset_xdg_variables_have_fallbacks() {
        let dirs = resolve(None, &[("HOME", "/h"), ("XDG_STATE_HOME", "rel")], false).unwrap();
        let home = [
            "/h/.config/dugnad/dugnad.toml",
            "/h/.local/state/dugnad",
            "/h/.local/state/dugnad/dugnad.sock",
        ];
        assert_eq!(places(&dirs), home);
        let error = resolve(None, &[], false).unwrap_err();
        assert_eq!(error, "HOME is not set: name a folder with --dir D or DUGNAD_DIR=D");
    }
}
