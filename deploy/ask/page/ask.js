// The page: chooses models, asks them, and shows their answers side by side.

import { highlight } from "./answers.js";
import { $, h, say, show } from "./elements.js";
import { comparison as compared, milliseconds, plural } from "./numbers.js";

const page = { described: null, chosen: null, ready: false, busy: false, turn: 0 };
const HINTS = {
  "masked-words": "Write [MASK] for the hidden word, or select a word and press the button below. Enter asks.",
};

async function begin() {
  listen();
  page.described = JSON.parse(await get("page.json"));
  $("name").textContent = page.described.name;
  showPhone();
  const titles = [...new Set(page.described.comparisons.map(({ title }) => title))];
  choices("topics", titles.map((title) => [title, title]), chooseTopic);
  await chooseTopic(titles[0]);
}

async function get(path, body) {
  const posted = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...posted });
  } catch {
    throw new Error("The server does not answer: it has ended, or there is no connection. Start stillhouse ask again.");
  }
  const text = await response.text();
  if (response.ok) return text;
  throw new Error(response.status >= 500 && response.status !== 503 ? "The server cannot answer this: its terminal says why." : text.trim());
}

// A group of radio buttons; hidden where there is nothing to choose.
function choices(id, values, choose) {
  const [legend] = $(id).children;
  $(id).replaceChildren(legend, ...values.map(([value, title], place) => {
    const input = h("input", { type: "radio", name: id, value, ...(place === 0 ? { checked: "" } : {}) });
    input.addEventListener("change", () => choose(value));
    return h("label", {}, input, title);
  }));
  show(id, values.length > 1);
}

function chooseTopic(title) {
  const members = page.described.comparisons.filter((one) => one.title === title);
  choices("forms", members.map((one) => [one.key, one.form]), (key) => open(members.find((one) => one.key === key)));
  showForm(members[0]);
  return open(members[0]);
}

// The fields of a task, filled with its first example.
function showForm({ head, examples, examples_from }) {
  const asks = head === "question-answering";
  $("text-label").textContent = asks ? "Question" : head === "masked-words" ? "Sentence" : "Text";
  $("text").rows = asks ? 2 : 3;
  $("text-hint").textContent = HINTS[head] ?? "Enter asks, Shift + Enter begins a new line.";
  show("passage-field", asks);
  show("mask", head === "masked-words");
  show("second-field", false); // until the models say that they read pairs
  show("try", examples.length > 0);
  $("examples").replaceChildren(...examples.map((example) => {
    const chip = h("button", { type: "button", class: "chip", dir: "auto" }, short(example.text));
    chip.addEventListener("click", () => { fill(example); ask(); });
    return chip;
  }));
  $("examples-from").textContent = examples_from;
  fill(examples[0] ?? { text: "", second: null });
  clear();
}

function short(text) {
  return text.length > 120 ? `${text.slice(0, 118).trimEnd()}…` : text;
}

function fill(example) {
  $("text").value = example.text;
  $(secondField()).value = example.second ?? "";
}

function secondField() {
  return $("passage-field").hidden ? "second" : "passage-text";
}

function clear() {
  $("answers").replaceChildren(h("p", { class: "note" }, "Nothing asked yet."));
  show("marked", false);
}

async function open(chosen) {
  const turn = ++page.turn;
  page.chosen = chosen;
  ready(false);
  say("problem", "");
  $("models").replaceChildren(...chosen.models.map(modelLine));
  say("state", "Loading and warming up…");
  try {
    const opened = JSON.parse(await get("open", { comparison: chosen.key }));
    if (turn !== page.turn) return;
    opened.forEach((model, place) => { $("models").children[place].querySelector(".size").textContent = model.note; });
    document.querySelectorAll("#models .ready").forEach((place) => { place.textContent = "ready"; });
    const texts = opened.map((model) => model.texts);
    if (chosen.head === "classification" || chosen.head === "regression") showSecond(texts);
    const several = opened.length > 1;
    say("state", `Ready: ${several ? "all models are" : "the model is"} loaded and warmed up, on ${plural(page.described.threads, "thread")}${several ? " each" : ""}.`);
    ready(true);
  } catch (error) {
    if (turn === page.turn) fail(error);
  }
}

