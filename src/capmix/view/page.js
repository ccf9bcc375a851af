"use strict";
// Texts of the pool are untrusted: insert them only with textContent.

const token = document.querySelector("meta[name=capmix-token]").content;
const $ = (id) => document.getElementById(id);
const FILTER_NAMES = {
  all: "All", untouched: "Untouched", edited: "Edited", accepted: "Accepted", rejected: "Rejected",
  tagged: "Tagged", stale: "Stale", flagged: "Flagged", "no-text": "No text",
};
const FILTER_HELP = {
  stale: "The image or the base text has changed since the edit", flagged: "A caption has a flag, for example loop or boilerplate",
  "no-text": "No text from the selected source, or from any source",
};
const KEYS = [
  ["j  →", "next sample"], ["k  ←", "previous sample"], ["Shift+J  Shift+→", "ten samples forward"], ["Shift+K  Shift+←", "ten samples back"],
  ["]  [", "next, previous shard"], ["g", "go to a number, key or uid"], ["/", "search the texts"], ["f", "next filter"],
  ["a", "accept"], ["r", "reject"], ["x", "clear accept or reject"], ["c", "confirm a stale edit"], ["m  d", "in a conflict: keep mine, use theirs"],
  ["e", "edit the caption"], ["1 … 9", "edit that text"], ["t", "edit the tags"],
  ["Ctrl+Enter", "save the caption and go to the next sample"], ["Esc", "leave a field and keep its text"],
  ["u  Ctrl+Z", "undo"], ["Shift+U", "redo"], ["h", "find and replace"], ["z", "actual size of the image"],
  ["Ctrl+S", "write the parts"], ["?", "show this help"],
];

let pool = null;          // the response of /api/pool
let rows = [];            // loaded samples of the list
let at = -1;              // index of the displayed sample in rows
let rest = null;          // where the rest of the list starts
let matches = null;       // number of matches, if known
let offset = null;        // number of matches before the first loaded row
let filter = "all";
let base = "";            // name of the text that new edits are based on
let listing = 0;          // number of the latest list request
let work = Promise.resolve();  // queue of changes, which run one at a time

// Server requests

async function answered(response) {
  const value = await response.json().catch(() => ({ error: response.statusText || "no answer" }));
  if (!response.ok) {
    const error = new Error(value.error || response.statusText);
    error.status = response.status;
    throw error;
  }
  return value;
}

async function ask(path, parameters = {}) {
  const query = new URLSearchParams(parameters);
  return answered(await fetch(`${path}?${query}`, { headers: { "X-Capmix-Token": token } }));
}

async function send(path, value) {
  return answered(await fetch(path, {
    method: "POST",
    headers: { "X-Capmix-Token": token, "Content-Type": "application/json" },
    body: JSON.stringify(value),
  }));
}

const source = (path, parameters) => `${path}?${new URLSearchParams({ ...parameters, token })}`;

let silence = 0;
function say(text, isBad = false) {
  $("said").textContent = text;
  $("said").classList.toggle("bad", isBad);
  clearTimeout(silence);
  if (text) silence = setTimeout(() => say(""), isBad ? 9000 : 2500);
}

function fail(error) {
  say(error instanceof TypeError ? `${error.message}: is capmix view still running?` : error.message, true);
}

function make(tag, properties = {}, ...children) {
  const found = Object.assign(document.createElement(tag), properties);
  found.append(...children);
  return found;
}

// The list

function query() {
  return {
    shard: $("scope").value === "shard" ? $("shard").value.trim() : "",
    find: $("find").value,
    within: $("within").value,
    regex: $("regex").getAttribute("aria-pressed") === "true" ? "1" : "",
    case: $("case").getAttribute("aria-pressed") === "true" ? "1" : "",
    keep: filter,
    base: base || "raw",
  };
}

async function load(start = { number: 0, row: 0 }, select = null) {
  const number = ++listing;
  const found = await ask("api/samples", { ...query(), ...start });
  if (number !== listing) return;
  rows = found.rows;
  rest = found.rest;
  matches = found.matches;
  offset = found.before;
  notes(found);
  drawStrip();
  const chosen = select === null ? 0 : rows.findIndex((row) => row.uid === select);
  await show(rows.length ? Math.max(0, chosen) : -1);
}

async function more() {
  if (rest === null) return false;
  const number = listing;
  const found = await ask("api/samples", { ...query(), number: rest[0], row: rest[1] });
  if (number !== listing) return false;
  const begin = rows.length;
  rows = rows.concat(found.rows);
  rest = found.rest;
  notes(found);
  drawStrip(begin);
  return found.rows.length > 0;
}

async function earlier() {
  const first = rows[0];
  if (!first || (first.n === 0 && (first.number === 0 || query().shard))) return 0;
  const start = first.n > 0 ? [first.number, first.n - 1] : [first.number - 1, -1];
  const number = listing;
  const found = await ask("api/samples", { ...query(), number: start[0], row: start[1], backwards: "1" });
  if (number !== listing) return 0;
  rows = found.rows.concat(rows);
  if (offset !== null) offset -= found.rows.length;
  drawStrip();
  return found.rows.length;
}

