// One page, no dependencies: pictures by drop, choice or paste go to POST /classify, each answer is shown whole.

import { Refused, classify, hasKey, listModels, setKey } from "./api.js";
import { showCard } from "./card.js";
import { $, percent } from "./dom.js";
import { showPicture } from "./answer.js";

const AT_ONCE = 4;
const MOST_NAMED = 12;

let models = [];
let pictures = []; // {file, url, tile, answer, refused, isBusy, stop}
let shown = null;
let running = 0;
const waiting = [];

$("files").addEventListener("change", () => {
  add($("files").files);
  $("files").value = ""; // the same file can be chosen again
});
addEventListener("paste", (event) => add(event.clipboardData.files));
for (const name of ["dragover", "drop"]) {
  addEventListener(name, (event) => {
    event.preventDefault(); // else the browser leaves the page to show the file
    $("drop").classList.toggle("over", name === "dragover");
  });
}
addEventListener("dragleave", (event) => event.relatedTarget ?? $("drop").classList.remove("over"));
addEventListener("drop", ({ dataTransfer }) => {
  add(dataTransfer.files);
  $("not-a-file").hidden = dataTransfer.files.length > 0;
});
$("gallery").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const next = pictures[pictures.indexOf(shown) + step];
  if (next) select(next, { focus: true });
});
$("model").addEventListener("change", () => {
  listVersions();
  askAgain();
});
$("version").addEventListener("change", askAgain);
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey($("key").value.trim());
  $("key").value = "";
  start();
});
$("copy").addEventListener("click", async () => {
  await navigator.clipboard.writeText($("curl").textContent);
  say("Copied");
});
start();

async function start() {
  if (await learnModels()) askAgain();
}

// Whether the server has listed its models.
async function learnModels() {
  try {
    const listed = await listModels();
    models = listed.models;
    fill($("model"), models.map(({ name }) => name), listed.default);
    $("choice").hidden = false;
    $("key-form").hidden = true;
    listVersions();
    return true;
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.status === 401) askForKey();
    else say(error.title);
    return false;
  }
}

function askForKey() {
  if (hasKey()) $("key-note").textContent = "The server does not accept this key. Is it complete?";
  $("key-form").hidden = false;
  $("key").focus();
}

function fill(select, values, chosen) {
  select.replaceChildren(...values.map((value) => new Option(value, value, value === chosen, value === chosen)));
}

const model = () => models.find(({ name }) => name === $("model").value);

function listVersions() {
  fill($("version"), model().versions.toReversed(), model().version);
  showCommand();
}

function showCommand() {
  showClasses(model());
  showCard(model(), $("version").value);
  const key = hasKey() ? ' -H "Authorization: Bearer $KEY"' : "";
  const query = new URLSearchParams({ model: model().name, version: $("version").value });
  $("copy").hidden = false;
  $("curl").textContent = `curl -F image=@photo.jpg${key} '${new URL("classify", document.baseURI)}?${query}'`;
}

// A model has an answer to every picture, also to one of something that it has never seen.
function showClasses({ labels }) {
  const named = labels.length > MOST_NAMED ? [...labels.slice(0, MOST_NAMED), `${labels.length - MOST_NAMED} more`] : labels;
  $("knows").hidden = false;
  $("knows").textContent = `The model knows ${labels.length} classes, and assigns every image to one of them: ${named.join(", ")}.`;
}

function askAgain() {
  showCommand();
  pictures.forEach(send);
}

function add(files) {
  const added = [...files].map((file) => ({ file, url: URL.createObjectURL(file) }));
  if (!added.length) return;
  $("not-a-file").hidden = true;
  for (const picture of added) {
    picture.tile = tileOf(picture);
    $("gallery").append(picture.tile);
  }
  pictures.push(...added);
  arrange();
  select(added[0]);
  added.forEach(send);
}

function tileOf(picture) {
  const tile = $("tile-template").content.cloneNode(true).firstElementChild;
  tile.querySelector("img").src = picture.url;
  tile.querySelector("img").addEventListener("error", () => tile.classList.add("blank"));
  tile.querySelector(".tile-name").textContent = picture.file.name;
  tile.querySelector(".tile").addEventListener("click", () => select(picture));
  tile.querySelector(".remove").setAttribute("aria-label", `Remove ${picture.file.name}`);
  tile.querySelector(".remove").addEventListener("click", () => remove(picture));
  return tile;
}

function remove(picture) {
  picture.stop?.abort();
  URL.revokeObjectURL(picture.url);
  const place = pictures.indexOf(picture);
  pictures = pictures.filter((each) => each !== picture);
  picture.tile.remove();
  arrange();
  if (shown !== picture) return;
  shown = null;
  const next = pictures[Math.min(place, pictures.length - 1)];
  next ? select(next, { focus: true }) : $("files").focus();
}

function arrange() {
  const some = pictures.length > 0;
  $("gallery").hidden = $("answer").hidden = !some;
  $("pictures").classList.toggle("filled", some);
}

function select(picture, { focus = false } = {}) {
  shown = picture;
  for (const { tile } of pictures) {
    tile.querySelector(".tile").setAttribute("aria-pressed", String(tile === picture.tile));
  }
  if (focus) picture.tile.querySelector(".tile").focus();
  showPicture(picture, model());
}

// Queue the picture for the chosen model; a question that is still open is dropped.
function send(picture) {
  if (!model()) return; // the key is still missing
  picture.stop?.abort();
  picture.stop = new AbortController();
  picture.isBusy = true;
  refresh(picture);
  waiting.push([picture, picture.stop.signal]);
  next();
}

async function next() {
  if (running === AT_ONCE || !waiting.length) return;
  const [picture, signal] = waiting.shift();
  running++;
  try {
    if (!signal.aborted) await answer(picture, signal);
  } finally {
    running--;
    next();
  }
}

async function answer(picture, signal) {
  const onWait = (seconds) => say(`The server is busy; ${picture.file.name} will be sent again in ${seconds} s`);
  let outcome;
  try {
    outcome = { answer: await classify(picture.file, model(), $("version").value, { onWait, signal }), refused: null };
  } catch (error) {
    if (signal.aborted) return;
    if (!(error instanceof Refused)) throw error;
    if (error.status === 404) learnModels(); // this version was unloaded meanwhile
    outcome = { answer: null, refused: error };
  }
  if (signal.aborted) return; // another question was asked meanwhile
  Object.assign(picture, outcome, { isBusy: false });
  refresh(picture);
  say(`${picture.file.name}: ${summary(picture)}`);
}

function refresh(picture) {
  picture.tile.classList.toggle("busy", picture.isBusy);
  picture.tile.classList.toggle("refused", Boolean(picture.refused));
  const [best] = picture.answer?.predictions ?? [];
  picture.tile.querySelector(".tile-answer").textContent = picture.refused ? "refused" : best?.label;
  picture.tile.querySelector(".tile-percent").textContent = best ? percent(best.probability, 0) : "";
  if (picture === shown) showPicture(picture, model());
}

function summary({ answer, refused }) {
  if (refused) return refused.title;
  const [best] = answer.predictions;
  return `${best.label} ${percent(best.probability)}`;
}

function say(text) {
  $("status").textContent = text;
}
