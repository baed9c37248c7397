// The page: connects the streams, the rows and the controls.

import { visibleText } from "./ansi.js";
import { Channel, LogStream, Reader, cursorText, parseCursor } from "./connection.js";
import { listen, prepare, settings } from "./controls.js";
import { announce, byId, fail, isPressed, press, setText } from "./dom.js";
import { View, compile } from "./filter.js";
import { refillGap } from "./gap_refill.js";
import { LogView } from "./log_view.js";
import { Login } from "./login.js";
import { Matcher } from "./matcher.js";
import { Ordering } from "./order.js";
import { Replicas, RestartDialog } from "./replicas.js";
import { describe, needsToken, setToken } from "./server.js";
import { SincePicker } from "./since.js";
import { Store, lineText } from "./store.js";
import { duration, rfc3339 } from "./time.js";

/** Time without entries after which the first rows are ordered and shown, and the longest wait for it. */
const FIRST_QUIET = 150;
const FIRST_MAX = 2500;

/** Longest wait for the first status, in milliseconds. */
const STATUS_MAX = 1000;

/** Most rows that wait for their order, and most characters of them. */
const WAITING_MAX = 100_000;
const WAITING_CHARACTERS_MAX = 64 * 1024 * 1024;

/** Age of a new line above which the page is behind, in seconds. Clocks may differ by less. */
const BEHIND_MIN = 5;

/** Time before a linked line that is read too, in seconds. */
const LINK_CONTEXT = 60;

/** Reasons for which another token may help. */
const OF_CREDENTIALS = /^(TOKEN|ACCOUNT|CREDENTIALS|AUTHORIZATION|SCOPE)_|_NOT_(YOURS|GRANTED)$/;

/** The end of the year 9999: a link can have any number. */
const TIME_MAX = 253_402_300_799;

/** Least time between two announcements of lost lines for screen readers, in milliseconds. */
const ANNOUNCE_EVERY = 10_000;

/** The state of the page, for its tests too. */
export const app = { store: new Store(), lost: { lines: 0, gaps: 0, isExact: true } };

const { store } = app;
const view = new View(store, new Matcher(), (areMarks) => {
  // At once: one question per frame would be slow.
  view.step();
  if (areMarks) logView.refresh();
  schedule();
});
let ordering = new Ordering();
let reader = null;
let stream = null;
let waiting = 0;
let isFirst = true;
let opened = 0;
let lastEntry = 0;
let isScheduled = false;
let linked = null;
let seenEnd = 0;
let announced = 0;
let connection = { kind: "connecting" };
let behind = 0;
let wasTooSlow = false;

const logView = new LogView(
  { scroller: byId("scroller"), spacer: byId("spacer"), frame: byId("frame"), pane: byId("pane") },
  view,
  settings,
  { changed: schedule, refill: refillRow },
);
const replicas = new Replicas(byId("replicas"), view, {
  changed: filterChanged,
  restart: (service, chosen) => restartDialog.ask(service, chosen),
});
let restartDialog = null;
let since = null;
let login = null;
Object.assign(app, { view, logView, replicas, settings, selected: () => logView.selected(), state: () => byId("state").textContent });

// === Rows ===

function take(replica, row) {
  if (typeof row.data === "object" && row.data.kind === "gap") {
    const { gap } = row.data;
    app.lost.gaps += 1;
    app.lost.lines += gap.lines;
    app.lost.isExact &&= gap.exact;
  }
  ordering.push(replica, row);
  waiting += lineText(row.data)?.length ?? 0;
  // A hidden page draws no frames, and must not collect rows without limit.
  if (ordering.count > WAITING_MAX || waiting > WAITING_CHARACTERS_MAX) flush();
}

function flush() {
  ordering.drain((row) => store.append(row));
  waiting = 0;
  isFirst = false;
}

function mayFlush(now) {
  return !isFirst || now - lastEntry > FIRST_QUIET || now - opened > FIRST_MAX;
}

function schedule() {
  if (isScheduled) return;
  isScheduled = true;
  requestAnimationFrame(frame);
}

function frame() {
  isScheduled = false;
  if (ordering.count > 0 && mayFlush(performance.now())) flush();
  drawState();
  if (linked !== null) showLinked();
  view.step();
  if (view.isTooSlow && !wasTooSlow) fail("The filter takes too long on some lines, and was stopped. Rows after these are not shown.");
  wasTooSlow = view.isTooSlow;
  logView.draw();
  if (logView.follows) seenEnd = store.end;
  drawCounts();
  if (ordering.count > 0 || !view.isCurrent || view.unmarked.size > 0) schedule();
}

function onEntry(entry) {
  lastEntry = performance.now();
  const name = `${entry.service}/${entry.replica}`;
  replicas.updateSource(name, entry.source ?? null);
  if (entry.lines !== undefined) {
    const replica = reader.replica(entry.service, entry.replica);
    behind = isFirst ? 0 : Date.now() / 1000 - replica.seconds;
  } else if (entry.source !== undefined) {
    behind = 0;
  }
  schedule();
}

