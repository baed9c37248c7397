// Times of lines: parsing, and texts in the form that the user chose.

/** The forms of times, in the order of the picker. */
export const TIME_FORMS = ["local", "utc", "relative", "off"];

// Lines of one batch mostly have the same second.
let cachedText = "";
let cachedSeconds = 0;

/** Parses RFC 3339 in UTC with nine digits. Returns Unix seconds and nanoseconds; `null` if it is no time. */
export function parseTime(text) {
  if (typeof text !== "string" || text.length < 20) return null;
  const second = text.slice(0, 19);
  if (second !== cachedText) {
    const milliseconds = Date.parse(`${second}Z`);
    if (Number.isNaN(milliseconds)) return null;
    cachedText = second;
    cachedSeconds = milliseconds / 1000;
  }
  // Nine digits, which the gateway always sends.
  return { seconds: cachedSeconds, nanos: Number(text.slice(20, 29)) || 0 };
}

const two = (number) => String(number).padStart(2, "0");
const three = (number) => String(number).padStart(3, "0");

/** Returns a time as RFC 3339 with nine digits. */
export function rfc3339(seconds, nanos) {
  return `${new Date(seconds * 1000).toISOString().slice(0, 19)}.${String(nanos).padStart(9, "0")}Z`;
}

/** Returns the text of a time in this form. `now` is in Unix seconds. */
export function timeText(seconds, nanos, form, now) {
  if (form === "off" || !Number.isFinite(seconds)) return "";
  const milliseconds = three(Math.floor(nanos / 1e6));
  if (form === "relative") return ago(now - seconds);
  const date = new Date(seconds * 1000);
  if (form === "utc") return `${date.toISOString().slice(5, 10)} ${date.toISOString().slice(11, 19)}.${milliseconds}Z`;
  const day = `${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  return `${day} ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}.${milliseconds}`;
}

/** Returns a duration in its two largest units. */
export function duration(seconds) {
  const total = Math.max(0, Math.floor(seconds));
  const units = [["d", 86400], ["h", 3600], ["m", 60], ["s", 1]];
  const first = units.findIndex(([, size]) => total >= size);
  if (first < 0) return "0s";
  const [name, size] = units[first];
  const rest = units[first + 1];
  const more = rest ? Math.floor((total % size) / rest[1]) : 0;
  return `${Math.floor(total / size)}${name}${more > 0 ? ` ${more}${rest[0]}` : ""}`;
}

function ago(seconds) {
  return seconds < 1 ? "now" : `${duration(seconds)} ago`;
}
