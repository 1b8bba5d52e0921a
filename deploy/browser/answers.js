// Show answers: a line for each model, and their places in the passage.

import { $, h } from "./elements.js";
import { milliseconds, plural } from "./numbers.js";

// found: [{ model, span, tokenizeMs, neuralMs, tokens, windows }]
export function showAnswers(passage, found) {
  $("answers").replaceChildren(...found.map((answer) => line(passage, answer)));
  highlight(passage, found.filter((answer) => answer.span !== null));
}

export function clearAnswers(passage) {
  $("answers").replaceChildren();
  $("passage").textContent = passage;
}

function line(passage, { model, span, tokenizeMs, neuralMs, tokens, windows }) {
  const text = span === null ? "The passage is empty" : passage.slice(span.start, span.end);
  const extent = windows > 1 ? `${tokens} tokens in ${plural(windows, "window")}` : plural(tokens, "token");
  return h(
    "div",
    { class: `answer ${model.role}` },
    h("p", { class: "who" }, model.title),
    h("p", { class: "said" }, text),
    h("p", { class: "note" }, `${milliseconds(neuralMs)} model + ${milliseconds(tokenizeMs)} tokenizing · ${extent}`),
    ...(model.weights === "random" ? [h("p", { class: "note warn" }, "Random weights: the time is valid, the answer is not.")] : []),
  );
}

// The passage with the answers marked; each part has the classes of the models whose answer contains it.
function highlight(passage, found) {
  const cuts = [...new Set([0, passage.length, ...found.flatMap(({ span }) => [span.start, span.end])])].sort((a, b) => a - b);
  const parts = cuts.slice(0, -1).map((from, place) => {
    const to = cuts[place + 1];
    const roles = found.filter(({ span }) => span.start <= from && to <= span.end).map(({ model }) => model.role);
    const text = passage.slice(from, to);
    return roles.length === 0 ? text : h("mark", { class: roles.join(" ") }, text);
  });
  $("passage").replaceChildren(...parts);
}
