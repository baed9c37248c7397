// The modules of the page that need no browser: rows, order, filter, and entries of the stream.
//
// Run by `tests/it/ui.rs` as `node ui_modules.mjs MODULES PAGE`. PAGE is the directory of the page. Prints `done` at the end.

import assert from "node:assert/strict";
import { join } from "node:path";
import { report } from "./loss_check.mjs";

const page = process.argv[3];
const load = (name) => import(join(page, name));
const { plainText, visible } = await load("ansi.js");
const { Reader, cursorText, logQuery, parseCursor } = await load("connection.js");
const { View, compile, matches } = await load("filter.js");
const { Ordering } = await load("order.js");
const { CHARACTERS_MAX, ROWS_MAX, Store, lineText } = await load("store.js");
const { duration, parseTime, rfc3339, timeText } = await load("time.js");

/** A generator of pseudorandom numbers, so that a failure repeats. */
let seed = 7;
const random = (below) => {
  seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
  return seed % below;
};

const row = (source, seconds, data) => ({ source, seconds, nanos: 0, ordinal: 1, data });
const texts = (store) => {
  const all = [];
  store.each(store.first, store.end, (block, at) => all.push(lineText(block.data[at])));
  return all;
};

// === Rows ===

{
  const store = new Store();
  assert.equal(store.source("web", 0, "u/web/0"), store.source("web", 0, "u/web/0"));
  assert.notEqual(store.source("web", 0, "u/web/0"), store.source("web", 0, "u/web/1"));
  const total = ROWS_MAX + 10_000;
  for (let number = 0; number < total; number += 1) store.append(row(0, number, `line ${number}`));
  assert.equal(store.end, total);
  assert.ok(store.end - store.first <= ROWS_MAX && store.end - store.first > ROWS_MAX - 10_000);
  assert.equal(store.dropped, store.first);
  for (const number of [store.first, store.first + 5_000, total - 1]) assert.equal(store.row(number).data, `line ${number}`);
}
{
  // Insertions at random places, beside a plain array.
  const store = new Store();
  const expected = [];
  for (let number = 0; number < 10_000; number += 1) {
    store.append(row(0, number, `${number}`));
    expected.push(`${number}`);
  }
  for (let round = 0; round < 20; round += 1) {
    const at = random(expected.length);
    const inserted = Array.from({ length: 1 + random(6_000) }, (_, index) => `${round}.${index}`);
    const layout = store.layout;
    store.replace(at, inserted.map((text) => row(0, 0, text)));
    expected.splice(at, 1, ...inserted);
    assert.notEqual(store.layout, layout);
    store.append(row(0, 0, "last"));
    expected.push("last");
  }
  assert.deepEqual(texts(store), expected);
  assert.equal(store.row(store.first + 777).data, expected[777]);
  const characters = expected.reduce((sum, text) => sum + text.length, 0);
  assert.equal(store.characters, characters);
}
{
  // Unfinished lines count, however long they grow.
  const store = new Store();
  const piece = "x".repeat(1024 * 1024);
  for (let number = 0; number < 400; number += 1) {
    const line = { kind: "line", text: "", version: 0 };
    store.append(row(0, number, line));
    store.grow(line, piece);
    assert.equal(line.version, 1);
  }
  assert.ok(store.characters <= CHARACTERS_MAX + 32 * piece.length, `${store.characters}`);
  assert.ok(store.dropped > 100);
}

// === Order ===

for (let round = 0; round < 200; round += 1) {
  const ordering = new Ordering();
  const replicas = 1 + random(5);
  const times = Array(replicas).fill(0);
  let count = 0;
  for (let entry = 0; entry < 300; entry += 1) {
    const replica = random(replicas);
    times[replica] += random(3);
    ordering.push(`web/${replica}`, { replica, seconds: times[replica], nanos: 0, count: (count += 1) });
  }
  const rows = [];
  ordering.drain((one) => rows.push(one));
  assert.equal(rows.length, 300);
  assert.equal(ordering.count, 0);
  for (let at = 1; at < rows.length; at += 1) {
    assert.ok(rows[at - 1].seconds <= rows[at].seconds, "ordered by time");
  }
  for (let replica = 0; replica < replicas; replica += 1) {
    const own = rows.filter((one) => one.replica === replica).map((one) => one.count);
    assert.deepEqual(own, [...own].sort((one, other) => one - other), "the order of one replica");
  }
}

// === Filter ===

for (let round = 0; round < 100; round += 1) {
  const store = new Store();
  store.source("web", 0, "a");
  store.source("web", 1, "b");
  const view = new View(store);
  view.expression = round % 4 === 0 ? null : compile("hit", false, false);
  view.context = random(4);
  if (round % 3 === 0) view.hidden.add("web/1");
  view.reset();
  const all = [];
  for (let part = 0; part < 5; part += 1) {
    for (let number = 0; number < random(60); number += 1) {
      const kind = random(12);
      const data = kind === 0 ? { kind: "gap" } : kind === 1 ? "a \x1b[31mHI\x1b[0mT" : "another line";
      const one = row(random(2), 0, data);
      store.append(one);
      all.push(one);
    }
    view.step();
    assert.ok(view.isCurrent);
    const shown = all.map((one, number) => ({ ...one, number })).filter((one) => !(view.hidden.has("web/1") && one.source === 1));
    const lines = shown.filter((one) => typeof one.data === "string");
    const isHit = (one) => view.expression === null || one.data.includes("\x1b");
    const wanted = new Set();
    lines.forEach((one, at) => {
      if (isHit(one)) lines.slice(Math.max(0, at - view.context), at + view.context + 1).forEach((near) => wanted.add(near.number));
    });
    const expected = shown.filter((one) => typeof one.data !== "string" || wanted.has(one.number)).map((one) => one.number);
    const found = Array.from({ length: view.count }, (_, index) => view.number(index));
    assert.deepEqual(found, expected);
    found.forEach((number, index) => assert.equal(view.index(number), index));
  }
}
assert.deepEqual(matches(compile("o", false, false), "\x1b[1mfoo\x1b[0m O"), [[1, 2], [2, 3], [4, 5]]);
assert.deepEqual(matches(compile("x*", true, false), "abc"), [], "empty matches");
assert.throws(() => compile("(", true, false));
assert.equal(compile("(", false, true).flags, "gu");

