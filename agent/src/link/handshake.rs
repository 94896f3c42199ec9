//! From a fresh TCP connection to a proven peer.
//!
//! ```text
//! both ways, in the clear   "dugnad" version 0 community[8]
//! dialler -> listener       [length u16] Noise message 1 (e)
//! listener -> dialler       [length u16] Noise message 2 (e, ee, s, es) + Hello
//! dialler -> listener       [length u16] Noise message 3 (s, se) + Hello
//! ```
//! Noise is `XXpsk0`: the key derived from the community's secret is mixed in first, so that a
//! stranger learns nothing, not even who answers. Instead of a message, either side may send
//! [`REFUSAL`] and one byte that says why; that byte is not authenticated and only for the log.
//!
//! A node proves its id like this: the Noise static key is the X25519 form of its Ed25519 key;
//! the [`Hello`] inside the encrypted message names the Ed25519 key; the receiver checks that the
//! two are the same point and derives the id from the key itself.

use std::cell::RefCell;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use dugnad_kernel::peer::ADDRS_MAX;
use dugnad_kernel::peer::Addrs;
use dugnad_kernel::{CommunityId, Id, NodeId, Peer, wire};
use ed25519_dalek::VerifyingKey;
use serde::{Deserialize, Serialize};
use smol::net::TcpStream;
use snow::{Builder, HandshakeState, TransportState};

use super::noise::{Bytes, Reader, RecordError, VERDICT, Writer};
use crate::identity::{Community, Identity};

const PATTERN: &str = "Noise_XXpsk0_25519_ChaChaPoly_BLAKE2s";
const MAGIC: &[u8; 6] = b"dugnad";
const PREAMBLE: usize = 16;
/// The longest handshake message; a [`Hello`] needs less than 250 bytes.
const MESSAGE_MAX: usize = 512;
/// How long a caller may take to say its first word; it has nothing to wait for.
const FIRST_WORD: Duration = Duration::from_secs(1);
/// Instead of a length: one byte with the reason follows.
const REFUSAL: u16 = u16::MAX;
/// How many ended sessions a dialler tells of.
pub(super) const ENDED_MAX: usize = 4;

/// Names one session; both ends compute it from the handshake.
pub(super) type SessionId = u64;

/// What a node says of itself inside the handshake.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    public_key: [u8; 32],
    inc: u32,
    /// The first [`ADDRS_MAX`] count.
    addrs: Vec<SocketAddr>,
    /// Sessions with the other side that ended here lately. Empty from a listener, who does not
    /// know yet who calls.
    ended: Vec<SessionId>,
}

/// Why a handshake led to nothing. The name is the counter's.
#[derive(Debug)]
pub(super) enum Failure {
    Refused(&'static str),
    /// No connection at all.
    Unreachable(io::Error),
    Io(io::Error),
    /// Somebody else lives there.
    WrongIdentity(NodeId),
    /// The address is this node's own.
    Oneself {
        inc: u32,
    },
    /// There is a session with this peer already; it stands.
    Duplicate(NodeId),
}

impl Failure {
    /// The counter of this failure.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Refused(reason) => reason,
            Self::Io(error) if error.kind() == io::ErrorKind::TimedOut => "handshake_timeout",
            Self::Io(_) => "handshake_incomplete",
            Self::Unreachable(_) => "unreachable",
            Self::WrongIdentity(_) => "wrong_identity",
            Self::Oneself { .. } => "dialled_oneself",
            Self::Duplicate(_) => "duplicate_session",
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(reason) => f.write_str(match *reason {
                "refused_magic" => "something other than dugnad answers there",
                "refused_version" => "it runs another wire version of dugnad",
                "refused_community" => "it belongs to another community",
                "refused_secret" => "it has another secret of the community",
                "refused_identity" => "it could not prove who it is",
                "refused_busy" => "it has as many sessions as it takes",
                "sessions_full" => "this node has as many sessions as it takes",
                "refused_twin" => "another machine runs with the same identity",
                "refused_incarnation" => "a newer start of the same node has a session",
                other => other,
            }),
            Self::Unreachable(error) => write!(f, "{error}"),
            Self::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                f.write_str("the other side closed the connection during the handshake")
            }
            Self::Io(error) => write!(f, "{error}"),
            Self::WrongIdentity(id) => write!(f, "another node answers there ({id})"),
            Self::Oneself { .. } => f.write_str("this is the node itself"),
            Self::Duplicate(id) => write!(f, "linked with {id} already"),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

const REFUSED_BUSY: &str = "refused_busy";
/// Reasons that travel; the place is the code.
const REASONS: [&str; 4] = ["refused_other", "refused_secret", "refused_identity", REFUSED_BUSY];

/// What this node brings into every handshake.
pub(super) struct Local {
    pub(super) me: Peer,
    /// Where it can be dialled now.
    pub(super) addrs: RefCell<Addrs>,
    community: CommunityId,
    preamble: [u8; PREAMBLE],
    psk: [u8; 32],
    agreement_key: [u8; 32],
    public_key: [u8; 32],
}

/// A peer that proved who it is, and the connection to it.
pub(super) struct Proven {
    pub(super) peer: Peer,
    pub(super) session: SessionId,
    /// Sessions with us that ended on its side.
    pub(super) ended: Vec<SessionId>,
    pub(super) dialled: bool,
    pub(super) addr: SocketAddr,
    pub(super) noise: RefCell<TransportState>,
    pub(super) tcp: TcpStream,
    pub(super) reader: Reader,
    pub(super) writer: Writer,
    pub(super) bytes: Rc<Bytes>,
}

impl Local {
    pub(super) fn new(identity: &Identity, community: &Community, me: Peer) -> Self {
        Self::with_preamble(identity, community, me, wire::VERSION)
    }

