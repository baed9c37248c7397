// The page: connects the streams, the rows and the controls.

import { Channel, GapReader, LogStream, Reader, cursorText, parseCursor, refill } from "./connection.js";
import { View, compile } from "./filter.js";
import { LogView, markerText } from "./log_view.js";
import { Ordering } from "./order.js";
import { visibleText, withoutReturn } from "./ansi.js";
import { Replicas, RestartDialog } from "./replicas.js";
import { CHARACTERS_MAX, ROWS_MAX, Store, lineText } from "./store.js";
import { TIME_FORMS, duration, rfc3339 } from "./time.js";

/** Time without entries after which the first rows are ordered and shown, and the longest wait for it. */
const FIRST_QUIET = 150;
const FIRST_MAX = 2500;

/** Longest wait for the first status, in milliseconds. */
const STATUS_MAX = 1000;

/** Most rows that wait for their order, and most characters of them. */
const WAITING_MAX = 100_000;
const WAITING_CHARACTERS_MAX = 64 * 1024 * 1024;

/** Most rows and characters that one refill reads. The rest stays a gap. */
const REFILL_MAX = { rowsMax: 200_000, charactersMax: WAITING_CHARACTERS_MAX };

/** Age of a new line above which the page is behind, in seconds. Clocks may differ by less. */
const BEHIND_MIN = 5;

/** Time before a linked line that is read too, in seconds. */
const LINK_CONTEXT = 60;

/** The end of the year 9999: a link can have any number. */
const TIME_MAX = 253_402_300_799;

/** Least time between two announcements of lost lines for screen readers, in milliseconds. */
const ANNOUNCE_EVERY = 10_000;

const KEYS = [
  ["/", "filter"],
  ["Space", "pause, or follow the newest line"],
  ["End", "newest line"],
  ["Arrows, Page, Home", "choose a line; with Shift more lines"],
  ["Enter", "read the lines of a chosen gap again"],
  ["c", "copy the chosen lines, or all visible ones"],
  ["l", "copy a link to the chosen line"],
  ["w", "wrap lines"],
  ["t", "next form of times"],
  ["s", "show or hide the replicas"],
  ["Escape", "clear the choice or the filter"],
  ["?", "this help"],
];

const byId = (id) => document.getElementById(id);

/** The state of the page, for its tests too. */
export const app = { store: new Store(), lost: { lines: 0, gaps: 0, isExact: true } };

const saved = (name, fallback) => localStorage.getItem(`leasemux.${name}`) ?? fallback;
const save = (name, value) => localStorage.setItem(`leasemux.${name}`, value);

const narrow = matchMedia("(max-width: 700px)");
const isNarrow = narrow.matches;
const settings = { time: saved("time", isNarrow ? "off" : "local"), wrap: saved("wrap", String(isNarrow)) === "true" };
const { store } = app;
const view = new View(store);
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

const logView = new LogView(
  { scroller: byId("scroller"), spacer: byId("spacer"), frame: byId("frame"), pane: byId("pane") },
  view,
  settings,
  { changed: schedule, refill: refillGap },
);
const replicas = new Replicas(byId("replicas"), view, {
  changed: filterChanged,
  restart: (service, chosen) => restartDialog.ask(service, chosen),
});
let restartDialog = null;
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
  const wasTooSlow = view.isTooSlow;
  view.step();
  if (view.isTooSlow && !wasTooSlow) fail("The filter takes too long on some lines, and was stopped. Rows after these are not shown.");
  logView.draw();
  if (logView.follows) seenEnd = store.end;
  drawCounts();
  if (ordering.count > 0 || !view.isCurrent) schedule();
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
  };
  stream = new LogStream(app.session.path, selection(), reader, onState, onEntry, clearRows);
  Object.assign(app, { reader, stream });
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

function setText(id, text) {
  const node = byId(id);
  if (node.textContent !== text) node.textContent = text;
}

function press(id, isPressed) {
  byId(id).setAttribute("aria-pressed", String(isPressed));
}

function announce(text) {
  // Screen readers announce changes, so that the same text twice needs one.
  const node = byId("announcement");
  node.textContent = node.textContent === text ? `${text}\u00a0` : text;
}

function fail(text) {
  const node = byId("error");
  node.textContent = text;
  node.hidden = text === "";
}

// === Refill ===

