// Runs the models with one backend and number of threads: tokenizes, answers and measures outside the page's thread.
//
// The number of threads is fixed for a WebAssembly module, so another number needs another worker.

import { Tokenizer } from "./libraries/tokenizers.min.mjs";
import { downloadParts } from "./downloads.js";
import { bestSpan, windowsOf } from "./words.js";

let ort = null;
let configuration = null;
const opened = new Map();

const calls = { start, open, answer, measure };

self.onmessage = async ({ data: { id, call, given } }) => {
  try {
    self.postMessage({ id, result: await calls[call](given, (news) => self.postMessage({ id, news })) });
  } catch (error) {
    self.postMessage({ id, error: error instanceof Error ? error.message : String(error) });
  }
};

async function start(given) {
  configuration = given;
  ort = await import(given.backend === "webgpu" ? "./libraries/ort.webgpu.min.mjs" : "./libraries/ort.wasm.min.mjs");
  ort.env.wasm.wasmPaths = new URL("./libraries/", import.meta.url).href;
  ort.env.wasm.numThreads = given.threads;
  ort.env.logLevel = "error";
}

// Download a model if it is not stored, and open it.
async function open({ model }, tell) {
  const [tokenizer, weights] = await Promise.all([openTokenizer(model), downloadParts(model.parts, tell)]);
  tell({ preparing: true });
  const began = performance.now();
  const session = await ort.InferenceSession.create(weights, {
    executionProviders: [configuration.backend],
    logSeverityLevel: 3,
  });
  const seconds = (performance.now() - began) / 1000;
  const marks = { cls: tokenizer.token_to_id("[CLS]"), sep: tokenizer.token_to_id("[SEP]") };
  opened.set(model.role, { model, tokenizer, session, marks, seconds });
  return { seconds };
}

async function openTokenizer(model) {
  const [vocabulary, settings] = await Promise.all(
    [model.tokenizer, model.tokenizer_config].map(async (path) => (await fetch(path)).json()),
  );
  return new Tokenizer(vocabulary, settings);
}

async function answer({ role, question, passage, limit }) {
  const ready = opened.get(role);
  const began = performance.now();
  const windows = windowsOf(ready.tokenizer, ready.marks, question, passage, Math.min(limit, ready.model.positions));
  const tokenizeMs = performance.now() - began;
  let best = null;
  let neuralMs = 0;
  for (const window of windows) {
    const outputs = await infer(ready, window);
    neuralMs += outputs.ms;
    const found = bestSpan(window, outputs.start_logits.data, outputs.end_logits.data);
    if (found !== null && (best === null || found.score > best.score)) best = found;
  }
  const tokens = windows.reduce((sum, window) => sum + window.ids.length, 0);
  return { role, span: best, tokenizeMs, neuralMs, tokens, windows: windows.length };
}

async function infer({ model, session }, window) {
  const shape = [1, window.ids.length];
  const tensor = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), shape);
  const feed = { input_ids: tensor(window.ids), attention_mask: tensor(window.ids.map(() => 1)) };
  if (model.inputs.includes("token_type_ids")) feed.token_type_ids = tensor(window.types);
  const began = performance.now();
  const outputs = await session.run(feed);
  // The time includes reading the outputs, which copies them from a GPU.
  const found = { start_logits: outputs.start_logits, end_logits: outputs.end_logits };
  found.ms = performance.now() - began;
  return found;
}

// Rows of raw times; models run in turns, so that a warming phone affects all of them alike.
async function measure({ roles, lengths, warmup, repeats, question, passage }, tell) {
  const rows = [];
  const rounds = lengths.length * (1 + warmup + repeats);
  let done = 0;
  for (const length of lengths) {
    const texts = new Map(roles.map((role) => [role, textOfLength(opened.get(role), question, passage, length)]));
    const times = new Map(roles.map((role) => [role, { first_ms: null, tokenise_ms: [], neural_ms: [] }]));
    for (let round = 0; round < 1 + warmup + repeats; round += 1) {
      for (const role of roles) note(times.get(role), round, warmup, await timed(opened.get(role), question, texts.get(role), length));
      done += 1;
      tell({ done, rounds, length });
    }
    for (const role of roles) rows.push({ model: role, ...configuration, length, load_seconds: opened.get(role).seconds, ...times.get(role) });
  }
  return rows;
}

function note(times, round, warmup, found) {
  if (round === 0) times.first_ms = found.neuralMs;
  if (round <= warmup) return;
  times.tokenise_ms.push(found.tokenizeMs);
  times.neural_ms.push(found.neuralMs);
}

async function timed(ready, question, passage, length) {
  const began = performance.now();
  const [window] = windowsOf(ready.tokenizer, ready.marks, question, passage, length);
  const tokenizeMs = performance.now() - began;
  if (window.ids.length !== length) throw new Error(`the text to measure with has ${window.ids.length} tokens, not ${length}`);
  return { tokenizeMs, neuralMs: (await infer(ready, window)).ms };
}

// The passage, repeated until it fills exactly `length` tokens, so that no time is spent on text that is cut.
function textOfLength(ready, question, passage, length) {
  let text = passage;
  while (windowsOf(ready.tokenizer, ready.marks, question, text, length).length === 1) text += ` ${passage}`;
  const [window] = windowsOf(ready.tokenizer, ready.marks, question, text, length);
  return text.slice(0, window.places.at(-1)[1]);
}
