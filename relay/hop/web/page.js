// The screen.

import { carry, join, openTunnel, renew, total } from "./gateway.js";
import { choose, chooseSerial, remembered } from "./laptop.js";

const $ = (id) => document.getElementById(id);
const rows = new Map();
const shown = (bytes) => (bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);
const say = (row, className, textContent) => Object.assign(row, { className, textContent });
const warn = (textContent = "") => Object.assign($("note"), { textContent, hidden: !textContent });
const awake = () => rows.size && navigator.wakeLock?.request("screen").catch(() => {});
const pause = (ms) => new Promise((done) => { setTimeout(done, ms); });
let before = 0, reached;

// Shows what came of asking the gateway.
async function asking(work) {
	try {
		const result = await Promise.race([work(), pause(20000).then(() => { throw new Error("late"); })]);
		reached = true;
		say($("gateway"), "up", "The gateway answers");
		return result;
	} catch (error) {
		reached = false;
		say($("gateway"), "down", "The gateway does not answer");
		if (error.code === "clock") warn("This phone's clock is wrong. Set it.");
		else if (error.refused) {
			warn("The gateway refuses this phone or invitation. Ask for a new one.");
			$("join").hidden = false;
		}
		throw error;
	}
}

async function serve({ device, name, open }) {
	if (rows.has(device)) return;
	const row = document.createElement("li");
	rows.set(device, row);
	$("laptops").append(row);
	awake();
	for (let wait = 1; ;) {
		let link, down = 0;
		try {
			if (!reached) await asking(renew);
			say(row, "", `${name}: looking for it`);
			link = await open(device);
			say(row, "up", `${name}: linked`);
			warn();
			const first = await link.receive();
			if (first.length) down = await carry(link, await asking(openTunnel), first);
			else await link.close(0);
		} catch (error) {
			await link?.close(4);
			device.gatt?.disconnect();
			if (error.refused) break;
		}
		say(row, "down", `${name}: not linked, trying again`);
		if (down > 99) wait = 1; // a session came about, as it seems
		await pause(1000 * wait);
		wait = Math.min(2 * wait, 30);
	}
	rows.delete(device);
	row.remove();
}

const picked = (choosing) => choosing().then(serve, ({ name, message }) => name === "NotFoundError" || warn(message));

async function enter(line) {
	warn();
	if (line) await asking(() => join(line)).catch(() => {});
	const id = localStorage.hop;
	$("join").hidden = id;
	$("work").hidden = !id;
	if (!id) return;
	$("name").textContent = id.slice(id.indexOf("/hop/") + 1);
	if (!reached) asking(renew).catch(() => {});
	(await remembered()).forEach(serve);
}

function count() {
	for (const way in total) $(way).textContent = shown(total[way]);
	$("rate").textContent = `${shown(total.up + total.down - before)}/s`;
	before = total.up + total.down;
}

document.onvisibilitychange = () => {
	if (rows.size) warn("This page was not in front: links may have ended.");
	document.title = document.hidden && rows.size ? "Come back! Causeway" : "Causeway";
	awake();
};
$("join").onsubmit = (event) => event.preventDefault(enter($("line").value.trim()));
$("choose").onclick = () => picked(choose);
$("serial").onclick = () => picked(chooseSerial);
$("choose").hidden = !navigator.bluetooth;
$("sorry").hidden = navigator.bluetooth;
$("serial").hidden = !navigator.serial;
count(setInterval(count, 1000));

onhashchange = () => {
	const line = location.hash.slice(1);
	history.replaceState(null, "", location.pathname);
	return enter(line);
};
await onhashchange();
document.documentElement.dataset.ready = "yes";
