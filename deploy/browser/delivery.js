// The waiting job, and the way of a result to it: kept here until it has arrived, however often the connection is lost.

const JOB = "stillhouse-job";
const RESULT = "stillhouse-result";

// What the job that gave the link wants; the one last seen while no server is in reach; null where none waits.
export async function waitingJob() {
  let response;
  try {
    response = await fetch("job", { cache: "no-store" });
  } catch {
    return JSON.parse(localStorage.getItem(JOB));
  }
  if (!response.ok) {
    localStorage.removeItem(JOB);
    return null;
  }
  const job = await response.json();
  localStorage.setItem(JOB, JSON.stringify(job));
  return job;
}

// The last measurement made here: { result, state }, where state is "unsent", "sent" or "own" (for nobody else).
export function lastResult() {
  return JSON.parse(localStorage.getItem(RESULT));
}

export function keepResult(result, state) {
  localStorage.setItem(RESULT, JSON.stringify({ result, state }));
}

// Post a result: "sent", "later" when the server cannot be reached, or why it was refused, which ends it.
export async function deliver(result) {
  const body = JSON.stringify(result);
  let response;
  try {
    response = await fetch("result", { method: "POST", headers: { "Content-Type": "application/json" }, body });
  } catch {
    return "later";
  }
  if (response.status >= 500) return "later";
  localStorage.removeItem(JOB);
  keepResult(result, response.ok ? "sent" : "own");
  return response.ok ? "sent" : (await response.text()).trim();
}
