//! `dugnad connect`: stdin and stdout joined to a replica of a service.

use std::io::{self, Read as _};

use argh::FromArgs;
use hyper::body::Bytes;
use smol::channel::{Sender, bounded};

use super::{Cx, Failure, Outcome, services};
use crate::control::exit;
use crate::text::percent_encode;

/// connect stdin and stdout to a replica of a service
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "connect",
    example = "{command_name} redis\n{command_name} redis@2\n{command_name} 'redis@zone=attic'",
    note = "Bytes go as they are, whatever the service speaks. It ends when the service ends the \
            connection; the end of stdin is passed on. After @: the number of a replica, or a \
            condition on its node (`dugnad describe` shows what can be asked for)."
)]
pub(super) struct Connect {
    /// a service, or SERVICE@WHICH
    #[argh(positional)]
    pub(super) service: String,
}

/// Bytes that are read of stdin at once.
const PIECE: usize = 32 << 10;

pub(super) fn connect(args: &Connect, cx: &mut Cx<'_>) -> Outcome {
    let (name, which) = args.service.split_once('@').unwrap_or((&args.service, ""));
    let name = services::name(name)?;
    let which = percent_encode(which).replace('/', "%2F");
    let path = format!("/v1/connect/{name}?which={which}");
    let client = cx.client()?;
    let (blocks, from) = bounded(4);
    // It ends with the process: nobody can take a reading thread its stdin.
    std::thread::spawn(move || pass_on(&blocks));
    smol::block_on(async {
        let mut back = client.connect(&path, from).await?;
        while let Some(block) = back.next().await? {
            let written = cx.out.write_all(&block).and_then(|()| cx.out.flush());
            if written.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
                break;
            }
            written.map_err(|error| Failure::failed(format!("stdout: {error}")))?;
        }
        Ok(exit::DONE)
    })
}

fn pass_on(blocks: &Sender<Bytes>) {
    let mut block = vec![0; PIECE];
    let mut stdin = io::stdin().lock();
    while let Ok(read) = stdin.read(&mut block) {
        let piece = Bytes::copy_from_slice(&block[..read]);
        if read == 0 || blocks.send_blocking(piece).is_err() {
            return;
        }
    }
}