function refillGap(number) {
  if (number < store.first || number >= store.end) return;
  const row = store.row(number);
  const { data } = row;
  if (typeof data !== "object" || data.kind !== "gap" || data.before === null || data.after === null || data.isBusy) return;
  change(data, { isBusy: true, failure: undefined });
  const source = store.sources[row.source];
  const { events } = reader.replica(source.service, source.replica);
  const gapReader = new GapReader(store, data, source, events, REFILL_MAX);
  refill(app.session.path, source, gapReader, (failure) => {
    data.isBusy = false;
    const at = numberOf(data);
    if (at === null) return;
    const { rows, isComplete } = gapReader;
    const lines = rows.filter((one) => lineText(one.data) !== null).length;
    if (lines === 0) {
      change(data, { failure: failure ?? "the log no longer has them" });
      return;
    }
    const note = `${lines.toLocaleString("en")} missing ${lines === 1 ? "line was" : "lines were"} read again`;
    const marker = { ...row, data: { kind: "note", text: note } };
    app.lost.gaps -= 1;
    app.lost.lines -= data.gap.lines;
    const rest = [];
    if (!isComplete) {
      const left = { ...data.gap, lines: Math.max(0, data.gap.lines - lines), bytes: 0 };
      rest.push({ ...row, data: { kind: "gap", gap: left, before: gapReader.cursor, after: data.after, failure } });
      app.lost.gaps += 1;
      app.lost.lines += left.lines;
    }
    for (const one of rows) {
      if (typeof one.data === "object" && one.data.kind === "gap") {
        app.lost.gaps += 1;
        app.lost.lines += one.data.gap.lines;
      }
    }
    store.replace(at, [marker, ...rows, ...rest]);
    const inserted = rows.length + rest.length;
    if (logView.top > at) logView.top += inserted;
    if (seenEnd > at) seenEnd += inserted;
    logView.clearSelection();
    logView.refresh();
    announce(note);
  });
}

/** Changes the data of a marker, and draws it again. */
function change(data, changes) {
  Object.assign(data, changes, { version: (data.version ?? 0) + 1 });
  schedule();
}

/** Returns the number of the row with this marker; `null` if it was dropped. */
function numberOf(data) {
  let found = null;
  store.each(store.first, store.end, (block, at, number) => {
    if (block.data[at] === data) found = number;
    return found === null;
  });
  return found;
}

// === Links ===

function readLink() {
  const text = new URLSearchParams(location.hash.slice(1)).get("line");
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
  return `${location.origin}/#line=${cursorText({ ...store.sources[row.source], ...row })}`;
}

// === Copies ===

/** Returns the text of a row as the page shows it. Raw control characters could act in the terminal into which it is pasted. */
function rowText(number) {
  const row = store.row(number);
  const text = lineText(row.data);
  const name = store.sources[row.source].name;
  return text === null ? `${name} [${markerText(row.data)}]` : `${name} ${visibleText(withoutReturn(text))}`;
}

function rowObject(number) {
  const { source, seconds, nanos, data } = store.row(number);
  const { service, replica, instance } = store.sources[source];
  const time = Number.isFinite(seconds) ? rfc3339(seconds, nanos) : undefined;
  const text = lineText(data);
  const content = text === null ? { [data.kind]: data[data.kind] ?? data.text } : { text };
  return JSON.stringify({ service, replica, instance, time, ...content });
}

async function copy() {
  const chosen = logView.selected();
  const numbers = chosen.length > 0 ? chosen : [...logView.nodes.keys()];
  await copyText(numbers.map(rowText).join("\n"), `${numbers.length} ${numbers.length === 1 ? "line" : "lines"} copied`);
}

async function copyLink() {
  const url = link();
  if (url === null) announce("choose a line first");
  else await copyText(url, "link copied");
}

async function copyText(text, done) {
  try {
    await navigator.clipboard.writeText(text);
    announce(done);
  } catch {
    fail("The browser does not let this page write to the clipboard.");
  }
}