// === Streams ===

function selection() {
  if (linked !== null) return { since: rfc3339(linked.seconds - LINK_CONTEXT, 0) };
  const [kind, value] = byId("selection").value.split("=");
  if (kind === "previous") return { previous: true };
  if (kind === "at") return { since: rfc3339(since.seconds, 0) };
  if (kind === "since") return { since: rfc3339(Math.floor(Date.now() / 1000) - Number(value), 0) };
  return { tail: kind === "tail" ? value : null };
}

/** Forgets all rows, before a log is read from its beginning. */
function clearRows() {
  store.clear();
  ordering = new Ordering();
  waiting = 0;
  app.lost = { lines: 0, gaps: 0, isExact: true };
  view.reset();
  logView.clearSelection();
  logView.follows = true;
  logView.refresh();
  reader?.clear();
  isFirst = true;
  seenEnd = 0;
  opened = performance.now();
  lastEntry = opened;
}

function start() {
  stream?.close();
  clearRows();
  reader = new Reader(store, take);
  connection = { kind: "connecting" };
  const onState = (state) => {
    connection = state;
    drawState();
    schedule();
    if (state.kind !== "open") announce(byId("state").textContent);
    if (login?.isOpen && state.kind === "open") login.done();
    if (login !== null && state.kind === "failed" && OF_CREDENTIALS.test(state.reason)) login.ask("", state.message);
  };
  stream = new LogStream(app.session.path, selection(), reader, onState, onEntry, clearRows);
  Object.assign(app, { reader, stream, channels: [app.statusChannel, stream.channel] });
  drawState();
}

function drawState() {
  const state = byId("state");
  let kind = connection.kind;
  let text = kind;
  if (kind === "open") {
    const sources = [...reader.replicas.values()].map((replica) => replica.state);
    const left = sources.reduce((sum, source) => sum + (source?.state === "backfilling" ? source.lines_left ?? 0 : 0), 0);
    const unreadable = sources.filter((source) => source?.state === "reconnecting").length;
    if (unreadable > 0) {
      kind = "reconnecting";
      text = `${unreadable} ${unreadable === 1 ? "log" : "logs"} unreadable`;
    } else if (left > 0 || behind > BEHIND_MIN) {
      kind = "lagging";
      text = left > 0 ? `behind by ${left.toLocaleString("en")} lines` : `behind by ${duration(behind)}`;
    } else {
      kind = "live";
      text = "live";
    }
  } else if (kind === "reconnecting") {
    text = `reconnecting: ${visibleText(connection.message)}`;
  } else if (kind === "failed") {
    text = `ended: ${visibleText(connection.message)}`;
  } else if (kind === "complete") {
    text = "complete";
  }
  if (state.textContent !== text) {
    state.textContent = text;
    state.title = text;
  }
  state.dataset.kind = kind;
}

function drawCounts() {
  const rows = store.end - store.first;
  const dropped = store.dropped > 0 ? `; ${store.dropped.toLocaleString("en")} older ones dropped from this page` : "";
  setText("count", `${rows.toLocaleString("en")} ${rows === 1 ? "row" : "rows"}${dropped}`);
  const { lines, gaps, isExact } = app.lost;
  setText("lost", gaps === 0 ? "" : `${isExact ? "" : "at least "}${lines.toLocaleString("en")} lines missing in ${gaps} ${gaps === 1 ? "gap" : "gaps"}`);
  setText("matches", view.expression === null ? "" : `${view.matched.toLocaleString("en")} matches${view.isCurrent ? "" : "…"}`);
  byId("empty").hidden = view.count > 0;
  const isEnded = connection.kind === "complete" || connection.kind === "failed";
  setText("empty", rows > 0 ? "No line matches." : isEnded ? "There are no lines." : "Waiting for lines…");
  const newer = logView.follows ? 0 : Math.max(0, view.count - view.index(seenEnd));
  byId("newest").hidden = logView.follows;
  setText("newest", newer > 0 ? `↓ ${newer.toLocaleString("en")} new ${newer === 1 ? "line" : "lines"}` : "↓ Newest line");
  press("pause", !logView.follows);
  if (gaps > 0 && app.lost.announced !== gaps && performance.now() - announced > ANNOUNCE_EVERY) {
    app.lost.announced = gaps;
    announced = performance.now();
    announce(byId("lost").textContent);
  }
}

/** Reads the lines of the gap in this row again. */
function refillRow(number) {
  refillGap(number, {
    store,
    reader,
    path: app.session.path,
    lost: app.lost,
    changed: schedule,
    inserted: (at, count) => {
      if (logView.top > at) logView.top += count;
      if (seenEnd > at) seenEnd += count;
      logView.clearSelection();
      logView.refresh();
    },
  });
}

