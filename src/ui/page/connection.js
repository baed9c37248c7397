// Streams from the server: the log, which reconnects and resumes at cursors, and the status.

import { UNANSWERED, openSocket, refusedBy, rejectedBy } from "./server.js";
import { parseTime } from "./time.js";

/** Delays before reconnects, in milliseconds. */
const DELAY_MIN = 250;
const DELAY_MAX = 10_000;

/** A stream that lived this long was a success: the next delay is the shortest again. */
const STABLE_AFTER = 10_000;

/** Longest text of an unfinished line. Its rest becomes another row. */
const LINE_MAX = 1024 * 1024;

/** Events that are remembered per replica, because a resumed stream repeats some. */
const EVENTS_REMEMBERED = 16;

/** Seconds between heartbeats of a silent replica. */
const HEARTBEAT = 2;

/** Delay with a random part, so that pages do not reconnect together. */
function jittered(delay) {
  return delay * (0.5 + Math.random() / 2);
}

/** Reads a cursor, which is only a text to send back for other clients. */
export function parseCursor(text) {
  const parts = text.split(":");
  if (parts.length !== 6) return null;
  const [service, replica, instance, time, ordinal, offset] = parts;
  const [seconds, nanos] = time === "" ? [-Infinity, 0] : time.split(".").map(Number);
  return { service, replica: Number(replica), instance, seconds, nanos, ordinal: Number(ordinal), offset: Number(offset) };
}

/** Returns the cursor after a line. */
export function cursorText({ service, replica, instance, seconds, nanos, ordinal }) {
  return `${service}:${replica}:${instance}:${seconds}.${String(nanos).padStart(9, "0")}:${ordinal}:0`;
}

/** Returns whether a position is after another one of the same run. */
export function isAfter(one, other) {
  return one.seconds - other.seconds || one.nanos - other.nanos || one.ordinal - other.ordinal;
}

/** Makes rows from the entries of a stream, and keeps the cursor of each replica. */
export class Reader {
  /** `store` gives runs their indices; `take(replica, row)` gets each row. */
  constructor(store, take) {
    this.store = store;
    this.take = take;
    this.replicas = new Map();
  }

  replica(service, index) {
    const name = `${service}/${index}`;
    let replica = this.replicas.get(name);
    if (replica === undefined) {
      replica = { name, cursor: null, events: [], position: null, seconds: -Infinity, nanos: 0, unfinished: {}, state: null };
      this.replicas.set(name, replica);
    }
    return replica;
  }

  /** Forgets all replicas, before the same log is read again from its beginning. */
  clear() {
    this.replicas.clear();
  }

  /** Returns the cursors from which a stream resumes. */
  cursors() {
    return [...this.replicas.values()].map((replica) => replica.cursor).filter((cursor) => cursor !== null);
  }

  /** Reads an entry, or takes a heartbeat. */
  read(entry) {
    const replica = this.replica(entry.service, entry.replica);
    if (entry.source !== undefined) {
      replica.state = entry.source;
      if (entry.cursor !== undefined) replica.cursor = entry.cursor;
      return;
    }
    replica.state = null;
    if (entry.gap !== undefined) this.gap(replica, entry);
    else if (entry.event !== undefined) this.event(replica, entry);
    else if (entry.lines !== undefined) this.lines(replica, entry);
    if (entry.cursor !== undefined) {
      replica.cursor = entry.cursor;
      replica.position = parseCursor(entry.cursor);
    }
  }

  lines(replica, entry) {
    const source = this.store.source(entry.service, entry.replica, entry.instance ?? "");
    const end = entry.cursor === undefined ? null : parseCursor(entry.cursor);
    const position = this.startOf(replica, entry, end);
    // No line continues in another run.
    if (replica.position !== null && replica.position.instance !== entry.instance) replica.unfinished = {};
    for (const line of entry.lines) {
      const time = parseTime(line.time);
      if (time !== null) this.advance(replica, time);
      const continues = entry.part !== undefined && entry.part.continues;
      if (!continues && time !== null) {
        if (time.seconds - position.seconds || time.nanos - position.nanos) {
          const later = time.seconds > position.seconds || (time.seconds === position.seconds && time.nanos > position.nanos);
          if (later) Object.assign(position, time, { ordinal: 1 });
          else position.ordinal += 1;
        } else {
          position.ordinal += 1;
        }
      }
      const row = { source, seconds: replica.seconds, nanos: replica.nanos, ordinal: position.ordinal, data: line.text };
      if (entry.part === undefined) this.take(replica.name, row);
      else this.piece(replica, entry.part, row);
    }
  }

