// Keeps the page itself for when there is no network. Model parts are kept by downloads.js, checked one by one.

const VERSION = "@VERSION@"; // a digest of all files below: another page is another service worker
const SHELL = [/* @SHELL@ */];
const HOME = new URL("./", self.location.href).pathname;
const KEPT = `stillhouse-page-${VERSION}`;

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
  // A link with a token is for the server, which answers with a cookie and sends on to the page.
  if (request.mode === "navigate" && url.pathname === HOME && url.search === "") event.respondWith(keptOrFetched("./"));
  else if (isKept(url)) event.respondWith(keptOrFetched(request));
});

async function install() {
  const store = await caches.open(KEPT);
  await store.addAll(SHELL.map((path) => new Request(path, { cache: "no-cache" })));
  await self.skipWaiting();
}

async function activate() {
  const old = (await caches.keys()).filter((name) => name.startsWith("stillhouse-page-") && name !== KEPT);
  await Promise.all(old.map((name) => caches.delete(name)));
  await self.clients.claim();
}

function isKept(url) {
  return url.search === "" && !/\/(job|result)$/.test(url.pathname) && !url.pathname.endsWith(".part");
}

// What is large and rarely wanted (the runtime for GPUs) is kept when it is first fetched.
async function keptOrFetched(request) {
  const store = await caches.open(KEPT);
  const found = await store.match(request);
  if (found) return found;
  const response = await fetch(request);
  if (response.ok && !response.redirected) await store.put(request, response.clone());
  return response;
}