function notes(found) {
  about(found);
  for (const note of found.notes) say(note, true);
  const isPart = found.matches === null && rest !== null;
  $("more").hidden = rest === null;
  $("more").textContent = isPart && !found.rows.length ? `Searched ${found.looked.toLocaleString()} shards; continue` : "Show more";
  $("state").title = isPart ? "Large pools are searched shard by shard" : "";
}

function about(found) {
  $("undo").disabled = !found.journal.undo;
  $("redo").disabled = !found.journal.redo;
  $("save").disabled = !found.journal.unsaved || pool.readOnly;
  $("save").textContent = found.journal.unsaved ? `Write parts (${found.journal.unsaved.toLocaleString()})` : "Parts written";
  if (!found.journal.lines) $("save").textContent = "Write parts";
  if (pool.readOnly) $("save").textContent = "Read only";
  for (const button of $("filters").children) {
    const count = found.counts[button.dataset.filter === "tagged" ? "tagged" : button.dataset.filter];
    button.lastChild.textContent = count === undefined ? "" : count.toLocaleString();
  }
  const damaged = found.journal.damaged;
  const parts = [`${found.counts.touched.toLocaleString()} reviewed`];
  if (found.journal.noSample) parts.push(`${found.journal.noSample.toLocaleString()} reviews of samples that are not in the pool (kept in the journal)`);
  if (damaged) parts.push(`${damaged} damaged journal lines skipped`);
  $("state").textContent = parts.join("; ");
  knownTags = Object.keys(found.counts).filter((name) => name.startsWith("tag:")).map((name) => name.slice(4)).sort();
}
let knownTags = [];

function drawStrip(begin = 0) {
  const first = rows[0];
  $("earlier").hidden = !first || (offset === null ? first.n === 0 && (first.number === 0 || Boolean(query().shard)) : offset === 0);
  if (begin === 0) $("strip").replaceChildren();
  for (let i = begin; i < rows.length; i++) $("strip").append(make("li", {}, thumb(rows[i], i)));
  document.body.dataset.rows = rows.length;
}

function thumb(row, i) {
  const button = make("button", { type: "button", className: "thumb", title: row.key });
  button.setAttribute("aria-label", `Sample ${row.key}${spoken(row)}`);
  if (pool.images) {
    const image = make("img", { alt: "", loading: "lazy", decoding: "async" });
    image.addEventListener("error", () => image.replaceWith(make("span", { className: "words", textContent: "no image" })));
    image.src = source("thumbnail", { shard: row.shard, row: row.n });
    button.append(image);
  } else {
    button.append(make("span", { className: "words", textContent: (row.texts.find((t) => t.text) || {}).text || row.key }));
  }
  const mark = sign(row);
  if (mark) button.append(make("span", { className: `dot ${mark[1]}`, textContent: mark[0] }));
  button.classList.toggle("rejected", Boolean(row.review && row.review.decision === "reject"));
  if (i === at) button.setAttribute("aria-current", "true");
  button.addEventListener("click", () => change(() => show(rows.indexOf(row))));
  return button;
}

function sign(row) {
  const review = row.review;
  if (!review) return null;
  if (review.stale.length) return ["!", "warn"];
  if (review.decision === "accept") return ["✓", "accept"];
  if (review.decision === "reject") return ["✕", "reject"];
  return review.edited ? ["✎", "edited"] : ["#", "tagged"];
}

function spoken(row) {
  const review = row.review;
  if (!review) return "";
  const words = [];
  if (review.edited) words.push("edited");
  if (review.decision) words.push(`${review.decision}ed`);
  if (review.stale.length) words.push("stale");
  if (review.tags.length) words.push(`tags ${review.tags.join(", ")}`);
  return words.length ? `, ${words.join(", ")}` : "";
}

function redrawThumb(i) {
  const item = $("strip").children[i];
  if (item) item.replaceChildren(thumb(rows[i], i));
}

// One sample

const current = () => rows[at];

async function show(i) {
  const before = at;
  at = i;
  document.body.classList.toggle("nothing", at < 0);
  $("empty").hidden = at >= 0;
  if (at < 0) {
    $("empty-text").textContent = rest === null ? "No matching samples." : "No matches so far; continue the search in the list.";
    return;
  }
  for (const one of [before, at]) if (one >= 0 && one < rows.length) mark(one);
  draw();
  if (at + 1 < rows.length && pool.images) new Image().src = picture(rows[at + 1]);
  const shown = current();
  const now = await ask("api/sample", { shard: shown.shard, key: shown.uid }).catch(() => null);
  if (now && current() === shown && JSON.stringify(now) !== JSON.stringify(shown)) put(now);
}

function mark(i) {
  const button = $("strip").children[i] && $("strip").children[i].firstChild;
  if (!button) return;
  if (i === at) {
    button.setAttribute("aria-current", "true");
    button.scrollIntoView({ block: "nearest", inline: "nearest" });
  } else {
    button.removeAttribute("aria-current");
  }
}

