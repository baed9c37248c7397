// The server of this page: `leasemux ui`, which serves one lease and has its credentials, or the REST port of a gateway, which needs a
// token. The token stays in this module: in memory, and nowhere else.

/** The message if no server answers. */
export const UNANSWERED = "the server of this page does not answer";

/** What the server says about itself: its `credentials`, and at `leasemux ui` the lease and its path. */
let description = null;
let token = null;

/** Returns the path of the page, which ends with a slash. */
const base = () => location.pathname.replace(/[^/]*$/, "");

/** Asks the server what it serves. Throws if it does not answer, or refuses this page. */
export async function describe() {
  let answer;
  try {
    answer = await fetch(`${base()}session`);
  } catch {
    throw new Error(UNANSWERED);
  }
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.message);
  description = body;
  return description;
}

/** Returns whether the server needs a token. */
export const needsToken = () => description?.credentials === "token";

/** Sets the token of all later requests. */
export function setToken(text) {
  token = text;
}

/** Returns why the server refuses this page, as after its restart; `null` if it does not, or cannot be reached. */
export async function refusedBy() {
  try {
    const answer = await fetch(`${base()}session`);
    return answer.ok ? null : await answer.json();
  } catch {
    return null;
  }
}

/**
 * Returns why the server rejects the handshake of a websocket, which a browser does not tell; `null` if it does not, or cannot be reached.
 * The same request without an upgrade fails with the same check, or else with that for the upgrade, which has no reason.
 */
export async function rejectedBy(path, query) {
  try {
    const answer = await fetch(`${base().slice(0, -1)}${path}?${query}`);
    if (answer.status === 431) return { reason: "REQUEST_TOO_LARGE", message: "too many replicas to resume: reload the page" };
    if (answer.status !== 400) return null;
    const body = await answer.json();
    return body.reason === undefined ? null : body;
  } catch {
    return null;
  }
}

/** Opens a websocket of the page. A token is the first message: a page cannot set a header. */
export function openSocket(path, query) {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const socket = new WebSocket(`${scheme}://${location.host}${base().slice(0, -1)}${path}?${query}`);
  if (token !== null) socket.onopen = () => socket.send(JSON.stringify({ token }));
  return socket;
}

/** Sends a POST. Returns its status, which is 0 without an answer, and its body, which has a `message` after a failure. */
export async function post(path) {
  const headers = token === null ? {} : { authorization: `Bearer ${token}` };
  try {
    const answer = await fetch(path, { method: "POST", headers });
    return { status: answer.status, body: await answer.json() };
  } catch {
    return { status: 0, body: { message: UNANSWERED } };
  }
}
