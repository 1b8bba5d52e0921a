// Show a measurement as numbers and a chart, and compare it with the phone of the paper.

import { barChart } from "./chart.js";
import { $, h } from "./elements.js";
import { nameOf } from "./engine.js";
import { comparison, milliseconds, percentile } from "./numbers.js";

// DistilBERT paper, section 3: an iPhone 7 Plus, question answering without tokenization.
const PAPER = { teacher: 1118, student: 319 };

export function showResults(result, models) {
  const titles = new Map(models.map((model) => [model.role, model.title]));
  const groups = groupsOf(result.rows);
  $("results").replaceChildren(
    ...groups.flatMap((group) => shown(group, titles)),
    h("p", { class: "note" },
      `In the paper, an iPhone 7 Plus took ${milliseconds(PAPER.teacher)} with BERT-base and ${milliseconds(PAPER.student)} ` +
      `with DistilBERT: ${comparison(PAPER.teacher, PAPER.student)}.`),
    ...result.problems.map((problem) => h("p", { class: "note warn" }, `${nameOf(problem)}: not measured, ${problem.error}`)),
    ...(result.interrupted ? [h("p", { class: "note warn" }, "The page was hidden for a time: measure again for reliable numbers.")] : []),
  );
  $("results").hidden = false;
}

// Groups of comparable rows: same length, backend and threads.
function groupsOf(rows) {
  const groups = new Map();
  for (const row of rows) {
    const name = `${row.length} tokens · ${nameOf(row)}`;
    groups.set(name, [...(groups.get(name) ?? []), row]);
  }
  return [...groups].map(([name, members]) => ({ name, rows: members }));
}

function shown({ name, rows }, titles) {
  const medians = new Map(rows.map((row) => [row.model, percentile(row.neural_ms, 0.5)]));
  const bars = rows.map((row) => ({
    label: titles.get(row.model), role: row.model, p50: medians.get(row.model), p90: percentile(row.neural_ms, 0.9),
  }));
  const [teacher, student] = [medians.get("teacher"), medians.get("student")];
  const headline = teacher && student ? [h("p", { class: "headline" }, `The student is ${comparison(teacher, student)}`)] : [];
  return [h("h3", {}, name), ...headline, barChart(bars), table(rows, titles)];
}

function table(rows, titles) {
  const heads = ["Model", "Median", "90 %", "Tokenize", "First"];
  const cells = (row) => [
    milliseconds(percentile(row.neural_ms, 0.5)),
    milliseconds(percentile(row.neural_ms, 0.9)),
    milliseconds(percentile(row.tokenise_ms, 0.5)),
    milliseconds(row.first_ms),
  ];
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Times as a table" },
    h("table", {},
      h("thead", {}, h("tr", {}, ...heads.map((head) => h("th", { scope: "col" }, head)))),
      h("tbody", {}, ...rows.map((row) => h("tr", {},
        h("th", { scope: "row" }, titles.get(row.model)), ...cells(row).map((cell) => h("td", {}, cell)))))));
}
