// The list of rows: only the visible ones are in the document.
//
// The list scrolls a tall empty element. A pane that stays in place over it shows the rows at the scroll
// position. So a million rows need no tall document, which browsers limit, and rows may wrap.

import { SHOWN_MAX, appendLine, visibleText } from "./ansi.js";
import { lineText } from "./store.js";
import { rfc3339, timeText } from "./time.js";

/** Greatest height of the scrolled element in pixels. Firefox ends at 17 million. */
const HEIGHT_MAX = 10_000_000;

/** A longer jump is one of the scroll bar, and goes to a part of the list. */
const JUMP_PAGES = 3;

/** Time without scrolling after which the scroll bar is corrected, in milliseconds. */
const IDLE = 150;

/** Longest name that others are aligned with. */
const NAME_COLUMNS_MAX = 24;

/** Longest time between an input and its scrolling, in milliseconds: smooth scrolling continues for a while. */
const TOUCH_MAX = 1000;

/** Colours of replicas in the style sheet. */
const COLORS = 12;

/** Colours that are taken, by the names of replicas. */
const colors = new Map();

/** Returns the class of a replica's colour: that of its name, or the next one that is free. */
export function colorOf(name) {
  let color = colors.get(name);
  if (color === undefined) {
    let hash = 2166136261;
    for (const character of name) hash = Math.imul(hash ^ character.codePointAt(0), 16777619);
    color = (hash >>> 0) % COLORS;
    const taken = new Set(colors.values());
    for (let tries = 0; tries < COLORS && taken.has(color); tries += 1) color = (color + 5) % COLORS;
    colors.set(name, color);
  }
  return `r${color}`;
}

export class LogView {
  /** `actions.refill(number)` reads the lines of a gap again. */
  constructor(elements, view, settings, actions) {
    Object.assign(this, elements);
    this.view = view;
    this.store = view.store;
    this.settings = settings;
    this.actions = actions;
    /** Whether the newest row is shown. */
    this.follows = true;
    /** Number of the first visible row, and how many of its pixels are above the pane. */
    this.top = 0;
    this.offset = 0;
    /** The selected rows, by numbers: `current` has the keyboard's focus. */
    this.current = null;
    this.anchor = null;
    this.nodes = new Map();
    this.lastScroll = 0;
    this.lastTouch = -Infinity;
    this.rowHeight = 18;
    this.frames = [];
    this.listen();
  }

  listen() {
    this.scroller.addEventListener("scroll", () => this.scrolled(), { passive: true });
    this.scroller.addEventListener("keydown", (event) => this.key(event));
    this.pane.addEventListener("click", (event) => this.clicked(event));
    for (const type of ["wheel", "touchmove", "pointerdown", "pointermove", "keydown"]) {
      this.scroller.addEventListener(type, (event) => this.touched(event), { passive: true });
    }
    new ResizeObserver(() => this.refresh()).observe(this.scroller);
  }

  // === Scrolling ===

  get height() {
    return this.scroller.clientHeight;
  }

  get pageRows() {
    return Math.max(1, Math.ceil(this.height / this.rowHeight));
  }

  get spacerHeight() {
    return Math.min(HEIGHT_MAX, Math.max(this.height, this.view.count * this.rowHeight));
  }

  /** Notes that the user may scroll. */
  touched(event) {
    if (event.type !== "pointermove" || event.buttons !== 0) this.lastTouch = performance.now();
  }

  scrolled() {
    const { scrollTop } = this.scroller;
    const delta = scrollTop - this.lastScroll;
    const isResized = this.height !== this.drawnHeight;
    if (this.follows && (isResized || performance.now() - this.lastTouch > TOUCH_MAX)) {
      // The size of the list has changed. The next frame is at the end again.
      this.lastScroll = scrollTop;
      this.actions.changed();
      return;
    }
    if (Math.abs(delta) < 1) return;
    this.lastScroll = scrollTop;
    const max = this.scroller.scrollHeight - this.height;
    if (Math.abs(delta) > JUMP_PAGES * this.height) {
      this.top = this.view.number(Math.round((scrollTop / max) * Math.max(0, this.view.count - this.pageRows))) ?? 0;
      this.offset = 0;
      this.follows = scrollTop >= max - 1;
    } else {
      if (this.follows && delta < 0) this.leaveEnd();
      if (!this.follows) this.move(delta);
    }
    clearTimeout(this.idle);
    this.idle = setTimeout(() => this.alignScrollBar(), IDLE);
    this.actions.changed();
  }

