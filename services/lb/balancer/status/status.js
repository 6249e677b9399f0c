// The load balancer's status page: it asks for api/status every two seconds, and draws. It keeps the last
// five minutes and nothing else, so it can be left open for as long as one likes.
"use strict";

const every = 2000; // ms between two looks
const kept = 150; // samples of each chart
const patience = 5000; // ms for an answer

const $ = (id) => document.getElementById(id);

function element(tag, className, text) {
  const e = document.createElement(tag);
  if (className) e.className = className;
  if (text !== undefined) e.textContent = text;
  return e;
}

// ---- numbers as people read them

const whole = new Intl.NumberFormat("en");

function short(n, units, base) {
  let i = 0;
  while (Math.abs(n) >= base && i < units.length - 1) {
    n /= base;
    i++;
  }
  const digits = n !== 0 && Math.abs(n) < 10 && (i > 0 || !Number.isInteger(n)) ? 1 : 0;
  return n.toFixed(digits) + units[i];
}

const count = (n) => (Math.abs(n) < 10000 && Number.isInteger(n) ? whole.format(n) : short(n, ["", " k", " M", " G"], 1000));
const rate = (n) => short(n, ["/s", " k/s", " M/s"], 1000);
const bytes = (n) => short(n, [" B/s", " kB/s", " MB/s", " GB/s"], 1000);
const millis = (n) => (n > 0 ? (n < 10 ? n.toFixed(1) : n.toFixed(0)) + " ms" : "–");

function age(seconds) {
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= length) return Math.floor(seconds / length) + " " + unit;
  }
  return Math.max(0, Math.floor(seconds)) + " s";
}

// ---- charts

const svgSpace = "http://www.w3.org/2000/svg";

// Chart draws the last samples that it was given, from zero to the largest of them.
class Chart {
  constructor() {
    this.samples = [];
    this.svg = document.createElementNS(svgSpace, "svg");
    this.svg.setAttribute("viewBox", `0 0 ${kept - 1} 100`);
    this.svg.setAttribute("preserveAspectRatio", "none");
    this.svg.setAttribute("aria-hidden", "true");
    [this.area, this.line] = ["area", "line"].map((name) => {
      const path = document.createElementNS(svgSpace, "path");
      path.setAttribute("class", name);
      this.svg.append(path);
      return path;
    });
  }

  add(sample) {
    this.samples.push(sample);
    if (this.samples.length > kept) this.samples.shift();
    const top = this.top() * 1.05 || 1;
    const from = kept - this.samples.length;
    const points = this.samples.map((s, i) => `${from + i} ${(98 - (96 * s) / top).toFixed(1)}`);
    this.line.setAttribute("d", "M" + points.join("L"));
    this.area.setAttribute("d", `M${from} 100L${points.join("L")}L${kept - 1} 100Z`);
  }

  top() {
    return Math.max(0, ...this.samples);
  }
}

class Figure {
  constructor(title, format) {
    this.format = format;
    this.chart = new Chart();
    this.now = element("output");
    this.peak = element("span");
    const caption = element("figcaption");
    caption.append(element("span", "", title), this.peak);
    const figure = element("figure");
    figure.append(caption, this.now, this.chart.svg);
    $("charts").append(figure);
  }

  add(value) {
    this.chart.add(value);
    this.now.textContent = this.format(value);
    this.peak.textContent = "peak " + this.format(this.chart.top());
  }
}

const figures = {
  connections: new Figure("Connections", count),
  opened: new Figure("New connections", rate),
  refused: new Figure("Refused", rate),
  up: new Figure("To upstreams", bytes),
  down: new Figure("To clients", bytes),
};

// ---- what changes between two looks

let before = null; // the last status
let seconds = 0; // between the last two

// perSecond is the rate of a counter; a process that was started anew begins at 0.
const perSecond = (now, then) => (then === undefined || seconds <= 0 ? 0 : Math.max(0, now - then) / seconds);
const sum = (object) => Object.values(object).reduce((a, b) => a + b, 0);

