// Text and its tokens: the server sends the text in whole characters and, beside it, the log
// probability of each token. A piece is a run of text with the tokens that made it: usually one,
// several when a character spans tokens.

// The tokens of one choice of a reply: {text, lp, top: [[text, lp]], bytes}.
function tokensOf(choice) {
  const logprobs = choice.logprobs;
  if (!logprobs) return [];
  if (Array.isArray(logprobs.content)) {
    return logprobs.content.map((entry) => ({
      text: entry.token, lp: entry.logprob, bytes: entry.bytes,
      top: (entry.top_logprobs ?? []).map((other) => [other.token, other.logprob]),
    }));
  }
  return (logprobs.tokens ?? []).map((text, i) => ({
    text, lp: logprobs.token_logprobs?.[i] ?? null, bytes: null,
    top: Object.entries(logprobs.top_logprobs?.[i] ?? {}).sort((a, b) => b[1] - a[1]),
  }));
}

class Pieces {
  constructor(pieces) {
    this.pieces = pieces;  // [{s, p: [{t, lp, top}]}], grows
    this.text = "";        // received, not yet in a piece
    this.groups = [];      // tokens whose text is awaited
    this.bytes = [];       // of a character that is not whole yet
    this.parts = [];
  }

  add(text, tokens) {
    this.text += text;
    for (const token of tokens) {
      this.parts.push({ t: token.text, lp: token.lp, top: token.top });
      let whole = token.text;
      if (token.bytes) {
        this.bytes.push(...token.bytes);
        try {
          whole = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true })
            .decode(Uint8Array.from(this.bytes));
        } catch {
          if (this.bytes.length < 16) continue;
          whole = token.text;
        }
      }
      this.groups.push({ s: whole, p: this.parts });
      this.bytes = [];
      this.parts = [];
    }
    this.place(tokens.length === 0 && this.groups.length === 0);
  }

  // Moves text into pieces as far as it is known which tokens made it; all of it when isLast.
  place(isLast) {
    while (this.text !== "") {
      const group = this.groups[0];
      if (!group) {
        if (!isLast) return;
        this.emit(this.text.length, []);
      } else if (group.s === "" && this.groups.length > 1) {
        this.groups[1].p = [...group.p, ...this.groups[1].p];
        this.groups.shift();
      } else if (group.s !== "" && this.text.startsWith(group.s)) {
        this.groups.shift();
        this.emit(group.s.length, group.p);
      } else if (!isLast && group.s.startsWith(this.text)) {
        return;  // more of this token's text is to come
      } else if (!this.resume(isLast)) {
        return;
      }
    }
  }

  // The next token's text differs from what came (a character of several tokens): one piece up to
  // where a later token is found again.
  resume(isLast) {
    for (let k = 1; k < this.groups.length; ++k) {
      const at = this.groups[k].s === "" ? -1 : this.text.indexOf(this.groups[k].s);
      if (at > 0) {
        this.emit(at, this.groups.splice(0, k).flatMap((group) => group.p));
        return true;
      }
    }
    if (!isLast && this.groups.length < 8) return false;
    this.emit(this.text.length, this.groups.splice(0).flatMap((group) => group.p));
    return true;
  }

  emit(length, tokens) {
    const s = this.text.slice(0, length);
    this.text = this.text.slice(length);
    const last = this.pieces[this.pieces.length - 1];
    if (tokens.length === 0 && last && last.p.length === 0) last.s += s;
    else this.pieces.push({ s, p: tokens });
  }

  finish() {
    this.place(true);
  }
}

const textOf = (answer) => answer.pieces.map((piece) => piece.s).join("");

// Class of the tint: none from 0.9 on, deepest below 0.05.
function tintOf(piece) {
  const known = piece.p.filter((token) => typeof token.lp === "number");
  if (known.length === 0) return "";
  const p = Math.exp(Math.min(...known.map((token) => token.lp)));
  const level = [0.9, 0.6, 0.35, 0.15, 0.05].filter((bound) => p < bound).length;
  return level ? ` t${level}` : "";
}

const percent = (lp) => {
  const p = 100 * Math.exp(lp);
  return `${p >= 99.95 ? "100" : p >= 0.1 ? p.toFixed(1) : "<0.1"} %`;
};
// A token as one line that shows its blanks.
const visible = (text) => text.replace(/\n/g, "\u21b5").replace(/\t/g, "\u21e5").replace(/ /g, "\u00b7");
