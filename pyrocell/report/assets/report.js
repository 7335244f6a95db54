"use strict";
(async function () {
  const $id = (id) => document.getElementById(id);
  const bytes = (id) => Uint8Array.from(atob($id(id).textContent.trim()), (c) => c.charCodeAt(0));

  async function inflated(id) {
    const stream = new Blob([bytes(id)]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).text();
  }
  async function module(id) {
    const url = URL.createObjectURL(new Blob([bytes(id)], { type: "text/javascript" }));
    try { return await import(url); } finally { URL.revokeObjectURL(url); }
  }
  function el(tag, text, attributes) {
    const node = document.createElement(tag);
    if (text !== undefined && text !== null) node.textContent = text;
    for (const [k, v] of Object.entries(attributes || {})) node.setAttribute(k, v);
    return node;
  }
  function problem(text) {
    document.querySelector("main").prepend(el("p", text, { class: "problem" }));
  }
  if (typeof DecompressionStream === "undefined") {
    problem("This browser is too old for the tables and figures of this page (it needs one from 2023 " +
            "or later). The same numbers are in the folder tables/ beside it.");
    return;
  }

  const { content: C, charts: SPECS } = JSON.parse(await inflated("data"));
  const script = document.createElement("script");
  script.textContent = new TextDecoder().decode(bytes("charts-code"));
  document.head.append(script);
  const { jQuery: $ } = await module("tables-code");
  $.fn.dataTable.ext.errMode = "throw";

  // ------------------------------------------------------------------ small helpers
  const digits = (x, n) => (x === null || x === undefined ? "" : Number(x).toFixed(n));
  const signed = (x) => (x === null || x === undefined ? "" : (x > 0 ? "+" : "") + Number(x).toFixed(2));
  const rate = (x) => (x === null || x === undefined ? "" : x < 0.001 ? "< .001" : Number(x).toPrecision(2));
  const share = (x) => (x === null || x === undefined ? "" : (100 * Number(x)).toFixed(0));
  const whole = (x) => (x === null || x === undefined ? "" : Number(x).toLocaleString("en"));
  const asText = $.fn.dataTable.render.text();

  // A number is sorted by its value and shown by its form; text is never read as HTML.
  function column(title, form, className) {
    if (!form) return { title: escape_(title), render: asText, className: className || "" };
    return {
      title: escape_(title), className: (className || "") + " dt-right", type: "num",
      render: (value, type) => (type === "display" || type === "filter" ? form(value)
        : value === null || value === undefined ? -Infinity : value),
    };
  }
  function escape_(text) { const p = document.createElement("p"); p.textContent = text; return p.innerHTML; }
  function table(where, columns, rows, options) {
    const place = $id(where);
    if (place._table) { place._table.destroy(); }
    place.replaceChildren(el("table", null, { class: "display compact nowrap", style: "width:100%" }));
    place._table = $(place.firstChild).DataTable(Object.assign({
      columns, data: rows, deferRender: true, scrollX: true, pageLength: 15, order: [],
      lengthMenu: [15, 50, 200], autoWidth: false,
      layout: rows.length > 15 ? { topStart: "pageLength", topEnd: "search" } :
        { topStart: null, topEnd: "search", bottomStart: null, bottomEnd: null },
    }, options || {}));
    return place._table;
  }
  async function draw(where, name, rows) {
    const spec = structuredClone(SPECS[name]);
    spec.datasets = { rows };
    if (spec.height.step) { // a height in pixels, so that the width can follow the page
      const y = (spec.encoding || spec.layer[0].encoding).y.field;
      spec.height = spec.height.step * new Set(rows.map((r) => r[y])).size;
    }
    const place = $id(where);
    if (place._view) place._view.finalize();
    place._view = await window.vegaEmbed(place, spec, { renderer: "svg", logLevel: 1, actions: { export: true, source: false, compiled: false, editor: false } });
  }
  function hide(id) {
    $id(id).hidden = true;
    const link = document.querySelector(`nav a[href="#${id}"]`);
    if (link) link.remove();
  }
  for (const section of document.querySelectorAll("main > section")) {
    $id("nav").append(el("a", section.querySelector("h2").textContent, { href: "#" + section.id }));
  }

  // ------------------------------------------------------------------ answers and verdicts
  for (const { question, answer } of C.answers) $id("answer-list").append(el("dt", question), el("dd", answer));
  if (!C.answers.length) hide("answers");
  const words = { good: "good", look: "look at it", bad: "bad", "not tested": "not tested" };
  for (const v of C.verdicts) {
    const row = el("div", null, { class: "verdict" });
    row.append(el("span", words[v.level] || v.level, { class: "badge " + (v.level || "").replace(" ", "-") }));
    const said = el("div");
    said.append(el("strong", v.check + (v.value ? ": " + v.value : "") + (v.verdict ? " (" + v.verdict + ")" : "")));
    if (v.reason) said.append(el("div", v.reason));
    if (v.remedy) said.append(el("div", v.remedy, { class: "note" }));
    row.append(said);
    $id("verdicts").append(row);
  }

  // ------------------------------------------------------------------ perturbations
  const E = C.effects, P = C.perturbations;
  const left = (p) => Math.min(9, ...C.media.slice(1).map((m) => p["gain " + m] ?? 9));
  const has = (key) => P.some((p) => p[key] !== null && p[key] !== undefined && p[key] !== "");
  if (!E) {
    for (const id of ["perturbations", "one", "pattern", "genes"]) hide(id);
  } else {
    const columns = [["perturbation", "perturbation"], ["n_cells", "cells", whole]];
    if (has("own_log2fc")) columns.push(["own_percent", "own transcript, %", (x) => (x === null ? "" : signed0(x))], ["own_log2fc", "own, log2", signed]);
    columns.push(["up", "up", whole], ["down", "down", whole]);
    for (const m of C.media.slice(1)) {
      if (has("changed " + m)) columns.push(["changed " + m, "changed, " + m, whole]);
    }
    if (has("silent")) columns.push(["silent", "P(silent)", (x) => digits(x, 2)]);
    for (const m of C.media.slice(1)) {
      if (has("gain " + m)) columns.push(["gain " + m, "response left, " + m, (x) => digits(x, 2)], ["response " + m, "verdict, " + m]);
    }
    if (has("steady")) columns.push(["steady", "P(steady)", (x) => digits(x, 2)]);
    if (has("n_guides")) columns.push(["n_guides", "guides", whole]);
    if (has("response_share")) columns.push(["response_share", "responded, %", share]);
    if (has("guides_agree")) columns.push(["guides_agree", "guides agree, %", share]);
    columns.push(["n_batches", "batches", whole], ["flags", "be careful"]);
    const found = table("perturbation-table", columns.map(([, title, form]) => column(title, form)),
      P.slice().sort((a, b) => total(b) - total(a) || left(a) - left(b)).map((p) => columns.map(([key]) => (p[key] === undefined ? null : p[key]))),
      { rowId: (row) => "k" + P.findIndex((p) => p.perturbation === row[0]) });
    $("#perturbation-table tbody").on("click", "tr", function () {
      const row = found.row(this).data();
      if (row) { $id("choose").value = row[0]; show(); $id("one").scrollIntoView(); }
    });
    $id("perturbations-note").textContent += " Up and down: genes in a list with 10% wrong signs expected" +
      (C.media.length > 1 ? ", in " + C.media[0] : "") + "; P: posterior probability; empty: the layout cannot tell, or it was not measured.";
    for (const p of P) $id("choose").append(el("option", p.perturbation, { value: p.perturbation }));
    for (const place of E.places) $id("choose-media").append(el("option", place.media, { value: place.media }));
    if (E.places.length < 2) $id("media-label").hidden = true; else $id("choose-media").value = E.places[E.places.length - 1].media;
    const strongest = P.reduce((a, b) => (total(b) > total(a) || (total(b) === total(a) && left(b) < left(a)) ? b : a), P[0]);
    $id("choose").value = strongest.perturbation;
    $id("choose").addEventListener("change", show);
    $id("choose-media").addEventListener("change", show);
  }
  function signed0(x) { return (x > 0 ? "+" : "") + Math.round(x); }
  function total(p) {
    return (p.up || 0) + (p.down || 0) + C.media.slice(1).reduce((n, m) => n + (p["changed " + m] || 0), 0);
  }
  function rowsOf(name, place) {
    const e = place.of[name];
    if (!e) return [];
    const own = E.own[name];
    return e.g.map((g, i) => ({
      gene: E.genes[g], log2fc: e.m[i], lower: e.l[i], upper: e.u[i], lfsr: e.s[i], fdr: e.f[i],
      count: e.c[i], control: place.control[g], sure: -Math.log10(Math.max(e.s[i], E.smallest_rate)),
      state: g === own ? "own gene" : e.f[i] <= 0.1 ? (e.m[i] > 0 ? "up" : "down") : "not listed",
    }));
  }
  async function show() {
    const name = $id("choose").value, media = $id("choose-media").value;
    const place = E.places.find((p) => p.media === media) || E.places[0];
    const p = P.find((q) => q.perturbation === name) || {};
    for (const row of document.querySelectorAll("#perturbation-table tr.chosen")) row.classList.remove("chosen");
    const mine = document.getElementById("k" + P.indexOf(p));
    if (mine) mine.classList.add("chosen");
    const rows = rowsOf(name, place);
    const line = [`${name}: ${whole(p.n_cells)} cells in ${p.n_batches} ${p.n_batches === 1 ? "batch" : "batches"}`];
    if (p.own_log2fc !== null && p.own_log2fc !== undefined) line.push(`its own transcript changes by ${signed0(p.own_percent)}% (log2 ${signed(p.own_log2fc)}, ${signed(p.own_lower)} to ${signed(p.own_upper)})`);
    for (const m of C.media.slice(1)) {
      if (p["gain " + m] !== null && p["gain " + m] !== undefined) line.push(`it leaves ${digits(p["gain " + m], 2)} of the response to ${m} (${digits(p["gain_lower " + m], 2)} to ${digits(p["gain_upper " + m], 2)}): ${p["response " + m]}`);
    }
    if (p.flags) line.push("be careful: " + p.flags);
    $id("one-line").textContent = line.join("; ") + "." + (E.all_genes ? "" : ` Of its genes the ${E.most} surest are shown; tables/ holds all.`);
    if (!rows.length) {
      $id("one-words").textContent = `Not measured in ${place.media}.`;
    } else {
      $id("one-words").textContent = (C.words[place.media] || {})[name] || "No gene is listed as changed.";
    }
    const sure = rows.slice().sort((a, b) => Math.abs(b.log2fc) / (b.upper - b.lower + 1e-9) - Math.abs(a.log2fc) / (a.upper - a.lower + 1e-9)).slice(0, 20);
    table("gene-effects", [column("gene"), column("log2 change", signed), column("lower", signed), column("upper", signed), column("false sign rate", rate), column("list's false share", rate), column("counts", whole), column("counts, control", whole)],
      rows.map((r) => [r.gene, r.log2fc, r.lower, r.upper, r.lfsr, r.fdr, r.count, r.control]), { order: [[5, "asc"]] });
    const sets = C.sets[name];
    if (sets && sets.length) {
      $id("set-note").hidden = false;
      table("set-table", [column("set of genes"), column("enrichment", signed), column("p", rate), column("false share", rate), column("genes", whole)], sets.map((s) => [s.set, s.score, s.p, s.fdr, s.n]));
    } else { $id("set-note").hidden = true; if ($id("set-table")._table) { $id("set-table")._table.destroy(); $id("set-table")._table = null; } $id("set-table").replaceChildren(); }
    const course = ((C.courses[place.media] || {})[name]) || [];
    $id("course-figure").hidden = !course.length;
    if (course.length) await draw("course", "course", course);
    await draw("volcano", "volcano", rows);
    await draw("intervals", "intervals", sure);
  }

  // ------------------------------------------------------------------ media
  const gains = [];
  for (const m of C.media.slice(1)) {
    for (const p of P) {
      if (p["gain " + m] !== null && p["gain " + m] !== undefined) gains.push({ perturbation: p.perturbation, medium: m, gain: p["gain " + m], lower: p["gain_lower " + m], upper: p["gain_upper " + m], response: p["response " + m] });
    }
  }
  gains.sort((a, b) => a.gain - b.gain);
  if (C.media.length < 2) hide("media");
  else {
    const shown = gains.slice(0, 60);
    $id("gains-caption").textContent = gains.length ? `How much of the response each perturbation leaves${gains.length > shown.length ? `; the ${shown.length} lowest of ${gains.length}` : ""}; orange: blocked or weakened` : "The screen cannot tell how much of the response each perturbation leaves.";
    if (shown.length) await draw("gains", "gains", shown);
    table("media-table", [column("medium"), column("gene"), column("log2 change", signed), column("lower", signed), column("upper", signed), column("counts", whole)],
      C.media_effects.map(([m, g, c, l, u, n]) => [m, g, c, l / Math.LN2, u / Math.LN2, n]));
  }

  // ------------------------------------------------------------------ patterns
  if (C.heat) {
    const H = C.heat, where = C.media.length > 1 ? " in " + H.media : "";
    $id("heat-caption").textContent = `log2 fold changes${where}, rows and columns clustered; the ${H.n_rows} strongest of ${H.of_rows} perturbations, ${H.n_columns} of ${H.of_columns} genes; own genes framed`;
    $id("similarity-caption").textContent = `Which perturbations do the same: correlation of their effects${where}`;
    await draw("heat", "heat", H.cells);
    await draw("similarity", "similarity", H.pairs);
    table("gene-table", [column("gene"), column("counts in control", whole), column("perturbations that raise it", whole), column("that lower it", whole), column("changed most by"), column("log2 change", signed)], C.genes, { order: [[3, "desc"]] });
    $("#gene-table tbody").on("click", "tr", function () {
      const row = $id("gene-table")._table.row(this).data();
      if (row) { $id("choose").value = row[4]; show(); $id("one").scrollIntoView(); }
    });
  }

  // ------------------------------------------------------------------ assumptions, batches, reading
  for (const a of C.assumptions) {
    const box = $id("assumption-list");
    box.append(el("h3", a.title), el("p", a.says, { class: "note" }));
    for (const line of a.lines) box.append(el("p", line));
    for (const u of a.untested) {
      box.append(el("p", `Cannot be tested for ${u.who}: ${u.reason}.`));
      if (u.remedy) box.append(el("p", `Next screen: ${u.remedy}.`, { class: "note" }));
    }
    if (a.untested_more) box.append(el("p", `And ${a.untested_more} more reasons: tables/assumptions.`));
  }
  if (!C.assumptions.length) hide("assumptions");
  const B = C.batches;
  $id("batch-text").append(el("p", B.aliased.length ? `What this layout cannot tell apart (of ${B.n_contrasts} contrasts):` : "Every contrast can be told from the batches."));
  if (B.aliased.length) {
    const list = el("ul");
    for (const reason of B.aliased.slice(0, 20)) list.append(el("li", reason));
    if (B.aliased.length > 20) list.append(el("li", `and ${B.aliased.length - 20} more: tables/aliased`));
    $id("batch-text").append(list);
  }
  if (B.noise.length) table("batch-table", [column("batch"), column("batch noise, RMS, natural log", (x) => digits(x, 3)), column("gene it moves most"), column("log2 change", signed)], B.noise);
  const R = C.read;
  $id("read-text").append(el("p", `${whole(R.n_cells)} cells and ${whole(R.n_genes)} genes; ${whole(R.n_perturbations)} perturbations and ${whole(R.n_control)} control cells (${R.control})` + (R.times.length ? `; times ${R.times.join(", ")}` : "") + (R.media.length > 1 ? `; media ${R.media.join(", ")}` : "") + "."));
  $id("read-text").append(el("p", "Columns used: " + (R.used.map((u) => `${u.column} (${u.argument})`).join(", ") || "none") + "."));
  if (R.ignored.length) $id("read-text").append(el("p", "Not used, though their names look as if they belonged to the screen: " + R.ignored.map((u) => `${u.column} (${u.argument})`).join(", ") + "."));
  if (C.steps.length) {
    const list = el("ol");
    for (const s of C.steps) list.append(el("li", `${s.name}: ${s.rule} (${whole(s.before)} → ${whole(s.after)})`));
    $id("read-text").append(el("p", "What was done to the counts before:"), list);
  }
  table("cell-table", [column("cells of"), ...R.batches.map((b) => column(b, whole))], R.cells);
  if (C.training.rows.length) await draw("training", "training", C.training.rows); else hide("fit");

  // ------------------------------------------------------------------ methods
  $id("methods-text").textContent = C.methods;
  $id("copy").addEventListener("click", async () => {
    try { await navigator.clipboard.writeText(C.methods); $id("copy").textContent = "Copied"; }
    catch { getSelection().selectAllChildren($id("methods-text")); }
  });
  if (C.command) { $id("command").append("Command: ", el("code", C.command)); }
  for (const c of C.citations) $id("citations").append(el("li", c));
  if (E) await show();
  document.body.dataset.ready = "yes";
})().catch((error) => {
  const p = document.createElement("p");
  p.className = "problem";
  p.textContent = "This page could not be shown whole: " + error.message + ". The same numbers are in the folder tables/ beside it.";
  document.querySelector("main").prepend(p);
  document.body.dataset.ready = "failed";
  throw error;
});
