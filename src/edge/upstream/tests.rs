//! Tests over real sockets: a client, the gateway's part under test, and a stand-in of the provider, which
//! checks what it receives byte for byte.

mod grpc;
mod proxy;
mod smuggling;
mod splice;
mod support;
mod websocket;
