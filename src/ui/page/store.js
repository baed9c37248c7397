// The rows of the log: lines and markers, in the order in which they are shown.
//
// Rows have numbers that grow, and keep their numbers when the oldest rows are dropped. Times and positions lie
// in typed arrays, in blocks, so that a million rows are a few hundred objects beside their texts.

/** Most rows that are kept. A reader scrolls no further, and downloads have another limit. */
export const ROWS_MAX = 1_000_000;

/** Most characters of all texts that are kept: 256 MiB, or twice that with characters beyond Latin-1. */
export const CHARACTERS_MAX = 256 * 1024 * 1024;

/** Most rows of a block, and characters above which it is full. The oldest block is dropped as a whole. */
const BLOCK_ROWS = 4096;
const BLOCK_CHARACTERS = 16 * 1024 * 1024;

/** Characters that a marker counts as. */
const MARKER_CHARACTERS = 100;

/**
 * A row: `source` is the index of a run in `Store.sources`, `seconds` and `nanos` its time, `ordinal` its place
 * among the lines of that time. `data` is the text, or an object: an unfinished line, or a marker with `kind`.
 */

class Block {
  constructor() {
    this.count = 0;
    this.characters = 0;
    this.isDropped = false;
    this.source = new Uint16Array(BLOCK_ROWS);
    this.seconds = new Float64Array(BLOCK_ROWS);
    this.nanos = new Uint32Array(BLOCK_ROWS);
    this.ordinal = new Uint32Array(BLOCK_ROWS);
    this.data = [];
  }

  push(row) {
    const at = this.count;
    this.source[at] = row.source;
    this.seconds[at] = row.seconds;
    this.nanos[at] = row.nanos;
    this.ordinal[at] = row.ordinal;
    this.data.push(row.data);
    this.count += 1;
    const { data } = row;
    this.characters += lineText(data)?.length ?? MARKER_CHARACTERS;
    if (typeof data === "object") data.block = this;
  }

  get isFull() {
    return this.count === BLOCK_ROWS || this.characters > BLOCK_CHARACTERS;
  }

  row(at) {
    return {
      source: this.source[at],
      seconds: this.seconds[at],
      nanos: this.nanos[at],
      ordinal: this.ordinal[at],
      data: this.data[at],
    };
  }
}

export class Store {
  constructor() {
    this.sources = [];
    this.sourceOf = new Map();
    this.clear();
  }

  clear() {
    this.blocks = [];
    this.starts = [];
    /** Number of the first row that is kept. */
    this.first = 0;
    /** Number after the last row. */
    this.end = 0;
    this.characters = 0;
    /** Lines that were dropped because of the limits. */
    this.dropped = 0;
    /** Changes when rows are inserted, which changes the numbers of later rows. */
    this.layout = (this.layout ?? 0) + 1;
  }

  /** Returns the index of a run of a replica. */
  source(service, replica, instance) {
    const key = `${service}/${replica}/${instance}`;
    let index = this.sourceOf.get(key);
    if (index === undefined) {
      // Beyond the range of the array, runs share the last index.
      index = Math.min(this.sources.length, 65535);
      this.sources[index] = { service, replica, instance, name: `${service}/${replica}` };
      this.sourceOf.set(key, index);
    }
    return index;
  }

  append(row) {
    let block = this.blocks[this.blocks.length - 1];
    if (block === undefined || block.isFull) {
      this.dropOldest();
      block = new Block();
      this.starts.push(this.end);
      this.blocks.push(block);
    }
    const before = block.characters;
    block.push(row);
    this.characters += block.characters - before;
    this.end += 1;
  }

  /** Appends text to an unfinished line, which may not be a row yet, or no longer. */
  grow(line, text) {
    line.text += text;
    line.version += 1;
    if (line.block === undefined || line.block.isDropped) return;
    line.block.characters += text.length;
    this.characters += text.length;
    this.dropOldest();
  }

  /** Replaces the row `number` by `rows`. */
  replace(number, rows) {
    const { index, at } = this.find(number);
    const old = this.blocks[index];
    const blocks = [new Block()];
    const put = (row) => {
      if (blocks[blocks.length - 1].isFull) blocks.push(new Block());
      blocks[blocks.length - 1].push(row);
    };
    for (let from = 0; from < at; from += 1) put(old.row(from));
    rows.forEach(put);
    for (let from = at + 1; from < old.count; from += 1) put(old.row(from));
    this.blocks.splice(index, 1, ...blocks.filter((block) => block.count > 0));
    this.end += rows.length - 1;
    this.characters = this.blocks.reduce((sum, block) => sum + block.characters, 0);
    this.number();
    this.layout += 1;
    this.dropOldest();
  }

  /** Calls `visit` with the columns and the place of each row from `from` to `to`. */
  each(from, to, visit) {
    if (from >= to) return;
    let { index, at } = this.find(from);
    for (let number = from; number < to; index += 1, at = 0) {
      const block = this.blocks[index];
      for (; at < block.count && number < to; at += 1, number += 1) {
        if (visit(block, at, number) === false) return;
      }
    }
  }

  /** Returns the row `number`, which must be kept. */
  row(number) {
    const { index, at } = this.find(number);
    return this.blocks[index].row(at);
  }

  find(number) {
    let low = 0;
    let high = this.starts.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.starts[middle] <= number) low = middle;
      else high = middle - 1;
    }
    return { index: low, at: number - this.starts[low] };
  }

  dropOldest() {
    while (
      this.blocks.length > 1 &&
      (this.end - this.first > ROWS_MAX - BLOCK_ROWS || this.characters > CHARACTERS_MAX)
    ) {
      const [oldest] = this.blocks.splice(0, 1);
      this.starts.splice(0, 1);
      this.first += oldest.count;
      this.dropped += oldest.count;
      this.characters -= oldest.characters;
      oldest.isDropped = true;
    }
  }

  number() {
    let start = this.first;
    this.starts = this.blocks.map((block) => {
      const own = start;
      start += block.count;
      return own;
    });
  }
}

/** Returns the text of a row's data, or `null` for a marker. */
export function lineText(data) {
  if (typeof data === "string") return data;
  return data.kind === "line" ? data.text : null;
}
