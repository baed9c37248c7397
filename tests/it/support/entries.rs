//! Reads the objects of a stream with `format=entries` as the entries of gRPC that they describe.

use leasemux::model::proto::lease::{
    Cursor, Gap, LinePart, ReplicaEvent, ServiceLogs, SourceState, gap, line_part, replica_event,
    source_state,
};
use prost_types::Timestamp;
use serde_json::Value;

/// Returns the entry of an object. With `timestamps`, each line begins with its time, as of a request with
/// timestamps. The bytes of a gap are left out.
pub(crate) fn entry(object: &Value, timestamps: bool) -> ServiceLogs {
    let number = |value: &Value| value.as_u64().unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let upper = |value: &Value| value.as_str().unwrap().to_uppercase();
    let cursor = object.get("cursor").map(|text| cursor(text.as_str().unwrap()));
    let instance = text(&object["instance"]);
    let part = object.get("part").map(|part| {
        let stream = part.get("stream").map(|stream| format!("STREAM_{}", upper(stream)));
        let stream = stream.map(|name| line_part::Stream::from_str_name(&name).unwrap());
        let bool = |key: &str| part[key].as_bool().unwrap();
        let stream = stream.unwrap_or_default().into();
        LinePart { stream, continues: bool("continues"), more: bool("more") }
    });
    let event = object.get("event").map(|event| ReplicaEvent {
        kind: replica_event::Kind::from_str_name(&upper(&event["kind"])).unwrap().into(),
        instance: instance.clone(),
        time: object.get("time").map(time),
        exit_code: event.get("exit_code").map(|code| i32::try_from(code.as_i64().unwrap()).unwrap()),
        signal: event.get("signal").map(|signal| i32::try_from(signal.as_i64().unwrap()).unwrap()),
        reason: text(&event["reason"]),
        message: text(&event["message"]),
    });
    let gap = object.get("gap").map(|gap| Gap {
        lines: number(&gap["lines"]),
        bytes: number(&gap["bytes"]),
        exact: gap["exact"].as_bool().unwrap(),
        from: gap.get("from").map(time),
        to: gap.get("to").map(time),
        cause: gap::Cause::from_str_name(&upper(&gap["cause"])).unwrap().into(),
    });
    let source = object.get("source").map(|source| SourceState {
        state: source_state::State::from_str_name(&upper(&source["state"])).unwrap().into(),
        since: source.get("since").map(time),
        reason: text(&source["reason"]),
        lines_left: source.get("lines_left").map(number),
    });
    if let (Some(cursor), None) = (&cursor, &event) {
        assert_eq!(cursor.instance, instance, "{object}");
    }
    let mut logs = String::new();
    for line in object["lines"].as_array().into_iter().flatten() {
        if let Some(time) = line["time"].as_str().filter(|_| timestamps) {
            logs.push_str(time);
            logs.push(' ');
        }
        logs.push_str(line["text"].as_str().unwrap());
        logs.push_str(if part.is_some_and(|part| part.more) { "" } else { "\n" });
    }
    ServiceLogs {
        name: text(&object["service"]),
        replica: u32::try_from(number(&object["replica"])).unwrap(),
        logs: logs.into_bytes().into(),
        cursor,
        gap,
        event,
        source,
        part,
    }
}

fn time(text: &Value) -> Timestamp {
    text.as_str().unwrap().parse().expect("a time of RFC 3339")
}

fn cursor(text: &str) -> Cursor {
    let parts: Vec<&str> = text.split(':').collect();
    let [service, replica, instance, time, ordinal, offset] = parts[..] else { panic!("{text}") };
    let time = time.split_once('.').map(|(seconds, nanos)| Timestamp {
        seconds: seconds.parse().unwrap(),
        nanos: nanos.parse().unwrap(),
    });
    Cursor {
        service: service.to_owned(),
        replica: replica.parse().unwrap(),
        instance: instance.to_owned(),
        time,
        ordinal: ordinal.parse().unwrap(),
        offset: offset.parse().unwrap(),
    }
}