function put(row) {
  const i = rows.findIndex((one) => one.uid === row.uid && one.shard === row.shard);
  if (i < 0) return;
  rows[i] = row;
  redrawThumb(i);
  if (i === at) draw();
}

const picture = (row) => source("picture", { shard: row.shard, key: row.key });
const nameOf = (row) => `${row.shard} ${row.uid}`;
const draftName = (row) => `capmix ${pool.work} ${pool.source} ${nameOf(row)}`;
const textOf = (row, name) => row.texts.find((one) => one.name === name);

// An unsaved draft: `text`, the `base` that it is based on, and the `version` of the sample that it
// was written for (0 if the stored draft has none).
function draftOf(row) {
  const kept = localStorage.getItem(draftName(row));
  return kept === null ? null : { base: "", version: 0, ...JSON.parse(kept) };
}

function setDraft(row, draft) {
  if (draft) localStorage.setItem(draftName(row), JSON.stringify(draft));
  else localStorage.removeItem(draftName(row));
}

// Whether the sample has been changed by others since the draft was started. Such a draft is not
// saved without the user's decision.
function isInConflict(row) {
  const draft = draftOf(row);
  return draft !== null && draft.version !== row.version && draft.text.trim() !== saved(row).trim();
}

// The caption in effect: the edited one, else the base text.
function saved(row) {
  if (row.review && row.review.text !== null) return row.review.text;
  const one = textOf(row, baseOf(row));
  return (one && one.text) || "";
}

function baseOf(row) {
  if (row.review && row.review.base && row.review.text !== null) return row.review.base;
  const wanted = textOf(row, base);
  if (wanted && wanted.text !== null) return base;
  const other = row.texts.find((one) => one.text !== null && one.name !== "raw") || row.texts.find((one) => one.text !== null);
  return other ? other.name : base;
}

function draw() {
  const row = current(), review = row.review;
  document.body.dataset.uid = row.uid;
  $("key").textContent = row.key;
  $("about").textContent = [
    row.width ? `${row.width} × ${row.height}` : "", `shard ${row.shard}`, `uid ${row.uid}`,
  ].filter(Boolean).join(" · ");
  const count = matches === null ? "" : ` of ${matches.toLocaleString()}`;
  $("place").textContent = offset === null ? `sample ${(row.n + 1).toLocaleString()} of ${row.of.toLocaleString()}` : `${(offset + at + 1).toLocaleString()}${count}`;
  $("shard").value = $("scope").value === "shard" && document.activeElement === $("shard") ? $("shard").value : row.shard;
  drawPicture(row);
  $("badges").replaceChildren(...badges(review));
  const isStale = Boolean(review && review.stale.length);
  $("stale").hidden = !isStale;
  if (isStale) {
    const what = review.stale.map((one) => (one === "image" ? "the image" : `the text of ${one}`)).join(" and ");
    $("stale-text").textContent = `${what[0].toUpperCase()}${what.slice(1)} has changed since this review (${when(review.at)}). The review does not apply until you confirm it.`;
    $("confirm").disabled = pool.readOnly;
  }
  $("texts").replaceChildren(...row.texts.map((one, i) => drawText(row, one, i)));
  const draft = draftOf(row);
  const text = draft ? draft.text : saved(row);
  if ($("caption").value !== text || $("caption").dataset.of !== nameOf(row)) $("caption").value = text;
  $("caption").dataset.of = nameOf(row);
  $("based").textContent = `from ${(draft && draft.base) || baseOf(row)}`;
  drawConflict(row);
  if (document.activeElement !== $("tags") || $("tags").dataset.of !== nameOf(row)) drawTags(row);
  drawKnownTags(row);
  for (const decision of ["accept", "reject"]) {
    $(decision).setAttribute("aria-pressed", String(Boolean(review && review.decision === decision)));
  }
  drawState();
}

function drawTags(row) {
  const tags = row.review ? row.review.tags : [];
  $("tags").value = tags.join(", ");
  $("tags").dataset.of = nameOf(row);
  $("tags").dataset.was = JSON.stringify(tags);
}

function drawConflict(row) {
  const isShown = isInConflict(row), review = row.review;
  $("conflict").hidden = !isShown;
  if (!isShown) return;
  const done = review && review.decision ? `, ${review.decision}ed` : "";
  const who = review ? `${review.by}, ${when(review.at)}${done}` : "the review was removed";
  $("conflict-who").textContent = `Changed since you typed this text (${who}). The caption in effect:`;
  $("conflict-text").textContent = saved(row) || "no text";
  for (const id of ["keep-mine", "take-theirs"]) $(id).disabled = pool.readOnly;
}

function drawPicture(row) {
  const isShown = pool.images;
  $("zoom").hidden = !isShown;
  $("no-image").hidden = isShown;
  if (!isShown) {
    $("no-image").textContent = "This pool has no images.";
    return;
  }
  const wanted = picture(row);
  if ($("image").dataset.of === wanted) return;
  $("image").dataset.of = wanted;
  $("image").alt = `Image of sample ${row.key}`;
  $("image").src = wanted;
  $("zoom").classList.remove("full");
}

