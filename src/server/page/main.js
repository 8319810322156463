// State, what the buttons and keys do, and the loop that draws an answer while it comes.

const LIMITS = { fileBytes: 20e6, turns: 2000, text: 1e6 };
const store = {
  get(area, name, fallback) {
    try {
      return JSON.parse(area.getItem(`caravan.${name}`)) ?? fallback;
    } catch {
      return fallback;
    }
  },
  set(area, name, value) {
    try {
      area.setItem(`caravan.${name}`, JSON.stringify(value));
    } catch { /* full or forbidden: the page works without */ }
  },
};

const settings = Object.fromEntries(FIELDS.map(([name, , , , limits]) => [name, limits.start ?? ""]));
for (const [name, value] of Object.entries(store.get(localStorage, "settings", {}))) {
  if (name in settings && typeof value === "string") settings[name] = value;
}
const state = {
  mode: store.get(localStorage, "mode", "chat") === "completion" ? "completion" : "chat",
  turns: { chat: [], completion: [] },
  running: null,  // {controller, turn, answers}
  undo: null,
};
const drawn = new WeakMap();  // answer -> {text, meta, count, tail}
const scroll = byId("scroll");
const prompt = byId("prompt");
const key = () => byId("key").value.trim();
const turnsNow = () => state.turns[state.mode];
const announce = (text) => { byId("announce").textContent = text; };

const EXAMPLES = {
  chat: ["Write a short story about a caravan that crosses the desert at night.",
    "Explain what a camel stores in its hump.", "Give three reasons to travel slowly.",
    "Write a polite letter that declines an invitation."],
  completion: ["Once upon a time, in a town by the sea,", "The captain looked at the map and said:",
    "It was a dark and stormy night;", "The three rules of the house were"],
};

// ---- turns ----

function save() {
  store.set(sessionStorage, "turns", state.turns);
}

function makeTurn(text) {
  return { prompt: text, answers: [], chosen: 0 };
}

const makeAnswer = () => ({ pieces: [], stats: {}, finish: "", error: "" });

// A turn from a file or an earlier page: only what has the right shape is taken.
function readTurn(value) {
  const text = (v) => (typeof v === "string" ? v.slice(0, LIMITS.text) : "");
  const number = (v) => (typeof v === "number" ? v : null);
  const list = (v) => (Array.isArray(v) ? v : []);
  const pairs = (v) => list(v).filter((p) => Array.isArray(p) && Number.isFinite(p[1])).slice(0, 64)
    .map((p) => [text(p[0]), p[1]]);
  const turn = makeTurn(text(value?.prompt));
  turn.answers = list(value?.answers).slice(0, 128).map((answer) => ({
    pieces: list(answer?.pieces).map((piece) => ({
      s: text(piece?.s),
      p: list(piece?.p).map((t) => ({ t: text(t?.t), lp: number(t?.lp), top: pairs(t?.top) })),
    })),
    stats: Object.fromEntries(Object.entries(answer?.stats ?? {})
      .filter(([, v]) => Number.isFinite(v))),
    finish: text(answer?.finish),
    error: text(answer?.error),
  }));
  turn.chosen = Math.max(0, Math.min(turn.answers.length - 1, Math.trunc(value?.chosen) || 0));
  return turn;
}

function readTurns(value) {
  if (!["chat", "completion"].some((mode) => Array.isArray(value?.[mode]))) {
    throw new ApiError("this is not a conversation that this page exported", 0);
  }
  return Object.fromEntries(["chat", "completion"].map((mode) =>
    [mode, (value[mode] ?? []).slice(0, LIMITS.turns).map(readTurn)]));
}

// The messages of a turn in chat mode; those before it when the settings say so.
function messagesOf(turn) {
  const messages = [];
  if (settings.system.trim() !== "") messages.push({ role: "system", content: settings.system });
  if (settings.history === "on") {
    for (const earlier of turnsNow()) {
      if (earlier === turn) break;
      const answer = earlier.answers[earlier.chosen];
      if (!answer || answer.pieces.length === 0) continue;
      messages.push({ role: "user", content: earlier.prompt });
      messages.push({ role: "assistant", content: textOf(answer) });
    }
  }
  messages.push({ role: "user", content: turn.prompt });
  return messages;
}