  /** Returns the position before an entry. After a start in the middle of a log, its end decides. */
  startOf(replica, entry, end) {
    const known = replica.position;
    if (known !== null && known.instance === entry.instance) {
      return { seconds: known.seconds, nanos: known.nanos, ordinal: known.ordinal };
    }
    if (end === null || entry.part !== undefined) return { seconds: -Infinity, nanos: 0, ordinal: 0 };
    let same = 0;
    for (const line of entry.lines) {
      const time = parseTime(line.time);
      if (time !== null && time.seconds === end.seconds && time.nanos === end.nanos) same += 1;
    }
    const before = Math.max(0, end.ordinal - same);
    return before === 0 ? { seconds: -Infinity, nanos: 0, ordinal: 0 } : { seconds: end.seconds, nanos: end.nanos, ordinal: before };
  }

  piece(replica, part, row) {
    const key = part.stream ?? "";
    const open = replica.unfinished[key];
    if (part.continues && open !== undefined && open.text.length + row.data.length <= LINE_MAX) {
      this.store.grow(open, row.data);
    } else {
      const line = { kind: "line", text: row.data, version: 0 };
      replica.unfinished[key] = line;
      this.take(replica.name, { ...row, data: line });
    }
    if (!part.more) delete replica.unfinished[key];
  }

  gap(replica, entry) {
    const time = parseTime(entry.gap.to ?? entry.gap.from);
    if (time !== null) this.advance(replica, time);
    replica.unfinished = {};
    const data = { kind: "gap", gap: entry.gap, before: replica.cursor, after: entry.cursor ?? null };
    this.marker(replica, entry, data);
  }

  event(replica, entry) {
    const { event } = entry;
    const instance = entry.instance ?? "";
    const same = (known) => known.kind === event.kind && known.instance === instance;
    const last = replica.events[replica.events.length - 1];
    const isRepeated =
      event.kind === "started" || event.kind === "ended"
        ? replica.events.some(same)
        : last !== undefined && same(last) && last.reason === event.reason;
    if (isRepeated) return;
    if (replica.events.length === EVENTS_REMEMBERED) replica.events.shift();
    replica.events.push({ kind: event.kind, instance, reason: event.reason });
    const time = parseTime(entry.time);
    if (time !== null) this.advance(replica, time);
    replica.unfinished = {};
    this.marker(replica, entry, { kind: "event", event });
  }

  marker(replica, entry, data) {
    const source = this.store.source(entry.service, entry.replica, entry.instance ?? "");
    this.take(replica.name, { source, seconds: replica.seconds, nanos: replica.nanos, ordinal: 0, data });
  }

  /** Rows of a replica never go back in time, so that all replicas can be ordered. */
  advance(replica, time) {
    if (time.seconds > replica.seconds || (time.seconds === replica.seconds && time.nanos > replica.nanos)) {
      replica.seconds = time.seconds;
      replica.nanos = time.nanos;
    }
  }
}

/**
 * A websocket that is opened again when it ends, unless the end is final. `query()` makes the parameters of each
 * attempt. Handlers: `message(object)`, `state({ kind, … })`.
 */
export class Channel {
  constructor(path, query, handlers) {
    this.path = path;
    this.query = query;
    this.handlers = handlers;
    this.delay = DELAY_MIN;
    this.isClosed = false;
    this.open();
  }

  open() {
    this.end = null;
    this.isOpen = false;
    const opened = Date.now();
    this.lastQuery = this.query();
    const socket = openSocket(this.path, this.lastQuery);
    this.socket = socket;
    socket.onmessage = (message) => {
      if (this.socket !== socket) return;
      const object = JSON.parse(message.data);
      if (object.end !== undefined) {
        this.end = object.end;
        return;
      }
      if (!this.isOpen) {
        this.isOpen = true;
        this.handlers.state({ kind: "open" });
      }
      this.handlers.message(object);
    };
    socket.onclose = (close) => {
      if (this.socket !== socket || this.isClosed) return;
      if (Date.now() - opened >= STABLE_AFTER) this.delay = DELAY_MIN;
      this.ended(close);
    };
  }

  async ended(close) {
    const { end } = this;
    if (close.code === 1000) {
      this.handlers.state({ kind: "complete" });
      return;
    }
    if (end !== null && end.retry_after_ms === undefined) {
      this.handlers.state({ kind: "failed", reason: end.reason ?? "", message: end.message });
      return;
    }
    let refusal = null;
    if (end === null) {
      refusal = await refusedBy();
      if (refusal === null && !this.isOpen) refusal = await rejectedBy(this.path, this.lastQuery);
    }
    if (this.isClosed) return;
    if (refusal !== null) {
      this.handlers.state({ kind: "failed", reason: refusal.reason, message: refusal.message });
      return;
    }
    const message = end === null ? UNANSWERED : end.message;
    const delay = Math.max(jittered(this.delay), Math.min(end?.retry_after_ms ?? 0, DELAY_MAX));
    this.delay = Math.min(this.delay * 2, DELAY_MAX);
    this.handlers.state({ kind: "reconnecting", message, delay });
    this.timer = setTimeout(() => this.open(), delay);
  }

