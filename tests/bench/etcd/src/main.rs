//! `dugnad-bench-etcd ENDPOINT,.. put|get|cas CLIENTS SECONDS`: values of 256 bytes, each client
//! with one request at a time. Prints requests a second, and the 50th and 99th percentile in
//! microseconds.

use std::error::Error;
use std::time::{Duration, Instant};

use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::codec::ProstCodec;
use tonic::transport::{Channel, Endpoint};

const VALUE: usize = 256;
const KEYS: u64 = 2_000;
const CONNECTIONS: usize = 16;

/// The messages of etcd's API that are used, and of them the fields.
#[derive(Clone, PartialEq, prost::Message)]
struct Put {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Header {
    #[prost(int64, tag = "3")]
    revision: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Done {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Range {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Compare {
    /// 0: equal.
    #[prost(int32, tag = "1")]
    result: i32,
    /// 2: the revision of the last change.
    #[prost(int32, tag = "2")]
    target: i32,
    #[prost(bytes = "vec", tag = "3")]
    key: Vec<u8>,
    #[prost(int64, tag = "6")]
    revision: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Request {
    #[prost(message, optional, tag = "2")]
    put: Option<Put>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Txn {
    #[prost(message, repeated, tag = "1")]
    compare: Vec<Compare>,
    #[prost(message, repeated, tag = "2")]
    success: Vec<Request>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TxnDone {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(bool, tag = "2")]
    succeeded: bool,
}

type Outcome<T> = Result<T, Box<dyn Error>>;

async fn call<I, O>(to: &mut Grpc<Channel>, what: &'static str, message: I) -> Outcome<O>
where
    I: prost::Message + 'static,
    O: prost::Message + Default + 'static,
{
    to.ready().await?;
    let path = PathAndQuery::from_static(what);
    let codec = ProstCodec::<I, O>::default();
    Ok(to.unary(tonic::Request::new(message), path, codec).await?.into_inner())
}

/// One client, and how long each of its requests took, in microseconds.
async fn client(channel: Channel, what: String, number: u64, until: Instant) -> Outcome<Vec<u64>> {
    let (mut to, mut took, mut at) = (Grpc::new(channel), Vec::new(), 0);
    let value = vec![b'v'; VALUE];
    let mut next = number << 32;
    if what == "cas" {
        let put = Put { key: format!("cas/{number}").into_bytes(), value: value.clone() };
        let done: Done = call(&mut to, "/etcdserverpb.KV/Put", put).await?;
        at = done.header.unwrap_or_default().revision;
    }
    while Instant::now() < until {
        next += 1;
        let key = match what.as_str() {
            "cas" => format!("cas/{number}"),
            _ => format!("k/{}", next.wrapping_mul(0x9E37_79B9_7F4A_7C15) % KEYS),
        };
        let (key, begun) = (key.into_bytes(), Instant::now());
        let put = Put { key: key.clone(), value: value.clone() };
        match what.as_str() {
            "put" => drop(call::<_, Done>(&mut to, "/etcdserverpb.KV/Put", put).await?),
            "cas" => {
                let compare = Compare { result: 0, target: 2, key, revision: at };
                let txn = Txn { compare: vec![compare], success: vec![Request { put: Some(put) }] };
                let done: TxnDone = call(&mut to, "/etcdserverpb.KV/Txn", txn).await?;
                if !done.succeeded {
                    return Err("a cas of nobody else's key lost".into());
                }
                at = done.header.unwrap_or_default().revision;
            }
            _ => drop(call::<_, Done>(&mut to, "/etcdserverpb.KV/Range", Range { key }).await?),
        }
        took.push(u64::try_from(begun.elapsed().as_micros())?);
    }
    Ok(took)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [endpoints, what, clients, seconds] = &words[..] else {
        return Err("usage: ENDPOINT,.. put|get|cas CLIENTS SECONDS".into());
    };
    let (clients, seconds): (usize, u64) = (clients.parse()?, seconds.parse()?);
    let endpoints: Vec<&str> = endpoints.split(',').collect();
    let mut channels = Vec::new();
    for number in 0..clients.min(CONNECTIONS) {
        let to = format!("http://{}", endpoints[number % endpoints.len()]);
        channels.push(Endpoint::from_shared(to)?.tcp_nodelay(true).connect().await?);
    }
    let begun = Instant::now();
    let until = begun + Duration::from_secs(seconds);
    let all: Vec<_> = (0..clients)
        .map(|number| {
            let channel = channels[number % channels.len()].clone();
            let client = client(channel, what.clone(), number as u64, until);
            tokio::spawn(async move { client.await.map_err(|error| error.to_string()) })
        })
        .collect();
    let mut took = Vec::new();
    for client in all {
        took.extend(client.await??);
    }
    let elapsed = begun.elapsed().as_secs_f64();
    took.sort_unstable();
    let at = |hundredths: usize| took.get(took.len() * hundredths / 100).copied().unwrap_or(0);
    println!("{:.0} {} {}", took.len() as f64 / elapsed, at(50), at(99));
    Ok(())
}