// ---- one request ----

async function answerTurn(turn) {
  if (state.running) return;
  const mode = state.mode;
  let body;
  try {
    const input = mode === "chat" ? messagesOf(turn) : turn.prompt;
    body = requestBody(mode, byId("model").value, input, settings);
  } catch (error) {
    toast(error.message);
    return;
  }
  const answers = Array.from({ length: Math.max(1, Math.min(128, Number(body.n) || 1)) }, makeAnswer);
  const pieces = answers.map((answer) => new Pieces(answer.pieces));
  const counts = answers.map(() => 0);
  turn.chosen = turn.answers.length;
  turn.answers.push(...answers);
  state.running = { controller: new AbortController(), turn, answers };
  showRunning();
  drawTurn(turn);
  stickToEnd(true);
  const start = performance.now();
  let first = 0;
  let last = 0;
  const onReply = (reply) => {
    for (const choice of reply.choices ?? []) {
      const i = choice.index ?? 0;
      if (!answers[i]) continue;
      const text = mode === "chat" ? (choice.delta ?? choice.message)?.content : choice.text;
      const tokens = tokensOf(choice);
      if (text || tokens.length) {
        last = performance.now();
        first ||= last;
        counts[i] += tokens.length || 1;
        pieces[i].add(text ?? "", tokens);
      }
      if (choice.finish_reason) answers[i].finish = choice.finish_reason;
    }
    const { usage } = reply;
    for (const { stats } of answers) {
      if (usage) {
        stats.prompt = usage.prompt_tokens;
        stats.cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
        if (answers.length === 1) stats.tokens = usage.completion_tokens;
      }
      if (reply.caravan?.num_dropped_tokens) stats.dropped = reply.caravan.num_dropped_tokens;
      if (body.stream) stats.ttft = first - start;
    }
    answers.forEach(({ stats }, i) => {
      if (!usage || answers.length > 1) stats.tokens = counts[i];
      if (body.stream && stats.tokens > 1 && last > first) {
        stats.rate = (1000 * (stats.tokens - 1)) / (last - first);
      }
      if (reply.timings?.predicted_per_second && !body.stream) {
        stats.rate = reply.timings.predicted_per_second;
      }
    });
    drawSoon(turn);
  };
  let failed = "";
  try {
    await send(mode, body, key(), state.running.controller.signal, onReply);
  } catch (error) {
    if (error.name === "AbortError") failed = "stopped";
    else failed = error instanceof ApiError ? error.message : `No answer from the server (${error.message}).`;
    if (error.status === 401 || error.status === 403) askForKey();
  }
  for (const [i, answer] of answers.entries()) {
    pieces[i].finish();
    answer.stats.total = performance.now() - start;
    if (failed === "stopped") answer.finish ||= "stopped";
    else if (failed !== "") {
      answer.error = failed;
      answer.finish = "error";
    }
  }
  state.running = null;
  showRunning();
  drawTurn(turn);
  stickToEnd(false);
  save();
  const { finish, stats } = turn.answers[turn.chosen];
  announce(failed && failed !== "stopped" ? `Failed: ${failed}`
    : `Answer finished: ${stats.tokens ?? 0} tokens, ${FINISHES[finish] ?? finish}`);
}

function sendPrompt() {
  const text = prompt.value;
  if (text.trim() === "" || state.running) return;
  const turn = makeTurn(text);
  turnsNow().push(turn);
  prompt.value = "";
  fitPrompt();
  answerTurn(turn);
}

