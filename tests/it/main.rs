//! leasemux from outside: everything over real gRPC.
//!
//! Tests with the fake platform of [`support::fake_platform`] use in-memory pipes and paused time. Tests with
//! real processes and sockets wait for conditions under a generous deadline. No test sleeps, and each test of
//! logs ends with the loss check.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod auth;
mod canary;
mod certificates;
mod chain;
mod cli;
mod commands;
mod contexts;
mod contract;
mod crash;
mod demo;
mod deploy;
mod docs;
mod draft_client;
mod exchange;
mod fleet;
mod flow_control;
mod front;
mod fuzz;
mod gateway;
mod identity;
mod interop;
mod kube;
mod local;
mod logs;
mod malicious_peers;
mod metrics;
mod modules;
#[cfg(feature = "nats")]
mod nats;
mod output;
mod platform;
mod printing;
mod prometheus;
mod published;
mod quotas;
mod random;
mod rest;
mod restart;
mod shutdown;
mod simulation;
mod soak;
mod status;
mod support;
mod surface;
mod tls;
mod tokens;
mod ui;
