// Builds the document's parts. All text goes in as text nodes; there is no markup from outside, and
// the page's policy (require-trusted-types-for) makes the browser refuse any.

const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") element.addEventListener("click", value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function makeSvg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function buildCharts(holder) {
  return CHARTS.map((chart) => {
    const value = make("b", {}, "\u2013");
    const area = makeSvg("path", { class: "area" });
    const line = makeSvg("path", { class: "line" });
    const svg = makeSvg("svg", { viewBox: `0 0 ${NUM_SAMPLES} 32`, preserveAspectRatio: "none",
      role: "img", "aria-label": chart.label }, area, line);
    holder.append(make("div", { class: "chart", "data-chart": chart.name },
      make("p", {}, make("span", {}, chart.label), value), svg));
    const values = [];
    return {
      add(sample) {
        const number = sample[chart.name];
        value.textContent = Number.isFinite(number) ? chart.show(number) : "\u2013";
        values.push(Number.isFinite(number) ? number : 0);
        if (values.length > NUM_SAMPLES) values.shift();
        const [linePath, areaPath] = chartPaths(values, chart.least);
        line.setAttribute("d", linePath);
        area.setAttribute("d", areaPath);
        svg.setAttribute("aria-label",
          `${chart.label}: ${value.textContent}, last ${values.length} seconds`);
      },
    };
  });
}

function buildField([name, label, kind, hint, limits], settings, onChange) {
  const attributes = { id: `set-${name}`, "data-name": name };
  let input;
  if (kind === "choice") {
    input = make("select", attributes,
      ...hint.map((choice) => make("option", { value: choice }, choice || "server's own way")));
  } else if (kind === "lines" || kind === "json" || kind === "text") {
    input = make("textarea", { ...attributes, rows: 2, placeholder: hint, spellcheck: "false" });
  } else {
    input = make("input", { ...attributes, autocomplete: "off", placeholder: hint,
      type: { check: "checkbox", ids: "text" }[kind] ?? "number",
      min: limits.min, max: limits.max, step: kind === "number" ? "any" : undefined });
  }
  if (kind === "check") input.checked = settings[name] === "on";
  else input.value = settings[name] ?? "";
  input.addEventListener("input", () => {
    onChange(name, kind === "check" ? (input.checked ? "on" : "") : input.value);
  });
  const isWide = !["int", "number"].includes(kind);
  return make("label", { class: `field${kind === "check" ? " check" : ""}${isWide ? " wide" : ""}`,
    for: attributes.id, "data-only": limits.only }, make("span", {}, label), input);
}

function buildSettings(holder, settings, onChange) {
  holder.replaceChildren(...FIELD_GROUPS.map(([title, isOpen, fields]) => {
    const grid = make("div", { class: "fields" },
      ...fields.map((field) => buildField(field, settings, onChange)));
    if (!title) return make("div", { class: "first" }, grid);
    return make("details", { open: isOpen }, make("summary", {}, title), grid);
  }));
}

const pieceOf = new WeakMap();  // span -> piece

function makeSpan(piece) {
  if (piece.p.length === 0) return document.createTextNode(piece.s);
  const span = make("span", { class: `tok${tintOf(piece)}`, "data-top": true }, piece.s);
  pieceOf.set(span, piece);
  return span;
}

// What the hover shows of a piece: each of its tokens, and what else could have stood there.
function fillTip(tip, piece) {
  tip.replaceChildren(...piece.p.flatMap((token) => {
    const title = make("h3", {}, make("code", {}, visible(token.t)),
      make("span", {}, typeof token.lp === "number" ? percent(token.lp) : "given"));
    if (!token.top?.length) return [title];
    return [title, make("table", {}, ...token.top.map(([text, lp]) => make("tr",
      { class: text === token.t ? "chosen" : "" },
      make("td", {}, visible(text)),
      make("td", {}, make("meter", { value: Math.exp(lp).toFixed(4), max: 1 })),
      make("td", {}, percent(lp)))))];
  }));
}

function placeTip(tip, target) {
  tip.hidden = false;
  const box = target.getClientRects()[0] ?? target.getBoundingClientRect();
  const left = Math.max(8, Math.min(box.left, innerWidth - tip.offsetWidth - 8));
  const below = box.bottom + 8;
  const isAbove = below + tip.offsetHeight > innerHeight && box.top > tip.offsetHeight + 8;
  tip.style.left = `${left}px`;
  tip.style.top = `${isAbove ? box.top - tip.offsetHeight - 8 : below}px`;
}

const seconds = (ms) => (ms < 999.5 ? `${ms.toFixed(0)} ms` : `${(ms / 1000).toFixed(2)} s`);

const FINISHES = {
  stop: "end of text or stop", length: "token limit", abort: "cancelled", stopped: "stopped",
  error: "failed",
};

// The line below an answer.
function metaParts(answer) {
  const { stats } = answer;
  const parts = [];
  const add = (name, value, title) => parts.push(
    make("span", { title, "data-stat": name }, make("b", {}, value), ` ${name}`));
  if (stats.rate > 0) add("tokens/s", stats.rate.toFixed(1), "after the first token, as seen here");
  if (stats.ttft > 0) add("to the first", seconds(stats.ttft), "time to first token, as seen here");
  if (stats.tokens > 0) add(stats.tokens === 1 ? "token" : "tokens", String(stats.tokens), "of the answer");
  if (stats.total > 0) add("in all", seconds(stats.total));
  if (stats.prompt > 0) {
    add("prompt", String(stats.prompt), `tokens; ${stats.cached ?? 0} of them from the cache`);
  }
  if (stats.dropped > 0) add("dropped", String(stats.dropped), "tokens of the prompt that did not fit");
  if (answer.finish) parts.push(make("span", { "data-stat": "finish" }, FINISHES[answer.finish] ?? answer.finish));
  return parts;
}
