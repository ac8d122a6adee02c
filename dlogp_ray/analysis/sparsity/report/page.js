"use strict";
// The report: charts by Vega, and responses whose tokens are shaded by what RL did to them.

const find = (id) => document.getElementById(id);
let data = null;

const ORDERS = {
  "most shifted": (a, b) => b.sum - a.sum,
  "least shifted": (a, b) => a.sum - b.sum,
  "right first": (a, b) => (b.right ?? -1) - (a.right ?? -1) || b.sum - a.sum,
  "wrong first": (a, b) => (a.right ?? 2) - (b.right ?? 2) || b.sum - a.sum,
  random: (a, b) => a.chance - b.chance,
};

let columns = null; // name -> typed array over the tokens of all samples
let shown = []; // samples in the order that was chosen
let current = null;

// How strong a token's shade is, from 0 to 1.
function strength(measure, value) {
  const size = Math.abs(value);
  if (measure.scale === "linear") return Math.min(1, size / Math.abs(measure.full));
  if (size <= measure.least) return 0;
  return Math.min(1, Math.log(size / measure.least) / Math.log(measure.full / measure.least));
}

function shade(measure, value) {
  if (Number.isNaN(value)) return "";
  if (measure.change && Math.abs(value) <= measure.floor) return "var(--none)";
  const name = measure.signed ? (value > 0 ? "--raised" : "--lowered") : "--size";
  return `rgba(var(${name}), ${(0.85 * strength(measure, value)).toFixed(3)})`;
}

const number = (value) =>
  Number.isNaN(value) ? "–" : Number.isInteger(value) ? String(value) : value.toPrecision(4);

function option(select, value, label) {
  const made = document.createElement("option");
  made.value = value;
  made.textContent = label;
  select.append(made);
}

function visible(text) {
  return text.replace(/\n/g, "⏎\n").replace(/\t/g, "⇥\t");
}

function choose() {
  const group = find("group").value;
  shown = data.samples.filter((one) => group === "" || one.group === group);
  shown.sort(ORDERS[find("order").value]);
  const select = find("sample");
  select.replaceChildren();
  shown.forEach((one, index) => {
    const right = one.right === null ? "" : one.right ? ", right" : ", wrong";
    option(select, index, `${one.id} (Σ|Δ| ${one.sum.toPrecision(3)}, ${one.length} tokens${right})`);
  });
  show(0);
}

function show(index) {
  if (!shown.length) return;
  index = (index + shown.length) % shown.length;
  find("sample").value = index;
  current = shown[index];
  const right = current.right === null ? "" : current.right ? " · right" : " · wrong";
  find("about").textContent =
    `${current.group} · sample ${current.id} · ${current.length} tokens${right}`;
  find("prompt").textContent = current.prompt ?? "";
  const box = find("response");
  box.replaceChildren();
  const ids = columns.token;
  for (let i = 0; i < current.length; i++) {
    const span = document.createElement("span");
    span.textContent = visible(data.vocabulary[ids[current.start + i]]);
    span.dataset.at = i;
    span.tabIndex = i === 0 ? 0 : -1;
    span.setAttribute("role", "option");
    if (!columns.counts[current.start + i]) span.className = "out";
    box.append(span);
  }
  box.scrollTop = 0;
  paint();
  detail(0);
}

function paint() {
  const measure = data.measures[find("measure").value];
  const values = columns[measure.name];
  for (const span of find("response").children) {
    span.style.background = shade(measure, values[current.start + Number(span.dataset.at)]);
  }
  legend(measure);
}

function legend(measure) {
  const box = find("legend");
  const most = `${number(measure.full)} and ${measure.full < 0 ? "less" : "more"}`;
  const parts = measure.signed
    ? [[-measure.full, `lowered, ${most}`], [0, "unresolved"], [measure.full, `raised, ${most}`]]
    : [[measure.change ? 0 : measure.least, measure.change ? "unresolved" : "0"],
       [measure.full, most]];
  box.replaceChildren(
    ...parts.map(([value, label]) => {
      const span = document.createElement("span");
      span.textContent = label;
      span.style.background = shade(measure, value);
      return span;
    }),
  );
}

function detail(at) {
  const i = current.start + at;
  const rows = [
    ["token", `${JSON.stringify(data.vocabulary[columns.token[i]])} (id ${data.ids[columns.token[i]]})`],
    ["position", String(at)],
    ...data.measures.map((measure) => [measure.label, number(columns[measure.name][i])]),
  ];
  const head = document.createElement("tr");
  const body = document.createElement("tr");
  for (const [name, value] of rows) {
    const th = document.createElement("th");
    const td = document.createElement("td");
    th.textContent = name;
    td.textContent = value;
    th.className = td.className = "name";
    head.append(th);
    body.append(td);
  }
  find("token").tBodies[0].replaceChildren(head, body);
}