  /** Moves the pane by pixels, downwards if positive. */
  move(pixels) {
    let index = Math.min(this.view.index(this.top), Math.max(0, this.view.count - 1));
    let offset = this.offset + pixels;
    while (offset < 0 && index > 0) {
      index -= 1;
      offset += this.heightOf(this.view.number(index));
    }
    offset = Math.max(0, offset);
    while (index < this.view.count - 1) {
      const height = this.heightOf(this.view.number(index));
      if (offset < height) break;
      offset -= height;
      index += 1;
    }
    this.top = this.view.number(index) ?? this.store.first;
    this.offset = offset;
    if (pixels > 0 && index >= this.lastTop()) this.follows = true;
  }

  /** Returns the index of the first row of the last page. */
  lastTop() {
    let left = this.height;
    let index = this.view.count;
    while (index > 0 && left > 0) {
      index -= 1;
      left -= this.heightOf(this.view.number(index));
    }
    return index;
  }

  /** Stops to show the newest row, with the pane where it is. */
  leaveEnd() {
    this.follows = false;
    let left = this.height;
    let index = this.view.count;
    while (index > 0 && left > 0) {
      index -= 1;
      left -= this.heightOf(this.view.number(index));
    }
    this.top = this.view.number(index) ?? this.store.first;
    this.offset = Math.max(0, -left);
  }

  heightOf(number) {
    if (!this.settings.wrap) return this.rowHeight;
    const node = this.nodes.get(number);
    if (node?.isConnected) return node.offsetHeight;
    const text = lineText(this.store.row(number).data);
    const columns = Math.max(20, Math.floor((this.pane.clientWidth - (this.prefixWidth ?? 0)) / (this.columnWidth ?? 8)));
    return this.rowHeight * Math.max(1, Math.ceil(Math.min(text?.length ?? 0, SHOWN_MAX) / columns));
  }

  alignScrollBar() {
    const max = this.scroller.scrollHeight - this.height;
    const rows = Math.max(1, this.view.count - this.pageRows);
    const at = this.view.index(this.top) + this.offset / this.rowHeight;
    const wanted = this.follows ? max : Math.min(max - 1, (at / rows) * max);
    if (Math.abs(wanted - this.scroller.scrollTop) >= 1) this.scroller.scrollTop = wanted;
    this.lastScroll = this.scroller.scrollTop;
  }

  toEnd() {
    this.follows = true;
    this.actions.changed();
  }

  /** Shows the row `number` in the upper part of the pane. */
  show(number) {
    this.follows = false;
    this.top = number;
    this.offset = 0;
    this.move(-Math.floor(this.height / 3));
    this.follows = false;
    this.draw();
    this.alignScrollBar();
  }

  // === Drawing ===

  /** Draws all rows anew, after a setting was changed. */
  refresh() {
    this.nodes.clear();
    this.pane.replaceChildren();
    this.actions.changed();
  }

  draw() {
    const started = performance.now();
    const { view, pane } = this;
    this.drawnHeight = this.height;
    this.frame.style.height = `${this.drawnHeight}px`;
    this.spacer.style.height = `${this.spacerHeight}px`;
    const rows = this.pageRows + 2;
    let from;
    if (this.follows) {
      from = Math.max(0, view.count - rows);
    } else {
      if (this.top < this.store.first) {
        this.top = this.store.first;
        this.offset = 0;
      }
      from = Math.min(view.index(this.top), Math.max(0, view.count - 1));
    }
    const to = Math.min(view.count, from + rows);
    const nodes = new Map();
    const wanted = [];
    for (let index = from; index < to; index += 1) {
      const number = view.number(index);
      const node = this.node(number);
      node.setAttribute("aria-rowindex", String(index + 1));
      nodes.set(number, node);
      wanted.push(node);
    }
    this.nodes.forEach((node, number) => {
      if (!nodes.has(number)) node.remove();
    });
    this.nodes = nodes;
    wanted.forEach((node, index) => {
      if (pane.children[index] !== node) pane.insertBefore(node, pane.children[index] ?? null);
    });
    this.measure(wanted);
    this.scroller.setAttribute("aria-rowcount", String(view.count));
    const offset = this.follows ? Math.max(0, pane.offsetHeight - this.frame.clientHeight) : this.offset;
    pane.style.marginTop = `${-offset}px`;
    if (this.follows) {
      const max = this.scroller.scrollHeight - this.height;
      if (this.scroller.scrollTop < max) this.scroller.scrollTop = max;
      this.lastScroll = this.scroller.scrollTop;
    }
    this.frames.push(performance.now() - started);
    if (this.frames.length > 600) this.frames.shift();
  }

