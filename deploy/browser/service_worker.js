// Stores the page for offline use. downloads.js stores the parts of the models.

const VERSION = "@VERSION@"; // a digest of all files, so that each version of the page has its own service worker
const SHELL = [/* @SHELL@ */];
const TOTAL = /* @TOTAL@ */ 0; // bytes of all files in SHELL
const HOME = new URL("./", self.location.href).pathname;
const KEPT = `stillhouse-page-${VERSION}`;
const STEP = 2 ** 18; // bytes between two progress messages

self.addEventListener("install", (event) => {
  event.waitUntil(install());
});

self.addEventListener("activate", (event) => {
  event.waitUntil(activate());
});

self.addEventListener("fetch", (event) => {
  const { request } = event;
  const url = new URL(request.url);
  if (request.method !== "GET" || url.origin !== location.origin) return;
  // A link with a token must reach the server, which sets a cookie and redirects to the page.
  if (request.mode === "navigate" && url.pathname === HOME && url.search === "") event.respondWith(keptOrFetched("./"));
  else if (isKept(url)) event.respondWith(keptOrFetched(request));
});

// Store all files or none.
async function install() {
  const counted = counter();
  const arrived = await Promise.all(SHELL.map(async (path) => [path, await fetchWhole(path, counted)]));
  try {
    const store = await caches.open(KEPT);
    await Promise.all(arrived.map(([path, response]) => store.put(path, response)));
  } catch (error) {
    await caches.delete(KEPT); // no half page on a full phone
    throw error;
  }
  await self.skipWaiting();
}

async function fetchWhole(path, counted) {
  const response = await fetch(path, { cache: "no-cache" });
  if (!response.ok) throw new Error(`the server answered ${response.status} for ${path}`);
  const count = new TransformStream({
    transform(chunk, passed) {
      passed.enqueue(chunk);
      counted(chunk.length);
    },
  });
  const whole = await new Response(response.body.pipeThrough(count)).blob();
  return new Response(whole, response);
}

// Counts the bytes of all files and reports progress to the page.
function counter() {
  let [bytes, reported] = [0, 0];
  return (more) => {
    bytes += more;
    if (bytes - reported < STEP && bytes !== TOTAL) return;
    reported = bytes;
    tell({ bytes, total: TOTAL });
  };
}

// This worker does not control the waiting page yet.
async function tell(news) {
  const pages = await self.clients.matchAll({ type: "window", includeUncontrolled: true });
  for (const page of pages) page.postMessage(news);
}

async function activate() {
  const old = (await caches.keys()).filter((name) => name.startsWith("stillhouse-page-") && name !== KEPT);
  await Promise.all(old.map((name) => caches.delete(name)));
  await self.clients.claim();
}

function isKept(url) {
  return url.search === "" && !/\/(job|result)$/.test(url.pathname) && !url.pathname.endsWith(".part");
}

// Large and rarely used files (the runtime for GPUs) are stored when a page first fetches them.
async function keptOrFetched(request) {
  const store = await caches.open(KEPT);
  const found = await store.match(request);
  if (found) return found;
  const response = await fetch(request);
  if (response.ok && !response.redirected) await store.put(request, response.clone());
  return response;
}
