// Number formatting, and statistics for display; the job computes its own from the raw times.

export function percentile(values, share) {
  const sorted = [...values].sort((a, b) => a - b);
  const place = (sorted.length - 1) * share;
  const below = Math.floor(place);
  const above = Math.ceil(place);
  return sorted[below] + (sorted[above] - sorted[below]) * (place - below);
}

export function milliseconds(value) {
  if (value >= 1000) return `${(value / 1000).toFixed(2)}\u00a0s`;
  return `${value >= 100 ? value.toFixed(0) : value.toFixed(1)}\u00a0ms`;
}

export function megabytes(bytes) {
  const size = bytes / 1e6;
  return `${size >= 10 ? size.toFixed(0) : size.toFixed(1)} MB`;
}

export function millions(count) {
  return `${(count / 1e6).toFixed(count >= 1e7 ? 0 : 1)} M`;
}

export function plural(count, word) {
  return `${count} ${word}${count === 1 ? "" : "s"}`;
}

export function counted(count) {
  return count.toLocaleString("en");
}

// How a time compares with a longer one.
export function comparison(slow, fast) {
  const saved = 100 * (1 - fast / slow);
  const time = `${Math.abs(saved).toFixed(0)}\u00a0% ${saved < 0 ? "more" : "less"}\u00a0time`;
  return `${(slow / fast).toFixed(2)}\u00a0× as fast, ${time}`;
}
