// Sends images to the server that this page came from, and shows what it answers. Names are put in as text, never as markup.

const AT_A_TIME = 8; // images in one request, so that answers come while later images are still on their way
const FORM = 2 ** 14; // bytes of a request that are not images
const SHOWN = 12; // classes of a version, until more are asked for

const find = (id) => document.getElementById(id);
const percents = new Intl.NumberFormat("en", { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });
const numbers = new Intl.NumberFormat("en");
const days = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric" });

let limits = { max_bytes: Infinity, max_images: Infinity, reads: "images" };
const counts = { sent: 0, answered: 0, unknown: 0, failed: 0 };
let work = Promise.resolve(); // one request after another
let round = 0; // grows when the list is cleared; what was sent before is no longer shown

// ---- words

function element(name, text, className) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function several(number, one, many = `${one}s`) {
  return `${numbers.format(number)} ${number === 1 ? one : many}`;
}

function thing() {
  return limits.reads === "texts" ? "text" : "image";
}

function percent(share) {
  return share < 1 && share >= 0.9995 ? `>${percents.format(0.999)}` : percents.format(share);
}

function gauge(share, where) {
  where.style.setProperty("--share", `${100 * Math.min(1, Math.max(0, share))}%`);
  return where;
}

function complain(words) {
  find("notice").textContent = words;
  find("notice").hidden = false;
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer. Is lorica serve still running?");
  }
  const said = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(said.detail ?? `The server failed (${response.status}); its terminal says why.`);
  return said;
}

// ---- images, and what the model says of them

function row(file) {
  const made = find("result").content.cloneNode(true).firstElementChild;
  const picture = made.querySelector("img");
  picture.src = URL.createObjectURL(file);
  picture.onerror = () => picture.remove(); // a format that the browser cannot show, or no image
  made.querySelector(".file bdi").textContent = file.name;
  made.querySelector(".class").textContent = "…";
  made.setAttribute("aria-busy", "true");
  return made;
}

function rowOfText(text) {
  const made = find("result").content.cloneNode(true).firstElementChild;
  made.classList.add("of-text");
  made.querySelector(".picture").remove();
  made.querySelector(".file bdi").textContent = text;
  made.querySelector(".class").textContent = "…";
  made.setAttribute("aria-busy", "true");
  return made;
}

function answer(made, said) {
  made.removeAttribute("aria-busy");
  const heading = made.querySelector(".class");
  counts.answered += 1;
  if (said.error !== undefined) {
    counts.failed += 1;
    made.classList.add("failed");
    heading.replaceChildren(element("span", said.error, "error"));
    return;
  }
  const name = element("bdi", said.class);
  if (said.unknown) {
    counts.unknown += 1;
    made.classList.add("unknown");
    heading.replaceChildren(element("span", "unknown", "badge"), element("span", " most like ", "quiet"), name);
  } else {
    heading.replaceChildren(name);
  }
  const probability = made.querySelector(".probability");
  gauge(said.probability, probability.querySelector(".gauge"));
  probability.querySelector(".number").textContent = percent(said.probability);
  probability.hidden = false;
}

function tell() {
  const { sent, answered, unknown, failed } = counts;
  const all = several(sent, thing());
  const parts = [answered < sent ? `${numbers.format(answered)} of ${all}` : all];
  if (unknown) parts.push(`${numbers.format(unknown)} unknown`);
  if (failed) parts.push(`${numbers.format(failed)} failed`);
  find("tally").textContent = parts.join(" · ");
  find("bar").hidden = sent === 0;
}

function groups(entries) {
  const made = [];
  let bytes = 0;
  for (const entry of entries) {
    const group = made.at(-1);
    const size = entry.size + 1024;
    if (!group || group.length >= Math.min(AT_A_TIME, limits.max_images) || bytes + size > limits.max_bytes - FORM) {
      made.push([entry]);
      bytes = size;
    } else {
      group.push(entry);
      bytes += size;
    }
  }
  return made;
}

function request(group) {
  if (limits.reads === "texts") {
    const body = JSON.stringify({ texts: group.map(({ given }) => given) });
    return { body, headers: { "Content-Type": "application/json" } };
  }
  const body = new FormData();
  for (const { given } of group) body.append("images", given, given.name);
  return { body };
}

async function send(group, mine) {
  if (mine !== round) return;
  let said;
  try {
    said = (await ask("predict", { method: "POST", ...request(group) }))[limits.reads];
  } catch (error) {
    said = group.map(() => ({ error: error.message }));
  }
  if (mine !== round) return;
  group.forEach(({ made }, position) => answer(made, said[position]));
  tell();
}

function classify(files) {
  if (limits.reads === "texts") return;
  return classifyAll(files.map((file) => ({ given: file, size: file.size, made: row(file) })));
}

function classifyTexts(texts) {
  return classifyAll(texts.map((text) => ({ given: text, size: new Blob([JSON.stringify(text)]).size, made: rowOfText(text) })));
}

async function classifyAll(entries) {
  if (!entries.length) return;
  const mine = round;
  find("results").prepend(...entries.map(({ made }) => made));
  counts.sent += entries.length;
  tell();
  await introduced; // the limits are known from then on
  if (mine !== round) return;
  const fits = ({ size }) => size <= limits.max_bytes - FORM;
  for (const { made } of entries.filter((entry) => !fits(entry))) {
    answer(made, { error: `larger than the ${megabytes(limits.max_bytes)} that a request may hold` });
  }
  tell();
  for (const group of groups(entries.filter(fits))) work = work.then(() => send(group, mine));
}

