// Runs regular expressions for `matcher.js`, in a thread that can be stopped.

import { isMatch, matches } from "./filter.js";

onmessage = ({ data: { id, source, flags, texts, wantsMarks } }) => {
  const expression = new RegExp(source, flags);
  const find = wantsMarks ? matches : isMatch;
  postMessage({ id, found: texts.map((text) => find(expression, text)) });
};
