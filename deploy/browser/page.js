// The page: opens the models, answers questions, measures, and sends the result to the waiting job.

import { clearAnswers, showAnswers, showRefusal } from "./answers.js";
import { deliver, keepResult, lastResult, waitingJob } from "./delivery.js";
import { forgetOthers } from "./downloads.js";
import { $, h, say, show } from "./elements.js";
import { Engine, configurations, graphics, hasSimd, nameOf } from "./engine.js";
import { describeDevice, measureAll, standardPlan } from "./measuring.js";
import { megabytes, millions, plural } from "./numbers.js";
import { showResults } from "./results.js";
import { TEXTS } from "./texts.js";

const page = { models: [], job: null, plan: null, setups: [], gpu: null, engine: null, ready: new Set(), passage: "", kept: true, busy: false, retry: 0 };
const RETRY_MS = 4000;

async function begin() {
  showTexts();
  listen();
  if (!hasSimd()) throw new Error("This browser is too old for the models (no WebAssembly SIMD): update it, or open the link in another one.");
  await keepPage();
  const described = await (await fetch("page.json")).json();
  page.models = described.models;
  $("models").replaceChildren(...page.models.map(modelLine));
  [page.job, page.gpu] = await Promise.all([waitingJob(), graphics()]);
  page.plan = page.job?.plan ?? standardPlan(Math.min(...page.models.map((model) => model.positions)));
  page.setups = configurations(page.plan.threads, page.gpu);
  await showDevice(described);
  showPlan();
  showLast();
  await openModels();
  await forgetOthers(page.models);
}

// Register the service worker; without one (insecure connection) the page needs the network.
async function keepPage() {
  page.kept = false;
  if (!("serviceWorker" in navigator)) return;
  // A newer version of the page has replaced this one.
  const shown = navigator.serviceWorker.controller !== null;
  navigator.serviceWorker.addEventListener("controllerchange", () => { if (shown && !page.busy) location.reload(); });
  say("state", "Saving this page on your device…");
  navigator.serviceWorker.addEventListener("message", showKeeping);
  try {
    const { active, waiting, installing } = await navigator.serviceWorker.register("service_worker.js");
    page.kept = active !== null || (await settled(waiting ?? installing)) === "activated";
  } catch {
    // An untrusted certificate or a private window: the page then says that it does not work offline.
  } finally {
    // A newer version may be installed later, while this one is in use.
    navigator.serviceWorker.removeEventListener("message", showKeeping);
    $("state").setAttribute("aria-live", "polite");
  }
}

function showKeeping({ data: { bytes, total } }) {
  $("state").setAttribute("aria-live", "off"); // or a screen reader reads every number
  say("state", `Saving this page on your device… ${megabytes(bytes)} of ${megabytes(total)}`);
}

function settled(worker) {
  return new Promise((resolve) => {
    const look = () => { if (["activated", "redundant"].includes(worker.state)) resolve(worker.state); };
    worker.addEventListener("statechange", look);
    look();
  });
}

function modelLine(model) {
  return h("li", { class: model.role },
    h("span", { class: "dot", "aria-hidden": "true" }),
    h("span", { class: "title" }, model.title),
    h("span", { class: "note" }, `${millions(model.parameters)} parameters · ${megabytes(model.bytes)}`),
    h("progress", { max: "1", value: "0", "aria-label": `Loading ${model.title}` }),
    h("span", { class: "note ready" }, "waiting"));
}

// The fastest setup without a GPU: the one with the most threads.
function ownSetup() {
  return page.setups.filter((setup) => setup.backend === "wasm").at(-1);
}

async function openModels() {
  page.engine = new Engine();
  page.ready.clear();
  await page.engine.call("start", ownSetup());
  let { kept } = page;
  for (const model of page.models) {
    const [bar, ready] = [document.querySelector(`#models .${model.role} progress`), document.querySelector(`#models .${model.role} .ready`)];
    bar.hidden = false;
    const opened = await page.engine.call("open", { model }, (news) => {
      if (news.kept === false) kept = false;
      showLoading(model, bar, ready, news);
    });
    bar.hidden = true;
    ready.textContent = `ready in ${opened.seconds.toFixed(1)} s`;
    page.ready.add(model.role);
    $("answer").disabled = false;
  }
  $("measure").disabled = false;
  show("offline", kept);
  say("state", `Ready on ${nameOf(ownSetup())}. ${kept ? "" : "The page does not work offline with this connection."}`.trim());
}

function showLoading(model, bar, ready, news) {
  if (news.preparing) {
    bar.removeAttribute("value");
    ready.textContent = "preparing";
    return say("state", `Preparing ${model.title}`);
  }
  bar.value = news.bytes / news.total;
  ready.textContent = `${megabytes(news.bytes)} of ${megabytes(news.total)}`;
  say("state", news.waiting ? "No connection: loading continues when it is back." : `Loading ${model.title}`);
}

function showTexts() {
  $("text").replaceChildren(...TEXTS.map((text, place) => h("option", { value: String(place) }, text.title)), h("option", { value: "own" }, "My own text"));
  chooseText();
}

