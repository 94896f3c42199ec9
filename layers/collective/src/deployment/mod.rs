//! Service deployment (paper 3.4.4), which uses all the others.
//!
//! `deployer` decides how many replicas, `allocator` where, `manager` keeps them there
//! (self-healing), `client` is how a person or another node asks.

pub mod allocator;
pub mod client;
pub mod deployer;
pub mod manager;
pub mod service;
pub mod trees;