    pub(super) fn with_preamble(
        identity: &Identity,
        community: &Community,
        me: Peer,
        version: u8,
    ) -> Self {
        let id = community.id();
        let mut preamble = [0; PREAMBLE];
        preamble[..6].copy_from_slice(MAGIC);
        preamble[6] = version;
        preamble[8..].copy_from_slice(&id.0[..8]);
        Self {
            addrs: RefCell::new(me.addrs.clone()),
            me,
            community: id,
            preamble,
            psk: blake3::derive_key("dugnad 2026 link pre-shared key", &community.secret),
            agreement_key: identity.agreement_key(),
            public_key: identity.public_key(),
        }
    }

    #[cfg(test)]
    pub(super) fn forge_psk(&mut self, psk: [u8; 32]) {
        self.psk = psk;
    }

    #[cfg(test)]
    pub(super) fn forge_public_key(&mut self, key: [u8; 32]) {
        self.public_key = key;
    }

    #[cfg(test)]
    pub(super) fn preamble_bytes(&self) -> [u8; PREAMBLE] {
        self.preamble
    }

    fn hello(&self, ended: Vec<SessionId>) -> Result<Vec<u8>, Failure> {
        let hello = Hello {
            public_key: self.public_key,
            inc: self.me.inc,
            addrs: self.addrs.borrow().to_vec(),
            ended,
        };
        postcard::to_allocvec(&hello).map_err(|e| Failure::Io(io::Error::other(e)))
    }

    fn builder(&self) -> Result<Builder<'_>, snow::Error> {
        Builder::new(PATTERN.parse()?)
            .prologue(&self.preamble)?
            .psk(0, &self.psk)?
            .local_private_key(&self.agreement_key)
    }

    /// Compares what the other side says first with what it should say.
    fn check_preamble(&self, theirs: &[u8]) -> Result<(), Failure> {
        if theirs[..6] != self.preamble[..6] {
            return Err(Failure::Refused("refused_magic"));
        }
        if theirs[6] != self.preamble[6] {
            return Err(Failure::Refused("refused_version"));
        }
        if theirs[8..] != self.preamble[8..] {
            return Err(Failure::Refused("refused_community"));
        }
        // Byte 7 is for later versions that want to say more and stay compatible.
        Ok(())
    }

    /// Checks that the key in `hello` is the one Noise has proven, and derives the id.
    fn prove(&self, noise: &HandshakeState, hello: &Hello) -> Result<Peer, Failure> {
        let refused = Failure::Refused("refused_identity");
        let Ok(key) = VerifyingKey::from_bytes(&hello.public_key) else { return Err(refused) };
        let proven = noise.get_remote_static() == Some(&key.to_montgomery().to_bytes()[..]);
        // A key and its negative share one X25519 form, so a device can prove two ids. It could
        // as well make a second key: ids are not scarce. Weak points prove nothing.
        if !proven || key.is_weak() {
            return Err(refused);
        }
        let id = Id::of_device(self.community, &hello.public_key, 0, b"");
        let mut peer = Peer::new(id);
        peer.inc = hello.inc;
        peer.addrs.extend(hello.addrs.iter().copied().take(ADDRS_MAX));
        Ok(peer)
    }
}