function badges(review) {
  if (!review) return [];
  const found = [];
  if (review.decision) found.push(make("span", { className: `badge ${review.decision}`, textContent: `${review.decision}ed` }));
  if (review.edited) found.push(make("span", { className: "badge", textContent: "edited" }));
  if (review.stale.length) found.push(make("span", { className: "badge warn", textContent: "stale" }));
  if (review.score !== null) found.push(make("span", { className: "badge", textContent: `score ${review.score}` }));
  found.push(make("span", { className: "quiet", textContent: `${review.by}, ${when(review.at)}` }));
  return found;
}

function when(at) {
  const time = new Date(at);
  const isToday = time.toDateString() === new Date().toDateString();
  return isToday ? time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }) : time.toLocaleDateString();
}

function drawText(row, one, i) {
  const button = make("button", { type: "button" });
  button.setAttribute("aria-pressed", String(one.name === baseOf(row)));
  const name = make("span", { className: "name" });
  if (i < 9) name.append(make("kbd", { textContent: String(i + 1) }), " ");
  name.append(one.name);
  const score = make("span", { className: "score", textContent: one.score === null ? "" : one.score.toFixed(4) });
  const text = make("bdi", {});
  if (one.text === null) text.append(make("i", { className: "quiet", textContent: "no text" }));
  else highlighted(text, one.cut ? `${one.text} …` : one.text);
  button.append(name, make("span", {}), score, text);
  if (one.flags.length) {
    button.append(make("span", { className: "flags" }, ...one.flags.map((flag) => make("span", { className: "flag", textContent: flag }))));
  }
  button.disabled = pool.readOnly;
  button.addEventListener("click", () => use(i));
  return make("li", {}, button);
}

function highlighted(into, text) {
  const wanted = $("find").value;
  if (!wanted || query().regex) {
    into.append(text);
    return;
  }
  const fold = (word) => (query().case ? word : word.toLowerCase());
  const where = fold(text), what = fold(wanted);
  if (where.length !== text.length) {
    into.append(text);
    return;
  }
  let from = 0;
  for (let found = where.indexOf(what); found >= 0; found = where.indexOf(what, from)) {
    into.append(text.slice(from, found), make("mark", { textContent: text.slice(found, found + what.length) }));
    from = found + what.length;
  }
  into.append(text.slice(from));
}

function drawKnownTags(row) {
  const own = row.review ? row.review.tags : [];
  $("known-tags").replaceChildren(...knownTags.slice(0, 24).map((tag) => {
    const button = make("button", { type: "button", textContent: tag, disabled: pool.readOnly });
    button.setAttribute("aria-pressed", String(own.includes(tag)));
    button.addEventListener("click", () => change(() => setTags(own.includes(tag) ? own.filter((one) => one !== tag) : [...own, tag])));
    return button;
  }));
}

function isDirty() {
  return at >= 0 && $("caption").value.trim() !== saved(current()).trim();
}

function drawState() {
  const row = current(), length = $("caption").value.length;
  const dirty = isDirty();
  $("caption").classList.toggle("dirty", dirty);
  $("caption-save").disabled = !dirty || pool.readOnly;
  const isEdited = Boolean(row.review && row.review.text !== null && row.review.edited);
  $("revert").hidden = pool.readOnly || (!dirty && !isEdited);
  $("revert").textContent = dirty ? "Discard" : "Revert to original";
  const over = length > pool.longest;
  $("caption-state").textContent = over
    ? `${length.toLocaleString()} characters; at most ${pool.longest.toLocaleString()} allowed`
    : dirty ? "unsaved; kept as a draft" : isEdited ? `saved in ${pool.source}` : `${length.toLocaleString()} characters`;
}

// Changes

// Run changes one at a time, so that no version is sent twice.
function change(action) {
  work = work.then(action).catch(async (error) => {
    fail(error);
    if (error.status === 409 && at >= 0) {
      const shown = current();
      const now = await ask("api/sample", { shard: shown.shard, key: shown.uid }).catch(() => null);
      if (now) put(now);
      if (now && current() === now && isInConflict(now)) say(conflictWords(now), true);
    }
  });
  return work;
}

async function act(set) {
  const row = current();
  const found = await send("api/act", { shard: row.shard, uid: row.uid, seen: row.version, set });
  rebase(row, found.row);
  put(found.row);
  about(found);
  drawKnownTags(current());
}

// The user's own change is not a conflict: move the draft to the new version.
function rebase(before, now) {
  const draft = draftOf(before);
  if (draft && draft.version === before.version) setDraft(before, { ...draft, version: now.version });
}

function based(row) {
  const draft = draftOf(row);
  const name = (draft && draft.base) || baseOf(row);
  return { base: name, digest: (textOf(row, name) || { digest: "" }).digest };
}

// The caption field as part of a change; empty if it was not edited.
function written(row) {
  if (!isDirty()) return {};
  const text = $("caption").value.trim();
  return text ? { text, ...based(row) } : { text: null };
}

