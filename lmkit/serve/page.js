"use strict";
const at = id => document.getElementById(id);
const points = JSON.parse(at("points").textContent), model = points.model;
const LOOK_MS = 2000, POINTS = 150, TOP = 5;
const turns = [];  // {role, content} of the conversation
let running = null;  // aborts the answer that is under way

const headers = () => at("key").value ? {authorization: "Bearer " + at("key").value.trim()} : {};
const element = (tag, kind, text) => Object.assign(document.createElement(tag), {className: kind, textContent: text});
const number = (value, digits = 3) => value.toLocaleString("en", {maximumSignificantDigits: digits});
const seconds = value => value === undefined ? "–" : value < 1 ? number(1000 * value) + " ms" : number(value) + " s";
const percent = logprob => (100 * Math.exp(logprob)).toFixed(logprob > -4.6 ? 1 : 3) + " %";

const complain = text => { at("error").hidden = !text; at("error").textContent = text; };
const message = async answer => {
  const text = await answer.text();
  try { return JSON.parse(text).error.message; } catch { return answer.status + " " + text.slice(0, 300); }
};

// A text that grows, and of each piece how likely its tokens were.
const writer = where => {
  let waiting = [];
  const piece = (text, entries) => {
    const span = element("span", entries.length ? "token" : "", text);
    if (entries.length) {
      span.entries = entries;
      const chance = Math.exp(Math.min(...entries.map(entry => entry.logprob)));
      span.style.background = `color-mix(in srgb, var(--c1) ${Math.round(60 * (1 - chance))}%, transparent)`;
    }
    where.append(span);
  };
  return (text, entries) => {
    waiting.push(...entries);  // a token may be a part of a letter, whose text comes with a later one
    if (!text) return;
    if (waiting.map(entry => entry.token).join("") === text) for (const entry of waiting) piece(entry.token, [entry]);
    else piece(text, waiting);
    waiting = [];
  };
};

const entriesOf = choice => {
  const found = choice.logprobs;
  if (!found) return [];
  if (found.content) return found.content.map(one => ({token: one.token, logprob: one.logprob,
    top: (one.top_logprobs || []).map(other => [other.token, other.logprob])}));
  return (found.tokens || []).map((token, i) => ({token, logprob: found.token_logprobs[i],
    top: Object.entries((found.top_logprobs || [])[i] || {})}));
};

document.addEventListener("pointerover", event => {
  const entries = event.target.entries, tip = at("tip");
  tip.hidden = !entries;
  if (!entries) return;
  tip.replaceChildren();
  for (const [place, {token, logprob, top}] of entries.entries()) {
    if (place) tip.append("\n");  // tokens whose letters cannot be told apart: one below the other
    const others = top.some(([other]) => other === token) ? top : [[token, logprob], ...top];
    for (const [other, value] of others.sort((a, b) => b[1] - a[1])) {
      tip.append(element(other === token ? "b" : "span", "", percent(value).padStart(9) + "  " + JSON.stringify(other)), "\n");
    }
  }
  const box = event.target.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(box.left, innerWidth - tip.offsetWidth - 8)) + "px";
  tip.style.top = (box.bottom + tip.offsetHeight + 8 < innerHeight ? box.bottom + 4 : box.top - tip.offsetHeight - 4) + "px";
});