// Pairs need the second field; a model that does not say how many texts it reads may get one.
function showSecond(texts) {
  show("second-field", texts.every((count) => count !== 1));
  $("second-label").textContent = texts.includes(2) ? "Second text" : "Second text, if the model reads pairs";
}

function modelLine({ role, title, tuning }) {
  return h("li", { class: role },
    h("span", { class: "dot", "aria-hidden": "true" }),
    h("span", { class: "title" }, title),
    h("span", { class: "note size" }, ""),
    h("span", { class: "note ready" }, "loading"),
    h("p", { class: "tuning" }, capital(tuning)));
}

function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

function ready(on) {
  page.ready = on;
  $("answer").setAttribute("aria-disabled", String(!on || page.busy));
}

async function ask() {
  if (!page.ready || page.busy) return;
  const { turn, chosen } = page;
  const text = $("text").value;
  const hidden = $("passage-field").hidden && $("second-field").hidden;
  const given = hidden ? null : $(secondField()).value;
  // An empty field that may stay empty is no second text.
  const second = given === "" && $("second-label").textContent !== "Second text" && $("passage-field").hidden ? null : given;
  busy(true);
  say("problem", "");
  try {
    const answers = JSON.parse(await get("ask", { comparison: chosen.key, text, second }));
    if (turn !== page.turn) return;
    showAnswers(chosen, answers, text, second);
    bringIntoView();
  } catch (error) {
    if (turn !== page.turn) return;
    show("marked", false);
    $("answers").replaceChildren(h("p", { class: "refused" }, sentence(error.message)));
    bringIntoView();
  } finally {
    busy(false);
  }
}

// On a phone the answers are below the fold.
function bringIntoView() {
  const title = $("answers-title");
  if (title.getBoundingClientRect().top > innerHeight * 0.7) title.scrollIntoView();
}

function busy(on) {
  page.busy = on;
  $("answers").setAttribute("aria-busy", String(on));
  $("answer").textContent = on ? "Asking…" : "Ask";
  ready(page.ready);
}

function showAnswers(chosen, answers, text, second) {
  const { head, models } = chosen;
  const refusals = new Set(answers.map(({ refusal }) => refusal));
  show("marked", false);
  if (refusals.size === 1 && answers[0].refusal !== null) {
    $("answers").replaceChildren(h("p", { class: "refused" }, sentence(answers[0].refusal)));
    return;
  }
  const columns = answers.map((answer, place) => column(head, models[place], answer));
  $("answers").replaceChildren(
    ...[headline(models, answers), truth(chosen, text, second)].filter((line) => line !== null),
    h("div", { class: "columns" }, ...columns));
  if (head === "question-answering") showMarks(models, answers, second ?? "");
}

function column(head, model, answer) {
  const parts = answer.refusal === null ? [...said(head, model, answer), ...answer.notes.map(note), time(answer)] : [h("p", { class: "refused" }, sentence(answer.refusal))];
  return h("div", { class: `answer ${model.role}`, role: "group", "aria-label": model.title }, h("h3", {}, model.title), ...parts);
}

function said(head, { title }, { predictions, no_answer }) {
  if (head === "regression") return [h("p", { class: "said" }, predictions[0].text)];
  if (predictions.length === 0) return [h("p", { class: "said none" }, "Nothing found")];
  const nullable = no_answer !== null;
  if (head !== "masked-words") return [bars(predictions, `${title}: ${head === "classification" ? "labels" : "answers"}`, nullable)];
  const masks = [...new Set(predictions.map(({ mask }) => mask))];
  return masks.flatMap((mask) => [
    ...(masks.length > 1 ? [h("h4", {}, `[MASK] ${mask}`)] : []),
    bars(predictions.filter((one) => one.mask === mask), `${title}: words${masks.length > 1 ? ` for [MASK] ${mask}` : ""}`),
  ]);
}

