// Beside the conversation: the picture of the link, documents, queue and earlier chats.

import { $, ago, el, errorBox } from "./dom.js";
import { call } from "./server.js";

const POLL_MS = 2000;
const LINK = {
  none: ["Not joined to a gateway: everything is answered here.", "on this device"],
  idle: ["No link now; one is looked for.", "no link now"],
  down: ["The gateway cannot be reached; questions for it wait in the queue.", "no link"],
  locked: ["The store is locked, and with it the way to the gateway.", "locked"],
};
const KINDS = { tcp: "TCP", wss: "WebSocket", ble: "Bluetooth", phone: "a phone", unix: "a local socket", sim: "a simulated link" };
const QUEUED = {
  waiting: "waits for a link, nothing was sent",
  sent: "sent, its answer is still to come",
  failed: "no provider took it",
  interrupted: "whether the provider was called is not known",
  expired: "waited too long",
};

const PROMISED = { ...QUEUED, waiting: "is sent by itself when there is a link" };

let seen = "", shut = null, carried = 0, page;

// `chat` is what the conversation does: open, read, retry, arrived, locked, busy.
export function startSide(chat) {
  page = chat;
  const tabs = [...document.querySelectorAll("[role=tab]")];
  for (const tab of tabs) {
    tab.onclick = () => show(tab.id.slice(4));
    tab.onkeydown = (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
      show(next.id.slice(4));
      next.focus();
    };
  }
  $("search").oninput = () => listTalks();
  $("pick").onclick = () => $("files").click();
  $("files").onchange = () => {
    add([...$("files").files]);
    $("files").value = "";
  };
  let inside = 0;
  const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => { if (carriesFiles(event) && ++inside) $("drop").hidden = false; });
  addEventListener("dragleave", (event) => { if (carriesFiles(event) && --inside <= 0) $("drop").hidden = true; });
  addEventListener("dragover", (event) => { if (carriesFiles(event)) event.preventDefault(); });
  addEventListener("drop", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    inside = 0;
    $("drop").hidden = true;
    add([...event.dataTransfer.files]);
  });
  $("pill").onclick = $("menu").onclick = () => {
    $("side").classList.add("shown");
    $("close").focus();
  };
  $("close").onclick = closeSide;
  // Seldom, more often while an answer comes, and not at all while nobody looks.
  let timer = 0;
  const poll = async () => {
    clearTimeout(timer);
    if (document.visibilityState !== "visible") return;
    await refresh();
    clearTimeout(timer);
    timer = setTimeout(poll, page.busy() ? POLL_MS / 2 : POLL_MS);
  };
  poll();
  document.addEventListener("visibilitychange", poll);
}

export function closeSide() {
  $("side").classList.remove("shown");
}

function show(name) {
  for (const other of ["chats", "documents", "queue"]) {
    $(other).hidden = other !== name;
    $(`tab-${other}`).setAttribute("aria-selected", other === name);
    $(`tab-${other}`).tabIndex = other === name ? 0 : -1;
  }
}

// `anew`: the queue is listed even if nothing in it has changed.
export async function refresh(anew = false) {
  let status;
  try {
    status = await call("GET", "/causeway/status");
  } catch (error) {
    status = { link: { state: "down", via: "" }, queue: {}, answers: [], words: "`edge serve` does not answer." };
  }
  showLink(status);
  const waits = Object.values(status.queue).reduce((sum, count) => sum + count, 0), come = status.answers.length;
  $("queue-count").textContent = waits;
  $("queue-count").hidden = !waits;
  if (waits) $("pill-words").textContent += `, ${waits} queued`;
  if (come) $("pill-words").textContent += `, ${come} answered`;
  $("tab-queue").classList.toggle("news", come > 0);
  if (status.store && shut !== (status.store === "locked")) {
    shut = status.store === "locked";
    page.locked(shut);
    listTalks();
    listPapers();
    listModels();
  }
  const now = JSON.stringify([status.queue, status.answers, status.store]);
  if (anew || now !== seen) {
    seen = now;
    await listQueue();
  }
}

