// Runs the models with one backend and number of threads: tokenizes, answers and measures outside the page's thread.
//
// The number of threads is fixed for a WebAssembly module, so another number needs another worker.

import { Tokenizer } from "./libraries/tokenizers.min.mjs";
import { downloadParts } from "./downloads.js";
import { Refusal, bestSpan, better, nullScore, windowsOf } from "./words.js";

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
  const marks = { cls: tokenizer.token_to_id(model.marks.cls), sep: tokenizer.token_to_id(model.marks.sep) };
  opened.set(model.role, { model, tokenizer, session, marks, seconds });
  return { seconds };
}

async function openTokenizer(model) {
  const [vocabulary, settings] = await Promise.all(
    [model.tokenizer, model.tokenizer_config].map(async (path) => (await fetch(path)).json()),
  );
  return new Tokenizer(vocabulary, settings);
}

const THRESHOLD = 0; // of SQuAD 2.0: by how much no answer must exceed the best span

// { span, margin, none, … }: `margin` is the score of no answer minus that of the span, and `none` says that there is no
// answer; or { refused } in words.
async function answer({ role, question, passage }) {
  const ready = opened.get(role);
  const began = performance.now();
  const cut = splitOrRefuse(ready, question, passage);
  if (cut.refused !== undefined) return { role, refused: cut.refused };
  const tokenizeMs = performance.now() - began;
  let [span, none, neuralMs] = [null, Infinity, 0];
  for (const window of cut.windows) {
    const outputs = await infer(ready, window);
    neuralMs += outputs.ms;
    const [starts, ends] = [outputs.start_logits.data, outputs.end_logits.data];
    span = better(span, bestSpan(window, starts, ends));
    none = Math.min(none, nullScore(starts, ends));
  }
  const margin = span === null ? null : none - span.score;
  const silent = ready.model.no_answer && (margin === null || margin > THRESHOLD);
  const tokens = cut.windows.reduce((sum, window) => sum + window.ids.length, 0);
  const extent = { tokens, windows: cut.windows.length, read: cut.read, of: cut.tokens };
  return { role, span: silent ? null : span, margin, none: silent, tokenizeMs, neuralMs, ...extent };
}

function splitOrRefuse(ready, question, passage) {
  try {
    return windowsOf(ready.tokenizer, ready.marks, question, passage, ready.model.positions);
  } catch (error) {
    if (error instanceof Refusal) return { refused: error.message };
    throw error;
  }
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
  const { windows: [window] } = splitToMeasure(ready, question, passage, length);
  const tokenizeMs = performance.now() - began;
  if (window.ids.length !== length) throw new Error(`the text to measure with has ${window.ids.length} tokens, not ${length}`);
  return { tokenizeMs, neuralMs: (await infer(ready, window)).ms };
}

// As for an answer; a question that is long for this length is cut.
function splitToMeasure({ tokenizer, marks }, question, passage, length) {
  return windowsOf(tokenizer, marks, question, passage, length, Math.floor(length / 3));
}

// The passage, repeated until it fills exactly `length` tokens, so that no time is spent on text that is cut.
function textOfLength(ready, question, passage, length) {
  let text = passage;
  while (splitToMeasure(ready, question, text, length).windows.length === 1) text += ` ${passage}`;
  const { windows: [window] } = splitToMeasure(ready, question, text, length);
  return text.slice(0, window.places.at(-1)[1]);
}