function focusOn(at) {
  const spans = find("response").children;
  if (at < 0 || at >= spans.length) return;
  for (const span of spans) span.tabIndex = -1;
  spans[at].tabIndex = 0;
  spans[at].focus();
}

function listen() {
  const box = find("response");
  for (const kind of ["mouseover", "focusin"]) {
    box.addEventListener(kind, (event) => {
      if (event.target.dataset.at !== undefined) detail(Number(event.target.dataset.at));
    });
  }
  box.addEventListener("keydown", (event) => {
    const at = Number(event.target.dataset.at);
    const to = {
      ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + 10, ArrowUp: at - 10,
      Home: 0, End: current.length - 1,
    }[event.key];
    if (to === undefined || Number.isNaN(at)) return;
    event.preventDefault();
    focusOn(to);
  });
  find("group").addEventListener("change", choose);
  find("order").addEventListener("change", choose);
  find("measure").addEventListener("change", paint);
  find("sample").addEventListener("change", () => show(Number(find("sample").value)));
  find("previous").addEventListener("click", () => show(Number(find("sample").value) - 1));
  find("next").addEventListener("click", () => show(Number(find("sample").value) + 1));
  find("policy").addEventListener("change", draw);
  find("theme").addEventListener("click", () => {
    const dark = document.documentElement.dataset.theme !== "dark";
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    draw();
  });
}

// What an element holds, packed, as a response of its bytes.
function unpacked(id) {
  const text = atob(find(id).textContent);
  const packed = new Uint8Array(text.length); // Uint8Array.from takes ten times as long
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip")));
}

async function unpack() {
  const planes = new Uint8Array(await unpacked("tokens").arrayBuffer());
  const found = {};
  for (const { name, start, length, kind } of data.columns) {
    const kinds = { float32: Float32Array, int32: Int32Array, uint8: Uint8Array };
    const size = kinds[kind].BYTES_PER_ELEMENT;
    // Byte planes: the first byte of all values, then the second, ...; they pack better.
    const bytes = new Uint8Array(length * size);
    for (let plane = 0; plane < size; plane++) {
      for (let i = 0; i < length; i++) bytes[i * size + plane] = planes[start + plane * length + i];
    }
    found[name] = new kinds[kind](bytes.buffer);
  }
  return found;
}

async function draw() {
  const dark = document.documentElement.dataset.theme === "dark";
  const style = getComputedStyle(document.documentElement);
  const text = style.getPropertyValue("--text");
  const line = style.getPropertyValue("--line");
  const config = {
    background: "transparent",
    font: "system-ui, sans-serif",
    view: { stroke: line },
    axis: { labelColor: text, titleColor: text, gridColor: line, domainColor: line, tickColor: line },
    legend: { labelColor: text, titleColor: text },
    range: { category: dark
      ? ["#56b4e9", "#e69f00", "#2ecc9b", "#cc79a7", "#f0e442", "#d0d5db"]
      : ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56606b"] },
    rule: { color: text },
  };
  const options = { actions: false, renderer: "svg", config, tooltip: { theme: dark ? "dark" : "light" } };
  const policy = find("policy").value;
  for (const [index, chart] of Object.values(data.charts).flat().entries()) {
    const spec = structuredClone(chart.spec);
    spec.data.values = spec.data.values.filter((row) => (row.policy ?? policy) === policy);
    await vegaEmbed(`#chart-${index}`, spec, options);
    await new Promise((resume) => setTimeout(resume)); // whoever reads already comes first
  }
  document.documentElement.dataset.drawn = "true";
}

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// The boxes that charts are drawn into, under their headings.
function lay() {
  let index = 0;
  for (const [title, charts] of Object.entries(data.charts)) {
    const boxes = charts.map((chart) => element("div", { className: "chart" },
      element("h3", { textContent: chart.title }),
      element("p", { textContent: chart.caption }),
      element("div", { id: `chart-${index++}`, className: "picture" })));
    find("charts").append(
      element("h2", { textContent: title }), element("div", { className: "grid" }, ...boxes));
  }
}

async function start() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  data = JSON.parse(await unpacked("data").text());
  columns = await unpack();
  option(find("group"), "", "all");
  for (const group of new Set(data.samples.map((one) => one.group))) option(find("group"), group, group);
  for (const name of Object.keys(ORDERS)) option(find("order"), name, name);
  data.measures.forEach((measure, index) => option(find("measure"), index, measure.label));
  for (const policy of data.policies) option(find("policy"), policy, policy);
  find("policy").value = data.policies.at(-1);
  find("policies").hidden = data.policies.length < 2;
  listen();
  choose();
  lay();
  document.documentElement.dataset.ready = "true";
  const vega = document.createElement("script");
  vega.textContent = await unpacked("vega").text();
  document.head.append(vega);
  await draw();
}

start();
