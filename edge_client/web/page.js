// The conversation: asking, the answer as it comes, where it came from and from what.

import { $, el, errorBox, sentence, showText } from "./dom.js";
import { call, stream, unlock } from "./server.js";
import { closeSide, listTalks, refresh, startSide } from "./side.js";

let turns = [];
let talk = newId();
let running = null;

function newId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

const scroller = $("scroll");
function follow(change) {
  const atEnd = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 80;
  change();
  if (atEnd) scroller.scrollTop = scroller.scrollHeight;
}

function answerItem() {
  const how = el("div", { className: "how" }, el("span", { className: "badge" }, "…"), "deciding who answers");
  const text = el("div", { className: "text busy" });
  const more = el("div", { hidden: true });
  return { how, text, more, item: el("li", { className: "theirs" }, how, text, more) };
}

// The badge with the first reason; all of them in its title. Citations that open, notes, and the trace id.
function showAbout({ how, more }, about) {
  const words = { local: "Local", relay: "Relayed" }[about.route] || about.route;
  const badge = el("span", { className: `badge ${about.route}`, title: about.reasons.join("\n") }, words);
  how.replaceChildren(badge, el("span", { title: `rule: ${about.rule}` }, about.reasons[0] || ""));
  if (about.route === "relay") how.append(el("span", { className: "tag" }, about.model));
  const parts = [];
  if (about.citations?.length) {
    parts.push(el("div", { className: "cites" }, ...about.citations.map((cited) =>
      el("button", { onclick: () => openPassage(cited) },
        el("span", { className: "cut" }, cited.document), el("span", {}, place(cited))))));
  }
  for (const note of about.notes || []) parts.push(el("p", { className: "notes" }, sentence(note)));
  if (about.trace_id) {
    const trace = el("button", { className: "trace", title: "Copies it; the same id is at hop and gateway", onclick: async () => {
      await navigator.clipboard.writeText(about.trace_id);
      trace.textContent = "copied";
      setTimeout(() => { trace.textContent = `trace ${about.trace_id}`; }, 900);
    } }, `trace ${about.trace_id}`);
    parts.push(trace);
  }
  more.className = "theirs";
  more.replaceChildren(...parts);
  more.hidden = false;
}

function place(cited) {
  if (cited.page) return `, page ${cited.page}`;
  return cited.line ? `, line ${cited.line}` : "";
}

async function openPassage(cited) {
  $("passage-title").textContent = cited.document;
  $("passage-place").textContent = place(cited).slice(2);
  $("passage-text").replaceChildren(el("p", { className: "cited" }, cited.text));
  $("passage").showModal();
  if (!cited.id) return;
  try {
    const { document: paper, passages } = await call("GET", `/causeway/passage/${cited.id}`);
    $("passage-place").replaceChildren(place(cited).slice(2), " ", el("span", { className: `tag ${paper.label}` }, paper.label.replace("-", " ")), ` ${paper.source}`);
    $("passage-text").replaceChildren(...passages.map((passage) =>
      el("p", { className: passage.id === cited.id ? "cited" : "" }, passage.text)));
  } catch (error) {
    $("passage-text").append(errorBox(error));
  }
}

// Into the queue, from where it is sent by itself. Its answer will be in the queue, too.
async function askLater(question) {
  $("welcome").hidden = true;
  const said = el("li", { className: "theirs" });
  $("talk").append(el("li", { className: "mine" }, question), said);
  const messages = [...turns.map((turn) => ({ role: turn.role, content: turn.text })), { role: "user", content: question }];
  try {
    await call("POST", "/causeway/later", JSON.stringify({ model: "auto", messages }));
    said.append(el("div", { className: "how" }, el("span", { className: "badge relay" }, "Queued"),
      "it is sent when there is a link; the answer will be in the queue"));
  } catch (error) {
    said.append(errorBox(error));
    $("prompt").value ||= question;
    fit();
  }
  scroller.scrollTop = scroller.scrollHeight;
  refresh(showRetried);
}

