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

// The last measurement made here: { result, state, job }, where state is "unsent", "sent" or "own" (for nobody else),
// and job the id of the link it was made for.
export function lastResult() {
  return JSON.parse(localStorage.getItem(RESULT));
}

export function keepResult(result, state, job) {
  localStorage.setItem(RESULT, JSON.stringify({ result, state, job }));
}

// Post a result: { outcome, over }, where outcome is "sent", "later" when the server cannot be reached, or why it was
// refused, which ends the result. The job is over when it has one: after any other refusal it waits for a better one.
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
