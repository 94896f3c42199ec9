//! The whole node as one component: five layers, one `handle`.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod api;

pub use api::*;
