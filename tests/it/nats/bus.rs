//! The bus alone.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use leasemux::exchange::bus::{
    Bus, Channel, RequestError, SUBSCRIPTION_MESSAGES, Subscription, UNSENT_MAX_BYTES,
};
use leasemux::exchange::gateway_id::GatewayId;
use leasemux::exchange::nats::NatsBus;
use rustix::process::Signal;
use tokio::time::timeout;

use super::server::{NatsServer, in_time, until, until_away, until_up};

/// A timeout that no test reaches, unless it tests that.
const LONG: Duration = Duration::from_secs(100);

fn payload(number: u32) -> Bytes {
    number.to_string().into()
}

/// Publishes until a message arrives: after a connection is back, other gateways may still be without.
async fn until_delivered(from: &NatsBus, to: &NatsBus) {
    let mut messages = to.subscribe(Channel::Frames, "lm.test.f.probe");
    loop {
        from.publish(Channel::Frames, "lm.test.f.probe", None, Bytes::new());
        if timeout(Duration::from_millis(50), messages.next()).await.is_ok() {
            return;
        }
    }
}

#[tokio::test]
async fn messages_arrive_in_order_also_at_their_sender() {
    let Some(server) = NatsServer::start() else { return };
    let (one, other) = (server.bus().await, server.bus().await);
    let mut at_other = other.subscribe(Channel::Frames, "lm.test.f.*");
    until_delivered(&one, &other).await;
    let mut at_one = one.subscribe(Channel::Frames, "lm.test.f.a");
    for number in 0..1_000 {
        one.publish(Channel::Frames, "lm.test.f.a", Some("answers.here"), payload(number));
    }
    for number in 0..1_000 {
        let here = in_time(at_one.next()).await.unwrap();
        assert_eq!((here.payload, here.reply.as_deref()), (payload(number), Some("answers.here")));
    }
    let mut there = Vec::new();
    while there.len() < 1_000 {
        there.extend(in_time(at_other.next()).await.filter(|message| message.reply.is_some()));
    }
    assert!((0..).zip(&there).all(|(number, message)| message.payload == payload(number)));
    // Dropping it unsubscribes: requests find no gateway.
    let listening = other.subscribe(Channel::Control, "lm.test.o.a");
    let mut answers = other.request("lm.test.o.a", Bytes::new(), Duration::from_millis(200));
    assert_eq!(in_time(answers.next()).await, Some(Err(RequestError::Timeout)));
    drop(listening);
    let mut answers = other.request("lm.test.o.a", Bytes::new(), LONG);
    assert_eq!(in_time(answers.next()).await, Some(Err(RequestError::NoResponders)));
    assert_eq!(in_time(answers.next()).await, None);
    assert_eq!((one.totals().unsent, other.totals().overflowed), (0, 0));
}

#[tokio::test]
async fn request_gets_the_answers_of_all_gateways() {
    let Some(server) = NatsServer::start() else { return };
    let (one, other, third) = (server.bus().await, server.bus().await, server.bus().await);
    let mut requests = [&other, &third].map(|bus| bus.subscribe(Channel::Control, "lm.test.o.a"));
    // Each has subscribed once its own request returns.
    for bus in [&other, &third] {
        let _ = in_time(bus.request("lm.test.o.none", Bytes::new(), LONG).next()).await;
    }
    let mut answers = one.request("lm.test.o.a", payload(1), LONG);
    for (bus, requests) in [&other, &third].into_iter().zip(&mut requests) {
        let request = in_time(requests.next()).await.unwrap();
        assert_eq!(request.payload, payload(1));
        // Up to 280 kB.
        bus.publish(Channel::Control, &request.reply.unwrap(), None, vec![7; 280_000].into());
    }
    for _ in 0..2 {
        assert_eq!(in_time(answers.next()).await.unwrap().unwrap().len(), 280_000);
    }
    assert_eq!(one.totals().received_bytes, 2 * 280_000);
}

#[tokio::test]
async fn full_subscription_drops_and_counts() {
    let Some(server) = NatsServer::start() else { return };
    let (one, other) = (server.bus().await, server.bus().await);
    let mut slow = other.subscribe(Channel::Frames, "lm.test.f.a");
    until_delivered(&one, &other).await;
    let extra = 100;
    let mut own = one.subscribe(Channel::Frames, "lm.test.f.a");
    for _ in 0..SUBSCRIPTION_MESSAGES + extra {
        one.publish(Channel::Frames, "lm.test.f.a", None, Bytes::from_static(b"line"));
        in_time(own.next()).await.unwrap();
    }
    // Not all are told: the library drops reports of drops.
    until("no message was dropped", || other.totals().overflowed > 0).await;
    until_delivered(&one, &other).await;
    for _ in 0..SUBSCRIPTION_MESSAGES {
        in_time(slow.next()).await.unwrap();
    }
    one.publish(Channel::Frames, "lm.test.f.a", None, Bytes::from_static(b"last"));
    assert_eq!(in_time(slow.next()).await.unwrap().payload, "last");
    assert_eq!(one.totals().unsent, 0);
}

