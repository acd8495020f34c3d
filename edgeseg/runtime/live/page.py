"""The live view's page. Text of its own, so that the wheel needs no data file and no network."""

from typing import Final

__all__ = ["ICON", "PAGE", "SCRIPT", "STYLE"]

PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>edgeseg live</title>
<link rel="stylesheet" href="/style.css">
<link rel="icon" href="/icon.svg" type="image/svg+xml">
</head>
<body>
<header>
  <h1>edgeseg <span id="about"></span></h1>
  <p id="state" class="chip" data-level="off" role="status" aria-live="polite">
    <span class="mark" aria-hidden="true"></span><span id="state-text">connecting</span>
  </p>
</header>
<p id="alarm" role="alert" hidden></p>
<main>
  <figure>
    <img id="video" alt="Camera picture with the result drawn over it">
    <figcaption id="caption">no picture yet</figcaption>
  </figure>
  <div class="side">
    <fieldset>
      <legend>View</legend>
      <div class="segments">
        <label><input type="radio" name="view" value="overlay" checked><span>Overlay</span></label>
        <label><input type="radio" name="view" value="score"><span>Heat map</span></label>
        <label><input type="radio" name="view" value="classes"><span>Classes</span></label>
        <label><input type="radio" name="view" value="both"><span>Both</span></label>
      </div>
    </fieldset>
    <fieldset>
      <legend>Threshold <output id="threshold-text" for="threshold">the run's</output></legend>
      <input id="threshold" type="range" min="0" max="1000" step="1" value="0"
        aria-label="Threshold of the score" aria-describedby="threshold-note">
      <div class="row">
        <small id="threshold-note">Of this page's picture only; the run keeps its own.</small>
        <button id="reset" type="button">Reset</button>
      </div>
    </fieldset>
    <dl id="facts"></dl>
    <details>
      <summary>Events</summary>
      <ol id="events"></ol>
    </details>
  </div>
  <section aria-labelledby="times">
    <h2 id="times">Time per frame</h2>
    <canvas id="chart" height="120" role="img" aria-describedby="chart-text"></canvas>
    <p class="legend">
      <span><i class="line latency"></i>latency</span>
      <span><i class="line age"></i>age</span>
      <span id="deadline-key" hidden><i class="line limit"></i>deadline</span>
      <span><i class="line missed"></i>missed</span>
    </p>
    <p id="chart-text"></p>
  </section>
</main>
<script src="/app.js" defer></script>
</body>
</html>
"""

ICON: Final = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">
<path d="M6 2h4l5 12H1z" fill="#59616e"/><path d="M8 4v2M8 8v2M8 12v2" stroke="#fff"/>
<circle cx="11" cy="10" r="3" fill="#e5484d"/></svg>
"""