function bars(predictions, label, nullable = false) {
  return h("ol", { class: "bars", "aria-label": label }, ...predictions.map(({ text, probability }) => {
    const fill = h("div", { class: "fill" });
    fill.style.width = `${100 * probability}%`; // by script, because the page allows no style attributes
    return h("li", {},
      h("span", { class: "what", dir: "auto" }, text === "" && nullable ? "(no answer)" : text),
      h("span", { class: "share" }, percent(probability)),
      h("div", { class: "ground", "aria-hidden": "true" }, fill));
  }));
}

function percent(share) {
  return `${(100 * share).toFixed(1)}\u00a0%`;
}

function note(text) {
  return h("p", { class: text.startsWith("read ") ? "note warn" : "note" }, sentence(text));
}

function time({ milliseconds: taken, calls }) {
  return h("p", { class: "note time" }, h("strong", {}, milliseconds(taken)), `\u2002median of ${plural(calls, "call")} on ${plural(page.described.threads, "thread")}`);
}

// Whether the models agree, and how much faster the student is.
function headline(models, answers) {
  if (answers.length !== 2 || answers.some(({ refusal }) => refusal !== null)) return null;
  const best = answers.map(({ predictions: given }) => JSON.stringify(likeliest(given)));
  const agree = predictions(answers).some((one) => one.probability === null) ? "" : best[0] === best[1] ? "Same answer. " : "Different answers. ";
  const times = Object.fromEntries(models.map(({ role }, place) => [role, answers[place].milliseconds]));
  const speed = times.teacher && times.student ? `The student is ${compared(times.teacher, times.student)}.` : "";
  return h("p", { class: "headline" }, agree + speed);
}

// The first prediction, or that of every mask.
function likeliest(given) {
  return given.filter(({ mask }, place) => place === 0 || mask !== given[place - 1].mask).map(({ text }) => text);
}

function predictions(answers) {
  return answers.flatMap((answer) => answer.predictions);
}

// What the data says about a text that is one of the examples.
function truth({ head, examples }, text, second) {
  const example = examples.find((one) => one.text === text && one.second === second);
  if (example === undefined || example.answer === null) return null;
  const from = head === "masked-words" ? "In the text: " : "In the data: ";
  return h("p", { class: "truth" }, from, h("strong", {}, example.answer === "" ? "no answer" : example.answer));
}

// The passage with the best answers of the models. Python counts characters, and JavaScript halves of some.
function showMarks(models, answers, passage) {
  const letters = [...passage];
  const place = (count) => letters.slice(0, count).join("").length;
  const found = answers.flatMap(({ predictions: given }, number) => {
    const [best] = given ?? [];
    return best?.begin == null ? [] : [{ model: models[number], span: { start: place(best.begin), end: place(best.end) } }];
  });
  show("marked");
  highlight($("passage"), passage, found);
}

// A line of the command line as a sentence.
function sentence(line) {
  return /[.!?]$/.test(line) ? capital(line) : `${capital(line)}.`;
}

function insertMask() {
  const field = $("text");
  field.setRangeText("[MASK]", field.selectionStart, field.selectionEnd, "end");
  field.focus();
}

function showPhone() {
  const { link, threads } = page.described;
  $("phone").replaceChildren(...(link === null
    ? [h("p", {}, "This page is reachable on this machine only. To open it on a phone in the same network, start stillhouse ask with --host 0.0.0.0.")]
    : [h("p", {}, "Scan to open this page on a phone in the same network: ", h("a", { href: link }, link)), h("img", { src: "link.svg", alt: `QR code of ${link}` })]));
  $("method").textContent =
    `A time is the median of up to five calls on ${plural(threads, "thread")} of the machine that runs the models, from the text to the answer, tokenizing included. ` +
    "All models are warmed up, the first call with a new text is not counted, and the models take turns in changing order.";
}

function fail(error) {
  say("problem", sentence(error.message));
  say("state", "These models cannot be asked.");
  document.querySelectorAll("#models .ready").forEach((place) => { place.textContent = "not ready"; });
}

function listen() {
  $("ask").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
  $("mask").addEventListener("click", insertMask);
  for (const id of ["text", "second"]) {
    $(id).addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      ask();
    });
  }
}

begin().catch(fail);