  /** Opens it again after a final end, as with a new token. */
  reopen() {
    if (this.isClosed) return;
    clearTimeout(this.timer);
    this.socket.close();
    this.delay = DELAY_MIN;
    this.open();
  }

  close() {
    this.isClosed = true;
    clearTimeout(this.timer);
    this.socket.close();
  }
}

/** Returns the parameters of a log stream. `selection`: `tail`, `since` or `previous`. */
export function logQuery(selection, cursors) {
  const query = new URLSearchParams({ format: "entries", heartbeat: HEARTBEAT });
  if (selection.previous) {
    query.set("previous", "true");
  } else {
    query.set("follow", "true");
    // The page shows a gap and offers to refill it, so that the newest lines stay in view.
    query.set("on_lag", "drop");
  }
  if (cursors.length > 0) cursors.forEach((cursor) => query.append("resume", cursor));
  else {
    if (selection.tail !== null && selection.tail !== undefined) query.set("tail", selection.tail);
    if (selection.since) query.set("since", selection.since);
  }
  return query;
}

/** Follows the log of the lease. Calls `onRepeat` before it reads everything again: previous runs cannot be resumed. */
export class LogStream {
  constructor(path, selection, reader, onState, onEntry, onRepeat) {
    let attempts = 0;
    const query = () => {
      attempts += 1;
      if (!selection.previous) return logQuery(selection, reader.cursors());
      if (attempts > 1) onRepeat();
      return logQuery(selection, []);
    };
    this.channel = new Channel(`${path}/logs`, query, {
      message: (entry) => {
        reader.read(entry);
        onEntry(entry);
      },
      state: onState,
    });
  }

  close() {
    this.channel.close();
  }
}

/**
 * Collects the rows of a gap from a stream that begins before it: those up to the cursor after it. `events` are
 * those that the page has shown: a resumed stream repeats some.
 */
export class GapReader {
  constructor(store, marker, source, events, { rowsMax, charactersMax }) {
    this.store = store;
    this.until = parseCursor(marker.after);
    this.limits = { rowsMax, charactersMax };
    this.rows = [];
    this.characters = 0;
    /** Whether the end of the gap was reached. */
    this.isComplete = false;
    /** The runs that the page had when this began, and the last one of the gap. */
    this.known = store.sources.length;
    this.lastRun = store.source(source.service, source.replica, this.until.instance);
    this.reader = new Reader(store, (_, row) => this.take(row));
    this.own = this.reader.replica(source.service, source.replica);
    const { seconds, nanos } = parseCursor(marker.before);
    Object.assign(this.own, { cursor: marker.before, position: parseCursor(marker.before), seconds, nanos, events: [...events] });
  }

  /** The position of the last row, from which the rest can be read. */
  get cursor() {
    return this.own.cursor;
  }

  get isFull() {
    return this.rows.length >= this.limits.rowsMax || this.characters >= this.limits.charactersMax;
  }

  /** Reads an entry. Returns whether more are needed. */
  read(entry) {
    for (const line of entry.lines ?? []) this.characters += line.text.length;
    this.reader.read(entry);
    const at = this.own.position;
    if (at.instance === this.until.instance && isAfter(at, this.until) >= 0) this.isComplete = true;
    return !this.isComplete && !this.isFull;
  }

  take(row) {
    // A later run that the page has already: the last run of the gap is no longer in the log.
    const isShown = row.source > this.lastRun && row.source < this.known;
    const isLine = typeof row.data === "string" && row.source === this.lastRun;
    if (isShown || (isLine && isAfter(row, this.until) > 0)) this.isComplete = true;
    if (!this.isComplete) this.rows.push(row);
  }
}

/** Reads the lines of a gap again with `reader`. Calls `done` with the problem, or with `null`. */
export function refill(path, { service, replica }, reader, done) {
  const query = new URLSearchParams({ format: "entries", service, replica, resume: reader.cursor });
  const socket = openSocket(`${path}/logs`, query);
  let failure = null;
  const finish = (problem) => {
    if (socket.onclose === null) return;
    socket.onclose = null;
    socket.onmessage = null;
    socket.close();
    done(problem);
  };
  socket.onmessage = (message) => {
    const entry = JSON.parse(message.data);
    if (entry.end !== undefined) failure = entry.end.message;
    else if (!reader.read(entry)) finish(null);
  };
  socket.onclose = (close) => {
    if (close.code === 1000) reader.isComplete = true;
    finish(close.code === 1000 ? null : (failure ?? UNANSWERED));
  };
}