STYLE: Final = """
:root {
  color-scheme: light dark;
  --back: #f6f7f9; --card: #ffffff; --ink: #16191f; --dim: #59616e; --edge: #d3d8e0;
  --accent: #0b5fb0; --on-accent: #ffffff;
  --good: #0a6b39; --warn: #8a5200; --bad: #b3151f;
  --latency: #0b5fb0; --age: #8a5200;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #101319; --card: #1a1f28; --ink: #e9edf3; --dim: #a3adbb; --edge: #343c49;
    --accent: #6db3f5; --on-accent: #08121d;
    --good: #5fd08f; --warn: #f0b357; --bad: #ff7b7f;
    --latency: #6db3f5; --age: #f0b357;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 100rem; padding: 0.75rem clamp(0.75rem, 2vw, 1.5rem) 2rem;
  background: var(--back); color: var(--ink);
  font: 1rem/1.45 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
header { display: flex; flex-wrap: wrap; align-items: center; gap: 0.5rem 1rem;
  justify-content: space-between; margin-bottom: 0.75rem; }
h1 { font-size: 1.15rem; margin: 0; }
h1 span { font-weight: 400; color: var(--dim); }
h2 { font-size: 1rem; margin: 0 0 0.4rem; }
.chip { margin: 0; padding: 0.25rem 0.8rem; border: 2px solid currentColor; border-radius: 2rem;
  font-weight: 600; color: var(--dim); display: flex; align-items: center; gap: 0.5rem; }
.chip .mark { width: 0.8rem; height: 0.8rem; background: currentColor; }
.chip[data-level=good] { color: var(--good); } .chip[data-level=good] .mark { border-radius: 50%; }
.chip[data-level=warn] { color: var(--warn); }
.chip[data-level=warn] .mark { clip-path: polygon(50% 0, 100% 100%, 0 100%); }
.chip[data-level=bad] { color: var(--bad); }
.chip[data-level=off] .mark { background: none; border: 2px solid currentColor; }
#alarm { margin: 0 0 0.75rem; padding: 0.7rem 1rem; border-radius: 0.5rem; font-weight: 600;
  color: #ffffff; background: #a3121b;
  border: 2px solid #ff9a9d; }
#alarm[hidden] { display: none; }
main { display: grid; grid-template: "video side" auto "chart side" 1fr / minmax(0, 1fr) 21rem;
  gap: 1rem; align-items: start; }
@media (max-width: 56rem) {
  main { grid-template: "video" "side" "chart" / minmax(0, 1fr); }
}
section { grid-area: chart; }
figure { grid-area: video; margin: 0; background: var(--card); border: 1px solid var(--edge);
  border-radius: 0.6rem; overflow: hidden; }
#video { display: block; width: 100%; min-height: 8rem; background: #000000; object-fit: contain;
  color: #ffffff; }
body.away #video { filter: grayscale(1) brightness(0.45); }
figcaption { padding: 0.45rem 0.8rem; color: var(--dim); font-variant-numeric: tabular-nums; }
.side { grid-area: side; display: grid; gap: 0.9rem; }
fieldset, section, dl, details { margin: 0; padding: 0.7rem 0.8rem; background: var(--card);
  border: 1px solid var(--edge); border-radius: 0.6rem; min-width: 0; }
legend { font-weight: 600; padding: 0; float: left; width: 100%; margin-bottom: 0.45rem; }
legend + * { clear: both; }
output { float: right; font-weight: 400; color: var(--dim); font-variant-numeric: tabular-nums; }
.segments { display: flex; flex-wrap: wrap; gap: 0.3rem; }
.segments label { flex: 1 1 auto; position: relative; }
.segments input { position: absolute; opacity: 0; }
.segments span { display: block; text-align: center; padding: 0.5rem 0.45rem; cursor: pointer;
  border: 1px solid var(--edge); border-radius: 0.4rem; font-size: 0.92rem; white-space: nowrap; }
.segments input:checked + span { background: var(--accent); color: var(--on-accent);
  border-color: var(--accent); font-weight: 600; }
.segments input:focus-visible + span, button:focus-visible, input:focus-visible,
summary:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
input[type=range] { width: 100%; height: 2rem; margin: 0; accent-color: var(--accent); }
.row { display: flex; gap: 0.6rem; justify-content: space-between; align-items: center; }
small, #chart-text, .legend { color: var(--dim); font-size: 0.85rem; }
button { font: inherit; font-size: 0.92rem; padding: 0.4rem 0.9rem; color: var(--ink);
  background: transparent; border: 1px solid var(--dim); border-radius: 0.4rem; cursor: pointer;
  min-height: 2.4rem; }
canvas { display: block; width: 100%; height: 120px; }
.legend { display: flex; flex-wrap: wrap; gap: 0.2rem 0.9rem; margin: 0.3rem 0 0; }
.legend [hidden] { display: none; }
.line { display: inline-block; width: 1.1rem; height: 0; border-top: 3px solid;
  margin-right: 0.35rem; vertical-align: middle; }
.latency { border-color: var(--latency); } .age { border-color: var(--age); }
.limit { border-top-style: dashed; border-color: var(--bad); }
.missed { border-color: var(--bad); width: 3px; border: 0; height: 0.8rem;
  background: var(--bad); }
#chart-text { margin: 0.2rem 0 0; font-variant-numeric: tabular-nums; }
dl { display: grid; grid-template-columns: 1fr auto; gap: 0.15rem 1rem; }
dt { color: var(--dim); } dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; }
summary { cursor: pointer; font-weight: 600; }
#events { list-style: none; margin: 0.5rem 0 0; padding: 0; font-size: 0.85rem; }
#events li { padding: 0.25rem 0; border-top: 1px solid var(--edge); overflow-wrap: anywhere; }
#events time { color: var(--dim); margin-right: 0.5rem; }
#events .error { color: var(--bad); } #events .warning { color: var(--warn); }
"""

