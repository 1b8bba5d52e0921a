// Measure this device: one setup (backend and number of threads) after the other, each in a new worker.

import { Engine, nameOf } from "./engine.js";

// The plan without a job.
export function standardPlan(positions) {
  return { lengths: [Math.min(384, positions)], warmup: 2, repeats: 10, threads: [1, 4] };
}

// The result to show and to post. Calls `report` with { setup, note, share }; `stopping` tells whether to stop.
export async function measureAll({ setups, models, plan, text, device }, report, stopping) {
  const watch = new Attention();
  const rows = [];
  const problems = [];
  for (const [place, setup] of setups.entries()) {
    const say = (note, share) => report({ setup: nameOf(setup), note, share: (place + share) / setups.length });
    try {
      rows.push(...(await measureOne(setup, models, plan, text, say, stopping)));
    } catch (error) {
      if (stopping.asked) break;
      problems.push({ ...setup, error: error.message.slice(0, 300) });
    }
  }
  const interrupted = await watch.end();
  if (rows.length === 0 && !stopping.asked) throw new Error(`The models do not run on this device: ${problems[0].error}`);
  return { format: 1, device, plan, rows, problems, interrupted };
}

async function measureOne(setup, models, plan, text, say, stopping) {
  const engine = new Engine();
  stopping.now = () => engine.close();
  try {
    await engine.call("start", setup);
    for (const model of models) {
      say(`loading ${model.title}`, 0);
      await engine.call("open", { model });
    }
    const given = { roles: models.map((model) => model.role), ...plan, ...text };
    return await engine.call("measure", given, ({ done, rounds, length }) => say(`round ${done} of ${rounds}, ${length} tokens`, done / rounds));
  } finally {
    engine.close();
  }
}

// Watches whether the page stays visible, because browsers slow hidden pages. Keeps the screen on if possible.
class Attention {
  #lost = document.hidden;
  #screen = navigator.wakeLock?.request("screen").catch(() => null) ?? null;
  #notice = () => { this.#lost ||= document.hidden; };

  constructor() {
    document.addEventListener("visibilitychange", this.#notice);
  }

  async end() {
    document.removeEventListener("visibilitychange", this.#notice);
    await (await this.#screen)?.release();
    return this.#lost;
  }
}

// What is report of the device, beside what the browser says of itself.
export async function describeDevice(gpu) {
  const battery = await (navigator.getBattery?.() ?? Promise.resolve(null)).catch(() => null);
  return {
    user_agent: navigator.userAgent,
    platform: navigator.userAgentData?.platform ?? navigator.platform,
    mobile: navigator.userAgentData?.mobile ?? null,
    cores: navigator.hardwareConcurrency,
    memory_gb: navigator.deviceMemory ?? null,
    isolated: self.crossOriginIsolated,
    secure: self.isSecureContext,
    screen: `${screen.width} × ${screen.height} at ${devicePixelRatio}`,
    clock_ms: clockStep(),
    webgpu: gpu,
    battery: battery && { charging: battery.charging, level: battery.level },
  };
}

// The smallest step of the clock, which browsers make coarser, especially on pages that are not isolated.
function clockStep() {
  let least = Infinity;
  for (let tries = 0; tries < 20; tries += 1) {
    const began = performance.now();
    let now = began;
    while (now === began) now = performance.now();
    least = Math.min(least, now - began);
  }
  return least;
}
