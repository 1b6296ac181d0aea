// The page of `heliotrope watch`: asks for what is new, keeps a row and the curves of each run.
// Text of a run is only ever set as text, never as HTML.
"use strict";

const AXES = JSON.parse(document.body.dataset.axes); // name -> [label, [[from, divide, unit], ...]]
const COLOURS = Number(document.body.dataset.colours);
const MARKS = Number(document.body.dataset.marks);
const CELLS = ["state", "progress", "left", "metric", "pace", "age", "experiment", "changed"];
const NEWEST = 20; // runs whose curves are shown until others are chosen
const LOST = 3; // seconds until the server is tried again
const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [380, 236, 48, 12, 10, 40];
const LARGEST = 1e30; // as in the report: larger values are not drawn

const runs = new Map(); // number -> {row, events, element, box}
const charts = new Map(); // metric -> {figure, caption, read, holder, visible, stale, drawn}
let version = 0;
let newest = [];
let shown = "newest"; // or "all", "none", "chosen"
let axis = null;

const byId = (id) => document.getElementById(id);
const collator = new Intl.Collator("en", { numeric: true });

function html(tag, attributes = {}, ...children) {
  const element = Object.assign(document.createElement(tag), attributes);
  element.append(...children);
  return element;
}

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// --- runs -------------------------------------------------------------------------------------

function swatch(number) {
  return svg(
    "svg",
    { class: `swatch c${number % COLOURS}`, viewBox: "0 0 28 12", "aria-hidden": "true" },
    svg("path", { d: "M1 6H27", stroke: "currentColor", "stroke-width": 2 }),
    svg("use", { href: `#mark${number % MARKS}` }),
  );
}

function newRun(number) {
  const box = html("input", { type: "checkbox" });
  box.addEventListener("change", () => show("chosen"));
  const name = html("span");
  const cells = CELLS.map(() => html("td"));
  const head = html("th", { scope: "row" }, html("label", {}, box, swatch(number), " ", name));
  return { row: {}, events: [], element: html("tr", {}, head, ...cells), box, name, cells };
}

function fill(run, row) {
  run.row = row;
  run.name.textContent = row.name;
  CELLS.forEach((key, index) => {
    const cell = run.cells[index];
    if (key !== "state") cell.textContent = row[key];
    else {
      const ended = { running: "live", failed: "warn", broken: "warn" }[row.state] ?? "";
      cell.replaceChildren(html("span", { className: `tag ${ended}`, textContent: row.state }));
    }
  });
}

function take(answer) {
  version = answer.version;
  newest = answer.newest;
  const there = new Set(newest);
  let others = false; // runs have come or gone
  for (const number of runs.keys()) {
    if (there.has(number)) continue;
    runs.get(number).element.remove();
    others = runs.delete(number);
  }
  for (const { id, anew, row, events } of answer.runs) {
    if (!runs.has(id)) {
      runs.set(id, newRun(id));
      others = true;
    }
    const run = runs.get(id);
    if (anew) run.events = [];
    run.events.push(...events);
    fill(run, row);
  }
  if (others) {
    const sorted = [...runs.values()].sort((a, b) => collator.compare(a.row.name, b.row.name));
    byId("runs").append(...sorted.map((run) => run.element));
  }
  tell(answer.note);
  arrangeAxes();
  arrangeCharts(answer.metrics);
  if (others || answer.runs.some((run) => run.anew || run.events.length)) show(shown);
}

function tell(note) {
  byId("note").textContent = note;
  byId("note").hidden = !note;
  const states = new Map();
  for (const { row } of runs.values()) states.set(row.state, (states.get(row.state) ?? 0) + 1);
  byId("counts").textContent = [...states].map(([state, count]) => `${count} ${state}`).join(", ");
}

function show(which) {
  shown = which;
  const first = new Set(newest.slice(0, NEWEST));
  if (which !== "chosen") {
    for (const [number, run] of runs) {
      run.box.checked = which === "all" || (which === "newest" && first.has(number));
    }
  }
  for (const button of byId("shown").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.shown === which));
  }
  for (const chart of charts.values()) chart.stale = true;
  drawVisible();
}

// --- charts -----------------------------------------------------------------------------------

function arrangeAxes() {
  const known = new Set();
  for (const { events } of runs.values()) {
    for (const name of Object.keys(AXES)) if (events.length && name in events.at(-1)) known.add(name);
  }
  const buttons = byId("axes").querySelectorAll("button");
  if (buttons.length === known.size) return;
  buttons.forEach((button) => button.remove());
  for (const name of Object.keys(AXES).filter((each) => known.has(each))) {
    const button = html("button", { type: "button", textContent: AXES[name][0] });
    button.dataset.axis = name;
    button.addEventListener("click", () => chooseAxis(name));
    byId("axes").append(button);
  }
  if (known.size) chooseAxis(known.has(axis) ? axis : Object.keys(AXES).find((each) => known.has(each)));
}

function chooseAxis(name) {
  axis = name;
  for (const button of byId("axes").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.axis === name));
  }
  show(shown);
}

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) charts.get(entry.target.dataset.metric).visible = entry.isIntersecting;
  drawVisible();
});

function arrangeCharts(metrics) {
  byId("none").hidden = metrics.length > 0;
  const names = new Set(metrics.map(([name]) => name));
  for (const [name, chart] of charts) {
    if (names.has(name)) continue;
    seen.unobserve(chart.figure);
    chart.figure.remove();
    charts.delete(name);
  }
  if (metrics.every(([name]) => charts.has(name))) return;
  for (const [name, label] of metrics) {
    if (!charts.has(name)) charts.set(name, newChart(name, label));
    byId("charts").append(charts.get(name).figure);
  }
}