// Whether the text must not be saved because of a conflict. An explicit save throws an error; when
// the user moves to another sample, the text is kept as a draft.
function isHeldBack(row, isExplicit) {
  if (!isDirty() || !isInConflict(row)) return false;
  if (isExplicit) throw new Error(conflictWords(row));
  say(`Not saved: ${conflictWords(row)}`, true);
  return true;
}

function conflictWords(row) {
  const who = row.review ? row.review.by : "another user";
  return `${row.key} has been changed by ${who}; press m to keep your text, d to use theirs`;
}

async function saveCaption(isExplicit = false) {
  const row = current();
  const set = written(row);
  if (!Object.keys(set).length || isHeldBack(row, isExplicit)) return false;
  if (set.text === null && !(row.review && row.review.text !== null)) {
    setDraft(row, null);
    draw();
    return false;
  }
  draftCaption(row, set.base);
  await act0(row, set);
  return true;
}

function draftCaption(row, name = "") {
  const known = draftOf(row);
  const from = name || (known && known.base) || baseOf(row);
  setDraft(row, { text: $("caption").value, base: from, version: known ? known.version : row.version });
}

async function act0(row, set) {
  const sent = $("caption").value;
  const found = await send("api/act", { shard: row.shard, uid: row.uid, seen: row.version, set });
  const draft = draftOf(row);
  if (draft && draft.text === sent) setDraft(row, null);
  else rebase(row, found.row);
  put(found.row);
  about(found);
}

function keepMine() {
  const row = current();
  if (!row || pool.readOnly || !isInConflict(row)) return;
  setDraft(row, { ...draftOf(row), version: row.version });
  change(() => saveCaption(true));
}

function takeTheirs() {
  const row = current();
  if (!row || pool.readOnly || !isInConflict(row)) return;
  setDraft(row, null);
  draw();
}

// `decision` is "accept", "reject" or "" to clear it.
async function decide(decision) {
  const row = current();
  if (pool.readOnly || (!decision && !(row.review && row.review.decision))) return;
  isHeldBack(row, true);
  const text = written(row);
  if (text.text) draftCaption(row, text.base);
  const set = { ...based(row), ...text, decision };
  if (decision !== "accept" && row.review && row.review.text !== null && !text.text) {
    delete set.base;
    delete set.digest;
  }
  await act0(row, set);
  if (decision) {
    say(`${decision === "accept" ? "Accepted" : "Rejected"} ${row.key}`);
    if ($("advance").checked) await step(1, true);
  } else {
    say(`Cleared the decision on ${row.key}`);
  }
}

async function setTags(tags) {
  await act({ tags });
}

function typedTags() {
  return $("tags").value.split(",").map((one) => one.trim()).filter(Boolean);
}

// Apply the typed tags as a difference to the tags that the field displayed, so that tags set by
// others since are kept.
async function saveTags() {
  const row = current();
  if (!row || pool.readOnly || $("tags").dataset.of !== nameOf(row)) return;
  const own = row.review ? row.review.tags : [], was = JSON.parse($("tags").dataset.was);
  const typed = typedTags();
  if (typed.join("\n") === was.join("\n")) return;
  const isSame = own.join("\n") === was.join("\n");
  const kept = own.filter((one) => typed.includes(one) || !was.includes(one));
  await setTags(isSame ? typed : [...kept, ...typed.filter((one) => !was.includes(one) && !kept.includes(one))]);
  drawTags(current());
}

function use(i) {
  const row = current(), one = row && row.texts[i];
  if (!one || pool.readOnly) return;
  if (one.text === null || one.cut) {
    say(one.cut ? `This text exceeds ${pool.longest.toLocaleString()} characters and cannot be edited` : `${one.name} has no text for this sample`, true);
    return;
  }
  base = one.name;
  remember();
  $("caption").value = one.text;
  keepDraft(one.name);
  draw();
  $("caption").focus();
}

function keepDraft(name = null) {
  const row = current();
  if (!row || pool.readOnly) return;
  if (isDirty()) draftCaption(row, name);
  else setDraft(row, null);
  drawConflict(row);
  drawState();
}

async function revert() {
  const row = current();
  if (isDirty()) {
    setDraft(row, null);
    $("caption").value = saved(row);
    draw();
  } else {
    await act0(row, { text: null });
  }
}

async function step(by, isSaved = false, isExplicit = false) {
  if (at < 0) return;
  if (!pool.readOnly) await saveTags();
  if (!isSaved && !pool.readOnly) await saveCaption(isExplicit);
  let wanted = at + by;
  if (wanted < 0) {
    const added = await earlier();
    if (!added && at === 0) {
      say("This is the first sample");
      return;
    }
    at += added;
    wanted = Math.max(0, wanted + added);
  }
  while (wanted >= rows.length && rest !== null) if (!(await more()) && rest === null) break;
  if (wanted >= rows.length) {
    if (at === rows.length - 1) {
      say(query().shard && pool.shards > 1 ? "Last sample of this shard; press ] for the next shard" : "This is the last sample");
      return;
    }
    wanted = rows.length - 1;
  }
  await show(wanted);
}