SCRIPT: Final = """
"use strict";
const $ = (id) => document.getElementById(id);
const words = {
  ok: ["good", "OK"], late: ["warn", "late"], reused: ["warn", "reused result"],
  dropped: ["warn", "dropped"], safe: ["bad", "SAFE STATE"], silent: ["bad", "silent"],
  no_result: ["bad", "no result"], starting: ["off", "starting"],
  self_test_failed: ["bad", "self-test failed"], away: ["bad", "no connection"],
};
let status = null, view = "overlay", threshold = null, retry = 0;

function stream() {
  const query = new URLSearchParams({ view });
  if (threshold !== null) query.set("threshold", threshold.toPrecision(3));
  query.set("n", String(Date.now()));  // a new request, though the choice may be the same
  $("video").src = "/stream.mjpg?" + query;
}

function range() {
  if (status && status.score_range) return status.score_range;
  const peak = status && status.anomaly_max !== null ? Math.abs(status.anomaly_max) : 10;
  const span = Math.max(2, Math.min(1000, 2 * peak));
  return [-span, span];
}

// Thresholds of a bounded score crowd near its lower end: the slider gives them more room.
function valueAt(position) {
  const [low, high] = range(), share = position / 1000;
  return low + (high - low) * (status && status.score_range ? share ** 3 : share);
}

function positionOf(value) {
  const [low, high] = range();
  const share = Math.min(1, Math.max(0, (value - low) / (high - low)));
  return Math.round(1000 * (status && status.score_range ? Math.cbrt(share) : share));
}

function number(value, digits) {
  return value === null || value === undefined ? "\\u2013" : value.toFixed(digits);
}

function showThreshold() {
  const own = status ? status.about.threshold : null;
  const text = threshold !== null ? Number(threshold.toPrecision(3)).toString()
    : own === null ? "none" : Number(own.toPrecision(3)) + " (the run's)";
  $("threshold-text").textContent = text;
  $("threshold").setAttribute("aria-valuetext", text);
}

let waiting = 0;
$("threshold").addEventListener("input", () => {
  threshold = valueAt(Number($("threshold").value));
  showThreshold();
  clearTimeout(waiting);
  waiting = setTimeout(stream, 200);
});
$("reset").addEventListener("click", () => {
  threshold = null;
  if (status && status.about.threshold !== null)
    $("threshold").value = positionOf(status.about.threshold);
  showThreshold();
  stream();
});
for (const radio of document.querySelectorAll("input[name=view]"))
  radio.addEventListener("change", () => { view = radio.value; stream(); });
$("video").addEventListener("error", () => {
  clearTimeout(retry);
  retry = setTimeout(stream, 2000);
});

function quantile(values, share) {
  const sorted = values.filter((v) => v !== null).sort((a, b) => a - b);
  if (!sorted.length) return null;
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
}

function draw() {
  const canvas = $("chart"), scale = window.devicePixelRatio || 1;
  const width = canvas.clientWidth, height = 120, left = 34;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const pen = canvas.getContext("2d"), css = getComputedStyle(document.documentElement);
  const colour = (name) => css.getPropertyValue(name).trim();
  pen.scale(scale, scale);
  const ages = status.age_ms, latencies = status.latency_ms, limit = status.deadline_ms;
  // A single outlier must not flatten everything else; what is above the top is cut there.
  const common = Math.max(quantile(ages, 0.95) || 0, quantile(latencies, 0.95) || 0, limit || 0);
  const raw = Math.max(1, 1.25 * common), power = 10 ** Math.floor(Math.log10(raw));
  const top = power * [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((step) => step * power >= raw);
  const y = (ms) => height - 8 - (height - 18) * Math.min(1, ms / top);
  const x = (i) => left + (width - left - 2) * (i + 240 - ages.length) / 239;
  pen.font = "11px system-ui, sans-serif";
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  for (const share of [0, 0.5, 1]) {
    pen.fillStyle = colour("--dim");
    pen.fillText(Number((share * top).toPrecision(3)), left - 5, y(share * top));
    pen.strokeStyle = colour("--edge");
    pen.lineWidth = 1;
    pen.beginPath();
    pen.moveTo(left, y(share * top));
    pen.lineTo(width, y(share * top));
    pen.stroke();
  }
  pen.fillStyle = colour("--bad");
  status.states.forEach((state, i) => {
    if (state !== "ok") pen.fillRect(x(i) - 1, height - 14, 2, 6);
  });
  const curve = (values, name) => {
    pen.strokeStyle = colour(name);
    pen.lineWidth = 1.75;
    pen.lineJoin = "round";
    pen.beginPath();
    let open = false;
    values.forEach((ms, i) => {
      if (ms === null) { open = false; return; }
      if (open) pen.lineTo(x(i), y(ms)); else pen.moveTo(x(i), y(ms));
      open = true;
    });
    pen.stroke();
  };
  curve(ages, "--age");
  curve(latencies, "--latency");
  if (limit !== null) {
    pen.strokeStyle = colour("--bad");
    pen.setLineDash([5, 4]);
    pen.beginPath();
    pen.moveTo(left, y(limit));
    pen.lineTo(width, y(limit));
    pen.stroke();
    pen.setLineDash([]);
  }
  $("deadline-key").hidden = limit === null;
  $("chart-text").textContent = "Milliseconds, last " + ages.length + " frames: latency median "
    + number(quantile(latencies, 0.5), 1) + ", 99% " + number(quantile(latencies, 0.99), 1)
    + "; age median " + number(quantile(ages, 0.5), 1) + ", 99% "
    + number(quantile(ages, 0.99), 1) + ".";
}

function facts() {
  const rows = [
    ["Frames per second", number(status.fps, 1)],
    ["Frames missed", status.missed],
    ["Frames replaced by newer", status.skipped],
    ["Frames corrupt", status.corrupt],
    ["Threshold of the run", status.about.threshold === null ? "none"
      : Number(status.about.threshold.toPrecision(3))],
    ["Temperature", status.temperature_c === null ? "\\u2013"
      : status.temperature_c.toFixed(0) + " \\u00b0C"],
    ["Viewers", status.viewers],
  ];
  $("facts").replaceChildren(...rows.flatMap(([name, value]) => {
    const key = document.createElement("dt"), text = document.createElement("dd");
    key.textContent = name;
    text.textContent = value;
    return [key, text];
  }));
  $("events").replaceChildren(...status.events.slice().reverse().map((event) => {
    const item = document.createElement("li"), time = document.createElement("time");
    time.textContent = new Date(event.at).toLocaleTimeString();
    const name = document.createElement("strong");
    name.textContent = event.event.replaceAll("_", " ");
    name.className = event.level;
    const more = event.detail || event.reason || event.error || "";
    item.append(time, name, more ? ": " + more : "");
    return item;
  }));
}

function chip(state) {
  const [level, text] = words[state] || ["warn", state];
  $("state").dataset.level = level;
  if ($("state-text").textContent !== text) $("state-text").textContent = text;
  const alarm = level !== "bad" ? "" : state === "away"
    ? "No connection to the run: this page shows nothing that is true now."
    : text + (status && status.reason ? ": " + status.reason : "")
      + ". Treat everything in view as unknown.";
  if ($("alarm").textContent !== alarm) $("alarm").textContent = alarm;
  $("alarm").hidden = !alarm;
  document.title = (level === "bad" ? "\\u26a0 " : "") + text + " \\u2013 edgeseg live";
}

let away = false;
async function poll() {
  try {
    const answer = await fetch("/state", { signal: AbortSignal.timeout(3000) });
    if (!answer.ok) throw new Error(answer.statusText);
    const first = status === null;
    status = await answer.json();
    const { network, precision, size, backend, scorer, threshold: own } = status.about;
    $("about").textContent = [network, precision, size, scorer, backend].join(" \\u00b7 ");
    if (first && own !== null) $("threshold").value = positionOf(own);
    chip(status.state);
    showThreshold();
    draw();
    facts();
    const share = status.anomaly_fraction;
    $("caption").textContent = status.frame === null ? "No frame"
      : status.state === "safe" ? "Frame " + status.frame + ", counted as anomalous everywhere"
      : "Frame " + status.frame + (share === null ? ""
        : ", " + (100 * share).toFixed(2) + "% of the pixels at or above the run's threshold");
    if (away) stream();
    away = false;
  } catch {
    away = true;
    chip("away");
  }
  document.body.classList.toggle("away", away);
  setTimeout(poll, 500);
}

stream();
poll();
"""
