export const $ = (id) => document.getElementById(id);

// element("li", {className: "a"}, "text", child)
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export const percent = (share, digits = 1) => `${(share * 100).toFixed(digits)} %`;
