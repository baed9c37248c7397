// Orders rows of several replicas by time. The rows of one replica keep their order.

/** Rows that wait to be shown, by replica. */
export class Ordering {
  constructor() {
    this.queues = new Map();
    this.count = 0;
  }

  push(replica, row) {
    let queue = this.queues.get(replica);
    if (queue === undefined) {
      queue = { rows: [], next: 0 };
      this.queues.set(replica, queue);
    }
    queue.rows.push(row);
    this.count += 1;
  }

  /** Passes all rows to `take`: always the earliest of the first rows of all replicas. */
  drain(take) {
    const queues = [...this.queues.values()];
    this.queues.clear();
    this.count = 0;
    while (queues.length > 1) {
      let first = 0;
      let second = -1;
      for (let at = 1; at < queues.length; at += 1) {
        if (compare(head(queues[at]), head(queues[first])) < 0) {
          second = first;
          first = at;
        } else if (second < 0 || compare(head(queues[at]), head(queues[second])) < 0) {
          second = at;
        }
      }
      const queue = queues[first];
      const limit = head(queues[second]);
      do {
        take(queue.rows[queue.next]);
        queue.next += 1;
      } while (queue.next < queue.rows.length && compare(head(queue), limit) <= 0);
      if (queue.next === queue.rows.length) queues.splice(first, 1);
    }
    for (const queue of queues) {
      for (; queue.next < queue.rows.length; queue.next += 1) take(queue.rows[queue.next]);
    }
  }
}

function head(queue) {
  return queue.rows[queue.next];
}

function compare(one, other) {
  return one.seconds - other.seconds || one.nanos - other.nanos;
}
