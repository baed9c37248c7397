// Reads the lines of a gap from the log again.

import { GapReader, refill } from "./connection.js";
import { announce } from "./dom.js";
import { lineText } from "./store.js";

/** Most rows and characters that one refill reads. The rest stays a gap. */
const REFILL_MAX = { rowsMax: 200_000, charactersMax: 64 * 1024 * 1024 };

/**
 * Reads the lines of the gap in the row `number` again, and puts them there. `page` has the `store`, the `reader`, the `path` of the
 * lease, the sum of what is `lost`, and is told when a marker has `changed()` and when rows were `inserted(at, count)`.
 */
export function refillGap(number, page) {
  const { store, reader, lost } = page;
  if (number < store.first || number >= store.end) return;
  const row = store.row(number);
  const { data } = row;
  if (typeof data !== "object" || data.kind !== "gap" || data.before === null || data.after === null || data.isBusy) return;
  change(page, data, { isBusy: true, failure: undefined });
  const source = store.sources[row.source];
  const { events } = reader.replica(source.service, source.replica);
  const gapReader = new GapReader(store, data, source, events, REFILL_MAX);
  refill(page.path, source, gapReader, (failure) => {
    data.isBusy = false;
    const at = numberOf(store, data);
    if (at === null) return;
    const { rows, isComplete } = gapReader;
    const lines = rows.filter((one) => lineText(one.data) !== null).length;
    if (lines === 0) {
      change(page, data, { failure: failure ?? "the log no longer has them" });
      return;
    }
    const note = `${lines.toLocaleString("en")} missing ${lines === 1 ? "line was" : "lines were"} read again`;
    const marker = { ...row, data: { kind: "note", text: note } };
    lost.gaps -= 1;
    lost.lines -= data.gap.lines;
    const rest = [];
    if (!isComplete) {
      const left = { ...data.gap, lines: Math.max(0, data.gap.lines - lines), bytes: 0 };
      rest.push({ ...row, data: { kind: "gap", gap: left, before: gapReader.cursor, after: data.after, failure } });
      lost.gaps += 1;
      lost.lines += left.lines;
    }
    for (const one of rows) {
      if (typeof one.data === "object" && one.data.kind === "gap") {
        lost.gaps += 1;
        lost.lines += one.data.gap.lines;
      }
    }
    store.replace(at, [marker, ...rows, ...rest]);
    page.inserted(at, rows.length + rest.length);
    announce(note);
  });
}

/** Changes the data of a marker, and draws it again. */
function change(page, data, changes) {
  Object.assign(data, changes, { version: (data.version ?? 0) + 1 });
  page.changed();
}

/** Returns the number of the row with this marker; `null` if it was dropped. */
function numberOf(store, data) {
  let found = null;
  store.each(store.first, store.end, (block, at, number) => {
    if (block.data[at] === data) found = number;
    return found === null;
  });
  return found;
}
