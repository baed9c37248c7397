// Which rows are shown: a text or regular expression with lines of context, and a choice of replicas.

import { SHOWN_MAX, plainText } from "./ansi.js";
import { QUESTION_MAX, TEXTS_MAX } from "./matcher.js";
import { lineText } from "./store.js";

/** Longest time of one step, in milliseconds, so that frames stay smooth. */
const STEP_MAX = 8;

/** Rows between two looks at the clock. */
const STEP_ROWS = 512;

/** Most unfinished lines that are looked at again: the newest line of each replica is one. */
const UNFINISHED_MAX = 2048;

/** Characters of a line that the matcher is sent. Colours are not counted among those that it looks at. */
const ASKED_MAX = 4 * SHOWN_MAX;

/** Most texts whose matches are remembered for drawing: some windows full of lines. */
const MARKS_MAX = 1000;

/** Returns the expression of a filter; `null` without one. Throws if it is malformed. */
export function compile(text, isRegex, matchesCase) {
  if (text === "") return null;
  const source = isRegex ? text : text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  return new RegExp(source, matchesCase ? "gu" : "giu");
}

/** Returns whether the first part of a text matches. */
export function isMatch(expression, text) {
  expression.lastIndex = 0;
  return expression.test(plainText(text).slice(0, SHOWN_MAX));
}

/** Returns the matches in a text as pairs of positions. Empty matches are left out. */
export function matches(expression, text) {
  if (expression === null) return [];
  // Where the last search has left it.
  expression.lastIndex = 0;
  const found = [];
  for (const match of plainText(text).slice(0, SHOWN_MAX).matchAll(expression)) {
    if (match[0].length > 0) found.push([match.index, match.index + match[0].length]);
    if (found.length === 100) break;
  }
  return found;
}

/**
 * The rows of a store that a filter selects, by their numbers. With a `matcher`, rows are looked at when it has answered, and `answered()`
 * is called then: a regular expression can take hours for one line. Without one, at once.
 */
export class View {
  constructor(store, matcher = null, answered = () => {}) {
    this.store = store;
    this.matcher = matcher;
    this.answered = answered;
    this.expression = null;
    /** Whether the expression is a regular one, for the matcher. */
    this.isRegex = false;
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
    /** Whether the filter took too long, and selects no further rows. */
    this.isTooSlow = false;
    this.matcher?.cancel();
    /** Matches of texts that were drawn, and texts that wait for them. */
    this.marksOf = new Map();
    this.unmarked = new Set();
  }

  get count() {
    return this.isEverything ? this.store.end - this.store.first : this.numbers.length - this.start;
  }

  /** Returns whether all rows were looked at. */
  get isCurrent() {
    return this.isEverything || this.isTooSlow || (this.scanned >= this.store.end && this.layout === this.store.layout);
  }