// Answers again. What followed depended on the answer, so it goes (and can be brought back).
function resend(turn, text) {
  if (state.running) return;
  const turns = turnsNow();
  const at = turns.indexOf(turn);
  const isCut = state.mode === "chat" && at + 1 < turns.length;
  if (isCut) {
    offerUndo("Later turns were removed.");
    turns.splice(at + 1);
  }
  if (text !== undefined && text !== turn.prompt) {
    if (!isCut) offerUndo("The prompt was changed.");
    turn.prompt = text;
    turn.answers = [];
  }
  if (isCut) drawAll();
  answerTurn(turn);
}

function stop() {
  state.running?.controller.abort();
}

// ---- drawing ----

const button = (label, onclick, more) => make("button", { type: "button", onclick, ...more }, label);

function drawAnswer(turn, answer) {
  const isBusy = state.running?.answers.includes(answer) ?? false;
  const text = make("div", { class: "text", tabindex: 0, role: "group",
    "aria-label": "Answer; the arrow keys walk through its tokens" });
  const meta = make("div", { class: "meta" });
  const box = make("div", { class: `answer tinted${isBusy ? " busy" : ""}`, "aria-busy": String(isBusy) });
  if (state.mode === "completion" && settings.echo !== "on") {
    text.append(make("span", { class: "given" }, turn.prompt));
  }
  box.append(text);
  if (answer.error) box.append(make("p", { class: "error", role: "alert" }, answer.error));
  box.append(meta);
  drawn.set(answer, { text, meta, count: 0, tail: null, acts: isBusy ? null : drawActs(turn, answer) });
  drawProgress(answer);
  return box;
}

function drawActs(turn, answer) {
  const acts = make("span", { class: "acts" });
  if (turn.answers.length > 1) {
    const move = (by) => () => {
      turn.chosen += by;
      drawTurn(turn);
      save();
    };
    acts.append(make("span", { class: "pager" },
      button("\u2039", move(-1), { "aria-label": "Earlier answer", disabled: turn.chosen === 0 }),
      `${turn.chosen + 1} / ${turn.answers.length}`,
      button("\u203a", move(1), { "aria-label": "Later answer",
        disabled: turn.chosen + 1 >= turn.answers.length })));
  }
  acts.append(button("Regenerate", () => resend(turn), { "data-act": "regenerate", title: "Alt+R" }));
  if (state.mode === "completion") {
    acts.append(button("Continue", () => {
      if (state.running) return;
      const next = makeTurn(turn.prompt + textOf(answer));
      turnsNow().push(next);
      answerTurn(next);
    }, { "data-act": "continue" }));
    acts.append(button("Edit", () => edit(turn), { "data-act": "edit" }));
  }
  acts.append(button("Copy", () => navigator.clipboard?.writeText(textOf(answer))
    .then(() => toast("Copied."), () => toast("The browser did not allow copying.")), { "data-act": "copy" }));
  acts.append(button("Delete", () => remove(turn), { "data-act": "delete" }));
  return acts;
}

// Adds what came since the last call.
function drawProgress(answer) {
  const view = drawn.get(answer);
  if (!view) return;
  const { pieces } = answer;
  if (view.tail && pieces[view.count - 1]?.p.length === 0) {
    view.tail.data = pieces[view.count - 1].s;
  }
  for (; view.count < pieces.length; ++view.count) {
    view.tail = makeSpan(pieces[view.count]);
    view.text.append(view.tail);
    if (view.tail.nodeType !== Node.TEXT_NODE) view.tail = null;
  }
  view.meta.replaceChildren(...metaParts(answer), ...(view.acts ? [view.acts] : []));
}

function buildTurn(turn) {
  const box = make("article", { class: "turn" });
  if (state.mode === "chat") {
    box.append(make("div", { class: "said" }, make("div", { class: "text" }, turn.prompt),
      make("span", { class: "acts" }, button("Edit", () => edit(turn), { "data-act": "edit" }))));
  }
  const answer = turn.answers[turn.chosen];
  if (answer) box.append(drawAnswer(turn, answer));
  return box;
}

function drawTurn(turn) {
  const at = turnsNow().indexOf(turn);
  if (at < 0) return;
  const holder = byId("turns");
  const old = holder.children[at];
  const hadFocus = old?.contains(document.activeElement);
  const box = buildTurn(turn);
  if (old) old.replaceWith(box);
  else holder.append(box);
  if (hadFocus) box.querySelector(".answer .text")?.focus({ preventScroll: true });
  byId("empty").hidden = turnsNow().length > 0;
}

