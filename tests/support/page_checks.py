"""Scripts that look at a page in a browser as people with other eyes and other tools do."""

LUMINANCE = """
(() => {
  const channel = (value) => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parts(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    const unseen = element.closest('noscript, .skip, option, :disabled') || !element.checkVisibility();
    if (unseen || !node.textContent.trim()) continue;
    const style = getComputedStyle(element);
    const ink = parts(element.closest('svg') ? style.fill : style.color);
    const [high, low] = [light(ink), light(ground(element))].sort((a, b) => b - a);
    found.push([node.textContent.trim().slice(0, 30), (high + 0.05) / (low + 0.05)]);
  }
  return found;
})()
"""
"""Contrasts: ``[text, ratio]`` of every text that can be seen."""

NAMELESS = """
[...document.querySelectorAll('input, select, textarea, button, progress, [tabindex], svg')]
  .filter((element) => element.checkVisibility())
  .filter((element) => !element.labels?.length && !element.matches('[aria-label], [aria-labelledby]'))
  .filter((element) => !element.innerText?.trim() && !element.querySelector('title'))
  .map((element) => element.outerHTML.slice(0, 80))
"""
"""Controls without a name for screen readers."""

SMALL = """
[...document.querySelectorAll('button, select, input:not([type=radio]), textarea, .choice label')]
  .filter((one) => one.checkVisibility() && one.getBoundingClientRect().height < 36).map((one) => one.outerHTML)
"""
"""Controls that are too small for a finger."""