  get isAsynchronous() {
    return this.matcher !== null && this.isRegex && this.expression !== null;
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

  /** Returns the matches in a text that is drawn. They may be known only later: `answered` is called then. */
  marks(text) {
    if (this.expression === null || this.isTooSlow) return [];
    if (!this.isAsynchronous) return matches(this.expression, text);
    const known = this.marksOf.get(text);
    if (known === undefined) this.unmarked.add(text);
    return known ?? [];
  }

  /** Looks at further rows for a few milliseconds, or asks about them. */
  step() {
    if (this.layout !== this.store.layout) this.reset();
    if (this.isTooSlow) return;
    if (this.isAsynchronous) {
      this.ask();
      return;
    }
    if (this.isEverything) return;
    this.forget();
    this.lookAgain((line) => isMatch(this.expression, line.data.text));
    const deadline = performance.now() + STEP_MAX;
    // At least one part, so that a busy machine makes progress too.
    do {
      const to = Math.min(this.scanned + STEP_ROWS, this.store.end);
      this.store.each(this.scanned, to, (block, at, number) => {
        const data = block.data[at];
        this.look(block.source[at], data, number, data.version, (text) => isMatch(this.expression, text));
      });
      this.scanned = to;
    } while (this.scanned < this.store.end && performance.now() < deadline);
  }

  /** Forgets rows that the store has dropped. */
  forget() {
    while (this.start < this.numbers.length && this.numbers[this.start] < this.store.first) this.start += 1;
    if (this.start > 65536) {
      this.numbers.splice(0, this.start);
      this.start = 0;
    }
    this.scanned = Math.max(this.scanned, this.store.first);
  }

  /** Asks the matcher about drawn texts, or else about unfinished lines and further rows. */
  ask() {
    if (this.matcher.isBusy) return;
    if (this.unmarked.size > 0) {
      const texts = [...this.unmarked];
      this.unmarked.clear();
      this.question(texts, true, (found) => {
        if (this.marksOf.size + texts.length > MARKS_MAX) this.marksOf.clear();
        texts.forEach((text, at) => this.marksOf.set(text, found[at]));
      });
      return;
    }
    this.forget();
    const grown = this.unfinished.filter((line) => line.version !== line.data.version && line.number >= this.store.first);
    const texts = grown.map((line) => line.data.text);
    const grownTo = grown.map((line) => line.data.version);
    let characters = texts.reduce((sum, text) => sum + Math.min(text.length, SHOWN_MAX), 0);
    // What the rows were when they were asked about: unfinished lines grow meanwhile.
    const rows = [];
    this.store.each(this.scanned, this.store.end, (block, at, number) => {
      const data = block.data[at];
      rows.push({ source: block.source[at], data, number, version: data.version });
      const text = lineText(data);
      // Part of a long line is not looked at.
      texts.push(text === null ? "" : text.slice(0, ASKED_MAX));
      characters += Math.min(text?.length ?? 0, SHOWN_MAX);
      return texts.length < TEXTS_MAX && characters < QUESTION_MAX;
    });
    if (texts.length === 0) return;
    this.question(texts, false, (found) => {
      grown.forEach((line, at) => Object.assign(line, { isMatch: found[at], version: grownTo[at] }));
      this.unfinished = this.unfinished.filter((line) => !line.isMatch || this.insert(line));
      rows.forEach(({ source, data, number, version }, at) => {
        if (number >= this.store.first) this.look(source, data, number, version, () => found[grown.length + at]);
        this.scanned = number + 1;
      });
    });
  }

  question(texts, wantsMarks, take) {
    const { layout } = this;
    this.matcher.ask(this.expression, texts, wantsMarks, (found) => {
      // Rows have other numbers now: the next step begins anew.
      if (layout !== this.store.layout) return;
      if (found === null) this.isTooSlow = true;
      else take(found);
      this.answered(wantsMarks);
    });
  }

  /** Takes the next row. `test(text)` returns whether it matches. */
  look(source, data, number, version, test) {
    this.hiddenSources[source] ??= this.hidden.has(this.store.sources[source].name);
    if (this.hiddenSources[source]) return;
    const text = lineText(data);
    // Markers are always shown: a filter must not hide a loss.
    if (text === null || this.expression === null) {
      this.numbers.push(number);
      return;
    }
    if (test(text)) {
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
    const isShown = this.numbers[this.numbers.length - 1] === number;
    if (typeof data === "object" && !isShown) {
      if (this.unfinished.length === UNFINISHED_MAX) this.unfinished.shift();
      this.unfinished.push({ number, data, version });
    }
  }

  /** Looks again at unfinished lines that have grown. These get no lines of context. */
  lookAgain(test) {
    this.unfinished = this.unfinished.filter((line) => {
      if (line.number < this.store.first) return false;
      if (line.version === line.data.version) return true;
      line.version = line.data.version;
      return !test(line) || this.insert(line);
    });
  }

  /** Shows a line that was not shown. Returns `false`: it needs no further look. */
  insert(line) {
    this.matched += 1;
    this.before = this.before.filter((number) => number !== line.number);
    const at = this.start + this.index(line.number);
    if (this.numbers[at] !== line.number) this.numbers.splice(at, 0, line.number);
    return false;
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
