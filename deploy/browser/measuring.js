// A measurement of this device: every way of running, each in a worker of its own, one after the other.

import { Engine, nameOf } from "./engine.js";

// What a page measures when no job says otherwise.
export function standardPlan(positions) {
  return { lengths: [Math.min(384, positions)], warmup: 2, repeats: 10, threads: [1, 4] };
}

// The result to show and to post. `told` hears { way, note, share }; `stopping` says whether the person wants an end.
export async function measureAll({ ways, models, plan, text, device }, told, stopping) {
  const watch = new Attention();
  const rows = [];
  const problems = [];
  for (const [place, way] of ways.entries()) {
    const say = (note, share) => told({ way: nameOf(way), note, share: (place + share) / ways.length });
    try {
      rows.push(...(await measureOne(way, models, plan, text, say, stopping)));
    } catch (error) {
      if (stopping.asked) break;
      problems.push({ ...way, error: error.message.slice(0, 300) });
    }
  }
  const interrupted = await watch.end();
  if (rows.length === 0 && !stopping.asked) throw new Error(`The models do not run on this device: ${problems[0].error}`);
  return { format: 1, device, plan, rows, problems, interrupted };
}

async function measureOne(way, models, plan, text, say, stopping) {
  const engine = new Engine();
  stopping.now = () => engine.close();
  try {
    await engine.call("start", way);
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

// Whether the page stayed in front: browsers slow what is not seen. Keeps the screen on where it may.
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

// What is told of the device, beside what the browser says of itself.
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

// The smallest step of the clock: browsers blur it, more so on pages that are not isolated.
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