/** Saves all rows that the filter shows. */
function download(extension, type, format) {
  while (!view.isCurrent) view.step();
  const parts = [];
  for (let index = 0; index < view.count; index += 1) parts.push(format(view.number(index)), "\n");
  const url = URL.createObjectURL(new Blob(parts, { type }));
  const anchor = document.createElement("a");
  anchor.href = url;
  anchor.download = `leasemux.${extension}`;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

// === Controls ===

function filterChanged() {
  const input = byId("filter");
  try {
    view.expression = compile(input.value, isPressed("regex"), isPressed("case"));
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

function isPressed(id) {
  return byId(id).getAttribute("aria-pressed") === "true";
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

function setWrap(wraps) {
  settings.wrap = wraps;
  save("wrap", wraps);
  press("wrap", wraps);
  document.documentElement.classList.toggle("wrap", wraps);
  logView.refresh();
}

function setTime(form) {
  settings.time = form;
  save("time", form);
  byId("time").value = form;
  logView.measured = undefined;
  logView.refresh();
}

function setTheme(theme) {
  save("theme", theme);
  byId("theme").value = theme;
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

function toggleReplicas() {
  const isShown = document.body.classList.toggle("without-replicas");
  byId("toggle-replicas").setAttribute("aria-expanded", String(!isShown));
}

function help() {
  byId("help-dialog").showModal();
}

function escape() {
  if (logView.current !== null) logView.clearSelection();
  else clearFilter();
}

function clearFilter() {
  if (byId("filter").value === "") return;
  byId("filter").value = "";
  filterChanged();
}

const SHORTCUTS = {
  "/": () => byId("filter").focus(),
  " ": togglePause,
  End: () => logView.toEnd(),
  c: copy,
  l: copyLink,
  w: () => setWrap(!settings.wrap),
  t: () => setTime(TIME_FORMS[(TIME_FORMS.indexOf(settings.time) + 1) % TIME_FORMS.length]),
  s: toggleReplicas,
  Escape: escape,
  "?": help,
};

function listen() {
  const on = (id, type, action) => byId(id).addEventListener(type, action);
  on("filter", "input", filterChanged);
  on("context", "input", filterChanged);
  for (const id of ["regex", "case"]) {
    on(id, "click", () => {
      press(id, !isPressed(id));
      filterChanged();
    });
  }
  on("selection", "change", start);
  on("time", "change", (event) => setTime(event.target.value));
  on("theme", "change", (event) => setTheme(event.target.value));
  on("wrap", "click", () => setWrap(!settings.wrap));
  on("pause", "click", togglePause);
  on("newest", "click", () => {
    logView.toEnd();
    byId("scroller").focus();
  });
  on("copy", "click", copy);
  on("save", "click", () => byId("save-menu").showModal());
  on("save-close", "click", () => byId("save-menu").close());
  on("download-text", "click", () => download("log", "text/plain", rowText));
  on("download-json", "click", () => download("jsonl", "application/x-ndjson", rowObject));
  on("toggle-replicas", "click", toggleReplicas);
  on("help-button", "click", help);
  on("help-close", "click", () => byId("help-dialog").close());
  byId("shortcuts").checked = saved("shortcuts", "true") === "true";
  on("shortcuts", "change", (event) => save("shortcuts", event.target.checked));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.defaultPrevented || document.querySelector("dialog[open]")) return;
    const isTyping = event.target.closest("input:not([type=checkbox]), select");
    if (isTyping && event.key === "Escape") {
      event.preventDefault();
      if (event.target.id === "filter" && event.target.value !== "") clearFilter();
      else byId("scroller").focus();
    }
    const isActivation = event.key === " " && event.target.closest("button, label, input");
    if (isTyping || isActivation || (event.key.length === 1 && saved("shortcuts", "true") !== "true")) return;
    const action = SHORTCUTS[event.key];
    if (action === undefined) return;
    event.preventDefault();
    action();
  });
  // In a narrow window the list covers the log.
  narrow.addEventListener("change", ({ matches }) => {
    if (matches !== document.body.classList.contains("without-replicas")) toggleReplicas();
  });
  addEventListener("hashchange", () => {
    linked = readLink();
    if (linked !== null) start();
  });
  setInterval(() => {
    if (settings.time === "relative") logView.refresh();
  }, 1000);
}

function fillHelp() {
  for (const [key, meaning] of KEYS) {
    const row = document.createElement("tr");
    const head = document.createElement("th");
    head.scope = "row";
    head.append(Object.assign(document.createElement("kbd"), { textContent: key }));
    row.append(head, Object.assign(document.createElement("td"), { textContent: meaning }));
    byId("keys").append(row);
  }
  const millions = CHARACTERS_MAX / 1024 / 1024;
  byId("limits").textContent = `This page keeps the newest ${ROWS_MAX.toLocaleString("en")} rows or ${millions} million characters. Older ones are dropped here, and stay in the log.`;
}

async function begin() {
  setTheme(saved("theme", "auto"));
  setTime(settings.time);
  setWrap(settings.wrap);
  byId("selection").value = "tail=1000";
  fillHelp();
  if (isNarrow) toggleReplicas();
  let answer;
  try {
    answer = await fetch("/session");
  } catch {
    fail("leasemux ui does not answer.");
    return;
  }
  const session = await answer.json();
  if (!answer.ok) {
    fail(session.message);
    connection = { kind: "failed", message: "no session" };
    drawState();
    return;
  }
  app.session = session;
  const [owner, dseq] = session.lease.split("/");
  byId("lease").textContent = `${owner.slice(0, 10)}…${owner.slice(-4)} / ${dseq}`;
  byId("lease").title = session.lease;
  byId("gateway").textContent = session.gateway;
  document.title = `${dseq} · leasemux`;
  restartDialog = new RestartDialog(byId("restart-dialog"), session.path, announce);
  listen();
  // Colours of replicas follow from their names in the order of the status.
  await new Promise((resolve) => {
    setTimeout(resolve, STATUS_MAX);
    app.statusChannel = new Channel(`${session.path}/status`, () => new URLSearchParams({ follow: "true" }), {
      message: (status) => {
        replicas.update(status);
        // Replicas get their colours in this order.
        replicas.draw();
        resolve();
      },
      state: (state) => {
        if (state.kind === "failed" || state.kind === "reconnecting") replicas.fail(state.message);
        if (state.kind === "complete") replicas.fail("the gateway sends no further states");
        if (state.kind !== "open") resolve();
      },
    });
  });
  linked = readLink();
  start();
}

app.start = start;
begin();
