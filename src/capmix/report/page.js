"use strict";
// Texts of samples are untrusted: insert them into the page only as text nodes.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 12;

  function element(name, attributes = {}, ...children) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (value === true) node.setAttribute(key, "");
      else if (value !== false && value !== null) node.setAttribute(key, String(value));
    }
    node.append(...children);
    return node;
  }

  // Figures -----------------------------------------------------------------------------------

  const NEAR = 24;  // the pointer selects a marker within this many pixels

  function buildFigures() {
    const csv = Object.fromEntries(data.figures.map((figure) => [figure.name, figure.csv]));
    for (const button of document.querySelectorAll("[data-csv]")) {
      button.addEventListener("click", () => {
        const url = URL.createObjectURL(new Blob([csv[button.dataset.csv]], { type: "text/csv" }));
        element("a", { href: url, download: `${button.dataset.csv}.csv` }).click();
        setTimeout(() => URL.revokeObjectURL(url), 1000);
      });
    }
    for (const chart of document.querySelectorAll("svg.chart")) {
      for (const event of ["pointermove", "click"]) chart.addEventListener(event, pointAt);
      chart.addEventListener("pointerleave", () => { tip.hidden = true; });
    }
    const published = document.getElementById("published");
    if (published) published.addEventListener("change", () => showPublished(published.checked));
  }

  const tip = document.getElementById("tip");

  function pointAt(event) {
    let nearest = null;
    let least = NEAR;
    for (const marker of event.currentTarget.querySelectorAll("[data-tip]")) {
      const box = marker.getBoundingClientRect();
      if (!box.width) continue;
      const distance = Math.hypot(
        event.clientX - box.x - box.width / 2, event.clientY - box.y - box.height / 2);
      if (distance < least) [nearest, least] = [marker, distance];
    }
    tip.hidden = nearest === null;
    if (nearest === null) return;
    tip.textContent = nearest.dataset.tip;
    const width = tip.offsetWidth;
    const left = Math.min(event.clientX + 14, document.documentElement.clientWidth - width - 8);
    tip.style.left = `${Math.max(left, 8)}px`;
    tip.style.top = `${event.clientY + 16}px`;
  }

  // Published rows are last in each figure, so hiding them shortens the figure.
  function showPublished(shown) {
    document.documentElement.classList.toggle("no-published", !shown);
    for (const chart of document.querySelectorAll("svg.chart")) {
      const [x, y, width] = chart.getAttribute("viewBox").split(" ");
      const height = shown ? chart.dataset.height : chart.dataset.short;
      chart.setAttribute("viewBox", `${x} ${y} ${width} ${height}`);
    }
  }

  // Tables ------------------------------------------------------------------------------------

  const numberIn = (text) => {
    const found = text.replaceAll(",", "").replaceAll("−", "-").match(/^([+-]?\d+(?:\.\d+)?)([MB]?)/);
    return found ? Number(found[1]) * { "": 1, M: 1e6, B: 1e9 }[found[2]] : null;
  };

  function buildTables() {
    for (const table of document.querySelectorAll("table.sortable")) {
      for (const head of table.querySelectorAll("thead th")) {
        const button = element("button", { type: "button", class: "sort" }, ...head.childNodes);
        head.replaceChildren(button);
        button.addEventListener("click", () => sortBy(table, head));
      }
    }
  }

  // Sort each group of rows separately. Numbers start with the greatest; cells without one are last.
  function sortBy(table, head) {
    const column = head.cellIndex;
    const value = (row) => row.cells[column].textContent.trim();
    const rows = [...table.tBodies].flatMap((body) => [...body.rows]).filter((row) => row.cells.length > 1);
    const numeric = rows.some((row) => numberIn(value(row)) !== null) &&
      rows.every((row) => /^(–|)$/.test(value(row)) || numberIn(value(row)) !== null);
    const rising = head.ariaSort ? head.ariaSort === "descending" : !numeric;
    const order = (a, b) => {
      if (!numeric) return (rising ? 1 : -1) * value(a).localeCompare(value(b), "en", { numeric: true });
      const [first, second] = [numberIn(value(a)), numberIn(value(b))];
      return (first === null) - (second === null) || (rising ? first - second : second - first);
    };
    for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    for (const body of table.tBodies) {
      body.append(...[...body.rows].filter((row) => row.cells.length > 1).sort(order));
    }
  }

  // Thresholds --------------------------------------------------------------------------------

  const steps = data.steps;
  const order = steps ? steps.order.map((column) => ({
    name: steps.sources[column], column, used: steps.used[column], step: steps.start[column],
  })) : [];

  const decimals = (scale) => Math.round(Math.log10(scale));
  const valueOf = (step) => (step * steps.unit / steps.scale).toFixed(decimals(steps.scale));

  function decide(reached) {
    for (const one of order) {
      const step = reached[one.column];
      if (one.used && step !== null && step >= one.step) return one.name;
    }
    return null;
  }

  function countKept() {
    const kept = Object.fromEntries(order.map((one) => [one.name, 0]));
    for (const cell of steps.cells) {
      const chosen = decide(cell);
      if (chosen !== null) kept[chosen] += cell[cell.length - 1];
    }
    return kept;
  }

  function recipe() {
    const used = order.filter((one) => one.used);
    if (!used.length) return "# no source is selected: no sample is kept\n";
    const name = used.map((one) => one.name + valueOf(one.step)).join("+").slice(0, 100);
    const lines = [`name: "${name}"`, "about: Thresholds chosen in a capmix report."];
    if (data.scorer) lines.push(`# scores of the scorer ${data.scorer}`);
    lines.push("clauses:");
    for (const one of used) {
      lines.push(`  - {source: "${one.name}", where: "${one.name}_score >= ${valueOf(one.step)}"}`);
    }
    return lines.join("\n") + "\n";
  }

  function buildSliders() {
    const box = document.getElementById("sliders");
    box.replaceChildren();
    order.forEach((one, position) => {
      const use = element("input", { type: "checkbox", checked: one.used });
      const up = element("button", { type: "button", "aria-label": `move ${one.name} up` }, "↑");
      up.disabled = position === 0;
      const range = element("input", {
        type: "range", min: steps.least[one.column], max: steps.most[one.column] + 1, step: 1,
        value: one.step, "data-source": one.name, "aria-label": `threshold of ${one.name}`,
      });
      const value = element("output", {});
      const count = element("output", { "data-kept": one.name });
      const label = element("label", { class: "use" }, use, one.name);
      box.append(element("div", { class: "threshold" },
        element("div", { class: "use" }, label, up), range, value, count));
      const show = () => {
        value.textContent = `≥ ${valueOf(one.step)}`;
        range.setAttribute("aria-valuetext", valueOf(one.step));
      };
      use.addEventListener("change", () => { one.used = use.checked; changed(); });
      range.addEventListener("input", () => { one.step = Number(range.value); show(); changed(); });
      up.addEventListener("click", () => {
        order.splice(position - 1, 0, ...order.splice(position, 1));
        buildSliders();
        const again = [...box.querySelectorAll("button")][position - 1];
        (again.disabled ? box.querySelector("input") : again).focus();
        changed();
      });
      show();
    });
  }

  function changed() {
    filters.elements.decided.value = "";
    moved();
  }

  function moved() {
    const kept = countKept();
    const total = Object.values(kept).reduce((a, b) => a + b, 0);
    const share = (count) => `${count.toLocaleString("en")} (${(100 * count / data.samples).toFixed(1)}%)`;
    for (const output of document.querySelectorAll("[data-kept]")) {
      output.textContent = `keeps ${share(kept[output.dataset.kept])}`;
    }
    const text = document.getElementById("kept");
    text.dataset.total = total;
    text.textContent = `${share(total)} of ${data.samples.toLocaleString("en")} samples are kept; ` +
      `${(data.samples - total).toLocaleString("en")} are left out.`;
    document.getElementById("recipe").value = recipe();
    if (filters.elements.decided.value === "") showSamples();
  }

  async function copyRecipe() {
    const area = document.getElementById("recipe");
    const status = document.getElementById("copied");
    try {
      await navigator.clipboard.writeText(area.value);
    } catch {
      area.select();
      document.execCommand("copy");
    }
    status.textContent = "copied";
    setTimeout(() => { status.textContent = ""; }, 2000);
  }

  // Samples -----------------------------------------------------------------------------------

  const filters = document.getElementById("filters");
  let samples = data.examples;
  let unread = 0;  // samples of the shard that the server leaves out
  let shown = PAGE;

  function fill(select, options) {
    select.replaceChildren(...options.map(([value, text]) => element("option", { value }, text)));
  }

  function buildFilters() {
    const named = (names) => names.map((name) => [name, name]);
    const own = steps ? [["", "the thresholds below"]] : [];
    fill(filters.elements.decided, [...own, ...named(data.subsets)]);
    if (data.shown) filters.elements.decided.value = data.shown;
    fill(filters.elements.decision,
      [["", "any"], ...named(data.sources).map(([v, t]) => [v, `kept: ${t}`]), ["-", "left out"]]);
    const byScore = data.scored.flatMap((s) => [[`-${s}`, `${s}: highest first`], [`+${s}`, `${s}: lowest first`]]);
    fill(filters.elements.sort, [["", "random order"], ...byScore]);
    fill(filters.elements.source, named(data.scored));
    fill(filters.elements.flag, [["", "any"], ["-", "none"], ["+", "some"], ...named(data.flags)]);
    hideEmptyFilters();
    filters.addEventListener("submit", (event) => event.preventDefault());
    filters.addEventListener("input", async (event) => {
      shown = PAGE;
      showSamples();
      if (event.target.name === "decided" || event.target.name === "shard") await fetchAll();
    });
    document.getElementById("more").addEventListener("click", () => {
      shown += PAGE;
      showSamples();
    });
  }

  // Hide filters without anything to choose from.
  function hideEmptyFilters() {
    const decides = data.subsets.length > 0 || steps !== null;
    const shownFor = {
      decided: decides, decision: decides, sort: data.scored.length, source: data.scored.length,
      least: data.scored.length, most: data.scored.length, flag: data.flags.length,
    };
    for (const [name, has] of Object.entries(shownFor)) {
      filters.elements[name].closest("label").hidden = !has;
    }
    document.getElementById("matching").hidden = !Object.values(shownFor).some(Boolean) && !data.api;
    document.getElementById("about-samples").hidden = !data.about;
  }

  function decisionOf(sample) {
    const by = filters.elements.decided.value;
    if (by === "") return steps ? decide(sample.steps) : null;
    return sample.decisions ? sample.decisions[by] : undefined;
  }

  function matches(sample) {
    const { decision, source, least, most, flag } = filters.elements;
    const decided = decisionOf(sample);
    if (decision.value === "-" && decided !== null) return false;
    if (decision.value && decision.value !== "-" && decided !== decision.value) return false;
    if (source.value && (least.value !== "" || most.value !== "")) {
      const score = sample.texts[source.value].score;
      if (score === null) return false;
      if (least.value !== "" && score < Number(least.value)) return false;
      if (most.value !== "" && score > Number(most.value)) return false;
    }
    if (flag.value) {
      const flags = Object.values(sample.texts).flatMap((one) => one.flags);
      if (flag.value === "-") return flags.length === 0;
      if (flag.value === "+") return flags.length > 0;
      return flags.includes(flag.value);
    }
    return true;
  }

  function showSamples() {
    const found = samples.filter(matches);
    const by = filters.elements.sort.value;
    if (by) {
      const sign = by[0] === "-" ? -1 : 1;
      const score = (sample) => sample.texts[by.slice(1)].score;
      found.sort((a, b) => (score(a) === null) - (score(b) === null) || sign * (score(a) - score(b)));
    }
    document.getElementById("examples").replaceChildren(...found.slice(0, shown).map(card));
    const text = document.getElementById("matching");
    text.dataset.count = found.length;
    text.textContent = `${found.length.toLocaleString("en")} of ${samples.length.toLocaleString("en")} samples match.` +
      (unread ? ` Loaded at even intervals from the shard's ${(samples.length + unread).toLocaleString("en")} samples.` : "");
    document.getElementById("more").hidden = found.length <= shown;
  }

  function card(sample) {
    const decided = decisionOf(sample);
    const source = sample.image || (data.api && data.images ? `image?${new URLSearchParams(
      { token: data.api, shard: sample.shard, key: sample.key, uid: sample.uid })}` : null);
    const picture = source
      ? element("img", { src: source, alt: `sample ${sample.key}`, loading: "lazy" })
      : element("span", { class: "quiet" }, "no image");
    const texts = Object.entries(sample.texts).filter(([name]) => !data.empty.includes(name)).map(([name, one]) => {
      const head = element("div", {}, element("span", { class: "who" }, name));
      if (one.score !== null) head.append(element("span", { class: "score" }, one.score.toFixed(3)));
      const said = element("bdi", { dir: "auto" }, one.text === null ? "(none)" : one.text);
      const flags = one.flags.map((flag) => element("span", { class: "flag" }, flag));
      const chosen = decided === name;
      if (chosen) head.append(element("span", { class: "quiet" }, " ✓ chosen"));
      return element("div", { class: chosen ? "said chosen" : "said" }, head, said, ...flags);
    });
    const status = !data.subsets.length && !steps ? "" : decided === undefined ? "loading the decision …" : decided === null ? "left out" : `uses ${decided}`;
    return element("li", { class: "example", "data-uid": sample.uid, "data-decision": decided || "" },
      element("div", { class: "picture" }, picture), ...texts,
      element("p", { class: "decision" }, `${status}${status ? " · " : ""}${sample.shard}/${sample.key}`));
  }

  // The server of `capmix view` returns rows and decisions on request.

  async function ask(path, parameters) {
    const answer = await fetch(`${path}?${new URLSearchParams({ token: data.api, ...parameters })}`);
    if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
    return answer.json();
  }

  // Discard a response if the selection has changed since the request.
  async function fetchSamples() {
    if (!data.api) return;
    const shard = filters.elements.shard.value;
    const found = await ask("rows", { shard });
    if (filters.elements.shard.value !== shard) return;
    samples = found.samples;
    unread = found.of - samples.length;
    showSamples();
  }

  async function fetchDecisions() {
    const subset = filters.elements.decided.value;
    if (!data.api || subset === "") return;
    const shard = filters.elements.shard.value;
    const asked = samples;
    const found = await ask("decisions", { subset, shard });
    if (asked !== samples || filters.elements.shard.value !== shard) return;
    asked.forEach((sample, i) => { (sample.decisions ||= {})[subset] = found[i]; });
    showSamples();
  }

  async function fetchAll() {
    try {
      await fetchSamples();
      await fetchDecisions();
    } catch (error) {
      document.getElementById("examples").replaceChildren();
      document.getElementById("matching").textContent =
        `The capmix view server does not respond (${error.message}).`;
    }
  }

  async function start() {
    buildFigures();
    buildTables();
    buildFilters();
    document.getElementById("about-samples").textContent = data.about;
    if (data.api) {
      document.getElementById("shard-choice").hidden = false;
      fill(filters.elements.shard, [["", "random sample of all"], ...data.shards.map((s) => [s, s])]);
    }
    if (steps) {
      buildSliders();
      moved();
      document.getElementById("copy").addEventListener("click", copyRecipe);
    }
    showSamples();
    document.documentElement.dataset.ready = "yes";
    await fetchAll();
  }
  start();
})();
