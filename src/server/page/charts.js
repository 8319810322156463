// The server's figures, read from /metrics every second while the page is seen.

const NUM_SAMPLES = 120;
const CHARTS = [
  { name: "running", label: "Running", show: (v) => v.toFixed(0), least: 1 },
  { name: "waiting", label: "Waiting", show: (v) => v.toFixed(0), least: 1 },
  { name: "rate", label: "Tokens/s", show: (v) => (v < 99.95 ? v.toFixed(1) : v.toFixed(0)), least: 1 },
  { name: "kv", label: "KV cache", show: (v) => `${v.toFixed(v < 9.95 ? 1 : 0)} %`, least: 100 },
];

// Sums of the samples of a Prometheus text, by name without the part before the colon.
function parseMetrics(text) {
  const sums = new Map();
  for (const line of text.split("\n")) {
    const match = /^(?:[A-Za-z_]\w*:)?([A-Za-z_]\w*)(?:\{[^}]*\})?\s+(\S+)/.exec(line);
    if (match) sums.set(match[1], (sums.get(match[1]) ?? 0) + Number(match[2]));
  }
  return sums;
}

class Rates {
  constructor() {
    this.last = null;
  }
  // One sample of all charts; rates from the second reading on.
  sample(sums, now) {
    const tokens = sums.get("generation_tokens_total") ?? NaN;
    let rate = null;
    if (this.last && tokens >= this.last.tokens && now > this.last.now) {
      rate = (1000 * (tokens - this.last.tokens)) / (now - this.last.now);
    }
    this.last = { tokens, now };
    return {
      running: sums.get("num_requests_running"),
      waiting: sums.get("num_requests_waiting"),
      rate,
      kv: sums.has("kv_cache_usage_perc") ? 100 * sums.get("kv_cache_usage_perc") : undefined,
    };
  }
}

// [path of the line, path of the area] over a box of 120 x 32.
function chartPaths(values, least) {
  const top = Math.max(least, ...values);
  const points = values.map((value, i) => {
    const x = NUM_SAMPLES - values.length + i + 1;
    return `${x} ${(31 - (29 * value) / top).toFixed(2)}`;
  });
  if (points.length === 0) return ["", ""];
  const first = NUM_SAMPLES - values.length + 1;
  return [`M${points.join("L")}`, `M${first} 32L${points.join("L")}L${NUM_SAMPLES} 32Z`];
}
