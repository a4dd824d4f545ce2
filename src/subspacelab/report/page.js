"use strict";
// Figures: each form chooses frames by their names, and which traces are visible. Both are Plotly's public calls.
for (const form of document.querySelectorAll("form[data-figure]")) {
  const figure = document.getElementById(form.dataset.figure), frames = JSON.parse(form.dataset.frames);
  const choose = () => {
    const picked = {};
    for (const input of form.querySelectorAll("select, input[type=range]")) {
      picked[input.name] = input.value;
      if (input.type === "range") {
        const text = JSON.parse(input.dataset.values)[input.value];
        input.nextElementSibling.value = text;
        input.setAttribute("aria-valuetext", text);
      }
    }
    const names = frames.map(name => name.replace(/\{(\w+)\}/g, (_, key) => picked[key]));
    const still = { mode: "immediate", frame: { duration: 0, redraw: true }, transition: { duration: 0 } };
    const fit = () => form.dataset.free !== undefined && Plotly.relayout(figure, { "yaxis.autorange": true });
    if (names.length) Plotly.animate(figure, names, still).then(fit).catch(() => {});  // the next choice interrupts it
  };
  const show = () => {
    const { controls, group } = form.elements, level = controls?.type === "checkbox" ? +controls.checked : +(controls?.value ?? 2);
    const visible = figure.data.map(({ meta }) => meta.control <= level && (!group?.value || meta.group === group.value));
    Plotly.restyle(figure, { visible }, visible.map((_, i) => i));
  };
  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("input", event => ["group", "controls"].includes(event.target.name) ? show() : choose());
}
// Tables: a click on a column's name sorts, numbers as numbers; empty cells come last.
for (const box of document.querySelectorAll(".table")) {
  const body = box.querySelector("tbody"), rows = [...body.rows];
  box.querySelector("input[type=search]")?.addEventListener("input", event => {
    const words = event.target.value.toLowerCase().split(/\s+/);
    for (const row of rows) row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
    box.querySelector("output").value = `${rows.filter(row => !row.hidden).length} rows`;
  });
  box.querySelector("input.all")?.addEventListener("change", event => box.classList.toggle("wide", event.target.checked));
  const heads = [...box.querySelectorAll("th")];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const sign = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const cell = row => row.cells[column].textContent.trim();
    const compare = (a, b) => sign * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
    body.append(...rows.sort((x, y) => (cell(x) === "") - (cell(y) === "") || compare(cell(x), cell(y))));
  }));
}
// Print: figures are drawn anew at the width of a sheet.
const figures = () => document.querySelectorAll(".js-plotly-plot");
addEventListener("beforeprint", () => {
  document.body.classList.add("printing");
  figures().forEach(figure => Plotly.relayout(figure, { width: figure.clientWidth, height: figure.clientHeight }));
});
addEventListener("afterprint", () => {
  document.body.classList.remove("printing");
  figures().forEach(figure => Plotly.relayout(figure, { autosize: true, width: null, height: null }));
});