/// The connection while it shakes hands.
struct Wire {
    addr: SocketAddr,
    tcp: TcpStream,
    bytes: Rc<Bytes>,
    reader: Reader,
    writer: Writer,
}

impl Wire {
    fn new(tcp: TcpStream, addr: SocketAddr) -> Self {
        let bytes = Rc::new(Bytes::default());
        let reader = Reader::new(tcp.clone(), Rc::clone(&bytes));
        let writer = Writer::new(tcp.clone(), Rc::clone(&bytes));
        Self { addr, tcp, bytes, reader, writer }
    }

    async fn send(&mut self, noise: &mut HandshakeState, payload: &[u8]) -> Result<(), Failure> {
        let message = sealed(noise, payload, &[])?;
        Ok(self.writer.bytes(&message).await?)
    }

    /// Reads a handshake message and opens it; what does not open is refused for `reason`.
    async fn receive(
        &mut self,
        noise: &mut HandshakeState,
        reason: &'static str,
    ) -> Result<Vec<u8>, Failure> {
        let head = self.reader.bytes(2).await?;
        let length = u16::from_le_bytes([head[0], head[1]]);
        if length == REFUSAL {
            let code = usize::from(self.reader.bytes(1).await?[0]);
            return Err(Failure::Refused(REASONS.get(code).unwrap_or(&REASONS[0])));
        }
        let length = usize::from(length);
        if length > MESSAGE_MAX {
            return Err(Failure::Refused("handshake_malformed"));
        }
        let message = self.reader.bytes(length).await?;
        let mut payload = vec![0; MESSAGE_MAX];
        let read = noise.read_message(message, &mut payload);
        let read = read.map_err(|_| Failure::Refused(reason))?;
        payload.truncate(read);
        Ok(payload)
    }

    async fn refuse(&mut self, reason: &'static str) {
        let code = REASONS.iter().position(|known| *known == reason).unwrap_or(0);
        let code = u8::try_from(code).unwrap_or(0);
        let head = REFUSAL.to_le_bytes();
        // Best effort: it is refused all the same.
        let _: io::Result<()> = self.writer.bytes(&[head[0], head[1], code]).await;
    }

    /// Lets a refusal arrive: closing with unread bytes would reset the connection and lose it.
    async fn linger(&mut self) {
        // The socket may be gone already, then there is nobody to tell.
        let _: io::Result<()> = self.tcp.shutdown(Shutdown::Write);
        let drain = async {
            for _ in 0..2 * MESSAGE_MAX {
                if self.reader.bytes(1).await.is_err() {
                    break;
                }
            }
        };
        let limit = async {
            smol::Timer::after(Duration::from_secs(1)).await;
        };
        smol::future::or(drain, limit).await;
    }

    fn finish(
        self,
        noise: HandshakeState,
        peer: Peer,
        ended: Vec<SessionId>,
        dialled: bool,
    ) -> Result<Proven, Failure> {
        let session = session_id(&noise);
        let noise = RefCell::new(noise.into_transport_mode().map_err(failed)?);
        let Self { addr, tcp, bytes, reader, writer } = self;
        Ok(Proven { peer, session, ended, dialled, addr, noise, tcp, reader, writer, bytes })
    }
}

fn sealed(noise: &mut HandshakeState, payload: &[u8], before: &[u8]) -> Result<Vec<u8>, Failure> {
    let from = before.len() + 2;
    let mut out = vec![0; from + MESSAGE_MAX];
    let written = noise.write_message(payload, &mut out[from..]).map_err(failed)?;
    out.truncate(from + written);
    out[..before.len()].copy_from_slice(before);
    let length = u16::try_from(written).map_err(|e| Failure::Io(io::Error::other(e)))?;
    out[before.len()..from].copy_from_slice(&length.to_le_bytes());
    Ok(out)
}

fn failed(error: snow::Error) -> Failure {
    Failure::Io(io::Error::other(format!("handshake: {error}")))
}

