// The model card: where the model came from, how good it is, how it was proven.

import { $, element, percent } from "./dom.js";

export function showCard(model, version) {
  $("card").hidden = false;
  $("card-name").textContent = `${model.name}, version ${version}`;
  const { image_size, interpolation, crop_pct, crop_mode } = model.preprocessing;
  const side = crop_mode === "squash" ? "both sides, squashed" : "the shorter side";
  const origin = model.provenance;
  const facts = [
    ["Input", `${image_size} × ${image_size} pixels, ${interpolation}, ${percent(crop_pct, 0)} of ${side}`],
    ["Classes", classes(model.labels)],
  ];
  if (origin && version === model.version) {
    facts.unshift(["Architecture", origin.architecture], ["Teacher", origin.teacher ?? "none named"]);
    facts.push(
      ["Read-out", origin.readout],
      ["Precision", origin.precision],
      ["Proof", proof(origin)],
      ["Confidence", confidence(origin.calibration)],
      ["Checkpoint", element("code", {}, `sha256 ${origin.checkpoint_sha256}`)],
      ["Made with", Object.entries(origin.versions).map((pair) => pair.join(" ")).join(", ")],
    );
  } else {
    facts.push(["Origin", origin ? `known of version ${model.version} only` : "not made by deit export"]);
  }
  const list = element("dl", {}, ...facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))));
  const accuracy = origin && version === model.version ? accuracyOf(origin.metrics) : [];
  $("card-body").replaceChildren(...accuracy, list);
}

function classes(labels) {
  const list = element("details", {}, element("summary", {}, `${labels.length}`), labels.join(", "));
  return list;
}

const proof = ({ parity_images, parity_max_difference }) =>
  `on ${parity_images} real images no probability differs from PyTorch's by more than ${parity_max_difference.toExponential(1)}`;

const confidence = (found) =>
  found
    ? `fitted on ${found.images} images: probabilities differ from the accuracy by ${percent(found.calibration_error)} on average, before by ${percent(found.calibration_error_before)}`
    : "the model's own, not fitted to images";

// {"joint_top1": 0.7, "class_top1": 0.69, ...} as one tile for each top-1 and top-5, the answer's own first
function accuracyOf(metrics) {
  const shares = Object.entries(metrics).filter(([name]) => /_top[15]$/.test(name));
  if (!shares.length) return [];
  shares.sort(([a], [b]) => b.startsWith("joint") - a.startsWith("joint"));
  const tiles = shares.map(([name, share]) => {
    const [, head, k] = name.match(/(.*)_top(\d)$/);
    return element("li", { className: head === "joint" ? "joint" : "" }, element("strong", {}, percent(share)), `${head} top-${k}`);
  });
  return [element("ul", { className: "accuracy" }, ...tiles)];
}
