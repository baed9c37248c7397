// Which rows are shown: a text or regular expression with lines of context, and a choice of replicas.

import { SHOWN_MAX, plainText } from "./ansi.js";
import { lineText } from "./store.js";

/** Longest time of one step, in milliseconds, so that frames stay smooth. */
const STEP_MAX = 8;

/** Rows between two looks at the clock. */
const STEP_ROWS = 512;

/** Most unfinished lines that are looked at again: the newest line of each replica is one. */
const UNFINISHED_MAX = 2048;

/** Longest time for which a filter may look at one line, in milliseconds: far longer than a pause of a busy machine. */
const LINE_TIME_MAX = 1000;

/** A part of a regular expression: an escape, a class, a bracket or a repetition. */
const PARTS = /\\.|\[(?:\\.|[^\]\\])*\]|[()]|[*+]|\{\d+(?:,\d*)?\}/gsu;

/**
 * Returns whether a repeated group contains a repetition. The time of such an expression can double with each
 * character of a line, and nothing can interrupt it.
 */
function hasNestedRepetition(source) {
  const open = [false];
  let closed = null;
  for (const { 0: part, index } of source.matchAll(PARTS)) {
    const isRepetition = /^(?:[*+]|\{\d+,)/.test(part);
    // Ten times and more are as bad around a repetition, and harmless within another one.
    if ((isRepetition || /^\{\d{2,}/.test(part)) && closed?.hasRepetition && closed.end === index) return true;
    if (part === "(") open.push(false);
    else if (part === ")" && open.length > 1) {
      closed = { hasRepetition: open.pop(), end: index + 1 };
      if (closed.hasRepetition) open[open.length - 1] = true;
    } else if (isRepetition) open[open.length - 1] = true;
  }
  return false;
}

/** Returns the expression of a filter; `null` without one. Throws if it is malformed, or may take too long. */
export function compile(text, isRegex, matchesCase) {
  if (text === "") return null;
  if (isRegex && hasNestedRepetition(text)) {
    throw new Error("a repeated group must not contain a repetition, which can take hours on one line");
  }
  const source = isRegex ? text : text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  return new RegExp(source, matchesCase ? "gu" : "giu");
}

/** Returns the matches in a text as pairs of positions. Empty matches are left out. */
export function matches(expression, text) {
  if (expression === null) return [];
  const found = [];
  for (const match of plainText(text).slice(0, SHOWN_MAX).matchAll(expression)) {
    if (match[0].length > 0) found.push([match.index, match.index + match[0].length]);
    if (found.length === 100) break;
  }
  return found;
}

/** The rows of a store that a filter selects, by their numbers. */
export class View {
  constructor(store) {
    this.store = store;
    this.expression = null;
    this.context = 0;
    /** Names of replicas whose rows are hidden. */
    this.hidden = new Set();
    this.reset();
  }

  /** Selects rows anew, after the filter was changed. */
  reset() {
    this.isEverything = this.expression === null && this.hidden.size === 0;
    this.layout = this.store.layout;
    this.scanned = this.store.first;
    this.numbers = [];
    this.start = 0;
    this.matched = 0;
    this.before = [];
    this.after = 0;
    this.hiddenSources = [];
    /** Unfinished lines that do not match yet: their numbers and data. */
    this.unfinished = [];
    /** Whether the filter took too long on a line, and selects no further rows. */
    this.isTooSlow = false;
  }

  get count() {
    return this.isEverything ? this.store.end - this.store.first : this.numbers.length - this.start;
  }

  /** Returns whether all rows were looked at. */
  get isCurrent() {
    return this.isEverything || this.isTooSlow || (this.scanned >= this.store.end && this.layout === this.store.layout);
  }

  /** Returns the number of the row at `index`. */
  number(index) {
    return this.isEverything ? this.store.first + index : this.numbers[this.start + index];
  }

  /** Returns the index of the first row at or after `number`. */
  index(number) {
    if (this.isEverything) return Math.max(0, number - this.store.first);
    let low = this.start;
    let high = this.numbers.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.numbers[middle] < number) low = middle + 1;
      else high = middle;
    }
    return low - this.start;
  }

  /** Looks at further rows for a few milliseconds. */
  step() {
    if (this.layout !== this.store.layout) this.reset();
    if (this.isEverything || this.isTooSlow) return;
    while (this.start < this.numbers.length && this.numbers[this.start] < this.store.first) this.start += 1;
    if (this.start > 65536) {
      this.numbers.splice(0, this.start);
      this.start = 0;
    }
    this.scanned = Math.max(this.scanned, this.store.first);
    this.lookAgain();
    const deadline = performance.now() + STEP_MAX;
    // At least one part, so that a busy machine makes progress too.
    do {
      const to = Math.min(this.scanned + STEP_ROWS, this.store.end);
      this.store.each(this.scanned, to, (block, at, number) => this.look(block, at, number));
      this.scanned = to;
    } while (this.scanned < this.store.end && performance.now() < deadline && !this.isTooSlow);
  }

  look(block, at, number) {
    const source = block.source[at];
    this.hiddenSources[source] ??= this.hidden.has(this.store.sources[source].name);
    if (this.hiddenSources[source]) return;
    const text = lineText(block.data[at]);
    // Markers are always shown: a filter must not hide a loss.
    if (text === null || this.expression === null) {
      this.numbers.push(number);
      return;
    }
    if (this.test(text)) {
      this.addContext();
      this.numbers.push(number);
      this.after = this.context;
      this.matched += 1;
    } else if (this.after > 0) {
      this.after -= 1;
      this.numbers.push(number);
    } else if (this.context > 0) {
      if (this.before.length === this.context) this.before.shift();
      this.before.push(number);
    }
    const data = block.data[at];
    const isShown = this.numbers[this.numbers.length - 1] === number;
    if (typeof data === "object" && !isShown) {
      if (this.unfinished.length === UNFINISHED_MAX) this.unfinished.shift();
      this.unfinished.push({ number, data, version: data.version });
    }
  }

  /** Returns whether the first part of a text matches. */
  test(text) {
    if (this.isTooSlow) return false;
    this.expression.lastIndex = 0;
    const started = performance.now();
    const isMatch = this.expression.test(plainText(text).slice(0, SHOWN_MAX));
    this.isTooSlow = performance.now() - started > LINE_TIME_MAX;
    return isMatch;
  }

  /** Looks again at unfinished lines that have grown. These get no lines of context. */
  lookAgain() {
    this.unfinished = this.unfinished.filter((line) => {
      if (line.number < this.store.first) return false;
      if (line.version === line.data.version) return true;
      line.version = line.data.version;
      if (!this.test(line.data.text)) return true;
      this.matched += 1;
      this.before = this.before.filter((number) => number !== line.number);
      const at = this.start + this.index(line.number);
      if (this.numbers[at] !== line.number) this.numbers.splice(at, 0, line.number);
      return false;
    });
  }

  /** Adds the lines before a match, in order with the markers between them. */
  addContext() {
    if (this.before.length === 0) return;
    const later = [];
    while (this.numbers.length > this.start && this.numbers[this.numbers.length - 1] > this.before[0]) {
      later.push(this.numbers.pop());
    }
    this.numbers.push(...[...this.before, ...later].sort((one, other) => one - other));
    this.before.length = 0;
  }
}
