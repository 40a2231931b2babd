// Hover values, runs on and off, steps or tokens, smoothing. The picture itself, with its scales, is in the page.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const [width, height, left, right, top_, bottom] = data.frame;
const state = { by: "steps", weight: data.smoothing, hidden: new Set() };

const between = (value, [low, high], start, end) => start + ((value - low) / (high - low)) * (end - start);

function tokensAt(run, step) {
  const { steps, tokens } = data.runs[run];
  if (!steps.length) return step;
  let after = steps.findIndex((at) => at >= step);
  if (after < 0) after = steps.length - 1;
  const before = Math.max(after - 1, 0);
  if (steps[after] === steps[before]) return tokens[after];
  return tokens[before] + ((step - steps[before]) / (steps[after] - steps[before])) * (tokens[after] - tokens[before]);
}

function smoothed(values, weight) {
  let mean = 0, total = 0;
  return values.map((value) => {
    mean = weight * mean + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return mean / total;
  });
}

class Chart {
  constructor(figure, number) {
    this.figure = figure;
    this.svg = figure.querySelector("svg");
    this.scales = JSON.parse(this.svg.dataset.scales);
    this.told = data.charts[number];
    this.paths = [...this.svg.querySelectorAll("[data-curve]")];
    this.cursor = this.svg.querySelector(".cursor");
    this.tip = figure.appendChild(Object.assign(document.createElement("div"), { className: "tip", hidden: true }));
    this.svg.addEventListener("pointermove", (event) => this.tell(event));
    this.svg.addEventListener("pointerdown", (event) => this.tell(event));
    this.svg.addEventListener("pointerleave", () => this.quiet());
  }

  x(run, step) {
    const at = state.by === "steps" ? step : tokensAt(run, step);
    return between(at, state.by === "steps" ? this.scales.x : this.scales.t, left, width - right);
  }

  y(value) {
    return between(this.scales.log ? Math.log10(value) : value, this.scales.y, height - bottom, top_);
  }

  line(curve, steps, values) {
    return "M" + steps.map((step, at) => `${this.x(curve.r, step).toFixed(1)} ${this.y(values[at]).toFixed(1)}`).join("L");
  }

  draw() {
    for (const path of this.paths) {
      const curve = this.told.curves[path.dataset.curve];
      if (path.classList.contains("dots")) {
        const dot = (step, at) => `M${this.x(curve.r, step).toFixed(1)} ${this.y(curve.v[at]).toFixed(1)}h0`;
        path.setAttribute("d", curve.s.map(dot).join(""));
      } else if (path.classList.contains("band")) {
        const around = [...curve.s, ...[...curve.s].reverse()];
        path.setAttribute("d", this.line(curve, around, [...curve.h, ...[...curve.l].reverse()]) + "z");
      } else {
        const smooth = path.classList.contains("line") && curve.smooth;
        path.setAttribute("d", this.line(curve, curve.s, smooth ? smoothed(curve.v, state.weight) : curve.v));
      }
    }
    for (const path of this.svg.querySelectorAll(".bad")) {
      const cross = (step) => `M${(this.x(+path.dataset.run, step) - 3).toFixed(1)} ${height - bottom - 7}l6 6m0 -6l-6 6`;
      path.setAttribute("d", this.told.marks[path.dataset.run].map(cross).join(""));
    }
    this.quiet();
  }

  tell(event) {
    const box = this.svg.getBoundingClientRect();
    const place = ((event.clientX - box.left) / box.width) * width;
    const lines = [];
    let nearest = null;
    for (const curve of this.told.curves) {
      if (state.hidden.has(curve.r)) continue;
      const far = curve.s.map((step) => Math.abs(this.x(curve.r, step) - place));
      const at = far.indexOf(Math.min(...far));
      if (nearest === null || far[at] < nearest.far) nearest = { far: far[at], run: curve.r, step: curve.s[at] };
      lines.push([curve, at]);
    }
    if (nearest === null) return;
    const read = data.runs[nearest.run].steps.length ? `, ${written(tokensAt(nearest.run, nearest.step))} tokens` : "";
    this.tip.replaceChildren(row(`step ${nearest.step.toLocaleString("en")}${read}`, "soft"));
    for (const [curve, at] of lines) {
      const name = data.runs.length > 1 ? `${data.runs[curve.r].name}: ` : "";
      const kind = curve.val ? " (validation)" : "";
      const bounds = curve.l ? ` (${written(curve.l[at])} to ${written(curve.h[at])})` : "";
      this.tip.append(row(`${name}${written(curve.v[at])}${bounds}${kind}`, data.runs[curve.r].colour));
    }
    const line = this.x(nearest.run, nearest.step);
    this.cursor.setAttribute("x1", line);
    this.cursor.setAttribute("x2", line);
    this.cursor.style.visibility = "visible";
    this.tip.hidden = false;
    const at = (line / width) * box.width;
    const fits = at + 12 + this.tip.offsetWidth <= box.width;
    this.tip.style.left = `${fits ? at + 12 : Math.max(0, at - 12 - this.tip.offsetWidth)}px`;
    this.tip.style.top = `${this.svg.offsetTop + 6}px`;
  }

  quiet() {
    this.tip.hidden = true;
    this.cursor.style.visibility = "hidden";
  }
}

function row(text, className) {
  return Object.assign(document.createElement("div"), { textContent: text, className });
}

function written(value) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e9)) return value.toExponential(2);
  return size >= 1000 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(4));
}

const charts = [...document.querySelectorAll("figure[data-chart]")].map((figure, number) => new Chart(figure, number));
const area = document.querySelector(".charts");
const redraw = () => charts.forEach((chart) => chart.draw());

for (const choice of document.querySelectorAll("input[name=by]")) {
  choice.addEventListener("change", () => {
    state.by = choice.value;
    area.className = `charts by-${state.by}`;
    redraw();
  });
}
document.getElementById("smoothing")?.addEventListener("input", (event) => {
  state.weight = +event.target.value;
  redraw();
});
for (const box of document.querySelectorAll("input[data-run]")) {
  box.addEventListener("change", () => {
    const run = +box.dataset.run;
    box.checked ? state.hidden.delete(run) : state.hidden.add(run);
    for (const path of document.querySelectorAll(`.run${run}`)) path.style.display = box.checked ? "" : "none";
    charts.forEach((chart) => chart.quiet());
  });
}
document.documentElement.dataset.ready = "yes";
