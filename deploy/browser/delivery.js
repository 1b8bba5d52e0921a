// The waiting job, and the way of a result to it: kept here until it has arrived, however often the connection is lost.

const UNSENT = "stillhouse-unsent";

// What the job that gave the link wants; null where none waits or no server is in reach.
export async function waitingJob() {
  try {
    const response = await fetch("job", { cache: "no-store" });
    return response.ok ? await response.json() : null;
  } catch {
    return null;
  }
}

export function keepUnsent(result) {
  localStorage.setItem(UNSENT, JSON.stringify(result));
}

export function unsent() {
  return JSON.parse(localStorage.getItem(UNSENT));
}

// Post what is unsent: "sent", "later" when the server cannot be reached, or "refused: why", which ends it.
export async function deliver() {
  const text = localStorage.getItem(UNSENT);
  if (text === null) return "sent";
  let response;
  try {
    response = await fetch("result", { method: "POST", headers: { "Content-Type": "application/json" }, body: text });
  } catch {
    return "later";
  }
  if (response.status >= 500) return "later";
  localStorage.removeItem(UNSENT);
  return response.ok ? "sent" : `refused: ${(await response.text()).trim()}`;
}
