//! Values on their way through the control socket: sealed before they leave this node, opened when
//! they come back.

use std::io;
use std::time::Duration;

use dugnad_node::{Address, Seal};
use futures_util::StreamExt as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::exit;
use super::shape::Trouble;
use crate::blobs::ValueStream;
use crate::seal::{Keys, Opener, Sealer, Secret, opened_length};

/// How long a value that is refused is read on.
const DRAIN: Duration = Duration::from_secs(10);

/// How the values of one object are sealed.
pub(super) struct Sealed {
    secret: Secret,
    /// The key of the object, which belongs to each value.
    about: String,
}

impl Sealed {
    /// # Errors
    /// This node does not have the key; what to do.
    pub(super) async fn new(keys: Keys, address: &Address, seal: Seal) -> Result<Self, Trouble> {
        let name = address.namespace.clone();
        let about = format!("{name}/{}", address.path);
        let (secret, path) = smol::unblock(move || (keys.get(&name), keys.path(&name))).await;
        let name = &address.namespace;
        match secret {
            Ok(Some(secret)) if secret.seal() == seal => Ok(Self { secret, about }),
            Ok(Some(_)) => {
                let text = format!("{}: this is not the key of namespace {name}", path.display());
                Err(Trouble::new(403, exit::REFUSED, text))
            }
            Ok(None) => {
                let text = format!(
                    "namespace {name} is sealed and this node has no key for it; whoever has it \
                     runs: dugnad namespace {name} --show-key, and here: dugnad namespace {name} \
                     --key -"
                );
                Err(Trouble::new(403, exit::REFUSED, text))
            }
            Err(error) => Err(Trouble::failed(error.to_string())),
        }
    }

    pub(super) fn seal(&self) -> Seal {
        self.secret.seal()
    }

    fn opener(&self) -> Opener {
        Opener::new(self.secret.clone(), &self.about)
    }

    /// A value that is here as a whole.
    pub(super) fn open(&self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut opener = self.opener();
        let mut plain = opener.take(bytes)?;
        plain.extend(opener.finish()?);
        Ok(plain)
    }

    /// A value that comes in blocks, and how long it is.
    pub(super) fn open_blocks(&self, blocks: ValueStream, bytes: u64) -> (ValueStream, u64) {
        let state = (blocks, Some(self.opener()));
        let plain = futures_util::stream::unfold(state, async |(mut blocks, opener)| {
            let mut opener = opener?;
            Some(match blocks.next().await {
                Some(block) => {
                    let plain = block.and_then(|block| opener.take(&block));
                    let rest = plain.is_ok().then_some(opener);
                    (plain, (blocks, rest))
                }
                None => (opener.finish(), (blocks, None)),
            })
        });
        (Box::pin(plain), opened_length(bytes).unwrap_or_default())
    }
}

/// What a client sends, as it is to be kept.
pub(super) struct Blocks {
    pub(super) body: Incoming,
    sealer: Option<Sealer>,
    over: bool,
}

impl Blocks {
    /// # Errors
    /// The kernel gives no random numbers.
    pub(super) fn new(body: Incoming, sealed: Option<&Sealed>) -> Result<Self, Trouble> {
        let sealer = sealed.map(|sealed| Sealer::new(&sealed.secret, &sealed.about)).transpose();
        let sealer = sealer.map_err(|error| Trouble::failed(error.to_string()))?;
        Ok(Self { body, sealer, over: false })
    }

    /// The next piece, of any length; `None` after the last.
    pub(super) async fn next(&mut self) -> Option<Result<Vec<u8>, Trouble>> {
        if self.over {
            return None;
        }
        let failed = |error: io::Error| Trouble::failed(error.to_string());
        match (self.body.frame().await, &mut self.sealer) {
            (Some(Err(error)), _) => {
                let text = format!("the value broke off: {error}");
                Some(Err(Trouble::new(400, exit::FAILED, text)))
            }
            (Some(Ok(frame)), sealer) => {
                let plain = frame.into_data().map(|data| data.to_vec()).unwrap_or_default();
                Some(match sealer {
                    Some(sealer) => sealer.take(&plain).map_err(failed),
                    None => Ok(plain),
                })
            }
            (None, Some(sealer)) => {
                self.over = true;
                Some(sealer.finish().map_err(failed))
            }
            (None, None) => None,
        }
    }
}

/// Reads on for a while, so that who is refused hears why: many look for an answer only when they
/// have sent all.
pub(super) async fn drain(body: &mut Incoming) {
    let all = async { while let Some(Ok(_)) = body.frame().await {} };
    let late = async { _ = smol::Timer::after(DRAIN).await };
    smol::future::or(all, late).await;
}
