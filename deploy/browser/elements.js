// The few ways this page touches its document.

export const $ = (id) => document.getElementById(id);

// h("li", { class: "x" }, "text", child): an element; text is always text, never markup.
export function h(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export function show(id, visible = true) {
  $(id).hidden = !visible;
}

// Text of a live region is changed only where it differs, or a screen reader says it again.
export function say(id, text) {
  const place = $(id);
  place.hidden = text === "";
  if (place.textContent !== text) place.textContent = text;
}