function clear() {
  round += 1;
  for (const picture of find("results").querySelectorAll("img")) URL.revokeObjectURL(picture.src);
  find("results").replaceChildren();
  for (const name of Object.keys(counts)) counts[name] = 0;
  tell();
  find(limits.reads === "texts" ? "texts" : "choose").focus();
}

// ---- files that are dropped, pasted or chosen

async function inside(entry) {
  if (entry.name.startsWith(".")) return [];
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // a part of them at a time
    if (!some.length) break;
    found.push(...some);
  }
  found.sort((one, other) => one.name.localeCompare(other.name, "en", { numeric: true }));
  const files = [];
  for (const each of found) files.push(...(await inside(each)));
  return files;
}

async function filesIn(transfer) {
  const plain = [...transfer.files]; // this and the entries are there during the event only
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.());
  if (!entries.some((entry) => entry?.isDirectory)) return plain;
  const files = [];
  for (const entry of entries) if (entry) files.push(...(await inside(entry)));
  return files;
}

const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
let depth = 0; // of elements that the pointer has entered while dragging

function dragging(by) {
  depth = by ? Math.max(0, depth + by) : 0;
  find("drop").classList.toggle("over", depth > 0);
}

document.addEventListener("dragenter", (event) => hasFiles(event) && dragging(1));
document.addEventListener("dragleave", (event) => hasFiles(event) && dragging(-1));
document.addEventListener("dragover", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  event.dataTransfer.dropEffect = "copy";
});
document.addEventListener("drop", async (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault(); // the browser would open the image in place of this page
  dragging(0);
  try {
    await classify(await filesIn(event.dataTransfer));
  } catch (error) {
    complain(`The browser could not read what was dropped (${error.message}).`);
  }
});
document.addEventListener("paste", (event) => classify([...(event.clipboardData?.files ?? [])]));
find("choose").addEventListener("change", (event) => {
  classify([...event.target.files]);
  event.target.value = ""; // so that the same file can be chosen again
});
find("clear").addEventListener("click", clear);
find("write").addEventListener("submit", (event) => {
  event.preventDefault();
  classifyTexts(find("texts").value.split("\n").map((line) => line.trim()).filter(Boolean));
});

// ---- what the model is

const KINDS = { learned: "Learned", "rolled back": "Rolled back", forgot: "Forgot", joined: "Joined", purged: "Purged" };

function chips(list, names) {
  const some = names.length > SHOWN + 1 ? names.slice(0, SHOWN) : names;
  const chip = (name) => {
    const item = element("li");
    item.append(element("bdi", name));
    return item;
  };
  list.replaceChildren(...some.map(chip));
  if (some.length < names.length) {
    const more = element("button", `and ${numbers.format(names.length - some.length)} more`, "more");
    more.type = "button";
    more.addEventListener("click", () => list.replaceChildren(...names.map(chip)));
    const item = element("li", undefined, "plain");
    item.append(more);
    list.append(item);
  }
  list.hidden = !names.length;
}

function measured(label, share) {
  const made = element("div");
  const value = element("dd");
  value.append(gauge(share, element("span", undefined, "gauge")), element("span", percent(share), "number"));
  made.append(element("dt", label), value);
  return made;
}

function version(change) {
  const made = find("version").content.cloneNode(true).firstElementChild;
  made.dataset.kind = change.kind;
  made.querySelector("strong").textContent = KINDS[change.kind] ?? change.kind;
  const date = new Date(change.date);
  const facts = [`version ${change.number}`, isNaN(date) ? change.date : days.format(date)];
  if (change.images) facts.push(several(change.images, thing()));
  made.querySelector(".what .quiet").textContent = facts.filter(Boolean).join(" · ");
  chips(made.querySelector(".chips"), change.classes);
  const accuracy = made.querySelector(".accuracy");
  for (const [label, share] of [["accuracy then", change.accuracy], ["accuracy now", change.accuracy_now]]) {
    if (share !== null) accuracy.append(measured(label, share));
  }
  accuracy.hidden = !accuracy.children.length;
  return made;
}

function megabytes(bytes) {
  return `${numbers.format(bytes / 1e6)} MB`;
}

function filterBy(names) {
  const wanted = find("find").value.trim().toLowerCase();
  const found = names.filter((name) => name.toLowerCase().includes(wanted));
  chips(find("classes"), found);
  find("not-found").hidden = found.length > 0 || !names.length;
}

async function introduce() {
  const health = await ask("health");
  limits = health;
  find("write").hidden = health.reads !== "texts";
  find("drop").hidden = health.reads === "texts";
  document.title = `${health.title} – lorica`;
  find("title").textContent = health.title;
  find("subtitle").textContent = `knows ${several(health.classes, "class", "classes")}`;
  find("made-by").textContent = `lorica ${health.lorica} · a request may hold ${several(health.max_images, thing())} and ${megabytes(health.max_bytes)}; this page sends as many as you like, some at a time`;
}

async function showClasses() {
  const names = (await ask("classes")).classes;
  find("class-count").textContent = numbers.format(names.length);
  find("find").hidden = names.length <= SHOWN;
  find("find").addEventListener("input", () => filterBy(names));
  filterBy(names);
}

async function showHistory() {
  const { versions } = await ask("history");
  await introduced; // what the model reads is known from then on
  find("history").replaceChildren(...versions.reverse().map(version));
  find("no-history").hidden = versions.length > 0;
}

const introduced = introduce().catch((error) => complain(error.message));
for (const part of [showClasses, showHistory]) part().catch((error) => complain(error.message));