function showLink({ link, store, words, queue }) {
  const state = store === "locked" ? "locked" : link.state, name = link.via.split("/").pop();
  const kind = KINDS[link.endpoint?.split(":")[0]] || "";
  const [said, short] = state === "up"
    ? [`${name ? `Linked by way of ${name}` : "Linked to the gateway directly"}${kind && `, over ${kind}`}.`, name ? `via ${name}` : "direct"]
    : LINK[state];
  const moved = (link.sent || 0) + (link.received || 0);
  for (const picture of [$("link"), $("pill")]) {
    Object.assign(picture.dataset, { state: state === "locked" ? "none" : state, via: name, busy: state === "up" && moved > carried });
  }
  carried = moved;
  if ($("link-words").textContent !== (words || said)) $("link-words").textContent = words || said;
  $("hop").textContent = name;
  $("hop").title = link.via;
  $("pill-words").textContent = short;
  $("link-facts").replaceChildren(...(moved ? [
    el("span", { title: "sent and received by all links since edge serve began" }, `↑ ${size(link.sent)}  ↓ ${size(link.received)}`),
    state === "up" && link.round_trip_s !== null ? el("span", { title: "round trip when this link opened" }, `${Math.round(link.round_trip_s * 1000)} ms`) : null,
  ].filter(Boolean) : []));
  const ways = link.ways || [];
  $("ways").hidden = !ways.length;
  $("ways-words").textContent = ways.length === 1 ? "1 way known" : `${ways.length} ways known`;
  $("ways-list").replaceChildren(...ways.map((way) => {
    const used = way.endpoint === link.endpoint;
    const past = { worked: way.opened_ms === null ? "" : `opened in ${way.opened_ms} ms`, failed: "no answer lately", untried: "not tried yet" };
    const name = way.endpoint.replace(/^ble:$/, "Bluetooth, any hop").replace(/^ble:/, "Bluetooth, ")
      .replace(/^phone:/, "a phone ");
    const row = el("li", {}, el("i"), el("span", { className: "cut", title: way.endpoint }, name),
      el("span", {}, used ? "in use" : past[way.state]));
    row.dataset.state = used ? "up" : way.state;
    return row;
  }));
}

