// The screen: joining, which laptops are linked, and what is carried.

import { authorise, carry, join, known, openTunnel, Refused } from "./gateway.js";
import { choose, chooseSerial, pause, remembered } from "./laptop.js";

const $ = (id) => document.getElementById(id);
const total = { up: 0, down: 0 }, laptops = new Map();
const sum = () => total.up + total.down;
let before = 0, hiddenAt;

function say(place, state, words) {
  place.dataset.state = state;
  if (place.textContent !== words) place.textContent = words;
}

function warn(words) {
  $("note").hidden = !words;
  $("note").textContent = words;
}

function show(id) {
  $("join").hidden = id;
  $("work").hidden = !id;
  $("who").textContent = id ? `This phone is ${new URL(id).pathname.slice(1)}.` : "This phone is not known yet.";
}

// Runs what asks the gateway, and shows what came of it.
async function asking(work) {
  try {
    const result = await work();
    say($("gateway"), "up", "Gateway: reached");
    return result;
  } catch (error) {
    say($("gateway"), "down", "Gateway: not reached");
    if (error.message === "clock") warn("This phone's clock is wrong. Set it, and load the page again.");
    else if (error instanceof Refused) {
      show();
      warn("The gateway does not accept this phone, or this invitation. Ask for a new one.");
    }
    throw error;
  }
}

async function serve(laptop) {
  if (laptops.has(laptop.device)) return;
  const row = document.createElement("li");
  laptops.set(laptop.device, row);
  $("laptops").append(row);
  awake();
  for (let wait = 1, again = false; ; again = true) {
    const carried = sum();
    let link;
    try {
      await asking(() => authorise(again && wait > 1));
      say(row, "", `${laptop.name}: looking for it`);
      link = await laptop.open(laptop.device, again);
      say(row, "up", `${laptop.name}: linked`);
      const first = await link.receive();
      if (first) await carry(link, await asking(openTunnel), first, (way, bytes) => { total[way] += bytes; });
    } catch (error) {
      if (error instanceof Refused) wait = 30;
      await link?.close(4);
    }
    if (sum() > carried) wait = 1;
    else {
      say(row, "down", `${laptop.name}: not linked. Trying again.`);
      await pause(wait);
      wait = Math.min(2 * wait, 30);
    }
  }
}

async function picked(choosing) {
  warn("");
  try {
    serve(await choosing());
  } catch (error) {
    if (error.name !== "NotFoundError") warn(error.message); // nothing was chosen
  }
}

async function enter(id) {
  show(id);
  if (id) for (const laptop of await remembered()) serve(laptop);
}

function awake() {
  if (laptops.size) navigator.wakeLock?.request("screen").catch(() => {});
}

function bytes(count) {
  const power = Math.min(3, Math.floor(Math.log10(count || 1) / 3));
  return `${(count / 1000 ** power).toFixed(power && 1)} ${["B", "kB", "MB", "GB"][power]}`;
}

setInterval(() => {
  for (const way of ["up", "down"]) $(way).textContent = bytes(total[way]);
  $("rate").textContent = `${bytes(sum() - before)}/s`;
  before = sum();
}, 1000);

document.onvisibilitychange = () => {
  const away = document.hidden && laptops.size;
  document.title = away ? "Come back! Causeway" : "Causeway";
  if (away) hiddenAt = Date.now();
  else if (hiddenAt) warn(`The page was in the background for ${Math.ceil((Date.now() - hiddenAt) / 1000)} s. Keep it in front, or links end.`);
  awake();
};

async function joining(line) {
  warn("");
  await asking(() => join(line)).then(enter, () => enter(id));
}

$("join").onsubmit = (event) => {
  event.preventDefault();
  joining($("line").value.trim());
};
$("choose").onclick = () => picked(choose);
$("serial").onclick = () => picked(chooseSerial);
$("choose").hidden = !navigator.bluetooth;
$("serial").hidden = !navigator.serial;
$("sorry").hidden = navigator.bluetooth || navigator.serial;

const line = location.hash.slice(1);
history.replaceState(null, "", location.pathname);
const id = await known();
if (line) await joining(line);
else await enter(id);
document.documentElement.dataset.ready = "yes";
