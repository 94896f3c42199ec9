//! A node that is drained: what runs on it runs elsewhere, and it takes nothing new, also after a
//! start, until its owner says otherwise.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::rc::Rc;

use dugnad_kernel::Input;
use dugnad_node::{Command, Question};
use smol::channel::bounded;

use super::Agent;
use super::people::HAND_OVER;
use crate::text::plain;

/// In the state folder, with the reason, while the node is drained.
const FILE: &str = "drained";
/// Bytes of a reason: it is told to everybody.
const REASON_MAX: usize = 120;

impl Agent {
    /// Why it is drained, if it is.
    pub(super) fn drained(&self) -> Option<String> {
        let text = fs::read_to_string(self.dirs.state.join(FILE)).ok()?;
        Some(plain(text.trim()))
    }

    /// After a start: as it was before.
    pub(super) fn drain_again(self: &Rc<Self>) {
        if let Some(reason) = self.drained() {
            log::warn!("{}", warning(&reason));
            self.input(Input::Command(Command::HandOver(true)));
        }
    }

    /// Takes nothing new from now on, and waits until others run what runs here.
    ///
    /// # Errors
    /// They do not, or not yet: what is still here, a line each. It stays drained.
    pub(super) async fn drain(self: Rc<Self>, reason: String) -> Result<(), Vec<String>> {
        if reason.len() > REASON_MAX || reason.contains(char::is_control) {
            return Err(vec![format!("a reason is one line of at most {REASON_MAX} bytes")]);
        }
        let path = self.dirs.state.join(FILE);
        let write = || -> io::Result<()> {
            let mut file = File::create(&path)?;
            file.write_all(reason.as_bytes())?;
            file.sync_all()
        };
        write().map_err(|error| vec![format!("{}: {error}", path.display())])?;
        let name = self.config.borrow().name.clone();
        let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        // That nobody could be told does not keep it from happening.
        _ = Rc::clone(&self).ask(Question::Announce(format!("{name} is drained{why}"))).await;
        self.move_away().await
    }

    pub(super) async fn undrain(self: Rc<Self>) -> Result<(), String> {
        let path = self.dirs.state.join(FILE);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err("this node is not drained".to_owned());
            }
            Err(error) => return Err(format!("{}: {error}", path.display())),
        }
        let name = self.config.borrow().name.clone();
        let told = self.commands.send(Command::HandOver(false)).await;
        told.map_err(|error| error.to_string())?;
        let text = format!("{name} takes work again");
        _ = Rc::clone(&self).ask(Question::Announce(text)).await;
        Ok(())
    }

    /// Waits until others run what runs here, for as long as that moves.
    ///
    /// # Errors
    /// Nothing has moved for [`HAND_OVER`]. What is still here, a line each.
    pub(super) async fn move_away(&self) -> Result<(), Vec<String>> {
        let here = || -> Vec<String> {
            let replicas = self.node.borrow().status().replicas;
            replicas.into_iter().map(|(_, name, _)| format!("{name} runs here")).collect()
        };
        let (over, handed_over) = bounded(1);
        self.handed_over.replace(Some(over));
        let told = self.commands.send(Command::HandOver(true)).await;
        told.map_err(|error| vec![error.to_string()])?;
        loop {
            let before = here();
            if before.is_empty() {
                return Ok(());
            }
            if self.node.borrow().status().state == "alone" && self.links.peers().is_empty() {
                return Err(before);
            }
            let done = async { handed_over.recv().await.is_ok() };
            let late = async {
                smol::Timer::after(HAND_OVER).await;
                false
            };
            if smol::future::or(done, late).await {
                return Ok(());
            }
            let after = here();
            if after == before {
                return Err(after);
            }
        }
    }
}

/// What `status` says of it.
pub(super) fn warning(reason: &str) -> String {
    let why = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
    format!("this node is drained{why}: it takes no work until `dugnad undrain`")
}
