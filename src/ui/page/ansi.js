// Text of a line as DOM nodes: colours (SGR) take effect, every other control character is shown as text.
//
// Lines are untrusted. They only ever become text nodes, and colours become classes or colour values that are
// computed from numbers.

/** Longest part of a line that is shown. Copies and downloads have all of it. */
export const SHOWN_MAX = 20000;

/** Most elements of a line: colours and control characters. A hostile line has one for each character, and would stop the page. */
const ELEMENTS_MAX = 1000;

const SGR = /\x1b\[([0-9;:]{0,60})m/g;

// C0 without tab, DEL, C1; directional marks, embeddings, overrides and isolates; separators and invisible
// characters, blank letters among them, that can hide text. Joiners of emoji and scripts (U+200C, U+200D) stay.
const SPECIAL =
  /[\x00-\x08\x0a-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\u3164\ufeff\uffa0\ufff9-\ufffb]|[\u{e0000}-\u{e007f}]/u;
const SPECIALS = new RegExp(SPECIAL.source, "gu");

/** Returns the text without colours, which filters and copies use. */
export function plainText(text) {
  return text.includes("\x1b") ? text.replace(SGR, "") : text;
}

/** Returns the visible text of a control character: as `cat -v`, ^[ for escape and ^? for delete. */
export function visible(character) {
  const code = character.codePointAt(0);
  if (code < 0x20 || code === 0x7f) return `^${String.fromCharCode(code ^ 0x40)}`;
  return `<U+${code.toString(16).toUpperCase().padStart(4, "0")}>`;
}

/** Returns the text without colours, and with every other control character as text. */
export function visibleText(text) {
  return plainText(text).replace(SPECIALS, visible);
}

/** Returns a line without the carriage return at its end, which belongs to the line break. */
export function withoutReturn(text) {
  return text.endsWith("\r") ? text.slice(0, -1) : text;
}

/**
 * Appends the text of a line to `parent`. `ranges` are the matches to highlight, as pairs of positions in the
 * plain text.
 */
export function appendLine(parent, text, ranges) {
  const line = withoutReturn(text);
  const shown = line.length > SHOWN_MAX ? line.slice(0, SHOWN_MAX) : line;
  if (ranges.length === 0 && !shown.includes("\x1b")) {
    appendPlain(parent, shown, { left: ELEMENTS_MAX });
  } else {
    appendStyled(parent, shown, ranges);
  }
  if (shown.length < line.length) {
    const more = (line.length - shown.length).toLocaleString("en");
    parent.append(element("span", "control", ` … ${more} more characters`));
  }
}

function appendStyled(parent, text, ranges) {
  const style = new Style();
  const budget = { left: ELEMENTS_MAX };
  let plainAt = 0;
  let next = 0;
  const run = (from, to) => {
    let at = from;
    while (at < to) {
      const offset = plainAt - from;
      while (next < ranges.length && ranges[next][1] <= at + offset) next += 1;
      const [start, end] = next < ranges.length ? ranges[next] : [Infinity, Infinity];
      const inside = start <= at + offset;
      const until = Math.min(to, (inside ? end : start) - offset);
      const target = style.wrap(parent);
      budget.left -= 1;
      appendPlain(inside ? appended(target, element("mark")) : target, text.slice(at, until), budget);
      at = until;
    }
    plainAt += to - from;
  };
  let from = 0;
  for (const found of text.matchAll(SGR)) {
    run(from, found.index);
    style.apply(found[1]);
    from = found.index + found[0].length;
    if (budget.left <= 0) {
      parent.append(visibleText(text.slice(from)));
      return;
    }
  }
  run(from, text.length);
}

function appendPlain(parent, text, budget) {
  if (!SPECIAL.test(text)) {
    parent.append(text);
    return;
  }
  let from = 0;
  for (const found of text.matchAll(SPECIALS)) {
    if (budget.left <= 0) break;
    budget.left -= 1;
    if (found.index > from) parent.append(text.slice(from, found.index));
    parent.append(element("span", "control", visible(found[0])));
    from = found.index + found[0].length;
  }
  if (from < text.length) parent.append(text.slice(from).replace(SPECIALS, visible));
}

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function appended(parent, child) {
  parent.append(child);
  return child;
}

/** The graphic rendition that is in effect. */
class Style {
  constructor() {
    this.reset();
  }

  reset() {
    this.flags = new Set();
    this.foreground = null;
    this.background = null;
  }

  /** Applies the parameters of one sequence. */
  apply(parameters) {
    // A parameter with colons is complete by itself, as `38:2::255:0:0` and `4:3`.
    const groups = parameters.split(";").map((group) => group.split(":").map((code) => (code === "" ? 0 : Number(code))));
    const codes = groups.map(([code]) => code);
    for (let at = 0; at < codes.length; at += 1) {
      const code = codes[at];
      if (groups[at].length > 1) this.applyGroup(groups[at]);
      else if (code === 0) this.reset();
      else if (code === 1) this.flags.add("bold");
      else if (code === 2) this.flags.add("dim");
      else if (code === 3) this.flags.add("italic");
      else if (code === 4) this.flags.add("underline");
      else if (code === 7) this.flags.add("inverse");
      else if (code === 9) this.flags.add("strike");
      else if (code === 22) ["bold", "dim"].forEach((flag) => this.flags.delete(flag));
      else if (code === 23) this.flags.delete("italic");
      else if (code === 24) this.flags.delete("underline");
      else if (code === 27) this.flags.delete("inverse");
      else if (code === 29) this.flags.delete("strike");
      else if (code >= 30 && code <= 37) this.foreground = code - 30;
      else if (code === 39) this.foreground = null;
      else if (code >= 40 && code <= 47) this.background = code - 40;
      else if (code === 49) this.background = null;
      else if (code >= 90 && code <= 97) this.foreground = code - 82;
      else if (code >= 100 && code <= 107) this.background = code - 92;
      else if (code === 38 || code === 48) {
        const [color, used] = extended(codes, at + 1);
        if (code === 38) this.foreground = color;
        else this.background = color;
        at += used;
      }
    }
  }

  /** Applies a parameter with its parts. The colour space before the three values of a colour is optional. */
  applyGroup([code, kind, ...values]) {
    if (code === 4) this.flags[kind === 0 ? "delete" : "add"]("underline");
    if (code !== 38 && code !== 48) return;
    const [color] = extended([kind, ...(kind === 2 && values.length > 3 ? values.slice(1) : values)], 0);
    if (code === 38) this.foreground = color;
    else this.background = color;
  }

  /** Returns `parent`, or a new child of it that has the style. */
  wrap(parent) {
    if (this.flags.size === 0 && this.foreground === null && this.background === null) return parent;
    const span = element("span", [...this.flags].join(" "));
    paint(span, "f", "color", this.foreground);
    paint(span, "b", "backgroundColor", this.background);
    return appended(parent, span);
  }
}

function paint(span, prefix, property, color) {
  if (typeof color === "number") span.classList.add(`${prefix}${color}`);
  else if (color) span.style[property] = `rgb(${color.join(" ")})`;
}

/** Reads a colour of 256 or of 24 bits. Returns it, and how many parameters it has. */
function extended(codes, at) {
  if (codes[at] === 5) {
    const index = byte(codes[at + 1]);
    if (index < 16) return [index, 2];
    if (index >= 232) return [Array(3).fill((index - 232) * 10 + 8), 2];
    const level = (value) => (value === 0 ? 0 : value * 40 + 55);
    const cube = index - 16;
    return [[level(Math.floor(cube / 36)), level(Math.floor(cube / 6) % 6), level(cube % 6)], 2];
  }
  if (codes[at] === 2) return [[byte(codes[at + 1]), byte(codes[at + 2]), byte(codes[at + 3])], 4];
  return [null, 0];
}

function byte(value) {
  return Math.min(255, Math.max(0, Math.floor(value) || 0));
}
