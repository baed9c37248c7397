// The modules of the page that need no browser: rows, order, filter, and entries of the stream.
//
// Run by `tests/it/ui.rs` as `node ui_modules.mjs MODULES PAGE`. PAGE is the directory of the page. Prints `done` at the end.

import assert from "node:assert/strict";
import { join } from "node:path";
import { report } from "./loss_check.mjs";

const page = process.argv[3];
const load = (name) => import(join(page, name));
const { SHOWN_MAX, appendLine, plainText, visible, visibleText } = await load("ansi.js");
const { Channel, GapReader, LogStream, Reader, cursorText, logQuery, parseCursor } = await load("connection.js");
const { View, compile, isMatch, matches } = await load("filter.js");
const { Matcher, QUESTION_MAX, TEXTS_MAX } = await load("matcher.js");
const { leasePath } = await load("login.js");
const { describe, needsToken, openSocket, post, setToken } = await load("server.js");
const { Ordering } = await load("order.js");
const { Replicas, RestartDialog } = await load("replicas.js");
const { CHARACTERS_MAX, ROWS_MAX, Store, lineText } = await load("store.js");
const { duration, parseTime, rfc3339, timeText } = await load("time.js");

/** A generator of pseudorandom numbers, so that a failure repeats. */
let seed = 7;
const random = (below) => {
  seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
  return seed % below;
};