fn hello(payload: &[u8]) -> Result<Hello, Failure> {
    match postcard::take_from_bytes(payload) {
        Ok((hello, [])) => Ok(hello),
        _ => Err(Failure::Refused("handshake_malformed")),
    }
}

/// The session's name: the first bytes of what both sides hashed.
fn session_id(noise: &HandshakeState) -> SessionId {
    let mut id = [0; 8];
    id.copy_from_slice(&noise.get_handshake_hash()[..8]);
    SessionId::from_le_bytes(id)
}

/// The dialler's half. `ended` gives the sessions with a node that ended here; `wanted` may stop
/// the dial once the other side is known.
pub(super) async fn dial(
    local: &Local,
    tcp: TcpStream,
    addr: SocketAddr,
    wanted: impl FnOnce(&Peer) -> Result<Vec<SessionId>, Failure>,
) -> Result<Proven, Failure> {
    let mut wire = Wire::new(tcp, addr);
    let mut noise = local.builder().and_then(Builder::build_initiator).map_err(failed)?;
    let first = sealed(&mut noise, &[], &local.preamble)?;
    wire.writer.bytes(&first).await?;
    local.check_preamble(wire.reader.bytes(PREAMBLE).await?)?;
    let theirs = hello(&wire.receive(&mut noise, "refused_secret").await?)?;
    if theirs.public_key == local.public_key {
        return Err(Failure::Oneself { inc: theirs.inc });
    }
    let peer = match local.prove(&noise, &theirs) {
        Ok(peer) => peer,
        Err(error) => {
            wire.refuse("refused_identity").await;
            return Err(error);
        }
    };
    let mine = local.hello(wanted(&peer)?)?;
    wire.send(&mut noise, &mine).await?;
    wire.finish(noise, peer, Vec::new(), true)
}

/// The listener's half. `busy` is asked before any secret is used.
pub(super) async fn listen(
    local: &Local,
    tcp: TcpStream,
    addr: SocketAddr,
    busy: bool,
) -> Result<Proven, Failure> {
    let mut wire = Wire::new(tcp, addr);
    match answer(local, &mut wire, busy).await {
        Ok((noise, peer, ended)) => wire.finish(noise, peer, ended, false),
        Err(error) => {
            if let Failure::Refused(reason) = error {
                if REASONS.contains(&reason) {
                    wire.refuse(reason).await;
                }
                if reason != "handshake_silent" {
                    wire.linger().await;
                }
            }
            Err(error)
        }
    }
}

async fn answer(
    local: &Local,
    wire: &mut Wire,
    busy: bool,
) -> Result<(HandshakeState, Peer, Vec<SessionId>), Failure> {
    let silent = async {
        smol::Timer::after(FIRST_WORD).await;
        Err(Failure::Refused("handshake_silent"))
    };
    let said = async { Ok(wire.reader.bytes(PREAMBLE).await?.to_vec()) };
    let theirs = smol::future::or(said, silent).await?;
    let checked = local.check_preamble(&theirs);
    if !matches!(checked, Err(Failure::Refused("refused_magic"))) {
        // Ours goes out even if theirs is wrong: it tells them what is.
        wire.writer.bytes(&local.preamble).await?;
    }
    checked?;
    if busy {
        return Err(Failure::Refused(REFUSED_BUSY));
    }
    let mut noise = local.builder().and_then(Builder::build_responder).map_err(failed)?;
    wire.receive(&mut noise, "refused_secret").await?;
    let mine = local.hello(Vec::new())?;
    wire.send(&mut noise, &mine).await?;
    let theirs = hello(&wire.receive(&mut noise, "refused_identity").await?)?;
    let peer = local.prove(&noise, &theirs)?;
    if peer.id == local.me.id {
        return Err(Failure::Refused("refused_identity"));
    }
    Ok((noise, peer, theirs.ended))
}

impl Proven {
    /// Reads the other side's decision on this session.
    pub(super) async fn read_verdict(&mut self) -> Result<u8, Failure> {
        match self.reader.record(&self.noise).await {
            Ok([VERDICT, code]) => Ok(*code),
            Ok(_) => Err(Failure::Refused("handshake_malformed")),
            Err(RecordError::Closed(error)) => Err(Failure::Io(error)),
            Err(RecordError::Undecryptable) => Err(Failure::Refused("undecryptable")),
        }
    }
}
