// Asks a worker which texts match a regular expression. The time of an expression can double with each character of a line, and
// nothing but the end of its thread interrupts it.

/** Longest time for one question, in milliseconds: far longer than a usual one takes on a busy machine. */
const TIME_MAX = 5000;

/** Most texts of a question, and characters with which it is full. */
export const TEXTS_MAX = 2048;
export const QUESTION_MAX = 256 * 1024;

export class Matcher {
  constructor(start = () => new Worker(new URL("./match_worker.js", import.meta.url), { type: "module" })) {
    this.start = start;
    this.worker = null;
    this.id = 0;
    this.pending = null;
  }

  /** Whether a question waits for its answer. */
  get isBusy() {
    return this.pending !== null;
  }

  /**
   * Asks whether each text matches, or with `wantsMarks` for the pairs of positions. `done(found)` gets an array, or `null` if that took
   * too long. One question at a time.
   */
  ask(expression, texts, wantsMarks, done) {
    if (this.worker === null) {
      this.worker = this.start();
      this.worker.onmessage = ({ data: { id, found } }) => {
        if (id === this.pending?.id) this.answer(found);
      };
    }
    this.id += 1;
    this.pending = { id: this.id, done, timer: setTimeout(() => this.stop(), TIME_MAX) };
    this.worker.postMessage({ id: this.id, source: expression.source, flags: expression.flags, texts, wantsMarks });
  }

  /** Drops the question, whose expression is no longer wanted. A worker that still runs it is of no use. */
  cancel() {
    if (this.pending !== null) this.end();
    this.pending = null;
  }

  stop() {
    this.end();
    this.answer(null);
  }

  end() {
    clearTimeout(this.pending.timer);
    this.worker.terminate();
    this.worker = null;
  }

  answer(found) {
    const { done, timer } = this.pending;
    clearTimeout(timer);
    this.pending = null;
    done(found);
  }
}