/** As much of an element as the modules need. */
class FakeElement {
  constructor(tag) {
    Object.assign(this, { tag, children: [], style: {}, dataset: {}, className: "", parts: {}, listeners: {} });
    this.classList = { add: (name) => (this.className = `${this.className} ${name}`.trim()) };
  }
  append(...children) {
    this.children.push(...children);
  }
  replaceChildren(...children) {
    this.children = children;
  }
  get textContent() {
    return this.children.map((child) => (typeof child === "string" ? child : child.textContent)).join("");
  }
  set textContent(text) {
    this.children = [text];
  }
  get elements() {
    const own = this.children.filter((child) => typeof child !== "string");
    return own.concat(own.flatMap((child) => child.elements));
  }
  addEventListener(type, action) {
    this.listeners[type] = action;
  }
  querySelector(selector) {
    return (this.parts[selector] ??= new FakeElement("part"));
  }
  setAttribute() {}
  focus() {}
  showModal() {}
  close() {}
}
globalThis.document = { createElement: (tag) => new FakeElement(tag) };
const frames = [];
globalThis.requestAnimationFrame = (action) => frames.push(action);

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
{
  // A line that was dropped counts no more, also when it grows.
  const store = new Store();
  const line = { kind: "line", text: "", version: 0 };
  store.append(row(0, 0, line));
  for (let number = 0; number < ROWS_MAX + 10_000; number += 1) store.append(row(0, number, ""));
  store.grow(line, "x".repeat(1000));
  assert.deepEqual([store.characters, line.text.length], [0, 1000]);
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
    while (!view.isCurrent) view.step();
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
{
  // A line that matches once it has grown, also between other rows.
  const store = new Store();
  store.source("web", 0, "a");
  const view = new View(store);
  view.expression = compile("100 %", false, false);
  view.reset();
  const line = { kind: "line", text: "50 %", version: 0 };
  for (const data of ["100 % a", line, "other"]) store.append(row(0, 0, data));
  const shown = () => {
    view.step();
    return Array.from({ length: view.count }, (_, index) => view.number(index));
  };
  assert.deepEqual(shown(), [0]);
  store.grow(line, " 100 %");
  store.append(row(0, 0, "100 % b"));
  assert.deepEqual([shown(), view.matched], [[0, 1, 3], 3]);
  store.grow(line, " more");
  assert.deepEqual([shown(), view.matched], [[0, 1, 3], 3]);
  // Lines of context appear once, also if they match later.
  view.context = 1;
  const other = { kind: "line", text: "5", version: 0 };
  for (const data of ["x", "y", other]) store.append(row(0, 0, data));
  view.reset();
  assert.deepEqual(shown(), [0, 1, 2, 3, 4]);
  store.grow(other, "100 %");
  assert.deepEqual(shown(), [0, 1, 2, 3, 4, 6]);
  store.append(row(0, 0, "100 % c"));
  assert.deepEqual(shown(), [0, 1, 2, 3, 4, 6, 7]);
}
{
  // A matcher that answers later: unfinished lines grow and rows are dropped meanwhile, and an old question has no effect.
  const store = new Store();
  store.source("web", 0, "a");
  const questions = [];
  let cancelled = 0;
  const matcher = {
    isBusy: false,
    ask(expression, texts, wantsMarks, done) {
      this.isBusy = true;
      questions.push({ texts, answer: () => {
        this.isBusy = false;
        done(texts.map((text) => (wantsMarks ? matches(expression, text) : isMatch(expression, text))));
      }, fail: () => {
        this.isBusy = false;
        done(null);
      } });
    },
    cancel() {
      cancelled += 1;
      this.isBusy = false;
    },
  };
  const answered = [];
  const view = new View(store, matcher, (areMarks) => answered.push(areMarks));
  const shown = () => Array.from({ length: view.count }, (_, index) => view.number(index));
  view.expression = compile("hi+t", true, false);
  view.isRegex = true;
  view.reset();
  const line = { kind: "line", text: "hi", version: 0 };
  for (const data of ["HIIT", line, { kind: "gap" }, "other"]) store.append(row(0, 0, data));
  view.step();
  assert.deepEqual([shown(), view.isCurrent, questions.length], [[], false, 1]);
  store.grow(line, "t");
  view.step();
  assert.equal(questions.length, 1, "one question at a time");
  questions[0].answer();
  assert.deepEqual([shown(), view.isCurrent, answered], [[0, 2], true, [false]]);
  view.step();
  questions[1].answer();
  assert.deepEqual([questions[1].texts, shown(), view.matched], [["hit"], [0, 1, 2], 2]);
  // Marks are known after the next question.
  assert.deepEqual(view.marks("a hit"), []);
  view.step();
  questions[2].answer();
  assert.deepEqual([view.marks("a hit"), answered.at(-1)], [[[2, 5]], true]);
  store.append(row(0, 0, "hit"));
  view.step();
  const before = cancelled;
  view.reset();
  assert.equal(cancelled, before + 1);
  view.step();
  questions.at(-1).fail();
  assert.deepEqual([view.isTooSlow, view.isCurrent, view.marks("hit")], [true, true, []]);
  // Questions are small.
  for (let number = 0; number < 3000; number += 1) store.append(row(0, 0, `hit ${number}`));
  store.append(row(0, 0, "x".repeat(QUESTION_MAX)));
  view.reset();
  while (!view.isCurrent) {
    view.step();
    const { texts, answer } = questions.at(-1);
    assert.ok(texts.length <= TEXTS_MAX);
    answer();
  }
  assert.equal(view.matched, 3003);
}
{
  // A worker that takes too long is ended, and the next question starts another one.
  const workers = [];
  const matcher = new Matcher(() => {
    const worker = { messages: [], postMessage: (message) => worker.messages.push(message), terminate: () => (worker.isEnded = true) };
    workers.push(worker);
    return worker;
  });
  const timers = [];
  const { setTimeout: realTimeout, clearTimeout: realClear } = globalThis;
  globalThis.setTimeout = (action) => timers.push(action) - 1;
  globalThis.clearTimeout = (timer) => (timers[timer] = null);
  const found = [];
  matcher.ask(/(a|a)*$/gu, ["aaaa!"], false, (answer) => found.push(answer));
  assert.deepEqual(workers[0].messages, [{ id: 1, source: "(a|a)*$", flags: "gu", texts: ["aaaa!"], wantsMarks: false }]);
  timers[0]();
  assert.deepEqual([found, workers[0].isEnded, matcher.isBusy], [[null], true, false]);
  matcher.ask(/b/gu, ["b"], false, (answer) => found.push(answer));
  workers[1].onmessage({ data: { id: 2, found: [true] } });
  assert.deepEqual([found.at(-1), workers.length, timers[1]], [[true], 2, null]);
  matcher.ask(/c/gu, ["c"], false, () => assert.fail("cancelled"));
  matcher.cancel();
  workers[1].onmessage({ data: { id: 3, found: [true] } });
  assert.ok(workers[1].isEnded && !matcher.isBusy);
  Object.assign(globalThis, { setTimeout: realTimeout, clearTimeout: realClear });
}
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

// === Refills ===

const cursorAt = (nanos, ordinal = 1, run = 0) => `web:0:u/web/${run}:1767225600.00000000${nanos}:${ordinal}:0`;
const gapReader = (store, marker, events = [], limits = {}) => {
  const source = { service: "web", replica: 0 };
  return new GapReader(store, marker, source, events, { rowsMax: 100, charactersMax: 1000, ...limits });
};
const found = (reader) => reader.rows.map((one) => lineText(one.data) ?? one.data.kind);
{
  const store = new Store();
  store.source("web", 0, "u/web/0");
  const marker = { before: cursorAt(2), after: cursorAt(6) };
  const known = [{ kind: "started", instance: "u/web/0" }];
  const reader = gapReader(store, marker, known);
  // The event was shown before; the lines after the gap are on the page; the clock went back.
  assert.ok(reader.read({ service: "web", replica: 0, instance: "u/web/0", event: { kind: "started" } }));
  assert.ok(reader.read(entry("4:2", [[1, "a"], [4, "b"], [4, "c"]])));
  assert.equal(reader.read(entry("7:1", [[6, "d"], [7, "e"]])), false);
  assert.deepEqual([found(reader), reader.isComplete], [["a", "b", "c", "d"], true]);
  assert.deepEqual(reader.rows.map((one) => [one.nanos, one.ordinal]), [[2, 2], [4, 1], [4, 2], [6, 1]]);
  assert.equal(known.length, 1);

  // A part of a gap: the rest begins after the last entry, also if that was a marker.
  const part = gapReader(store, marker, [], { rowsMax: 2 });
  assert.ok(part.read(entry("3:1", [[3, "a"]])));
  const event = { service: "web", replica: 0, instance: "u/web/0", event: { kind: "waiting" }, cursor: cursorAt(4) };
  assert.equal(part.read(event), false);
  assert.deepEqual([found(part), part.isComplete, part.cursor], [["a", "event"], false, cursorAt(4)]);
  const long = gapReader(store, marker, [], { charactersMax: 10 });
  assert.equal(long.read(entry("3:1", [[3, "a line of more characters"]])), false);
  assert.equal(long.isComplete, false);
}
{
  // The last run of the gap has left the log: the lines of the next run are on the page already.
  const store = new Store();
  for (const run of [0, 1, 2]) store.source("web", 0, `u/web/${run}`);
  const reader = gapReader(store, { before: cursorAt(2), after: cursorAt(6, 1, 1) });
  assert.ok(reader.read(entry("3:1", [[3, "a"]])));
  reader.read(entry("7:1", [[7, "known"]], { instance: "u/web/2", cursor: cursorAt(7, 1, 2) }));
  assert.deepEqual([found(reader), reader.isComplete], [["a"], true]);
}

// === Streams ===

{
  const store = new Store();
  const rows = [];
  const reader = new Reader(store, (_, one) => rows.push(lineText(one.data)));
  const piece = (instance, text, continues) => ({ instance, part: { continues, more: true }, cursor: undefined, lines: [{ text }] });
  reader.read(entry("1:1", [[1, "whole"]]));
  reader.read(entry("1:1", [], piece("u/web/0", "first run", false)));
  reader.read(entry("1:1", [], piece("u/web/1", "second run", true)));
  assert.deepEqual(rows, ["whole", "first run", "second run"], "a line does not continue in another run");
}
{
  const sockets = [];
  globalThis.location = { protocol: "http:", host: "127.0.0.1:1", pathname: "/" };
  globalThis.WebSocket = class {
    constructor(url) {
      this.query = new URL(url).searchParams;
      sockets.push(this);
    }
    close() {}
  };
  const timers = [];
  const { setTimeout: realTimeout } = globalThis;
  globalThis.setTimeout = (action) => timers.push(action);
  for (const [selection, repeats, resumes] of [[{ previous: true }, 1, 0], [{ tail: "5" }, 0, 1]]) {
    sockets.length = 0;
    timers.length = 0;
    let repeated = 0;
    const reader = new Reader(new Store(), () => {});
    const stream = new LogStream("/lease", selection, reader, () => {}, () => {}, () => (repeated += 1));
    sockets[0].onmessage({ data: JSON.stringify(entry("5:1", [[5, "a"]])) });
    sockets[0].onmessage({ data: JSON.stringify({ end: { message: "x", retry_after_ms: 1 } }) });
    sockets[0].onclose({ code: 1001 });
    timers[0]();
    assert.deepEqual([repeated, sockets[1].query.getAll("resume").length], [repeats, resumes]);
    stream.close();
  }
  globalThis.setTimeout = realTimeout;
}

// === Servers ===

assert.equal(leasePath(" 7 "), "/lease/7/1/1");
assert.equal(leasePath("7/2/3"), "/lease/7/2/3");
for (const other of ["", "x", "7/1", "7/1/1/1", "7/1/../1", "-7", "7?x=1"]) assert.equal(leasePath(other), null, other);
{
  // Each websocket sends the token first, and each POST has it in a header: never in a URL.
  const sockets = [];
  const sent = [];
  globalThis.location = { protocol: "https:", host: "provider.test:8443", pathname: "/ui/" };
  globalThis.WebSocket = class {
    constructor(url) {
      this.url = url;
      sockets.push(this);
    }
    send(text) {
      sent.push(text);
    }
  };
  globalThis.fetch = async (url, options) => {
    sent.push([url, options?.headers]);
    return { ok: true, status: 200, json: async () => ({ credentials: "token" }) };
  };
  await describe();
  assert.ok(needsToken());
  setToken("a.b.c");
  openSocket("/lease/7/1/1/logs", "follow=true");
  assert.equal(sockets[0].url, "wss://provider.test:8443/ui/lease/7/1/1/logs?follow=true");
  sockets[0].onopen();
  await post("/lease/7/1/1/service/web/restart");
  assert.deepEqual(sent, [
    ["/ui/session", undefined],
    '{"token":"a.b.c"}',
    ["/lease/7/1/1/service/web/restart", { authorization: "Bearer a.b.c" }],
  ]);
  globalThis.fetch = async () => {
    throw new Error("refused");
  };
  assert.equal((await post("/x")).status, 0);
  // A handshake that is rejected for its query is not repeated; the answer to a plain request without fault has no reason.
  const answers = {
    invalid: { status: 400, json: async () => ({ reason: "INVALID_REQUEST", message: "parameter \"resume\"" }) },
    valid: { status: 400, json: async () => JSON.parse("this route is a websocket") },
    long: { status: 431 },
    gone: { status: 503 },
  };
  globalThis.fetch = async (url) => answers[url.split("?")[1]] ?? { ok: true };
  const states = [];
  for (const query of Object.keys(answers)) {
    const { setTimeout: realTimeout } = globalThis;
    globalThis.setTimeout = () => {};
    const channel = new Channel("/lease/7/1/1/logs", () => query, { state: (state) => states.push([state.kind, state.reason]) });
    await channel.ended({ code: 1006 });
    globalThis.setTimeout = realTimeout;
  }
  const expected = [["failed", "INVALID_REQUEST"], ["reconnecting", undefined], ["failed", "REQUEST_TOO_LARGE"], ["reconnecting", undefined]];
  assert.deepEqual(states, expected);
  sockets.length = 1;
  setToken(null);
  openSocket("/lease/7/1/1/logs", "");
  assert.equal(sockets[1].onopen, undefined);
}

// === Replicas and restarts ===

{
  globalThis.setInterval = () => {};
  const root = new FakeElement("nav");
  const replicas = new Replicas(root, { hidden: new Set() }, {});
  const draw = () => {
    const count = frames.length;
    frames.splice(0).forEach((action) => action());
    return count;
  };
  document.activeElement = null;
  replicas.fail("not \u202efound");
  draw();
  assert.equal(root.textContent, "No status: not <U+202E>found");
  const replica = { replica: 0, ready: true, state: "running", restarts: 0, message: "\x1b[31mred\u202e" };
  replicas.update({ services: { web: { name: "web", ready_replicas: 1, total: 1, replica_status: [replica] } } });
  draw();
  assert.ok(root.textContent.includes("red<U+202E>") && !root.textContent.includes("\x1b"), root.textContent);
  // Heartbeats of logs in order change nothing, and many changes are drawn once.
  for (const state of ["live", "waiting"]) replicas.updateSource("web/0", { state });
  replicas.updateSource("web/0", null);
  assert.equal(draw(), 0);
  for (const lines_left of [3, 2, 1]) replicas.updateSource("web/0", { state: "backfilling", lines_left });
  assert.equal(draw(), 1);
  assert.ok(root.textContent.includes("1 lines behind"));
  // The problem stays in view beside the last state.
  replicas.fail("the lease was not found");
  draw();
  replicas.draw();
  assert.ok(root.textContent.includes("the lease was not found") && root.textContent.includes("web/0"));
}
{
  // The progress of a restart does not appear in the dialog that asks for another one.
  const said = [];
  const dialog = new RestartDialog(new FakeElement("dialog"), (text) => said.push(text));
  dialog.path = "/lease";
  const answers = [];
  globalThis.fetch = () => new Promise((resolve) => answers.push((status, body) => resolve({ status, json: async () => body })));
  const settled = () => new Promise((resolve) => setImmediate(resolve));
  dialog.ask("web", []);
  const first = dialog.run();
  answers.shift()(200, { status: [{ service: "web", replica: 0, state: "pending" }] });
  await settled();
  assert.ok(dialog.list.textContent.startsWith("web/0 in progress"));
  dialog.ask("db", [1]);
  answers.shift()(200, { status: [{ service: "web", replica: 0, state: "active" }] });
  await first;
  assert.deepEqual([dialog.title.textContent, dialog.list.textContent], ["Restart db/1?", ""]);
  assert.ok(dialog.text.textContent.startsWith("One replica after the other"));
  assert.equal(said.at(-1), "all replicas of web: Restarted.");
  // A failure after the restart has begun does not claim that there was none.
  const second = dialog.run();
  answers.shift()(200, { status: [{ service: "db", replica: 1, state: "pending" }] });
  await settled();
  answers.shift()(502, { message: "internal" });
  await second;
  assert.equal(dialog.text.textContent, "The outcome is unknown: internal");
  dialog.ask("db", []);
  const third = dialog.run();
  answers.shift()(404, { message: "no service db" });
  await third;
  assert.equal(dialog.text.textContent, "Not restarted: no service db");
}

// === Texts ===

{
  const drawn = (text, ranges = []) => {
    const line = new FakeElement("span");
    appendLine(line, text, ranges);
    return line;
  };
  const classes = (text) => drawn(text).elements.map((one) => [one.className, one.style.color ?? one.style.backgroundColor ?? ""].join("").trim());
  assert.deepEqual(classes("\x1b[38;2;1;2;3mx"), ["rgb(1 2 3)"]);
  assert.deepEqual(classes("\x1b[0;38:2::1:2:3mx"), ["rgb(1 2 3)"]);
  assert.deepEqual(classes("\x1b[48:2:1:2:3mx"), ["rgb(1 2 3)"]);
  assert.deepEqual(classes("\x1b[4:3mx\x1b[4:0my"), ["underline"]);
  assert.deepEqual(classes("\x1b[38;5;99999999999999999999mx"), ["rgb(238 238 238)"]);
  assert.deepEqual(classes("\x1b[38;2mx"), ["rgb(0 0 0)"]);
  assert.deepEqual(classes("\x1b[99999999999999999999;1mx"), ["bold"]);
  // A hostile line costs a bounded number of elements, and hides nothing.
  for (const unit of ["\x1b[1ma\x1b[0mb", "\x01", "a\x02"]) {
    const text = unit.repeat(SHOWN_MAX).slice(0, SHOWN_MAX - (SHOWN_MAX % unit.length));
    const line = drawn(text, [[0, 1]]);
    assert.ok(line.elements.length <= 2002, `${line.elements.length}`);
    assert.equal(line.textContent, visibleText(text));
  }
}
assert.equal(visibleText("\x1b[31mred\x1b]0;t\x07\u00ad\ttab"), "red^[]0;t^G<U+00AD>\ttab");

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