// Reload the list if the response does not include all changed samples.
async function reload(found) {
  if (found.changed > found.rows.length && at >= 0) await load({ number: current().number, row: current().n });
}

async function takeBack(isRedo) {
  if (pool.readOnly) return;
  const found = await send("api/undo", { redo: isRedo });
  for (const row of found.rows) put(row);
  about(found);
  await reload(found);
  const one = found.rows.length === 1 ? found.rows[0] : null;
  const done = isRedo ? "Redone" : "Undone";
  say(`${done}: ${found.what}${one ? ` (${one.key})` : ` (${found.changed.toLocaleString()} samples)`}`);
  if (one) {
    const i = rows.findIndex((row) => row.uid === one.uid && row.shard === one.shard);
    if (i >= 0 && i !== at) await show(i);
    else if (i < 0) await open(one.number, one.n, one.uid);
  }
}

// Display any sample, clearing the filter and the search.
async function open(number, row, uid) {
  clear();
  await load({ number, row }, uid);
}

function clear() {
  filter = "all";
  $("find").value = "";
  drawFilters();
}

async function saveParts() {
  if (pool.readOnly) return;
  if (at >= 0) await saveCaption();
  $("save").disabled = true;
  $("save").textContent = "Writing…";
  const found = await send("api/save", {});
  about(found);
  say(`captions/${pool.source}: ${found.saved}`);
}

// Moving between shards

async function shardStep(by) {
  if (at < 0 && $("scope").value === "pool") return;
  const number = (at >= 0 ? current().number : shardNumber) + by;
  if (number < 0 || number >= pool.shards) {
    say(by > 0 ? "This is the last shard" : "This is the first shard");
    return;
  }
  await openShard({ number });
}

let shardNumber = 0;
// `wanted` has the typed `name`, or a `number` starting at 0. They are separate because a shard
// named 1 need not be the first or second one.
async function openShard(wanted) {
  const found = await ask("api/shard", wanted);
  shardNumber = found.number;
  if ($("scope").value === "shard") $("shard").value = found.name;
  await load({ number: found.number, row: 0 });
}

async function jump(text) {
  const shard = at >= 0 ? current().shard : $("shard").value;
  const found = await ask("api/find", { shard, key: text.trim(), scope: $("scope").value });
  if ($("scope").value === "shard") $("shard").value = shard;
  await open(found[0], found[1], null);
}

// Find and replace

function replaceQuery() {
  return {
    ...query(), find: $("replace-find").value, new: $("replace-new").value,
    regex: $("replace-regex").checked, case: $("replace-case").checked,
    word: $("replace-word").checked && !$("replace-regex").checked,
  };
}

let previewed = null;
async function preview() {
  previewed = null;
  $("replace-do").disabled = true;
  const asked = replaceQuery();
  const found = await send("api/preview", asked);
  $("replace-shown").replaceChildren(...found.shown.map((one) => make(
    "li", {}, make("span", { className: "where", textContent: `${one.shard} · ${one.key}` }), difference(one.before, one.after),
  )));
  $("replace-shown").hidden = !found.count;
  const first = found.count > found.shown.length ? ` (first ${found.shown.length} shown)` : "";
  const parts = [found.count ? `${found.count.toLocaleString()} captions would change${first}.` : "No captions would change."];
  if (found.leftOut.stale) parts.push(`Skipped ${found.leftOut.stale.toLocaleString()} stale captions; confirm or rewrite them first.`);
  if (found.leftOut.long) parts.push(`Skipped ${found.leftOut.long.toLocaleString()} captions over ${pool.longest.toLocaleString()} characters.`);
  $("replace-said").textContent = parts.join(" ");
  $("replace-do").textContent = found.count ? `Replace in ${found.count.toLocaleString()} captions` : "Replace";
  $("replace-do").disabled = !found.count;
  previewed = { ...asked, digest: found.digest };
}

async function replaceAll() {
  const found = await send("api/replace", previewed);
  for (const row of found.rows) put(row);
  about(found);
  $("replacing").close();
  await reload(found);
  say(`${found.changed.toLocaleString()} captions changed; press u to undo`);
}

