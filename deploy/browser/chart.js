// A bar chart of milliseconds: the median, with a line to the 90th percentile.

import { milliseconds } from "./numbers.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 320;
const BAR = 18;
const ROW = 46;

function element(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// rows: [{ label, role, p50, p90 }]
export function barChart(rows) {
  const height = rows.length * ROW;
  const chart = element("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", class: "chart" });
  chart.append(element("title", {}, `Time per question: ${rows.map((row) => `${row.label} ${milliseconds(row.p50)}`).join("; ")}`));
  const most = Math.max(...rows.map((row) => row.p90));
  const scale = (value) => (value / most) * (WIDTH - 4);
  rows.forEach((row, place) => {
    const top = place * ROW;
    const middle = top + 20 + BAR / 2;
    chart.append(
      element("text", { x: 0, y: top + 14, class: "bar-label" }, row.label),
      element("text", { x: WIDTH, y: top + 14, class: "bar-value", "text-anchor": "end" }, milliseconds(row.p50)),
      element("rect", { x: 0, y: top + 20, width: WIDTH, height: BAR, rx: 4, class: "bar-ground" }),
      element("rect", { x: 0, y: top + 20, width: Math.max(2, scale(row.p50)), height: BAR, rx: 4, class: `bar ${row.role}` }),
      element("line", { x1: scale(row.p50), x2: scale(row.p90), y1: middle, y2: middle, class: "whisker" }),
    );
  });
  return chart;
}