// ---- tables

// rows keeps one row of a table for each item, by key, and removes those of items that are gone.
function rows(table, items, key, make, update) {
  const body = table.tBodies[0];
  table.known ??= new Map();
  const gone = new Set(table.known.keys());
  items.forEach((item, i) => {
    const k = key(item);
    gone.delete(k);
    let row = table.known.get(k);
    if (!row) {
      row = make(item);
      table.known.set(k, row);
    }
    if (body.rows[i] !== row.tr) body.insertBefore(row.tr, body.rows[i] ?? null);
    update(row, item);
  });
  for (const k of gone) {
    table.known.get(k).tr.remove();
    table.known.delete(k);
  }
}

// cells makes a row of cells, by name; a name's class stands after a dot.
function cells(...names) {
  const row = { tr: element("tr") };
  for (const name of names) {
    const [field, className] = name.split(".");
    row[field] = element("td", className);
    row.tr.append(row[field]);
  }
  return row;
}

function write(node, text, className) {
  if (node.textContent !== text) node.textContent = text;
  if (className !== undefined && node.className !== className) node.className = className;
}

const healthClass = { up: "good", down: "bad", starting: "warn", left: "quiet" };
const stateClass = { ready: "quiet", drain: "warn", down: "bad" };
const keyOf = (u) => u.pool + " " + u.address;

function makeUpstream() {
  const row = cells("name.wide", "health.wide", "state.extra", "connections.n", "graph.chart", "opened.n extra", "response.n extra", "check.n extra", "weight.n extra", "action");
  row.chart = new Chart();
  row.graph.append(row.chart.svg);
  row.address = row.name.appendChild(element("span"));
  row.pool = row.name.appendChild(element("small"));
  row.verdict = row.health.appendChild(element("span"));
  row.reason = row.health.appendChild(element("small"));
  row.button = row.action.appendChild(element("button"));
  row.button.type = "button";
  row.button.addEventListener("click", () => set(row));
  return row;
}

function updateUpstream(row, u) {
  row.upstream = u;
  write(row.address, u.address);
  write(row.pool, u.pool === "upstreams" ? "" : u.pool);
  const ejected = u.ejected_from.length > 0;
  write(row.verdict, ejected ? u.health + ", ejected" : u.health, ejected ? "warn" : healthClass[u.health]);
  const since = age((Date.parse(before.now) - Date.parse(u.since)) / 1000);
  write(row.reason, `${since}${u.reason ? ": " + u.reason : ""}${ejected ? "; ejected from " + u.ejected_from.join(", ") : ""}`);
  write(row.state, u.state, "extra " + stateClass[u.state]);
  row.health.dataset.operator = u.state === "ready" ? "" : `operator: ${u.state}`; // shown where there is no column for it
  write(row.connections, count(u.connections));
  row.chart.add(u.connections);
  write(row.opened, rate(perSecond(u.connections_total, row.total)));
  row.total = u.connections_total;
  write(row.response, millis(u.response_ms));
  write(row.check, millis(u.probe_ms));
  write(row.weight, u.share < 1 ? `${u.weight} × ${Math.round(u.share * 100)} %` : String(u.weight));
  write(row.button, u.state === "ready" ? "Drain" : "Undrain");
  row.button.setAttribute("aria-label", `${row.button.textContent} ${u.address}`);
  row.button.disabled = row.busy || !before.writable || u.health === "left";
  row.button.title = before.writable ? "" : "there is no admin_secret_file: for reading only";
}

function drawCounts(id, counts, last) {
  const items = Object.entries(counts).filter(([, n]) => n > 0).sort(([a], [b]) => a.localeCompare(b));
  rows($(id), items.length ? items : [["none", 0]], ([name]) => name, () => cells("name", "total.n", "now.n"), (row, [name, n]) => {
    write(row.name, name.replaceAll("_", " "));
    write(row.total, items.length ? count(n) : "");
    write(row.now, items.length ? rate(perSecond(n, last?.[name])) : "");
  });
}

