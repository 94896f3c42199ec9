//! Samples of how nodes are described and looked for.

use dugnad_kernel::Hash;
use dugnad_resource::attributes::NODE;
use dugnad_resource::availability::Availability;
use dugnad_resource::condition::Condition;
use dugnad_resource::describe::{Description, Labels, Machine, Profile};
use dugnad_resource::spec::Arch;

use dugnad_collective as collective;
use dugnad_collective::prospector::{Msg, Request, Response};

use super::{Variants, amounts, peer};

variants!(Msg, "prospector": Request => request named, Response => response named);
variants!(Request, "request": Search, Check);
variants!(Response, "response": Hits, NoSample, Is, NotMeant);

pub(super) fn messages() -> impl Iterator<Item = collective::Msg> {
    let requests = [
        Request::Search { condition: condition(), want: 3 },
        Request::Check { condition: condition() },
    ];
    let responses = [
        Response::Hits { peers: vec![peer(1)], age_secs: 30 },
        Response::NoSample,
        Response::Is(Box::new(description())),
        Response::NotMeant,
    ];
    let requests = requests.map(|request| Msg::Request { call: 7, request });
    let responses = responses.map(|response| Msg::Response { call: 7, response });
    requests.into_iter().chain(responses).map(collective::Msg::Prospector)
}

/// One test of each kind.
pub(super) fn condition() -> Condition {
    let typed =
        "name !exists node exists cores in 1,3 arch in aarch64,armv7 zone!=attic tags~solar";
    Condition::parse(typed, &NODE).unwrap()
}

pub(super) fn description() -> Description {
    Description {
        peer: peer(1),
        profile: Profile {
            version: "0.1.0".into(),
            machine: Machine { features: vec!["asimd".into()], cores: 4, speed: 300, ram: 1 << 30 },
            labels: Labels {
                zone: "attic".into(),
                tags: vec!["solar".into()],
                uplink: Some(300 << 10),
            },
            ..Profile::plain("pi", Arch::Aarch64, 77)
        },
        free: amounts(),
        gives: amounts(),
        takes_work: true,
        up_secs: 3_600,
        replicas: 2,
        holds: vec![Hash([7; 32])],
        programs: vec!["/usr/bin/python3".into()],
        availability: Availability::default(),
    }
}