function chooseText() {
  const chosen = TEXTS[$("text").value];
  page.passage = chosen?.passage ?? "";
  $("draft").value = page.passage;
  $("question").value = chosen?.questions[0] ?? "";
  $("suggestions").replaceChildren(...(chosen?.questions ?? []).map((question) => {
    const chip = h("button", { type: "button", class: "chip" }, question);
    chip.addEventListener("click", () => { $("question").value = question; $("ask").requestSubmit(); });
    return chip;
  }));
  clearAnswers(page.passage);
  editing(chosen === undefined);
  if (chosen === undefined) $("draft").focus();
}

function editing(on) {
  page.passage = $("draft").value;
  show("draft", on);
  show("passage", !on);
  $("edit").setAttribute("aria-pressed", String(on));
  $("edit").textContent = on ? "Done" : "Edit";
}

async function ask(event) {
  event.preventDefault();
  if ($("answer").disabled || page.busy) return;
  if ($("passage").hidden) editing(false);
  const measurable = !$("measure").disabled;
  $("answer").disabled = true;
  $("measure").disabled = true;
  const [question, passage] = [$("question").value, page.passage];
  try {
    const found = [];
    for (const model of page.models.filter(({ role }) => page.ready.has(role))) {
      const answer = await page.engine.call("answer", { role: model.role, question, passage });
      if (answer.refused !== undefined) return showRefusal(passage, answer.refused);
      found.push({ model, ...answer });
      showAnswers(passage, found);
    }
  } catch (error) {
    fail(error);
  } finally {
    $("answer").disabled = false;
    if (measurable) $("measure").disabled = false;
  }
}

async function measure() {
  const stopping = { asked: false, now: () => {} };
  $("stop").onclick = () => { stopping.asked = true; stopping.now(); };
  working(true);
  page.engine.close(); // frees memory for the workers that measure
  const [text] = TEXTS;
  const given = {
    setups: page.setups, models: page.models, plan: page.plan, device: page.device,
    text: { question: text.questions[0], passage: text.passage },
  };
  const found = await measureAll(given, ({ setup, note, share }) => {
    $("progress").value = share;
    say("running-text", `${setup}: ${note}`);
  }, stopping).finally(() => working(false));
  if (!stopping.asked) {
    const result = { ...found, page: page.version };
    showResults(result, page.models);
    keepResult(result, page.job === null ? "own" : "unsent", page.job?.id);
    await send();
  }
  await openModels();
}

function working(on) {
  page.busy = on;
  show("running", on);
  show("stop", on);
  if (!on) return; // openModels enables both again
  $("measure").disabled = true;
  $("answer").disabled = true;
  say("state", "Measuring: keep this page open and visible.");
}

// Show the measurement from before a reload, if this version of the page made it.
function showLast() {
  const last = lastResult();
  if (last === null || last.result.page !== page.version) return;
  showResults(last.result, page.models);
  send();
}

// Send an unsent result, and retry until the server answers.
async function send() {
  const { result, state, job } = lastResult();
  if (state === "own") return say("delivery", "No job waits for these numbers; they stay on this device.");
  const { outcome, over } = state === "sent" ? { outcome: "sent", over: false } : await deliver(result, job);
  if (outcome !== "later") {
    if (over) page.job = null; // a job takes one result
    showPlan();
    return say("delivery", outcome === "sent" ? "Sent: the job has your numbers. Thank you." : `The job refused these numbers: ${outcome}.`);
  }
  say("delivery", "Not sent yet: this device keeps the numbers and sends them when the connection is back.");
  clearTimeout(page.retry);
  page.retry = setTimeout(send, RETRY_MS);
}

async function showDevice(described) {
  page.version = described.version;
  page.device = { ...(await describeDevice(page.gpu)), runtime: described.runtime };
  const { cores, isolated, webgpu, clock_ms: clock, screen } = page.device;
  const facts = [
    ["Processor cores", String(cores)],
    ["Threads", isolated ? `up to ${ownSetup().threads}` : "one: this connection is not isolated"],
    ["WebGPU", webgpu === null ? "not available" : `${webgpu.vendor} ${webgpu.architecture}`.trim() || "yes"],
    ["Screen", screen],
    ["Clock step", `${clock.toFixed(3)} ms`],
    ["Runtime", described.runtime],
    ["Page", described.version.slice(0, 12)],
  ];
  $("device").replaceChildren(...facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

function showPlan() {
  const { lengths, repeats } = page.plan;
  const setups = page.setups.map(nameOf).join(", ");
  const purpose = page.job === null ? "" : ` The result goes to the job “${page.job.job}”.`;
  // It stays visible, because hiding it would move the text below.
  if (page.job !== null) document.documentElement.classList.add("linked");
  say("plan", `${plural(repeats, "run")} of each model at ${lengths.join(" and ")} tokens, on ${setups}.${purpose}`);
}

function fail(error) {
  say("problem", error.message);
  show("again");
  say("state", "Something went wrong.");
}

function listen() {
  $("text").addEventListener("change", chooseText);
  $("edit").addEventListener("click", () => {
    const on = $("draft").hidden;
    editing(on);
    if (on) $("draft").focus();
    else clearAnswers(page.passage);
  });
  $("ask").addEventListener("submit", ask);
  $("measure").addEventListener("click", () => measure().catch(fail));
  $("again").addEventListener("click", () => location.reload());
  window.addEventListener("online", () => { if (lastResult()?.state === "unsent") send(); });
}

begin().catch(fail);
