// The page's side of a worker: calls with results and progress.

export class Engine {
  #worker;
  #waiting = new Map();
  #last = 0;

  constructor() {
    this.#worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    this.#worker.onmessage = ({ data }) => this.#receive(data);
    this.#worker.onerror = (event) => this.#fail(event.message || "the worker could not be started");
  }

  call(name, given, onProgress = () => {}) {
    this.#last += 1;
    const id = this.#last;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject, onProgress });
      this.#worker.postMessage({ id, call: name, given });
    });
  }

  // End the worker, which frees its memory; open calls fail.
  close() {
    this.#worker.terminate();
    this.#fail("stopped");
  }

  #receive({ id, result, error, news }) {
    const { resolve, reject, onProgress } = this.#waiting.get(id);
    if (news !== undefined) return onProgress(news);
    this.#waiting.delete(id);
    return error === undefined ? resolve(result) : reject(new Error(error));
  }

  #fail(message) {
    for (const { reject } of this.#waiting.values()) reject(new Error(message));
    this.#waiting.clear();
  }
}

// A module with one SIMD instruction, which the runtime needs.
const SIMD = new Uint8Array([
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11,
]);

export function hasSimd() {
  return typeof WebAssembly === "object" && WebAssembly.validate(SIMD);
}

// The GPU, as the browser describes it: { vendor, architecture }, or null.
export async function graphics() {
  if (!("gpu" in navigator)) return null;
  const adapter = await navigator.gpu.requestAdapter().catch(() => null);
  if (adapter === null) return null;
  const { vendor = "", architecture = "" } = adapter.info ?? {};
  return { vendor, architecture };
}

// The setups of this device: WebAssembly with each possible number of threads, then the GPU.
export function configurations(threads, gpu) {
  const most = self.crossOriginIsolated ? navigator.hardwareConcurrency : 1;
  const counts = [...new Set(threads.map((count) => Math.min(count, most)))].sort((a, b) => a - b);
  const setups = counts.map((count) => ({ backend: "wasm", threads: count }));
  return gpu === null ? setups : [...setups, { backend: "webgpu", threads: 1 }];
}

export function nameOf({ backend, threads }) {
  if (backend === "webgpu") return "WebGPU";
  return threads === 1 ? "1 thread" : `${threads} threads`;
}
