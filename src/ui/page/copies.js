// Copies of lines, and files with them.

import { visibleText, withoutReturn } from "./ansi.js";
import { announce, fail } from "./dom.js";
import { markerText } from "./log_view.js";
import { lineText } from "./store.js";
import { rfc3339 } from "./time.js";

/** Returns the text of a row as the page shows it. Raw control characters could act in the terminal into which it is pasted. */
function rowText(store, number) {
  const row = store.row(number);
  const text = lineText(row.data);
  const name = store.sources[row.source].name;
  return text === null ? `${name} [${markerText(row.data)}]` : `${name} ${visibleText(withoutReturn(text))}`;
}

function rowObject(store, number) {
  const { source, seconds, nanos, data } = store.row(number);
  const { service, replica, instance } = store.sources[source];
  const time = Number.isFinite(seconds) ? rfc3339(seconds, nanos) : undefined;
  const text = lineText(data);
  const content = text === null ? { [data.kind]: data[data.kind] ?? data.text } : { text };
  return JSON.stringify({ service, replica, instance, time, ...content });
}

/** Copies the chosen lines, or all visible ones. */
export async function copy(logView) {
  const chosen = logView.selected();
  const numbers = chosen.length > 0 ? chosen : [...logView.nodes.keys()];
  await copyText(numbers.map((number) => rowText(logView.store, number)).join("\n"), `${numbers.length} ${numbers.length === 1 ? "line" : "lines"} copied`);
}

/** Copies a link; `null`: no line is chosen. */
export async function copyLink(url) {
  if (url === null) announce("choose a line first");
  else await copyText(url, "link copied");
}

async function copyText(text, done) {
  try {
    await navigator.clipboard.writeText(text);
    announce(done);
  } catch {
    fail("The browser does not let this page write to the clipboard.");
  }
}

/** Saves all rows that the filter shows, as text or as JSON lines. */
export async function download(view, isJson) {
  const [extension, type, format] = isJson ? ["jsonl", "application/x-ndjson", rowObject] : ["log", "text/plain", rowText];
  while (!view.isCurrent) {
    view.step();
    await new Promise(requestAnimationFrame);
  }
  const parts = [];
  for (let index = 0; index < view.count; index += 1) parts.push(format(view.store, view.number(index)), "\n");
  const url = URL.createObjectURL(new Blob(parts, { type }));
  const anchor = document.createElement("a");
  anchor.href = url;
  anchor.download = `leasemux.${extension}`;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
