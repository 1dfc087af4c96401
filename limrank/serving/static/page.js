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
let asking = null; // the AbortController of what is being ranked

class Refusal extends Error {}

function authorization() {
  return $("key").value ? { authorization: `Bearer ${$("key").value}` } : {};
}

async function call(path, body) {
  const headers = { "content-type": "application/json", ...authorization() };
  const answer = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal: asking?.signal });
  const told = await answer.json().catch(() => ({}));
  if (answer.ok) return told;
  if (answer.status === 401) $("key-label").hidden = false;
  throw new Refusal(told.error?.message || `the server answered ${answer.status}`);
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
  const mine = (asking = new AbortController());
  const modes = chosenModes();
  if (!modes.length) return say("Choose a mode.", true);
  $("results").replaceChildren();
  const columns = modes.map((mode) => column(mode));
  say(`Ranking ${documents.length} passages …`);
  const started = performance.now();
  // One mode after the other: at the same time they would slow each other, and the seconds would say nothing.
  let compared = documents.map((_, index) => index);
  for (const [number, mode] of modes.entries()) {
    const began = performance.now();
    const request = { query, documents, mode, return_reasoning: true, return_documents: false, min_score: 0 };
    if ($("instruction").value.trim()) request.instruction = $("instruction").value.trim();
    try {
      const answer = await call("v1/rerank", request);
      if (mine.signal.aborted) return;
      show(columns[number], answer, documents, compared, (performance.now() - began) / 1000, number ? modes[0] : "the order given");
      compared = number ? compared : answer.results.map((result) => result.index);
    } catch (error) {
      if (mine.signal.aborted) return;
      columns[number].querySelector(".summary").textContent = error.message;
      return say(error instanceof Refusal ? error.message : "The server cannot be reached.", true);
    }
  }
  say(`Ranked in ${((performance.now() - started) / 1000).toFixed(1)} s.`);
}

function column(mode) {
  const made = $("column").content.cloneNode(true).firstElementChild;
  made.querySelector("h2").textContent = mode;
  made.querySelector("ol").setAttribute("aria-label", `Order by ${mode}`);
  $("results").append(made);
  return made;
}

function show(into, answer, documents, before, seconds, comparedWith) {
  const usage = answer.usage;
  into.querySelector(".summary").textContent =
    `${seconds.toFixed(1)} s · ${usage.prompt_tokens} tokens read · ${usage.completion_tokens} written · arrows: against ${comparedWith}`;
  into.querySelector("ol").replaceChildren(...answer.results.map((result, rank) => line(result, rank, documents, before)));
}

function line(result, rank, documents, before) {
  const made = $("result").content.cloneNode(true).firstElementChild;
  const part = (selector) => made.querySelector(selector);
  const score = result.relevance_score;
  const climbed = before.indexOf(result.index) - rank;
  part(".rank").textContent = rank + 1;
  part(".moved").textContent = climbed > 0 ? `▲ ${climbed}` : climbed < 0 ? `▼ ${-climbed}` : "";
  part(".moved").classList.add(climbed > 0 ? "up" : "down");
  part(".moved").title = `was ${rank + 1 + climbed}`;
  part("meter").value = score ?? 0;
  part("meter").setAttribute("aria-label", "score");
  part("output").textContent = score === null ? result.status : score.toFixed(4);
  part(".text").textContent = documents[result.index];
  if (result.reasoning) part(".chain p").textContent = result.reasoning;
  else part(".chain").remove();
  if (result.error) part(".text").append(`\n${result.error}`);
  made.addEventListener("click", () => made.classList.toggle("open"));
  return made;
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
$("key").addEventListener("change", meet);
document.addEventListener("keydown", onKey);
meet().then(() => linked.has("rank") && rank());