// Mark the words between the longest common prefix and suffix.
function difference(before, after) {
  const a = before.split(/(\s+)/), b = after.split(/(\s+)/);
  let begin = 0, end = 0;
  while (begin < Math.min(a.length, b.length) && a[begin] === b[begin]) begin++;
  while (end < Math.min(a.length, b.length) - begin && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
  const of = (words) => words.slice(begin, words.length - end).join("");
  const whole = make("bdi", {}, a.slice(0, begin).join(""));
  if (of(a)) whole.append(make("del", { textContent: of(a) }), " ");
  if (of(b)) whole.append(make("ins", { textContent: of(b) }));
  whole.append(a.slice(a.length - end).join(""));
  return whole;
}

function openReplace() {
  if (pool.readOnly) return;
  $("replace-find").value = $("replace-find").value || $("find").value;
  const where = query().shard ? `shard ${query().shard}` : "the whole pool";
  const shown = filter === "all" ? "all samples" : `samples with filter “${FILTER_NAMES[filter]}”`;
  $("replace-scope").textContent = `Applies to ${shown} in ${where}: to the edited caption if there is one, else to the text of ${base}. Undo reverts all changes.`;
  $("replace-shown").hidden = true;
  $("replace-said").textContent = "";
  $("replace-do").disabled = true;
  $("replacing").showModal();
  $("replace-find").focus();
}

// The page

function drawFilters() {
  $("filters").replaceChildren(...pool.filters.map((name) => {
    const button = make("button", { type: "button", title: FILTER_HELP[name] || "" }, FILTER_NAMES[name], make("span", { className: "count" }));
    button.dataset.filter = name;
    button.setAttribute("aria-pressed", String(name === filter));
    button.addEventListener("click", () => change(() => setFilter(name)));
    return button;
  }));
}

async function setFilter(name) {
  if (at >= 0 && !pool.readOnly) await saveCaption();
  filter = name;
  drawFilters();
  await load();
}

function remember() {
  localStorage.setItem(`capmix ${pool.work}`, JSON.stringify({
    base, keys: $("keys-on").checked, advance: $("advance").checked,
    scope: $("scope").value, at: at >= 0 ? [current().number, current().n] : null,
  }));
}

function toggle(button) {
  button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
}

function isTyping(target) {
  return target.matches("input:not([type=checkbox]), textarea, select");
}

const ACTIONS = {
  j: () => change(() => step(1)), ArrowRight: () => change(() => step(1)),
  k: () => change(() => step(-1)), ArrowLeft: () => change(() => step(-1)),
  J: () => change(() => step(10)), "Shift+ArrowRight": () => change(() => step(10)),
  K: () => change(() => step(-10)), "Shift+ArrowLeft": () => change(() => step(-10)),
  "]": () => change(() => shardStep(1)), "[": () => change(() => shardStep(-1)),
  g: () => focusOn("jump"), "/": () => focusOn("find"), e: () => focusOn("caption"), t: () => focusOn("tags"),
  f: () => change(() => setFilter(pool.filters[(pool.filters.indexOf(filter) + 1) % pool.filters.length])),
  a: () => change(() => decide("accept")), r: () => change(() => decide("reject")),
  x: () => change(() => decide("")),
  c: () => { if (!$("stale").hidden) change(() => act({ confirm: true })); },
  m: keepMine, d: takeTheirs,
  u: () => change(() => takeBack(false)), U: () => change(() => takeBack(true)),
  h: openReplace, z: () => $("zoom").classList.toggle("full"), "?": () => $("help").showModal(),
};

function focusOn(id) {
  $(id).focus();
  if ($(id).select && id !== "caption") $(id).select();
}

function pressed(event) {
  if (document.querySelector("dialog[open]") || event.isComposing) return;
  const control = event.ctrlKey || event.metaKey;
  const typing = isTyping(event.target);
  if (control && event.key === "s") {
    event.preventDefault();
    change(saveParts);
  } else if (control && event.key === "Enter") {
    event.preventDefault();
    change(() => step(1, false, true));
  } else if (control && event.key.toLowerCase() === "z" && !typing) {
    event.preventDefault();
    change(() => takeBack(event.shiftKey));
  } else if (event.key === "Escape" && typing) {
    event.target.blur();
  } else if (!control && !event.altKey && !typing && $("keys-on").checked) {
    const name = event.shiftKey && event.key.startsWith("Arrow") ? `Shift+${event.key}` : event.key;
    const action = /^[1-9]$/.test(name) ? () => use(Number(name) - 1) : ACTIONS[name];
    if (action && (at >= 0 || "/fgu?[]h".includes(event.key))) {
      event.preventDefault();
      action();
    }
  }
}

function drawHelp() {
  $("keys").replaceChildren(...KEYS.map(([keys, words]) => make(
    "div", {}, make("span", { className: "which" }, ...keys.split("  ").flatMap((key) => [make("kbd", { textContent: key }), " "])), words,
  )));
  $("help-about").textContent = pool.readOnly
    ? "Edits are disabled because the server was started with --read-only."
    : `Edits are saved to disk immediately, with the author ${pool.author}. “Write parts” writes them as the source ${pool.source}, which score, mix, measure and export can read. This also happens when the server stops.`;
}

function listen() {
  document.addEventListener("keydown", pressed);
  $("search").addEventListener("submit", (event) => { event.preventDefault(); $("find").blur(); change(() => load()); });
  let typing = 0;
  $("find").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(() => change(() => load()), 250); });
  for (const id of ["case", "regex"]) $(id).addEventListener("click", () => { toggle($(id)); if ($("find").value) change(() => load()); });
  $("within").addEventListener("change", () => { if ($("find").value || filter === "no-text") change(() => load()); });
  $("scope").addEventListener("change", () => change(async () => {
    if ($("scope").value === "shard" && at >= 0) $("shard").value = current().shard;
    remember();
    await load();
  }));
  $("shard").addEventListener("change", () => change(() => openShard({ name: $("shard").value.trim() })));
  $("shard-back").addEventListener("click", () => change(() => shardStep(-1)));
  $("shard-on").addEventListener("click", () => change(() => shardStep(1)));
  $("earlier").addEventListener("click", () => change(async () => {
    const added = await earlier();
    at += added;
    mark(at);
    draw();
  }));
  $("more").addEventListener("click", () => change(async () => { await more(); if (at < 0 && rows.length) await show(0); }));
  $("back").addEventListener("click", () => change(() => step(-1)));
  $("on").addEventListener("click", () => change(() => step(1)));
  $("jump-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = $("jump").value;
    $("jump").value = "";
    $("jump").blur();
    if (text.trim()) change(() => jump(text));
  });
  $("zoom").addEventListener("click", () => $("zoom").classList.toggle("full"));
  $("image").addEventListener("error", () => { $("no-image").hidden = false; $("no-image").textContent = "This image cannot be displayed."; $("zoom").hidden = true; });
  $("caption").addEventListener("input", () => keepDraft());
  $("caption-save").addEventListener("click", () => change(() => saveCaption(true)));
  $("keep-mine").addEventListener("click", keepMine);
  $("take-theirs").addEventListener("click", takeTheirs);
  $("revert").addEventListener("click", () => change(revert));
  $("tags").addEventListener("keydown", (event) => { if (event.key === "Enter" && !event.ctrlKey && !event.metaKey) { event.preventDefault(); change(async () => { await saveTags(); $("tags").blur(); }); } });
  $("tags").addEventListener("change", () => { if (!pool.readOnly) change(saveTags); });
  for (const id of ["accept", "reject"]) {
    $(id).addEventListener("click", () => change(() => decide($(id).getAttribute("aria-pressed") === "true" && !isDirty() ? "" : id)));
  }
  $("confirm").addEventListener("click", () => change(() => act({ confirm: true })));
  $("undo").addEventListener("click", () => change(() => takeBack(false)));
  $("redo").addEventListener("click", () => change(() => takeBack(true)));
  $("save").addEventListener("click", () => change(saveParts));
  $("show-all").addEventListener("click", () => change(async () => { clear(); await load(); }));
  $("help-open").addEventListener("click", () => $("help").showModal());
  $("replace-open").addEventListener("click", openReplace);
  for (const button of document.querySelectorAll("[data-close]")) button.addEventListener("click", () => button.closest("dialog").close());
  for (const id of ["keys-on", "advance"]) $(id).addEventListener("change", remember);
  $("replace-form").addEventListener("submit", (event) => {
    event.preventDefault();
    preview().catch((error) => { $("replace-said").textContent = error.message; });
  });
  $("replace-form").addEventListener("input", () => { $("replace-word").disabled = $("replace-regex").checked; $("replace-do").disabled = true; previewed = null; });
  $("replace-do").addEventListener("click", () => change(() => replaceAll()));
  $("strip").parentElement.addEventListener("scroll", (event) => {
    const box = event.target;
    if (box.scrollTop + box.clientHeight > box.scrollHeight - 300 && rest !== null && !isLoading) {
      isLoading = true;
      more().catch(fail).finally(() => { isLoading = false; });
    }
  });
  window.addEventListener("pagehide", remember);
}
let isLoading = false;

