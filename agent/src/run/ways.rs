//! Staying reachable: who is dialled when, and what happens when this machine's addresses change.
//!
//! A laptop wakes in another network, a board starts before its DHCP server: what was true at
//! start is not true now. The kernel tells when an address came or went; then everybody this node
//! speaks to is dialled anew and so learns where it is.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use dugnad_kernel::{Input, NodeId};
use dugnad_node::Command;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use smol::{Async, Timer};

use super::Agent;
use super::boot::home;
use crate::invite::usable_addrs;

/// While there is nobody to talk to, addresses are dialled again after 1 s, doubling to this.
const REDIAL_MAX: Duration = Duration::from_secs(15);
/// Otherwise it is looked whether a neighbour is without a session this often.
const LOOK: Duration = Duration::from_secs(60);
/// Several changes of addresses, and several new peers, come together.
const SETTLE: Duration = Duration::from_millis(300);
/// Peers dialled on the way in.
const KNOWN_MAX: usize = 32;
/// Where the kernel does not tell, the interfaces are looked at this often.
const POLL: Duration = Duration::from_secs(10);
/// Groups of rtnetlink(7): IPv4 and IPv6 addresses.
const GROUPS: u32 = 0x10 | 0x100;

impl Agent {
    /// Dials seeds and remembered peers while there is nobody to talk to, and neighbours that have
    /// no session with this node: perhaps only it can dial them.
    pub(super) async fn keep_dialling(self: Rc<Self>) {
        let mut wait = Duration::from_secs(1);
        loop {
            let lonely = self.links.peers().is_empty() || self.is_alone();
            if lonely {
                self.dial_all();
                self.dial_known();
            } else {
                self.dial_neighbours();
                wait = Duration::from_secs(1);
            }
            let pause = if lonely { wait } else { LOOK };
            let over = async {
                Timer::after(pause).await;
                false
            };
            // The channel lives as long as the agent.
            let rung = async { self.dial_soon.1.recv().await.is_ok() };
            wait = if smol::future::or(over, rung).await {
                Timer::after(SETTLE).await;
                Duration::from_secs(1)
            } else {
                (wait * 2).min(REDIAL_MAX)
            };
        }
    }

    fn is_alone(&self) -> bool {
        self.node.borrow().status().state != "member"
    }

    /// Has [`Self::keep_dialling`] look at once.
    pub(super) fn dial_soon(&self) {
        // It is full when it was asked already.
        _ = self.dial_soon.0.try_send(());
    }

    /// Everybody at the same time: a name that does not resolve delays nobody.
    fn dial_all(self: &Rc<Self>) {
        let remembered: Vec<SocketAddr> =
            self.remembered.borrow().peers().flat_map(|peer| peer.addrs.to_vec()).collect();
        remembered.into_iter().for_each(|addr| self.links.dial(addr));
        for seed in self.config.borrow().seeds.clone() {
            if let Ok(addr) = seed.parse::<SocketAddr>() {
                self.links.dial(addr);
                continue;
            }
            let agent = Rc::clone(self);
            self.detach(async move {
                match smol::net::resolve(seed.as_str()).await {
                    Ok(addrs) => addrs.into_iter().for_each(|addr| agent.links.dial(addr)),
                    Err(error) => log::warn!("seed {seed}: {error}"),
                }
            });
        }
    }

    /// Who is on the way in dials everybody it hears of: whoever is to let it in may not be able to
    /// dial it.
    fn dial_known(&self) {
        let node = self.node.borrow();
        let known: Vec<NodeId> = node.overlay().book().map(|peer| peer.id).collect();
        drop(node);
        known.into_iter().take(KNOWN_MAX).for_each(|id| self.links.connect(id));
    }

    fn dial_neighbours(&self) {
        let status = self.node.borrow().status();
        let neighbours = status.successors.iter().chain(&status.predecessor);
        let others: Vec<NodeId> = neighbours.copied().filter(|id| *id != self.me.id).collect();
        others.into_iter().for_each(|id| self.links.connect(id));
    }

    /// Follows the addresses of this machine's interfaces.
    pub(super) async fn follow_addresses(self: Rc<Self>) {
        let listen = self.links.local_addr();
        if !listen.ip().is_unspecified() {
            return;
        }
        let news = AddressNews::open();
        if let Err(error) = &news {
            log::debug!("the kernel does not tell of addresses ({error}); they are looked at");
        }
        let mut known = self.links.me().addrs.to_vec();
        loop {
            match &news {
                Ok(news) => news.next().await,
                Err(_) => _ = Timer::after(POLL).await,
            }
            Timer::after(SETTLE).await;
            match usable_addrs(listen) {
                Ok(now) if now != known => {
                    self.moved(&known, &now);
                    known = now;
                }
                Ok(_) => {}
                Err(error) => log::debug!("{error}"),
            }
        }
    }

    fn moved(self: &Rc<Self>, before: &[SocketAddr], now: &[SocketAddr]) {
        let text = |addrs: &[SocketAddr]| {
            let addrs: Vec<String> = addrs.iter().map(ToString::to_string).collect();
            if addrs.is_empty() { "none".to_owned() } else { addrs.join(", ") }
        };
        log::info!("addresses of this machine: {} (before: {})", text(now), text(before));
        self.links.moved(now);
        let addrs = self.links.me().addrs;
        self.input(Input::Command(Command::Addresses { addrs, home: home(now) }));
        self.dial_soon();
    }
}

/// What the kernel says when an address of an interface comes or goes.
struct AddressNews(Async<OwnedFd>);

impl AddressNews {
    fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let route = SockProtocol::NetlinkRoute;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, route)?;
        bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &NetlinkAddr::new(0, GROUPS))?;
        Ok(Self(Async::new(fd)?))
    }

    /// Waits for news; what exactly they are the interfaces tell better.
    async fn next(&self) {
        let mut buffer = [0; 8192];
        if self.0.readable().await.is_err() {
            // Should it ever fail: looking now and then is what is left.
            Timer::after(POLL).await;
        }
        let fd = std::os::fd::AsRawFd::as_raw_fd(&self.0);
        // All that waits; an error says that nothing does, or that some of it was lost.
        while recv(fd, &mut buffer, MsgFlags::MSG_DONTWAIT).is_ok_and(|count| count > 0) {}
    }
}
