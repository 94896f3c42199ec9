//! The answering side of a fetch.
//!
//! Asked: the 32 bytes of a hash, as often as wanted. Answered, in the same order: four bytes of
//! length (little endian) and the chunk, or [`LACKS`] alone.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use dugnad_kernel::Hash;
use smol::io::{AsyncReadExt as _, AsyncWriteExt as _};
use smol::lock::Semaphore;

use super::store::Store;
use crate::stream::{Stream, within};

/// In place of a length: that chunk is not here.
pub(super) const LACKS: u32 = u32::MAX;
/// How long an asker may think, and how long it may take to take one chunk.
const IDLE: Duration = Duration::from_secs(60);

pub(super) async fn serve(
    store: &Arc<Store>,
    serving: &Semaphore,
    mut stream: Stream,
    sent: &Cell<u64>,
) -> io::Result<()> {
    loop {
        let mut hash = Hash::default();
        let asked = async {
            let first = stream.read(&mut hash.0[..]).await?;
            if first > 0 {
                stream.read_exact(&mut hash.0[first..]).await?;
            }
            Ok(first > 0)
        };
        if !within(IDLE, "nothing was asked", asked).await? {
            return stream.close().await;
        }
        let _permit = serving.acquire().await;
        let from = Arc::clone(store);
        let answer = match smol::unblock(move || from.read(hash)).await {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    log::warn!("{error}");
                }
                None
            }
        };
        let write = async {
            let bytes = answer.as_deref().unwrap_or_default();
            let length = answer.as_ref().map_or(Some(LACKS), |b| u32::try_from(b.len()).ok());
            stream.write_all(&length.unwrap_or(LACKS).to_le_bytes()).await?;
            stream.write_all(bytes).await?;
            stream.flush().await
        };
        within(IDLE, "a chunk was not taken", write).await?;
        sent.set(sent.get() + u64::from(answer.is_some()));
    }
}