async function begin() {
  const found = await ask("api/pool");
  pool = found;
  const known = JSON.parse(localStorage.getItem(`capmix ${pool.work}`) || "{}");
  const names = [...pool.sources, pool.source];
  $("within").replaceChildren(
    make("option", { value: "", textContent: "all texts" }),
    ...names.map((name) => make("option", { value: name, textContent: name })),
  );
  $("shard-names").replaceChildren(...pool.names.map((name) => make("option", { value: name })));
  $("shard-of").textContent = `of ${pool.shards.toLocaleString()}`;
  base = known.base && pool.sources.includes(known.base.replace(/_k\d+$/, "")) ? known.base : pool.sources.find((one) => one !== "raw") || "raw";
  $("keys-on").checked = known.keys !== false;
  $("advance").checked = known.advance !== false;
  $("scope").value = pool.small ? known.scope || "pool" : "shard";
  if (!pool.small && known.scope === "pool") $("scope").value = "pool";
  if (pool.readOnly) {
    for (const id of ["caption", "tags"]) $(id).readOnly = true;
    for (const id of ["accept", "reject", "replace-open"]) $(id).disabled = true;
  }
  drawFilters();
  drawHelp();
  listen();
  about(found);
  const start = known.at && known.at[0] < pool.shards ? known.at : [0, 0];
  $("shard").value = (await ask("api/shard", { number: start[0] })).name;
  // Resume at the sample that was displayed last.
  await load({ number: start[0], row: Math.max(0, start[1]) });
  document.documentElement.dataset.ready = "yes";
}

begin().catch((error) => { fail(error); document.documentElement.dataset.ready = "failed"; });
