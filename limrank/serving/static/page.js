"use strict";

// The page of a limrank server: it ranks what is typed in, by each of the chosen modes, side by side.

const $ = (id) => document.getElementById(id);
const EXAMPLE = {
  query: "How do I merge sorted feeds without holding them in memory?",
  documents: [
    "sorted(iterable) returns a new list with all items in order. It reads the whole iterable first.",
    "heapq.merge(*iterables) merges several sorted inputs into one sorted output. It returns an iterator and reads its inputs as it goes.",
    "itertools.chain(*iterables) returns the items of the first iterable, then those of the second, and so on.",
    "feedparser reads RSS and Atom feeds into dictionaries.",
    "bisect.insort(list, item) inserts an item into a sorted list and keeps it sorted.",
  ],
};
const THINKS = ["budget", "think", "cascade"];
const MOVING_MS = 250;
let asking = null; // the AbortController of what is being ranked

class Refusal extends Error {}

function authorization() {
  return $("key").value ? { authorization: `Bearer ${$("key").value}` } : {};
}

async function call(path) {
  const answer = await fetch(path, { headers: authorization() });
  if (answer.ok) return answer.json().catch(() => ({}));
  throw await refusal(answer);
}

async function refusal(answer) {
  const told = await answer.json().catch(() => ({}));
  if (answer.status === 401) $("key-label").hidden = false;
  return new Refusal(told.error?.message || `the server answered ${answer.status}`);
}

// Server-sent events, each as [name, data]. Every part of an event is on one line, as limrank sends them.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n");
      const field = (name) => lines.find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
      if (field("data")) yield [field("event"), JSON.parse(field("data"))];
    }
  }
}

// The rankings of a request while it is scored. The last one has its usage.
async function* rankings(body, signal) {
  const headers = { "content-type": "application/json", ...authorization() };
  const answer = await fetch("v1/rerank", { method: "POST", headers, body: JSON.stringify({ ...body, stream: true }), signal });
  if (!answer.ok) throw await refusal(answer);
  const known = new Map();
  for await (const [name, data] of events(answer.body)) {
    if (name === "error") throw new Refusal(data.error.message);
    if (!["ranking", "scores", "done"].includes(name)) continue;
    for (const result of data.results) known.set(result.index, { ...known.get(result.index), ...result });
    const order = data.order ?? data.results.map((result) => result.index);
    const chains = data.chains ?? { finished: 0, wanted: 0 };
    yield { results: order.map((index) => known.get(index)), chains, usage: name === "done" ? data.usage : null };
    if (name === "done") return;
  }
  throw new Error("the stream ended early");
}

function say(text, isError = false) {
  $("message").textContent = text;
  $("message").classList.toggle("error", isError);
}

function passages() {
  return $("documents").value.split(/\n\s*\n/).map((text) => text.trim()).filter(Boolean);
}

function chosenModes() {
  return [...$("modes").querySelectorAll("input:checked")].map((box) => box.value);
}

function showModes(card) {
  // What costs least first: the others are compared with it.
  const modes = Object.keys(card.modes).sort((a, b) => (b === "direct") - (a === "direct"));
  const thinking = THINKS.find((mode) => modes.includes(mode));
  for (const mode of modes) {
    const label = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", value: mode });
    box.checked = mode === "direct" || mode === thinking || modes.length === 1;
    label.append(box, mode);
    $("modes").append(label);
  }
}

async function meet() {
  try {
    const card = (await call("v1/models")).data[0];
    $("model").textContent = card.id;
    if (!$("modes").querySelector("input")) showModes(card);
    // The search is there if the server has the packages for it.
    const search = await fetch("page/search", { method: "HEAD", headers: authorization() });
    $("search").hidden = !search.ok;
    say("");
  } catch (error) {
    say(error.message, true);
  }
}

async function rank(event) {
  event?.preventDefault();
  const documents = passages();
  const query = $("query").value.trim();
  if (!query || !documents.length) return say("A query and at least one passage are needed.", true);
  if (!$("modes").querySelector("input")) await meet();
  asking?.abort();
  asking = null;
  const modes = chosenModes();
  if (!modes.length) return say("Choose a mode.", true);
  const mine = (asking = new AbortController());
  $("results").replaceChildren();
  const columns = modes.map((mode) => column(mode));
  say(`Ranking ${documents.length} passages …`);
  $("stop").hidden = false;
  const started = performance.now();
  try {
    // One mode after the other: at the same time they would slow each other, and the seconds would say nothing.
    let compared = documents.map((_, index) => index);
    for (const [number, mode] of modes.entries()) {
      const request = { query, documents, mode, return_reasoning: true, return_documents: false, min_score: 0 };
      if ($("instruction").value.trim()) request.instruction = $("instruction").value.trim();
      const results = await follow(columns[number], request, mine.signal, compared, number ? modes[0] : "the order given");
      if (mine.signal.aborted) return;
      compared = number ? compared : results.map((result) => result.index);
    }
    say(`Ranked in ${((performance.now() - started) / 1000).toFixed(1)} s.`);
  } catch (error) {
    if (mine.signal.aborted) return;
    say(error instanceof Refusal ? error.message : "The server cannot be reached.", true);
  } finally {
    if (asking === mine) {
      $("stop").hidden = true;
      asking = null;
    }
  }
}

function stop() {
  if (!asking) return;
  asking.abort();
  $("stop").hidden = true;
  for (const bar of document.querySelectorAll("progress")) bar.hidden = true;
  say("Stopped.");
}