// === Entries ===

const entry = (ordinal, lines, more = {}) => ({
  service: "web",
  replica: 0,
  instance: "u/web/0",
  lines: lines.map(([time, text]) => ({ time: time === null ? undefined : `2026-01-01T00:00:00.00000000${time}Z`, text })),
  cursor: `web:0:u/web/0:1767225600.00000000${ordinal}:0`,
  ...more,
});
{
  const store = new Store();
  const rows = [];
  const reader = new Reader(store, (_, one) => rows.push(one));
  // A stream that begins in the middle of a log: its end says how many lines of that time there are.
  reader.read(entry("5:3", [[4, "a"], [5, "b"], [5, "c"], [5, "d"]]));
  // The clock went back, and on.
  reader.read(entry("6:1", [[3, "e"], [6, "f"]]));
  const cursors = rows.map((one) => cursorText({ ...store.sources[one.source], ...one }));
  assert.deepEqual(rows.map((one) => one.ordinal), [1, 1, 2, 3, 4, 1]);
  assert.equal(cursors[5], "web:0:u/web/0:1767225600.000000006:1:0");
  assert.equal(cursors[1], "web:0:u/web/0:1767225600.000000005:1:0");
  assert.deepEqual(reader.cursors(), ["web:0:u/web/0:1767225600.000000006:1:0"]);
  assert.equal(parseCursor(cursors[1]).ordinal, 1);

  // A line in pieces, with a line of the other stream in between.
  rows.length = 0;
  reader.read(entry("6:1", [[7, "50 %"]], { part: { stream: "stderr", continues: false, more: true }, cursor: "web:0:u/web/0:1767225600.000000006:1:4" }));
  reader.read(entry("7:2", [[8, "other"]]));
  reader.read(entry("7:3", [[null, " 100 %"]], { part: { stream: "stderr", continues: true, more: false } }));
  assert.deepEqual(rows.map((one) => lineText(one.data)), ["50 % 100 %", "other"]);
  reader.read(entry("7:4", [[null, "rest"]], { part: { stream: "stderr", continues: true, more: false } }));
  assert.equal(lineText(rows[2].data), "rest", "the rest of a line whose beginning was not sent");

  // Gaps know where they begin and end; repeated events are left out.
  rows.length = 0;
  const before = reader.cursors()[0];
  const gap = { lines: 3, bytes: 9, exact: true, cause: "lag" };
  reader.read(entry("9:1", [], { lines: undefined, gap }));
  assert.deepEqual(rows[0].data, { kind: "gap", gap, before, after: "web:0:u/web/0:1767225600.000000009:1:0" });
  const event = (kind, instance, reason) => ({ service: "web", replica: 0, instance, event: { kind, reason } });
  for (const [kind, instance, reason] of [
    ["ended", "u/web/0"], ["waiting", "", "CrashLoopBackOff"], ["waiting", "", "CrashLoopBackOff"], ["started", "u/web/1"],
    ["ended", "u/web/0"], ["started", "u/web/1"], ["waiting", "", "CrashLoopBackOff"],
  ]) {
    reader.read(event(kind, instance, reason));
  }
  assert.deepEqual(rows.slice(1).map((one) => one.data.event.kind), ["ended", "waiting", "started", "waiting"]);
  // Heartbeats are no rows.
  const count = rows.length;
  reader.read({ service: "web", replica: 1, source: { state: "live" }, cursor: "web:1:u/web/0::0:0" });
  assert.equal(rows.length, count);
  assert.equal(reader.cursors().length, 2);
}
{
  const query = logQuery({ tail: "100" }, []);
  assert.deepEqual([query.get("follow"), query.get("tail"), query.get("on_lag")], ["true", "100", "drop"]);
  const resumed = logQuery({ tail: "100" }, ["a", "b"]);
  assert.deepEqual([resumed.getAll("resume"), resumed.has("tail")], [["a", "b"], false]);
  assert.equal(logQuery({ previous: true }, []).has("follow"), false);
}

// === Texts ===

assert.equal(plainText("\x1b[1;31mred\x1b[0m \x1b]0;t\x07"), "red \x1b]0;t\x07");
assert.deepEqual(["\x1b", "\x7f", "\x00", "\u202e", "\u{e0041}"].map(visible), ["^[", "^?", "^@", "<U+202E>", "<U+E0041>"]);
assert.deepEqual(parseTime("2026-01-31T12:00:00.000000005Z"), { seconds: 1769860800, nanos: 5 });
assert.equal(parseTime("no time at all, but long"), null);
assert.equal(parseTime(undefined), null);
assert.equal(rfc3339(1769860800, 5), "2026-01-31T12:00:00.000000005Z");
assert.equal(timeText(1769860800, 5e6, "utc", 0), "01-31 12:00:00.005Z");
assert.equal(timeText(1769860800, 0, "relative", 1769860800 + 3700), "1h 1m ago");
assert.equal(timeText(-Infinity, 0, "utc", 0), "");
assert.deepEqual([0, 59, 60, 3661, 90_000].map(duration), ["0s", "59s", "1m", "1h 1m", "1d 1h"]);

report("done");
