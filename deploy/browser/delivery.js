// The waiting job, and the delivery of its result, which stays in storage until it has arrived.

const JOB = "stillhouse-job";
const RESULT = "stillhouse-result";

// The job of the link; without a connection the last known job; null if no job waits.
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

// The last measurement: { result, state, job }, where state is "unsent", "sent" or "own" (without a job),
// and job is the id of its link.
export function lastResult() {
  return JSON.parse(localStorage.getItem(RESULT));
}

export function keepResult(result, state, job) {
  localStorage.setItem(RESULT, JSON.stringify({ result, state, job }));
}

// Post a result: { outcome, over }, where outcome is "sent", "later" (no connection), or the reason why the server
// refused the result for good. `over` means that the job has a result; after other refusals it waits for another.
export async function deliver(result, job) {
  const body = JSON.stringify(result);
  let response;
  try {
    response = await fetch(`result?job=${job}`, { method: "POST", headers: { "Content-Type": "application/json" }, body });
  } catch {
    return { outcome: "later", over: false };
  }
  if (response.status >= 500) return { outcome: "later", over: false };
  const over = response.ok || [403, 409].includes(response.status);
  if (over) localStorage.removeItem(JOB);
  keepResult(result, response.ok ? "sent" : "own", job);
  return { outcome: response.ok ? "sent" : (await response.text()).trim(), over };
}