// === Links ===

/** Returns a parameter of the link that opened the page. */
const ofLink = (name) => new URLSearchParams(location.hash.slice(1)).get(name);

function readLink() {
  const text = ofLink("line");
  const cursor = text === null ? null : parseCursor(text);
  return cursor !== null && cursor.seconds >= LINK_CONTEXT && cursor.seconds <= TIME_MAX ? cursor : null;
}

function showLinked() {
  if (isFirst) return;
  let found = null;
  store.each(store.first, store.end, (block, at, number) => {
    const source = store.sources[block.source[at]];
    const isIt =
      block.seconds[at] === linked.seconds && block.nanos[at] === linked.nanos && block.ordinal[at] === linked.ordinal &&
      source.instance === linked.instance && typeof block.data[at] === "string";
    if (isIt) found = number;
    return found === null;
  });
  if (found === null) {
    if (performance.now() - opened > FIRST_MAX * 2) {
      fail("The linked line is no longer in the log, or is hidden.");
      linked = null;
    }
    return;
  }
  linked = null;
  logView.select(found, false);
  logView.show(found);
}

function link() {
  const number = logView.current;
  if (number === null || number < store.first) return null;
  const row = store.row(number);
  if (typeof row.data !== "string") return null;
  const lease = needsToken() ? `&lease=${app.session.path.slice("/lease/".length)}` : "";
  return `${location.origin}${location.pathname}#line=${cursorText({ ...store.sources[row.source], ...row })}${lease}`;
}

// === Controls ===

function filterChanged() {
  const input = byId("filter");
  try {
    view.expression = compile(input.value, isPressed("regex"), isPressed("case"));
    view.isRegex = isPressed("regex");
    input.removeAttribute("aria-invalid");
    fail("");
  } catch (error) {
    // The last usable filter stays.
    input.setAttribute("aria-invalid", "true");
    fail(`The filter is no usable regular expression: ${error.message}`);
  }
  view.context = Math.max(0, Math.min(50, Number(byId("context").value) || 0));
  view.reset();
  logView.refresh();
}

function togglePause() {
  if (logView.follows) {
    logView.leaveEnd();
    seenEnd = store.end;
  } else {
    logView.toEnd();
  }
  schedule();
}

async function begin() {
  prepare(logView);
  let server;
  try {
    server = await describe();
  } catch (error) {
    fail(error.message);
    connection = { kind: "failed", message: "no session" };
    drawState();
    return;
  }
  byId("gateway").textContent = server.gateway;
  restartDialog = new RestartDialog(byId("restart-dialog"), announce);
  since = new SincePicker(byId("since-dialog"), byId("selection"), start);
  listen(logView, {
    filter: filterChanged,
    pause: togglePause,
    link,
    open: () => {
      linked = readLink();
      if (linked !== null) start();
    },
  });
  if (needsToken()) {
    login = new Login(byId("login-dialog"), ({ path, token }) => {
      setToken(token);
      if (path === app.session?.path) app.channels.forEach((channel) => channel.reopen());
      else openLease({ ...server, path });
    });
    login.ask(ofLink("lease") ?? "", "");
  } else {
    await openLease(server);
  }
}

/** Shows the lease of this session. With a token, not before the server has accepted it. */
async function openLease(session) {
  app.statusChannel?.close();
  // Colours of replicas follow from their names in the order of the status.
  const isAccepted = await new Promise((resolve) => {
    if (login === null) setTimeout(() => resolve(true), STATUS_MAX);
    app.statusChannel = new Channel(`${session.path}/status`, () => new URLSearchParams({ follow: "true" }), {
      message: (status) => {
        replicas.update(status);
        // Replicas get their colours in this order.
        replicas.draw();
        resolve(true);
      },
      state: (state) => {
        if (state.kind === "failed" || state.kind === "reconnecting") replicas.fail(state.message);
        if (state.kind === "complete") replicas.fail("the gateway sends no further states");
        if (login !== null && state.kind !== "open" && app.session !== session) login.ask("", state.message ?? "the lease has ended");
        else if (state.kind !== "open") resolve(true);
        if (login !== null && state.kind === "failed") resolve(false);
      },
    });
  });
  if (!isAccepted) return;
  login?.done();
  app.session = session;
  restartDialog.path = session.path;
  const [dseq, ...rest] = session.path.split("/").slice(2);
  const owner = session.lease?.split("/")[0];
  byId("lease").textContent = owner === undefined ? [dseq, ...rest].join("/") : `${owner.slice(0, 10)}…${owner.slice(-4)} / ${dseq}`;
  byId("lease").title = session.lease ?? session.path;
  document.title = `${dseq} · leasemux`;
  linked = readLink();
  start();
}

app.start = start;
begin();
