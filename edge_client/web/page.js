// The conversation: asking, the answer as it comes, where it came from and from what.

import { $, el, errorBox, sentence, showText } from "./dom.js";
import { call, Failed, stream, unlock } from "./server.js";
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

// The passage's own words, which a local answer from documents begins with, are told apart from the model's.
function showAnswer(into, text, about) {
  showText(into, text);
  const first = into.querySelector("p:first-child");
  if (about?.route === "local" && about.documents === "held" && first?.textContent.includes(': "')) first.classList.add("quoted");
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

// What goes along with the next question: not what waits for its answer.
function saidBefore() {
  return turns.filter((turn, at) => !turn.about?.waits && !turns[at + 1]?.about?.waits)
    .map((turn) => ({ role: turn.role, content: turn.text }));
}

// Into the queue, from where it is sent by itself; its answer comes back here.
async function askLater(question) {
  $("welcome").hidden = true;
  const asked = el("li", { className: "mine" }, question), [id, list] = [talk, turns];
  $("talk").append(asked);
  try {
    const messages = [...saidBefore(), { role: "user", content: question }];
    const queued = await call("POST", "/causeway/later", JSON.stringify({ model: "auto", messages }));
    list.push({ role: "user", text: question });
    const turn = { role: "assistant", text: "", about: { route: "queued", waits: queued.id } };
    if (turns === list) $("talk").append(waitingItem(turn));
    await keep(id, list, turn);
  } catch (error) {
    asked.after(el("li", {}, errorBox(error)));
    $("prompt").value ||= question;
    fit();
  }
  scroller.scrollTop = scroller.scrollHeight;
  refresh();
}

function waitingItem(turn, words = "is sent by itself when there is a link") {
  const item = el("li", { className: "theirs" }, el("div", { className: "how" },
    el("span", { className: "badge relay" }, "Queued"), el("span", {}, words)));
  item.dataset.waits = turn.about.waits;
  return item;
}

// Answers that have come (ids), and what the queue says of the others. Those of this conversation appear in it.
async function arrived(answers, states) {
  for (const item of document.querySelectorAll("#talk [data-waits]")) {
    const id = item.dataset.waits, list = turns, at = list.findIndex((turn) => turn.about?.waits === id);
    if (at < 0) continue;
    if (!answers.includes(id)) {
      item.querySelector(".how span + span").textContent = states[id] || "waits no more: cancelled, or read elsewhere";
      continue;
    }
    delete item.dataset.waits;
    const done = await call("GET", `/causeway/answers/${id}`).catch(() => null);
    if (!done || turns !== list) continue;
    list[at] = queuedTurn(done);
    follow(() => item.replaceWith(turnItem(list[at])));
    if (await keep(talk, list)) await call("DELETE", `/causeway/answers/${id}`).catch(() => {});
    refresh();
  }
}

function queuedTurn({ answer, via, trace_id, failure }) {
  const about = {
    route: "relay", rule: "queued", reasons: ["it waited in the queue"], model: via.split("/").pop() || "direct",
    citations: [], notes: failure ? [failure] : [], trace_id,
  };
  return { role: "assistant", text: answer, about };
}

// A kept answer: in the conversation that it belongs to, or else in this one.
async function read(id) {
  const done = await call("GET", `/causeway/answers/${id}`);
  if (done.talk && done.talk !== talk) await open(done.talk);
  else if (!done.talk) {
    const pair = [{ role: "user", text: done.question }, queuedTurn(done)];
    showTurns(pair);
    turns.push(pair[0]);
    if (await keep(talk, turns, pair[1])) await call("DELETE", `/causeway/answers/${id}`);
  }
  closeSide();
}

async function ask(question) {
  const model = $("model").value;
  const [id, list] = [talk, turns];
  const shown = answerItem();
  $("welcome").hidden = true;
  $("talk").append(el("li", { className: "mine" }, question), shown.item);
  scroller.scrollTop = scroller.scrollHeight;
  const messages = [...saidBefore(), { role: "user", content: question }];
  list.push({ role: "user", text: question });
  const { text, about, error } = await hear(() => shown, "/v1/chat/completions", { model, stream: true, messages });
  // To be mended and asked again; what waits in the queue is not asked twice.
  if (error && !text && error.name !== "AbortError" && error.code !== "gave_up" && !$("prompt").value) {
    $("prompt").value = question;
    fit();
  }
  // What came to no answer is asked anew, not carried along.
  if (!text) list.pop();
  else await keep(id, list, { role: "assistant", text, about });
}

// What waits in the queue is asked now, in this conversation. Throws what went wrong before the answer began.
async function retry(queued) {
  if (running) throw new Failed("busy", "another answer is coming just now (retry when it is here)");
  const [id, list] = [talk, turns];
  let shown = null, question = "";
  const { text, about, error } = await hear((event) => {
    if (shown) return shown;
    shown = answerItem();
    question = event.question;
    $("welcome").hidden = true;
    $("talk").append(el("li", { className: "mine" }, question), shown.item);
    scroller.scrollTop = scroller.scrollHeight;
    closeSide();
    return shown;
  }, `/causeway/outbox/${queued}/retry`);
  if (!shown && error) throw error;
  if (!text) return;
  list.push({ role: "user", text: question });
  await keep(id, list, { role: "assistant", text, about });
}

// One answer as it comes, into what `place` makes of the first event.
async function hear(place, path, body) {
  const stopped = new AbortController();
  let text = "", about = null, drawn = 0, error = null;
  const draw = (shown) => follow(() => showAnswer(shown.text, text, about));
  running = stopped;
  setRunning(true);
  try {
    await stream(path, body, stopped.signal, (event) => {
      const shown = place(event);
      if (event.causeway) {
        about = event.causeway;
        follow(() => showAbout(shown, about));
      }
      const piece = event.choices[0]?.delta?.content;
      if (!piece) return;
      text += piece;
      drawn ||= requestAnimationFrame(() => { drawn = 0; draw(shown); });
    });
  } catch (failed) {
    error = failed;
  }
  cancelAnimationFrame(drawn);
  if (running === stopped) {
    running = null;
    setRunning(false);
  }
  const shown = about || path.startsWith("/v1/") ? place({}) : null;
  if (shown) {
    draw(shown);
    shown.text.classList.remove("busy");
    if (!about) shown.how.remove();
    if (error?.name === "AbortError") shown.text.after(el("p", { className: "notes" }, "You stopped it."));
    else if (error) shown.text.after(errorBox(error));
    follow(() => {});
  }
  refresh();
  return { text, about, error };
}

// Whether the conversation is in the store now, with this turn.
async function keep(id, list, turn) {
  if (turn) list.push(turn);
  const kept = await call("PUT", `/causeway/history/${id}`, JSON.stringify({ turns: list })).then(() => true, () => false);
  await listTalks(talk);
  return kept;
}

function turnItem(turn) {
  if (turn.role === "user") return el("li", { className: "mine" }, turn.text);
  if (turn.about?.waits) return waitingItem(turn);
  const shown = answerItem();
  showAnswer(shown.text, turn.text, turn.about);
  shown.text.classList.remove("busy");
  if (turn.about) showAbout(shown, turn.about);
  else shown.how.remove();
  return shown.item;
}

function showTurns(list) {
  $("talk").append(...list.map(turnItem));
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
    refresh(true);
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

// Whoever locks the store wants its texts off the screen, too.
function locked(yes) {
  $("shut").hidden = !yes;
  if (yes) begin(newId(), []);
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
  startSide({ open, read, retry, arrived, locked, busy: () => Boolean(running) });
  $("prompt").focus();
  document.documentElement.dataset.ready = "yes";
} catch (error) {
  $("welcome").hidden = $("ask").hidden = $("side").hidden = true;
  document.body.classList.add("alone");
  $("locked").hidden = false;
  if (error.code !== "no_token") $("locked").append(errorBox(error));
  document.documentElement.dataset.ready = "locked";
}
