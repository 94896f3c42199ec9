//! Samples of objects: their messages, and what of them is stored.

use dugnad_collective::objects::item::{Address, Content, Manner, Namespace, Object, Seal};
use dugnad_collective::objects::siblings::{self, Context, Siblings};
use dugnad_collective::objects::sums::{Listed, NodeSums};
use dugnad_collective::objects::{Msg, Request, Response};

use super::{Variants, every, id, record, tree};
use crate::Lines;

variants!(Msg, "objects":
    Request => request named, Response => response named, Changed);
variants!(Request, "objectrequest": Read, Add, List, Watch, Clock);
variants!(Response, "objectresponse": Read, Added, Full, Listed, Clock, NotOwner);
variants!(Content, "content": Inline, Blob, Folder);
variants!(Manner, "manner": Last, Merge, Strong);

fn address() -> Address {
    Address { namespace: "notes".into(), path: "2026/today".into() }
}

/// As two writers left it who did not know of each other.
fn siblings() -> Siblings {
    let mut siblings = Siblings::new(address());
    for value in [&b"a"[..], b"b"] {
        let content = Some(Content::Inline(value.to_vec()));
        siblings.write(id(1), &Context::default(), content).unwrap();
    }
    siblings
}

pub(crate) fn messages() -> Vec<Msg> {
    let siblings = siblings();
    let context = siblings::merge([(id(1), &siblings)].into_iter()).context;
    let (content, seen) = (Some(Content::Inline(vec![1])), Some(context.clone()));
    let requests = [
        Request::Read { key: id(9) },
        Request::Add { address: address(), content, context: seen },
        Request::List { namespace: "notes".into(), prefix: "2026".into(), after: "2026/a".into() },
        Request::Watch { key: id(9) },
        Request::Clock { unix_ms: 1 << 41 },
    ];
    let listed = Listed { path: "2026/today".into(), version: 1 << 57, bytes: 300, values: 1 };
    let responses = [
        Response::Read { records: vec![record()] },
        Response::Added { holders: vec![id(1)], context },
        Response::Full,
        Response::Listed { objects: vec![listed], more: true },
        Response::Clock { ahead_ms: 3_600_000 },
        Response::NotOwner,
    ];
    let mut all: Vec<Msg> = Vec::new();
    all.extend(requests.map(|request| Msg::Request { call: 7, request }));
    all.extend(responses.map(|response| Msg::Response { call: 7, response }));
    all.push(Msg::Changed { record: record() });
    all
}

pub(crate) fn stored(lines: &mut Lines) {
    let folder = Content::Folder { tree: tree(), note: vec![3] };
    let contents = [Content::Inline(vec![1, 2]), Content::Blob(tree()), folder];
    let object = |content| Object { address: address(), content };
    every(lines, "object", contents, object);
    lines.stored("siblings", &siblings());
    let namespace = |manner| Namespace {
        manner,
        read_only: true,
        shared: vec!["wiki".into()],
        ..Namespace::plain("notes")
    };
    every(lines, "namespace", [Manner::Last, Manner::Merge, Manner::Strong], namespace);
    let sealed = Namespace { seal: Some(Seal([5; 8])), ..namespace(Manner::Last) };
    lines.stored("namespace_sealed", &sealed);
}

pub(crate) fn sums() -> NodeSums {
    NodeSums {
        node: id(1),
        name: "pi".into(),
        given: 2 << 30,
        keys: 9,
        copies: 27,
        records: 40,
        record_bytes: 4_000,
        trees: 2,
        tree_bytes: 1 << 20,
        missing: 1,
        uncompared: 2,
        namespaces: vec![("notes".into(), 9, 300)],
    }
}