function size(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  return bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

async function listQueue() {
  const { outbox, answers } = await call("GET", "/causeway/outbox").catch(() => ({ outbox: [], answers: [] }));
  const states = Object.fromEntries(outbox.map((entry) => [entry.id, (entry.promised ? PROMISED : QUEUED)[entry.state]]));
  const rows = answers.map((answer) => el("li", {},
    el("span", { className: "cut", title: answer.question }, answer.question),
    el("span", { className: "faint" }, `${ago(answer.at)}: ${answer.failure || "the answer is here"}`),
    el("div", { className: "row" },
      el("button", { className: "small main", onclick: async () => {
        await page.read(answer.id);
        await refresh();
      } }, "Read"),
      confirmed("Dismiss", async () => {
        await call("DELETE", `/causeway/answers/${answer.id}`);
        await refresh();
      }))));
  for (const entry of outbox) {
    const row = el("li", {},
      el("span", { className: "cut", title: entry.question }, entry.question || "(erased)"),
      el("span", { className: "faint" }, `${ago(entry.created_at)}: ${states[entry.id]}${entry.reason ? ` (${entry.reason})` : ""}`));
    const act = (words, title, work) => el("button", { className: "small", title, onclick: async (event) => {
      const buttons = event.target.parentNode.querySelectorAll("button");
      for (const button of buttons) button.disabled = true;
      row.querySelector(".error")?.remove();
      let failed = null;
      try {
        await work();
      } catch (error) {
        failed = error;
        row.append(errorBox(error));
        for (const button of buttons) button.disabled = false;
      }
      await refresh(!failed);
    } }, words);
    const billed = ["failed", "interrupted"].includes(entry.state);
    rows.push(row);
    // What is sent by itself is not sent by hand as well.
    const again = entry.prompt_kept && (billed || !entry.promised);
    row.append(el("div", { className: "row" },
      again ? act("Retry", billed ? "asks anew, which may be billed again" : "goes on with it now", () => page.retry(entry.id)) : null,
      act("Cancel", "drops the question for good", () => call("POST", `/causeway/outbox/${entry.id}/cancel`))));
  }
  $("waiting").replaceChildren(...(rows.length ? rows : [el("li", { className: "faint" }, "Nothing waits.")]));
  await page.arrived(answers.map((answer) => answer.id), states);
}

async function listModels() {
  const { data } = await call("GET", "/v1/models").catch(() => ({ data: [] }));
  const names = data.map((model) => model.id);
  for (const option of document.querySelectorAll("#model option:nth-child(n+4)")) option.remove();
  // The server lists what answers here first, then `auto`, then what the gateway grants.
  for (const name of names.slice(names.indexOf("auto") + 1)) {
    $("model").append(el("option", { value: name }, `Relay: ${name}`));
  }
}

async function listPapers() {
  const { documents } = await call("GET", "/causeway/documents").catch(() => ({ documents: [] }));
  const rows = documents.map((paper) => el("li", {},
    el("span", { className: "cut", title: paper.source }, paper.title),
    el("div", { className: "row spread" },
      el("span", {}, el("button", { className: `tag ${paper.label}`, title: "Who may see it?", onclick: () => relabel(paper) },
        paper.label.replace("-", " ")),
        el("span", { className: "faint" }, ` ${paper.chunks} passage${paper.chunks === 1 ? "" : "s"}`)),
      confirmed("Forget", async () => {
        await call("DELETE", `/causeway/documents/${paper.id}`);
        await listPapers();
      }))));
  $("papers").replaceChildren(...(rows.length ? rows : [el("li", { className: "faint none" }, "No documents yet.")]));
}

function relabel(paper) {
  askLabel(paper.title, paper.label, "Save", async (label) => {
    try {
      await call("PUT", `/causeway/documents/${paper.id}/label`, label);
      await listPapers();
    } catch (error) {
      $("papers").prepend(el("li", {}, errorBox(error)));
    }
  });
}

// Asks by its own words: the first press changes them, the second does it.
function confirmed(words, work) {
  const button = el("button", { className: "small", onclick: () => {
    if (button.textContent === words) button.textContent = "Sure?";
    else work();
  }, onblur: () => { button.textContent = words; } }, words);
  return button;
}

function add(files) {
  if (!files.length) return;
  show("documents");
  askLabel(files.map((file) => file.name).join(", "), "internal", "Add", async (label) => {
    for (const file of files) await upload(file, label);
  });
}

function askLabel(what, label, word, work) {
  const dialog = $("label");
  $("label-files").textContent = what;
  $("label-do").textContent = word;
  dialog.querySelector(`[value="${label}"]`).checked = true;
  dialog.returnValue = "";
  dialog.onclose = () => { if (dialog.returnValue === "do") work(dialog.querySelector(":checked").value); };
  dialog.showModal();
}

async function upload(file, label) {
  const row = el("li", {}, el("span", { className: "cut" }, file.name), el("span", { className: "faint busy" }, "reading it "));
  $("papers").prepend(row);
  try {
    await call("POST", `/causeway/documents?${new URLSearchParams({ name: file.name, label })}`, file);
    row.remove();
    const failures = [...$("papers").querySelectorAll("li:has(.error)")];
    await listPapers();
    $("papers").prepend(...failures);
  } catch (error) {
    row.lastChild.replaceWith(errorBox(error));
  }
}

export async function listTalks(current = document.querySelector("#talks [aria-current]")?.dataset.id) {
  const words = $("search").value.trim();
  const { history } = await call("GET", `/causeway/history?${new URLSearchParams({ q: words })}`).catch(() => ({ history: [] }));
  if (words !== $("search").value.trim()) return;
  const rows = history.map((talk) => {
    const row = el("li", {},
      el("button", { className: "open", onclick: () => page.open(talk.id) },
        el("span", { className: "cut" }, talk.title), el("span", { className: "faint cut" }, talk.excerpt || ago(talk.at))),
      confirmed("Delete", async () => {
        await call("DELETE", `/causeway/history/${talk.id}`);
        await listTalks();
      }));
    row.dataset.id = talk.id;
    if (talk.id === current) row.setAttribute("aria-current", "true");
    return row;
  });
  const none = words ? "No chat holds these words." : "Chats are kept here, encrypted.";
  $("talks").replaceChildren(...(rows.length ? rows : [el("li", { className: "faint" }, none)]));
}