function drawAll() {
  const isChat = state.mode === "chat";
  byId("turns").replaceChildren(...turnsNow().map(buildTurn));
  byId("empty").hidden = turnsNow().length > 0;
  byId("empty-title").textContent = isChat ? "What should the model do?" : "Where should the text go on?";
  byId("empty-text").textContent = isChat
    ? "Each instruction is put into the model's own template. Hover over an answer to see how sure the model was of each token."
    : "The model continues exactly what you write, blanks and line ends included. Hover over the text to see how sure it was of each token.";
  byId("examples").replaceChildren(...EXAMPLES[state.mode].map((text) => button(text, () => {
    prompt.value = text;
    fitPrompt();
    prompt.focus();
  })));
  byId("prompt-label").textContent = isChat ? "Instruction" : "Text to continue";
  prompt.placeholder = isChat ? "Write an instruction" : "Write the beginning of a text";
  for (const element of document.querySelectorAll("[data-only]")) {
    element.hidden = element.dataset.only !== state.mode;
  }
  for (const radio of document.querySelectorAll("input[name=mode]")) {
    radio.checked = radio.value === state.mode;
  }
  stickToEnd(true);
}

let drawQueued = false;
function drawSoon(turn) {
  if (drawQueued) return;
  drawQueued = true;
  requestAnimationFrame(() => {
    drawQueued = false;
    const isNear = isAtEnd();
    const answer = turn.answers[turn.chosen];
    if (answer) drawProgress(answer);
    if (isNear) scroll.scrollTop = scroll.scrollHeight;
    byId("to-end").hidden = isAtEnd();
  });
}

const isAtEnd = () => scroll.scrollTop + scroll.clientHeight > scroll.scrollHeight - 80;
function stickToEnd(always) {
  if (always || isAtEnd()) scroll.scrollTop = scroll.scrollHeight;
  byId("to-end").hidden = isAtEnd();
}

function showRunning() {
  byId("stop").hidden = !state.running;
  byId("send").disabled = Boolean(state.running);
  for (const radio of document.querySelectorAll("input[name=mode]")) radio.disabled = Boolean(state.running);
}

function edit(turn) {
  if (state.running) return;
  const box = byId("turns").children[turnsNow().indexOf(turn)];
  const area = make("textarea", { rows: Math.min(12, turn.prompt.split("\n").length + 1),
    "aria-label": "Edit the prompt" });
  area.value = turn.prompt;
  const close = () => drawTurn(turn);
  const accept = () => area.value.trim() !== "" && resend(turn, area.value);
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
    else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) accept();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  box.replaceChildren(make("div", { class: "edit" }, area, make("div", {},
    button("Cancel", close, { class: "plain" }), button("Send again", accept, { "data-act": "resend" }))));
  area.focus();
}

function remove(turn) {
  if (state.running) return;
  offerUndo("The turn was removed.");
  turnsNow().splice(turnsNow().indexOf(turn), 1);
  drawAll();
  save();
}

function clearTurns() {
  stop();
  if (turnsNow().length > 0 && !state.running) {
    offerUndo("A new conversation.");
    state.turns[state.mode] = [];
    drawAll();
    save();
  }
  prompt.focus();
}