  /** Learns the height of a row and the width of a column from the first row. */
  measure([node]) {
    if (node === undefined || this.measured === this.settings.wrap) return;
    this.measured = this.settings.wrap;
    const probe = make("div", "row probe");
    const text = make("span", "text");
    text.textContent = "x".repeat(10);
    probe.append(text);
    this.pane.append(probe);
    this.rowHeight = Math.max(10, probe.getBoundingClientRect().height);
    this.columnWidth = text.getBoundingClientRect().width / 10;
    probe.remove();
    const prefix = node.querySelector(".text, .note");
    this.prefixWidth = prefix === null ? 0 : prefix.offsetLeft;
  }

  node(number) {
    const row = this.store.row(number);
    const version = row.data.version ?? 0;
    let node = this.nodes.get(number);
    if (node === undefined || node.version !== version || node.layout !== this.store.layout) {
      node?.remove();
      node = this.make(number, row);
      node.version = version;
      node.layout = this.store.layout;
    }
    const [low, high] = this.selection();
    const isSelected = number >= low && number <= high;
    node.setAttribute("aria-selected", String(isSelected));
    node.classList.toggle("current", number === this.current);
    return node;
  }

  make(number, row) {
    const source = this.store.sources[row.source];
    const text = lineText(row.data);
    const node = make("div", text === null ? `row marker ${row.data.kind}` : "row");
    node.id = `row-${number}`;
    node.number = number;
    node.setAttribute("role", "row");
    const cell = make("div", "cell");
    cell.setAttribute("role", "gridcell");
    if (this.settings.time !== "off") {
      const time = make("span", "time");
      time.textContent = timeText(row.seconds, row.nanos, this.settings.time, Date.now() / 1000);
      if (Number.isFinite(row.seconds)) time.title = rfc3339(row.seconds, row.nanos);
      cell.append(time, " ");
    }
    const name = make("span", `name ${colorOf(source.name)}`);
    name.textContent = source.name.padEnd(this.nameWidth(source.name));
    name.title = source.instance;
    cell.append(name, " ");
    if (text === null) {
      this.appendMarker(cell, row.data, number);
    } else {
      const line = make("span", "text");
      appendLine(line, text, this.view.marks(text));
      cell.append(line);
    }
    node.append(cell);
    return node;
  }

  /** Returns the columns of names: those of the longest one so far. */
  nameWidth(name) {
    const width = Math.min(NAME_COLUMNS_MAX, name.length);
    if (width > (this.names ?? 0)) {
      this.names = width;
      // The rows that are drawn have the old width.
      if (this.nodes.size > 0) queueMicrotask(() => this.refresh());
    }
    return this.names;
  }

  appendMarker(cell, data, number) {
    const note = make("span", "note");
    note.textContent = markerText(data);
    cell.append(note);
    if (data.kind === "gap" && data.before !== null && data.after !== null) {
      const button = make("button", "refill");
      button.type = "button";
      button.textContent = data.isBusy ? "Reading…" : "Refill";
      button.disabled = data.isBusy === true;
      button.tabIndex = -1;
      button.addEventListener("click", () => this.actions.refill(number));
      cell.append(" ", button);
    }
  }

  // === Selection and keys ===

