// Model files in parts, each fetched, checked and stored separately, so that a lost connection costs at most one part.

const KEPT = "stillhouse-models";
const LONGEST_WAIT = 8000;

// Storage, which browsers allow on secure connections.
async function keptParts() {
  return "caches" in self ? caches.open(KEPT) : null;
}

// The bytes of a model. Calls `report` with { bytes, waiting, kept } after each chunk.
export async function downloadParts(parts, report) {
  const total = parts.reduce((sum, part) => sum + part.bytes, 0);
  const whole = new Uint8Array(total);
  const store = await keptParts();
  let offset = 0;
  let kept = store !== null;
  for (const part of parts) {
    const advance = (bytes, waiting) => report({ bytes: offset + bytes, total, waiting, kept });
    const found = store === null ? undefined : await store.match(part.path);
    const bytes = found ? new Uint8Array(await found.arrayBuffer()) : await fetchPatiently(part, advance);
    if (!found && store !== null) kept = (await keep(store, part, bytes)) && kept;
    whole.set(bytes, offset);
    offset += bytes.length;
    report({ bytes: offset, total, waiting: false, kept });
  }
  return whole;
}

// Delete the stored parts of older versions of the page.
export async function forgetOthers(models) {
  const store = await keptParts();
  if (store === null) return;
  const wanted = new Set(models.flatMap((model) => model.parts).map((part) => new URL(part.path, location.href).href));
  for (const request of await store.keys()) if (!wanted.has(request.url)) await store.delete(request);
}

async function fetchPatiently(part, advance) {
  let cache = "default";
  for (let wait = 500; ; wait = Math.min(2 * wait, LONGEST_WAIT)) {
    try {
      return await fetchPart(part, advance, cache);
    } catch (error) {
      if (error.damaged && cache === "default") {
        cache = "reload"; // the damaged bytes may come from the cache
        continue;
      }
      if (error.final) throw error;
      advance(0, true);
      await connection(wait);
    }
  }
}

async function fetchPart(part, advance, cache) {
  const response = await fetch(part.path, { cache });
  if (!response.ok) throw final(`the server answered ${response.status} for ${part.path}`);
  const bytes = new Uint8Array(part.bytes);
  let filled = 0;
  const reader = response.body.getReader();
  for (let chunk = await reader.read(); !chunk.done; chunk = await reader.read()) {
    if (filled + chunk.value.length > part.bytes) throw final(`${part.path} is longer than this page expects`);
    bytes.set(chunk.value, filled);
    filled += chunk.value.length;
    advance(filled, false);
  }
  if (filled !== part.bytes) throw new Error(`${part.path} was cut short`);
  await check(part, bytes);
  return bytes;
}

async function check(part, bytes) {
  if (!self.isSecureContext) return; // browsers compute digests only on secure connections
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const text = [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  if (text !== part.sha256) throw Object.assign(final(`${part.path} arrived damaged`), { damaged: true });
}

// Whether the part was stored: private windows and full phones refuse, and the page then works until it is closed.
async function keep(store, part, bytes) {
  try {
    await store.put(part.path, new Response(bytes));
    return true;
  } catch {
    return false;
  }
}

function connection(wait) {
  return new Promise((resume) => {
    const timer = setTimeout(resume, wait);
    self.addEventListener("online", () => { clearTimeout(timer); resume(); }, { once: true });
  });
}

function final(message) {
  return Object.assign(new Error(message), { final: true });
}