function draw(s) {
  const last = before;
  before = s;
  seconds = last ? (Date.parse(s.now) - Date.parse(last.now)) / 1000 : 0;
  document.body.classList.remove("stale");
  const degraded = s.readiness.split("\n").filter((line) => line.startsWith("degraded")).join("\n");
  const first = s.readiness.split("\n")[0];
  write($("state"), s.ready && degraded ? "degraded" : first, "pill " + (s.ready ? (degraded ? "warn" : "good") : "bad"));
  write($("about"), `version ${s.version} · up ${age((Date.parse(s.now) - Date.parse(s.started)) / 1000)} · at most ${count(s.max_connections)} connections`
    + (s.rebalancing.length ? " · rebalancing" : ""));
  notice(degraded);
  document.title = `${count(s.connections)} connections · GoShield load balancer`;

  figures.connections.add(s.connections);
  figures.opened.add(perSecond(s.connections_total, last?.connections_total));
  figures.refused.add(perSecond(sum(s.rejected), last ? sum(last.rejected) : undefined));
  figures.up.add(perSecond(s.bytes.to_upstream, last?.bytes.to_upstream));
  figures.down.add(perSecond(s.bytes.to_client, last?.bytes.to_client));

  rows($("upstreams"), s.upstreams, keyOf, makeUpstream, updateUpstream);
  rows($("listeners"), s.listeners, (l) => l.name, () => cells("name", "address", "connections.n"), (row, l) => {
    write(row.name, l.name);
    write(row.address, l.address);
    write(row.connections, count(l.connections));
  });
  drawCounts("rejected", s.rejected, last?.rejected);
  drawCounts("closed", s.closed, last?.closed);
}

function notice(text) {
  $("notice").hidden = !text;
  write($("notice"), text);
}

// ---- what an operator wants

let secret = ""; // in memory only

// ask shows the dialog and reports whether a secret was given.
function ask(wrong) {
  return new Promise((resolve) => {
    const dialog = $("ask");
    $("ask-wrong").hidden = !wrong;
    $("secret").value = "";
    dialog.addEventListener("close", () => {
      secret = dialog.returnValue === "ok" ? $("secret").value : "";
      $("secret").value = "";
      resolve(secret !== "");
    }, { once: true });
    dialog.returnValue = "";
    dialog.showModal();
  });
}

// set drains the row's upstream, or makes it ready again.
async function set(row) {
  const { address, state } = row.upstream;
  let wrong = false;
  row.busy = row.button.disabled = true;
  try {
    while (secret || (await ask(wrong))) {
      const answer = await fetch("api/upstreams/" + encodeURIComponent(address), {
        method: "PUT",
        headers: { "Content-Type": "application/json", Authorization: "Bearer " + secret },
        body: JSON.stringify({ state: state === "ready" ? "drain" : "ready" }),
        signal: AbortSignal.timeout(patience),
      });
      if (answer.ok) break;
      if (answer.status !== 401) throw new Error((await answer.json()).detail);
      secret = "";
      wrong = true;
    }
  } catch (err) {
    notice(`${address} was not changed: ${err.message}`);
  } finally {
    row.busy = row.button.disabled = false;
  }
}

// ---- the clock

async function look() {
  try {
    const answer = await fetch("api/status", { cache: "no-store", signal: AbortSignal.timeout(patience) });
    if (!answer.ok) throw new Error("answered " + answer.status);
    draw(await answer.json());
  } catch (err) {
    document.body.classList.add("stale");
    write($("state"), "no answer", "pill bad");
    notice(`The load balancer does not answer (${err.message}). Trying again.`);
  }
}

// run looks for as long as somebody can see it.
async function run() {
  for (;;) {
    if (!document.hidden) await look();
    await new Promise((resolve) => setTimeout(resolve, every));
  }
}

run();