let toastTimer = 0;
function toast(text, canUndo = false) {
  byId("toast-text").textContent = text;
  byId("undo").hidden = !canUndo;
  byId("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { byId("toast").hidden = true; }, canUndo ? 9000 : 4500);
}
function offerUndo(text) {
  state.undo = structuredClone(state.turns);
  toast(text, true);
}

function fitPrompt() {
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight + 2}px`;
}

// ---- the server ----

function setStatus(name, text) {
  byId("status").dataset.state = name;
  byId("status-text").textContent = text;
}

function openSide(isOpen) {
  byId("side").toggleAttribute("data-closed", !isOpen);
  byId("toggle-side").setAttribute("aria-expanded", String(isOpen));
}

function askForKey() {
  setStatus("error", "API key needed");
  openSide(true);
  byId("key").focus();
}

let modelsTimer = 0;
async function loadModels() {
  clearTimeout(modelsTimer);
  try {
    const { data } = await (await get("v1/models", key())).json();
    const select = byId("model");
    const wanted = select.value;
    select.replaceChildren(...data.map(({ id }) => make("option", { value: id }, id)));
    if (data.some(({ id }) => id === wanted)) select.value = wanted;
    setStatus("ready", select.value);
  } catch (error) {
    if (error.status === 401 || error.status === 403) {
      askForKey();
      return;
    }
    setStatus(error.status === 503 ? "loading" : "error", error.status === 503 ? "loading the model" : "no server");
    modelsTimer = setTimeout(loadModels, 1000);
  }
}

const rates = new Rates();
const charts = buildCharts(byId("charts"));
async function readMetrics() {
  if (document.hidden) return;
  let note = "";
  try {
    const sums = parseMetrics(await (await get("metrics", key())).text());
    const sample = rates.sample(sums, performance.now());
    for (const chart of charts) chart.add(sample);
    if (byId("status").dataset.state === "error" && !modelsTimer) loadModels();
  } catch (error) {
    note = error.status === 401 ? "needs the key" : error.status ? "no figures" : "unreachable";
  }
  byId("live-note").textContent = note;
}

// ---- files ----

function exportTurns() {
  const file = { format: "caravan-conversation", version: 1, model: byId("model").value,
    settings, turns: state.turns };
  const link = make("a", { download: "caravan-conversation.json",
    href: URL.createObjectURL(new Blob([JSON.stringify(file, null, 1)], { type: "application/json" })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

async function importTurns(file) {
  try {
    if (file.size > LIMITS.fileBytes) throw new ApiError("the file is larger than 20 MB", 0);
    const turns = readTurns(JSON.parse(await file.text()).turns);
    if (state.running) throw new ApiError("stop the answer first", 0);
    offerUndo("Imported.");
    state.turns = turns;
    if (turnsNow().length === 0) state.mode = state.mode === "chat" ? "completion" : "chat";
    drawAll();
    save();
  } catch (error) {
    toast(`Not imported: ${error.message}`);
  }
}

// ---- events ----

const THEMES = ["system", "light", "dark"];
function setTheme(theme) {
  if (theme === "system") document.documentElement.removeAttribute("data-theme");
  else document.documentElement.dataset.theme = theme;
  const label = `Theme: ${theme === "system" ? "as the system" : theme}`;
  byId("theme").setAttribute("aria-label", label);
  byId("theme").title = label;
  byId("theme").value = theme;
}

function setMode(mode) {
  if (state.running) return;
  state.mode = mode;
  store.set(localStorage, "mode", mode);
  drawAll();
}

function changeSetting(name, value) {
  settings[name] = value;
  store.set(localStorage, "settings", settings);
}

const tip = byId("tip");
let tipOwner = null;
function showTip(span) {
  tipOwner?.classList.remove("at");
  tipOwner = span;
  tip.hidden = !span;
  if (!span) return;
  span.classList.add("at");
  fillTip(tip, pieceOf.get(span));
  placeTip(tip, span);
}

// Moves to the next token of the answer that has the focus.
function walk(area, by) {
  const spans = [...area.querySelectorAll(".tok")];
  const at = spans.indexOf(tipOwner);
  const next = spans[at < 0 ? (by > 0 ? 0 : spans.length - 1) : at + by];
  if (!next) return;
  next.scrollIntoView({ block: "nearest" });
  showTip(next);
  const [token] = pieceOf.get(next).p;
  announce(`${token.t}: ${typeof token.lp === "number" ? percent(token.lp) : "given"}`);
}

function onKey(event) {
  const { target } = event;
  const isTyping = target.matches("input:not([type=radio],[type=checkbox]),textarea,select");
  const command = event.ctrlKey || event.metaKey;
  const act = () => {
    if (byId("keys").open) return false;
    if (event.key === "Enter" && command) return target === prompt && (sendPrompt(), true);
    if (event.key === "Escape") {
      if (tipOwner) showTip(null);
      else if (state.running) stop();
      else if (innerWidth <= 1020) openSide(false);
      return true;
    }
    if ((event.key === "k" && command) || (event.key === "/" && !isTyping)) return (prompt.focus(), true);
    if (event.key === "?" && !isTyping) return (byId("keys").showModal(), true);
    if ((event.key === "ArrowRight" || event.key === "ArrowLeft") && target.matches(".answer .text")) {
      return (walk(target, event.key === "ArrowRight" ? 1 : -1), true);
    }
    if (!event.altKey || command) return false;
    const turns = turnsNow();
    const alt = {
      KeyN: clearTurns,
      KeyM: () => setMode(state.mode === "chat" ? "completion" : "chat"),
      KeyR: () => turns.length && resend(turns[turns.length - 1]),
      KeyS: () => openSide(byId("side").hasAttribute("data-closed")),
    }[event.code];
    alt?.();
    return Boolean(alt);
  };
  if (act()) event.preventDefault();
}

document.addEventListener("keydown", onKey);
byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  sendPrompt();
});
prompt.addEventListener("input", fitPrompt);
scroll.addEventListener("scroll", () => {
  showTip(null);
  byId("to-end").hidden = isAtEnd();
}, { passive: true });
const turnsBox = byId("turns");
turnsBox.addEventListener("pointerover", (event) => showTip(event.target.closest(".tok")));
turnsBox.addEventListener("pointerleave", () => showTip(null));
turnsBox.addEventListener("focusout", () => showTip(null));
for (const radio of document.querySelectorAll("input[name=mode]")) {
  radio.addEventListener("change", () => setMode(radio.value));
}
for (const preset of document.querySelectorAll("[data-preset]")) {
  preset.addEventListener("click", () => {
    for (const [name, value] of Object.entries(PRESETS[preset.dataset.preset])) {
      changeSetting(name, value);
      byId(`set-${name}`).value = value;
    }
  });
}
const onClick = {
  new: clearTurns, stop, export: exportTurns, import: () => byId("file").click(),
  help: () => byId("keys").showModal(), "close-keys": () => byId("keys").close(),
  "to-end": () => stickToEnd(true),
  "toggle-side": () => openSide(byId("side").hasAttribute("data-closed")),
  theme: () => {
    const theme = THEMES[(THEMES.indexOf(byId("theme").value) + 1) % THEMES.length];
    setTheme(theme);
    store.set(localStorage, "theme", theme);
  },
  undo: () => {
    if (!state.undo || state.running) return;
    state.turns = state.undo;
    state.undo = null;
    byId("toast").hidden = true;
    drawAll();
    save();
  },
};
for (const [id, action] of Object.entries(onClick)) byId(id).addEventListener("click", action);
byId("file").addEventListener("change", (event) => {
  if (event.target.files[0]) importTurns(event.target.files[0]);
  event.target.value = "";
});
byId("key").value = store.get(sessionStorage, "key", "");
const takeKey = () => {
  store.set(sessionStorage, "key", key());
  loadModels();
};
byId("key").addEventListener("change", takeKey);
byId("access").addEventListener("submit", (event) => {
  event.preventDefault();
  takeKey();
});
byId("model").addEventListener("change", () => setStatus("ready", byId("model").value));

setTheme(THEMES.includes(store.get(localStorage, "theme", "")) ? store.get(localStorage, "theme", "") : "system");
try {
  state.turns = readTurns(store.get(sessionStorage, "turns", { chat: [] }));
} catch { /* an old page's: begin anew */ }
buildSettings(byId("settings"), settings, changeSetting);
openSide(innerWidth > 1020);
drawAll();
fitPrompt();
loadModels();
readMetrics();
setInterval(readMetrics, 1000);
