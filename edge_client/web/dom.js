// Elements from text. Nothing here, nor anywhere on this page, makes markup of a string.

export const $ = (id) => document.getElementById(id);

export function el(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

// What answers are written in: paragraphs, code between ``` lines, `code` and **bold**. Anything else shows as it is.
export function showText(into, text) {
  const parts = [];
  for (const [number, part] of text.split(/^```[^\n`]*$\n?/m).entries()) {
    if (number % 2) parts.push(el("pre", {}, part.replace(/\n$/, "")));
    else for (const paragraph of part.split(/\n{2,}/)) {
      if (paragraph.trim()) parts.push(el("p", {}, ...inline(paragraph.replace(/^\n|\n$/g, ""))));
    }
  }
  into.replaceChildren(...parts);
}

function inline(text) {
  return text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/).map((piece, number) => {
    if (number % 2 === 0) return piece;
    return piece[0] === "`" ? el("code", {}, piece.slice(1, -1)) : el("b", {}, piece.slice(2, -2));
  });
}

// The API's errors: code, words, and the hint that stands in parentheses behind them.
export function errorBox(error) {
  const [, words, hint] = /^(.*?)(?: \((\S+ .*)\))?$/s.exec(error.message || "something unexpected went wrong");
  const code = el("code", { className: "code" }, error.code || "error");
  const box = el("div", { className: "error" }, el("p", {}, ...inline(sentence(words)), " ", code));
  // What the terminal would do, the queue here does.
  const better = error.code === "gave_up" ? "it waits in the queue, and Retry there sends it" : hint;
  if (better) box.append(el("p", {}, ...inline(sentence(better))));
  box.setAttribute("role", "alert");
  return box;
}

export function sentence(words) {
  return words.charAt(0).toUpperCase() + words.slice(1) + (/[.?!]$/.test(words) ? "" : ".");
}

export function ago(seconds) {
  const passed = Math.max(0, Date.now() / 1000 - seconds);
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (passed >= size) return `${Math.floor(passed / size)} ${unit} ago`;
  }
  return "just now";
}