function newChart(metric, label) {
  const read = html("output");
  const holder = html("div");
  const caption = html("figcaption", {}, html("span", { textContent: label }), read);
  const figure = html("figure", { className: "chart" }, caption, holder);
  figure.dataset.metric = metric;
  const chart = { figure, label, read, holder, visible: false, stale: true, drawn: [] };
  holder.addEventListener("pointermove", (event) => readOff(chart, event));
  holder.addEventListener("pointerleave", () => readOff(chart, null));
  seen.observe(figure);
  return chart;
}

function drawVisible() {
  for (const [metric, chart] of charts) {
    if (!chart.visible || !chart.stale) continue;
    draw(metric, chart);
    chart.stale = false;
  }
}

function lines(metric) {
  const found = [];
  for (const [number, run] of runs) {
    if (!run.box.checked) continue;
    const points = [];
    for (const event of run.events) {
      if (metric in event && axis in event) points.push([event[axis], event[metric]]);
    }
    if (points.length) found.push({ number, name: run.row.name, points });
  }
  return found;
}

const drawable = (value) => value !== null && Math.abs(value) < LARGEST;

function ticks(low, high) {
  const rough = (high - low) / 5 || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((each) => each * power >= rough * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high && found.length < 12; k += 1) {
    found.push(k * step + 0); // not -0
  }
  return found;
}

function text(value) {
  const small = value !== 0 && Math.abs(value) < 1e-3;
  const words = small ? value.toExponential(1) : value.toLocaleString("en", { maximumSignificantDigits: 5 });
  return words.replace("-", "\u2212");
}

function draw(metric, chart) {
  const found = lines(metric);
  const values = found.flatMap(({ points }) => points.map(([, y]) => y).filter(drawable));
  const extent = found.reduce((most, { points }) => Math.max(most, points.at(-1)[0]), 0) || 1;
  const [, divide, unit] = AXES[axis][1].find(([from]) => extent >= from);
  let low = values.reduce((a, b) => Math.min(a, b), Infinity);
  let high = values.reduce((a, b) => Math.max(a, b), -Infinity);
  if (!values.length) [low, high] = [0, 1];
  const margin = (high - low || Math.abs(high) || 1) * 0.08;
  [low, high] = [low - margin, high + margin];
  const x = (value) => LEFT + ((value / extent + 0.02) / 1.05) * (WIDTH - LEFT - RIGHT);
  const y = (value) => TOP + ((high - value) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const words = `${chart.label} against ${AXES[axis][0]}, ${found.length} runs`;
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": words });
  for (const tick of ticks(low, high)) {
    const [end, height] = [WIDTH - RIGHT, y(tick)];
    picture.append(svg("path", { class: "grid", d: `M${LEFT} ${height}H${end}` }));
    picture.append(svg("text", { x: LEFT - 6, y: height + 4, "text-anchor": "end" }, text(tick)));
  }
  for (const tick of ticks(0, extent / divide)) {
    const place = { x: x(tick * divide), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" };
    picture.append(svg("text", place, text(tick)));
  }
  const middle = { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" };
  picture.append(svg("text", middle, unit));
  chart.drawn = found.flatMap((line) => drawLine(picture, line, x, y));
  chart.mark = svg("circle", { class: "found", r: 5, visibility: "hidden" });
  picture.append(chart.mark);
  chart.unit = [divide, unit];
  chart.holder.replaceChildren(picture);
}

// Draws one run, with its mark at the end; returns its points as they lie in the picture.
function drawLine(picture, { number, name, points }, x, y) {
  const placed = [];
  let path = "";
  let pen = "M";
  for (const [at, value] of points) {
    if (!drawable(value)) {
      pen = "M"; // a gap
      continue;
    }
    placed.push({ x: x(at), y: y(value), at, value, name });
    path += `${pen}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
    pen = "L";
  }
  if (!placed.length) return placed;
  const group = svg("g", { class: `c${number % COLOURS}` }, svg("path", { class: "line", d: path }));
  const { x: right, y: height } = placed.at(-1);
  const mark = { href: `#mark${number % MARKS}`, x: right - 14, y: height - 6, width: 28, height: 12 };
  group.append(svg("use", { class: "point", ...mark }));
  picture.append(group);
  return placed;
}

// Says which run's point is nearest to the pointer.
function readOff(chart, event) {
  const picture = chart.holder.firstElementChild;
  const box = picture?.getBoundingClientRect();
  let nearest = null;
  if (event && box.width) {
    const [px, py] = [event.clientX - box.left, event.clientY - box.top].map((v) => (v * WIDTH) / box.width);
    let least = 30 ** 2;
    for (const point of chart.drawn) {
      const distance = (point.x - px) ** 2 + (point.y - py) ** 2;
      if (distance < least) [least, nearest] = [distance, point];
    }
  }
  chart.mark?.setAttribute("visibility", nearest ? "visible" : "hidden");
  if (nearest) {
    chart.mark.setAttribute("cx", nearest.x);
    chart.mark.setAttribute("cy", nearest.y);
    const [divide, unit] = chart.unit;
    chart.read.value = `${nearest.name}: ${text(nearest.value)} at ${text(nearest.at / divide)} ${unit}`;
  } else chart.read.value = "";
}

// --- polling ----------------------------------------------------------------------------------

async function poll() {
  let wait = LOST;
  try {
    const answer = await fetch(`changes?after=${version}`, { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.statusText);
    const changes = await answer.json();
    wait = changes.wait;
    take(changes);
  } catch (error) {
    console.error(error);
    tell("The watch has ended, or cannot be reached: this is what was known last.");
  }
  setTimeout(poll, 1000 * wait);
}

for (const button of byId("shown").querySelectorAll("button")) {
  button.addEventListener("click", () => show(button.dataset.shown));
}
show(shown);
poll();
