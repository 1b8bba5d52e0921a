// Helpers to change the document.

export const $ = (id) => document.getElementById(id);

// h("li", { class: "x" }, "text", child) makes an element; text is never markup.
export function h(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export function show(id, visible = true) {
  $(id).hidden = !visible;
}

// Set the text of a live region only if it differs, because screen readers repeat it.
export function say(id, text) {
  const place = $(id);
  place.hidden = text === "";
  if (place.textContent !== text) place.textContent = text;
}
