//! Names of the messages, for counters: a storm must be visible by name from outside.

use dugnad_collective::persistence::sync::SyncMsg;
use dugnad_collective::{
    self as collective, deployment, linear, objects, packages, persistence, prospector, pubsub,
};
use dugnad_connectivity as connectivity;
use dugnad_connectivity::entry::EntryMsg;
use dugnad_connectivity::group::directory::DirectoryAsk;
use dugnad_connectivity::route::RouteMsg;
use dugnad_connectivity::tree::broadcast::CastMsg;
use dugnad_connectivity::tree::bulk::BulkMsg;
use dugnad_connectivity::{detector, group, overlay, ring};
use dugnad_resource::execute::{ToHost, ToManager};

use crate::Msg;

impl Msg {
    /// What kind of message it is, as counters and PROTOCOL.md 13 name
    /// it. The messages of a group's own ring count as `group_ring`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Connectivity(msg) => connected(msg),
            Self::Collective(msg) => community(msg),
            Self::ToHost(msg) => to_host(msg),
            Self::ToManager(msg) => to_manager(msg),
            Self::Away { .. } => "away",
        }
    }
}

const fn connected(msg: &connectivity::Msg) -> &'static str {
    match msg {
        connectivity::Msg::Overlay(msg) => in_overlay(msg),
        connectivity::Msg::Detect(detector::Msg::Ping) => "ping",
        connectivity::Msg::Detect(detector::Msg::Pong) => "pong",
        connectivity::Msg::Detect(detector::Msg::PingReq { .. }) => "ping_req",
        connectivity::Msg::Detect(detector::Msg::Reached { .. }) => "reached",
        connectivity::Msg::Detect(detector::Msg::Gone { .. }) => "gone",
        connectivity::Msg::Group(msg) => in_group(msg),
    }
}

const fn in_overlay(msg: &overlay::Msg) -> &'static str {
    use overlay::Msg;
    match msg {
        Msg::Ring(msg) => in_ring(msg),
        Msg::Route(RouteMsg::Hop(_)) => "route_hop",
        Msg::Route(RouteMsg::Ack { .. }) => "route_ack",
        Msg::Route(RouteMsg::Found { .. }) => "route_found",
        Msg::Route(RouteMsg::NotInside { .. }) => "route_not_inside",
        Msg::Route(RouteMsg::SuccHint { .. }) => "route_succ_hint",
        Msg::Cast(CastMsg::Down { .. }) => "cast_down",
        Msg::Cast(CastMsg::Up { .. }) => "cast_up",
        Msg::Cast(CastMsg::Alive { .. }) => "cast_alive",
        Msg::Cast(CastMsg::Unknown { .. }) => "cast_unknown",
        Msg::Entry(EntryMsg::Probe) => "probe",
        Msg::Entry(EntryMsg::ProbeRes { .. }) => "probe_res",
        Msg::Entry(EntryMsg::Merge { .. }) => "merge",
        Msg::Entry(EntryMsg::Hint { .. }) => "merge_hint",
        Msg::Bulk(BulkMsg::Down(_)) => "bulk_down",
        Msg::Bulk(BulkMsg::Served { .. }) => "bulk_served",
    }
}

const fn in_ring(msg: &ring::Msg) -> &'static str {
    match msg {
        ring::Msg::JoinRetry { .. } => "join_retry",
        ring::Msg::JoinPoint { .. } => "join_point",
        ring::Msg::NewSucc { .. } => "new_succ",
        ring::Msg::NewSuccAck { .. } => "new_succ_ack",
        ring::Msg::JoinDone { .. } => "join_done",
        ring::Msg::LeaveReq { .. } => "leave_req",
        ring::Msg::LeaveRetry { .. } => "leave_retry",
        ring::Msg::LeaveGrant { .. } => "leave_grant",
        ring::Msg::LeavePoint { .. } => "leave_point",
        ring::Msg::UpdateSucc { .. } => "update_succ",
        ring::Msg::UpdateSuccAck { .. } => "update_succ_ack",
        ring::Msg::LeaveDone { .. } => "leave_done",
        ring::Msg::Query { .. } => "ring_query",
        ring::Msg::QueryRes { .. } => "ring_query_res",
        ring::Msg::Moved { .. } => "moved",
        ring::Msg::Notify { .. } => "notify",
        ring::Msg::ListChanged => "list_changed",
    }
}

const fn community(msg: &collective::Msg) -> &'static str {
    match msg {
        collective::Msg::Persistence(msg) => in_persistence(msg),
        collective::Msg::Packages(packages::Msg::Held { .. }) => "tree_held",
        collective::Msg::Packages(packages::Msg::Mirror { .. }) => "tree_mirror",
        collective::Msg::Packages(packages::Msg::NotHeld { .. }) => "tree_not_held",
        collective::Msg::Deployment(msg) => in_deployment(msg),
        collective::Msg::Objects(msg) => in_objects(msg),
        collective::Msg::Linear(msg) => in_linear(msg),
        collective::Msg::PubSub(msg) => in_pubsub(msg),
        collective::Msg::Prospector(msg) => in_prospector(msg),
    }
}

