// One page, no dependencies: a picture by drop, choice or paste goes to POST /classify, the answer becomes bars.

const $ = (id) => document.getElementById(id);
let latest = 0; // a slow answer must not overwrite that of a later picture
let shown = null;

$("origin").textContent = location.origin;
listModels();

$("file").addEventListener("change", () => classify($("file").files[0]));
$("model").addEventListener("change", () => classify(shown));
document.addEventListener("paste", (event) => classify(event.clipboardData.files[0]));
for (const name of ["dragover", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault(); // else the browser leaves the page to show the file
    $("drop").classList.toggle("over", name === "dragover");
  });
}
document.addEventListener("dragleave", () => $("drop").classList.remove("over"));
document.addEventListener("drop", (event) => classify(event.dataTransfer.files[0]));

async function listModels() {
  const answer = await fetch("/models").catch(() => null);
  if (!answer?.ok) return;
  const { models, default: first } = await answer.json();
  $("model").replaceChildren(...models.map(({ name }) => new Option(name, name, name === first, name === first)));
  $("choice").hidden = models.length < 2;
}

async function classify(file) {
  if (!file) return;
  const turn = ++latest;
  shown = file;
  show(file);
  $("result").classList.add("busy");
  const outcome = await ask(file);
  if (turn !== latest) return;
  $("result").classList.remove("busy");
  outcome.problem ? showProblem(outcome.problem) : showPredictions(outcome);
}

async function ask(file) {
  const form = new FormData();
  form.append("image", file);
  const query = $("model").value ? `?model=${encodeURIComponent($("model").value)}` : "";
  const started = performance.now();
  try {
    const answer = await fetch(`/classify${query}`, { method: "POST", body: form });
    const body = await answer.json();
    if (!answer.ok) return { problem: `${body.title}: ${body.detail}` };
    return { ...body, total_ms: performance.now() - started, timing: serverTiming(answer) };
  } catch {
    return { problem: "The server cannot be reached." };
  }
}

// "receive;dur=0.3, decode;dur=5.1" -> {receive: 0.3, decode: 5.1}
function serverTiming(answer) {
  const entries = (answer.headers.get("Server-Timing") ?? "").split(", ").map((part) => part.split(";dur="));
  return Object.fromEntries(entries.map(([name, ms]) => [name, Number(ms)]));
}

function show(file) {
  URL.revokeObjectURL($("picture").src);
  $("picture").src = URL.createObjectURL(file);
  $("picture").alt = file.name;
  $("picture").hidden = false;
  $("invitation").hidden = true;
  $("drop").classList.add("filled");
}

function showPredictions({ model, version, predictions, total_ms, timing }) {
  $("message").hidden = true;
  $("predictions").replaceChildren(...predictions.map(row));
  const parts = Object.entries(timing).map(([name, ms]) => `${name} ${ms.toFixed(1)} ms`);
  $("timing").textContent = `${model}, version ${version}. ${total_ms.toFixed(0)} ms in all: ${parts.join(", ")}.`;
}

function row({ label, probability }) {
  const item = $("row").content.cloneNode(true);
  item.querySelector(".label").textContent = label;
  item.querySelector(".percent").textContent = `${(probability * 100).toFixed(1)} %`;
  item.querySelector("meter").value = probability;
  return item;
}

function showProblem(text) {
  $("message").textContent = text;
  $("message").className = "bad";
  $("message").hidden = false;
  $("predictions").replaceChildren();
  $("timing").textContent = "";
}