// Shows a request's rankings as they come in, and gives the results of the last one.
async function follow(into, request, signal, compared, comparedWith) {
  const began = performance.now();
  const rows = new Map(); // document → its row
  const summary = into.querySelector(".summary");
  const bar = into.querySelector("progress");
  summary.textContent = "scoring …";
  try {
    let results = [];
    for await (const ranking of rankings(request, signal)) {
      if (signal.aborted) return results;
      results = ranking.results;
      show(into.querySelector("ol"), rows, results, request.documents, compared);
      const { finished, wanted } = ranking.chains;
      bar.hidden = !wanted || Boolean(ranking.usage);
      if (wanted) Object.assign(bar, { value: finished, max: wanted });
      const seconds = `${((performance.now() - began) / 1000).toFixed(1)} s`;
      summary.textContent = ranking.usage
        ? `${seconds} · ${ranking.usage.prompt_tokens} tokens read · ${ranking.usage.completion_tokens} written · arrows: against ${comparedWith}`
        : wanted ? `${seconds} · ${finished} of ${wanted} chains` : `${seconds} · ${results.length} of ${request.documents.length} passages`;
    }
    return results;
  } catch (error) {
    bar.hidden = true;
    if (!signal.aborted) summary.textContent = error.message;
    throw error;
  }
}

function column(mode) {
  const made = $("column").content.cloneNode(true).firstElementChild;
  made.querySelector("h2").textContent = mode;
  made.querySelector("ol").setAttribute("aria-label", `Order by ${mode}`);
  $("results").append(made);
  return made;
}

// Rows stay the same elements, so that an open one stays open, and move to their new places.
function show(list, rows, results, documents, before) {
  const tops = new Map([...rows.values()].map((row) => [row, row.getBoundingClientRect().top]));
  const focused = document.activeElement;
  for (const [rank, result] of results.entries()) {
    if (!rows.has(result.index)) rows.set(result.index, row(documents[result.index]));
    fill(rows.get(result.index), result, rank, before);
  }
  const placed = results.map((result) => rows.get(result.index));
  if (placed.some((each, rank) => list.children[rank] !== each) || list.children.length !== placed.length) list.replaceChildren(...placed);
  if (focused !== document.activeElement && list.contains(focused)) focused.focus({ preventScroll: true });
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  for (const each of placed) {
    const moved = tops.has(each) ? tops.get(each) - each.getBoundingClientRect().top : 0;
    if (moved) each.animate([{ transform: `translateY(${moved}px)` }, { transform: "none" }], { duration: MOVING_MS, easing: "ease-out" });
  }
}

function row(text) {
  const made = $("result").content.cloneNode(true).firstElementChild;
  made.querySelector(".text").textContent = text;
  made.querySelector("meter").setAttribute("aria-label", "score");
  made.querySelector(".chain").remove();
  made.addEventListener("click", () => made.classList.toggle("open"));
  return made;
}

function fill(made, result, rank, before) {
  const part = (selector) => made.querySelector(selector);
  const score = result.relevance_score;
  const climbed = before.indexOf(result.index) - rank;
  part(".rank").textContent = rank + 1;
  part(".moved").textContent = climbed > 0 ? `▲ ${climbed}` : climbed < 0 ? `▼ ${-climbed}` : "";
  part(".moved").classList.toggle("up", climbed > 0);
  part(".moved").classList.toggle("down", climbed < 0);
  part(".moved").title = `was ${rank + 1 + climbed}`;
  part("meter").value = score ?? 0;
  part("output").textContent = score === null ? result.status : score.toFixed(4);
  part(".error").textContent = result.error ?? "";
  if (!result.reasoning) return;
  if (!part(".chain")) made.append($("result").content.querySelector(".chain").cloneNode(true));
  part(".chain p").textContent = result.reasoning;
}

async function search() {
  const query = $("query").value.trim();
  if (!query) return say("Type a query first.", true);
  say("Searching Python’s documentation …");
  try {
    const found = await call(`page/search?query=${encodeURIComponent(query)}`);
    $("documents").value = found.documents.map((each) => each.text.replace(/\n\s*\n/g, "\n")).join("\n\n");
    say(`${found.documents.length} passages, in BM25’s order.`);
  } catch (error) {
    say(error.message, true);
  }
}

function step(forward) {
  const lines = [...document.querySelectorAll("li")];
  const at = lines.indexOf(document.activeElement);
  lines[Math.min(lines.length - 1, Math.max(0, at + (forward ? 1 : -1)))]?.focus();
}

function onKey(event) {
  const typing = event.target.matches("textarea, input");
  const modified = event.ctrlKey || event.metaKey || event.altKey;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) rank(event);
  else if (event.key === "Escape" && asking) stop();
  else if (event.altKey && event.code === "KeyS" && !$("search").hidden) search();
  else if (!typing && !modified && event.key === "j") step(true);
  else if (!typing && !modified && event.key === "k") step(false);
  else if (event.key === "Enter" && event.target.matches("li")) {
    event.target.classList.toggle("open");
    const chain = event.target.querySelector(".chain");
    if (chain) chain.open = !chain.open;
  } else return;
  event.preventDefault();
}

// A link may bring a query and its passages, and rank them: /#rank, /#query=…&passage=…&passage=…&rank
const linked = new URLSearchParams(location.hash.slice(1));
$("query").value = linked.get("query") ?? EXAMPLE.query;
$("documents").value = (linked.has("passage") ? linked.getAll("passage") : EXAMPLE.documents).join("\n\n");
$("form").addEventListener("submit", rank);
$("search").addEventListener("click", search);
$("stop").addEventListener("click", stop);
$("key").addEventListener("change", meet);
document.addEventListener("keydown", onKey);
meet().then(() => linked.has("rank") && rank());
