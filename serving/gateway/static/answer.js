// One picture and what the model says of it: the pixels that it read, bars, agreement, timing.

import { $, element, percent } from "./dom.js";

const MOST_BARS = 5;

const MEANING = {
  network: "network and browser",
  receive: "receiving",
  wait: "waiting for a decoder",
  decode: "decoding",
  preprocess: "resizing and cropping",
  model: "model and its queue",
  explain: "looking inside the model",
};

export function showPicture({ file, url, answer, refused, isBusy }, model) {
  $("answer").setAttribute("aria-busy", String(Boolean(isBusy)));
  showOriginal(file, url, answer ? model : null);
  $("problem").hidden = !refused;
  $("said").hidden = !answer;
  $("seen-figure").hidden = !answer;
  $("looks").hidden = !answer?.explanation;
  if (refused) {
    $("problem-title").textContent = `${refused.title}.`;
    $("problem-detail").textContent = sentence(refused.detail);
  }
  if (!answer) return;
  $("seen").src = answer.pixels;
  const { image_size } = model.preprocessing;
  $("seen").alt = `The ${image_size} by ${image_size} pixels that the model read`;
  $("seen-size").textContent = `${image_size} × ${image_size} pixels, resized and cropped by the server`;
  showHeatMaps(answer.explanation);
  showBars(answer);
  showAgreement(answer.heads);
  showTiming(answer);
}

const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}.`.replace(/\.\.$/, ".");

function showOriginal(file, url, model) {
  const image = $("original");
  $("original-name").textContent = file.name;
  $("original-size").textContent = bytes(file.size);
  $("crop").hidden = true;
  image.alt = file.name;
  image.onerror = () => {
    image.parentElement.classList.add("blank");
  };
  image.onload = () => {
    const { naturalWidth: width, naturalHeight: height } = image;
    image.parentElement.classList.remove("blank");
    $("original-size").textContent = `${width} × ${height} pixels, ${bytes(file.size)}`;
    if (model) showCrop(width, height, model.preprocessing);
  };
  if (image.src !== url) image.src = url;
  else if (image.complete) image.naturalWidth ? image.onload() : image.onerror();
}

// What the server's crop keeps: a centre square of the shorter side, or a share of both sides.
function showCrop(width, height, { crop_pct: kept, crop_mode }) {
  const shorter = Math.min(width, height);
  const [across, down] = (crop_mode === "squash" ? [1, 1] : [shorter / width, shorter / height]).map((share) => kept * share);
  const { style } = $("crop");
  style.setProperty("--width", `${across * 100}%`);
  style.setProperty("--height", `${down * 100}%`);
  $("crop").hidden = Math.min(across, down) > 0.98;
}

const bytes = (count) => (count < 1e6 ? `${Math.ceil(count / 1e3)} kB` : `${(count / 1e6).toFixed(1)} MB`);

// {class: a picture, distillation: a picture, unless the model has one head}
function showHeatMaps(explanation) {
  const maps = Object.entries(explanation ?? {}).map(([token, src]) => {
    const name = `${token} token`;
    return element("div", { className: `${token}-head` }, element("img", { src, alt: `Where the ${name} looked` }), element("span", {}, name));
  });
  $("heat-maps").replaceChildren(...maps);
}

function showBars({ predictions, heads }) {
  const [best] = predictions;
  $("top-label").textContent = best.label;
  $("top-percent").textContent = percent(best.probability);
  $("legend").hidden = !heads;
  $("bars").replaceChildren(...predictions.slice(0, MOST_BARS).map((prediction) => bar(prediction, heads)));
}

function bar({ index, label, probability }, heads) {
  const row = $("bar-template").content.cloneNode(true);
  row.querySelector(".label").textContent = label;
  row.querySelector(".percent").textContent = percent(probability);
  const tracks = [track("joint", "joint", probability, percent(probability))];
  if (heads) {
    tracks.push(headTrack("class-head", "class head", heads.class, index));
    tracks.push(headTrack("distillation-head", "distillation head", heads.distillation, index));
  }
  row.querySelector(".tracks").append(...tracks);
  return row;
}

// A head lists its most probable classes only; what is not among them is below the last of them.
function headTrack(className, name, predictions, index) {
  const found = predictions.find((each) => each.index === index);
  if (found) return track(className, name, found.probability, percent(found.probability));
  return track(className, name, 0, `below ${percent(predictions.at(-1).probability, 2)}`);
}

function track(className, name, share, text) {
  const made = element("span", { className: `track ${className}`, title: `${name}: ${text}` });
  made.setAttribute("role", "img");
  made.setAttribute("aria-label", `${name} ${text}`);
  made.style.setProperty("--share", `${share * 100}%`);
  return made;
}

function showAgreement(heads) {
  $("agreement").hidden = !heads;
  if (!heads) return;
  const [ours] = heads.class;
  const [theirs] = heads.distillation;
  const bits = `${heads.jensen_shannon_divergence.toFixed(3)} bit apart (Jensen-Shannon: 0 the same, 1 nothing in common).`;
  $("agreement").className = heads.agree ? "agree" : "disagree";
  $("agreement").replaceChildren(
    element("strong", {}, heads.agree ? "Both heads agree." : "The heads disagree."),
    heads.agree ? ` They are ${bits}` : ` Class head: ${ours.label}; distillation head: ${theirs.label}. They are ${bits}`,
  );
}

function showTiming({ total_ms, stages }) {
  const server_ms = stages.reduce((sum, [, ms]) => sum + ms, 0);
  const all = [...stages, ["network", Math.max(0, total_ms - server_ms)]];
  $("total-time").textContent = `${total_ms.toFixed(0)} ms`;
  $("stages").replaceChildren(
    ...all.map(([name, ms]) => {
      const part = element("span", { className: `stage ${name}`, title: `${MEANING[name] ?? name}: ${ms.toFixed(1)} ms` });
      part.style.setProperty("--share", ms / total_ms);
      return part;
    }),
  );
  $("stage-times").replaceChildren(
    ...all.map(([name, ms]) =>
      element("div", { className: `stage ${name}` }, element("dt", {}, MEANING[name] ?? name), element("dd", {}, `${ms.toFixed(1)} ms`)),
    ),
  );
}
