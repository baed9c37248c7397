// Which rows are shown: a text or regular expression with lines of context, and a choice of replicas.

import { SHOWN_MAX, plainText } from "./ansi.js";
import { lineText } from "./store.js";

/** Longest time of one step, in milliseconds, so that frames stay smooth. */
const STEP_MAX = 8;

/** Rows between two looks at the clock. */
const STEP_ROWS = 512;

/** Returns the expression of a filter; `null` without one. Throws if it is malformed. */
export function compile(text, isRegex, matchesCase) {
  if (text === "") return null;
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
  }

  get count() {
    return this.isEverything ? this.store.end - this.store.first : this.numbers.length - this.start;
  }

  /** Returns whether all rows were looked at. */
  get isCurrent() {
    return this.isEverything || (this.scanned >= this.store.end && this.layout === this.store.layout);
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
    if (this.isEverything) return;
    while (this.start < this.numbers.length && this.numbers[this.start] < this.store.first) this.start += 1;
    if (this.start > 65536) {
      this.numbers.splice(0, this.start);
      this.start = 0;
    }
    this.scanned = Math.max(this.scanned, this.store.first);
    const deadline = performance.now() + STEP_MAX;
    while (this.scanned < this.store.end && performance.now() < deadline) {
      const to = Math.min(this.scanned + STEP_ROWS, this.store.end);
      this.store.each(this.scanned, to, (block, at, number) => this.look(block, at, number));
      this.scanned = to;
    }
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
    this.expression.lastIndex = 0;
    if (this.expression.test(plainText(text).slice(0, SHOWN_MAX))) {
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