async function ask(question) {
  const model = $("model").value;
  const [id, list, stopped] = [talk, turns, new AbortController()];
  const shown = answerItem();
  const pair = [el("li", { className: "mine" }, question), shown.item];
  $("welcome").hidden = true;
  $("talk").append(...pair);
  scroller.scrollTop = scroller.scrollHeight;
  list.push({ role: "user", text: question });
  running = stopped;
  setRunning(true);
  let text = "", about = null, drawn = 0;
  const draw = () => follow(() => showText(shown.text, text));
  const body = { model, stream: true, messages: list.map((turn) => ({ role: turn.role, content: turn.text })) };
  try {
    await stream(body, stopped.signal, (event) => {
      if (event.causeway) {
        about = event.causeway;
        follow(() => showAbout(shown, about));
      }
      const piece = event.choices[0]?.delta?.content;
      if (!piece) return;
      text += piece;
      drawn ||= requestAnimationFrame(() => { drawn = 0; draw(); });
    });
  } catch (error) {
    if (error.name === "AbortError") shown.text.after(el("p", { className: "notes" }, "You stopped it."));
    else shown.text.after(errorBox(error));
    // To be mended and asked again; what waits in the queue is not asked twice.
    if (!text && error.code !== "gave_up" && !$("prompt").value) {
      $("prompt").value = question;
      fit();
    }
    if (!about) shown.how.remove();
  }
  cancelAnimationFrame(drawn);
  draw();
  shown.text.classList.remove("busy");
  follow(() => {});
  if (running === stopped) {
    running = null;
    setRunning(false);
  }
  refresh(showRetried);
  // What came to no answer is asked anew, not carried along.
  if (!text) list.pop();
  else await keep(id, list, { role: "assistant", text, about });
}

async function keep(id, list, turn) {
  list.push(turn);
  await call("PUT", `/causeway/history/${id}`, JSON.stringify({ turns: list })).catch(() => {});
  await listTalks(open, talk);
}

function showRetried({ question, answer, via, trace_id, failure }) {
  const about = {
    route: "relay", rule: "retried", reasons: ["it waited in the queue"], model: via.split("/").pop() || "direct",
    citations: [], notes: failure ? [failure] : [], trace_id,
  };
  showTurns([{ role: "user", text: question }, { role: "assistant", text: answer, about }]);
  turns.push({ role: "user", text: question });
  keep(talk, turns, { role: "assistant", text: answer, about });
  closeSide();
}

function showTurns(list) {
  for (const turn of list) {
    if (turn.role === "user") {
      $("talk").append(el("li", { className: "mine" }, turn.text));
      continue;
    }
    const shown = answerItem();
    showText(shown.text, turn.text);
    shown.text.classList.remove("busy");
    if (turn.about) showAbout(shown, turn.about);
    else shown.how.remove();
    $("talk").append(shown.item);
  }
  $("welcome").hidden = $("talk").childElementCount > 0;
  scroller.scrollTop = scroller.scrollHeight;
}

function begin(id, list) {
  running?.abort();
  running = null;
  setRunning(false);
  [talk, turns] = [id, list];
  $("talk").replaceChildren();
  showTurns(list);
  for (const row of $("talks").children) row.toggleAttribute("aria-current", row.dataset.id === id);
  closeSide();
  $("prompt").focus();
}

async function open(id) {
  try {
    begin(id, (await call("GET", `/causeway/history/${id}`)).turns);
  } catch (error) {
    $("talk").append(el("li", {}, errorBox(error)));
  }
}

function setRunning(yes) {
  $("send").hidden = yes;
  $("stop").hidden = !yes;
}

function fit() {
  $("prompt").style.height = "auto";
  $("prompt").style.height = `${$("prompt").scrollHeight + 2}px`;
}

async function listModels() {
  const { data } = await call("GET", "/v1/models");
  const names = data.map((model) => model.id);
  // The server lists what answers here first, then `auto`, then what the gateway grants.
  for (const name of names.slice(names.indexOf("auto") + 1)) {
    $("model").append(el("option", { value: name }, `Relay: ${name}`));
  }
}

function wireTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const saved = localStorage.getItem("causeway-theme");
  if (saved) document.documentElement.dataset.theme = saved;
  $("theme").onclick = () => {
    const dark = (document.documentElement.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
    const theme = dark ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    // Back to what the system says is no choice any more.
    if ((theme === "dark") === system.matches) {
      delete document.documentElement.dataset.theme;
      localStorage.removeItem("causeway-theme");
    } else localStorage.setItem("causeway-theme", theme);
  };
}

function wireKeys() {
  $("ask").onsubmit = (event) => {
    event.preventDefault();
    const question = $("prompt").value.trim();
    if (!question || running) return;
    $("prompt").value = "";
    fit();
    if ($("model").value === "later") askLater(question);
    else ask(question);
  };
  $("prompt").oninput = fit;
  $("prompt").onkeydown = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("ask").requestSubmit();
  };
  addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") {
      event.preventDefault();
      closeSide();
      $("prompt").focus();
    } else if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
      if (running) running.abort();
      else closeSide();
    }
  });
  $("stop").onclick = () => running?.abort();
  $("new").onclick = () => begin(newId(), []);
}

wireTheme();
try {
  await unlock();
  wireKeys();
  startSide(open, showRetried);
  $("prompt").focus();
  listModels().catch(() => {});
  document.documentElement.dataset.ready = "yes";
} catch (error) {
  $("welcome").hidden = $("ask").hidden = $("side").hidden = true;
  document.body.classList.add("alone");
  $("locked").hidden = false;
  if (error.code !== "no_token") $("locked").append(errorBox(error));
  document.documentElement.dataset.ready = "locked";
}