const question = () => {
  const body = {model, stream: true, max_tokens: Number(at("max_tokens").value) || 256};
  for (const name of ["temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "seed"]) {
    if (at(name).value !== "") body[name] = Number(at(name).value);
  }
  if (at("stop_at").value) body.stop = at("stop_at").value.replace(/\\n/g, "\n");
  const chat = at("mode").value === "chat";
  if (at("logprobs").checked) Object.assign(body, chat ? {logprobs: true, top_logprobs: TOP} : {logprobs: TOP});
  if (!chat) return ["v1/completions", {...body, prompt: at("prompt").value}];
  const system = at("system").value ? [{role: "system", content: at("system").value}] : [];
  return ["v1/chat/completions", {...body, messages: [...system, ...turns]}];
};

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {done, value} = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

const show = (role, text) => {
  const turn = element("div", "turn", ""), pre = element("pre", "", text);
  turn.append(element("small", "", role), pre);
  at("turns").append(turn);
  turn.scrollIntoView({block: "nearest"});
  return pre;
};

const send = async () => {
  if (running || !at("prompt").value) return;
  const chat = at("mode").value === "chat", prompt = at("prompt").value;
  complain("");
  if (chat) { turns.push({role: "user", content: prompt}); show("user", prompt); at("prompt").value = ""; }
  const [path, body] = question(), pre = show(chat ? "assistant" : "completion", "");
  if (!chat) pre.append(element("mark", "", prompt));
  const write = writer(pre), started = performance.now();
  let first = null, count = 0, text = "", reason = "";
  running = new AbortController();
  at("send").disabled = true; at("stop").disabled = false;
  try {
    const answer = await fetch(path, {method: "POST", body: JSON.stringify(body), signal: running.signal,
      headers: {"content-type": "application/json", ...headers()}});
    if (answer.status === 401) at("ask").hidden = false;
    if (!answer.ok) throw new Error(await message(answer));
    for await (const event of events(answer)) {
      if (event.error) throw new Error(event.error.message);
      const choice = (event.choices || [])[0];
      if (!choice) continue;
      const piece = (chat ? choice.delta && choice.delta.content : choice.text) || "", entries = entriesOf(choice);
      if (piece && first === null) first = performance.now();
      count += entries.length || (piece ? 1 : 0);
      text += piece;
      write(piece, entries);
      reason = choice.finish_reason || reason;
      at("turns").scrollTop = at("turns").scrollHeight;
    }
  } catch (error) {
    if (error.name === "AbortError") reason = "stopped"; else complain(error.message);
  }
  running = null;
  at("send").disabled = false; at("stop").disabled = true;
  if (chat && text) turns.push({role: "assistant", content: text});
  else if (chat) { turns.pop(); at("prompt").value = at("prompt").value || prompt; pre.parentNode.remove(); }
  const end = performance.now();
  at("took").textContent = first === null ? "" : `${reason || "ended"} · ${count} pieces in ${seconds((end - started) / 1000)}, ` +
    `the first after ${seconds((first - started) / 1000)}`;
};

at("send").onclick = send;
at("stop").onclick = () => running && running.abort();
at("clear").onclick = () => { turns.length = 0; at("turns").replaceChildren(); at("took").textContent = ""; complain(""); };
at("mode").onchange = () => { at("system-row").hidden = at("mode").value !== "chat"; };
at("prompt").onkeydown = event => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
};
at("key").onchange = () => look();

// The live figures.
const rates = [];
let before = null;
const badge = (text, good) => { at("state").textContent = text; at("state").classList.toggle("good", good); };
const look = async () => {
  if (document.hidden) return;
  try {
    const answer = await fetch("figures", {headers: headers()});
    if (answer.status === 401) { at("ask").hidden = false; badge("a key is needed", false); return; }
    if (!answer.ok) throw new Error();
    draw(await answer.json());
    const ready = await fetch("ready");
    badge(ready.ok ? "ready" : (await ready.json()).error.code, ready.ok);
  } catch { badge("unreachable", false); }
};
const draw = now => {
  if (before && now.time > before.time) rates.push(Math.max(0, now.new_tokens - before.new_tokens) / (now.time - before.time));
  before = now;
  if (rates.length > POINTS) rates.shift();
  at("running").textContent = number(now.running);
  at("slots").textContent = `of ${now.slots} slots`;
  at("waiting").textContent = number(now.waiting);
  at("requests").textContent = `${number(now.requests, 6)} request${now.requests === 1 ? "" : "s"} so far`;
  at("speed").textContent = rates.length ? number(rates[rates.length - 1]) : "–";
  at("tokens").textContent = `${number(now.new_tokens, 9)} so far`;
  at("first").textContent = seconds(now.first_token_sec.p50);
  at("between").textContent = `p99 ${seconds(now.first_token_sec.p99)}; between tokens ${seconds(now.between_tokens_sec.p50)}`;
  const high = Math.max(1, ...rates);
  at("highest").textContent = rates.length ? number(Math.max(...rates)) : "–";
  at("rate").querySelector("path").setAttribute("d", rates.map((rate, i) =>
    `${i ? "L" : "M"}${POINTS - rates.length + i} ${(38 - 36 * rate / high).toFixed(1)}`).join(""));
  const owners = Object.entries(now.owners).filter(([name]) => name);
  at("owners").replaceChildren(...owners.length ? [ownersTable(owners)] : []);
};
const ownersTable = owners => {
  const sheet = element("div", "sheet", ""), table = document.createElement("table");
  const row = (tag, cells) => { const tr = document.createElement("tr"); tr.append(...cells.map(cell => element(tag, "", cell))); table.append(tr); };
  row("th", ["Owner", "Requests", "Prompt tokens", "New tokens"]);
  for (const [name, own] of owners) {
    row("td", [name, ...["requests", "prompt_tokens", "new_tokens"].map(key => number(own[key] || 0, 9))]);
  }
  sheet.append(table);
  return sheet;
};

at("model").textContent = model || "lmkit";
at("max_tokens").value = points.max_tokens;
if (!points.chat) { at("mode").value = "completion"; at("mode").onchange(); }
look();
setInterval(look, LOOK_MS);
document.body.classList.add("live");
