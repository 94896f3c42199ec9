//! Resource (paper 3.3): how a node is described, what a service needs, and how a replica of it
//! is run on one node.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod attributes;
pub mod availability;
pub mod condition;
pub mod describe;
pub mod execute;
pub mod executor;
pub mod spec;
