"use strict";
// What the page says to the server, and how it reads the replies. Nothing here touches the document.

const PRESETS = {
  greedy: { temperature: "0", top_p: "", top_k: "", min_p: "" },
  balanced: { temperature: "0.7", top_p: "0.9", top_k: "40", min_p: "" },
  default: { temperature: "", top_p: "", top_k: "", min_p: "" },
};

// [name in the request, label, kind, placeholder or choices, limits]. An empty field is not sent:
// the server's own default holds. "lines" and "ids" become arrays, "json" an object.
const FIELD_GROUPS = [
  ["", true, [
    ["max_tokens", "Max tokens", "int", "server's", { min: 0, start: "128" }],
    ["temperature", "Temperature", "number", "1", { min: 0, max: 2, step: 0.05 }],
    ["top_p", "Top p", "number", "1", { min: 0, max: 1, step: 0.01 }],
    ["top_k", "Top k", "int", "all", { min: -1 }],
    ["min_p", "Min p", "number", "0", { min: 0, max: 1, step: 0.01 }],
    ["seed", "Seed", "int", "random", {}],
  ]],
  ["Penalties and bias", false, [
    ["repetition_penalty", "Repetition", "number", "1", { min: 0.01, step: 0.01 }],
    ["presence_penalty", "Presence", "number", "0", { min: -2, max: 2, step: 0.1 }],
    ["frequency_penalty", "Frequency", "number", "0", { min: -2, max: 2, step: 0.1 }],
    ["logit_bias", "Logit bias", "json", '{"50256": -100}', {}],
  ]],
  ["Where an answer ends", false, [
    ["min_tokens", "Min tokens", "int", "0", { min: 0 }],
    ["stop_token_ids", "Stop token ids", "ids", "50256, 198", {}],
    ["stop", "Stop texts, one a line", "lines", "", {}],
    ["include_stop_str_in_output", "Keep the stop text", "check", "", {}],
    ["ignore_eos", "Go on past the end of text", "check", "", {}],
  ]],
  ["Prompt and answers", false, [
    ["system", "System message", "text", "none", { local: true }],
    ["history", "Send earlier turns as well", "check", "", { local: true, start: "on" }],
    ["n", "Answers", "int", "1", { min: 1 }],
    ["best_of", "Best of (no stream)", "int", "as many", { min: 1, only: "completion" }],
    ["logprobs", "Probabilities of top", "int", "none", { min: 0, max: 20, start: "5", local: true }],
    ["prompt_logprobs", "Prompt top", "int", "none", { min: 0 }],
    ["overflow", "A prompt that is too long", "choice",
      ["", "reject", "head", "tail", "middle"], {}],
    ["truncate_prompt_tokens", "Cut to tokens", "int", "no", { min: 1 }],
    ["priority", "Priority", "int", "0", {}],
    ["echo", "Repeat the prompt", "check", "", { only: "completion" }],
    ["keep_special", "Show special tokens", "check", "", { local: true }],
    ["stream", "Stream", "check", "", { local: true, start: "on" }],
    ["extra", "Anything else, as JSON", "json", '{"user": "me"}', { local: true }],
  ]],
];
const FIELDS = FIELD_GROUPS.flatMap((group) => group[2]);

class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

function parseObject(text, label) {
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new ApiError(`${label}: ${error.message}`, 0);
  }
  if (value === null || typeof value !== "object" || Array.isArray(value)) {
    throw new ApiError(`${label}: expected a JSON object`, 0);
  }
  return value;
}

function convert([, label, kind], text) {
  if (kind === "check") return text === "on";
  if (kind === "lines") return text.split("\n").filter((line) => line !== "");
  if (kind === "json") return parseObject(text, label);
  if (kind === "ids") {
    const ids = text.split(/[\s,]+/).filter(Boolean).map(Number);
    if (!ids.every(Number.isInteger)) throw new ApiError(`${label}: expected whole numbers`, 0);
    return ids;
  }
  if (kind === "int" || kind === "number") {
    const value = Number(text);
    if (!Number.isFinite(value) || (kind === "int" && !Number.isInteger(value))) {
      throw new ApiError(`${label}: expected a ${kind === "int" ? "whole " : ""}number`, 0);
    }
    return value;
  }
  return text;
}

// The body of one request. prompt: a string (completion), or the messages (chat).
function requestBody(mode, model, prompt, settings) {
  const body = mode === "chat" ? { model, messages: prompt } : { model, prompt };
  for (const field of FIELDS) {
    const [name, , , , limits] = field;
    const text = settings[name] ?? "";
    if (limits.local || text.trim() === "" || (limits.only && limits.only !== mode)) continue;
    body[name] = convert(field, text);
  }
  const top = (settings.logprobs ?? "").trim();
  if (top !== "") {
    const count = convert(FIELDS.find(([name]) => name === "logprobs"), top);
    if (mode === "chat") body.logprobs = true;
    body[mode === "chat" ? "top_logprobs" : "logprobs"] = count;
  }
  if (settings.keep_special === "on") body.skip_special_tokens = false;
  body.stream = settings.stream === "on" && !(body.best_of > (body.n ?? 1));
  if (body.stream) body.stream_options = { include_usage: true };
  if ((settings.extra ?? "").trim() !== "") {
    Object.assign(body, parseObject(settings.extra, "Anything else"));
  }
  return body;
}

function headers(key, more) {
  return key ? { ...more, Authorization: `Bearer ${key}` } : { ...more };
}

const url = (path) => new URL(path, document.baseURI);

async function failure(response) {
  const text = (await response.text().catch(() => "")).slice(0, 4000);
  let message = text;
  try {
    const error = JSON.parse(text).error;
    message = (typeof error === "string" ? error : error.message) || text;
  } catch { /* not JSON: the text itself */ }
  const wait = response.headers.get("Retry-After");
  const after = wait ? ` Try again in ${wait} s.` : "";
  return new ApiError(`${response.status}: ${message || response.statusText}${after}`, response.status);
}

async function get(path, key) {
  const response = await fetch(url(path), {
    headers: headers(key), cache: "no-store", signal: AbortSignal.timeout(5000),
  });
  if (!response.ok) throw await failure(response);
  return response;
}

// Splits a stream of text into server-sent events; calls onData with the data of each.
class EventParser {
  constructor(onData) {
    this.onData = onData;
    this.rest = "";
    this.data = [];
  }
  push(text) {
    const lines = (this.rest + text).split(/\r\n|\n|\r(?!$)/);
    this.rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (this.data.length) this.onData(this.data.join("\n"));
        this.data = [];
      } else if (line.startsWith("data:")) {
        this.data.push(line.slice(line[5] === " " ? 6 : 5));
      }
    }
  }
}

// Sends a request and calls onReply with each object of the answer (one, or one a chunk). Throws
// ApiError, or AbortError when `signal` stops it.
async function send(mode, body, key, signal, onReply) {
  const path = mode === "chat" ? "v1/chat/completions" : "v1/completions";
  const response = await fetch(url(path), {
    method: "POST",
    headers: headers(key, { "Content-Type": "application/json" }),
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) throw await failure(response);
  if (!(response.headers.get("Content-Type") ?? "").startsWith("text/event-stream")) {
    onReply(await response.json());
    return;
  }
  let isDone = false;
  const parser = new EventParser((data) => {
    if (data === "[DONE]") {
      isDone = true;
      return;
    }
    const reply = JSON.parse(data);
    if (reply.error) throw new ApiError(reply.error.message ?? String(reply.error), 0);
    onReply(reply);
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    parser.push(value);
  }
  if (!isDone) throw new ApiError("The connection ended before the answer did.", 0);
}