#[tokio::test]
async fn killed_server_drops_messages_until_it_is_back() {
    let Some(mut server) = NatsServer::start() else { return };
    let (one, other) = (server.bus().await, server.bus().await);
    let mut messages = other.subscribe(Channel::Frames, "lm.test.f.a");
    server.kill();
    until_away(&one).await;
    until_away(&other).await;
    let before = one.totals().unsent;
    one.publish(Channel::Frames, "lm.test.f.a", None, payload(1));
    assert_eq!(one.totals().unsent, before + 1);
    let mut answers = one.request("lm.test.o.a", Bytes::new(), LONG);
    assert_eq!(in_time(answers.next()).await, Some(Err(RequestError::Unavailable)));
    // More than the library's queue holds.
    let while_away = (0..3_000).map(|_| other.subscribe(Channel::Control, "lm.test.c.a"));
    let while_away: Vec<Subscription> = while_away.collect();
    server.restart();
    until_up(&one).await;
    until_up(&other).await;
    until_delivered(&one, &other).await;
    one.publish(Channel::Frames, "lm.test.f.a", None, payload(2));
    assert_eq!(in_time(messages.next()).await.unwrap().payload, payload(2));
    let arriving = while_away.into_iter().map(async |mut subscription| subscription.next().await.unwrap());
    let mut arriving: FuturesUnordered<_> = arriving.collect();
    let all = async {
        while !arriving.is_empty() {
            one.publish(Channel::Control, "lm.test.c.a", None, Bytes::new());
            let arrived = async { while arriving.next().await.is_some() {} };
            _ = timeout(Duration::from_millis(100), arrived).await;
        }
    };
    in_time(all).await;
}

#[tokio::test]
async fn hanging_server_counts_as_away_and_keeps_little() {
    let Some(server) = NatsServer::start() else { return };
    let bus = server.bus().await;
    let mut messages = bus.subscribe(Channel::Frames, "lm.test.f.a");
    until_delivered(&bus, &bus).await;
    server.signal(Signal::STOP);
    // Fills the buffers of the kernel, then the queue.
    let block = Bytes::from(vec![7; 256 * 1024]);
    let mut published = 0;
    while bus.totals().unsent == 0 {
        published += 1;
        bus.publish(Channel::Frames, "lm.test.f.a", None, block.clone());
        tokio::task::yield_now().await;
    }
    assert!(published * block.len() > UNSENT_MAX_BYTES);
    until_away(&bus).await;
    server.signal(Signal::CONT);
    until_up(&bus).await;
    until_delivered(&bus, &bus).await;
    bus.publish(Channel::Frames, "lm.test.f.a", None, payload(1));
    let last = async { while messages.next().await.unwrap().payload != payload(1) {} };
    in_time(last).await;
}

#[tokio::test]
async fn idle_connection_notices_a_hanging_server() {
    let Some(server) = NatsServer::start() else { return };
    let bus = server.bus().await;
    server.signal(Signal::STOP);
    until_away(&bus).await;
    server.signal(Signal::CONT);
    until_up(&bus).await;
}

#[tokio::test]
async fn flushed_messages_outlive_their_sender() {
    let Some(server) = NatsServer::start() else { return };
    let other = server.bus().await;
    let channels = [(Channel::Frames, "lm.test.f.a"), (Channel::Control, "lm.test.c.a")];
    let mut subscriptions = channels.map(|(channel, subject)| other.subscribe(channel, subject));
    until_delivered(&other, &other).await;
    // Each has subscribed once a request of its connection returns.
    let _ = in_time(other.request("lm.test.o.none", Bytes::new(), LONG).next()).await;
    let (messages, block) = (500, Bytes::from(vec![7; 8 * 1024]));
    let options = server.options();
    let sender = std::thread::spawn(move || {
        // Its tasks end with the runtime, whatever waits to be sent.
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let bus = NatsBus::start(&options, GatewayId::random()).await.unwrap();
            until_up(&bus).await;
            for _ in 0..messages {
                for (channel, subject) in channels {
                    bus.publish(channel, subject, None, block.clone());
                }
            }
            in_time(bus.flush()).await;
            assert_eq!(bus.totals().unsent, 0);
        });
        runtime.shutdown_background();
    });
    for subscription in &mut subscriptions {
        for _ in 0..messages {
            assert_eq!(in_time(subscription.next()).await.unwrap().payload.len(), 8 * 1024);
        }
    }
    sender.join().unwrap();
}

#[tokio::test]
async fn flush_without_a_server_ends_at_once() {
    let Some(mut server) = NatsServer::start() else { return };
    let bus = server.bus().await;
    server.kill();
    until_away(&bus).await;
    in_time(bus.flush()).await;
}

#[tokio::test]
async fn bus_starts_without_a_server() {
    let Some(mut server) = NatsServer::start() else { return };
    server.kill();
    let bus = NatsBus::start(&server.options(), GatewayId::random()).await.unwrap();
    let mut messages = bus.subscribe(Channel::Frames, "lm.test.f.a");
    bus.publish(Channel::Frames, "lm.test.f.a", None, payload(1));
    assert_eq!(bus.totals().unsent, 1);
    server.restart();
    until_up(&bus).await;
    bus.publish(Channel::Frames, "lm.test.f.a", None, payload(2));
    assert_eq!(in_time(messages.next()).await.unwrap().payload, payload(2));
}
