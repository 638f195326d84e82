// Beside the conversation: the picture of the link, documents, queue and earlier chats.

import { $, ago, el, errorBox } from "./dom.js";
import { call } from "./server.js";

const POLL_MS = 2500;
const LINK = {
  none: ["Not joined to a gateway: everything is answered here.", "on this device"],
  idle: ["No link now; one opens when a question needs it.", "link idle"],
  down: ["The gateway cannot be reached; questions for it wait in the queue.", "no link"],
};
const QUEUED = {
  waiting: "waits for a link, nothing was sent",
  sent: "sent, its answer is still to come",
  failed: "no provider took it",
  interrupted: "whether the provider was called is not known",
  expired: "waited too long",
};

const PROMISED = { ...QUEUED, waiting: "is sent by itself when there is a link" };

let seen = "";

export function startSide(open, showRetried) {
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
  $("search").oninput = () => listTalks(open);
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
  listTalks(open);
  listPapers();
  const poll = () => {
    if (document.visibilityState === "visible") refresh(showRetried);
  };
  poll();
  setInterval(poll, POLL_MS);
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

export async function refresh(showRetried) {
  let status;
  try {
    status = await call("GET", "/causeway/status");
  } catch (error) {
    status = { link: { state: "down", via: "" }, queue: {}, words: "`edge serve` does not answer." };
  }
  const { state, via } = status.link;
  const name = via.split("/").pop();
  const [words, short] = state === "up"
    ? [name ? `Linked by way of ${name}.` : "Linked to the gateway directly.", name ? `via ${name}` : "direct"]
    : LINK[state];
  for (const picture of [$("link"), $("pill")]) Object.assign(picture.dataset, { state, via: name });
  if ($("link-words").textContent !== (status.words || words)) $("link-words").textContent = status.words || words;
  $("hop").textContent = name;
  $("hop").title = via;
  const queued = Object.values(status.queue).reduce((sum, count) => sum + count, 0);
  $("pill-words").textContent = queued ? `${short}, ${queued} queued` : short;
  $("queue-count").textContent = queued;
  $("queue-count").hidden = !queued;
  if (status.answers) $("pill-words").textContent += `, ${status.answers} answered`;
  $("tab-queue").classList.toggle("news", Boolean(status.answers));
  const now = JSON.stringify([status.queue, status.answers]);
  if (now !== seen) {
    seen = now;
    await listQueue(showRetried);
  }
}

async function listQueue(showRetried) {
  const { outbox, answers } = await call("GET", "/causeway/outbox").catch(() => ({ outbox: [], answers: [] }));
  const rows = answers.map((answer) => {
    const drop = async () => {
      await call("DELETE", `/causeway/answers/${answer.id}`);
      await refresh(showRetried);
    };
    return el("li", {},
      el("span", { className: "cut", title: answer.question }, answer.question),
      el("span", { className: "faint" }, `${ago(answer.at)}: ${answer.failure || "the answer is here"}`),
      el("div", { className: "row" },
        el("button", { className: "small main", onclick: async () => {
          showRetried(await call("GET", `/causeway/answers/${answer.id}`));
          await drop();
        } }, "Read"),
        confirmed("Dismiss", drop)));
  });
  for (const entry of outbox) {
    const row = el("li", {},
      el("span", { className: "cut", title: entry.question }, entry.question || "(erased)"),
      el("span", { className: "faint" }, `${ago(entry.created_at)}: ${entry.promised ? PROMISED[entry.state] : QUEUED[entry.state]}${entry.reason ? ` (${entry.reason})` : ""}`));
    const act = (name, words, title) => el("button", { className: "small", title, onclick: async (event) => {
      const buttons = event.target.parentNode.querySelectorAll("button");
      for (const button of buttons) button.disabled = true;
      row.querySelector(".error")?.remove();
      try {
        const done = await call("POST", `/causeway/outbox/${entry.id}/${name}`);
        if (name === "retry") showRetried(done);
        seen = "";
      } catch (error) {
        row.append(errorBox(error));
        for (const button of buttons) button.disabled = false;
      }
      await refresh(showRetried);
    } }, words);
    const billed = ["failed", "interrupted"].includes(entry.state) ? "asks anew, which may be billed again" : "goes on with it now";
    rows.push(row);
    row.append(el("div", { className: "row" },
      entry.prompt_kept ? act("retry", "Retry", billed) : null, act("cancel", "Cancel", "drops the question for good")));
  }
  $("waiting").replaceChildren(...(rows.length ? rows : [el("li", { className: "faint" }, "Nothing waits.")]));
}

async function listPapers() {
  const { documents } = await call("GET", "/causeway/documents");
  $("papers").replaceChildren(...documents.map((paper) => el("li", {},
    el("span", { className: "cut", title: paper.source }, paper.title),
    el("div", { className: "row spread" },
      el("span", {}, el("span", { className: `tag ${paper.label}` }, paper.label.replace("-", " ")),
        el("span", { className: "faint" }, ` ${paper.chunks} passage${paper.chunks === 1 ? "" : "s"}`)),
      confirmed("Forget", async () => {
        await call("DELETE", `/causeway/documents/${paper.id}`);
        await listPapers();
      })))));
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
  const dialog = $("label");
  $("label-files").textContent = files.map((file) => file.name).join(", ");
  dialog.returnValue = "";
  dialog.onclose = async () => {
    if (dialog.returnValue !== "add") return;
    const label = dialog.querySelector(":checked").value;
    for (const file of files) await upload(file, label);
  };
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

export async function listTalks(open, current = document.querySelector("#talks [aria-current]")?.dataset.id) {
  const words = $("search").value.trim();
  const { history } = await call("GET", `/causeway/history?${new URLSearchParams({ q: words })}`).catch(() => ({ history: [] }));
  if (words !== $("search").value.trim()) return;
  const rows = history.map((talk) => {
    const row = el("li", {},
      el("button", { className: "open", onclick: () => open(talk.id) },
        el("span", { className: "cut" }, talk.title), el("span", { className: "faint cut" }, talk.excerpt || ago(talk.at))),
      confirmed("Delete", async () => {
        await call("DELETE", `/causeway/history/${talk.id}`);
        await listTalks(open);
      }));
    row.dataset.id = talk.id;
    if (talk.id === current) row.setAttribute("aria-current", "true");
    return row;
  });
  const none = words ? "No chat holds these words." : "Chats are kept here, encrypted.";
  $("talks").replaceChildren(...(rows.length ? rows : [el("li", { className: "faint" }, none)]));
}