  selection() {
    if (this.current === null) return [Infinity, -Infinity];
    const anchor = this.anchor ?? this.current;
    return [Math.min(anchor, this.current), Math.max(anchor, this.current)];
  }

  select(number, extend) {
    if (!extend || this.anchor === null) this.anchor = number;
    this.current = number;
    this.scroller.setAttribute("aria-activedescendant", `row-${number}`);
    this.actions.changed();
  }

  clearSelection() {
    this.current = null;
    this.anchor = null;
    this.scroller.removeAttribute("aria-activedescendant");
    this.actions.changed();
  }

  clicked(event) {
    const node = event.target.closest(".row");
    // A click that ends a selection of text keeps it.
    if (node === null || event.target.closest("button") || String(getSelection()) !== "") return;
    this.select(node.number, event.shiftKey);
  }

  key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: this.pageRows - 1, PageUp: 1 - this.pageRows };
    if (event.key in steps) this.step(steps[event.key], event.shiftKey);
    else if (event.key === "Home") this.stepTo(0, event.shiftKey);
    else if (event.key === "End") {
      this.clearSelection();
      this.toEnd();
    } else if (event.key === "Enter" && this.current !== null) this.actions.refill(this.current);
    else return;
    event.preventDefault();
  }

  step(rows, extend) {
    if (this.view.count === 0) return;
    const newest = this.follows ? this.view.count - 1 : this.view.index(this.top);
    const from = this.current === null ? newest : this.view.index(this.current) + rows;
    this.stepTo(from, extend);
  }

  stepTo(index, extend) {
    const bounded = Math.max(0, Math.min(this.view.count - 1, index));
    const number = this.view.number(bounded);
    if (number === undefined) return;
    if (this.follows) this.leaveEnd();
    this.select(number, extend);
    const first = this.view.index(this.top) + (this.offset > 0 ? 1 : 0);
    const last = this.view.index(this.top) + this.pageRows - 2;
    if (bounded < first) {
      this.top = number;
      this.offset = 0;
    } else if (bounded > last) {
      this.move((bounded - last) * this.rowHeight);
      this.follows = false;
    }
    this.draw();
    this.alignScrollBar();
  }

  /** Returns the numbers of the selected rows that are shown. */
  selected() {
    const [low, high] = this.selection();
    if (low > high) return [];
    const numbers = [];
    for (let index = this.view.index(low); index < this.view.count; index += 1) {
      const number = this.view.number(index);
      if (number > high) break;
      numbers.push(number);
    }
    return numbers;
  }
}

function make(name, className) {
  const node = document.createElement(name);
  node.className = className;
  return node;
}

const CAUSES = {
  lag: "this page was too slow",
  rotated: "the log was rotated before they were read",
  source: "the log has lost them",
  limit: "a limit of the gateway",
};

/** Returns a sentence for a marker. */
export function markerText(data) {
  if (data.kind === "gap") return gapText(data);
  if (data.kind === "note") return data.text;
  const { event } = data;
  const because = [event.reason, event.message].filter(Boolean).map(visibleText).join(": ");
  const suffix = because === "" ? "" : ` (${because})`;
  switch (event.kind) {
    case "started":
      return "started";
    case "ended":
      if (event.signal !== undefined) return `ended by signal ${event.signal}${suffix}`;
      return event.exit_code === undefined ? `ended${suffix}` : `ended with exit code ${event.exit_code}${suffix}`;
    case "waiting":
      return `waiting${suffix}`;
    case "gone":
      return "no longer part of the lease";
    default:
      return `${event.kind}${suffix}`;
  }
}

function gapText({ gap, failure }) {
  const count = gap.lines.toLocaleString("en");
  const lines = `${count} ${gap.lines === 1 ? "line is" : "lines are"} missing`;
  const amount = gap.exact ? lines : gap.lines === 0 ? "lines may be missing" : `at least ${lines}`;
  const bytes = gap.bytes > 0 ? `, ${gap.bytes.toLocaleString("en")} bytes` : "";
  const cause = CAUSES[gap.cause] === undefined ? "" : `: ${CAUSES[gap.cause]}`;
  return `${amount}${bytes}${cause}${failure ? ` — refill failed: ${visibleText(failure)}` : ""}`;
}