const fn in_persistence(msg: &persistence::Msg) -> &'static str {
    use persistence::{Msg, Request, Response};
    match msg {
        Msg::Request { request, .. } => match request {
            Request::Put(_) => "put",
            Request::Copy(_) => "copy",
            Request::Get(_) => "get",
            Request::Decide { decide: DirectoryAsk::Get, .. } => "decide_get",
            Request::Decide { decide: DirectoryAsk::Cas { .. }, .. } => "decide_cas",
            Request::Claim { .. } => "claim",
        },
        Msg::Response { response, .. } => match response {
            Response::Put { .. }
            | Response::Copied
            | Response::Refused
            | Response::Get(_)
            | Response::NotOwner
            | Response::Decided(_)
            | Response::Taken(_) => "response",
        },
        Msg::Sync(SyncMsg::Digest { .. }) => "sync_digest",
        Msg::Sync(SyncMsg::Want { .. }) => "sync_want",
        Msg::Sync(SyncMsg::Items { .. }) => "sync_items",
    }
}

const fn in_deployment(msg: &deployment::Msg) -> &'static str {
    use deployment::{Msg, Request, Response};
    match msg {
        Msg::Request { request, .. } => match request {
            Request::Query { .. } => "service_query",
            Request::Why { .. } => "service_why",
            Request::Recall { .. } => "recall",
        },
        Msg::Response { response, .. } => match response {
            Response::View(_) => "service_view",
            Response::Unknown | Response::NotManager | Response::Why(_) | Response::Recalled(_) => {
                "response"
            }
        },
    }
}

const fn in_objects(msg: &objects::Msg) -> &'static str {
    use objects::{Msg, Request};
    match msg {
        Msg::Request { request, .. } => match request {
            Request::Read { .. } => "object_read",
            Request::Add { .. } => "object_add",
            Request::List { .. } => "object_list",
            Request::Watch { .. } => "object_watch",
            Request::Clock { .. } => "object_clock",
        },
        Msg::Response { .. } => "response",
        Msg::Changed { .. } => "object_changed",
    }
}

const fn in_prospector(msg: &prospector::Msg) -> &'static str {
    use prospector::{Msg, Request};
    match msg {
        Msg::Request { request: Request::Search { .. }, .. } => "node_search",
        Msg::Request { request: Request::Check { .. }, .. } => "node_check",
        Msg::Response { .. } => "response",
    }
}

const fn in_pubsub(msg: &pubsub::Msg) -> &'static str {
    use pubsub::{Msg, Request, Response};
    match msg {
        Msg::Request { request, .. } => match request {
            Request::Publish { .. } => "event_publish",
            Request::Subscribe { .. } => "event_subscribe",
            Request::Read { .. } => "event_read",
        },
        Msg::Response { response, .. } => match response {
            Response::Events { .. } => "event_page",
            Response::Published { .. }
            | Response::NotHere
            | Response::Unavailable
            | Response::Unfit => "response",
        },
        Msg::Events { .. } => "events",
        Msg::Moved { .. } => "event_moved",
    }
}

const fn in_linear(msg: &linear::Msg) -> &'static str {
    use linear::{Msg, Request};
    match msg {
        Msg::Request { request, .. } => match request {
            Request::Query { .. } => "register_query",
            Request::Prepare { .. } => "register_prepare",
            Request::Accept { .. } => "register_accept",
            Request::Propose { .. } => "view_propose",
            Request::Choose { .. } => "view_choose",
            Request::Commit { .. } => "view_commit",
            Request::Pull { .. } => "view_pull",
            Request::Release { .. } => "view_release",
            Request::Views => "views",
        },
        Msg::Response { .. } => "response",
        Msg::Told { .. } => "view_told",
    }
}

const fn to_host(msg: &ToHost) -> &'static str {
    match msg {
        ToHost::Reserve { .. } => "host_reserve",
        ToHost::Start { .. } => "host_start",
        ToHost::Stop { .. } => "host_stop",
        ToHost::Probe { .. } => "host_probe",
        ToHost::BeatAck { .. } => "beat_ack",
        ToHost::NotManager { .. } => "not_manager",
    }
}

const fn to_manager(msg: &ToManager) -> &'static str {
    match msg {
        ToManager::Reserved { .. } => "reserved",
        ToManager::Refused { .. } => "refused",
        ToManager::Beat { .. } => "beat",
        ToManager::Nothing { .. } => "nothing",
        ToManager::Deposed { .. } => "deposed",
        ToManager::Leaving { .. } => "leaving",
        ToManager::Load { .. } => "load",
    }
}

const fn in_group(msg: &group::Msg) -> &'static str {
    match msg {
        group::Msg::Request { .. } => "group_request",
        group::Msg::Response { .. } => "group_response",
        group::Msg::Hello { .. } => "group_hello",
        group::Msg::Members { .. } => "group_members",
        group::Msg::Gone { .. } => "group_gone",
        group::Msg::Bye { .. } => "group_bye",
        group::Msg::Outside { .. } => "group_outside",
        group::Msg::Cast { .. } => "group_cast",
        group::Msg::Checked { .. } => "group_checked",
        group::Msg::Nack { .. } => "group_nack",
        group::Msg::Repair { .. } => "group_repair",
        group::Msg::Token { .. } => "group_token",
        group::Msg::Taken { .. } => "group_taken",
        group::Msg::NotTaken { .. } => "group_not_taken",
        group::Msg::Ring { .. } => "group_ring",
    }
}
