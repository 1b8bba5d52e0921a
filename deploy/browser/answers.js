// Show answers: a line for each model, and their places in the passage.

import { $, h } from "./elements.js";
import { counted, milliseconds, plural } from "./numbers.js";

// found: [{ model, span, margin, none, tokenizeMs, neuralMs, tokens, windows, read, of }]
export function showAnswers(passage, found) {
  $("answers").replaceChildren(...found.map((answer) => line(passage, answer)));
  highlight($("passage"), passage, found.filter((answer) => answer.span !== null));
}

export function clearAnswers(passage) {
  $("answers").replaceChildren();
  $("passage").textContent = passage;
}

// Why there is no answer to look for, in place of the answers.
export function showRefusal(passage, reason) {
  clearAnswers(passage);
  $("answers").append(h("p", { class: "refused" }, reason));
}

function line(passage, answer) {
  const { model, span, none, tokenizeMs, neuralMs, tokens, windows } = answer;
  const text = span === null ? (none ? "No answer in this passage" : "Nothing found") : passage.slice(span.start, span.end);
  const extent = windows > 1 ? `${counted(tokens)} tokens in ${plural(windows, "window")}` : plural(tokens, "token");
  return h(
    "div",
    { class: `answer ${model.role}` },
    h("p", { class: "who" }, model.title),
    h("p", { class: span === null ? "said none" : "said" }, text),
    ...remarks(answer).map(([remark, kind]) => h("p", { class: kind }, remark)),
    h("p", { class: "note" }, `${milliseconds(neuralMs)} model + ${milliseconds(tokenizeMs)} tokenizing · ${extent}`),
  );
}

// What a reader must know about an answer: [text, class] each.
function remarks({ model, margin, none, read, of }) {
  const found = [];
  const size = margin === null ? "" : Math.abs(margin).toFixed(2);
  if (model.no_answer && margin !== null)
    found.push([none ? `“No answer” scores ${size} logits above the best span.` : `Scores ${size} logits above “no answer”.`, "note"]);
  if (read < of)
    found.push([`Read the first ${counted(read)} of ${counted(of)} tokens of the passage. The rest was cut: shorten it.`, "note warn"]);
  if (model.weights === "random") found.push(["Random weights: the time is valid, the answer is not.", "note warn"]);
  return found;
}

// Show a passage in a place, with the answers marked; each part has the classes of the models whose answer contains it.
// found: [{ model: { role }, span: { start, end } }]
export function highlight(place, passage, found) {
  const cuts = [...new Set([0, passage.length, ...found.flatMap(({ span }) => [span.start, span.end])])].sort((a, b) => a - b);
  const parts = cuts.slice(0, -1).map((from, place) => {
    const to = cuts[place + 1];
    const roles = found.filter(({ span }) => span.start <= from && to <= span.end).map(({ model }) => model.role);
    const text = passage.slice(from, to);
    return roles.length === 0 ? text : h("mark", { class: roles.join(" ") }, text);
  });
  place.replaceChildren(...parts);
  // A long passage scrolls in its box: show the first answer, with a line above it.
  const first = place.querySelector("mark");
  place.scrollTop = first === null ? 0 : first.offsetTop - place.offsetTop - 40;
}
