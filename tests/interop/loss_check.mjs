// The loss check of the clients in JavaScript, which `tests/it/interop.rs` runs. Each replica prints numbered lines with the
// same text, `1 TEXT`, `2 TEXT`, from 1 in every run.

/** Prints a line for the test. */
export const report = (...words) => process.stdout.write(words.join(" ") + "\n");

/** Checks lines and notices of replicas, by their names. Throws if a line is lost without a notice, repeated or out of order. */
export class LossCheck {
  #text;
  #fromFirst;
  #replicas = new Map();

  /** `fromFirst`: all lines were asked for, from number 1; else the first may have any number. */
  constructor(text, fromFirst) {
    this.#text = text;
    this.#fromFirst = fromFirst;
  }

  #replica(name) {
    if (!this.#replicas.has(name)) this.#replicas.set(name, { runs: 0, last: 0, lost: 0, started: false });
    return this.#replicas.get(name);
  }

  line(name, line) {
    const replica = this.#replica(name);
    const number = parseInt(line, 10);
    if (line !== `${number} ${this.#text}`) throw new Error(`${name}: not a line of this service: ${line}`);
    const isFirst = replica.runs === 0 && (!this.#fromFirst || number === replica.lost + 1);
    if (isFirst || (replica.started && number === 1)) {
      replica.runs += 1;
      report("run", name, replica.runs);
    } else if (number !== replica.last + replica.lost + 1) {
      throw new Error(`${name}: line ${number} after line ${replica.last} and ${replica.lost} lost lines`);
    }
    Object.assign(replica, { last: number, lost: 0, started: false });
  }

  gap(name, lines) {
    this.#replica(name).lost += lines;
    report("gap");
  }

  started(name) {
    this.#replica(name).started = true;
  }
}
